"""Tree of thoughts, breadth first."""

import math
import random
from collections.abc import Hashable, Sequence
from typing import ClassVar, Literal

from pydantic import Field

from branchwise.core.node import Node
from branchwise.core.types import Expand
from branchwise.search.card import Card
from branchwise.search.search import Search


class TreeOfThoughtsBFS(Search):
    """Keep b states of each level and grow k thoughts from each.

        S ← {x}
        repeat:  S' ← {[s, z] : s ∈ S, z among k thoughts of s}
                 S ← b states of S', the most valuable ones or drawn by their value

    Finished states stay in S' and compete; the search ends where all b are finished. With b = 1
    it is step greedy: of k next steps, keep the best.

    Source: Yao et al. 2023, Algorithm 1, which keeps the b best of a *set* of states. The authors'
    code gives every copy of a state the value 0 instead, which lets a copy win where values are
    negative, and can also draw b states with probability ∝ value, with replacement.

    Args:
        width: b, how many states are kept.
        fanout: k, how many thoughts each gets.
        select: `greedy` keeps the b best (the paper), `sample` draws b with replacement (the
            code): a state that is drawn m times gets m · k thoughts.
        weight: what `sample` draws by: `score` (negative ones count as 0; where none is positive,
            all count the same) or `exp` (exp(score), for scores that are log-probabilities).
        distinct: whether of states with the same text only the oldest is kept; a finished state and
            an open one are two.
        seed: of the draws.

    Example:
        >>> TreeOfThoughtsBFS(width=5, fanout=3).select
        'greedy'
    """

    kind: Literal["tot-bfs"] = "tot-bfs"
    card: ClassVar[Card] = Card(
        structure="step",
        signals="a score for each step",
        paper="Yao et al. 2023, Algorithm 1",
        oracle="a loop over enumerated words; chi-square of the draws",
        test="search/test_tot.py::test_bfs_keeps_the_best_states_of_each_level",
    )
    width: int = Field(default=5, ge=1)
    fanout: int = Field(default=5, ge=1)
    select: Literal["greedy", "sample"] = "greedy"
    weight: Literal["score", "exp"] = "score"
    distinct: bool = True
    seed: int = 0

    async def grow(self, root: Node, expand: Expand) -> None:
        """Grow level by level."""
        level = 1
        states = self.keep(await expand([root], self.fanout), level)
        while open_ := [s for s in states if not s.done]:
            children = await expand(open_, [self.fanout * states[s] for s in open_])
            level += 1
            states = self.keep([s for s in states if s.done] + children, level)

    def keep(self, proposed: Sequence[Node], level: int) -> dict[Node, int]:
        """The states that are kept of S', each with how many times it is kept."""
        if self.distinct:
            oldest: dict[Hashable, Node] = {}
            for state in proposed:
                oldest.setdefault(_said(state), state)
            proposed = list(oldest.values())
        if self.select == "greedy":
            return dict.fromkeys(sorted(proposed, key=lambda s: -s.score)[: self.width], 1)
        return self._drawn(proposed, level)

    def _drawn(self, proposed: Sequence[Node], level: int) -> dict[Node, int]:
        if not proposed:
            return {}
        if self.weight == "exp":
            top = max(s.score for s in proposed)
            weights = [math.exp(s.score - top) for s in proposed]
        else:
            top = max(*(s.score for s in proposed), 0.0) or 1.0  # or large sums would overflow
            weights = [max(s.score, 0.0) / top for s in proposed]
        if not any(weights):
            weights = [1.0] * len(proposed)
        draws = random.Random(f"{self.seed}/{level}")  # noqa: S311  (no secret)
        drawn = draws.choices(range(len(proposed)), weights, k=self.width)
        return {s: drawn.count(i) for i, s in enumerate(proposed) if i in drawn}


def _said(state: Node) -> Hashable:
    """The text; a last token that adds nothing to it ends it, or is a part of a character."""
    step = state.step
    silent = step.tokens if step is not None and not step.text else ()
    return state.text, state.done, silent
