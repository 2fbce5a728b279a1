import threading

import anyio
import pytest
from anyio import from_thread

from branchwise.backends.batcher import Batcher
from branchwise.core.aio import gather
from branchwise.core.errors import BackendError, SearchFailed

pytestmark = pytest.mark.anyio


class Gate:
    """A `run` that holds its first batch until it is told to go on."""

    def __init__(self):
        self.batches = []
        self.started = anyio.Event()
        self.go = threading.Event()

    def __call__(self, items):
        self.batches.append(list(items))
        if len(self.batches) == 1:
            from_thread.run_sync(self.started.set)
            assert self.go.wait(10)
        return [-item for item in items]


async def test_callers_of_the_same_tick_share_the_first_batch():
    batches = []

    def run(items):
        batches.append(len(items))
        return [item * item for item in items]

    async with Batcher(run) as batcher:
        assert await gather(batcher.submit, range(20)) == [i * i for i in range(20)]
    assert batches == [20]


async def test_arrivals_during_a_batch_form_the_next_in_order_and_within_the_limit():
    gate = Gate()
    async with Batcher(gate, limit=3) as batcher, anyio.create_task_group() as group:
        group.start_soon(batcher.submit, 0)
        await gate.started.wait()
        for item in range(1, 6):
            group.start_soon(batcher.submit, item)
            await anyio.wait_all_tasks_blocked()
        gate.go.set()
    assert gate.batches == [[0], [1, 2, 3], [4, 5]]


async def test_a_cancelled_caller_leaves_the_queue():
    gate = Gate()
    async with Batcher(gate) as batcher, anyio.create_task_group() as group:
        group.start_soon(batcher.submit, 0)
        await gate.started.wait()
        async with anyio.create_task_group() as short:
            short.start_soon(batcher.submit, 1)
            await anyio.wait_all_tasks_blocked()
            short.cancel_scope.cancel()
        group.start_soon(batcher.submit, 2)
        await anyio.wait_all_tasks_blocked()
        gate.go.set()
    assert gate.batches == [[0], [2]]


async def test_a_caller_may_leave_a_running_batch_and_the_others_get_their_results():
    gate = Gate()
    results = []

    async def keep(item):
        results.append(await batcher.submit(item))

    async with Batcher(gate) as batcher, anyio.create_task_group() as group:
        async with anyio.create_task_group() as short:
            short.start_soon(batcher.submit, 1)
            group.start_soon(keep, 2)
            await gate.started.wait()
            short.cancel_scope.cancel()
        assert not gate.go.is_set()
        gate.go.set()
    assert results == [-2]


async def test_an_error_reaches_every_caller_and_the_next_batch_runs():
    def run(items):
        if 13 in items:
            raise BackendError("unlucky")
        return items

    errors = []

    async def submit(item):
        try:
            await batcher.submit(item)
        except BackendError as error:
            errors.append((item, error.message))

    async with Batcher(run) as batcher:
        await gather(submit, [12, 13, 14])
        assert sorted(errors) == [(12, "unlucky"), (13, "unlucky"), (14, "unlucky")]
        assert await batcher.submit(15) == 15


async def test_a_run_that_loses_results_is_an_error_of_its_callers():
    async with Batcher(lambda items: items[1:]) as batcher:
        with pytest.raises(ValueError, match="1 items gave 0 results"):
            await batcher.submit(1)


async def test_the_error_of_the_body_is_raised_as_it_is():
    with pytest.raises(SearchFailed):
        async with Batcher(list):
            raise SearchFailed("down")


async def test_closing_tells_those_who_wait_and_those_who_come():
    gate = Gate()
    heard = []

    async def submit(item):
        try:
            heard.append(await batcher.submit(item))
        except BackendError as error:
            heard.append(str(error))

    async with anyio.create_task_group() as group, Batcher(gate) as batcher:
        group.start_soon(submit, 1)
        await gate.started.wait()
        group.start_soon(submit, 2)
        await anyio.wait_all_tasks_blocked()
        gate.go.set()
    closed = "the backend is closed (call it inside its `async with` block)"
    assert sorted(heard, key=str) == [-1, closed]
    with pytest.raises(BackendError, match="closed"):
        await batcher.submit(3)


async def test_a_deadline_around_the_batcher_ends_it():
    with anyio.move_on_after(0) as scope:
        async with Batcher(list) as batcher:
            await batcher.submit(1)
    assert scope.cancelled_caught
