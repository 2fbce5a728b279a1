"""Adaptive stopping: any controller, until a rule has seen enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import anyio
from pydantic import Field, SerializeAsAny

from branchwise.core.controller import Controller
from branchwise.core.errors import Exhausted, SearchFailed
from branchwise.core.node import Node
from branchwise.core.types import Expand
from branchwise.search.card import Card
from branchwise.search.regret import Regret
from branchwise.search.search import own
from branchwise.search.stopping import (
    AdaptiveConsistency,
    Curtailment,
    EarlyStopping,
    Enough,
    Look,
    Patience,
    Rule,
)

if TYPE_CHECKING:
    from branchwise.search import AnyController


AnyRule = Annotated[
    AdaptiveConsistency | Curtailment | EarlyStopping | Regret | Patience | Enough,
    Field(discriminator="kind"),
]


class Until(Controller):
    """Run a controller until a stopping rule is satisfied.

        for each expansion that the controller asks for:
            carry it out
            if stop(tree): the search is finished

    The rule looks after every expansion, so the controller has to come in pieces: give `BestOfN` a
    `batch`. Where several expansions are in flight, those that are not back yet are awaited and no
    further ones begin: they are paid for, and their answers count. With several lanes, where the
    search ends thus depends on what came back first.

    Source: Aggarwal et al. 2023 and Li et al. 2024 for votes; here for any controller.

    Args:
        search: the controller; its answer is the answer.
        stop: the rule.

    Example:
        >>> from branchwise.search import BestOfN, Vote
        >>> from branchwise.search.stopping import AdaptiveConsistency
        >>> search = BestOfN(n=32, batch=1, pick=Vote())
        >>> Until(search=search, stop=AdaptiveConsistency()).stop.kind
        'adaptive-consistency'
    """

    kind: Literal["until"] = "until"
    card: ClassVar[Card] = Card(
        structure="budget",
        signals="answers, or scores, as the rule wants",
        paper="Aggarwal et al. 2023, §3; Li et al. 2024, §2.2",
        oracle="stopping times replayed by brute force; the exact law of the adaptive vote",
        test="search/test_until.py::test_it_stops_where_the_rule_first_holds",
    )
    search: Annotated[SerializeAsAny[AnyController], own(Controller)]
    stop: Annotated[SerializeAsAny[AnyRule], own(Rule)]

    async def grow(self, root: Node, expand: Expand) -> None:
        """Let the controller grow the tree, and end it."""
        watched = _Watched(root, expand, self.stop.begin())
        try:
            await self.search.grow(root, watched)
        except _Enough as signal:
            if signal.by is not watched:  # a search around this one ends
                raise

    def answer(self, root: Node) -> Node:
        """The controller's answer."""
        return self.search.answer(root)


class _Enough(Exception):
    """Ends the controller's `grow`, and is seen by nobody else."""

    def __init__(self, by: _Watched) -> None:
        super().__init__()
        self.by = by


class _Watched:
    """The verb, with a look at the tree after each order."""

    def __init__(self, root: Node, expand: Expand, look: Look) -> None:
        self.root, self.expand, self.look = root, expand, look
        self.in_flight = 0
        self.enough = False
        self.landed = anyio.Event()

    async def __call__(
        self, nodes: Sequence[Node], n: int | Sequence[int] = 1, *, by: str = "policy"
    ) -> list[Node]:
        if not self.enough:
            self.in_flight += 1
            try:
                children = await self.expand(nodes, n, by=by)
            except (Exhausted, SearchFailed):  # what else is in flight waits for this one to land
                if not self.enough:
                    raise
            else:
                self.enough = self.enough or self.look(self.root)
                if not self.enough:
                    return children
            finally:
                self.in_flight -= 1
        # The first to raise ends the others where they stand, so all wait for the last one.
        if self.in_flight:
            await self.landed.wait()
        self.landed.set()
        raise _Enough(self)
