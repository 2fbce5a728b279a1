"""Many tasks, one budget: what the easy ones leave, the hard ones get."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import anyio

from branchwise.core.aio import gather
from branchwise.core.around import Budget, Watch, metered
from branchwise.core.controller import Controller
from branchwise.core.errors import Exhausted
from branchwise.core.grow import Grow, spread
from branchwise.core.node import Node
from branchwise.core.types import FREE, Environment, Expand, Policy, Task, Verifier
from branchwise.solve import Answer, Unique, policies_of, search, verifiers_of

_N = TypeVar("_N", int, float)


async def solve_all(
    tasks: Sequence[Task | str],
    *,
    budget: Budget,
    policy: Policy | Mapping[str, Policy],
    controller: Controller,
    environment: Environment,
    verifier: Verifier | Mapping[str, Verifier] | None = None,
    rank: Callable[[Node], float] | None = None,
    seed: int = 0,
    horizon: int = 100,
    oracle: bool = False,
    unique: Unique | None = None,
    watch: Watch | None = None,
) -> list[Answer]:
    """Search for the answers to many tasks that share one budget.

        repeat
            share ← what is left / the searches that are not over
            each search spends up to its share, then waits until all others wait or are over
        until all are over or nothing more can be paid

    With a controller that stops by itself (`Until`), easy tasks stop early and what they leave
    goes to the others. An order that a share pays in part is carried out in part; the rest of it
    waits for the next share. Where the shares of all would pay for nothing, fewer searches share:
    those that have grown the fewest nodes, of equals the first tasks'. What may be spent is decided
    at these barriers alone, so the trees do not depend on timing, and the budget is kept as exactly
    as by `solve`.

    Args:
        tasks: what is asked.
        budget: the most to spend on all of them together; its `seconds` count from the start.
        policy: as in `solve`, like all that follows.
        controller: the algorithm.
        environment: the world.
        verifier: judges nodes.
        rank: how verdicts become scores.
        seed: of each search.
        horizon: the most steps below a root.
        oracle: show targets to policies and verifiers.
        unique: hide copies from the controller.
        watch: called with new nodes of all searches.

    Returns:
        One answer for each task, in order; its root where nothing has grown, be it that there was
        nothing left to spend or that no call succeeded (then `error` says why).

    Raises:
        SpecError: the parts do not fit together.

    Example:
        >>> from branchwise import BestOfN, Budget, Chat, Scripted, Vote, Writing, run_sync
        >>> async def main() -> list[str | None]:
        ...     policy = Chat(backend=Scripted(lambda request, seed: request.asked[0]))
        ...     search = BestOfN(n=8, batch=2, pick=Vote())
        ...     parts = {"policy": policy, "controller": search, "environment": Writing()}
        ...     answers = await solve_all(["1?", "2?"], budget=Budget(nodes=5), **parts)
        ...     return [answer.value for answer in answers]
        >>> run_sync(main)
        ['1', '2']
    """
    policies = policies_of(policy)
    grow = Grow(policies, environment, verifiers_of(verifier), rank, seed, horizon)
    pool = _Pool(budget, [_Purse(grow, policies) for _ in tasks])

    async def one(place: int) -> Answer:
        task, purse = tasks[place], pool.purses[place]
        try:
            return await search(
                Task(task) if isinstance(task, str) else task,
                controller,
                grow,
                meter=lambda expand: purse.around(expand, pool),
                seconds=budget.seconds,
                watch=watch,
                oracle=oracle,
                unique=unique,
            )
        finally:
            pool.leave(purse)

    return await gather(one, range(len(tasks)))


class _Purse(metered):
    """What one search may spend: what it has spent, and its share of what is left."""

    def __init__(self, expand: Expand, policies: Mapping[str, Policy]) -> None:
        super().__init__(expand, Budget(), policies)
        self.in_flight = 0
        self.waiting: list[str] = []  # for each order that waits, the policy it asks
        self.orders = itertools.count()
        self.unpaid: list[int] = []  # orders are paid one after the other, whoever comes back first
        self.moved = anyio.Event()

    def around(self, expand: Expand, pool: _Pool) -> Expand:
        """The verb, paid from this purse, which the pool fills."""

        async def paid(
            nodes: Sequence[Node], n: int | Sequence[int] = 1, *, by: str = "policy"
        ) -> list[Node]:
            children: list[Node] = []
            wanted = spread(nodes, n)
            number = next(self.orders)
            self.unpaid.append(number)
            try:
                while True:
                    while self.unpaid[0] < number:
                        await self.moved.wait()
                    widths, _ = self._admit(wanted, by)
                    if any(wanted) and not any(widths):
                        await pool.share(self, by)
                        continue
                    if widths == wanted:
                        self._pays(number)
                    self.in_flight += 1
                    try:
                        # It admits in order: what is left comes after what was grown.
                        children += await self(nodes, widths, by=by)
                    finally:
                        self.in_flight -= 1
                        pool.turn()
                    wanted = [more - width for more, width in zip(wanted, widths, strict=True)]
                    if not any(wanted):
                        return children
            finally:
                self._pays(number)

        self.expand = expand
        return paid

    def _pays(self, number: int) -> None:
        """An order is paid in full, or is given up: it is the turn of the next one."""
        if number in self.unpaid:
            self.unpaid.remove(number)
            self.moved.set()
            self.moved = anyio.Event()

    def fill(self, share: Budget) -> None:
        """Put the next share in; what was left of the last one is part of it."""
        self.budget = Budget(
            tokens=_sum(self.spent.completion, share.tokens),
            calls=_sum(self.spent.calls, share.calls),
            nodes=_sum(self.nodes, share.nodes),
            dollars=_sum(self.spent.dollars, share.dollars),
        )

    @property
    def sufficient(self) -> bool:
        """Whether some order that waits can have a child."""
        return any(any(self._admit([1], by)[0]) for by in self.waiting)


class _Pool:
    """What is left for all searches, and where they wait for their share of it."""

    def __init__(self, budget: Budget, purses: Sequence[_Purse]) -> None:
        self.budget, self.purses = budget, purses
        self.open = list(purses)
        self.shared = anyio.Event()
        self.spent = False
        for place, purse in enumerate(purses):
            purse.fill(_share(budget, len(purses), place))

    async def share(self, purse: _Purse, by: str) -> None:
        """Wait for the next share.

        Raises:
            Exhausted: there is none.
        """
        if not self.spent:
            purse.waiting.append(by)
            shared = self.shared
            self.turn()
            await shared.wait()
        if self.spent:
            raise Exhausted("the budget of all tasks is spent")

    def leave(self, purse: _Purse) -> None:
        """A search is over; what it leaves is for the others."""
        self.open.remove(purse)
        self.turn()

    def turn(self) -> None:
        """Share what is left, where all wait for it."""
        if all(purse.waiting and not purse.in_flight for purse in self.open):
            self.spent = not self._enough()
            for purse in self.open:
                purse.waiting = []
            self.shared.set()
            self.shared = anyio.Event()

    def _enough(self) -> bool:
        """Share what is left among as many searches as possible, so that it pays for something."""
        left = self._left()
        self.open.sort(key=lambda purse: purse.nodes)  # stable: of equals the first task's is first
        for sharers in range(len(self.open), 0, -1):
            for place, purse in enumerate(self.open):
                purse.fill(_share(left, sharers, place))
            if any(purse.sufficient for purse in self.open):
                return True
        return False

    def _left(self) -> Budget:
        spent = sum((purse.spent for purse in self.purses), FREE)
        return Budget(
            tokens=_rest(self.budget.tokens, spent.completion),
            calls=_rest(self.budget.calls, spent.calls),
            nodes=_rest(self.budget.nodes, sum(purse.nodes for purse in self.purses)),
            dollars=_rest(self.budget.dollars, spent.dollars),
        )


def _share(left: Budget, sharers: int, place: int) -> Budget:
    """The equal share of one; what cannot be divided goes to the first ones."""

    def of(whole: int | None) -> int | None:
        if whole is None or place >= sharers:
            return None if whole is None else 0
        return whole // sharers + (place < whole % sharers)

    dollars = None if left.dollars is None else left.dollars / sharers * (place < sharers)
    return Budget(
        tokens=of(left.tokens), calls=of(left.calls), nodes=of(left.nodes), dollars=dollars
    )


def _sum(spent: _N, share: _N | None) -> _N | None:
    return None if share is None else spent + share


def _rest(limit: _N | None, spent: _N) -> _N | None:
    return None if limit is None else max(limit - spent, 0)  # an overshoot leaves nothing
