"""Refinement: draft, read what was said of it, and write it anew."""

from typing import ClassVar, Literal

from pydantic import Field

from branchwise.core.node import Node
from branchwise.core.types import Expand
from branchwise.search.best import best
from branchwise.search.card import Card
from branchwise.search.rollout import follow
from branchwise.search.search import Search


class Refine(Search):
    """Revise drafts one after the other, each with what was said of those before it.

        y⁰ ~ g(· | x)
        for t = 1 … rounds, until V(yᵗ⁻¹) ≥ enough or yᵗ⁻¹ = yᵗ⁻²:
            yᵗ ~ g(· | x, y^{<t}, z^{<t})    z: what the verifiers say, or the reviser itself

    The policy `by` revises: it reads the draft, its ancestors and their verdicts. Where it hands
    a draft back as it is, it is satisfied and the line ends. With a model's own critique this is
    self-refine (Madaan et al. 2023, Algorithm 1), with the results of tests self-debugging (Chen
    et al. 2024). Both return the last draft; without a verifier from outside, revising often makes
    things worse (Huang et al. 2024), so the best draft is the default here.

    Source: Welleck et al. 2024, §4.3 (refinement).

    Args:
        drafts: how many first drafts are refined side by side, each on its own.
        rounds: how often each is revised at most.
        by: the name of the policy that revises.
        enough: a score at which a draft is not revised any more; None goes on.
        base: what is revised next: the `last` draft, or the `best` so far of its line.
        take: what answers: the `best` draft, by the pick, or the `last` of the best line.

    Example:
        >>> Refine(rounds=3, enough=1.0).by
        'revise'
    """

    kind: Literal["refine"] = "refine"
    card: ClassVar[Card] = Card(
        structure="refinement",
        signals="a policy that revises; a score or feedback for each draft",
        paper="Madaan et al. 2023, Algorithm 1; Chen et al. 2024",
        oracle="the loop by hand; a two-state chain's exact accuracy",
        test="search/test_refine.py::test_refinement_is_a_walk_of_the_chain",
    )
    drafts: int = Field(default=1, ge=1)
    rounds: int = Field(default=4, ge=1)
    by: str = "revise"
    enough: float | None = None
    base: Literal["last", "best"] = "last"
    take: Literal["best", "last"] = "best"

    async def grow(self, root: Node, expand: Expand) -> None:
        """Draft, then revise for so many rounds."""
        lines = await follow(await expand([root], self.drafts), expand)
        for _ in range(self.rounds):
            lines = [y for y in lines if self.enough is None or y.score < self.enough]
            revised = await follow(await expand(lines, by=self.by), expand, by=self.by)
            new = {y.start: y for y in revised}
            lines = [self._next(y, new[y]) for y in lines if y in new and new[y].text != y.text]
            if not lines:
                return

    def _next(self, old: Node, new: Node) -> Node:
        return old if self.base == "best" and new.score <= old.score else new

    def answer(self, root: Node) -> Node:
        """The best draft, or the last one of its line."""
        drafts = [node for node in root.walk() if node.finished]
        revised = {draft.start for draft in drafts}
        ends = [draft for draft in drafts if draft not in revised]
        return best(ends) if ends and self.take == "last" else self.pick(root)
