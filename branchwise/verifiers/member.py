"""Verifiers inside verifiers: what holds them, and a verdict for each node whatever they do."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Protocol, Self, SupportsFloat, cast, runtime_checkable

from branchwise.core.errors import BackendError, BranchError, BranchwiseError, VerifierError
from branchwise.core.node import Node
from branchwise.core.types import Verdict, Verifier


@runtime_checkable
class Holding(Protocol):
    """A verifier that asks others, which may have to be opened before it can."""

    @property
    def inner(self) -> tuple[Verifier, ...]:
        """The verifiers that it asks, in order."""
        ...

    def around(self, inner: Sequence[Verifier]) -> Self:
        """The same with other verifiers, such as the opened ones.

        Args:
            inner: one for each of `inner`, in order.
        """
        ...


async def judged(verifier: Verifier, nodes: Sequence[Node]) -> list[Verdict | VerifierError]:
    """One verdict with a finite score for each node; what goes wrong is an error in its place.

    Where a verifier raises, it is asked for each node alone, so that only the culprit fails.

    Args:
        verifier: asked once, and not at all where there are no nodes.
        nodes: what to judge.

    Raises:
        BackendError: no later call can succeed either.
        BranchwiseError: a signal that is not one node's business, such as a spent budget.
    """
    if not nodes:
        return []
    try:
        said = list(await verifier.score(nodes))
    except BranchError as error:
        if isinstance(error, BackendError) and error.fatal:
            raise
        wrong = VerifierError(error.message, hint=error.hint)
        paid = VerifierError(error.message, hint=error.hint, spent=error.spent)
        return [paid, *[wrong] * (len(nodes) - 1)]
    except BranchwiseError:
        raise
    except Exception as error:  # noqa: BLE001  (a user's verifier; its faults are data)
        if len(nodes) > 1:
            return [(await judged(verifier, [node]))[0] for node in nodes]
        return [VerifierError(f"it raised {type(error).__name__}: {error}")]
    if len(said) != len(nodes):
        return [VerifierError(f"it gave {len(said)} verdicts for {len(nodes)} nodes")] * len(nodes)
    return [_sound(verdict) for verdict in said]


def _sound(said: object) -> Verdict | VerifierError:
    if isinstance(said, VerifierError):
        return said
    if not isinstance(said, Verdict):
        return VerifierError(f"it gave {said!r:.80}, which is no Verdict")
    score = cast("object", said.score)  # a user's: a Decimal, a scalar of numpy, None
    try:
        number = float(score) if isinstance(score, SupportsFloat) else math.nan
    except (ValueError, OverflowError, TypeError):
        number = math.nan
    if math.isfinite(number):
        return dataclasses.replace(said, score=number)
    return VerifierError(
        f"it gave the score {score!r:.80}, which is no finite number", spent=said.usage
    )
