"""Containers of Docker or Podman, with the runtime of one's choice."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

import anyio
from anyio.abc import ByteReceiveStream, Process
from anyio.streams.buffered import BufferedByteReceiveStream
from pydantic import Field

from branchwise.core.config import Config
from branchwise.core.errors import SandboxError, SpecError
from branchwise.sandbox import cgroup, warden
from branchwise.sandbox.order import check
from branchwise.sandbox.ran import Ending, Files, Limits, Ran, Running

_LABEL = "branchwise.sandbox"
_BESIDES = 32 << 20  # bytes of memory for the warden
_START = 60.0  # seconds that an engine may take around the program's own
_ENGINE_FAILED = 125
_KILLED = 128 + signal.SIGKILL


class Container(Config):
    """Runs each program in a fresh container: one image, no network, one writable place.

    How strong the walls are is the runtime's matter. The engines' own ones share the kernel with
    the programs, as `Bubblewrap` does; gVisor (`runsc`) puts a kernel of its own in between, Kata a
    virtual machine.

    Args:
        image: what is in the container; it needs Python 3.8 or newer, and is not fetched.
        engine: `docker`, `podman` or a path of one of them.
        runtime: the engine's name of the runtime; its default where this is empty.
        python: the interpreter in the image.
        user: whom programs run as, in numbers.
        options: more arguments for the engine's `run`.
        workers: how many programs run at one time; others wait.

    Raises:
        SpecError: when opened, where the engine or the image is missing or no program runs.

    Source: https://docs.docker.com/engine/security/

    Example:
        >>> Container(image="python:3.13-slim", runtime="runsc").engine
        'docker'
    """

    kind: Literal["container"] = "container"
    image: str
    engine: str = "docker"
    runtime: str = ""
    python: str = "python3"
    user: str = Field(default="65534:65534", pattern=r"^\d+:\d+$")
    options: tuple[str, ...] = ()
    workers: int = Field(default=8, ge=1)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncGenerator[Containers]:
        """The sandbox, ready to run programs; none of its containers is left when it ends.

        What dead processes of this machine have left behind is removed first.
        """
        if not (engine := shutil.which(self.engine)):
            raise SpecError(f"there is no {self.engine!r} on the path", hint="install it")
        containers = Containers(self, engine)
        try:
            await containers.call("image", "inspect", self.image)
            await containers.sweep()
            ran = await containers.run({}, ["python", "-c", "print(1)"])
        except SandboxError as error:
            raise SpecError(
                f"no container can be had here: {error.message}",
                hint=f"`{self.engine} run {self.image} {self.python} -V` has to work",
            ) from error
        if not ran.ok:
            raise SpecError(f"Python does not start in a container: {ran}")
        try:
            yield containers
        finally:
            with anyio.CancelScope(shield=True), contextlib.suppress(SandboxError):
                await containers.sweep(own=True)

    def command(self, name: str, mode: Literal["run", "start"], limits: Limits) -> list[str]:
        """The arguments of the engine that make a container of this name.

        Files count as memory, for they are in it.
        """
        memory = str(limits.memory + limits.output + _BESIDES)
        room = f"size={limits.disk}"
        podman = "podman" in Path(self.engine).name
        if not podman:  # which does not take it: there memory alone bounds the number of files
            room += f",nr_inodes={limits.entries + 2}"
        return [
            *("run", "--rm", "--interactive", "--pull", "never", "--log-driver", "none"),
            *("--name", name, "--label", _LABEL, "--hostname", "sandbox"),
            *("--network", "none", "--ipc", "private", "--shm-size", "1m"),
            *("--read-only", *(("--read-only-tmpfs=false",) if podman else ())),
            *("--tmpfs", f"{warden.ROOM}:rw,exec,nosuid,nodev,mode=1777,{room}"),
            *("--memory", memory, "--memory-swap", memory),
            *("--pids-limit", str(limits.processes + 1)),
            *("--ulimit", "core=0:0", "--ulimit", "nofile=1024:1024"),
            *("--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--user", self.user),
            *("--workdir", "/", "--stop-timeout", "0", "--no-healthcheck"),
            *(("--runtime", self.runtime) if self.runtime else ()),
            *self.options,
            *("--entrypoint", self.python, self.image),
            *("-I", "-S", "-c", _SOURCE, mode),
        ]


_SOURCE = Path(warden.__file__).read_text(encoding="utf-8")


class Containers:
    """What `Container` opens.

    Args:
        spec: the image, the engine and what else there is to say about them.
        engine: the engine's path.
    """

    def __init__(self, spec: Container, engine: str) -> None:
        self._spec, self._engine = spec, engine
        self._slots = anyio.CapacityLimiter(spec.workers)

    async def call(self, *args: str) -> str:
        """What the engine says to a command.

        Raises:
            SandboxError: it fails or takes a minute.
        """
        try:
            with anyio.fail_after(_START):
                done = await anyio.run_process([self._engine, *args], check=False)
        except (OSError, TimeoutError) as error:
            raise SandboxError(f"{self._spec.engine} does not answer: {error}") from error
        if done.returncode:
            raise SandboxError(_last_line(done.stderr) or f"{self._spec.engine} fails")
        return done.stdout.decode(errors="replace")

    async def sweep(self, *, own: bool = False) -> None:
        """Remove what dead processes have left behind, or what this one has."""
        names = await self.call(
            "ps", "--all", "--filter", f"label={_LABEL}", "--format", "{{.Names}}"
        )
        place, pid, begun = _owner().split("-")
        for name in names.split():
            parts = name.split("-")
            if len(parts) != _PARTS or parts[1] != place:
                continue
            gone = parts[2:4] != [pid, begun] and cgroup.begun(parts[2]) != parts[3]
            if gone or (own and parts[2:4] == [pid, begun]):
                with contextlib.suppress(SandboxError):
                    await self.call("rm", "--force", name)

    async def run(
        self,
        files: Files,
        argv: Sequence[str],
        limits: Limits = Limits(),  # noqa: B008  (frozen)
        *,
        stdin: bytes = b"",
        keep: bool = False,
    ) -> Ran:
        """Run a program to its end in a fresh container; see `Sandbox.run`."""
        check(files, argv, limits)
        order = _order(files, argv, limits, stdin=stdin, keep=keep)
        async with self._slots, self._started("run", limits) as process:
            assert process.stdout
            assert process.stderr
            code = 0
            out, err = bytearray(), bytearray()
            with anyio.move_on_after(limits.seconds + _START) as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(_told, process, order)
                    most = limits.output + limits.disk + 8 * warden.NAMES
                    group.start_soon(_heard, process.stdout, out, most)
                    group.start_soon(_heard, process.stderr, err, 1 << 16)
                    code = await process.wait()
            if scope.cancelled_caught:
                return Ran("timeout", signal.SIGKILL, seconds=limits.seconds)
        if code == _KILLED:  # from inside, the first process can only be ended for its memory
            return Ran("memory", signal.SIGKILL)
        if code or not out:
            raise SandboxError(_last_line(err) or f"a container ended with status {code}")
        return _report(bytes(out), limits)

    @contextlib.asynccontextmanager
    async def start(
        self,
        files: Files,
        argv: Sequence[str],
        limits: Limits = Limits(),  # noqa: B008  (frozen)
    ) -> AsyncGenerator[Running]:
        """Start a program to talk with, line by line; see `Sandbox.start`."""
        check(files, argv, limits)
        async with self._slots, self._started("start", limits) as process:
            assert process.stderr
            async with anyio.create_task_group() as group:
                group.start_soon(_heard, process.stderr, bytearray(), 1 << 16)
                await _told(process, _order(files, argv, limits), close=False)
                try:
                    yield _Talk(process, limits.output)
                finally:
                    group.cancel_scope.cancel()

    @contextlib.asynccontextmanager
    async def _started(
        self, mode: Literal["run", "start"], limits: Limits
    ) -> AsyncGenerator[Process]:
        """A container's process on this side; the container is gone when the block ends."""
        name = f"branchwise-{_owner()}-{secrets.token_hex(4)}"
        command = [self._engine, *self._spec.command(name, mode, limits)]
        try:
            process = await anyio.open_process(command, stdin=subprocess.PIPE)
        except OSError as error:
            raise SandboxError(f"{self._spec.engine} does not start: {error}") from error
        try:
            yield process
        finally:
            with anyio.CancelScope(shield=True):
                if process.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        process.kill()
                    with contextlib.suppress(SandboxError):
                        await self.call("rm", "--force", name)
                await process.aclose()


class _Talk:
    """A program that one talks with through the engine's process."""

    def __init__(self, process: Process, longest: int) -> None:
        assert process.stdin
        assert process.stdout
        self._input, self._longest = process.stdin, longest
        self._output = BufferedByteReceiveStream(process.stdout)

    async def send(self, line: bytes) -> None:
        try:
            await self._input.send(line + b"\n")
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise SandboxError("the program has ended") from error

    async def receive(self, seconds: float) -> bytes:
        with anyio.fail_after(seconds):
            try:
                return await self._output.receive_until(b"\n", self._longest)
            except anyio.DelimiterNotFound as error:
                raise SandboxError(
                    f"the program's line is longer than {self._longest} bytes"
                ) from error
            except (anyio.IncompleteRead, anyio.EndOfStream, anyio.BrokenResourceError) as error:
                raise SandboxError("the program has ended") from error


_PARTS = 5  # of a container's name


def _owner() -> str:
    """This process, so that another on the same machine can tell whether it still lives.

    The machine's part is of its boot and its numbering of processes: one engine may serve several
    containers, whose processes cannot see one another. Without /proc nobody is ever held for dead,
    and containers end when their time is over.
    """
    return f"{_machine()}-{os.getpid()}-{cgroup.begun('self') or 0}"


@functools.cache
def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        machine = f"{boot}{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        machine = secrets.token_hex(8)
    return hashlib.sha256(machine.encode()).hexdigest()[:12]


def _order(
    files: Files, argv: Sequence[str], limits: Limits, *, stdin: bytes = b"", keep: bool = False
) -> bytes:
    order: warden.Order = {
        "argv": list(argv),
        "files": {name: base64.b64encode(content).decode() for name, content in files.items()},
        "stdin": base64.b64encode(stdin).decode(),
        "seconds": limits.seconds,
        "output": limits.output,
        "disk": limits.disk,
        "keep": keep,
    }
    body = json.dumps(order).encode()
    return len(body).to_bytes(8, "big") + body


async def _told(process: Process, order: bytes, *, close: bool = True) -> None:
    assert process.stdin
    with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        await process.stdin.send(order)
        if close:
            await process.stdin.aclose()


async def _heard(stream: ByteReceiveStream, into: bytearray, most: int) -> None:
    """Read to the end, and keep so much of it."""
    with contextlib.suppress(anyio.BrokenResourceError):
        async for part in stream:
            into += part[: most - len(into)]


def _last_line(text: bytes | bytearray) -> str:
    lines = text.decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _report(data: bytes, limits: Limits) -> Ran:
    """What a container says of its program: nothing in it is believed before it is looked at."""
    head, _, rest = data.partition(b"\n")
    try:
        said = json.loads(head)
        why, status = str(said["why"]), int(said["status"])
        seconds, peak = float(said["seconds"]), int(said["peak"])
        sizes = [int(said["stdout"]), int(said["stderr"])]
        names = [str(name) for name, _ in said["files"]]
        sizes += [int(size) for _, size in said["files"]]
        code = os.waitstatus_to_exitcode(status)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise SandboxError("a container's report cannot be read") from error
    parts: list[bytes] = []
    for size in sizes:
        if size < 0 or size > len(rest):
            raise SandboxError("a container's report is cut")
        parts.append(rest[:size])
        rest = rest[size:]
    if any(
        PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts for name in names
    ):
        raise SandboxError("a container's report names a file outside its folder")
    known: dict[str, Ending] = {"timeout": "timeout", "memory": "memory", "output": "output"}
    ending: Ending = known.get(why, "killed" if code < 0 else "exited")
    stdout = parts[0][: limits.output]
    return Ran(
        ending,
        abs(code),
        stdout,
        parts[1][: limits.output - len(stdout)],
        seconds,
        peak,
        dict(zip(names, parts[2:], strict=True)),
    )
