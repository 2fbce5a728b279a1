"""Programs without walls: a plain process in a temporary folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Literal

import anyio
from pydantic import Field

from branchwise.core.config import Config
from branchwise.core.errors import SandboxError, SpecError
from branchwise.sandbox.beside import beside
from branchwise.sandbox.order import check
from branchwise.sandbox.ran import Ending, Files, Limits, Ran, Running
from branchwise.sandbox.streams import Streams, Talk

_LIMITED = """
import os, resource as r, sys
memory, disk, seconds = map(int, sys.argv[1:4])
for which, most in ((r.RLIMIT_AS, memory), (r.RLIMIT_FSIZE, disk), (r.RLIMIT_CPU, seconds),
                    (r.RLIMIT_CORE, 0)):
    hard = r.getrlimit(which)[1]
    most = most if hard == r.RLIM_INFINITY else min(most, hard)
    r.setrlimit(which, (most, most))
try:
    os.execvp(sys.argv[4], sys.argv[4:])
except OSError as error:
    print(f"{sys.argv[4]}: {error.strerror}", file=sys.stderr)
    sys.exit(127 if isinstance(error, FileNotFoundError) else 126)
"""


class Unconfined(Config):
    """Runs programs as plain processes: NO WALLS, they may do all that you may do.

    A program can read your files, use the network, and start processes that outlive it. What holds
    is the wall clock for the processes that stay in its session, the output, the address space and
    the size of each file, a temporary folder, and an environment without your variables. For code
    that you have read, and for systems without namespaces.

    Each run has a folder of another name. In what a program says, that name is `.`, so that equal
    runs say the same; in the files that it writes the name is what it is.

    Args:
        workers: how many programs run at one time; others wait.

    Example:
        >>> Unconfined(workers=2).kind
        'none-i-accept-the-risk'
    """

    kind: Literal["none-i-accept-the-risk"] = "none-i-accept-the-risk"
    workers: int = Field(default=8, ge=1)

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Plain]:
        """What runs programs as plain processes.

        Raises:
            SpecError: the system is not Linux.
        """
        if not hasattr(os, "pidfd_open"):
            raise SpecError("programs run on Linux only")
        yield Plain(self.workers)


class Plain:
    """What `Unconfined` opens.

    Args:
        workers: how many programs run at one time.
    """

    def __init__(self, workers: int) -> None:
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
        """Run a program to its end in a folder of its own; see `Sandbox.run`."""
        check(files, argv, limits)
        async with self._free:
            with _folder(files) as folder, Streams(limits.output) as streams:
                begun = time.perf_counter()
                late = stopped = False

                def stop() -> None:
                    nonlocal stopped
                    stopped = True
                    _kill(process)

                async def ended() -> None:
                    nonlocal late
                    with anyio.move_on_after(limits.seconds) as scope:
                        await _gone(process)
                    late = scope.cancelled_caught
                    _kill(process)
                    await _gone(process)

                process = _started(argv, limits, folder, streams, {})
                try:
                    await streams.exchange(stdin, ended, stop)
                finally:
                    code = _buried(process)
                seconds = time.perf_counter() - begun
                out, err = (_here(folder, text) for text in streams.taken())
                ending: Ending = "killed" if code < 0 else "exited"
                if stopped or streams.full:
                    ending = "output"
                elif late:
                    ending = "timeout"
                kept = _kept(folder, limits) if keep else {}
                return Ran(ending, abs(code), out, err, seconds, files=kept)

    @asynccontextmanager
    async def start(
        self,
        files: Files,
        argv: Sequence[str],
        limits: Limits = Limits(),  # noqa: B008  (frozen)
    ) -> AsyncGenerator[Running]:
        """Start a program to talk with, line by line; see `Sandbox.start`."""
        check(files, argv, limits)
        async with self._free:
            with _folder(files) as folder, Streams() as streams:
                talk = _Talk(streams, limits.output, folder)
                process = _started(argv, limits, folder, streams, {"PYTHONUNBUFFERED": "1"})

                async def bound() -> None:
                    await anyio.sleep(limits.seconds)
                    _kill(process)

                try:
                    async with beside(bound, talk.discard_errors):
                        yield talk
                finally:
                    _buried(process)


class _Talk(Talk):
    """Talk with a program whose folder is not told."""

    def __init__(self, streams: Streams, longest: int, folder: Path) -> None:
        super().__init__(streams, longest)
        self._folder = folder

    async def receive(self, seconds: float) -> bytes:
        return _here(self._folder, await super().receive(seconds))


def _here(folder: Path, text: bytes) -> bytes:
    """A text in which the folder has a name that is the same in each run, and is right there."""
    return text.replace(bytes(folder), b".")


@contextmanager
def _folder(files: Files) -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="branchwise-", ignore_cleanup_errors=True) as made:
        name = os.path.realpath(made)  # as programs see it
        for path, content in files.items():
            place = Path(name, path)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        yield Path(name)


def _started(
    argv: Sequence[str], limits: Limits, folder: Path, streams: Streams, env: dict[str, str]
) -> subprocess.Popen[bytes]:
    first, *rest = argv
    if first in {"python", "python3"}:
        first = sys.executable
    bounds = (limits.memory, limits.disk, int(limits.seconds) + 2)
    try:
        process = subprocess.Popen(  # noqa: S603  (no walls: the class says so)
            [sys.executable, "-I", "-S", "-B", "-c", _LIMITED, *map(str, bounds), first, *rest],
            stdin=streams.theirs[0],
            stdout=streams.theirs[1],
            stderr=streams.theirs[2],
            cwd=folder,
            env={
                "PATH": os.environ.get("PATH", os.defpath),
                "HOME": str(folder),
                "TMPDIR": str(folder),
                "LANG": "C.UTF-8",
                "PYTHONHASHSEED": "0",
                "PYTHONDONTWRITEBYTECODE": "1",
                **env,
            },
            start_new_session=True,
        )
    except OSError as error:
        raise SandboxError(f"a process could not be started: {error}") from error
    streams.close(*streams.theirs)
    return process


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill all of the program's session; the program itself is not waited for before this."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


async def _gone(process: subprocess.Popen[bytes]) -> None:
    pidfd = os.pidfd_open(process.pid)
    try:
        await anyio.wait_readable(pidfd)
    finally:
        os.close(pidfd)


def _buried(process: subprocess.Popen[bytes]) -> int:
    """The exit status, negative for a signal, after all is killed."""
    _kill(process)
    return process.wait()


def _kept(folder: Path, limits: Limits) -> Files:
    from branchwise.sandbox.launcher import Keeper  # noqa: PLC0415  (Linux)

    keeper = Keeper(limits.disk)
    inside = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        keeper.read(inside)
    finally:
        os.close(inside)
    return {os.fsdecode(path): content for path, content in keeper.files}
