"""The task groups of the search path live here, and nowhere else."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import anyio
from anyio.lowlevel import checkpoint

T = TypeVar("T")
R = TypeVar("R")

__all__ = ["checkpoint", "gather", "lanes", "run_sync"]


async def gather(function: Callable[[T], Awaitable[R]], items: Sequence[T]) -> list[R]:
    """Call `function` with all items at once; the results in the order of the items.

    The first error ends the others and is raised as it is, not wrapped in a group. A single item
    is awaited in place, for a task costs more than most controllers do.

    Example:
        >>> async def double(x: int) -> int:
        ...     return 2 * x
        >>> run_sync(gather, double, [1, 2, 3])
        [2, 4, 6]
    """
    if len(items) == 1:
        return [await function(items[0])]
    results: dict[int, R] = {}
    errors: list[BaseException] = []

    async def one(index: int, item: T) -> None:
        try:
            results[index] = await function(item)
        except Exception as error:  # noqa: BLE001  (re-raised below, without the group around it)
            errors.append(error)
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for index, item in enumerate(items):
            group.start_soon(one, index, item)
    if errors:
        raise errors[0]
    return [results[index] for index in range(len(items))]


async def lanes(function: Callable[[], Awaitable[object]], k: int) -> None:
    """Run `function` in `k` loops side by side, each until it returns a false value.

    The loops share what `function` closes over and take turns only where it awaits. The first
    error ends the others and is raised as it is.

    Example:
        >>> left = [1, 2, 3]
        >>> async def work() -> bool:
        ...     left.pop()
        ...     return bool(left)
        >>> run_sync(lanes, work, 1)
        >>> left
        []
    """

    async def loop(_: int) -> None:
        while await function():
            pass

    await gather(loop, range(k))


def run_sync(
    function: Callable[..., Coroutine[Any, Any, R]], *args: object, backend: str = "asyncio"
) -> R:
    """Run an async function to its end from code that is not async, and return its result.

    Works in scripts, in notebooks and inside a running event loop: there it runs in a thread of
    its own, and the caller's loop waits meanwhile. Open backends inside `function`, not outside:
    a connection belongs to the loop that opened it.

    Args:
        function: an async function.
        args: its arguments.
        backend: `asyncio` or `trio`.

    Example:
        >>> async def answer(question: str) -> int:
        ...     return len(question)
        >>> run_sync(answer, "four")
        4
    """
    outcome: list[R] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(anyio.run(function, *args, backend=backend))
        except BaseException as error:  # noqa: BLE001  (carried over to the caller's thread)
            errors.append(error)

    if not _loop_runs_here():
        return anyio.run(function, *args, backend=backend)
    thread = threading.Thread(target=run, name="branchwise-run-sync")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return outcome[0]


def _loop_runs_here() -> bool:
    try:
        anyio.get_current_task()
    except (RuntimeError, anyio.NoEventLoopError):
        return False
    return True
