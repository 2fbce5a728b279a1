"""The statistics of Monte Carlo tree search: visits and values, apart from the tree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from branchwise.core.node import Node

if TYPE_CHECKING:
    from branchwise.search.mcts import MCTS


_SMALL = 256
_SHARES = [1.0, *(1 / math.sqrt(n) for n in range(1, _SMALL))]  # of most nodes, kept once


class Visit:
    """The statistics of a node: N, O (in flight), W (a sum, or the greatest return), P.

    What the choice among siblings reads is kept: `q` is Q, `share` what U has of the node alone.
    Children get their statistics when the search first looks among them, for most are never
    looked at.
    """

    __slots__ = ("grown", "n", "node", "o", "open", "prior", "q", "share", "w")

    def __init__(self, node: Node, n: int = 0, w: float = 0.0) -> None:
        self.node, self.n, self.w, self.q = node, n, w, w
        self.o = 0
        self.prior = self.share = 1.0
        self.grown: tuple[Node, ...] | None = None
        self.open: list[Visit] | None = None


class Path(NamedTuple):
    """What a simulation has selected: from the root to the node to grow, and by how many."""

    visits: list[Visit]
    width: int


class Grown(NamedTuple):
    """What a simulation brought: children, and where each of its evaluations ended."""

    children: list[Node]
    ends: list[Node]


class Visits:
    """The statistics of one search: where to grow next, and what came of it.

    Args:
        rules: the algorithm's fields.
        root: the root of the tree.
    """

    def __init__(self, rules: MCTS, root: Node) -> None:
        self.rules = rules
        self.top = Visit(root)
        self.low, self.high = math.inf, -math.inf
        self.span, self.zero = 1.0, 0.0
        self.growing: set[Visit] = set()
        self.weight = rules.weight()
        self.one, self.widens = rules.visit == "one", rules.widen_k is not None
        self.mean, self.uct = rules.backup == "mean", rules.select == "uct"
        self.loses = self.mean and rules.in_flight == "virtual-loss"
        self.by_leaf = rules.returns == "leaf"

    def select(self) -> Path | None:
        """Go down by Q + U to a node that can grow; None where all are growing or grown out."""
        v, visits = self.top, [self.top]
        dead: set[Visit] = set()
        while True:
            if (v.grown is None or (self.widens and self._ripe(v))) and v not in self.growing:
                return self._send(visits)
            among = v.open if v.open is not None else self._open(v)
            if dead:
                among = [c for c in among if c not in dead]
            if among:
                v = self.choose(v, among)
                visits.append(v)
            elif len(visits) > 1:
                dead.add(visits.pop())
                v = visits[-1]
            else:
                return None

    def choose(self, v: Visit, among: list[Visit]) -> Visit:
        """argmax_c Q(c) + U(c) among children of v; the first of equals."""
        if self.one and (new := [c for c in among if not c.n]):
            if self.rules.unvisited == "first":
                return max(new, key=_score)
            for c in new:
                c.q = c.node.score if self.rules.unvisited == "score" else self.zero
        weight = self.weight(v.n + v.o) * self.span  # to scale U instead of Q orders the same
        best, chosen = -math.inf, among[0]
        for c in among:
            urgency = c.q + weight * c.share
            if urgency > best:
                best, chosen = urgency, c
        return chosen

    def backup(self, path: Path, grown: Grown) -> None:
        """Take in what a simulation brought: new children, and returns for all on its path."""
        visits, ends = path.visits, grown.ends
        self._land(path)
        self._adopt(visits[-1], grown)
        if ends:
            mean, by_leaf, weigh, k = self.mean, self.by_leaf, self.weigh, len(ends)
            pool = sum if mean else max
            gained = pool([end.score for end in ends])
            for v in visits:
                if not by_leaf:
                    gained = pool([self._return(v.node, end) for end in ends])
                v.w = v.w + gained if mean else max(v.w, gained) if v.n else gained
                v.n += k
                weigh(v)
        while len(visits) > 1 and self._grown_out(visits[-1]):  # never select it again
            gone = visits.pop()
            self._open(visits[-1]).remove(gone)

    def weigh(self, v: Visit) -> None:
        """Q, and the share of U, from N, O, W and P."""
        n = v.n
        v.q = v.w / (n or 1) if self.mean else v.w
        if v.o:
            if self.loses:
                v.q = (v.w + v.o * self.low) / (n + v.o)
            n += v.o
        if not self.uct:
            v.share = v.prior / (1 + n)
        else:
            v.share = _SHARES[n] if n < _SMALL else 1 / math.sqrt(n)

    def _send(self, visits: list[Visit]) -> Path:
        leaf = visits[-1]
        path = Path(visits, self.rules.fanout if leaf.grown is None else 1)
        self.growing.add(leaf)
        if self.rules.lanes > 1:  # one lane never meets another
            self._fly(path, 1)
        return path

    def _land(self, path: Path) -> None:
        self.growing.discard(path.visits[-1])
        if self.rules.lanes > 1:
            self._fly(path, -1)

    def _fly(self, path: Path, sign: int) -> None:
        more = sign * (1 if self.one else path.width)
        for v in path.visits:
            v.o += more
            self.weigh(v)

    def _adopt(self, leaf: Visit, grown: Grown) -> None:
        children, ends = grown
        scores = [child.score for child in children]
        if self.rules.rollout:
            scores += [end.score for end in ends if end.parent is not None]
        if scores:
            self.low, self.high = min(self.low, *scores), max(self.high, *scores)
            if self.rules.scale == "seen":
                self.span, self.zero = (self.high - self.low) or 1.0, self.low
        everyone = (*leaf.grown, *children) if leaf.grown else tuple(children)
        same = everyone == leaf.node.children
        leaf.grown = leaf.node.children if same else everyone  # one tuple for both
        if leaf.open is not None or self.rules.rollout:
            leaf.open = (leaf.open or []) + self._new(children, ends)
            self._consult(leaf)

    def _open(self, v: Visit) -> list[Visit]:
        if v.open is None:
            if v.grown is None:
                return []
            v.open = self._new(v.grown, v.grown)
            self._consult(v)
        return v.open

    def _new(self, children: Sequence[Node], ends: Sequence[Node]) -> list[Visit]:
        if self.rules.visit == "one":
            return [Visit(child) for child in children]
        return [
            Visit(child, 1, end.score if self.by_leaf else self._return(child, end))
            for child, end in zip(children, ends, strict=True)
            if not child.done
        ]

    def _consult(self, v: Visit) -> None:
        """The priors of all children, which change where one more has grown."""
        if not self.uct and v.grown:
            prior = dict(zip(v.grown, priors(v.grown), strict=True))
            for c in v.open or ():
                c.prior = prior[c.node]
                self.weigh(c)

    def _ripe(self, v: Visit) -> bool:
        """Whether k · N^α exceeds the children, and all that were ordered came, failed or not.

        A policy that has run dry is thus not asked again.
        """
        k, node = self.rules.widen_k, v.node
        if k is None or len(node.children) < node.promised or (node.done and v is not self.top):
            return False
        return k * v.n**self.rules.widen_alpha > node.promised

    def _grown_out(self, v: Visit) -> bool:
        if v.grown is None or v in self.growing or self._ripe(v):
            return False
        if v.open is not None:
            return not v.open
        return (self.rules.visit == "all" and all(c.done for c in v.grown)) or not v.grown

    def _return(self, start: Node, end: Node) -> float:
        """What the way from one node to another, both included, is worth."""
        if self.rules.returns == "leaf":
            return end.score
        scores = [end.score]
        while end is not start and end.parent is not None:
            end = end.parent
            scores.append(end.score)
        total = math.fsum(scores)
        return total / len(scores) if self.rules.returns == "mean" else total


def priors(children: Sequence[Node]) -> list[float]:
    """P(c): the softmax of the mean log-probability per token, uniform where one is not known."""
    means = [
        c.step.logprob / max(len(c.step.logprobs), 1)
        for c in children
        if c.step is not None and c.step.logprob is not None
    ]
    top = max(means, default=-math.inf)
    if len(means) < len(children) or top == -math.inf:
        return [1 / len(children)] * len(children)
    weights = [math.exp(mean - top) for mean in means]  # else those of long steps all vanish
    total = sum(weights)
    return [weight / total for weight in weights]


def _score(visit: Visit) -> float:
    return visit.node.score
