"""The samples of one request, as the calls that ask for them bring them in."""

from __future__ import annotations

from collections.abc import Sequence

from branchwise.core.errors import BackendError
from branchwise.core.types import Step


class Samples:
    """One place for each seed of a request; several calls fill them, and each may fail.

    Args:
        size: how many seeds the request has.

    Example:
        >>> samples = Samples(2)
        >>> samples.put(0, [Step("4")])
        >>> samples.failed(BackendError("the second call failed"))
        >>> try:
        ...     samples.all()
        ... except BackendError as error:
        ...     print([step and step.text for step in error.arrived])
        ['4', None]
    """

    def __init__(self, size: int) -> None:
        self._steps: list[Step | None] = [None] * size
        self._failure: BackendError | None = None

    @property
    def fatal(self) -> BackendError | None:
        """The failure after which no further call can succeed."""
        return self._failure if self._failure is not None and self._failure.fatal else None

    def put(self, start: int, steps: Sequence[Step]) -> None:
        """Keep what a call brought for the places from `start` on."""
        self._steps[start : start + len(steps)] = steps

    def failed(self, error: BackendError) -> None:
        """Note that a call failed for good; the first failure stays, but a fatal one tells more."""
        if self._failure is None or (error.fatal and not self._failure.fatal):
            self._failure = error

    def all(self) -> list[Step]:
        """One step for each seed, in order, once every call has ended.

        Raises:
            BackendError: a call failed; `arrived` holds what the others brought.
        """
        if self._failure is not None:
            self._failure.arrived = tuple(self._steps)
            raise self._failure
        return [step for step in self._steps if step is not None]
