"""Iterative deepening."""

import itertools
from typing import ClassVar, Literal

from pydantic import Field

from branchwise.core.node import Node
from branchwise.core.types import Expand
from branchwise.search.best import suffice
from branchwise.search.card import Card
from branchwise.search.search import Search


class IterativeDeepening(Search):
    """Search depth first, to a limit that rises until nothing lies beyond it.

        for d = stride, 2 · stride, ...:
            search depth first from the root, no deeper than d, the best child first
            if nothing was left out:  end

    Each search begins at the root again, but the tree is kept: children that have grown are used
    and not grown again, so nothing is paid for twice. With a stride of 1 the nodes of each depth
    are thus grown before those of the next, as breadth-first search would, the best families first;
    a stride of the whole depth is depth-first search.

    Source: Korf 1985.

    Args:
        fanout: how many children a node gets.
        stride: by how much the limit rises.
        expansions: how many nodes are grown at most.
        enough: a score at which a finished node ends the search; None goes on.

    Example:
        >>> IterativeDeepening(fanout=3, enough=1.0).stride
        1
    """

    kind: Literal["iterative-deepening"] = "iterative-deepening"
    card: ClassVar[Card] = Card(
        structure="step",
        signals="a score for each step",
        paper="Korf 1985",
        oracle="networkx's depth-limited preorders, one after the other",
        test="search/test_deepening.py::test_it_grows_in_the_order_of_networkx",
    )
    fanout: int = Field(default=4, ge=1)
    stride: int = Field(default=1, ge=1)
    expansions: int = Field(default=32, ge=1)
    enough: float | None = None

    async def grow(self, root: Node, expand: Expand) -> None:
        """Search again and again, deeper each time."""
        grown: dict[Node, list[Node]] = {}
        for limit in itertools.count(self.stride, self.stride):
            stack, beyond = [(root, 0)], False
            while stack:
                node, depth = stack.pop()
                if depth == limit:
                    beyond = True
                    continue
                if node not in grown:
                    if len(grown) == self.expansions:
                        return
                    children = await expand([node], self.fanout)
                    if suffice(children, self.enough):
                        return
                    grown[node] = _worst_first(children)
                stack.extend((child, depth + 1) for child in grown[node])
            if not beyond:
                return


def _worst_first(children: list[Node]) -> list[Node]:
    """The open ones in the order of a stack: the best is on top, the older one of equals."""
    return sorted((c for c in children if not c.done), key=lambda c: -c.score)[::-1]
