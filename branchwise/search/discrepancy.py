"""Limited discrepancy search."""

import itertools
from typing import ClassVar, Literal

from pydantic import Field

from branchwise.core.node import Node
from branchwise.core.types import Expand
from branchwise.search.best import suffice
from branchwise.search.card import Card
from branchwise.search.search import Search


class LimitedDiscrepancy(Search):
    """Follow the verifier everywhere, then everywhere but once, then everywhere but twice, ...

        for k = 0, 1, ...:  probe(root, k);  if no branch was left out: end
        probe(v, k):  for each child c of v that is not the best, if k > 0:  probe(c, k - 1)
                      probe(the best child of v, k)

    A discrepancy is a step to a child that the scores do not put first. A verifier that is right
    nearly everywhere is wrong in few places of a path, and the paths with few discrepancies come
    first. Each probe begins at the root again, but the tree is kept: children that have grown are
    used and not grown again.

    Source: Harvey and Ginsberg 1995, who take a discrepancy near the root first; Korf 1996, who
    takes it near the leaves first. Korf's saving, to visit no path twice, costs nothing here in
    either order, since what has grown is only walked over.

    Args:
        fanout: how many children a node gets.
        discrepancies: the largest k; None goes on until the whole tree has grown.
        order: `top` (Harvey and Ginsberg) or `bottom` (Korf).
        count: what a step to the i-th best child counts: `one` for every i but the first, or
            `rank`, i - 1. Both papers have binary trees, where it is the same.
        expansions: how many nodes are grown at most.
        enough: a score at which a finished node ends the search; None goes on.

    Example:
        >>> LimitedDiscrepancy(discrepancies=2).order
        'top'
    """

    kind: Literal["limited-discrepancy"] = "limited-discrepancy"
    card: ClassVar[Card] = Card(
        structure="step",
        signals="a score for each step",
        paper="Harvey and Ginsberg 1995; Korf 1996",
        oracle="the orders of the two papers for a binary tree, by hand and by recursion",
        test="search/test_discrepancy.py::test_leaves_are_visited_in_the_order_of_the_papers",
    )
    fanout: int = Field(default=4, ge=1)
    discrepancies: int | None = Field(default=None, ge=0)
    order: Literal["top", "bottom"] = "top"
    count: Literal["one", "rank"] = "one"
    expansions: int = Field(default=32, ge=1)
    enough: float | None = None

    async def grow(self, root: Node, expand: Expand) -> None:
        """Probe again and again, with one more discrepancy each time."""
        grown: dict[Node, list[Node]] = {}
        waves = itertools.count() if self.discrepancies is None else range(self.discrepancies + 1)
        for allowed in waves:
            stack, left_out = [(root, allowed)], False
            while stack:
                node, k = stack.pop()
                if node not in grown:
                    if len(grown) == self.expansions:
                        return
                    children = await expand([node], self.fanout)
                    if suffice(children, self.enough):
                        return
                    open_ = [child for child in children if not child.done]
                    grown[node] = sorted(open_, key=lambda child: -child.score)
                branches = [
                    (child, k - self._cost(rank))
                    for rank, child in enumerate(grown[node])
                    if self._cost(rank) <= k
                ]
                left_out |= len(branches) < len(grown[node])
                if self.order == "top":
                    branches = branches[1:] + branches[:1]
                stack.extend(reversed(branches))
            if not left_out:
                return

    def _cost(self, rank: int) -> int:
        return rank if self.count == "rank" else min(rank, 1)
