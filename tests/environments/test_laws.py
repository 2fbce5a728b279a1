"""What holds for every environment; a new one adds its row to `WORLDS`."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, replace

import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from branchwise import run_sync, testing
from branchwise.core.errors import SpecError, WorldError
from branchwise.core.types import State, Step, Task, ToolCall
from branchwise.environments.adapters.gymnasium import Gymnasium
from branchwise.environments.adapters.mcp import MCP
from branchwise.environments.blocksworld import Blocksworld
from branchwise.environments.calculator import calculator
from branchwise.environments.command_line import CommandLine
from branchwise.environments.countdown import Countdown
from branchwise.environments.game24 import Game24
from branchwise.environments.grid import Grid
from branchwise.environments.math import Math
from branchwise.environments.program_aided import ProgramAided
from branchwise.environments.python_repl import PythonREPL
from branchwise.environments.python_tests import PythonTests
from branchwise.environments.sessions import Sessions
from branchwise.environments.tools import Tools
from branchwise.environments.workspace import Workspace
from branchwise.environments.writing import Writing
from branchwise.sandbox.bubblewrap import Bubblewrap
from branchwise.testing import Word, check_closing, check_environment


@dataclass(frozen=True)
class World:
    """A row of the table.

    Args:
        open: a context of the environment.
        task: a task it knows.
        actions: a strategy of steps, sensible ones and others.
        needs: a program on the path, such as `bwrap`, or a package; empty where it needs none.
        examples: how many trees are tried.
    """

    open: Callable
    task: Task
    actions: st.SearchStrategy
    needs: str = ""
    examples: int = 25


def texts(*said):
    finish = st.sampled_from(["stop", "end", "length", "tools"])
    return st.builds(Step, st.sampled_from(said), finish=finish)


def tools(*calls):
    each = st.builds(
        lambda call: ToolCall("1", call[0], json.dumps(call[1])), st.sampled_from(calls)
    )
    several = st.lists(each, min_size=1, max_size=2).map(tuple)
    return st.builds(lambda calls: Step("", finish="tools", tool_calls=calls), several)


class Walk:
    """A stateful world: a walk on a line that ends at 3; with `saves`, it can be saved."""

    def __init__(self, saves):
        self.place, self.saves = 0, saves

    async def act(self, action):
        self.place += {"+": 1, "-": -1}.get(action.text, 0)
        return State(observation=f"at {self.place}", done=self.place == 3, reward=self.place / 3)

    async def save(self):
        return self.place if self.saves else None

    async def load(self, saved):
        self.place = saved

    async def close(self):
        pass


def walks(saves, live):
    async def start(task):
        return Walk(saves), State(observation="at 0")

    return lambda: Sessions(start, live)


def sandboxed(world):
    """A context of a world that takes a sandbox, whether or not it is opened itself."""

    @asynccontextmanager
    async def opened():
        async with AsyncExitStack() as stack:
            spec = world(await stack.enter_async_context(Bubblewrap().open()))
            context = spec.open() if hasattr(spec, "open") else nullcontext(spec)
            yield await stack.enter_async_context(context)

    return opened


ANY = Task("How many?", meta={"files": {"a": "1\n"}, "test": "grep -q 2 a"})
SAID = texts("One.\n", "The answer is 1", "", " \n", "7\n\n", "\\boxed{3}\n")
CODE = texts("```python\nx = 1\n```", "```py\nx += 1; x\n```", "It is 1.", "```python\nx = [\n```")
TOOLS = tools(
    ("write_file", {"path": "b", "content": "2\n"}),
    ("edit_file", {"path": "a", "old": "1", "new": "2"}),
    ("run", {"command": "cat * >> a"}),
    ("read_file", {"path": "a"}),
    ("read_file", {"path": "../a"}),
    ("test", {}),
    ("submit", {}),
)
PROGRAMS = texts(
    "def f(x):\n    return 2 * x", "```python\ndef f(x):\n    return x\n```", "answer = 3", "No."
)
DOUBLE = Task("Twice x.\n>>> f(2)\n4\n", meta={"entry_point": "f"})
SUMS = tools(
    ("calculator", {"expression": "12 * 7"}), ("calculator", {"expression": "1 /"}), ("add", {})
)
CALLS = tools(("add", {"number": 2}), ("add", {"number": "?"}), ("total", {}), ("nothing", {}))
STACK = Task("A is on B. B is on the table. Goal: B is on A.")
BLOCKS = texts("unstack A from B", "put down A", "pick up B", "stack B on A", "jump")
NUMBERS = texts(
    "13 - 9 = 4", "10 - 4 = 6", "4 * 6 = 24", "4 + 9 = 12", "Answer: (13 - 9) * (10 - 4)"
)
WAYS = texts("up", "right", "left", "down\nup", "?")


def lake():
    options = {"is_slippery": False}
    actions = ("left", "down", "right", "up")
    return Gymnasium(id="FrozenLake-v1", options=options, actions=actions, live=2).open()


def server():
    """A server of tools that remembers, in memory; each session has a server of its own."""
    from mcp.server.mcpserver import MCPServer  # noqa: PLC0415  (an extra)

    app, totals = MCPServer("sums", log_level="CRITICAL"), []

    @app.tool()
    def add(number: int) -> int:
        totals.append(number)
        return sum(totals)

    @app.tool()
    def total() -> int:
        return sum(totals)

    return app


CLAIMS = texts("(check-sat)", "(assert false)(check-sat)", "```smt2\n(\n```")


def z3(sandbox):
    command = ("z3", "{file}")
    return CommandLine(sandbox=sandbox, command=command, file="c.smt2", passes="^unsat$")


WORLDS = {
    "word": World(lambda: nullcontext(Word(3)), ANY, texts("a", "b", "")),
    "writing": World(lambda: nullcontext(Writing()), ANY, SAID),
    "math": World(lambda: nullcontext(Math(stop_at_answer=True)), ANY, SAID),
    "sessions": World(walks(saves=False, live=2), ANY, texts("+", "-", "?")),
    "sessions that save": World(walks(saves=True, live=2), ANY, texts("+", "-", "?")),
    "python-repl": World(sandboxed(lambda s: PythonREPL(sandbox=s, live=2)), ANY, CODE, "bwrap", 3),
    "workspace": World(sandboxed(lambda s: Workspace(sandbox=s)), ANY, TOOLS, "bwrap", 3),
    "tools": World(lambda: nullcontext(Tools(functions=[calculator])), ANY, SUMS | SAID),
    "game24": World(lambda: nullcontext(Game24()), Task("4 9 10 13"), NUMBERS),
    "countdown": World(lambda: nullcontext(Countdown()), Task("4 9 10 13 24"), NUMBERS),
    "blocksworld": World(lambda: nullcontext(Blocksworld()), STACK, BLOCKS),
    "grid": World(lambda: nullcontext(Grid()), ANY, WAYS),
    "gymnasium": World(lake, ANY, WAYS, "gymnasium", 10),
    "mcp": World(lambda: MCP(server=server, live=2).open(), ANY, CALLS | SAID, "mcp", 2),
    "program-aided": World(sandboxed(lambda s: ProgramAided(sandbox=s)), ANY, PROGRAMS, "bwrap", 2),
    "python-tests": World(
        sandboxed(lambda s: PythonTests(sandbox=s, attempts=3)), DOUBLE, PROGRAMS, "bwrap", 3
    ),
    "command-line": World(sandboxed(z3), ANY, CLAIMS, "z3", 2),
}


async def outcome(world, state, action):
    try:
        return await world.step(state, action)
    except WorldError:
        return None


async def coming_back_changes_nothing(row, branches, visits):
    """Grow a tree, a branch at a time, then step again wherever it has been, in any order."""
    async with row.open() as world:
        states = [await world.reset(row.task)]
        steps = []
        for place, action in branches:
            open_ = [i for i, state in enumerate(states) if not (state.done or state.cut)]
            if not open_:
                break
            before = open_[place % len(open_)]
            after = await outcome(world, states[before], action)
            steps.append((before, action, after))
            if after is not None:
                states.append(after)
        seen = [repr(state) for state in states]
        for visit in visits:
            place, action, after = steps[visit % len(steps)]
            copied = json.loads(json.dumps(states[place].snapshot))
            assert await outcome(world, states[place], action) == after
            assert await outcome(world, replace(states[place], snapshot=copied), action) == after
        assert await world.reset(row.task) == states[0]
        assert [repr(state) for state in states] == seen


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("name", WORLDS)
def test_leaving_a_node_and_coming_back_never_changes_the_world(name, backend):
    row = WORLDS[name]
    package = row.needs and importlib.util.find_spec(row.needs)
    if row.needs and not (package or (shutil.which("bwrap") and shutil.which(row.needs))):
        pytest.skip(f"{row.needs} is not installed, or bwrap")

    @settings(max_examples=row.examples)
    @given(
        st.lists(st.tuples(st.integers(0, 20), row.actions), min_size=1, max_size=8),
        st.lists(st.integers(0, 20), min_size=1, max_size=6),
    )
    def check(branches, visits):
        run_sync(coming_back_changes_nothing, row, branches, visits, backend=backend)

    try:
        check()
    except SpecError as error:
        pytest.skip(f"no sandbox: {error}")


class Broken(Word):
    """A world of letters with one fault."""

    instant = False

    def __init__(self, fault):
        super().__init__(4)
        self.fault, self.steps, self.busy = fault, 0, 0

    async def reset(self, task):
        self.steps += self.fault == "resets differ"
        if self.fault == "a list for a tuple":
            return State(())
        return State([], observation=str(self.steps))

    async def step(self, state, action):
        if action.text not in set("abcd"):
            if self.fault == "raises":
                raise KeyError(action.text)
            raise WorldError("no letter")
        self.steps += 1
        self.busy += 1
        await checkpoint()
        others, self.busy = self.busy - 1, self.busy - 1
        word = [*state.snapshot, action.text]
        said = ""
        match self.fault:
            case "remembers":
                said = str(self.steps)
            case "siblings meet":
                said = str(others)
            case "changes older states":
                state.snapshot.append("!")
            case "no number":
                return State(word, reward=float("nan"))
            case "no JSON":
                return State({"word": set(word)})
        return State(word, observation=said, done=len(word) == 4)


FAULTS = {
    "remembers": "differs",
    "siblings meet": "at once",
    "changes older states": "differs|changed",
    "resets differ": "reset",
    "raises": "no WorldError",
    "no number": "finite",
    "no JSON": "JSON",
    "a list for a tuple": "JSON",
}
ABCD = [Step(letter) for letter in "abcd"]


@pytest.mark.anyio
@pytest.mark.parametrize("fault", FAULTS)
async def test_each_broken_law_is_found_out(fault):
    await check_environment(Broken(""), ANY, ABCD)
    with pytest.raises(AssertionError, match=FAULTS[fault]):
        await check_environment(Broken(fault), ANY, ABCD)


@pytest.mark.anyio
async def test_a_leak_is_found_out(tmp_path, monkeypatch):
    monkeypatch.setattr(testing, "_SETTLING", 0.05)
    left = []

    @asynccontextmanager
    async def leaking():
        left.append((tmp_path / "a").open("w"))
        yield Word(4)

    with pytest.raises(AssertionError, match="something is left"):
        await check_closing(leaking, ANY, ABCD)
    for file in left:
        file.close()


def test_a_world_that_remembers_is_found_out():
    row = World(lambda: nullcontext(Broken("remembers")), ANY, texts("a"))
    with pytest.raises(AssertionError):
        run_sync(coming_back_changes_nothing, row, [(0, Step("a"))], [0])
