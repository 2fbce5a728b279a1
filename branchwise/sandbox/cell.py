"""One sandbox for one program: built by `bwrap`, its launcher waiting inside."""

from __future__ import annotations

import marshal
import os
import platform
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from branchwise.core.errors import SandboxError, SpecError
from branchwise.sandbox import launcher, seccomp
from branchwise.sandbox.beside import beside
from branchwise.sandbox.cgroup import Group, Groups
from branchwise.sandbox.ran import Ending, Files, Limits, Ran, Running
from branchwise.sandbox.streams import CHUNK, Streams, Talk

LINKS = "/python"
GRACE = 5.0
LOOK = 0.1
ROOM = 4 << 20
SIGKILL, SIGSYS = 9, 31
START = "import marshal, sys; exec(marshal.load(open(int(sys.argv[1]), 'rb', 0, closefd=False)))"
CREDENTIALS = struct.Struct("=iII")
ALL_USERS = 2**32 - 1
FIRST_USER, USERS = 0x70000000, 0x0F000000
HINT = "install bubblewrap, such as `apt install bubblewrap`, on Linux"


@dataclass(frozen=True, slots=True)
class Plan:
    """How a sandbox is built on this machine.

    Args:
        command: `bwrap` and its arguments, up to the launcher's.
        python: the interpreter that programs have.
        path: the folder that has it under the name `python`.
        root: whether the walls are built by root, who then gives each program a user of its own.
        filter: the filter of system calls.
        groups: the control groups; None where none may be made.
        launcher: what runs inside, compiled: its interpreter is ours.
    """

    command: tuple[str, ...]
    python: str
    path: str
    root: bool
    filter: bytes
    groups: Groups | None
    launcher: bytes

    @classmethod
    async def probed(cls, *, packages: bool) -> Plan:
        """The plan, after a program has run by it.

        Raises:
            SpecError: no sandbox can be had here.
        """
        if not (binary := shutil.which("bwrap")):
            raise SpecError("there is no `bwrap` on the path", hint=HINT)
        prefixes = (sys.base_prefix, *([sys.prefix] if packages else []))
        if hidden := [path for path in prefixes if Path(path).is_relative_to(launcher.ROOM)]:
            raise SpecError(
                f"Python is in {hidden[0]}, and programs have a {launcher.ROOM} of their own",
                hint="use an interpreter, or a virtual environment, that lies elsewhere",
            )
        root = os.geteuid() == 0 and _users() == ALL_USERS
        plan = cls(
            command=(binary, *_walls(root=root, packages=packages)),
            python=sys.executable if packages else _interpreter(),
            path=str(Path(sys.executable).parent) if packages else LINKS,
            root=root,
            filter=seccomp.program(platform.machine()),
            groups=Groups.found(),
            launcher=_compiled(Path(launcher.__file__)),
        )
        try:
            await plan._tried()
        except BaseException:
            plan.close()
            raise
        return plan

    def close(self) -> None:
        """Remove what is left of the control groups."""
        if self.groups:
            self.groups.close()

    async def _tried(self) -> None:
        try:
            cell = await Cell.built(self)
            try:
                ran = await cell.run({}, ["python", "-c", "print(1)"], Limits())
            finally:
                await cell.close()
        except SandboxError as error:
            raise SpecError(f"bubblewrap does not work here: {error.message}", hint=HINT) from error
        if not ran.ok:
            raise SpecError(f"Python does not start in a sandbox: {ran}", hint=HINT)


def _users() -> int:
    """How many users there are from here on: all of them where this is no user namespace."""
    try:
        return int(Path("/proc/self/uid_map").read_text().split()[2])
    except (OSError, IndexError):
        return 0


def _interpreter() -> str:
    name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for place in (Path(sys.base_exec_prefix) / "bin" / name, Path(sys.executable)):
        if place.exists():
            return os.path.realpath(place)
    raise SpecError("the interpreter's own file cannot be found")


def _compiled(script: Path) -> bytes:
    return marshal.dumps(compile(script.read_bytes(), script.name, "exec"))


def _walls(*, root: bool, packages: bool) -> list[str]:
    """The arguments of `bwrap`, up to the command."""
    args = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    args += ["--unshare-cgroup-try", "--die-with-parent", "--new-session", "--as-pid-1"]
    args += ["--clearenv", "--hostname", "sandbox"]
    args += [*_system(), *_python(packages=packages), "--proc", "/proc", "--dir", "/dev"]
    for name in ("null", "zero", "full", "random", "urandom"):
        args += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    args += ["--symlink", "/proc/self/fd", "/dev/fd", "--symlink", launcher.ROOM, "/dev/shm"]  # noqa: S108  (inside)
    args += ["--dir", launcher.ROOM, "--remount-ro", "/"]
    # Root needs no namespace of users: it gives each program a user of its own.
    args += ["--cap-drop", "ALL"] if root else ["--unshare-user"]
    for right in ("SYS_ADMIN", "SETPCAP", *(("SETUID", "SETGID") if root else ())):
        args += ["--cap-add", f"CAP_{right}"]
    return [*args, "--chdir", "/", "--", _interpreter(), "-I", "-S", "-B", "-c", START]


def _system() -> list[str]:
    """/usr, what points into it, and what its loader reads."""
    args = ["--ro-bind", "/usr", "/usr", "--dir", "/etc"]
    for place in map(Path, ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")):
        if place.is_symlink():
            args += ["--symlink", str(place.readlink()), str(place)]
        elif place.exists():
            args += ["--ro-bind", str(place), str(place)]
    for name in ("ld.so.cache", "alternatives"):
        args += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    return args


def _python(*, packages: bool) -> list[str]:
    """The interpreter with its library; with the packages beside it, or with an empty place."""
    args: list[str] = []
    places = [sys.base_prefix, sys.base_exec_prefix, *([sys.prefix] if packages else [])]
    # A prefix may be a link: paths in it are named both ways.
    both = [path for place in places for path in (Path(place).absolute(), Path(place).resolve())]
    for prefix in dict.fromkeys(both):
        if not prefix.is_relative_to("/usr"):
            # Folders that bwrap makes on its own are for their owner alone.
            for folder in [*reversed(prefix.parents)][1:]:
                args += ["--dir", str(folder)]
            args += ["--ro-bind", str(prefix), str(prefix)]
    if not packages:
        args += ["--dir", LINKS]
        for name in ("python", "python3"):
            args += ["--symlink", _interpreter(), f"{LINKS}/{name}"]
        variables = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
        schemes = [sysconfig.get_path(name, vars=variables) for name in ("purelib", "platlib")]
        for site in dict.fromkeys(Path(scheme).resolve() for scheme in schemes):
            if site.is_dir():
                args += ["--tmpfs", str(site), "--remount-ro", str(site)]
    return args


@dataclass(frozen=True, slots=True)
class Report:
    """What a launcher says at the end.

    Args:
        why: what ended the program, where it did not end on its own, or what went wrong before.
        status: its wait status.
        peak: the most memory that was seen, in bytes.
        files: the files in its folder.
    """

    why: str
    status: int = SIGKILL
    peak: int = 0
    files: Files = field(default_factory=dict[str, bytes])


class Cell:
    """A sandbox that waits for its program.

    Args:
        plan: how it is built.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._group: Group | None = None
        self._first: int | None = None
        self._streams = Streams()
        self._line, theirs = socket.socketpair()
        self._line.setblocking(False)
        # The kernel then says who sends, with the number that the process has out here.
        self._line.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        inherited = theirs.fileno()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603  (bwrap)
                [*plan.command, str(inherited)],
                stdin=self._streams.theirs[0],
                stdout=self._streams.theirs[1],
                stderr=self._streams.theirs[2],
                pass_fds=(inherited,),
                env={},
            )
        self._streams.close(*self._streams.theirs)

    @classmethod
    async def built(cls, plan: Plan) -> Cell:
        """A cell whose launcher waits.

        Raises:
            SandboxError: it could not be built.
        """
        cell = cls(plan)
        try:
            with anyio.fail_after(30):
                await cell._send(plan.launcher)
                await cell._grouped()
        except BaseException as error:
            await cell.close()
            if isinstance(error, SandboxError | TimeoutError | OSError):
                text = cell._streams.err.decode(errors="replace").strip()
                raise SandboxError(text or f"a sandbox did not start: {error}") from error
            raise
        return cell

    @property
    def alive(self) -> bool:
        """Whether it still waits."""
        return self._process.poll() is None

    async def close(self) -> None:
        """Kill everything in it and free it."""
        with anyio.CancelScope(shield=True):
            await self._buried()
            if self._group:
                await self._group.close()
        with suppress(BlockingIOError):
            self._streams.err += os.read(self._streams.stderr, CHUNK)
        self._line.close()
        self._streams.close(self._streams.stdin, self._streams.stdout, self._streams.stderr)

    async def run(
        self,
        files: Files,
        argv: Sequence[str],
        limits: Limits,
        *,
        stdin: bytes = b"",
        keep: bool = False,
    ) -> Ran:
        """Run the program to its end: once."""
        begun = time.perf_counter()
        self._streams.limit = limits.output
        order = self._order(files, argv, limits, {}, keep=keep)

        async def ended() -> Report:
            await self._send(order)
            with anyio.move_on_after(limits.seconds + GRACE):
                async with beside(self._look):
                    return await self._report(limits)
            return Report("timeout")

        try:
            report = await self._streams.exchange(stdin, ended, self._stop)
        except SandboxError:
            if not (self._group and self._group.out_of_memory):
                raise
            report = Report("memory")
        seconds = time.perf_counter() - begun
        peak = (self._group and self._group.peak) or report.peak
        ending, code = self._ending(report)
        return Ran(ending, code, *self._streams.taken(), seconds, peak, report.files)

    def _ending(self, report: Report) -> tuple[Ending, int]:
        """How the run ended, and its code."""
        code = os.waitstatus_to_exitcode(report.status)
        ending: Ending = "killed" if code < 0 else "exited"
        if self._group and self._group.out_of_memory:
            ending = "memory"
        elif self._streams.full:
            ending = "output"
        elif report.why in {"timeout", "memory"}:
            ending = "timeout" if report.why == "timeout" else "memory"
        elif report.why:
            raise SandboxError(f"a sandbox could not be furnished: {report.why}")
        elif code == -SIGSYS:
            ending = "denied"
        return ending, abs(code)

    def _stop(self) -> None:
        """Have the launcher end the program and report."""
        with suppress(OSError):
            self._line.send(launcher.STOP)

    async def _look(self) -> None:
        """Stop where the kernel has killed for want of memory: the program may not notice."""
        while self._group:
            await anyio.sleep(LOOK)
            if self._group.out_of_memory:
                self._stop()
                return

    @asynccontextmanager
    async def talk(
        self, files: Files, argv: Sequence[str], limits: Limits
    ) -> AsyncGenerator[Running]:
        """Start the program and talk with it."""
        talk = Talk(self._streams, limits.output)
        env = {"PYTHONUNBUFFERED": "1"}
        await self._send(self._order(files, argv, limits, env, keep=False))

        async def bound() -> None:
            await anyio.sleep(limits.seconds + GRACE)
            self._process.kill()

        async with beside(bound, talk.discard_errors):
            yield talk

    def _order(
        self, files: Files, argv: Sequence[str], limits: Limits, env: dict[str, str], *, keep: bool
    ) -> bytes:
        if self._group:
            # The launcher is one of the processes.
            self._group.limit(limits.memory, limits.processes + 1)
        first, *rest = argv
        if first in {"python", "python3"}:
            first = self._plan.python
        order: launcher.Order = {
            "argv": [first, *rest],
            "env": {
                "PATH": f"{self._plan.path}:/usr/local/bin:/usr/bin:/bin",
                "HOME": launcher.WORK,
                "TMPDIR": launcher.ROOM,
                "LANG": "C.UTF-8",
                "PYTHONHASHSEED": "0",
                "PYTHONDONTWRITEBYTECODE": "1",
                "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
                **env,
            },
            "files": dict(files),
            "uid": FIRST_USER + secrets.randbelow(USERS) if self._plan.root else os.geteuid(),
            "seconds": limits.seconds,
            "memory": limits.memory,
            "address": 0 if self._group else 2 * limits.memory + (256 << 20),
            "watched": not self._group,
            "processes": limits.processes,
            "disk": limits.disk,
            "entries": limits.entries,
            "keep": keep,
            "filter": self._plan.filter,
        }
        body = marshal.dumps(dict(order))
        return len(body).to_bytes(8, "big") + body

    async def _grouped(self) -> None:
        """Wait for the launcher and put it into a group, before it has any child."""
        await anyio.wait_readable(self._line)
        _, credentials, _, _ = self._line.recvmsg(1, socket.CMSG_SPACE(CREDENTIALS.size))
        if not credentials or (pid := CREDENTIALS.unpack(credentials[0][2])[0]) == 0:
            raise SandboxError("a sandbox has died")
        self._first = os.pidfd_open(pid)
        if self._plan.groups:
            self._group = self._plan.groups.made()
            self._group.add(pid)

    async def _report(self, limits: Limits) -> Report:
        size = int.from_bytes(await self._received(8), "big")
        if size > limits.disk + ROOM + 12 * limits.entries:
            raise SandboxError(f"a sandbox reports {size} bytes, more than it may")
        body = await self._received(size)
        head, _, rest = body.partition(b"\n")
        status, peak, count, why = head.decode(errors="replace").split(" ", 3)
        files: dict[str, bytes] = {}
        at = 0
        for _ in range(int(count)):
            name, size = (
                int.from_bytes(rest[at : at + 4], "big"),
                int.from_bytes(rest[at + 4 : at + 12], "big"),
            )
            path = at + 12
            at = path + name + size
            files[os.fsdecode(rest[path : path + name])] = rest[path + name : at]
        return Report(why, int(status), int(peak), files)

    async def _send(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            try:
                left = left[self._line.send(left) :]
            except BlockingIOError:
                await anyio.wait_writable(self._line)
            except OSError as error:
                raise SandboxError("a sandbox has died before its program") from error

    async def _received(self, size: int) -> bytes:
        got = bytearray()
        while len(got) < size:
            await anyio.wait_readable(self._line)
            try:
                part = self._line.recv(min(size - len(got), 1 << 20))
            except BlockingIOError:
                continue
            except OSError:
                part = b""
            if not part:
                raise SandboxError("a sandbox has died")
            got += part
        return bytes(got)

    async def _buried(self) -> None:
        """End the launcher, with it everything inside, then `bwrap`, which has buried it."""
        if self._first is None:
            # `bwrap` that is killed between its steps leaves a child that waits for it for ever:
            # it builds to the end instead, and the launcher finds nobody on the line.
            self._line.close()
            with anyio.move_on_after(GRACE):
                await self._over()
            self._process.kill()
        else:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._first, signal.SIGKILL)
            await anyio.wait_readable(self._first)
            os.close(self._first)
            self._first = None
        await self._over()

    async def _over(self) -> None:
        """Wait for `bwrap` to end."""
        if self._process.poll() is None:
            pidfd = os.pidfd_open(self._process.pid)
            try:
                await anyio.wait_readable(pidfd)
            finally:
                os.close(pidfd)
            self._process.wait()
