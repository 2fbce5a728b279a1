"""A stopping rule for votes that may never become sure."""

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

from pydantic import Field

from branchwise.core.node import Node
from branchwise.search.stopping import Pure, answers

_POINTS = 800  # of the quadrature: exact to about 1e-7


class Regret(Pure):
    """Stop when the leading answer can hardly be beaten by much, however the vote would end.

        v1, ..., vm: how many finished nodes give each answer
        p ~ Dirichlet(v1 + 1, ..., vm + 1, 1)    the last for all answers not seen yet
        regret = E[max_a p_a] - max_a E[p_a]

    The regret is the expected value of perfect information: what choosing the most probable answer
    would win over choosing the leader, in votes. It is small where one answer leads clearly, and
    it also falls where all answers are rare: of a vote without much hope fewer samples are drawn
    than by rules that wait to be sure of the leader (`AdaptiveConsistency`, `Curtailment`).

    Source: Raiffa and Schlaifer 1961 for the value of information; here of a vote.

    Args:
        tolerance: the regret at which the search stops.
        least: how many samples there have to be at least, with an answer or without.

    Example:
        >>> rule = Regret()
        >>> [round(rule.regret(votes), 3) for votes in ([3], [8, 4], [6, 6], [1] * 12)]
        [0.012, 0.017, 0.098, 0.114]
    """

    kind: Literal["regret"] = "regret"
    tolerance: float = Field(default=0.05, gt=0, lt=1)
    least: int = Field(default=3, ge=1)

    def __call__(self, root: Node) -> bool:
        """Whether the regret is small enough."""
        said = answers(root)
        counts = Counter(answer for answer in said if answer is not None)
        if len(said) < self.least or not counts:
            return False
        return self.regret(list(counts.values())) <= self.tolerance

    def regret(self, counts: Sequence[int]) -> float:
        """E[max p] - max E[p] after so many votes for each answer."""
        return _regret(tuple(sorted(counts, reverse=True)))


@lru_cache(maxsize=4096)
def _regret(counts: tuple[int, ...]) -> float:
    """A Dirichlet is independent gammas over their sum, and independent of that sum.

    So E[max p] = E[max G] / Σα, with E[max G] = ∫ 1 - ∏ P(G_a ≤ x) dx, by Simpson's rule.
    """
    shapes = Counter([count + 1 for count in counts] + [1])
    most = max(shapes)
    end = most + 12 * math.sqrt(most) + 30
    step = end / _POINTS
    total = 0.0
    for i in range(_POINTS + 1):
        weight = 1 if i in (0, _POINTS) else 4 if i % 2 else 2
        total += weight * (1 - _all_below(shapes, i * step))
    return (total * step / 3 - most) / (sum(counts) + len(counts) + 1)


def _all_below(shapes: Counter[int], x: float) -> float:
    """P(all G ≤ x): a gamma of integer shape a exceeds x as often as a Poisson x stays below a."""
    term, tail, below = math.exp(-x), 0.0, 1.0
    for k in range(max(shapes)):
        tail += term
        term *= x / (k + 1)
        below *= max(1.0 - tail, 0.0) ** shapes.get(k + 1, 0)
    return below
