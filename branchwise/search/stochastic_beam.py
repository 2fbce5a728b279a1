"""Samples without replacement from all the texts that a model can say."""

import math
import random
from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from branchwise.core.node import Node
from branchwise.core.types import Expand
from branchwise.search.card import Card
from branchwise.search.noise import gumbel
from branchwise.search.search import Search

_CERTAIN = 700.0  # beyond, exp overflows, and long before the probability is 1


class Draw(NamedTuple):
    """A partial text in the beam.

    Args:
        node: where it ends.
        logprob: φ, the logarithm of the probability that a text begins like this.
        perturbed: G, the largest perturbed log-probability among all texts that begin like this.
    """

    node: Node
    logprob: float
    perturbed: float


class StochasticBeam(Search):
    """The k texts with the largest log p(y) + Gumbel noise, found without listing all texts.

        φ(root) ← 0;  G(root) ~ Gumbel(0)
        B ← {root}
        while B has open nodes:
            for each child c of an open v in B:
                φ(c) ← φ(v) + log p(c | v);  G̃(c) ~ Gumbel(φ(c))
            Z ← max_c G̃(c) of the children of each v
            u ← G(v) - G̃(c) + log(1 - exp(G̃(c) - Z))
            G(c) ← G(v) - max(0, u) - log(1 + exp(-|u|))     (so that max_c G(c) = G(v))
            B ← the k with the largest G of B's finished nodes and these children

    They are a sample without replacement, in the order of G: the first is y with probability p(y),
    the next with p(y) / (1 - p(first)), and so on. So no copies are drawn however peaked the model
    is, and `estimate` gives expectations without bias.

    p is the law of the children that were grown, made to sum to 1: with `NextToken` and a `fanout`
    of f, the model's law truncated to its f most probable tokens; take the size of the vocabulary
    for the whole law. Steps without log-probabilities count as equally probable. The score of the
    nodes plays no part in the search, only in what `pick` makes of it.

    Source: Kool et al. 2019, algorithm 1, appendix B.3 (the stable form of G), §4.2 (estimates).

    Args:
        width: k.
        fanout: f, the children of each node.
        temperature: p is made proportional to p^(1/τ) at each node.
        seed: of the noise.

    Example:
        >>> StochasticBeam(width=8, fanout=100).temperature
        1.0
    """

    kind: Literal["stochastic-beam"] = "stochastic-beam"
    card: ClassVar[Card] = Card(
        structure="token",
        signals="log-probabilities of the next tokens",
        paper="Kool et al. 2019, algorithm 1",
        oracle="the exact law of samples without replacement; exact expectations",
        test="search/test_stochastic_beam.py::test_pairs_follow_the_law_of_sampling_without_replacement",
    )
    width: int = Field(default=4, ge=1)
    fanout: int = Field(default=32, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    seed: int = 0

    async def grow(self, root: Node, expand: Expand) -> None:
        """Grow level by level."""
        beam, open_ = self._first(root), [root]
        while open_:
            beam = self._next(beam, await expand(open_, self.fanout))
            open_ = [draw.node for draw in beam if not draw.node.done]

    def sample(self, root: Node) -> list[Draw]:
        """What is in the beam in the end, the largest perturbed log-probability first.

        Args:
            root: a tree that `grow` has grown; where it was cut, the beam so far.
        """
        beam, open_ = self._first(root), [root]
        while children := [c for v in open_ for c in v.children if c.failure is None]:
            beam = self._next(beam, children)
            open_ = [draw.node for draw in beam if not draw.node.done]
        return beam

    def estimate(self, root: Node, value: Callable[[Node], float]) -> float:
        """An unbiased estimate of E[value(y)], from the k - 1 first texts of the sample.

        Each weighs p(y) / (1 - exp(-exp(φ(y) - κ))), with κ the G of the last one: the probability
        that it is in the sample. Where there are fewer than k texts, the exact expectation.

        Args:
            root: a tree that `grow` has grown to its end.
            value: of a text.

        Raises:
            ValueError: `width` is 1, so that no text is left.
        """
        if self.width == 1:
            raise ValueError("an estimate from k - 1 texts needs a width of at least 2")
        *drawn, last = self.sample(root)
        if len(drawn) + 1 < self.width:
            return math.fsum(math.exp(d.logprob) * value(d.node) for d in (*drawn, last))
        return math.fsum(
            value(d.node) * math.exp(d.logprob) / included(d.logprob - last.perturbed)
            for d in drawn
        )

    def _first(self, root: Node) -> list[Draw]:
        return [Draw(root, 0.0, self._gumbel(root))]

    def _next(self, beam: list[Draw], children: list[Node]) -> list[Draw]:
        families: dict[Node | None, list[Node]] = {}
        for child in children:
            families.setdefault(child.parent, []).append(child)
        offers: list[Draw] = []
        for draw in beam:
            if draw.node in families:
                offers += self._children(draw, families[draw.node])
            elif draw.node.done:
                offers.append(draw)
        return sorted(offers, key=lambda draw: -draw.perturbed)[: self.width]

    def _children(self, above: Draw, family: list[Node]) -> list[Draw]:
        logprobs = [above.logprob + logprob for logprob in self._law(family)]
        free = [phi + self._gumbel(c) for phi, c in zip(logprobs, family, strict=True)]
        most = max(free)
        return [
            Draw(c, phi, conditioned(g, most, above.perturbed))
            for c, phi, g in zip(family, logprobs, free, strict=True)
        ]

    def _law(self, family: list[Node]) -> list[float]:
        """The log p(c | v) of all children of one node."""
        known = [c.step.logprob for c in family if c.step and c.step.logprob is not None]
        scaled = [x / self.temperature for x in known]
        if len(known) < len(family):
            scaled = [0.0] * len(family)
        largest = max(scaled)
        total = largest + math.log(math.fsum(math.exp(x - largest) for x in scaled))
        return [x - total for x in scaled]

    def _gumbel(self, node: Node) -> float:
        rng = random.Random(f"{self.seed}/{node.path}")  # noqa: S311  (a sample, not a secret)
        return gumbel(rng)


def included(lead: float) -> float:
    """The probability 1 - exp(-exp(φ - κ)) that a text is in the sample.

    Args:
        lead: φ - κ.

    Example:
        >>> included(0.0) == 1 - math.exp(-1), included(1e4)
        (True, 1.0)
    """
    return -math.expm1(-math.exp(min(lead, _CERTAIN)))


def conditioned(gumbel: float, largest: float, wanted: float) -> float:
    """What a Gumbel variable becomes where the largest of its family has to be `wanted`.

    Args:
        gumbel: its value as it was drawn.
        largest: the largest of the family, as drawn.
        wanted: what the largest shall be.

    Example:
        >>> conditioned(2.0, 2.0, -1.0)
        -1.0
    """
    if gumbel >= largest:
        return wanted
    u = wanted - gumbel + math.log(-math.expm1(gumbel - largest))
    return wanted - max(0.0, u) - math.log1p(math.exp(-abs(u)))
