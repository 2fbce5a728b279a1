"""A Python interpreter that can be left and come back to, as agents that act in code need it."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar, Literal, cast

import anyio
from anyio.abc import TaskGroup, TaskStatus
from pydantic import Field, SkipValidation

from branchwise.core.answers import Way, extract
from branchwise.core.config import Config
from branchwise.core.errors import SandboxError, SpecError, WorldError
from branchwise.core.types import Environment, State, Step, Task, Tool, ToolCall
from branchwise.sandbox.command import clipped
from branchwise.sandbox.ran import Limits, Running, Sandbox

_WORKER = Path(__file__).with_name("python_worker.py")
_NAME = "python"
_LIFE = 7 * 24 * 3600.0
_GRACE = 30.0
_LONGEST = 100_000
NOTHING = "There was no output."


class PythonREPL(Config):
    r"""A persistent Python interpreter: a reply that holds code is run, one without code ends.

    Code is what stands in fenced blocks marked `python` or `py`, or in calls of the tool `python`.
    What it prints, the value of its last expression and the traceback of an error are the
    observation; names, imports and the files in its folder are there for the next step. A reply
    without code ends: its final answer is the state's.

    Each state is a process inside one sandbox, that waits and is forked to step from it, so that to
    backtrack costs milliseconds. Only so many wait; a state whose process is gone is computed anew
    from its snapshot, the list of all code so far. `random` and the order of sets are seeded, so
    that this gives the same world; clocks, addresses, `os.urandom`, threads and the folder's name
    are not the same. Code that takes too long, says too much or ends its process is told so, and
    the state remains what it was before.

    Args:
        sandbox: where it runs; open.
        limits: of each step `seconds` and `output`; of each state's process `memory`; the rest of
            all states together, which may hold four times as much memory.
        live: the most states that wait as processes.
        workers: the most steps at work at one time.
        setup: code that is run before the first step, such as imports.
        shown: the most characters of an observation.
        extract: where to look for the answer in the last reply.

    Raises:
        SpecError: when opened: the setup fails.
    """

    kind: Literal["python-repl"] = "python-repl"
    sandbox: SkipValidation[Sandbox] = Field(exclude=True, repr=False)
    limits: Limits = Limits()
    live: int = Field(default=32, ge=1, le=200)
    workers: int = Field(default=4, ge=1)
    setup: str = ""
    shown: int = Field(default=8_000, ge=100)
    extract: tuple[Way, ...] = Field(
        default=("boxed", "hashes", "says", "last_number"), min_length=1
    )

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Interpreters]:
        """The world; its processes end with the block."""
        failed: Exception | None = None
        async with anyio.create_task_group() as group:
            try:
                world = Interpreters(self, group)
                await world.begin()
                yield world
            except Exception as error:  # noqa: BLE001  (raised below, without the group around it)
                failed = error
            finally:
                group.cancel_scope.cancel()
        if failed is not None:
            raise failed


class Interpreters(Environment):
    """A `PythonREPL` at work.

    Args:
        spec: its configuration.
        group: where its connection to the sandbox lives.
    """

    instant: ClassVar[bool] = False

    def __init__(self, spec: PythonREPL, group: TaskGroup) -> None:
        self._spec = spec
        self._keepers = group
        self._keeper: _Keeper | None = None
        self._starting = anyio.Lock()
        self._slots = anyio.CapacityLimiter(spec.workers)

    async def begin(self) -> None:
        """Start the interpreter and run the setup.

        Raises:
            SpecError: the setup fails.
        """
        await self._alive()

    async def reset(self, task: Task) -> State:  # noqa: ARG002  (every task begins with no name)
        """An interpreter in which nothing was run."""
        return State(snapshot=[], tools=TOOLS)

    async def step(self, state: State, action: Step) -> State:
        """Run the code of the reply, or take its answer where it has none.

        Raises:
            WorldError: the state is not one of this world, the sandbox broke, or the past could
                not be run again.
        """
        past = _past(state.snapshot)
        if action.finish in {"length", "filter"}:
            return State(snapshot=past, cut=True, tools=state.tools)
        if action.tool_calls:
            results: list[str] = []
            for call in action.tool_calls:
                code = _called(call)
                if code is None:
                    results.append(_refused(call))
                else:
                    past, said = await self._run(past, code)
                    results.append(said)
            return State(snapshot=past, results=tuple(results), tools=state.tools)
        if (code := fenced(action.text)) is None:
            answer = extract(action.text, self._spec.extract)
            return State(snapshot=past, done=True, answer=answer, tools=state.tools)
        past, said = await self._run(past, code)
        return State(snapshot=past, observation=said, tools=state.tools)

    async def _run(self, past: list[str], code: str) -> tuple[list[str], str]:
        """All the code up to now, and what the last of it has said."""
        if len(code.encode("utf-8", "replace")) > _LONGEST:
            return past, f"The code was not run: it is longer than {_LONGEST} bytes."
        async with self._slots:
            status, output = await self._asked(past, code)
        said = clipped(output.rstrip("\n"), self._spec.shown)
        match status:
            case "ok":
                return [*past, code], said or NOTHING
            case "past":
                raise WorldError(f"the code so far could not be run again: {said}")
            case "full":
                raise WorldError("the sandbox has no room for another process")
            case "timeout":
                fault = f"The code was stopped: it ran for more than {self._spec.limits.seconds} s."
            case "output":
                fault = "The code was stopped: it printed too much."
            case _:
                fault = "The code ended the interpreter."
        told = f"{fault} The interpreter is as it was before this code."
        return past, f"{said}\n{told}" if said else told

    async def _asked(self, past: list[str], code: str) -> tuple[str, str]:
        """The keeper's answer; where it died, the code runs alone and shows whose fault it was."""
        request = {"past": past, "code": code}
        seconds = self._spec.limits.seconds * (len(past) + 1) + _GRACE
        try:
            return await (await self._alive()).ask(request, seconds)
        except SandboxError:
            alone = await self._begun()
        try:
            return await alone.ask(request, seconds)
        except SandboxError:
            return "ended", ""
        finally:
            alone.end()

    async def _alive(self) -> _Keeper:
        async with self._starting:
            if self._keeper is None or self._keeper.dead:
                self._keeper = await self._begun()
            return self._keeper

    async def _begun(self) -> _Keeper:
        keeper = _Keeper(self._spec)
        try:
            with anyio.fail_after(_GRACE):
                await self._keepers.start(keeper.live)
        except TimeoutError as error:
            raise SandboxError("the sandbox has no room for an interpreter") from error
        try:
            await self._set_up(keeper)
        except BaseException:
            keeper.end()
            raise
        return keeper

    async def _set_up(self, keeper: _Keeper) -> None:
        if self._spec.setup:
            order = {"past": [], "code": self._spec.setup, "first": True}
            status, said = await keeper.ask(order, self._spec.limits.seconds + _GRACE)
            if status != "ok" or "Traceback (most recent" in said or "SyntaxError: " in said:
                raise SpecError(f"the setup failed: {said.strip() or status}")


class _Keeper:
    """The process that holds the states, and the talk with it: requests overtake each other."""

    def __init__(self, spec: PythonREPL) -> None:
        self._sandbox = spec.sandbox
        limits = spec.limits
        self._limits = limits.model_copy(
            update={
                "seconds": _LIFE,
                "memory": 4 * limits.memory,
                "processes": limits.processes + spec.live + spec.workers + 2,
                "output": 8 * limits.output + _LONGEST,  # of a line of JSON
            }
        )
        of_each = (limits.seconds, limits.output, spec.live, limits.memory)
        self._argv = ("python", _WORKER.name, *map(str, of_each))
        self._life = anyio.CancelScope()
        self._running: Running | None = None
        self._sending = anyio.Lock()
        self._count = 0
        self._waiting: dict[int, _Wanted] = {}
        self.dead = False

    async def live(self, *, task_status: TaskStatus[None]) -> None:
        """Hand out what the process says until it ends."""
        files = {_WORKER.name: _WORKER.read_bytes()}
        started = False
        try:
            start = self._sandbox.start(files, self._argv, self._limits)
            with self._life:
                async with start as running:
                    self._running = running
                    started = True
                    task_status.started()
                    while True:
                        self._heard(await running.receive(_LIFE))
        except (SandboxError, TimeoutError, ValueError, KeyError, TypeError):
            if not started:
                raise
        finally:
            self.dead = True
            for wanted in self._waiting.values():
                wanted.there.set()

    def _heard(self, line: bytes) -> None:
        reply = cast("dict[str, object]", json.loads(line))
        if (wanted := self._waiting.pop(cast("int", reply["id"]), None)) is not None:
            wanted.reply = str(reply["status"]), str(reply["output"])
            wanted.there.set()

    def end(self) -> None:
        """Kill it."""
        self.dead = True
        self._life.cancel()

    async def ask(self, request: Mapping[str, object], seconds: float) -> tuple[str, str]:
        """The status and the output of a piece of code.

        Raises:
            SandboxError: the process ended before it answered, or does not answer.
        """
        self._count += 1
        number, wanted = self._count, _Wanted()
        self._waiting[number] = wanted
        try:
            with anyio.fail_after(seconds):
                # Half a line would spoil all that follow it.
                with anyio.CancelScope(shield=True):
                    async with self._sending:
                        line = json.dumps({"id": number, **request}).encode()
                        await cast("Running", self._running).send(line)
                if not self.dead:
                    await wanted.there.wait()
        except TimeoutError as error:
            self.end()
            raise SandboxError("the interpreter does not answer") from error
        finally:
            self._waiting.pop(number, None)
        if wanted.reply is None:
            raise SandboxError("the interpreter has died")
        return wanted.reply


class _Wanted:
    """An answer that is waited for."""

    def __init__(self) -> None:
        self.there = anyio.Event()
        self.reply: tuple[str, str] | None = None


TOOLS = (
    Tool(
        _NAME,
        "Runs Python code in a persistent interpreter; shows what it prints and the value of its "
        "last expression.",
        {
            "type": "object",
            "properties": {"code": {"type": "string", "description": "the code to run"}},
            "required": ["code"],
            "additionalProperties": False,
        },
    ),
)

_FENCE = re.compile(
    r"^[ \t]*(?P<fence>`{3,}|~{3,})[ \t]*(?:python3?|py)[ \t]*\n"
    r"(?P<code>.*?)(?:^[ \t]*(?P=fence)[`~]*[ \t]*$|\Z)",
    re.DOTALL | re.MULTILINE | re.IGNORECASE,
)


def fenced(text: str) -> str | None:
    r"""The code in the fenced Python blocks of a text, one after the other; None without a block.

    Example:
        >>> fenced("Let me see.\n```python\n1 + 1\n```")
        '1 + 1\n'
    """
    blocks = [block["code"] for block in _FENCE.finditer(text)]
    return "".join(blocks) if blocks else None


def _called(call: ToolCall) -> str | None:
    """The code that a tool call wants to run; None where it is no such call."""
    try:
        arguments = json.loads(call.arguments)
    except ValueError:
        return None
    match arguments:
        case {"code": str(code), **rest} if call.name == _NAME and not rest:
            return code
        case _:
            return None


def _refused(call: ToolCall) -> str:
    if call.name != _NAME:
        return f"There is no tool {call.name!r}; there is {_NAME}."
    return 'The arguments have to be {"code": "..."} and nothing else.'


def _past(snapshot: object) -> list[str]:
    match snapshot:
        case [*codes] if all(isinstance(code, str) for code in codes):
            return cast("list[str]", snapshot)
        case _:
            raise WorldError(f"the state's snapshot has to be a list of code: {snapshot!r:.80}")
