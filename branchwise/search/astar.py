"""A*: what a path has earned, and what it may still earn."""

import heapq
import math
from typing import ClassVar, Literal

from pydantic import Field

from branchwise.core.controller import Controller
from branchwise.core.errors import SpecError
from branchwise.core.node import Node
from branchwise.core.types import Expand
from branchwise.search.best import candidates
from branchwise.search.card import Card


class AStar(Controller):
    """Always grow the path with the greatest f(s) = g(s) + λ · h(s); end when a finished one leads.

        Q ← {root}
        repeat expansions times:  s ← pop argmax f(Q);  if s is finished: end;  Q ← Q ∪ children(s)

        g(s) = Agg(r(s_1), ..., r(s)),  what the steps have earned on the way
        h(s),  what is still to be earned from s on

    A cost is a negative reward. Where g is a sum, λ is 1 and h never underrates what is to come
    (admissible; at the end h is 0), the first finished path that leads is the best one of the
    tree. λ = 0 is Dijkstra's algorithm; with costs and λ = w > 1 the path costs at most w times
    the least. The answer is the finished node with the greatest f, not the highest score.

    Source: Hart et al. 1968; Pohl 1970 (weighted A*); Q* of Wang et al. 2024, §4.2: r is a
    process reward and h the value of a learned Q.

    Args:
        fanout: how many children a node gets.
        expansions: how many nodes are grown at most.
        weight: λ.
        aggregate: Agg: `sum`, `min` or `last`.
        reward: the verifier whose verdict is r; None takes the world's reward.
        value: the verifier whose verdict is h; None takes the node's score, which without a
            verifier is the world's reward again: name one, or set λ = 0.

    Raises:
        SpecError: no verifier has the name that is given.

    Example:
        >>> AStar(weight=1.0, aggregate="min", reward="steps", value="outlook").kind
        'a-star'
    """

    kind: Literal["a-star"] = "a-star"
    card: ClassVar[Card] = Card(
        structure="step",
        signals="a reward and a value for each step",
        paper="Hart et al. 1968; Wang et al. 2024 (Q*), §4.2",
        oracle="networkx's A*, node by node; the bound of weighted A*",
        test="search/test_astar.py::test_it_expands_in_the_order_of_networkx",
    )
    fanout: int = Field(default=4, ge=1)
    expansions: int = Field(default=32, ge=1)
    weight: float = Field(default=1.0, ge=0)
    aggregate: Literal["sum", "min", "last"] = "sum"
    reward: str | None = None
    value: str | None = None

    async def grow(self, root: Node, expand: Expand) -> None:
        """Pop, expand, push."""
        earned = {root: self._nothing}
        queue: list[tuple[float, int, Node]] = [(0.0, 0, root)]
        pushed = 1  # of equal paths the older goes first
        for _ in range(self.expansions):
            if not queue:
                return
            node = heapq.heappop(queue)[2]
            if node.finished and node is not root:
                return
            for child in await expand([node], self.fanout):
                self._check(child)
                earned[child] = self._longer(earned[node], child)
                if child.finished or not child.done:
                    heapq.heappush(queue, (-self._f(earned[child], child), pushed, child))
                    pushed += 1

    def answer(self, root: Node) -> Node:
        """The finished node with the greatest f, the first of equals."""
        earned = {root: self._nothing}
        for node in root.walk():
            if node is not root and node.parent is not None:
                earned[node] = self._longer(earned[node.parent], node)
        # A root that is finished has earned nothing that its drafts could be compared with.
        grown = [node for node in candidates(root) if node is not root]
        return max(grown, key=lambda node: self._f(earned[node], node), default=root)

    @property
    def _nothing(self) -> float:
        return math.inf if self.aggregate == "min" else 0.0

    def _longer(self, g: float, node: Node) -> float:
        r = node.state.reward if self.reward is None else _said(node, self.reward)
        match self.aggregate:
            case "sum":
                return g + r
            case "min":
                return min(g, r)
            case "last":
                return r

    def _f(self, g: float, node: Node) -> float:
        if not self.weight:
            return g
        return g + self.weight * (node.score if self.value is None else _said(node, self.value))

    def _check(self, node: Node) -> None:
        for name in (self.reward, self.value):
            if name is not None and name not in node.verdicts:
                there = ", ".join(node.verdicts) or "none"
                raise SpecError(f"no verifier is called {name!r}; there is {there}")


def _said(node: Node, name: str) -> float:
    verdict = node.verdicts.get(name)
    return -math.inf if verdict is None else verdict.score  # a cut search leaves nodes unjudged
