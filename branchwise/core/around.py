"""Wrappers of the verb: each takes an `Expand` and is one.

`solve` stacks them as `alive(metered(watched(fused(grow))))`: failed children pass through all of
them, so that they are counted and shown, and only the controller does not see them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence

from pydantic import Field

from branchwise.core.config import Config
from branchwise.core.errors import Exhausted, SearchFailed
from branchwise.core.grow import spread
from branchwise.core.node import Node
from branchwise.core.types import FREE, Bounded, Expand, Policy, Usage

Watch = Callable[[Sequence[Node]], None]


class Budget(Config):
    """The most that one search may spend; None sets no limit.

    Nodes and calls are kept exactly. Tokens and dollars are kept exactly where the policy can say
    what a sample costs at most (`Bounded`); else the last barrier may overshoot.

    Args:
        tokens: tokens written (completion tokens).
        calls: calls of a policy: one for each node of an `expand`.
        nodes: children grown, failed ones included; those that a policy did not give are free.
        dollars: US dollars.
        seconds: wall-clock seconds; calls in flight are cancelled.

    Example:
        >>> Budget(tokens=4096, seconds=30).calls is None
        True
    """

    tokens: int | None = Field(default=None, ge=0)
    calls: int | None = Field(default=None, ge=0)
    nodes: int | None = Field(default=None, ge=0)
    dollars: float | None = Field(default=None, ge=0)
    seconds: float | None = Field(default=None, ge=0)


class metered:  # noqa: N801  (read as a verb: metered(expand, ...))
    """Reserve before a call, charge after it, and end the search when the budget is spent.

    An order that fits only in part is carried out in part, and then the search ends, unless nobody
    missed the rest: a policy may give fewer steps than it is asked for, and children that never
    came cost nothing. Where orders are in flight side by side (lanes), to which of them the rest of
    a budget goes may depend on which came back first, as what they cost is known only then: it is
    kept all the same.

    Args:
        expand: the verb.
        budget: the limits; its `seconds` are the business of `solve`.
        policies: by name; those that are `Bounded` say what to reserve.
    """

    def __init__(self, expand: Expand, budget: Budget, policies: Mapping[str, Policy]) -> None:
        self.expand, self.budget = expand, budget
        self.bounds = {name: p.bound for name, p in policies.items() if isinstance(p, Bounded)}
        self.spent = FREE
        self.reserved = FREE
        self.nodes = 0

    async def __call__(
        self, nodes: Sequence[Node], n: int | Sequence[int] = 1, *, by: str = "policy"
    ) -> list[Node]:
        """Expand as far as the budget goes.

        Raises:
            Exhausted: the budget did not admit all of it.
        """
        wanted = spread(nodes, n)
        widths, reserved = self._admit(wanted, by)
        if sum(wanted) and not sum(widths):
            raise Exhausted("the budget is spent")
        self.reserved += reserved
        self.nodes += sum(widths)
        try:
            children = await self.expand(nodes, widths, by=by)
        finally:
            self.reserved += _negative(reserved)
        self.spent += Usage(calls=sum(width > 0 for width in widths))
        for child in children:
            self.spent += Usage(completion=child.cost.completion, dollars=child.cost.dollars)
        self.nodes -= sum(widths) - len(children)
        if widths != wanted and _missed(nodes, widths, wanted, children):
            raise Exhausted("the budget is spent")
        return children

    def _admit(self, wanted: Sequence[int], by: str) -> tuple[list[int], Usage]:
        """The largest widths, in order, that the budget admits, and what to reserve for them."""
        widths: list[int] = []
        reserved, nodes = FREE, 0
        for width in wanted:
            fits = width
            while fits and not self._fits(reserved + self._bound(by, fits), nodes + fits):
                fits -= 1
            if fits:
                reserved += self._bound(by, fits)
                nodes += fits
            widths.append(fits)
        return widths, reserved

    def _bound(self, by: str, n: int) -> Usage:
        most = self.bounds[by](n) if by in self.bounds else FREE
        return Usage(calls=1, completion=most.completion, dollars=most.dollars)

    def _fits(self, more: Usage, nodes: int) -> bool:
        after, now = self.spent + self.reserved + more, self.spent
        limits = self.budget
        return (
            _within(limits.nodes, self.nodes + nodes)
            and _within(limits.calls, after.calls)
            and _within(limits.tokens, after.completion, now.completion)
            and _within(limits.dollars, after.dollars, now.dollars)
        )


def _missed(
    nodes: Sequence[Node], widths: Sequence[int], wanted: Sequence[int], children: Sequence[Node]
) -> bool:
    """Whether a node that was given less than it wanted has used all of it."""
    came = Counter(id(child.parent) for child in children)
    each = zip(nodes, widths, wanted, strict=True)
    return any(width < asked and came[id(node)] >= width for node, width, asked in each)


def _within(limit: float | None, after: float, now: float = -1) -> bool:
    return limit is None or (after <= limit and now < limit)


def _negative(usage: Usage) -> Usage:
    return Usage(calls=-usage.calls, completion=-usage.completion, dollars=-usage.dollars)


def watched(expand: Expand, watch: Watch) -> Expand:
    """Tell `watch` of all new children, as they come."""

    async def seen(
        nodes: Sequence[Node], n: int | Sequence[int] = 1, *, by: str = "policy"
    ) -> list[Node]:
        children = await expand(nodes, n, by=by)
        watch(children)
        return children

    return seen


class fused:  # noqa: N801  (read as a verb: fused(expand))
    """End the search in an outage: after several orders in a row that brought only failures.

    Args:
        expand: the verb.
        patience: how many such orders in a row are an outage.
    """

    def __init__(self, expand: Expand, patience: int = 3) -> None:
        self.expand, self.patience = expand, patience
        self.failures = 0

    async def __call__(
        self, nodes: Sequence[Node], n: int | Sequence[int] = 1, *, by: str = "policy"
    ) -> list[Node]:
        """Expand, and count orders that brought only failures.

        Raises:
            SearchFailed: `patience` of them came in a row.
        """
        children = await self.expand(nodes, n, by=by)
        for child in children:
            if child.failure is None:
                self.failures = 0
                return children
        self.failures += bool(children)
        if self.failures >= self.patience:
            raise SearchFailed(
                f"{self.failures} times in a row every branch failed: {children[-1].failure}"
            )
        return children


def alive(expand: Expand) -> Expand:
    """Leave out the children that failed; they stay in the tree."""

    async def living(
        nodes: Sequence[Node], n: int | Sequence[int] = 1, *, by: str = "policy"
    ) -> list[Node]:
        return [child for child in await expand(nodes, n, by=by) if child.failure is None]

    return living


def distinct(expand: Expand) -> Expand:
    """Leave out children that repeat an earlier child of their parent; they stay in the tree.

    A vote still counts them, for it reads the tree; a beam is not filled with copies.
    """

    async def different(
        nodes: Sequence[Node], n: int | Sequence[int] = 1, *, by: str = "policy"
    ) -> list[Node]:
        children = await expand(nodes, n, by=by)
        return [child for child in children if not _said_before(child)]

    return different


class merged:  # noqa: N801  (read as a verb: merged(expand))
    """Leave out children that arrive where the tree has been before; they stay in the tree.

    Two states are the same where `key` says so: by default, where the world (its snapshot) and
    what it says of itself are equal, however they were reached (a transposition). The older node
    goes on; a shorter way to the same state that is found later is not taken. Where expansions are
    in flight side by side (lanes), the older one is the one that came back first.

    Args:
        expand: the verb.
        key: what a state is known by.
    """

    def __init__(self, expand: Expand, key: Callable[[Node], Hashable] | None = None) -> None:
        self.expand, self.key = expand, key or _world
        self.first: dict[Hashable, Node] = {}

    async def __call__(
        self, nodes: Sequence[Node], n: int | Sequence[int] = 1, *, by: str = "policy"
    ) -> list[Node]:
        """The children whose states are new."""
        for node in nodes:
            self.first.setdefault(self.key(node), node)
        children = await self.expand(nodes, n, by=by)
        return [v for v in children if self.first.setdefault(self.key(v), v) is v]


def _world(node: Node) -> Hashable:
    state = node.state
    return repr(state.snapshot), state.observation, state.done, state.cut, state.answer


def _said_before(child: Node) -> bool:
    said = _words(child)
    older = child.parent.children if child.parent is not None else ()
    return any(
        other.index < child.index
        and other.failure is None
        and other.step is not None
        and _words(other) == said
        for other in older
    )


def _words(node: Node) -> str | tuple[int, ...] | None:
    """What a step says; its tokens where they have no text: an end, or a part of a character."""
    return None if node.step is None else node.step.text or node.step.tokens
