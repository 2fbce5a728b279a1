"""Several endpoints as one: a queue in front of them, and a circuit for each."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

from branchwise.backends.remote.faults import Fault
from branchwise.backends.remote.limiter import Limiter
from branchwise.backends.remote.retry import Clock, Deadline, pause
from branchwise.core.errors import BackendError

if TYPE_CHECKING:
    from branchwise.backends.remote.client import Client

STRIKES = 3
"""So many failures in a row open an endpoint's circuit."""


class Endpoint:
    """One server.

    Args:
        client: what speaks to it.
        limiter: how many requests it gets at once.

    Attributes:
        strikes: its failures in a row.
        rests_until: the time before which it gets no load.
        last: why it failed last.
        model: the model that answered last, as the server names it.
        fingerprint: the configuration it ran with.
    """

    def __init__(self, client: Client, limiter: Limiter) -> None:
        self.client = client
        self.limiter = limiter
        self.strikes = 0
        self.rests_until = 0.0
        self.last: BackendError | None = None
        self.model: str | None = None
        self.fingerprint: str | None = None


class Lease:
    """A slot at an endpoint, for one HTTP request.

    Attributes:
        endpoint: where the request goes.
        round: the limiter's round it belongs to.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.round = endpoint.limiter.take()


class _Waiter:
    def __init__(self) -> None:
        self.called = anyio.Event()
        self.lease: Lease | None = None


class Endpoints:
    """The slots of all endpoints behind one first-come-first-served queue.

    A waiting caller is bound to no endpoint, so a slow one holds nobody up. An endpoint rests after
    it asked for less load or failed several times in a row; then it gets few requests, or one,
    until they succeed. A caller waits in the queue only while some endpoint is at work, whose next
    release calls it; while all rest it sleeps until the first is back.

    Args:
        endpoints: at least one.
        clock: the time.
    """

    def __init__(self, endpoints: Sequence[Endpoint], clock: Clock) -> None:
        self.all = tuple(endpoints)
        self._clock = clock
        self._queue: deque[_Waiter] = deque()

    @asynccontextmanager
    async def slot(
        self, deadline: Deadline, *, avoid: Endpoint | None = None
    ) -> AsyncGenerator[Lease]:
        """A slot for one HTTP request; waits for it as long as it takes.

        Args:
            deadline: is extended by the time in the queue, unless the endpoint was failing.
            avoid: take another endpoint where one is free.

        Raises:
            BackendError: every endpoint rests beyond the deadline.
        """
        lease = await self._lease(deadline, avoid)
        try:
            yield lease
        finally:
            self._release(lease)

    def others_awake(self, endpoint: Endpoint) -> bool:
        """Whether an endpoint other than this one takes load."""
        now = self._clock.now()
        return any(e is not endpoint and e.rests_until <= now for e in self.all)

    def answered(self, lease: Lease) -> None:
        """Note that the server did its work, if only to refuse the request."""
        lease.endpoint.strikes = 0
        lease.endpoint.limiter.grow()

    def failed(self, lease: Lease, fault: Fault) -> None:
        """Note that the request was not answered; the endpoint may have to rest."""
        endpoint, limiter = lease.endpoint, lease.endpoint.limiter
        endpoint.last = fault.error
        if lease.round == limiter.round:
            endpoint.strikes += 1
        if fault.kind == "busy":
            tries = 1 if fault.asked is not None else max(1, endpoint.strikes)
            self._rest(endpoint, pause(tries, fault.asked, 1.0))
            limiter.cut(lease.round)
        elif endpoint.strikes >= STRIKES:
            if lease.round == limiter.round:
                self._rest(endpoint, pause(endpoint.strikes - STRIKES + 1, fault.asked, 1.0))
            limiter.cut(lease.round, to_one=True)

    def _rest(self, endpoint: Endpoint, seconds: float) -> None:
        now = self._clock.now()
        endpoint.rests_until = max(endpoint.rests_until, now + seconds)
        if all(e.rests_until > now for e in self.all):
            while self._queue:  # nobody is left to call them
                self._queue.popleft().called.set()

    async def _lease(self, deadline: Deadline, avoid: Endpoint | None) -> Lease:
        while True:
            # One reading of the clock: an endpoint whose rest ended between two of them would be
            # waited for in the queue, where nobody is at work to call.
            now = self._clock.now()
            endpoint = None if self._queue else self._best(avoid, now)
            if endpoint is not None and deadline.left > 0:
                return Lease(endpoint)
            first = min(self.all, key=lambda e: e.rests_until)
            rest = first.rests_until - now
            if max(rest, 0.0) >= deadline.left:
                raise _too_late(first)
            if rest > 0:
                await self._clock.sleep(rest + self._clock.jitter() * min(rest, 1.0))
                continue
            waiter, joined = _Waiter(), self._clock.now()
            self._queue.append(waiter)
            try:
                await waiter.called.wait()
            except BaseException:
                if waiter.lease is not None:
                    self._release(waiter.lease)
                elif waiter in self._queue:
                    self._queue.remove(waiter)
                raise
            if waiter.lease is not None and waiter.lease.endpoint.strikes == 0:
                deadline.extend(self._clock.now() - joined)
            if waiter.lease is not None:
                return waiter.lease

    def _best(self, avoid: Endpoint | None, now: float) -> Endpoint | None:
        able = [e for e in self.all if e.rests_until <= now and e.limiter.free]
        return min(able, key=lambda e: (e is avoid, e.limiter.load), default=None)

    def _release(self, lease: Lease) -> None:
        lease.endpoint.limiter.release()
        while self._queue and (endpoint := self._best(None, self._clock.now())) is not None:
            waiter = self._queue.popleft()
            waiter.lease = Lease(endpoint)
            waiter.called.set()


def _too_late(endpoint: Endpoint) -> BackendError:
    """Why the deadline passed; an error of its own for each caller."""
    last = endpoint.last
    if last is None:
        return BackendError(f"{endpoint.client.url} had no room until the deadline")
    return BackendError(last.message, hint=last.hint, status=last.status)
