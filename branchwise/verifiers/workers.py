"""Processes that answer one line at a time and can be killed: a home for code that may hang."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import AsyncGenerator, Sequence

import anyio
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

START_SECONDS = 60.0
_LONGEST_LINE = 1 << 16


class WorkerDiedError(Exception):
    """A worker ended before it answered, twice: the line itself is what kills it."""


class Workers:
    """A pool of processes, each started when it is first needed.

    A worker says `ready` and then answers each line on its standard input with one line. One that
    is too slow is killed and the next line gets a fresh one, so no line can spoil another.

    Args:
        command: what starts a worker.
        count: the most workers at one time.
        seconds: the most time for one line, in seconds of the wall clock.
    """

    def __init__(self, command: Sequence[str], *, count: int, seconds: float) -> None:
        self._command = list(command)
        self._seconds = seconds
        self._slots = anyio.Semaphore(count)
        self._idle: list[_Worker] = []

    async def ask(self, line: bytes) -> bytes:
        """The answer to a line.

        Raises:
            TimeoutError: there was none in time.
            WorkerDiedError: the line kills its worker.
        """
        async with self._slots:
            try:
                return await self._ask(line)
            except WorkerDiedError:  # perhaps of the lines before this one: try a fresh worker
                await self.aclose()
                return await self._ask(line)

    async def _ask(self, line: bytes) -> bytes:
        worker = self._idle.pop() if self._idle else await _Worker.start(self._command)
        async with worker.ended_on_error():
            with anyio.fail_after(self._seconds):
                answer = await worker.ask(line)
        self._idle.append(worker)
        return answer

    async def aclose(self) -> None:
        """End the workers that wait for a line; a busy one ends with its call."""
        while self._idle:
            await self._idle.pop().end()


class _Worker:
    def __init__(self, process: Process) -> None:
        if process.stdin is None or process.stdout is None:
            raise TypeError("a worker needs pipes")
        self._process = process
        self._input = process.stdin
        self._output = BufferedByteReceiveStream(process.stdout)

    @classmethod
    async def start(cls, command: list[str]) -> _Worker:
        # One hash seed for all, so that symbolic algebra takes the same way each time.
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        process = await anyio.open_process(command, stderr=subprocess.DEVNULL, env=environment)
        worker = cls(process)
        async with worker.ended_on_error():
            with anyio.fail_after(START_SECONDS):
                await worker._read()
        return worker

    async def ask(self, line: bytes) -> bytes:
        try:
            await self._input.send(line + b"\n")
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise WorkerDiedError from error
        return await self._read()

    async def _read(self) -> bytes:
        try:
            return await self._output.receive_until(b"\n", _LONGEST_LINE)
        except (
            anyio.IncompleteRead,
            anyio.EndOfStream,
            anyio.BrokenResourceError,
            anyio.ClosedResourceError,
        ) as error:
            raise WorkerDiedError from error

    @contextlib.asynccontextmanager
    async def ended_on_error(self) -> AsyncGenerator[None]:
        """A worker that was left in the middle of a line would answer the next one with it."""
        try:
            yield
        except BaseException:
            await self.end()
            raise

    async def end(self) -> None:
        with anyio.CancelScope(shield=True):
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.aclose()
