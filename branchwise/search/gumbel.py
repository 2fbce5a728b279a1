"""Gumbel MCTS: few simulations, and still never worse than the policy."""

import math
import random
import sys
from collections.abc import Sequence
from itertools import groupby
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from branchwise.core.node import Node
from branchwise.core.types import Expand
from branchwise.search.card import Card
from branchwise.search.noise import gumbel
from branchwise.search.search import Search

_TINY = sys.float_info.min  # keeps divisors and arguments of logarithms above 0
_SPAN = 1e-8  # the least range of values that is stretched to [0, 1]; mctx has the same


class GumbelMCTS(Search):
    """Sequential halving over Gumbel-top-m children at the root, an improved policy below it.

        v ← root;  until v is done:
            g(a) ~ Gumbel(0) for the k children a of v;  consider the m best by g + logit
            n times:  a ← of the considered whose turn it is, the best by g + logit + σ(q)
                      from a follow argmax π'(b) − N(b) / (1 + Σ N) to an unvisited node,
                      expand it and add its score along the way;
                      ⌈log₂ m⌉ times the worse half has had its last turn
            v ← of its children visited most often, the best by g + logit + σ(q)

        σ(q)  = (c_visit + max N) · c_scale · q,  q stretched to [0, 1] among siblings
        π'    = softmax(logit + σ(q)),  with v_mix for the q of an unvisited child
        v_mix = (V(v) + Σ N · (the mean of the visited q under the priors)) / (1 + Σ N)

    A first visit expands a node: its score is the value, the log-probabilities of its children are
    the priors. Visits to a node that is done or barren count and cost nothing. Nobody judges the
    first root: its value is the mean score of its children under the priors.

    Source: Danihelka et al. 2022 ("Policy improvement by planning with Gumbel"), Algorithm 2, and
    mctx 0.0.71, its authors' code.

    Args:
        simulations: n, visits for each move.
        fanout: k, the children of a node.
        considered: m, the most children that are visited at the root.
        moves: how many moves are planned at most; None plans to the end.
        prior: logit is the `mean` log-probability of a step's tokens, for steps of any length;
            their `sum`, for enumerated actions; `uniform`, for independent samples of the policy,
            whose number is their weight already (Hubert et al. 2021).
        unvisited: the q of an unvisited child: `mixed` is v_mix, `score` its score, which is known.
        parallel: visit the children of one turn side by side, and halve between turns (the paper);
            else one by one, and halve as a turn goes on (mctx).
        visit_weight: c_visit.
        value_scale: c_scale; mctx's default.
        stretch: whether q is stretched among siblings (mctx); else scores should lie in [0, 1].
        noise: what g is multiplied by; 0 does not explore.
        seed: of g.

    Example:
        >>> GumbelMCTS(simulations=8, considered=4).turns(4)
        [0, 0, 0, 0, 1, 1, 2, 2]
    """

    kind: Literal["gumbel-mcts"] = "gumbel-mcts"
    card: ClassVar[Card] = Card(
        structure="step",
        signals="a score for each step; log-probabilities as priors",
        paper="Danihelka et al. 2022, Algorithm 2",
        oracle="mctx, visit by visit; policy improvement for all inputs",
        test="search/test_gumbel.py::test_visits_and_moves_are_those_of_mctx",
    )
    simulations: int = Field(default=16, ge=1)
    fanout: int = Field(default=4, ge=1)
    considered: int = Field(default=16, ge=1)
    moves: int | None = Field(default=None, ge=1)
    prior: Literal["mean", "sum", "uniform"] = "mean"
    unvisited: Literal["mixed", "score"] = "mixed"
    parallel: bool = False
    visit_weight: float = Field(default=50.0, ge=0)
    value_scale: float = Field(default=0.1, ge=0)
    stretch: bool = True
    noise: float = Field(default=1.0, ge=0)
    seed: int = 0

    async def grow(self, root: Node, expand: Expand) -> None:
        """Plan a move, make it, and plan the next."""
        grown: dict[Node, list[Node]] = {}  # a plan meets nodes that the one before has expanded
        node: Node | None = root
        made = 0
        while node is not None and (node is root or not node.done) and made != self.moves:
            node = (await self.plan(node, expand, grown)).move
            made += 1

    async def plan(self, root: Node, expand: Expand, grown: dict[Node, list[Node]]) -> "Plan":
        """Visit n times and choose a move.

        Args:
            root: where to search from.
            expand: the verb.
            grown: the children of all nodes that have been expanded so far; it grows.
        """
        top = Visit(root, 0.0)
        await self._open([top], expand, grown)
        if root.parent is None:
            top.value = sum(p * a.value for p, a in zip(top.priors, top.children, strict=True))
        g = self.gumbels(root, len(top.children))
        for count, turn in groupby(self.turns(len(top.children))):
            visits = len(list(turn))
            for size in [visits] if self.parallel else [1] * visits:
                paths = [self._path(a) for a in self._ranked(top, g, count)[:size]]
                ends = [path[-1] for path in paths]
                new = [v for v in ends if not v.n and not v.node.done]
                await self._open(new, expand, grown)
                for path in paths:
                    for visit in path:
                        visit.n += 1
                        visit.total += path[-1].value
        most = max((a.n for a in top.children), default=0)
        move = next((a.node for a in self._ranked(top, g, most)), None)
        return Plan(move, [a.n for a in top.children])

    def turns(self, children: int) -> list[int]:
        """For each visit, how often a child of the root has been visited whose turn it is.

        Args:
            children: how many there are.
        """
        left = min(children, self.considered)
        if left <= 1:
            return list(range(self.simulations * left))
        phases = (left - 1).bit_length()  # ⌈log₂ m⌉
        turns: list[int] = []
        count = 0
        while len(turns) < self.simulations:
            for _ in range(max(1, self.simulations // (phases * left))):
                turns += [count] * left
                count += 1
            left = max(2, left // 2)
        return turns[: self.simulations]

    def gumbels(self, root: Node, k: int) -> list[float]:
        """The noise g for the k children of a root."""
        draws = random.Random(f"{self.seed}/{root.path}")  # noqa: S311  (no secret)
        return [self.noise * gumbel(draws) for _ in range(k)]

    def _ranked(self, top: "Visit", g: list[float], count: int) -> list["Visit"]:
        """The children of the root that have been visited so often, the best first."""
        ranks = zip(g, top.children, self._values(top), strict=True)
        due = [(noise + a.logit + value, a) for noise, a, value in ranks if a.n == count]
        return [a for _, a in sorted(due, key=lambda ranked: -ranked[0])]

    def _path(self, visit: "Visit") -> list["Visit"]:
        """From a child of the root down to where the next visit goes."""
        path = [visit]
        while (v := path[-1]).n and v.children:
            policy = _softmax(
                [b.logit + q for b, q in zip(v.children, self._values(v), strict=True)]
            )
            total = 1 + sum(b.n for b in v.children)
            gaps = [p - b.n / total for p, b in zip(policy, v.children, strict=True)]
            path.append(v.children[gaps.index(max(gaps))])
        return path

    def _values(self, v: "Visit") -> list[float]:
        """σ(q) of the children."""
        seen = [(p, a) for p, a in zip(v.priors, v.children, strict=True) if a.n]
        total = sum(a.n for _, a in seen)
        mean = sum(p * a.total / a.n for p, a in seen) / (sum(p for p, _ in seen) or 1.0)
        mixed = (v.value + total * mean) / (1 + total)
        rest = [a.value if self.unvisited == "score" else mixed for a in v.children]
        q = [a.total / a.n if a.n else r for a, r in zip(v.children, rest, strict=True)]
        if self.stretch and q:
            low, span = min(q), max(max(q) - min(q), _SPAN)
            q = [(value - low) / span for value in q]
        weight = self.visit_weight + max((a.n for _, a in seen), default=0)
        return [weight * self.value_scale * value for value in q]

    async def _open(
        self, visits: list["Visit"], expand: Expand, grown: dict[Node, list[Node]]
    ) -> None:
        """Give nodes that are visited for the first time their children and priors."""
        new = [v.node for v in visits if v.node not in grown]
        grown.update((node, []) for node in new)
        for child in await expand(new, self.fanout) if new else []:
            if child.parent is not None:
                grown[child.parent].append(child)
        for v in visits:
            children = grown[v.node]
            logits = self._logits(children)
            v.children = [Visit(a, logit) for a, logit in zip(children, logits, strict=True)]
            v.priors = _softmax(logits)

    def _logits(self, children: list[Node]) -> list[float]:
        """Log-probabilities; uniform where one is not known."""
        logits: list[float] = []
        for step in [child.step for child in children]:
            if step is None or step.logprob is None or not math.isfinite(step.logprob):
                return [0.0] * len(children)
            tokens = len(step.logprobs) or len(step.tokens) or 1
            logits.append(step.logprob / tokens if self.prior == "mean" else step.logprob)
        return [0.0] * len(children) if self.prior == "uniform" else logits


class Plan(NamedTuple):
    """What a plan came to.

    Args:
        move: the chosen child; None where the root has none.
        visits: how often each child has been visited.
    """

    move: Node | None
    visits: list[int]


class Visit:
    """The statistics of a node: N, the sum of its values, its logit, and its children's priors."""

    __slots__ = ("children", "logit", "n", "node", "priors", "total", "value")

    def __init__(self, node: Node, logit: float) -> None:
        self.node, self.logit, self.value = node, logit, node.score
        self.n, self.total = 0, 0.0
        self.children: list[Visit] = []
        self.priors: list[float] = []


def _softmax(logits: Sequence[float]) -> list[float]:
    top = max(logits, default=0.0)
    weights = [max(math.exp(logit - top), _TINY) for logit in logits]
    mass = sum(weights)
    return [weight / mass for weight in weights]
