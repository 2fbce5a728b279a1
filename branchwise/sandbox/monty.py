"""A subset of Python in an interpreter of its own, whose state is a few kilobytes of bytes."""

from __future__ import annotations

import ast
import contextlib
import io
import os
import signal
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import anyio
from anyio import to_thread
from pydantic import Field

from branchwise.core.config import Config
from branchwise.core.errors import SandboxError, SpecError
from branchwise.sandbox.order import check
from branchwise.sandbox.ran import Ending, Files, Limits, Ran, Running

_GRACE = 0.5  # seconds beyond the limit: the interpreter stops itself first and says more
_HINT = "pip install 'branchwise[monty]'"
_PYTHON = ("python", "python3")
_WORK = "/work"


class Monty(Config):
    """The interpreter Monty: no system underneath, so nothing in it to attack or to wait for.

    It is a subset of Python, written in Rust, that reads no host's file, opens no socket and starts
    no process; its interpreters run in processes of their own. It has no third-party packages, few
    standard modules, no `input`, no `sys.exit`, no `yield`, and cannot import a file beside the
    script. What it has in return is a state that can be written down: `resume` runs code from any
    earlier state, in a third of a millisecond.

    Args:
        workers: the most interpreters at one time.

    Raises:
        SpecError: when it is opened: pydantic-monty is not installed.

    Source: https://github.com/pydantic/monty

    Example:
        >>> Monty(workers=2).workers
        2
    """

    kind: Literal["monty"] = "monty"
    workers: int = Field(default=4, ge=1)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncGenerator[Interpreters]:
        """Start the interpreters' processes; they end with the block."""
        try:
            monty = import_module("pydantic_monty")
        except ImportError as error:
            raise SpecError("the sandbox monty needs pydantic-monty", hint=_HINT) from error
        # Its asynchronous pool aborts the process at exit at times; the one for threads does not.
        pool = monty.Monty(max_processes=self.workers, feed_duration_limit_grace=_GRACE)
        try:
            await to_thread.run_sync(pool.__enter__)
        except (OSError, RuntimeError, monty.MontyError) as error:
            raise SpecError(f"monty's interpreter does not start: {error}", hint=_HINT) from error
        try:
            yield Interpreters(monty, pool, self.workers)
        finally:
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(pool.__exit__, None, None, None)


@dataclass(frozen=True, slots=True)
class Turn:
    """What became of a piece of code.

    Args:
        status: how it ended; `exited` also where it raised an exception.
        output: what it printed and, where its last line is an expression, the value of that.
        error: the traceback of the exception that ended it; empty where none did.
        saved: the interpreter's state afterwards. Where a limit stopped the code it is the state
            before, since nothing is promised about the one in between.
    """

    status: Ending
    output: str
    error: str
    saved: bytes


class Interpreters:
    """Monty's interpreters, as a sandbox and as a session that can be forked."""

    def __init__(self, monty: ModuleType, pool: Any, workers: int) -> None:
        self._monty, self._pool = monty, pool
        self._slots = anyio.CapacityLimiter(workers)

    async def run(
        self,
        files: Files,
        argv: Sequence[str],
        limits: Limits = Limits(),  # noqa: B008  (frozen)
        *,
        stdin: bytes = b"",
        keep: bool = False,
    ) -> Ran:
        """Run one script; the other files are there for it to read.

        An exception is exit status 1 and its traceback on standard error. Of the limits `processes`
        says nothing here, for there is no way to start one, and `entries` is not watched.

        Raises:
            SpecError: a path leaves the folder, the command is not `python SCRIPT`, or there is
                something on standard input, which Monty lacks.
            SandboxError: the interpreter's process could not be had.
        """
        check(files, argv, limits)
        if len(argv) != 2 or argv[0] not in _PYTHON or argv[1] not in files:  # noqa: PLR2004
            raise SpecError(
                f"monty cannot run {' '.join(argv)!r}", hint="it runs `python SCRIPT`, of its files"
            )
        if stdin:
            raise SpecError("monty has no standard input", hint="write it to a file instead")
        with tempfile.TemporaryDirectory(prefix="branchwise-monty-") as place:
            folder = Path(place)
            await to_thread.run_sync(_fill, folder, files)
            mount = self._monty.MountDir(
                host_path=folder,
                virtual_path=_WORK,
                mode="read-write" if keep else "overlay",
                write_bytes_limit=limits.disk,
                memory_usage_limit=limits.disk,
            )
            with mount:
                feed = _Feed(self._monty, files[argv[1]].decode(errors="replace"), limits, mount)
                await self._do(feed)
            kept = await to_thread.run_sync(_kept, folder, limits) if keep else {}
        out = feed.said("stdout").encode()
        err = (feed.said("stderr") + feed.error).encode()[: limits.output - len(out)]
        code = int(bool(feed.error)) if feed.status == "exited" else signal.SIGKILL
        return Ran(feed.status, code, out, err, feed.seconds, files=kept)

    def start(
        self,
        files: Files,  # noqa: ARG002  (the protocol's)
        argv: Sequence[str],  # noqa: ARG002  (the protocol's)
        limits: Limits = Limits(),  # noqa: ARG002, B008  (the protocol's; frozen)
    ) -> AbstractAsyncContextManager[Running]:
        """There are no programs to talk with here.

        Raises:
            SpecError: always.
        """
        raise SpecError("monty has no standard input", hint="use `resume`, or another sandbox")

    async def resume(
        self,
        code: str,
        saved: bytes = b"",
        limits: Limits = Limits(),  # noqa: B008  (frozen)
    ) -> Turn:
        """Run code in a state, and say what came of it and what the state is then.

        A function of its arguments but for the clock: the same code from the same state prints
        the same, also what it draws at random. To fork is to resume twice from one state.

        Args:
            code: statements; the value of a last expression is printed, as in a notebook.
            saved: the state, of an earlier turn; a fresh one where it is empty. Take it from
                nowhere else: the interpreter's process trusts what it is told here.
            limits: the most that it may use; those of a state's first turn go on to hold, and the
                least is what counts. There are no files.

        Raises:
            SandboxError: the interpreter's process could not be had, or the state is not one.
        """
        feed = _Feed(self._monty, _echoing(code), limits, saved=saved)
        await self._do(feed)
        return Turn(feed.status, feed.said(), feed.error, feed.saved)

    async def _do(self, feed: _Feed) -> None:
        limits = feed.limits
        session = self._pool.checkout(
            limits={
                "max_feed_duration_secs": limits.seconds,
                "max_total_sleep_secs": limits.seconds,
                "max_memory": limits.memory,
            },
            os_policy={"random_start": {"seed": 0}},
            assert_message_annotations=False,
        )
        async with self._slots:
            with anyio.move_on_after(limits.seconds + 2 * _GRACE):  # sleep has its own clock
                try:
                    await to_thread.run_sync(feed.run, session, abandon_on_cancel=True)
                except anyio.get_cancelled_exc_class():
                    feed.kill()
                    raise
                return
        feed.status = "timeout"


class _Feed:
    """One piece of code on its way through an interpreter."""

    def __init__(
        self, monty: ModuleType, code: str, limits: Limits, mount: Any = None, saved: bytes = b""
    ) -> None:
        self._monty, self._code, self._mount = monty, code, mount
        self.limits, self.saved = limits, saved
        self.status: Ending = "exited"
        self.error = ""
        self.seconds = 0.0
        self._said: list[tuple[str, str]] = []
        self._left = limits.output
        self._pid: int | None = None
        self._given_up = False

    def said(self, stream: str = "") -> str:
        """What was printed on a stream, or on both."""
        return "".join(text for where, text in self._said if not stream or where == stream)

    def kill(self) -> None:
        """End it from outside: nobody waits any more."""
        self._given_up = True
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)

    def run(self, session: Any) -> None:
        """Run it, in a thread."""
        try:
            with session:
                self._pid = session.worker_pid
                if not self._given_up:
                    self._run(session)
        except (self._monty.MontyError, OSError, RuntimeError) as error:
            if not self._given_up:
                raise SandboxError(f"monty has lost its interpreter: {error}") from error

    def _run(self, session: Any) -> None:
        if self.saved:
            session.load_session(self.saved)
        begun = time.perf_counter()
        where = {"mount": self._mount, "cwd": _WORK} if self._mount else {}
        try:
            session.feed_run(self._code, print_callback=self._print, **where)
        except self._monty.MontyCrashedError as error:
            self.status = "timeout" if error.timed_out else "killed"
        except self._monty.MontyError as error:
            self.status = self._ending(error)
            self.error = f"{_traceback(error)}\n" if self.status == "exited" else ""
        self.seconds = time.perf_counter() - begun
        if self.status == "exited":
            self.saved = session.dump()

    def _print(self, stream: str, text: str) -> None:
        self._said.append((stream, text.encode()[: self._left].decode(errors="ignore")))
        self._left -= len(text.encode())
        if self._left < 0:
            raise OverflowError

    def _ending(self, error: Any) -> Ending:
        if self._left < 0:
            return "output"
        reason = error.exception()
        if "limit exceeded" in str(reason):  # a program that says so itself is taken at its word
            if isinstance(reason, TimeoutError):
                return "timeout"
            if isinstance(reason, MemoryError):
                return "memory"
        return "exited"


def _traceback(error: Any) -> str:
    return error.display() if hasattr(error, "traceback") else str(error)


def _echoing(code: str) -> str:
    """The code, with the value of a last expression printed.

    Done to the text, so that no value ever leaves the interpreter: turning one into an object of
    this process would take memory here that nobody limits.
    """
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return code  # the interpreter says what is wrong with it
    last = body[-1] if body else None
    if not isinstance(last, ast.Expr) or last.end_lineno is None or last.end_col_offset is None:
        return f"{code}\nNone"
    # Line ends as Python's parser counts them, columns in bytes as it does too.
    lines = [line.encode() for line in io.StringIO(code, newline=None)]
    begin = sum(map(len, lines[: last.lineno - 1])) + last.col_offset
    end = sum(map(len, lines[: last.end_lineno - 1])) + last.end_col_offset
    text = b"".join(lines)
    before, value = text[:begin].decode(), text[begin:end].decode()
    return f"{before}_ = ({value}\n)\nif _ is not None:\n    print(repr(_))\nNone"


def _fill(folder: Path, files: Files) -> None:
    for name, content in files.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)


def _kept(folder: Path, limits: Limits) -> dict[str, bytes]:
    """What is there afterwards; the interpreter makes no links."""
    found: dict[str, bytes] = {}
    left = limits.disk
    for place in sorted(folder.rglob("*"))[: limits.entries]:
        if (
            place.is_file()
            and not place.is_symlink()
            and (left := left - place.stat().st_size) >= 0
        ):
            found[place.relative_to(folder).as_posix()] = place.read_bytes()
    return found
