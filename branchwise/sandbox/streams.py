"""The standard streams of a program, as the one who started it holds them."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

import anyio
from anyio.lowlevel import checkpoint

from branchwise.core.errors import SandboxError
from branchwise.sandbox.beside import beside

T = TypeVar("T")
CHUNK = 1 << 16


class Streams:
    """Three pipes: our ends do not block, theirs are for the program.

    Args:
        limit: the most bytes that are taken from the program's output.
    """

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        their_in, self.stdin = os.pipe2(os.O_CLOEXEC)
        self.stdout, their_out = os.pipe2(os.O_CLOEXEC)
        self.stderr, their_err = os.pipe2(os.O_CLOEXEC)
        self.theirs = (their_in, their_out, their_err)
        self.out = bytearray()
        self.err = bytearray()
        self._open = {*self.theirs, self.stdin, self.stdout, self.stderr}
        for ours in (self.stdin, self.stdout, self.stderr):
            os.set_blocking(ours, False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(*self._open)

    def close(self, *ends: int) -> None:
        """Close these ends, those that are closed already too."""
        for end in self._open.intersection(ends):
            os.close(end)
        self._open.difference_update(ends)

    @property
    def full(self) -> bool:
        """Whether the program has written more than the limit."""
        return len(self.out) + len(self.err) > self.limit

    async def exchange(
        self, stdin: bytes, ended: Callable[[], Awaitable[T]], stop: Callable[[], None]
    ) -> T:
        """Feed the program and take its output until `ended` returns.

        Args:
            stdin: what the program reads.
            ended: returns when no process of the program is left.
            stop: called once where the output has passed the limit; makes `ended` return.
        """

        async def take(end: int, into: bytearray) -> None:
            while self._take(end, into):
                if self.full:
                    stop()
                    return
                await anyio.wait_readable(end)

        async with beside(
            partial(self._feed, stdin),
            partial(take, self.stdout, self.out),
            partial(take, self.stderr, self.err),
        ):
            result = await ended()
        # Nobody is left who could write: what is in the pipes is all there is.
        self._take(self.stdout, self.out)
        self._take(self.stderr, self.err)
        return result

    def taken(self) -> tuple[bytes, bytes]:
        """Standard output and standard error, cut at the limit."""
        out = bytes(self.out[: self.limit])
        return out, bytes(self.err[: self.limit - len(out)])

    async def _feed(self, data: bytes) -> None:
        left = memoryview(data)
        with suppress(BrokenPipeError):
            while left:
                try:
                    left = left[os.write(self.stdin, left) :]
                except BlockingIOError:
                    await anyio.wait_writable(self.stdin)
        self.close(self.stdin)

    def _take(self, end: int, into: bytearray) -> bool:
        """Take what there is, up to one byte over the limit; False at the end."""
        while not self.full:
            try:
                part = os.read(end, CHUNK)
            except BlockingIOError:
                return True
            if not part:
                return False
            into += part
        return True


class Talk:
    """A program that one talks with, line by line.

    Args:
        streams: its streams.
        longest: the most bytes of a line.
    """

    def __init__(self, streams: Streams, longest: int) -> None:
        self._streams = streams
        self._longest = longest
        self._read = bytearray()

    async def send(self, line: bytes) -> None:
        """Write a line, without its end, on the program's standard input.

        Raises:
            SandboxError: the program has ended.
        """
        await checkpoint()
        left = memoryview(line + b"\n")
        try:
            while left:
                try:
                    left = left[os.write(self._streams.stdin, left) :]
                except BlockingIOError:
                    await anyio.wait_writable(self._streams.stdin)
        except OSError as error:
            raise SandboxError("the program has ended") from error

    async def receive(self, seconds: float) -> bytes:
        """The next line on the program's standard output, without its end.

        Raises:
            TimeoutError: there was none in time.
            SandboxError: the program has ended, or its line is too long.
        """
        looked = 0
        with anyio.fail_after(seconds):
            await checkpoint()
            while (end := self._read.find(b"\n", looked)) < 0:
                looked = len(self._read)
                if looked > self._longest:
                    raise SandboxError(f"the program's line is longer than {self._longest} bytes")
                await anyio.wait_readable(self._streams.stdout)
                try:
                    part = os.read(self._streams.stdout, CHUNK)
                except OSError as error:
                    raise SandboxError("the program has ended") from error
                if not part:
                    raise SandboxError("the program has ended")
                self._read += part
        line = bytes(self._read[:end])
        del self._read[: end + 1]
        return line

    async def discard_errors(self) -> None:
        """Read standard error and forget it, so that the program never waits for a reader."""
        while True:
            await anyio.wait_readable(self._streams.stderr)
            if not os.read(self._streams.stderr, CHUNK):
                return
