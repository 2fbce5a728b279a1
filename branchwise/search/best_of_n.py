"""Best-of-N, and every other parallel method: the pick makes the difference."""

from typing import Literal

from pydantic import Field

from branchwise.core.node import Node
from branchwise.core.types import Expand
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

    Example:
        >>> BestOfN(n=8).pick.kind
        'best'
    """

    kind: Literal["best-of-n"] = "best-of-n"
    n: int = Field(default=8, ge=1)

    async def grow(self, root: Node, expand: Expand) -> None:
        """Grow N branches side by side."""
        await follow(await expand([root], self.n), expand)
