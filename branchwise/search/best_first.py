"""Best-first search: backtracking is popping an older node."""

import heapq
from typing import Literal

from pydantic import Field

from branchwise.core.node import Node
from branchwise.core.types import Expand
from branchwise.search.search import Search


class BestFirst(Search):
    """Always grow the most promising node that is still open, wherever in the tree it is.

        Q ← {root}
        repeat expansions times:  v ← pop argmax score(Q);  Q ← Q ∪ open children of v

    A branch that disappoints is left for an older one and taken up again when that one
    disappoints more: backtracking without an undo. Polu and Sutskever 2020 search for proofs this
    way with e = 32 children, Koh et al. 2024, §3 let agents browse with b = 5 and a budget c = 20.
    Koh's priority of a child is its parent's value until the child is visited; here children are
    judged when they are grown.

    Args:
        fanout: how many children a node gets (b).
        expansions: how many nodes are grown at most (c).
        enough: a score at which a finished node ends the search; None goes on.

    Example:
        >>> BestFirst(fanout=5, expansions=20, enough=1.0).kind
        'best-first'
    """

    kind: Literal["best-first"] = "best-first"
    fanout: int = Field(default=4, ge=1)
    expansions: int = Field(default=32, ge=1)
    enough: float | None = None

    async def grow(self, root: Node, expand: Expand) -> None:
        """Pop, expand, push."""
        queue: list[tuple[float, int, Node]] = [(0.0, 0, root)]
        pushed = 1  # of equal scores the older node goes first
        for _ in range(self.expansions):
            if not queue:
                return
            _, _, node = heapq.heappop(queue)
            for child in await expand([node], self.fanout):
                if not child.done:
                    heapq.heappush(queue, (-child.score, pushed, child))
                    pushed += 1
                elif self.enough is not None and child.finished and child.score >= self.enough:
                    return
