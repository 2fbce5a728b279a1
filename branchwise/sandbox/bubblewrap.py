"""A sandbox of namespaces, a filter of system calls and limits: Linux with bubblewrap."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Literal

import anyio
from pydantic import Field

from branchwise.core.config import Config
from branchwise.sandbox.order import check
from branchwise.sandbox.ran import Files, Limits, Ran, Running

if TYPE_CHECKING:
    from branchwise.sandbox.pool import Pool


class Bubblewrap(Config):
    """Runs programs behind walls that the kernel of Linux holds.

    A program has a user of its own without rights, sees no process, network or file of the machine
    but the read-only system under /usr and its interpreter, writes to a file system in memory that
    nobody else sees, and makes only harmless system calls. Each has its own sandbox, used once.

    Where a control group may be made, the kernel bounds the memory and the processes of a run
    together. Elsewhere the memory is looked at fifty times a second and each process's address
    space is bounded by twice the limit and 256 MiB, so that several processes that fill memory
    at once may pass the limit between two looks; the memory of pipes is not bounded.

    Args:
        workers: how many programs run at one time; others wait.
        warm: how many sandboxes wait ready for a program, at 9 MB each; 0 builds each when it is
            asked for.
        packages: whether `python` has the packages that are installed beside branchwise, read-only;
            else it has the standard library alone.

    Raises:
        SpecError: when opened, where bubblewrap is missing or the system forbids namespaces.

    Source:
        https://github.com/containers/bubblewrap

    Example:
        >>> Bubblewrap(workers=2).packages
        False
    """

    kind: Literal["bubblewrap"] = "bubblewrap"
    workers: int = Field(default=8, ge=1)
    warm: int = Field(default=4, ge=0, le=64)
    packages: bool = False

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Bubbles]:
        """The sandbox, ready to run programs; everything of it is gone when the block ends.

        Raises:
            SpecError: no sandbox can be had here.
        """
        # Linux alone has what these import.
        from branchwise.sandbox.cell import Plan  # noqa: PLC0415  (Linux)
        from branchwise.sandbox.pool import Pool  # noqa: PLC0415  (Linux)

        plan = await Plan.probed(packages=self.packages)
        try:
            async with Pool(plan, self.warm).open() as pool:
                yield Bubbles(pool, self.workers)
        finally:
            plan.close()


class Bubbles:
    """What `Bubblewrap` opens.

    Args:
        pool: where sandboxes come from.
        workers: how many programs run at one time.
    """

    def __init__(self, pool: Pool, workers: int) -> None:
        self._pool = pool
        self._free = anyio.Semaphore(workers)

    async def run(
        self,
        files: Files,
        argv: Sequence[str],
        limits: Limits = Limits(),  # noqa: B008  (frozen)
        *,
        stdin: bytes = b"",
        keep: bool = False,
    ) -> Ran:
        """Run a program to its end in a fresh place of its own; see `Sandbox.run`.

        Raises:
            SpecError: a path leaves the folder, or the command is empty.
            SandboxError: the sandbox itself broke.
        """
        check(files, argv, limits)
        async with self._free, self._pool.cell() as cell:
            return await cell.run(files, argv, limits, stdin=stdin, keep=keep)

    @asynccontextmanager
    async def start(
        self,
        files: Files,
        argv: Sequence[str],
        limits: Limits = Limits(),  # noqa: B008  (frozen)
    ) -> AsyncGenerator[Running]:
        """Start a program to talk with, line by line; see `Sandbox.start`.

        Raises:
            SpecError: a path leaves the folder, or the command is empty.
            SandboxError: the sandbox itself broke.
        """
        check(files, argv, limits)
        async with self._free, self._pool.cell() as cell, cell.talk(files, argv, limits) as talk:
            yield talk
