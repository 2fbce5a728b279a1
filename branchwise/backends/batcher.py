"""Calls that meet become one batch: no timer, no lone first item."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Generic, Self, TypeVar

import anyio
from anyio import to_thread
from anyio.lowlevel import checkpoint

from branchwise.core.errors import BackendError

T = TypeVar("T")
R = TypeVar("R")


class _Ticket(Generic[T, R]):
    """One caller's place in the queue, and later its result or its error."""

    __slots__ = ("error", "item", "results", "settled")

    def __init__(self, item: T) -> None:
        self.item = item
        self.settled = anyio.Event()
        self.results: list[R] = []
        self.error: BaseException | None = None

    def settle(self, error: BaseException | None, *results: R) -> None:
        self.error = error
        self.results.extend(results)
        self.settled.set()


class Batcher(Generic[T, R]):
    """Runs a function of many items for callers that each have one.

    While a batch runs in a worker thread, arrivals form the next one; so batches grow with the
    load, and a lone caller never waits for company. One batch runs at a time. A caller that is
    cancelled while it queues leaves the queue; an error of a batch reaches each of its callers.
    Leaving the `async with` block waits for the batch that runs.

    Args:
        run: turns the items of a batch into as many results, in order; runs in a worker thread.
        limit: the most items of one batch; None for no limit.

    Example:
        >>> from branchwise.core.aio import gather, run_sync
        >>> async def squares() -> list[int]:
        ...     async with Batcher(lambda xs: [x * x for x in xs]) as batcher:
        ...         return await gather(batcher.submit, [1, 2, 3])
        >>> run_sync(squares)
        [1, 4, 9]
    """

    def __init__(
        self, run: Callable[[Sequence[T]], Sequence[R]], *, limit: int | None = None
    ) -> None:
        self._run = run
        self._limit = limit
        self._open = False
        # A dictionary for a queue, so that a cancelled caller leaves from its middle at once.
        self._queue: dict[_Ticket[T, R], None] = {}

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
        self._open = False
        self._group.cancel_scope.cancel()
        # The body's error stays with the body: told of it, the group would wrap it in a group.
        await self._group.__aexit__(None, None, None)
        for ticket in self._queue:
            ticket.settle(_closed())

    async def submit(self, item: T) -> R:
        """The result for one item, once the batch that it joined has run.

        Args:
            item: handed to `run` together with what else has arrived.

        Raises:
            BackendError: the batcher is not open.
        """
        if not self._open:
            raise _closed()
        ticket = _Ticket[T, R](item)
        self._queue[ticket] = None
        self._arrived.set()
        try:
            await ticket.settled.wait()
        finally:
            self._queue.pop(ticket, None)
        if ticket.error is not None:
            raise ticket.error
        return ticket.results[0]

    async def _serve(self) -> None:
        while True:
            await self._arrived.wait()
            # Callers of the same tick, and those that they wake, shall not miss the batch.
            await checkpoint()
            await checkpoint()
            self._arrived = anyio.Event()
            batch = list(self._queue)[: self._limit]
            for ticket in batch:
                del self._queue[ticket]
            if self._queue:
                self._arrived.set()
            if batch:
                await self._settle(batch)

    async def _settle(self, batch: Sequence[_Ticket[T, R]]) -> None:
        items = [ticket.item for ticket in batch]
        try:
            results = await to_thread.run_sync(self._run, items, limiter=self._thread)
            if len(results) != len(batch):
                msg = f"a batch of {len(batch)} items gave {len(results)} results"
                raise ValueError(msg)  # noqa: TRY301  (it reaches the callers, as any error of `run`)
        except anyio.get_cancelled_exc_class():
            for ticket in batch:
                ticket.settle(_closed())
            raise
        except BaseException as error:  # noqa: BLE001  (raised again in each of the callers)
            for ticket in batch:
                ticket.settle(error)
        else:
            for ticket, result in zip(batch, results, strict=True):
                ticket.settle(None, result)


def _closed() -> BackendError:
    return BackendError(
        "the backend is closed", hint="call it inside its `async with` block", fatal=True
    )
