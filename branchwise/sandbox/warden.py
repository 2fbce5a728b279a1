"""The first process of a container: `python -c THIS run|start`. It needs Python 3.8, no package.

It reads an order, runs one program by it and, for `run`, reports: a line of JSON, then the bytes
that the line counts. The program is of the same user and may spoil the report; it can say nothing
in it that it could not bring about anyway.
"""
# It starts for each program, and pathlib is slow to import.
# ruff: noqa: PTH102, PTH103, PTH120, PTH123

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TypedDict

ROOM = "/tmp"  # noqa: S108  (inside)
WORK = ROOM + "/work"
CHUNK = 1 << 16
NAMES = 1 << 20  # bytes of paths that are reported


class Order(TypedDict):
    """What the program is and what it may use."""

    argv: Sequence[str]
    files: Mapping[str, str]
    stdin: str
    seconds: float
    output: int
    disk: int
    keep: bool


def taken(size: int) -> bytes:
    """So many bytes of standard input and not one more: the rest is the program's."""
    parts: list[bytes] = []
    while size:
        part = os.read(0, min(size, 1 << 20))
        if not part:
            os._exit(1)
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def fill(files: Mapping[str, str]) -> None:
    """Write the files that the program starts with."""
    os.mkdir(WORK)
    for name, content in files.items():
        place = WORK + "/" + name
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(place, "wb") as file:
            file.write(base64.b64decode(content))


def become(argv: Sequence[str]) -> None:
    """Turn into the program; does not return."""
    code = 126
    try:
        # Where memory runs out this process goes first, and the warden stays to say so.
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        os.chdir(WORK)
        env = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": WORK,
            "TMPDIR": ROOM,
            "LANG": "C.UTF-8",
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        if sys.argv[1] == "start":
            env["PYTHONUNBUFFERED"] = "1"
        first = sys.executable if argv[0] in {"python", "python3"} else argv[0]
        os.execvpe(first, [first, *argv[1:]], env)  # noqa: S606  (that is its job)
    except FileNotFoundError:
        code = 127
    finally:
        os._exit(code)


def bury(child: int) -> int | None:
    """Bury the dead; the program's wait status once it is among them."""
    found = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            if pid == child:
                found = status
    return found


def end(child: int, status: int | None) -> int:
    """Kill everything else that is here; the program's wait status."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, ended = os.waitpid(-1, 0)
            if pid == child and status is None:
                status = ended
    return status or 0


def number(*places: tuple[str, str]) -> int:
    """The number in the first of these files of the control group that can be read."""
    for place, key in places:
        with contextlib.suppress(OSError, ValueError, IndexError):
            with open("/sys/fs/cgroup/" + place) as file:
                words = file.read().split()
            return int(words[words.index(key) + 1] if key else words[0])
    return 0


def kept(left: int) -> list[tuple[str, int]]:
    """The regular files in the folder and their sizes; no link is followed."""
    found: list[tuple[str, int]] = []
    folders, names = [""], NAMES
    while folders:
        below = folders.pop()
        with contextlib.suppress(OSError), os.scandir(WORK + "/" + below) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = below + entry.name
                names -= len(name)
                if names < 0:
                    return found
                if entry.is_dir(follow_symlinks=False):
                    folders.append(name + "/")
                elif entry.is_file(follow_symlinks=False):
                    size = entry.stat(follow_symlinks=False).st_size
                    if size <= left and os.access(entry.path, os.R_OK):
                        found.append((name, size))
                        left -= size
    return found


class Program:
    """A program whose streams are pipes of ours.

    Args:
        order: what it is and what it may use.
    """

    def __init__(self, order: Order) -> None:
        (read_in, self.stdin), (self.stdout, write_out), (self.stderr, write_err) = (
            os.pipe(),
            os.pipe(),
            os.pipe(),
        )
        self.pid = os.fork()
        if not self.pid:
            for ours, theirs in enumerate((read_in, write_out, write_err)):
                os.dup2(theirs, ours)
            become(order["argv"])
        for theirs in (read_in, write_out, write_err):
            os.close(theirs)
        for ours in (self.stdin, self.stdout, self.stderr):
            os.set_blocking(ours, False)
        self.said = {self.stdout: bytearray(), self.stderr: bytearray()}
        self._left = memoryview(base64.b64decode(order["stdin"]))
        self._most = order["output"]

    @property
    def loud(self) -> bool:
        """Whether it has said more than it may."""
        return sum(map(len, self.said.values())) > self._most

    def tell(self) -> bool:
        """Give it what it takes of its input; False at the end."""
        with contextlib.suppress(BlockingIOError):
            try:
                self._left = self._left[os.write(self.stdin, self._left[:CHUNK]) :]
            except BrokenPipeError:
                self._left = self._left[:0]
        if not self._left:
            os.close(self.stdin)
        return bool(self._left)

    def hear(self, place: int) -> bool:
        """Take what it says, to one byte over the limit; False at the end."""
        while not self.loud:
            room = self._most + 1 - sum(map(len, self.said.values()))
            try:
                part = os.read(place, min(CHUNK, room))
            except BlockingIOError:
                return True
            if not part:
                return False
            self.said[place] += part
        return False


def watched(program: Program, alarm: int, over: float) -> tuple[str, int]:
    """Wait for the program's end or make it: what ended it, its wait status."""
    poll = select.poll()
    poll.register(program.stdin, select.POLLOUT)
    for place in (alarm, program.stdout, program.stderr):
        poll.register(place, select.POLLIN)
    why, status = "", None
    while not why and (status := bury(program.pid)) is None:
        left = over - time.monotonic()
        for place, _ in poll.poll(max(0, left) * 1000 + 1):
            if place == alarm:
                os.read(alarm, CHUNK)
            elif not (program.tell() if place == program.stdin else program.hear(place)):
                poll.unregister(place)
        why = "output" if program.loud else "timeout" if left <= 0 else ""
    status = end(program.pid, status)
    for place in program.said:
        program.hear(place)
    return why or ("output" if program.loud else ""), status


def run(order: Order, alarm: int) -> None:
    """Run the program to its end and report."""
    begun = time.monotonic()
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    program = Program(order)
    why, status = watched(program, alarm, begun + order["seconds"])
    short = number(("memory.events", "oom_kill"), ("memory/memory.oom_control", "oom_kill"))
    if not why and short and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        why = "memory"
    found = kept(order["disk"]) if order["keep"] else []
    out, err = program.said.values()
    head = {
        "why": why,
        "status": status,
        "seconds": time.monotonic() - begun,
        "peak": number(("memory.peak", ""), ("memory/memory.max_usage_in_bytes", "")),
        "stdout": len(out),
        "stderr": len(err),
        "files": found,
    }
    with open(1, "wb", closefd=False) as report:
        report.write(json.dumps(head).encode() + b"\n" + out + err)
        for name, size in found:
            with open(WORK + "/" + name, "rb") as file:
                report.write(file.read(size))


def start(order: Order, alarm: int) -> None:
    """Run the program with our own streams until it ends or its time is over."""
    over = time.monotonic() + order["seconds"]
    child = os.fork()
    if not child:
        become(order["argv"])
    for ours in (0, 1, 2):
        os.close(ours)
    while bury(child) is None and (left := over - time.monotonic()) > 0:
        if select.select([alarm], [], [], left)[0]:
            os.read(alarm, CHUNK)
    os._exit(0)


def main() -> None:
    """One order, one program."""
    # Signals without a handler do not reach the first process of its namespace.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    alarm, bell = os.pipe()
    os.set_blocking(bell, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(bell, warn_on_full_buffer=False)
    order: Order = json.loads(taken(int.from_bytes(taken(8), "big")))
    fill(order["files"])
    (run if sys.argv[1] == "run" else start)(order, alarm)


if __name__ == "__main__":
    main()
