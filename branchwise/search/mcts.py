"""Monte Carlo tree search with UCT or PUCT."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

from pydantic import Field

from branchwise.core.node import Node
from branchwise.core.types import Expand
from branchwise.search.rollout import follow
from branchwise.search.search import Search

_Urgency: TypeAlias = "Callable[[Visit], float]"


class MCTS(Search):
    """Select by value and visits, expand, evaluate, add along the lineage.

        repeat simulations times:
            v ← root;  while v has children:  v ← argmax_c Q(c) + U(c)
            grow k children of v and evaluate each
            for each ancestor a of v, v included:  N(a) += k,  W(a) += Σ values

        Q(c) = W(c) / N(c), scaled to [0, 1] by the least and the greatest value seen
        UCT:   U(c) = exploration · sqrt(ln N(v) / N(c))            (Kocsis and Szepesvári 2006)
        PUCT:  U(c) = P(c) · (c1 + ln((N(v) + c2 + 1) / c2)) · sqrt(N(v)) / (1 + N(c))
                                                        (Silver et al. 2016; c1 and c2: MuZero)

    A new child counts as one visit, with the verifier's score as its value; with `rollout` it is
    first followed for that many steps and the score there is its value. Subtrees that are grown
    out are not selected again, so that every simulation grows something.

    Args:
        simulations: how many nodes are grown at most.
        fanout: k, the children of each.
        select: `uct` or `puct`.
        exploration: the weight of U in UCT, c1 in PUCT; None is √2 or 1.25.
        decay: c2 of PUCT.
        rollout: how many steps a new child is followed at most.

    Example:
        >>> MCTS(simulations=64, select="puct").fanout
        4
    """

    kind: Literal["mcts"] = "mcts"
    simulations: int = Field(default=32, ge=1)
    fanout: int = Field(default=4, ge=1)
    select: Literal["uct", "puct"] = "uct"
    exploration: float | None = Field(default=None, ge=0)
    decay: float = Field(default=19652.0, gt=0)
    rollout: int = Field(default=0, ge=0)

    async def grow(self, root: Node, expand: Expand) -> None:
        """Run the simulations, one after the other."""
        top = Visit(root, 1.0)
        scale = Scale()
        for _ in range(self.simulations):
            path, span = [top], scale.span
            while (open_ := path[-1].open) is not None:
                path.append(max(open_, key=self._urgency(path[-1], span)))
            leaf = path[-1]
            children = await expand([leaf.node], self.fanout)
            values = await self._evaluate(children, expand)
            prior = priors(children) if self.select == "puct" else [1.0] * len(children)
            leaf.open = [
                Visit(child, prior[i], values[i])
                for i, child in enumerate(children)
                if not child.done
            ]
            scale.see(values)
            total = sum(values)
            for visit in path:
                visit.n += len(values)
                visit.w += total
            while path and not path[-1].open:  # grown out: never select it again
                gone = path.pop()
                if not path:
                    return
                (path[-1].open or []).remove(gone)

    async def _evaluate(self, children: list[Node], expand: Expand) -> list[float]:
        if not self.rollout:
            return [child.score for child in children]
        # A branch that failed on the way is worth what its start is worth.
        ends = {end.path: end for end in await follow(children, expand, self.rollout)}
        depth = len(children[0].path) if children else 0
        reached = {path[:depth]: end.score for path, end in ends.items()}
        return [reached.get(child.path, child.score) for child in children]

    def _urgency(self, parent: Visit, span: float) -> _Urgency:
        """Q(c) + U(c), times the span of the values: scaling U instead of Q orders the same."""
        n = parent.n
        if self.select == "uct":
            weight = math.sqrt(2) if self.exploration is None else self.exploration
            explore = span * weight * math.sqrt(math.log(n))
            return lambda c: c.w / c.n + explore / math.sqrt(c.n)
        first = 1.25 if self.exploration is None else self.exploration
        explore = span * (first + math.log((n + self.decay + 1) / self.decay)) * math.sqrt(n)
        return lambda c: c.w / c.n + c.prior * explore / (1 + c.n)


class Visit:
    """The statistics of a node: N, W, its prior, and its children that are not grown out."""

    __slots__ = ("n", "node", "open", "prior", "w")

    def __init__(self, node: Node, prior: float, value: float | None = None) -> None:
        self.node = node
        self.prior = prior
        self.n = 0 if value is None else 1
        self.w = 0.0 if value is None else value
        self.open: list[Visit] | None = None


class Scale:
    """The least and the greatest value seen (MuZero, Schrittwieser et al. 2020, appendix B)."""

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf

    def see(self, values: list[float]) -> None:
        """Widen the range."""
        if values:
            self.low, self.high = min(self.low, *values), max(self.high, *values)

    @property
    def span(self) -> float:
        """What a difference of values is divided by; 1 where all are equal."""
        return self.high - self.low if self.high > self.low else 1.0


def priors(children: list[Node]) -> list[float]:
    """P(c): the softmax of the mean log-probability per token, uniform where one is not known."""
    means = [
        c.step.logprob / max(len(c.step.logprobs), 1)
        for c in children
        if c.step is not None and c.step.logprob is not None
    ]
    if len(means) < len(children):
        return [1 / len(children)] * len(children)
    weights = [math.exp(mean) for mean in means]
    return [weight / sum(weights) for weight in weights]
