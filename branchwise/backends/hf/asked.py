"""What the engine is asked: to go on from a text, or to judge one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from branchwise.core.types import Reading, Request, Step


@dataclass(frozen=True, slots=True)
class Judge:
    """A request that asks what the model makes of its steps, instead of for more.

    Args:
        request: the question and the steps.
        since: the first step to judge.
        state: whether the model's states are wanted.
        words: tokens of which it is wanted how probable they are after each step.
    """

    request: Request
    since: int
    state: bool
    words: tuple[str | int, ...]


Asked: TypeAlias = Request | Judge
Told: TypeAlias = Sequence[Step] | Sequence[Reading]
