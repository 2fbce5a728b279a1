"""Several pieces of work in flight, chosen and taken in one at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import anyio

from branchwise.core.aio import lanes
from branchwise.core.errors import Exhausted, SearchFailed

T = TypeVar("T")
R = TypeVar("R")


class Pipeline(Generic[T, R]):
    """Choose, work, take in: a loop whose work overlaps with that of the next rounds.

    Choosing never waits: whenever there is room, `choose` is asked, so what it knows is what has
    been taken in so far. In order, the results are taken in as their work was chosen, and then what
    it knows depends on nothing that a clock says: the same search grows the same tree. Out of order
    no result waits for a slower one.

    A spent budget or an outage ends the choosing; what is in flight is still taken in.

    Args:
        choose: the next piece of work; None where there is none before a result is taken in.
        work: does it.
        take: takes the result in; says whether the search goes on.
        total: how many pieces at most.
        width: how many at a time.
        in_order: whether results are taken in in the order of choosing.
    """

    def __init__(
        self,
        choose: Callable[[], T | None],
        work: Callable[[T], Awaitable[R]],
        take: Callable[[T, R], bool],
        *,
        total: int,
        width: int = 1,
        in_order: bool = True,
    ) -> None:
        self.choose, self.work, self.take = choose, work, take
        self.left, self.width, self.in_order = total, width, in_order
        self.chosen = self.taken = 0
        self.queue: deque[tuple[int, T]] = deque()
        self.error: Exhausted | SearchFailed | None = None
        self.changed: anyio.Event | None = None

    async def run(self) -> None:
        """Go on until nothing is left, nothing can be chosen, or `take` says so.

        Raises:
            Exhausted: the budget is spent.
            SearchFailed: no call succeeds any more.
        """
        self._fill()
        await lanes(self._lane, self.width)
        if self.error is not None:
            raise self.error

    def _fill(self) -> None:
        while self.left and self.chosen - self.taken < self.width:
            piece = self.choose()
            if piece is None:
                return
            self.queue.append((self.chosen, piece))
            self.chosen += 1
            self.left -= 1

    async def _lane(self) -> bool:
        while not self.queue:
            if self.chosen == self.taken:
                return False
            await self._change()
        number, piece = self.queue.popleft()
        try:
            result = await self.work(piece)
        except (Exhausted, SearchFailed) as error:
            result = error
        while self.in_order and self.taken < number:
            await self._change()
        if isinstance(result, (Exhausted, SearchFailed)):
            self.error = self.error or result
            self.left = 0
        elif not self.take(piece, result):
            self.left = 0
        self.taken += 1
        self._fill()
        if self.changed is not None:
            self.changed.set()
            self.changed = None
        return True

    async def _change(self) -> None:
        if self.changed is None:
            self.changed = anyio.Event()
        await self.changed.wait()
