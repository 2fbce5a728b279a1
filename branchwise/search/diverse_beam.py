"""Beam search in groups that are kept from saying the same."""

from collections import Counter
from collections.abc import Hashable
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from branchwise.core.node import Node
from branchwise.core.types import Expand
from branchwise.search.card import Card
from branchwise.search.search import Search


class DiverseBeam(Search):
    """G beams side by side; at each level a later one is kept from the steps of the earlier ones.

        B_1, ..., B_G ← {root};  Θ(root) ← 0
        while any B_g has open nodes:
            for g = 1, ..., G:
                for each child c of an open node v of B_g:
                    Θ(c) ← s(c) - s(v) + Θ(v) - λ · (how often B_1, ..., B_{g-1} chose c's step now)
                B_g ← the width / G best by Θ of B_g's finished nodes and these children

    The penalty is Hamming diversity. A node that has finished keeps its place in its group and says
    nothing more. With λ = 0 all groups are the same beam, with G = 1 it is the ordinary one.

    As in the authors' code and in transformers, penalties add up along the way; with `memory` off
    Θ(c) = s(c) - λ · (...), as the paper's equations have it: only the newest step counts.

    Source: Vijayakumar et al. 2018, §3, algorithm 1 and §5.1 (Hamming diversity).

    Args:
        width: how many nodes are kept at each level, in all groups together.
        groups: G.
        strength: λ.
        fanout: children of each node; None takes `width`, which with `NextToken` misses nothing:
            the earlier groups cannot choose more different steps than that.
        memory: whether a penalty stays with what grows from the penalised node.

    Raises:
        pydantic.ValidationError: `groups` does not divide `width`.

    Example:
        >>> DiverseBeam(width=6, groups=3).strength
        0.5
    """

    kind: Literal["diverse-beam"] = "diverse-beam"
    card: ClassVar[Card] = Card(
        structure="token",
        signals="a score for each step",
        paper="Vijayakumar et al. 2018, §3",
        oracle="the algorithm over strings and dictionaries; an example by hand",
        test="search/test_diverse_beam.py::test_it_is_the_algorithm_over_strings",
    )
    width: int = Field(default=4, ge=1)
    groups: int = Field(default=2, ge=1)
    strength: float = Field(default=0.5, ge=0)
    fanout: int | None = Field(default=None, ge=1)
    memory: bool = True

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.width % self.groups:
            raise ValueError(f"groups = {self.groups} has to divide width = {self.width}")
        return self

    async def grow(self, root: Node, expand: Expand) -> None:
        """Grow level by level; a node that several groups keep is grown once."""
        beams = [{root: 0.0} for _ in range(self.groups)]  # Θ minus the score, of each node kept
        open_ = [root]
        while open_:
            grown: dict[Node | None, list[Node]] = {}
            for child in await expand(open_, self.fanout or self.width):
                grown.setdefault(child.parent, []).append(child)
            chosen = Counter[Hashable]()
            for g, beam in enumerate(beams):
                beams[g] = self._next(beam, grown, chosen)
                chosen.update(_said(v) for v in beams[g] if v not in beam)
            kept = dict.fromkeys(v for beam in beams for v in beam)
            open_ = [v for v in kept if not v.done]

    def _next(
        self,
        beam: dict[Node, float],
        grown: dict[Node | None, list[Node]],
        chosen: Counter[Hashable],
    ) -> dict[Node, float]:
        """One group's next beam, from the best down."""
        offers: dict[Node, float] = {}
        for v, penalty in beam.items():
            if v.done and v not in grown:
                offers[v] = penalty
            before = penalty if self.memory else 0.0
            for c in grown.get(v, []):
                offers[c] = before - self.strength * chosen[_said(c)]
        best = sorted(offers, key=lambda v: -(v.score + offers[v]))
        return {v: offers[v] for v in best[: self.width // self.groups]}


def _said(node: Node) -> Hashable:
    """The step, by its tokens where they are known: several tokens may have the same text."""
    step = node.step
    return None if step is None else step.tokens or step.text
