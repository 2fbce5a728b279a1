"""Lookahead search: a beam that ranks a step by where it leads."""

from typing import ClassVar, Literal

from pydantic import Field

from branchwise.core.node import Node
from branchwise.core.types import Expand
from branchwise.search.card import Card
from branchwise.search.search import Search


class Lookahead(Search):
    """Keep the best `width` partial answers, each worth what it leads to in k steps.

        C ← width · fanout first steps
        repeat:  follow each open step of C for k further steps
                 B ← the best width of C by the score where that ends
                 C ← B's finished nodes and fanout children of each of its open ones

    With k = 0 it is beam search. A rollout is a part of the tree: its first step hangs below the
    step it looks ahead from, as that one's first child. It only ranks: the candidates of the next
    level are drawn anew. Where none comes (calls fail, or `unique` hides copies of what
    the rollout said), the rollout's first step stands in. What a rollout finishes may answer.

    Source: Snell et al. 2024, §5.2, who roll out at temperature 0.

    Args:
        width: how many steps are kept at each level.
        fanout: how many children each gets.
        steps: k, how far a rollout goes.
        by: the name of the policy that rolls out: one at temperature 0, as in the paper, or
            `policy`, the same that proposes.

    Example:
        >>> Lookahead(width=4, fanout=4, steps=1, by="greedy").kind
        'lookahead'
    """

    kind: Literal["lookahead"] = "lookahead"
    card: ClassVar[Card] = Card(
        structure="step",
        signals="a score for each step",
        paper="Snell et al. 2024, §5.2",
        oracle="a loop over enumerated words; with k = 0 a beam's",
        test="search/test_lookahead.py::test_steps_are_ranked_by_where_they_lead",
    )
    width: int = Field(default=4, ge=1)
    fanout: int = Field(default=4, ge=1)
    steps: int = Field(default=1, ge=0)
    by: str = "policy"

    async def grow(self, root: Node, expand: Expand) -> None:
        """Grow level by level."""
        candidates = await expand([root], self.width * self.fanout)
        while candidates:
            ahead = await self.look(candidates, expand)
            ranked = sorted(candidates, key=lambda v: -ahead[v][-1].score)
            beam = ranked[: self.width]
            open_ = [v for v in beam if not v.done]
            if not open_:
                return
            grown: dict[Node | None, list[Node]] = {}
            for child in await expand(open_, self.fanout):
                grown.setdefault(child.parent, []).append(child)
            candidates = [
                w for v in beam for w in ([v] if v.done else grown.get(v) or ahead[v][1:2])
            ]

    async def look(self, nodes: list[Node], expand: Expand) -> dict[Node, list[Node]]:
        """Each node and its rollout; one that fails ends where it is."""
        ahead = {node: [node] for node in nodes}
        moving = list(ahead.values())
        for _ in range(self.steps):
            moving = [rollout for rollout in moving if not rollout[-1].done]
            if not moving:
                break
            children = await expand([rollout[-1] for rollout in moving], by=self.by)
            reached = {child.parent: child for child in children}
            moving = [rollout for rollout in moving if rollout[-1] in reached]
            for rollout in moving:
                rollout.append(reached[rollout[-1]])
        return ahead
