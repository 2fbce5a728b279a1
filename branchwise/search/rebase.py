"""REBASE: reward-balanced search."""

import math
import random
from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from branchwise.core.node import Node
from branchwise.core.types import Expand
from branchwise.search.card import Card
from branchwise.search.search import Search


class Rebase(Search):
    """Share the width of each level out among its nodes by their rewards.

        at each level, with B = N − (answers finished so far):
            W_i = share(B · softmax(R / τ)_i)   for the open nodes i
            expand node i by W_i

    Source: Wu et al. 2024, §3.2 and Algorithm 1 ("Inference Scaling Laws"). The paper rounds;
    rounded widths need not add up to B. The authors' code takes ceilings from the best node down
    until B is spent, which always adds up; the tutorial of Welleck et al. 2024 draws the widths.

    Args:
        n: N, the answers wanted.
        temperature: τ.
        share: `ceil` (the authors' code), `round` (the paper), `multinomial` (the tutorial).
        seed: of the draws of `multinomial`.

    Example:
        >>> Rebase(n=4).widths([1.0, 1.0], 4)
        [2, 2]
    """

    kind: Literal["rebase"] = "rebase"
    card: ClassVar[Card] = Card(
        structure="step",
        signals="a score for each step",
        paper="Wu et al. 2024, §3.2, Algorithm 1",
        oracle="a loop over enumerated words; known shares; sums for all inputs",
        test="search/test_rebase.py::test_levels_are_shared_out_by_the_rewards",
    )
    n: int = Field(default=16, ge=1)
    temperature: float = Field(default=0.2, gt=0)
    share: Literal["ceil", "round", "multinomial"] = "ceil"
    seed: int = 0

    async def grow(self, root: Node, expand: Expand) -> None:
        """Grow level by level, until N answers are finished or nothing is open."""
        level = await expand([root], self.n)
        finished = sum(v.done for v in level)
        while (open_ := [v for v in level if not v.done]) and finished < self.n:
            widths = self.widths([v.score for v in open_], self.n - finished)
            level = await expand(open_, widths)
            finished += sum(v.done for v in level)

    def widths(self, rewards: Sequence[float], budget: int) -> list[int]:
        """How many children each of the nodes gets.

        Args:
            rewards: R, one for each open node.
            budget: B.
        """
        top = max(rewards)
        weights = [math.exp((reward - top) / self.temperature) for reward in rewards]
        shares = [budget * weight / sum(weights) for weight in weights]
        match self.share:
            case "round":
                return [math.floor(share + 0.5) for share in shares]
            case "multinomial":
                return self._drawn(weights, budget)
            case "ceil":
                return self._ceilings(shares, budget)

    def _ceilings(self, shares: list[float], budget: int) -> list[int]:
        widths = [0] * len(shares)
        for i in sorted(range(len(shares)), key=lambda i: -shares[i]):
            # Shares carry rounding errors: 2.0000000000000004 is 2, not 3.
            widths[i] = min(math.ceil(shares[i] - 1e-9), budget)
            budget -= widths[i]
        return widths

    def _drawn(self, weights: list[float], budget: int) -> list[int]:
        draws = random.Random(f"{self.seed}/{weights}/{budget}")  # noqa: S311  (no secret)
        drawn = draws.choices(range(len(weights)), weights, k=budget)
        return [drawn.count(i) for i in range(len(weights))]
