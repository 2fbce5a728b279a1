"""Tree refinement: the width of each round goes to the drafts that promise most."""

from typing import ClassVar, Literal

from pydantic import Field

from branchwise.core.node import Node
from branchwise.core.types import Expand
from branchwise.search.best import suffice
from branchwise.search.card import Card
from branchwise.search.rebase import Rebase
from branchwise.search.rollout import follow
from branchwise.search.search import Search


class TreeRefine(Search):
    """Refine many drafts as a tree: REBASE over drafts, with revisions as its edges.

        Y ← `width` first drafts, those that could be judged at all
        for t = 1 … rounds, until one draft has V(y) ≥ enough:
            W_i = share(width · softmax(V / τ)_i)    for the drafts of Y
            Y ← W_i revisions of each y_i

    A draft's children are revisions of it; the policy `by` reads their whole ancestry. A draft
    that cannot be judged (it does not even parse) fails and is not revised.

    Source: Aggarwal et al. 2024, §3.2 (AlphaVerus, "Treefinement"); the shares are those of
    `Rebase`.

    Args:
        width: how many drafts a round writes.
        rounds: how many rounds of revisions at most.
        temperature: τ; the authors use 0.1 with V in [-1, 1].
        share: how a round's width is shared out, as in `Rebase`.
        seed: of the draws of `multinomial`.
        by: the name of the policy that revises.
        enough: a score at which a draft ends the search; None goes on.

    Example:
        >>> TreeRefine(width=8, enough=1.0).rounds
        10
    """

    kind: Literal["tree-refine"] = "tree-refine"
    card: ClassVar[Card] = Card(
        structure="refinement",
        signals="a policy that revises; a score for each draft",
        paper="Aggarwal et al. 2024, §3.2",
        oracle="the shares and the tree by hand",
        test="search/test_refine.py::test_tree_refinement_follows_the_shares",
    )
    width: int = Field(default=32, ge=1)
    rounds: int = Field(default=10, ge=1)
    temperature: float = Field(default=0.1, gt=0)
    share: Literal["ceil", "round", "multinomial"] = "ceil"
    seed: int = 0
    by: str = "revise"
    enough: float | None = None

    async def grow(self, root: Node, expand: Expand) -> None:
        """Draft, then share out the width of each round."""
        rebase = Rebase(
            n=self.width, temperature=self.temperature, share=self.share, seed=self.seed
        )
        level = await follow(await expand([root], self.width), expand)
        for _ in range(self.rounds):
            if not level or suffice(level, self.enough):
                return
            widths = rebase.widths([y.score for y in level], self.width)
            level = await follow(await expand(level, widths, by=self.by), expand, by=self.by)
