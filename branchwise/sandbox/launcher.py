# pathlib and contextlib cost more than the rest of it.
# ruff: noqa: PTH102, PTH103, PTH118, PTH120, PTH123, PTH208, SIM105
"""What waits inside a sandbox: builds the last walls, runs one program, says how it ended.

A script of its own, started by `bwrap` as the first process of a process namespace, with an
interpreter without site packages. It may mount until it has read its order. Then it gives away
every right, for good, before the program starts, so nobody gains by taking it over; and nobody
inside can kill it, since signals do not reach the first process of a namespace.

It imports nothing of the package, and of the library only what costs little: each run pays for it,
and `typing`, `signal` and `contextlib` together take longer than the interpreter itself.
"""

from __future__ import annotations

import ctypes
import errno
import marshal
import os
import resource
import select
import stat
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypedDict

    class Order(TypedDict):
        """What is to be run, and the most that it may use; see `Limits`."""

        argv: list[str]
        env: dict[str, str]
        files: dict[str, bytes]
        uid: int
        seconds: float
        memory: int
        address: int
        watched: bool  # no control group bounds the memory of its processes
        processes: int
        disk: int
        entries: int
        keep: bool
        filter: bytes


ROOM = "/tmp"  # noqa: S108  (a file system of this sandbox alone)
WORK = "/tmp/work"  # noqa: S108  (the same)
READY = b"+"
STOP = b"-"
TICK = 0.02
DEEPEST, NAMES = 64, 1 << 20
"""Folders within folders, and bytes of paths, that are kept; what is beyond is left out."""
FEW_SOCKETS, BUFFER = 64, 212_992
"""Sockets that are free, and what each further one may hold outside of any process."""
CONNECTIONS = ("tcp", "tcp6", "udp", "udp6")
"""The files that tell what sockets of the internet hold, which may be more."""
NO_NEW_PRIVS, SECCOMP, FILTER, DUMPABLE, DROP_BOUND, AMBIENT, CLEAR = 38, 22, 2, 4, 24, 47, 4
NOSUID_NODEV = 2 | 4
SIGINT, SIGKILL, SIGPIPE, SIGCHLD, SIGXFSZ = 2, 9, 13, 17, 25
BLOCK, UNBLOCK = 0, 1


class Filter(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))


LIBC = ctypes.CDLL(None, use_errno=True)
DEATHS = (ctypes.c_ulong * 16)(1 << (SIGCHLD - 1))
"""The set of signals that has the death of a child alone."""


def checked(what: str, result: int) -> None:
    """Raise an `OSError` where a call of the C library failed."""
    if result:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def control(number: int, first: object, second: object = 0) -> None:
    """`prctl`."""
    # Five arguments of full width: the kernel looks at all of them.
    given = [first if isinstance(first, ctypes.c_void_p) else ctypes.c_ulong(int(str(first)))]
    given += [second if isinstance(second, ctypes.c_void_p) else ctypes.c_ulong(int(str(second)))]
    zero = ctypes.c_ulong(0)
    checked(f"prctl {number}", LIBC.prctl(number, *given, zero, zero))


def received(line: int, size: int) -> bytes:
    """So many bytes of the parent's; it exits where the parent is gone."""
    parts: list[bytes] = []
    while size:
        if not (part := os.read(line, min(size, 1 << 20))):
            sys.exit(0)
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def send(line: int, data: bytes) -> None:
    """Write all of it."""
    view = memoryview(data)
    while view:
        view = view[os.write(line, view) :]


def furnish(order: Order) -> None:
    """Mount the room, within the order's bounds: one for /tmp and the program's folder."""
    # Two entries are the room and the folder.
    options = (
        f"size={order['disk']},nr_inodes={order['entries'] + 2},mode=700,"
        f"uid={order['uid']},gid={order['uid']}"
    )
    checked("mount", LIBC.mount(b"tmpfs", ROOM.encode(), b"tmpfs", NOSUID_NODEV, options.encode()))


def give_up(order: Order) -> None:
    """Become the user of this sandbox, without any right, for good."""
    try:
        for right in range(64):
            control(DROP_BOUND, right)
    except OSError:
        pass  # the first number that is no right, or rights that are gone already
    if os.getuid() != order["uid"]:
        os.setgroups([])
        os.setresgid(order["uid"], order["uid"], order["uid"])
        os.setresuid(order["uid"], order["uid"], order["uid"])
    # 1 keeps a crash from a core handler on the machine, which 0 does not: see core(5).
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    control(AMBIENT, CLEAR)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    checked("capset", LIBC.capset(header, (ctypes.c_uint32 * 6)()))
    control(NO_NEW_PRIVS, 1)
    # Same user, so only this keeps the program from reading and writing the launcher's memory.
    control(DUMPABLE, 0)
    code = order["filter"]
    buffer = ctypes.create_string_buffer(code, len(code))
    program = Filter(len(code) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    control(SECCOMP, FILTER, ctypes.cast(ctypes.pointer(program), ctypes.c_void_p))


def fill(files: dict[str, bytes]) -> None:
    """Write the files, as the sandbox's user."""
    os.mkdir(WORK, 0o700)
    for path, content in files.items():
        place = os.path.join(WORK, path)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(place, "wb") as file:
            file.write(content)


def limit(order: Order) -> None:
    """The limits of each process."""
    bounds = {
        resource.RLIMIT_AS: order["address"] or resource.RLIM_INFINITY,
        # The launcher is a process of the same user.
        resource.RLIMIT_NPROC: order["processes"] + 1,
        resource.RLIMIT_FSIZE: order["disk"],
        resource.RLIMIT_CPU: int(order["seconds"]) + 2,
        resource.RLIMIT_NOFILE: 256 if order["watched"] else 1024,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for which, most in bounds.items():
        _, hard = resource.getrlimit(which)
        low = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (low, low))


def become(order: Order) -> None:
    """Turn into the program; does not return."""
    code = 126
    try:
        # The interpreter ignores these two, and what is ignored stays so in the program.
        for number in (SIGPIPE, SIGXFSZ):
            LIBC.signal(number, None)
        LIBC.sigprocmask(UNBLOCK, DEATHS, None)
        os.setsid()
        os.chdir(WORK)
        limit(order)
        control(DUMPABLE, 1)  # or this file would be root's; nobody else is there yet to look
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # of all that the kernel may kill, the program, not the launcher
        os.execvpe(order["argv"][0], order["argv"], order["env"])  # noqa: S606  (that is its job)
    except OSError as error:
        code = 127 if error.errno == errno.ENOENT else 126
        text = f"{order['argv'][0]}: {error.strerror}\n"
        os.write(2, text.encode(errors="surrogateescape"))
    finally:
        os._exit(code)


def used(name: str, start: str, column: int, unit: int) -> int:
    """The memory of all other processes, in bytes, from a line of a file that each has in /proc."""
    total = 0
    for number in os.listdir("/proc"):
        if not number.isdigit() or number == "1":
            continue
        try:
            with open(f"/proc/{number}/{name}") as file:
                for line in file:
                    if line.startswith(start):
                        total += int(line.split()[column]) * unit
                        break
        except OSError:
            pass  # it has ended meanwhile
    return total


def sockets() -> int:
    """What sockets may hold in memory that belongs to no process."""
    held = 0
    try:
        with open("/proc/1/net/sockstat") as file:
            count, connected = int(file.readline().split()[2]), False
            for line in file:
                name, _, inside, *_ = line.split()
                connected |= name in ("TCP:", "UDP:") and inside != "0"
        for name in CONNECTIONS if connected else ():
            with open(f"/proc/1/net/{name}") as file:
                file.readline()
                for line in file:
                    sending, _, receiving = line.split()[4].partition(":")
                    held += int(sending, 16) + int(receiving, 16)
    except (OSError, IndexError, ValueError):
        return 0
    # A buffer takes up to twice what it holds.
    return max(0, count - FEW_SOCKETS) * BUFFER + 2 * held


def reap(child: int) -> int | None:
    """Bury the dead; the program's wait status, once it is among them."""
    found = None
    try:
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == child:
                found = ended[1]
    except ChildProcessError:
        pass  # nobody is left
    return found


def slay(child: int, status: int | None) -> int:
    """Kill whoever is left and bury them all; the program's wait status."""
    try:
        os.kill(-1, SIGKILL)
    except ProcessLookupError:
        pass  # nobody is left
    try:
        while True:
            pid, ended = os.waitpid(-1, 0)
            if pid == child:
                status = ended
    except ChildProcessError:
        return status or 0


def watch(order: Order, child: int, line: int, alarm: int) -> tuple[str, int, int]:
    """Wait for the program's end or make it: what ended it, its wait status, the peak."""
    poll = select.poll()
    poll.register(line, select.POLLIN)
    poll.register(alarm, select.POLLIN)
    end = time.monotonic() + order["seconds"]
    why, status, peak = "", None, 0
    while True:
        if (status := reap(child)) is not None:
            break
        left = end - time.monotonic()
        if left <= 0:
            why = "timeout"
            break
        now = held = sockets()
        if order["watched"]:
            now += used("statm", "", 1, resource.getpagesize())
            if now > order["memory"]:  # pages that several share were counted more than once
                now = used("smaps_rollup", "Pss:", 1, 1024) + held
        peak = max(peak, now)
        if now > order["memory"]:
            why = "memory"
            break
        happened = dict(poll.poll(min(left, TICK) * 1000 + 1))
        if alarm in happened:
            os.read(alarm, 4096)  # whoever has died is buried above
        if line in happened:
            if os.read(line, 1) != STOP:
                os._exit(0)
            break
    status = slay(child, status)
    peak = max(peak, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
    return why, status, peak


class Keeper:
    """Reads the regular files of a folder; it follows no link.

    Args:
        size: the most bytes of all files together; a file that is too large is left out.
    """

    def __init__(self, size: int) -> None:
        self.files: list[tuple[bytes, bytes]] = []
        self._size = size
        self._names = NAMES

    def read(self, folder: int, below: bytes = b"", depth: int = 0) -> None:
        """Read a folder, given as a descriptor, and those in it."""
        for name in sorted(os.listdir(folder)):
            path = below + os.fsencode(name)
            try:
                inside = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
            except OSError:
                continue
            try:
                state = os.fstat(inside)
                if stat.S_ISDIR(state.st_mode) and depth < DEEPEST:
                    self.read(inside, path + b"/", depth + 1)
                elif stat.S_ISREG(state.st_mode):
                    self._keep(path, inside, state.st_size)
            finally:
                os.close(inside)

    def _keep(self, path: bytes, file: int, size: int) -> None:
        if size > self._size or len(path) > self._names:
            return
        parts: list[bytes] = []
        while part := os.read(file, 1 << 20):
            parts.append(part)
        self.files.append((path, b"".join(parts)))
        self._size -= size
        self._names -= len(path)


def report(why: str, status: int, peak: int, files: list[tuple[bytes, bytes]]) -> bytes:
    """How it ended, for the parent: lengths and bytes, nothing that must be trusted to be read."""
    head = f"{status} {peak} {len(files)} {why}\n".encode()
    parts = [head]
    for path, content in files:
        parts += [len(path).to_bytes(4, "big"), len(content).to_bytes(8, "big"), path, content]
    body = b"".join(parts)
    return len(body).to_bytes(8, "big") + body


def main(line: int) -> None:
    """One order, one program, one report."""
    os.set_inheritable(line, False)
    LIBC.signal(SIGINT, None)  # the interpreter's handler would let the program end the launcher
    LIBC.sigprocmask(BLOCK, DEATHS, None)
    alarm = LIBC.signalfd(-1, DEATHS, os.O_NONBLOCK | os.O_CLOEXEC)
    send(line, READY)
    order: Order = marshal.loads(  # noqa: S302  (the parent's)
        received(line, int.from_bytes(received(line, 8), "big"))
    )
    try:
        furnish(order)
        give_up(order)
        fill(order["files"])
    except OSError as error:
        send(line, report(str(error), 0, 0, []))
        return
    if not (child := os.fork()):
        become(order)
    order["files"].clear()
    for inherited in (0, 1, 2):
        os.close(inherited)
    why, status, peak = watch(order, child, line, alarm)
    keeper = Keeper(order["disk"])
    if order["keep"]:
        try:
            keeper.read(os.open(WORK, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW))
        except OSError:
            pass  # the program has removed its folder, or put something else in its place
    send(line, report(why, status, peak, keeper.files))


if __name__ == "__main__":
    main(int(sys.argv[1]))
