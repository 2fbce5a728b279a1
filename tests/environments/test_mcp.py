import json
import os
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from branchwise import BestFirst, Node, Rollout, solve
from branchwise.core.errors import SpecError, WorldError
from branchwise.core.types import Step, Task, ToolCall
from branchwise.environments.adapters.mcp import MCP
from branchwise.testing import check_closing, check_environment
from branchwise.verifiers.function import Function

pytest.importorskip("mcp_types")  # version 2 of the SDK has it
pytestmark = [
    pytest.mark.anyio,
    # On trio the SDK leaves the iterators of its replies to the garbage collector.
    pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning"),
]
SERVER = Path(__file__).with_name("mcp_server.py")
STDIO = (sys.executable, str(SERVER), "stdio")
PLAIN = (sys.executable, "-S", str(SERVER.with_name("plain_mcp_server.py")))
TASK = Task("Count to nine.")


def call(name, **arguments):
    return Step("", finish="tools", tool_calls=(ToolCall("1", name, json.dumps(arguments)),))


ADD = [call("add", number=number) for number in (1, 2, 4)]


@pytest.fixture(scope="module")
def url():
    command = [sys.executable, str(SERVER), "http"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}/mcp"
        finally:
            server.kill()


async def walked(world, *actions):
    states = [await world.reset(TASK)]
    for action in actions:
        states.append(await world.step(states[-1], action))
    return states


async def test_a_process_for_each_session_and_what_becomes_of_it():
    async with MCP(command=PLAIN).open() as world:
        _, one, three, seven = await walked(world, *ADD)
        pid = int((await world.step(seven, call("pid"))).results[0])
        other = await world.step(one, call("add", number=40))
        with pytest.raises(WorldError, match="failed at die"):
            await world.step(other, call("die"))
        again = await world.step(three, ADD[2])
        os.kill(pid, 0)
    assert [state.results for state in (one, three, seven, other)] == [
        ("1",),
        ("3",),
        ("7",),
        ("41",),
    ]
    assert again == seven
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_process_of_the_sdk(anyio_backend):
    async with MCP(command=STDIO).open() as world:
        states = await walked(world, *ADD)
    assert states[0].observation == "Count with care."
    assert states[-1].results == ("7",)


async def test_a_stateless_server_that_dies_is_started_again():
    async with MCP(command=PLAIN, stateless=True).open() as world:
        root = await world.reset(TASK)
        with pytest.raises(WorldError, match="failed at die"):
            await world.step(root, call("die"))
        assert (await world.step(root, ADD[2])).results == ("4",)


async def test_sessions_over_http(url):
    async with MCP(url=url).open() as world:
        states = await walked(world, *ADD)
        other = await world.step(states[1], call("add", number=40))
    assert [state.results for state in states[1:]] == [("1",), ("3",), ("7",)]
    assert other.results == ("41",)
    assert states[0].observation == "Count with care."
    assert all(state.tools is states[0].tools for state in [*states, other])
    (add,) = [tool for tool in states[0].tools if tool.name == "add"]
    assert add.description == "Add to the total."
    assert add.parameters["properties"]["number"]["type"] == "integer"


async def test_a_stateless_server_is_never_asked_twice(url):
    doubles = [call("double", number=number) for number in (1, 2, 3)]
    async with MCP(url=url, stateless=True).open() as world:
        (_, before) = await walked(world, call("called"))
        states = await walked(world, *doubles)
        again = await world.step(states[1], doubles[1])
        (_, after) = await walked(world, call("called"))
        await check_environment(world, TASK, [*doubles[:2], Step("Six.")])
    assert [state.results for state in states[1:]] == [("2",), ("4",), ("6",)]
    assert again == states[2]
    assert len({state.snapshot for state in states}) == len(states)
    assert int(after.results[0]) - int(before.results[0]) == 4


@pytest.mark.parametrize("stateless", [False, True])
async def test_what_goes_wrong_in_a_call_is_its_result(url, stateless):
    wrong = (
        ToolCall("1", "fail", ""),
        ToolCall("2", "nothing", "{}"),
        ToolCall("3", "double", '{"number": "x"}'),
        ToolCall("4", "double", "{"),
        ToolCall("5", "double", "[2]"),
        ToolCall("6", "double", '{"number": "\\ud800"}'),
        ToolCall("7", "double", '{"number": 4}'),
    )
    async with MCP(url=url, stateless=stateless).open() as world:
        (_, state) = await walked(world, Step("", finish="tools", tool_calls=wrong))
    fail, unknown, kind, *texts, right = state.results
    assert "fail" in fail
    assert unknown.startswith("Error: there is no tool 'nothing' (there is add, double")
    assert "integer" in kind
    assert all(text.startswith("Error: the arguments are no JSON") for text in texts)
    assert right == "8"
    assert not state.done


async def test_only_the_tools_that_are_named(url):
    async with MCP(url=url, tools=("double",)).open() as world:
        root, state = await walked(world, call("add", number=1))
    assert [tool.name for tool in root.tools] == ["double"]
    assert state.results == ("Error: there is no tool 'add' (there is double)",)
    async with MCP(url=url, tools=("treble",)).open() as world:
        with pytest.raises(SpecError, match="no tool 'treble'"):
            await world.reset(TASK)


async def test_what_is_no_text_is_named(url):
    async with MCP(url=url).open() as world:
        (_, state) = await walked(world, call("show"))
    assert state.results == ("Look:\n[image, image/png, 120 bytes]\na memo",)


async def test_a_text_without_a_call_is_the_answer(url):
    spec = MCP(url=url, answer=lambda text: text.rpartition(" ")[2])
    async with spec.open() as world:
        (_, done) = await walked(world, Step("It is 7"))
        (_, cut) = await walked(world, Step("It is", finish="length"))
        with pytest.raises(WorldError, match="done"):
            await world.step(done, ADD[0])
    assert (done.done, done.cut, done.answer) == (True, False, "7")
    assert (cut.done, cut.cut, cut.answer) == (False, True, None)


@pytest.mark.parametrize("stateless", [False, True])
async def test_a_call_that_hangs(url, stateless):
    async with MCP(url=url, seconds=0.5, stateless=stateless).open() as world:
        _, state = await walked(world, ADD[0])
        with pytest.raises(WorldError, match=r"hang .* took more than 0\.5 seconds"):
            await world.step(state, call("hang"))
        assert (await world.step(state, call("double", number=4))).results == ("8",)


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ({"command": ("no-such-command",)}, SpecError, "cannot be started.*no-such-command"),
        (
            {"command": (sys.executable, "-c", "import sys; sys.exit('no licence')")},
            WorldError,
            "no licence",
        ),
        ({"url": "http://127.0.0.1:9/mcp"}, WorldError, "no connection to the MCP server"),
    ],
)
async def test_no_server(spec, error, words):
    async with MCP(**spec).open() as world:
        with pytest.raises(error, match=words):
            await world.reset(TASK)


async def test_nothing_is_left(url):
    await check_closing(MCP(url=url).open, TASK, ADD)


async def test_an_error_in_the_block_comes_out_as_it_is(url):
    with pytest.raises(KeyError):
        async with MCP(url=url).open():
            raise KeyError


class Counts:
    """Adds up to seven, one way or the other, and says so."""

    async def propose(self, node: Node, seeds):
        total = int(node.state.results[0]) if node.state.results else 0
        if total >= 7:
            return [Step(str(total)) for _ in seeds]
        return [call("add", number=min(number, 7 - total)) for number in range(1, len(seeds) + 1)]


def far(node: Node):
    return node.depth if node.finished else int(node.state.results[0])


@pytest.mark.parametrize("controller", [Rollout(), BestFirst(fanout=2, expansions=6)], ids=type)
async def test_searches_walk_it(url, controller):
    async with MCP(url=url).open() as world:
        answer = await solve(
            TASK, policy=Counts(), environment=world, verifier=Function(far), controller=controller
        )
    assert answer.value == "7"


def counter():
    from mcp.server.mcpserver import MCPServer  # noqa: PLC0415  (only where the SDK is)

    app, numbers = MCPServer("counter", log_level="CRITICAL"), []

    @app.tool()
    def add(number: int) -> int:
        numbers.append(number)
        return sum(numbers)

    return app


async def test_servers_in_this_process_keep_the_laws():
    async with MCP(server=counter).open() as world:
        await check_environment(world, TASK, [*ADD, Step("It is 7.")])


def test_a_spec_names_one_server():
    for wrong in ({}, {"command": STDIO, "url": "http://127.0.0.1/mcp"}):
        with pytest.raises(ValueError, match="one of"):
            MCP(**wrong)


async def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "mcp_types", None)
    with pytest.raises(SpecError, match="pip install"):
        async with MCP(command=STDIO).open():
            pass


async def test_connecting_takes_too_long():
    silent = (sys.executable, "-c", "import sys; sys.stdin.read()")
    with anyio.fail_after(5):
        async with MCP(command=silent, seconds=0.2).open() as world:
            with pytest.raises(WorldError, match=r"no MCP server within 0\.2 seconds"):
                await world.reset(TASK)
