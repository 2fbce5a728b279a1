"""Sandboxes that wait for their program, so that a run need not wait for its sandbox."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio

from branchwise.core.errors import SandboxError
from branchwise.sandbox.beside import beside
from branchwise.sandbox.cell import Cell, Plan

PROCESSORS = len(os.sched_getaffinity(0))
BUILDERS = 2
"""How many are built at one time: more would take the processors from the programs."""


class Pool:
    """Single-use sandboxes: each is built ahead, used once and thrown away.

    They are built while a processor is free; while programs have them all, each run builds its own.

    Args:
        plan: how they are built.
        warm: how many wait at most; 0 builds each when it is asked for.
    """

    def __init__(self, plan: Plan, warm: int) -> None:
        self._plan = plan
        self._builders = min(BUILDERS, warm)
        # A builder with nowhere to put its sandbox holds it, so the buffer is smaller by these.
        self._busy = 0
        self._ended = anyio.Event()
        self._put, self._get = anyio.create_memory_object_stream[Cell](warm - self._builders)

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Pool]:
        """Build in the background while the block runs; nothing is left after it."""
        async with self._get, self._put:
            try:
                async with beside(*[self._build] * self._builders):
                    yield self
            finally:
                with anyio.CancelScope(shield=True):
                    while self._get.statistics().current_buffer_used:
                        await self._get.receive_nowait().close()

    @asynccontextmanager
    async def cell(self) -> AsyncGenerator[Cell]:
        """A sandbox of one's own, for one program.

        Raises:
            SandboxError: it could not be built.
        """
        self._busy += 1
        try:
            cell = await self._taken()
            try:
                yield cell
            finally:
                await cell.close()
        finally:
            self._busy -= 1
            self._ended.set()
            self._ended = anyio.Event()

    async def _taken(self) -> Cell:
        """One that waits; a new one where none does."""
        try:
            cell = self._get.receive_nowait()
        except anyio.WouldBlock:
            return await Cell.built(self._plan)
        if cell.alive:
            return cell
        await cell.close()
        return await Cell.built(self._plan)

    async def _build(self) -> None:
        while True:
            while self._busy >= PROCESSORS:
                await self._ended.wait()
            try:
                cell = await Cell.built(self._plan)
            except SandboxError:
                # Whoever runs the next program builds one, and is told why that fails.
                await self._ended.wait()
                continue
            try:
                await self._put.send(cell)
            except BaseException:
                await cell.close()
                raise
