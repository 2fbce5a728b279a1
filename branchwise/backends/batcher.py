"""Calls from the event loop meet one worker thread, which takes and answers them as it goes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Generic, Self, TypeVar

import anyio
from anyio import from_thread, to_thread
from anyio.lowlevel import checkpoint

from branchwise.core.errors import BackendError

T = TypeVar("T")
R = TypeVar("R")


class Ticket(Generic[T, R]):
    """A caller's place in the line.

    Args:
        item: what it brings.

    Attributes:
        taken: whether the worker has it.
        gone: whether nobody waits for its result any more; true of every ticket in the end.
    """

    __slots__ = ("_outcomes", "_settled", "gone", "item", "taken")

    def __init__(self, item: T) -> None:
        self.item = item
        self.taken = False
        self.gone = False
        self._outcomes: list[R | Exception] = []
        self._settled = anyio.Event()

    def settle(self, outcome: R | Exception) -> None:
        """Wake the caller; of several outcomes the first one counts."""
        self._outcomes.append(outcome)
        self._settled.set()

    async def result(self) -> R:
        """The outcome, once there is one; raised where it is an error."""
        await self._settled.wait()
        outcome = self._outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class Feed(Generic[T, R]):
    """What the worker takes tickets from and settles them with."""

    def __init__(self) -> None:
        # Both ends of a deque are safe in threads; the loop appends, and only the worker pops.
        self._line: deque[Ticket[T, R]] = deque()

    def __bool__(self) -> bool:
        return bool(self._line)

    def put(self, ticket: Ticket[T, R]) -> None:
        """Stand at the end of the line."""
        self._line.append(ticket)

    def take(self) -> list[Ticket[T, R]]:
        """What has arrived since the last time, first come first; never waits."""
        taken: list[Ticket[T, R]] = []
        while self._line:
            ticket = self._line.popleft()
            if not ticket.gone:
                ticket.taken = True
                taken.append(ticket)
        return taken

    def settle(self, outcomes: Sequence[tuple[Ticket[T, R], R | Exception]]) -> None:
        """Hand results to their callers, with one wake-up of the event loop for all of them.

        Args:
            outcomes: tickets with their results; an error is raised in the caller.
        """
        from_thread.run_sync(_settle, outcomes)


class Batcher(Generic[T, R]):
    """Lets many callers share a function that works on many items at once.

    The function runs in a worker thread as long as there is work: it takes what has arrived
    whenever it can use more, and settles each item as soon as it is done. It starts when something
    arrives, without a timer, and one run is under way at a time. A caller that is cancelled leaves
    the line, or its ticket says that it is gone; an error of the function reaches the callers of
    whatever it had taken and not settled. Leaving the `async with` block answers all callers with
    an error, marks their tickets as gone, and waits for the function to notice.

    Args:
        run: takes tickets from a feed and settles them, until there is nothing left to do.

    Example:
        >>> from branchwise.core.aio import gather, run_sync
        >>> def square(feed: Feed[int, int]) -> None:
        ...     while tickets := feed.take():
        ...         feed.settle([(ticket, ticket.item**2) for ticket in tickets])
        >>> async def squares() -> list[int]:
        ...     async with Batcher(square) as batcher:
        ...         return await gather(batcher.submit, [1, 2, 3])
        >>> run_sync(squares)
        [1, 4, 9]
    """

    def __init__(self, run: Callable[[Feed[T, R]], None]) -> None:
        self._run = run
        self._open = False
        self._feed = Feed[T, R]()
        self._calls: set[Ticket[T, R]] = set()

    async def __aenter__(self) -> Self:
        self._group = anyio.create_task_group()
        self._arrived = anyio.Event()
        # A limiter of its own, so that other people's threads never make the model wait.
        self._thread = anyio.CapacityLimiter(1)
        await self._group.__aenter__()
        self._group.start_soon(self._serve)
        self._open = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()
        # The body's error stays with the body: told of it, the group would wrap it in a group.
        await self._group.__aexit__(None, None, None)

    async def submit(self, item: T) -> R:
        """The result for one item.

        Args:
            item: what the ticket in the feed carries.

        Raises:
            BackendError: the batcher is not open, or was closed meanwhile.
        """
        if not self._open:
            raise _closed()
        ticket = Ticket[T, R](item)
        self._calls.add(ticket)
        self._feed.put(ticket)
        self._arrived.set()
        try:
            return await ticket.result()
        finally:
            ticket.gone = True
            self._calls.remove(ticket)

    async def _serve(self) -> None:
        try:
            # Shielded, for callers may be shielded too; closing ends it, not cancelling.
            with anyio.CancelScope(shield=True):
                while True:
                    await self._arrived.wait()
                    if not self._open:
                        return
                    # Callers of the same tick, and those that they wake, shall not miss the start.
                    await checkpoint()
                    await checkpoint()
                    await self._run_once()
                    # No worker runs and nothing is awaited here: no arrival falls in between.
                    if self._open and not self._feed:
                        self._arrived = anyio.Event()
        finally:
            self._close()

    async def _run_once(self) -> None:
        left: Exception = RuntimeError("the run ended without a result for this item")
        try:
            await to_thread.run_sync(self._run, self._feed, limiter=self._thread)
        except Exception as error:  # noqa: BLE001  (raised again in each of the callers)
            left = error
        for ticket in self._calls:
            if ticket.taken:
                ticket.settle(left)

    def _close(self) -> None:
        self._open = False
        for ticket in self._calls:
            ticket.gone = True
            ticket.settle(_closed())
        self._arrived.set()


def _settle(outcomes: Sequence[tuple[Ticket[T, R], R | Exception]]) -> None:
    for ticket, outcome in outcomes:
        ticket.settle(outcome)


def _closed() -> BackendError:
    return BackendError(
        "the backend is closed", hint="call it inside its `async with` block", fatal=True
    )
