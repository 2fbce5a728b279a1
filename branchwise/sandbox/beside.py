"""Work that goes on beside a block of code."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio


@asynccontextmanager
async def beside(*works: Callable[[], Awaitable[object]]) -> AsyncGenerator[None]:
    """Run some work beside a block; it is cancelled when the block ends.

    An error of the block is raised as it is, not wrapped in a group; so is the only one of a work.

    Example:
        >>> async def main() -> str:
        ...     async with beside(anyio.sleep_forever):
        ...         return "done"
        >>> anyio.run(main)
        'done'
    """
    errors: list[Exception] = []

    async def work(function: Callable[[], Awaitable[object]]) -> None:
        try:
            await function()
        except Exception as error:  # noqa: BLE001  (re-raised below, without the group around it)
            errors.append(error)
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for function in works:
            group.start_soon(work, function)
        try:
            yield
        except Exception as error:  # noqa: BLE001  (the same)
            errors.insert(0, error)
        group.cancel_scope.cancel()
    if errors:
        raise errors[0]
