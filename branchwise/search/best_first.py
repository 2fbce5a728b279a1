"""Best-first search: backtracking is popping an older node."""

import heapq
import itertools
from typing import ClassVar, Literal

from pydantic import Field

from branchwise.core.node import Node
from branchwise.core.types import Expand
from branchwise.search.best import suffice
from branchwise.search.card import Card
from branchwise.search.pipeline import Pipeline
from branchwise.search.search import Search


class BestFirst(Search):
    """Always grow the most promising node that is still open, wherever in the tree it is.

        Q ← {root}
        repeat expansions times:  v ← pop argmax priority(Q);  Q ← Q ∪ open children of v

    A branch that disappoints is left for an older one and taken up again when that one
    disappoints more: backtracking without an undo.

    With `lanes` = k the next nodes are popped while k expansions are in flight, of the queue as it
    is then, wherever it holds any.

    Source: Polu and Sutskever 2020, who search for proofs with e = 32 children; Koh et al.
    2024, §3, whose agents browse with b = 5 and a budget c = 20.

    Args:
        fanout: how many children a node gets (e, b).
        expansions: how many nodes are grown at most (c).
        enough: a score at which a finished node ends the search; None goes on.
        priority: `own`, the node's own score (Polu and Sutskever), or `parent`, its parent's, as
            a state that has not been visited yet has no value of its own (Koh et al.).
        start: with `parent`, the priority of the root's children: nobody judges the root. The
            authors' code has 0.5.
        lanes: k, how many expansions go on at once.
        in_order: whether children are pushed in the order in which their parents were popped. The
            tree then does not depend on latencies, but a lane may wait for a slower one.

    Example:
        >>> BestFirst(fanout=5, expansions=20, enough=1.0).lanes
        1
    """

    kind: Literal["best-first"] = "best-first"
    card: ClassVar[Card] = Card(
        structure="step",
        signals="a score for each step",
        paper="Polu and Sutskever 2020; Koh et al. 2024, §3",
        oracle="networkx's Dijkstra, node by node",
        test="search/test_best_first.py::test_it_expands_in_the_order_of_dijkstra",
    )
    fanout: int = Field(default=4, ge=1)
    expansions: int = Field(default=32, ge=1)
    enough: float | None = None
    priority: Literal["own", "parent"] = "own"
    start: float = 0.5
    lanes: int = Field(default=1, ge=1)
    in_order: bool = True

    async def grow(self, root: Node, expand: Expand) -> None:
        """Pop, expand, push."""
        queue = [(0.0, 0, root)]
        pushed = itertools.count(1)  # of equal priorities the older node goes first

        def pop() -> Node | None:
            return heapq.heappop(queue)[2] if queue else None

        async def grown(node: Node) -> list[Node]:
            return await expand([node], self.fanout)

        def push(_: Node, children: list[Node]) -> bool:
            for child in children:
                if not child.done:
                    heapq.heappush(queue, (-self._priority(child, root), next(pushed), child))
            return not suffice(children, self.enough)

        await Pipeline(
            pop, grown, push, total=self.expansions, width=self.lanes, in_order=self.in_order
        ).run()

    def _priority(self, child: Node, root: Node) -> float:
        if self.priority == "own":
            return child.score
        parent = child.parent
        return self.start if parent is None or parent is root else parent.score
