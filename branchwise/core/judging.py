"""Asking verifiers: a verdict for each node whatever they do, and what it all has cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from math import isfinite, nan
from typing import SupportsFloat, TypeVar, cast

from branchwise.core.aio import gather
from branchwise.core.errors import BackendError, BranchError, BranchwiseError, VerifierError
from branchwise.core.node import Node
from branchwise.core.types import FREE, Reading, Step, Usage, Verdict, Verifier

T = TypeVar("T")
R = TypeVar("R")


def cost(said: object) -> Usage:
    """What has been paid for something that was said, or for all of several such things.

    Args:
        said: a verdict, a step, a reading, an error in the place of one, a usage, or a
            sequence of these; anything else is free.

    Example:
        >>> cost([Verdict(1.0, usage=Usage(calls=1)), VerifierError("?", spent=Usage(calls=2))])
        Usage(calls=3, prompt=0, cached=0, completion=0, seconds=0.0, dollars=0.0)
    """
    if isinstance(said, Usage):
        return said
    if isinstance(said, Verdict | Step | Reading):
        return said.usage
    if isinstance(said, BranchError):
        return said.spent or FREE
    if isinstance(said, Sequence) and not isinstance(said, str):
        return sum(map(cost, cast("Sequence[object]", said)), FREE)
    return FREE


def with_cost(error: BackendError, more: Usage) -> BackendError:
    """The same error with what else has been paid, and without the samples that arrived.

    Those are replies to a judge, not steps of a search. It is a new error, for a backend that is
    out of reach may raise the same one again.

    Args:
        error: ends the search.
        more: what the error does not know of.
    """
    return BackendError(
        error.message,
        hint=error.hint,
        fatal=error.fatal,
        status=error.status,
        spent=(error.spent or FREE) + more,
    )


async def settled(function: Callable[[T], Awaitable[R]], items: Sequence[T]) -> list[R]:
    """`gather` for calls that are paid: where one ends the search, the others still arrive.

    Args:
        function: called with all items at once.
        items: in the order of the results.

    Raises:
        BackendError: the first one, with what all the others have cost.
    """

    async def one(item: T) -> R | BackendError:
        try:
            return await function(item)
        except BackendError as error:
            return error

    outcomes = await gather(one, items)
    results = [outcome for outcome in outcomes if not isinstance(outcome, BackendError)]
    if len(results) < len(outcomes):
        first = next(outcome for outcome in outcomes if isinstance(outcome, BackendError))
        others = cost([outcome for outcome in outcomes if outcome is not first])
        raise with_cost(first, others) from first
    return results


async def judged(
    verifier: Verifier, nodes: Sequence[Node], name: str = ""
) -> list[Verdict | VerifierError]:
    """One verdict with a finite score for each node; what goes wrong is an error in its place.

    Where a verifier raises, it is asked for each node alone, so that only the culprit fails.

    Args:
        verifier: asked once, and not at all where there are no nodes.
        nodes: what to judge.
        name: what errors call the verifier.

    Raises:
        BackendError: no later call can succeed either.
        BranchwiseError: a signal that is not one node's business, such as a spent budget.
    """
    if not nodes:
        return []
    who = f"verifier {name!r}" if name else "it"
    try:
        said: list[object] = list(await verifier.score(nodes))
    except BranchError as error:
        if isinstance(error, BackendError) and error.fatal:
            raise
        return _errors(_named(name, error), len(nodes), cost(error))
    except BranchwiseError:
        raise
    except Exception as error:  # noqa: BLE001  (a user's verifier; its faults are data)
        if len(nodes) > 1:
            alone = await settled(lambda node: judged(verifier, [node], name), nodes)
            return [verdict for (verdict,) in alone]
        return [VerifierError(f"{who} raised {type(error).__name__}: {error}")]
    if len(said) != len(nodes):
        fault = f"{who} gave {len(said)} verdicts for {len(nodes)} nodes"
        return _errors(fault, len(nodes), cost(said))
    return [_sound(verdict, name, who) for verdict in said]


def _errors(fault: str, count: int, paid: Usage) -> list[Verdict | VerifierError]:
    """The same fault for several nodes; what it has cost is on the first."""
    return [VerifierError(fault, spent=paid), *[VerifierError(fault)] * (count - 1)]


def _named(name: str, error: BranchError) -> str:
    return f"verifier {name!r}: {error}" if name else str(error)


def _sound(said: object, name: str, who: str) -> Verdict | VerifierError:
    if isinstance(said, VerifierError):
        return VerifierError(_named(name, said), spent=said.spent) if name else said
    if not isinstance(said, Verdict):
        return VerifierError(f"{who} gave {said!r:.80}, which is no Verdict")
    score = cast("object", said.score)  # a user's: a Decimal, a scalar of numpy, None
    if type(score) is float and isfinite(score):
        return said
    try:
        number = float(score) if isinstance(score, SupportsFloat) else nan
    except (ValueError, OverflowError, TypeError):
        number = nan
    if isfinite(number):
        return dataclasses.replace(said, score=number)
    return VerifierError(
        f"{who} gave the score {score!r:.80}, which is no finite number", spent=said.usage
    )
