"""What answers for a Python interpreter inside a sandbox: one process for each state.

A script of its own: it imports nothing of the package. Each state is a process that waits. To step
from it, it forks, and the child runs the code and waits in its turn, so a state is a copy on write
of the one before. The keeper talks with the outside, one JSON object a line, and with the states
over sockets; it kills what takes too long or says too much, and the states used least recently.

A request is `{"id", "past", "code"}`: the code to run after all the code of the past; where it has
`first`, all later ones begin after it. The reply is `{"id", "status", "output"}`; the status is
`ok`, `timeout`, `output` (too much of it), `ended` (the code ended its process), `full` (there is
no room for another process), or `past` where one of these happened on the way.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import hashlib
import io
import json
import linecache
import os
import random
import resource
import selectors
import shutil
import signal
import socket
import sys
import time
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import NotRequired, TypedDict

MESSAGE = 150_000
FORK, RUN, BURY, DONE = b"f", b"r", b"b", b"+"
STEP = "<step "
FRAMES = -8
"""The innermost frames of a traceback are shown."""


class Process:
    """The inside of a state: it waits, forks and runs, and never returns.

    Args:
        line: the socket to the keeper.
        memory: the address space that its code may use, in bytes.
        room: where the folders of the states lie.
    """

    def __init__(self, line: socket.socket, memory: int, room: Path) -> None:
        self.line, self.memory, self.room = line, memory, room
        self.depth = 0
        self.module = types.ModuleType("__main__")
        self.module.__dict__["__builtins__"] = __builtins__
        sys.modules["__main__"] = self.module
        # What the code does to these modules must not reach its own state's process.
        self.fork, self.leave, self.bury = os.fork, os._exit, os.waitpid
        self.receive: Callable[..., tuple[bytes, list[int], int, object]] = socket.recv_fds

    def serve(self) -> None:
        """Wait for orders; ends with the keeper."""
        while True:
            order, files, _, _ = self.receive(self.line, MESSAGE, 2)
            if not order:
                self.leave(0)
            what, body = order[:1], order[1:]
            if what == FORK:
                self.divide(files, body.decode())
            elif what == BURY:
                with contextlib.suppress(ChildProcessError):
                    self.bury(int(body), 0)
            elif what == RUN:
                self.depth += 1
                run(body.decode(), f"{STEP}{self.depth}>", self.module.__dict__)
                self.line.send(DONE)

    def divide(self, files: list[int], folder: str) -> None:
        """Fork; the child goes on with a line, an output and a folder of its own."""
        line, output = files
        state = random.getstate()  # a fork seeds the generator anew
        try:
            child = self.fork()
        except OSError:  # too many processes: the keeper hears that nobody is there
            child = -1
        if child:
            os.close(line)
            os.close(output)
            return
        random.setstate(state)
        self.line.close()
        self.line = socket.socket(fileno=line)
        self.settle(output, folder)
        self.line.send(str(os.getpid()).encode())

    def settle(self, output: int, folder: str) -> None:
        """Take the place of a new state's process."""
        with contextlib.suppress(OSError):
            os.setsid()
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        here = Path.cwd()
        there = self.room / folder
        if here.parent == self.room:
            shutil.copytree(here, there, symlinks=True)
        else:
            there.mkdir()
        os.chdir(there)
        sys.stdout, sys.stderr = written(1), written(2)


def written(number: int) -> io.TextIOWrapper:
    """A standard stream that shows each line at once, whatever it holds."""
    raw = open(number, "wb", closefd=False)  # noqa: SIM115  (it lives as long as its process)
    return io.TextIOWrapper(raw, "utf-8", "backslashreplace", line_buffering=True)


def run(code: str, name: str, names: dict[str, object]) -> None:
    """Run code as a REPL does: the last expression's value is shown, errors are printed."""
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    said = ""
    try:
        body = ast.parse(code, name)
        last = body.body.pop() if body.body and isinstance(body.body[-1], ast.Expr) else None
        exec(compile(body, name, "exec"), names)  # noqa: S102  (that is what it is for)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), name, "eval"), names)  # noqa: S307  (the same)
            if value is not None:
                names["_"] = value
                said = f"{value!r}\n"
    except BaseException as error:  # noqa: BLE001  (the code's, to be shown to who wrote it)
        said = told(error)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # the code may have replaced or closed it
            stream.flush()
    left = said.encode("utf-8", "backslashreplace")
    with contextlib.suppress(OSError):
        while left:
            left = left[os.write(2, left) :]


def told(error: BaseException) -> str:
    """A traceback that begins where the code does."""
    try:
        trace = error.__traceback__
        while trace is not None and not trace.tb_frame.f_code.co_filename.startswith(STEP):
            trace = trace.tb_next
        told = traceback.TracebackException(type(error), error, trace, limit=FRAMES)
        return "".join(told.format())
    except BaseException:  # noqa: BLE001  (an error whose text raises another)
        return f"{type(error).__name__}\n"


class State:
    """A state's process, as the keeper sees it."""

    def __init__(self, number: int, parent: State | None) -> None:
        self.folder, self.parent = str(number), parent
        self.line, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.output, self.output_theirs = os.pipe()
        os.set_blocking(self.output, False)
        self.line.setblocking(False)
        self.pid = 0
        self.said = b""
        self.closed = False


class Job:
    """A request on its way: a state that still has code to run."""

    def __init__(self, request: Request, state: State, key: str, codes: list[str]) -> None:
        self.request, self.asked = request, [request["id"]]
        self.state, self.key, self.codes = state, key, codes
        self.said = bytearray()
        self.end = 0.0


class Request(TypedDict):
    """What the outside asks."""

    id: int
    past: list[str]
    code: str
    first: NotRequired[bool]


class Keeper:
    """Holds the states, and everyone to the limits.

    Args:
        seconds: the most time for one piece of code.
        output: the most bytes that it may say.
        live: the most states that wait.
        memory: the address space of each state, in bytes.
    """

    def __init__(self, seconds: float, output: int, live: int, memory: int) -> None:
        self.seconds, self.output, self.live = seconds, output, live
        self.room = Path.cwd() / "states"
        self.room.mkdir()
        self.count = 0
        self.states: dict[str, State] = {}  # by what led there, the least recently used first
        self.jobs: dict[State, Job] = {}
        self.wanted: dict[str, Job] = {}
        self.ears = selectors.DefaultSelector()
        root = State(0, None)
        gc.freeze()
        root.pid = os.fork()
        if not root.pid:
            nothing = os.open(os.devnull, os.O_RDONLY)
            os.dup2(nothing, 0)
            self.ears.close()
            root.line.close()
            os.close(root.output)
            limit = resource.getrlimit(resource.RLIMIT_AS)[1]
            memory = memory if limit == resource.RLIM_INFINITY else min(memory, limit)
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
            random.seed(0)
            sys.argv, sys.path[0] = [""], ""
            process = Process(root.theirs, memory, self.room)
            process.settle(root.output_theirs, root.folder)
            process.serve()
        self.root = root
        self.listen(root)

    def listen(self, state: State) -> None:
        """Hear what a state says from now on; its own ends are with its process."""
        state.theirs.close()
        os.close(state.output_theirs)
        self.ears.register(state.line, selectors.EVENT_READ, state)
        self.ears.register(state.output, selectors.EVENT_READ, state)

    def ask(self, request: Request) -> None:
        """Begin a request, or join another that asks the same."""
        number, past, code = request["id"], request["past"], request["code"]
        codes: list[str] = [*past, code]
        keys = [""]
        for one in codes:
            keys.append(hashlib.sha256(f"{keys[-1]}\0{one}".encode()).hexdigest())
        key = keys[-1]
        if (state := self.states.pop(key, None)) is not None:
            self.states[key] = state
            self.reply([number], "ok", state.said)
        elif (job := self.wanted.get(key)) is not None:
            job.asked.append(number)
        else:
            known = len(codes) - 1
            while known and keys[known] not in self.states:
                known -= 1
            parent = self.root
            if known:
                parent = self.states[keys[known]] = self.states.pop(keys[known])
            self.begin(request, parent, key, codes[known:])

    def begin(self, request: Request, parent: State, key: str, codes: list[str]) -> None:
        """Have a child of the parent run the codes."""
        self.count += 1
        state = State(self.count, parent)
        job = Job(request, state, key, codes)
        self.jobs[state] = self.wanted[key] = job
        job.end = time.monotonic() + self.seconds
        with contextlib.suppress(OSError):
            socket.send_fds(
                parent.line,
                [FORK, state.folder.encode()],
                [state.theirs.fileno(), state.output_theirs],
            )
        self.listen(state)

    def hear(self, state: State) -> None:
        """A state has said something on its line."""
        try:
            said = state.line.recv(MESSAGE)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        job = self.jobs.get(state)
        if not said:
            if state.pid:
                self.gone(state, "ended")
            elif job is not None:
                self.missing(job)
        elif job is None:
            pass
        elif not state.pid:
            state.pid = int(said) if said.isdigit() else -1
            self.proceed(job)
        elif said == DONE:
            self.take(state)
            if state in self.jobs:  # else it has said too much
                self.done(job)

    def missing(self, job: Job) -> None:
        """No child came: its parent is dead, by another's deed, or there is no room for it."""
        parent = job.state.parent
        if parent is None or parent is self.root:
            self.gone(job.state, "full")
            return
        asked, job.asked = job.asked, []
        self.gone(job.state, "full")
        self.gone(parent, "")
        for number in asked:
            self.ask({**job.request, "id": number})

    def done(self, job: Job) -> None:
        """A job's code has run: the next one follows, or it is answered and its state waits."""
        if len(job.codes) > 1:
            del job.codes[0]
            self.proceed(job)
            return
        state = job.state
        del self.jobs[state], self.wanted[job.key]
        state.said = bytes(job.said)
        if "first" in job.request:
            self.root = state
        else:
            self.states[job.key] = state
        self.reply(job.asked, "ok", state.said)
        while len(self.states) > self.live:
            self.gone(self.states[next(iter(self.states))], "")

    def proceed(self, job: Job) -> None:
        """Have the next code run."""
        job.said.clear()
        job.end = time.monotonic() + self.seconds
        with contextlib.suppress(OSError):
            job.state.line.send(RUN + job.codes[0].encode("utf-8", "replace"))

    def take(self, state: State) -> None:
        """Take what a state has printed; what nobody waits for is forgotten."""
        job = self.jobs.get(state)
        with contextlib.suppress(BlockingIOError):
            while part := os.read(state.output, 1 << 16):
                if job is not None:
                    job.said += part
                    if len(job.said) > self.output:
                        self.gone(state, "output")
                        return
            self.ears.unregister(state.output)

    def gone(self, state: State, why: str) -> None:
        """Kill a state and answer for what it was at."""
        if state.pid > 0:
            with contextlib.suppress(OSError):
                os.killpg(state.pid, signal.SIGKILL)
            with contextlib.suppress(OSError):
                os.kill(state.pid, signal.SIGKILL)
            if state.parent is not None:
                with contextlib.suppress(OSError):
                    state.parent.line.send(BURY + str(state.pid).encode())
        job = self.jobs.pop(state, None)
        if job is not None:
            del self.wanted[job.key]
            with contextlib.suppress(BlockingIOError):
                while len(job.said) < self.output and (part := os.read(state.output, 1 << 16)):
                    job.said += part
            said = bytes(job.said[: self.output])
            self.reply(job.asked, why if len(job.codes) == 1 else "past", said)
        elif state is self.root:
            sys.exit(1)  # nothing can be stepped from any more: the outside begins anew
        else:
            for key in [key for key, value in self.states.items() if value is state]:
                del self.states[key]
        state.closed = True
        for end in (state.line, state.output):
            with contextlib.suppress(KeyError):
                self.ears.unregister(end)
        state.line.close()
        os.close(state.output)
        shutil.rmtree(self.room / state.folder, ignore_errors=True)

    def reply(self, asked: list[int], status: str, output: bytes) -> None:
        """Answer everyone who asked."""
        text = output.decode("utf-8", "replace")
        for number in asked:
            line = json.dumps({"id": number, "status": status, "output": text})
            sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def keep(self) -> None:
        """Serve requests until there can be no more."""
        os.set_blocking(0, False)
        self.ears.register(0, selectors.EVENT_READ)
        read = b""
        while True:
            ends = [job.end for job in self.jobs.values()]
            wait = max(0.0, min(ends) - time.monotonic()) if ends else None
            for key, _ in self.ears.select(wait):
                state = key.data
                if state is None:
                    part = os.read(0, 1 << 16)
                    if not part:
                        return
                    *lines, read = (read + part).split(b"\n")
                    for line in lines:
                        self.ask(json.loads(line))
                elif state.closed:
                    continue  # in this same turn
                elif key.fileobj is state.line:
                    self.hear(state)
                else:
                    self.take(state)
            now = time.monotonic()
            for job in [job for job in self.jobs.values() if job.end <= now]:
                self.gone(job.state, "timeout")


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # sets keep their order from start to start
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  (this interpreter)
    Keeper(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])).keep()
