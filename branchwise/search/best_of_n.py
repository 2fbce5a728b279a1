"""Best-of-N, and every other parallel method: the pick makes the difference."""

from typing import ClassVar, Literal

from pydantic import Field

from branchwise.core.node import Node
from branchwise.core.types import Expand
from branchwise.search.card import Card
from branchwise.search.rollout import follow
from branchwise.search.search import Search


class BestOfN(Search):
    """Draw N answers and choose one.

        y_1, ..., y_N ~ g(· | x);   ŷ = pick(y_1, ..., y_N)

    With `Best` it is best-of-N (Stiennon et al. 2020; Nakano et al. 2021; Cobbe et al. 2021), with
    `Vote` self-consistency (Wang et al. 2023). Answers of several steps are followed to their end,
    each on its own.

    Source: Welleck et al. 2024, §4.1 (parallel meta-generators).

    Args:
        n: N, how many answers.
        batch: how many are drawn at a time and followed to their end before the next ones, so that
            a stopping rule may look in between (`Until`); None draws all at once. The samples are
            the same for every batch size.

    Example:
        >>> BestOfN(n=8).pick.kind
        'best'
    """

    kind: Literal["best-of-n"] = "best-of-n"
    card: ClassVar[Card] = Card(
        structure="parallel",
        signals="samples; scores or answers, as the pick wants",
        paper="Welleck et al. 2024, §4.1",
        oracle="independent samples drawn by their seeds; the exact law of the best of N",
        test="search/test_best_of_n.py::test_best_of_n_is_the_argmax_of_independent_samples",
    )
    n: int = Field(default=8, ge=1)
    batch: int | None = Field(default=None, ge=1)

    async def grow(self, root: Node, expand: Expand) -> None:
        """Grow N branches, a batch of them side by side."""
        size = self.batch or self.n
        for drawn in range(0, self.n, size):
            await follow(await expand([root], min(size, self.n - drawn)), expand)
