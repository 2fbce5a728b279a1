"""Step-level beam search and its diverse variant."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from branchwise.core.node import Node
from branchwise.core.types import Expand
from branchwise.search.card import Card
from branchwise.search.search import Search


class Beam(Search):
    """Keep the best `width` partial answers and grow `fanout` continuations of each.

        B ← the best of width · fanout first steps
        while B has open nodes:
            B ← the best of B's finished nodes and the children of its open ones

    With `trees` = T the first steps are dealt to T subtrees, each of which keeps its own best
    width / T: T = width is diverse verifier tree search (DVTS; Beeching et al. 2024), T = 1 the
    beam of Snell et al. 2024, §5.2. Their `M` is `fanout`, their `N` is width · fanout.

    Source: Welleck et al. 2024, §4.2 (step-level search).

    Args:
        width: how many nodes are kept at each level.
        fanout: how many children each gets.
        trees: how many independent subtrees share the width.

    Raises:
        pydantic.ValidationError: `trees` does not divide `width`.

    Example:
        >>> Beam(width=4, trees=4).fanout
        4
    """

    kind: Literal["beam"] = "beam"
    card: ClassVar[Card] = Card(
        structure="step",
        signals="a score for each step",
        paper="Snell et al. 2024, §5.2; Beeching et al. 2024 (DVTS)",
        oracle="enumeration; a loop over lists",
        test="search/test_beam.py::test_a_beam_keeps_the_best_of_each_level",
    )
    width: int = Field(default=4, ge=1)
    fanout: int = Field(default=4, ge=1)
    trees: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.width % self.trees:
            raise ValueError(f"trees = {self.trees} has to divide width = {self.width}")
        return self

    async def grow(self, root: Node, expand: Expand) -> None:
        """Grow level by level."""
        first = await expand([root], self.width * self.fanout)
        beams = [self.keep(first[tree :: self.trees]) for tree in range(self.trees)]
        while open_ := [v for beam in beams for v in beam if not v.done]:
            grown: dict[Node | None, list[Node]] = {}
            for child in await expand(open_, self.fanout):
                grown.setdefault(child.parent, []).append(child)
            beams = [
                self.keep([w for v in beam for w in ([v] if v.done else grown.get(v, []))])
                for beam in beams
            ]

    def keep(self, nodes: list[Node]) -> list[Node]:
        """The best nodes of one subtree, in order of their scores; the first of equals."""
        return sorted(nodes, key=lambda v: -v.score)[: self.width // self.trees]
