import threading

import anyio
import pytest
from anyio import from_thread

from branchwise.backends.batcher import Batcher
from branchwise.core.aio import gather
from branchwise.core.errors import BackendError, SearchFailed

pytestmark = pytest.mark.anyio

CLOSED = "the backend is closed (call it inside its `async with` block)"


class Worker:
    """A `run` that needs as many steps for an item as the item says; each step can be held."""

    def __init__(self, hold=()):
        self.hold = set(hold)
        self.held = anyio.Event()
        self.go = threading.Event()
        self.steps = []
        self.runs = 0

    def __call__(self, feed):
        self.runs += 1
        live = []
        while live := [*live, *([ticket, ticket.item] for ticket in feed.take())]:
            self.steps.append([ticket.item for ticket, _ in live])
            if len(self.steps) in self.hold:
                from_thread.run_sync(self.held.set)
                assert self.go.wait(10)
            for entry in live:
                entry[1] -= 1
            if done := [(ticket, -ticket.item) for ticket, left in live if left <= 0]:
                feed.settle(done)
            live = [entry for entry in live if entry[1] > 0 and not entry[0].gone]


async def blocked_then(call):
    await anyio.wait_all_tasks_blocked()
    call()


async def test_callers_of_the_same_tick_are_taken_together():
    worker = Worker()
    async with Batcher(worker) as batcher:
        assert await gather(batcher.submit, [1] * 20) == [-1] * 20
    assert worker.steps == [[1] * 20]


async def test_an_arrival_joins_the_run_and_a_short_one_finishes_first():
    worker, order = Worker(hold=[2]), []

    async def submit(item):
        order.append(await batcher.submit(item))

    async with Batcher(worker) as batcher, anyio.create_task_group() as group:
        group.start_soon(submit, 5)
        await worker.held.wait()
        for item in (2, 1):
            group.start_soon(submit, item)
            await anyio.wait_all_tasks_blocked()
        worker.go.set()
    assert worker.steps == [[5], [5], [5, 2, 1], [5, 2], [5]]
    assert worker.runs == 1
    assert order == [-1, -2, -5]


async def test_an_arrival_between_the_last_look_and_the_end_of_the_run_is_served():
    looked, end, runs = anyio.Event(), threading.Event(), []

    def run(feed):
        tickets = feed.take()
        runs.append([ticket.item for ticket in tickets])
        feed.settle([(ticket, -ticket.item) for ticket in tickets])
        if len(runs) == 1:
            assert feed.take() == []
            from_thread.run_sync(looked.set)
            assert end.wait(10)

    async with Batcher(run) as batcher, anyio.create_task_group() as group:
        assert await batcher.submit(1) == -1
        await looked.wait()
        group.start_soon(blocked_then, end.set)
        assert await batcher.submit(2) == -2
    assert runs == [[1], [2]]


async def test_nothing_runs_without_an_arrival():
    worker = Worker()
    async with Batcher(worker) as batcher:
        for _ in range(3):
            assert await batcher.submit(1) == -1
            await anyio.wait_all_tasks_blocked()
    assert worker.steps == [[1]] * 3
    assert worker.runs <= 3


async def test_a_cancelled_caller_leaves_the_line():
    worker = Worker(hold=[1])
    async with Batcher(worker) as batcher, anyio.create_task_group() as group:
        group.start_soon(batcher.submit, 1)
        await worker.held.wait()
        async with anyio.create_task_group() as short:
            short.start_soon(batcher.submit, 9)
            await anyio.wait_all_tasks_blocked()
            short.cancel_scope.cancel()
        group.start_soon(batcher.submit, 2)
        await anyio.wait_all_tasks_blocked()
        worker.go.set()
    assert worker.steps == [[1], [2], [2]]


async def test_a_caller_may_leave_a_run_and_the_others_get_their_results():
    worker, results = Worker(hold=[2]), []

    async def keep(item):
        results.append(await batcher.submit(item))

    async with Batcher(worker) as batcher, anyio.create_task_group() as group:
        async with anyio.create_task_group() as short:
            short.start_soon(batcher.submit, 99)
            group.start_soon(keep, 4)
            await worker.held.wait()
            short.cancel_scope.cancel()
        assert not worker.go.is_set()
        worker.go.set()
    assert [sorted(step) for step in worker.steps] == [[4, 99], [4, 99], [4], [4]]
    assert results == [-4]


async def test_an_error_reaches_whoever_was_taken_and_not_settled():
    heard, failing, fail = [], anyio.Event(), threading.Event()

    def run(feed):
        tickets = feed.take()
        feed.settle([(ticket, "done") for ticket in tickets if ticket.item < 13])
        if any(ticket.item >= 13 for ticket in tickets):
            from_thread.run_sync(failing.set)
            assert fail.wait(10)
            raise BackendError("unlucky")

    async def submit(item):
        try:
            heard.append((item, await batcher.submit(item)))
        except BackendError as error:
            heard.append((item, error.message))

    async with Batcher(run) as batcher, anyio.create_task_group() as group:
        for item in (12, 13, 14):
            group.start_soon(submit, item)
        await failing.wait()
        group.start_soon(submit, 11)
        await anyio.wait_all_tasks_blocked()
        assert heard == [(12, "done")]
        fail.set()
    assert sorted(heard) == [(11, "done"), (12, "done"), (13, "unlucky"), (14, "unlucky")]


async def test_a_run_may_give_an_error_to_one_caller_alone():
    def run(feed):
        feed.settle([(t, -t.item if t.item else BackendError("nought")) for t in feed.take()])

    async with Batcher(run) as batcher, anyio.create_task_group() as group:
        group.start_soon(batcher.submit, 1)
        with pytest.raises(BackendError, match="nought"):
            await batcher.submit(0)


async def test_a_run_that_loses_a_ticket_is_an_error_of_its_caller():
    async with Batcher(lambda feed: feed.take()) as batcher:
        with pytest.raises(RuntimeError, match="without a result"):
            await batcher.submit(1)


async def test_the_error_of_the_body_is_raised_as_it_is():
    with pytest.raises(SearchFailed):
        async with Batcher(Worker()):
            raise SearchFailed("down")


async def test_closing_is_prompt_for_callers_and_for_the_run():
    worker, heard = Worker(hold=[2]), []

    async def submit(item):
        try:
            heard.append(await batcher.submit(item))
        except BackendError as error:
            heard.append(str(error))

    async with anyio.create_task_group() as group:
        async with Batcher(worker) as batcher:
            group.start_soon(submit, 1000)
            await worker.held.wait()
            group.start_soon(submit, 2)
            await anyio.wait_all_tasks_blocked()
            group.start_soon(blocked_then, worker.go.set)
        assert len(worker.steps) == 2
        with pytest.raises(BackendError, match="closed"):
            await batcher.submit(3)
    assert heard == [CLOSED, CLOSED]


async def test_a_deadline_around_the_batcher_ends_it():
    with anyio.move_on_after(0) as scope:
        async with Batcher(Worker()) as batcher:
            await batcher.submit(1)
    assert scope.cancelled_caught


async def test_a_shielded_caller_is_served_though_the_scope_around_is_cancelled():
    with anyio.CancelScope() as scope:
        async with Batcher(Worker()) as batcher:
            scope.cancel()
            with anyio.CancelScope(shield=True):
                assert await batcher.submit(3) == -3
