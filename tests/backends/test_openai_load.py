"""Many callers at once: slots, rate limits, circuits, and what is left after a cancellation."""

import asyncio
import itertools

import anyio
import pytest
from hostile import Jump, chat, request, script, serving, spec_of, swift, talking

from branchwise.backends.openai import connected
from branchwise.backends.remote.endpoints import Endpoint, Endpoints
from branchwise.backends.remote.limiter import Limiter
from branchwise.backends.remote.retry import Clock, Deadline

pytestmark = pytest.mark.asyncio


async def crowd(backend, count, each=1):
    """So many callers at once, each asking a few times; all must be answered."""
    answered = []

    async def caller():
        for _ in range(each):
            (step,) = await backend.complete(request())
            answered.append(step.text)

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            for _ in range(count):
                group.start_soon(caller)
    return answered


def running(backend):
    return sum(endpoint.limiter.running for endpoint in backend._endpoints.all)


def limit(backend):
    return backend._endpoints.all[0].limiter.limit


async def test_two_thousand_callers_share_a_hundred_connections():
    full = asyncio.Event()

    async def answer(asked):
        if server.running == 100:
            full.set()
        await full.wait()
        await asked.chat("a")

    async with talking(answer, start=100, connect=2, idle=2, attempt=2) as (server, backend):
        answered = await crowd(backend, 2000)
        assert (len(answered), running(backend)) == (2000, 0)
    assert server.peak == 100
    assert len(server.asked) == 2000


async def test_the_wait_for_a_slot_is_outside_every_limit():
    """All requests but one wait longer for their slot than one may take in all."""
    jump = Jump()

    async def slow(asked):
        jump.time += 30
        await asked.chat("a")

    fields = {"connections": 1, "deadline": 60}
    async with talking(slow, clock=jump.clock, **fields) as (server, backend):
        assert len(await crowd(backend, 20)) == 20
    assert server.peak == 1


def rate_limited(clock, rate, asks):
    """A server that takes so many requests in each second, and says when the next begins."""
    seconds = {}

    async def answer(asked):
        now = clock.now()
        second = int(now)
        seconds[second] = seconds.get(second, 0) + 1
        if seconds[second] > rate:
            headers = {"retry-after": str(1 - now % 1)} if asks else {}
            await asked.refuse(429, "rate limit", headers)
        else:
            await asked.chat("a")

    return answer


async def test_sixty_four_workers_meet_a_rate_limit():
    clock = swift(20)
    async with talking(rate_limited(clock, 40, asks=True), clock=clock) as (server, backend):
        assert len(await crowd(backend, 64, each=4)) == 256
        assert running(backend) == 0
    assert len(server.asked) <= 1.3 * 256


async def test_all_are_turned_away_together_and_do_not_come_back_together():
    open_at = []
    arrivals = []
    clock = swift(50)

    async def closed_at_first(asked):
        now = clock.now()
        open_at.append(now + 5)
        if now < open_at[0]:
            await asked.refuse(429, "later", {"retry-after": "5"})
        else:
            arrivals.append(now)
            await asked.chat("a")

    async with talking(closed_at_first, clock=clock, deadline=900) as (server, backend):
        assert len(await crowd(backend, 64)) == 64
    assert len(server.asked) <= 1.3 * 64
    assert max(arrivals) - min(arrivals) > 0.3  # seconds of the workers' clock


async def test_the_limit_falls_under_refusals_and_recovers():
    refusing = True

    async def answer(asked):
        if refusing:
            await asked.refuse(429, "later", {"retry-after": "89"})
        else:
            await asked.chat("a")

    clock = swift(500)
    async with talking(answer, clock=clock, deadline=900) as (server, backend):
        with pytest.raises(ExceptionGroup):
            await crowd(backend, 64)
        assert (limit(backend), running(backend)) == (4, 0)
        refusing = False
        await crowd(backend, 40, each=10)
        assert limit(backend) > 16
    assert server.peak <= 40


@pytest.mark.parametrize("rests_until", range(8))
async def test_a_rest_that_ends_between_two_readings_of_the_clock_is_over(rests_until):
    """Nobody may queue for an endpoint where nobody is at work to call."""
    readings = itertools.count()
    clock = Clock(lambda: float(next(readings)), lambda _: asyncio.sleep(0), jitter=lambda: 0.0)
    endpoint = Endpoint(None, Limiter(1))
    endpoint.rests_until = rests_until
    with anyio.fail_after(1):
        async with Endpoints([endpoint], clock).slot(Deadline(clock, 1000)) as lease:
            assert lease.endpoint is endpoint


async def test_a_dead_endpoint_gets_no_load_and_comes_back():
    clock = swift(500)
    async with (
        serving(chat("a")) as ill,
        serving(chat("b")) as well,
        connected(spec_of(ill, well), clock) as backend,
    ):
        await ill.stop()
        assert await crowd(backend, 200) == ["b"] * 200
        await ill.start()
        await clock.sleep(60)
        assert set(await crowd(backend, 200)) == {"a", "b"}


# -- cancellation


async def test_a_cancelled_request_hangs_up():
    hung_up = asyncio.Event()
    arrived = asyncio.Event()

    async def never(asked):
        arrived.set()
        await asked.gone()
        hung_up.set()

    async with talking(script(never, chat("a"))) as (_, backend):
        async with anyio.create_task_group() as group:
            group.start_soon(backend.complete, request())
            await arrived.wait()
            assert running(backend) == 1
            group.cancel_scope.cancel()
        with anyio.fail_after(5):
            await hung_up.wait()
        assert running(backend) == 0
        (step,) = await backend.complete(request())
    assert step.text == "a"


async def test_a_cancelled_pause_ends_at_once_and_holds_no_slot():
    asleep = asyncio.Event()

    async def sleep(seconds):
        asleep.set()
        await asyncio.sleep(seconds)

    busy = lambda asked: asked.refuse(429, "later", {"retry-after": "100"})  # noqa: E731  (one line)
    async with talking(busy, clock=Clock(sleep=sleep)) as (server, backend):
        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                group.start_soon(backend.complete, request())
                await asleep.wait()
                assert running(backend) == 0
                group.cancel_scope.cancel()
    assert len(server.asked) == 1


@pytest.mark.parametrize("passes", range(0, 30, 2))
async def test_cancelling_anywhere_leaves_nothing_behind(passes):
    """Callers are cancelled after so many turns of the loop, in the queue or on the way."""
    async with talking(chat("a"), connections=3) as (_, backend):
        async with anyio.create_task_group() as group:
            for _ in range(12):
                group.start_soon(backend.complete, request())
            for _ in range(passes):
                await asyncio.sleep(0)
            group.cancel_scope.cancel()
        assert running(backend) == 0
        assert not backend._endpoints._queue
        assert await crowd(backend, 12) == ["a"] * 12
