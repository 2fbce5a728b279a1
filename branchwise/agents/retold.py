"""A failed call, as the policy that made it tells of it."""

from collections.abc import Sequence

from branchwise.core.errors import BackendError
from branchwise.core.types import Step, Usage


def retold(
    error: BackendError, arrived: Sequence[Step | None], spent: Usage | None
) -> BackendError:
    """The same failure, with the steps that the policy makes of what has arrived.

    Args:
        error: the failure.
        arrived: one place for each seed of the policy, or nothing.
        spent: what has been paid beyond the steps that arrived.
    """
    return BackendError(
        error.message,
        hint=error.hint,
        fatal=error.fatal,
        status=error.status,
        arrived=arrived,
        spent=spent,
    )
