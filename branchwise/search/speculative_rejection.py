"""Speculative rejection: best-of-N that gives up the worst branches on the way."""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from branchwise.core.node import Node
from branchwise.core.types import Expand
from branchwise.search.card import Card
from branchwise.search.search import Search


class SpeculativeRejection(Search):
    """Draw N answers side by side and drop the worst as they grow.

        Y ← N first steps
        while Y has open nodes:
            after every so many steps:  Y ← Y without the worst ⌊α · |Y|⌋ by score
            Y ← one child of each node of Y

    With α = 0 it is best-of-N. A score of a part stands for the score of the whole, so the search
    loses what the two disagree on.

    Source: Sun et al. 2024 ("Fast Best-of-N Decoding via Speculative Rejection"), where the
    branches are cut down whenever the accelerator's memory is full; here after every `every`
    steps, so that the same answers come out on every machine.

    Args:
        n: N, how many branches begin.
        alpha: α, the share of the unfinished branches that is dropped each time.
        every: after how many steps.

    Example:
        >>> SpeculativeRejection(n=16, alpha=0.5).every
        1
    """

    kind: Literal["speculative-rejection"] = "speculative-rejection"
    card: ClassVar[Card] = Card(
        structure="parallel",
        signals="a score for each step",
        paper="Sun et al. 2024",
        oracle="a simulation over words drawn by the same seeds; with α = 0 best-of-N",
        test="search/test_speculative_rejection.py::test_the_worst_are_dropped_on_the_way",
    )
    n: int = Field(default=16, ge=1)
    alpha: float = Field(default=0.5, ge=0, lt=1)
    every: int = Field(default=1, ge=1)

    async def grow(self, root: Node, expand: Expand) -> None:
        """Grow all branches by a step at a time, fewer and fewer of them."""
        taken, open_ = 1, await expand([root], self.n)
        while open_ := [y for y in open_ if not y.done]:
            if taken % self.every == 0:
                open_ = self.keep(open_)
            open_ = await expand(open_)
            taken += 1

    def keep(self, branches: Sequence[Node]) -> list[Node]:
        """All but the worst, in their order; of equals the younger ones go."""
        dropped = math.floor(self.alpha * len(branches) + 1e-9)  # 0.29 · 100 is 28.999...
        best = set(sorted(branches, key=lambda y: -y.score)[: len(branches) - dropped])
        return [y for y in branches if y in best]
