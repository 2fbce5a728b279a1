import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from branchwise import Node, Rollout, solve
from branchwise.core.errors import SpecError, WorldError
from branchwise.core.types import Step, Task, ToolCall
from branchwise.environments.adapters.openenv import OpenEnv
from branchwise.testing import check_closing, check_environment

pytest.importorskip("openenv")
pytest.importorskip("websockets")
pytestmark = pytest.mark.anyio
TASK = Task("Reach seven.", meta={"reset": {"first": 0}})
SERVER = Path(__file__).with_name("openenv_server.py")


def add(number):
    return Step(json.dumps({"number": number}))


def call(*calls):
    asked = [ToolCall(str(i), name, json.dumps(said)) for i, (name, said) in enumerate(calls)]
    return Step("", finish="tools", tool_calls=tuple(asked))


@contextmanager
def served():
    command = [sys.executable, str(SERVER)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.kill()


@pytest.fixture(scope="module")
def url():
    with served() as url:
        yield url


async def walked(world, *actions, task=TASK):
    states = [await world.reset(task)]
    for action in actions:
        states.append(await world.step(states[-1], action))
    return states


@pytest.mark.parametrize(("path", "live"), [("sums", 4), ("crowded", 1)])
async def test_it_keeps_the_laws(url, path, live):
    actions = [add(1), add("x"), add(2), Step("four"), add(4)]
    async with OpenEnv(url=f"{url}/{path}", live=live).open() as world:
        await check_environment(world, TASK, actions)


async def test_what_a_server_says(url):
    async with OpenEnv(url=f"{url}/sums", live=2, reset={"first": 1, "seed": 9}).open() as world:
        own = Task("?", meta={"reset": {"first": 2}})
        (second,) = await walked(world, task=own)
        (first,) = await walked(world, task=Task("?"))
        root, one, three = await walked(world, add(1), add(2))
        other = await world.step(one, add(6))
    assert [json.loads(state.observation)["total"] for state in (second, first)] == [2, 1]
    assert json.loads(root.observation) == {"total": 0, "seed": 2, "open": 0}
    assert json.loads(three.observation)["total"] == 3
    assert [state.reward for state in (root, one, three, other)] == [0, 1, 2, 6]
    assert (three.done, three.answer) == (False, None)
    assert (other.done, other.answer) == (True, add(6).text)


async def test_a_wrong_action_is_an_observation(url):
    async with OpenEnv(url=f"{url}/sums").open() as world:
        states = await walked(
            world, Step("one"), add("x"), add(13), Step('{"nummer": 1}'), call(("add", {})), add(1)
        )
        (_, cut) = await walked(world, Step('{"num', finish="length"))
    told = [state.observation for state in states[1:]]
    assert told[0] == "An action has to be a JSON object."
    assert "number: Input should be a valid integer" in told[1]
    assert told[2] == "thirteen is no lucky number"
    assert "nummer" in told[3]
    assert "no tools" in told[4]
    assert json.loads(told[5])["total"] == 1
    assert (cut.cut, cut.done) == (True, False)


async def test_fields_and_functions_of_ones_own(url):
    async with OpenEnv(url=f"{url}/sums", field="number").open() as world:
        (_, state) = await walked(world, Step("3"))  # pydantic reads the number
    assert json.loads(state.observation)["total"] == 3
    spec = OpenEnv(
        url=f"{url}/sums",
        parse=lambda text: {"number": len(text)},
        render=lambda seen: f"{seen['total']} of 7",
        answer=lambda text, seen: f"{text} {seen['total']}",
    )
    async with spec.open() as world:
        (_, state) = await walked(world, Step("a" * 8))
    assert (state.observation, state.answer) == ("8 of 7", "aaaaaaaa 8")


async def test_tools(url):
    async with OpenEnv(url=f"{url}/tools", tools=True, live=4).open() as world:
        actions = [call(("add", {"number": n})) for n in (1, 2, 4)]
        await check_environment(world, TASK, actions)
        wrong = call(("fail", {}), ("none", {}), ("add", [1]), ("add", {"number": 3}))
        root, state, over = await walked(
            world, wrong, call(("add", {"number": 9}), ("add", {"number": 1}))
        )
        said = await world.step(root, Step("Seven."))
    assert [tool.name for tool in root.tools] == ["add", "fail"]
    assert root.tools[0].parameters["properties"] == {"number": {"type": "integer"}}
    assert state.results == (
        "the tool is broken",
        "Error: there is no tool 'none' (there is add, fail)",
        "Error: the arguments are no JSON object",
        "3",
    )
    assert over.results == ("12", "The call was not made: the episode was over.")
    assert (state.reward, over.reward, over.done) == (1, 1, True)
    assert said.observation == "An action has to be a JSON object."
    async with OpenEnv(url=f"{url}/sums", tools=True).open() as world:
        with pytest.raises(WorldError, match="could not begin"):
            await world.reset(TASK)


async def test_the_server_frees_what_is_closed(url):
    for _ in range(3):  # it would refuse a second session
        async with OpenEnv(url=f"{url}/crowded").open() as world:
            _, state = await walked(world, add(700))
    assert json.loads(state.observation)["open"] == 1


async def test_more_sessions_than_the_server_takes(url):
    async with OpenEnv(url=f"{url}/crowded", live=2).open() as world:
        await world.reset(TASK)
        with pytest.raises(WorldError, match="lower `live`"):
            await world.reset(TASK)


async def test_an_idle_session_answers_the_server(url):
    """The server pings each tenth of a second, and hangs up where nobody answers."""
    async with OpenEnv(url=f"{url}/sums", live=2).open() as world:
        _, state = await walked(world, add(1))
        (line,) = [life.session._line for life in world._idle.values()]
        receive, pings = line._protocol.receive_data, []

        def heard(data):
            pings.append(data)
            receive(data)

        line._protocol.receive_data = heard
        with anyio.fail_after(10):
            while len(pings) < 3:  # noqa: ASYNC110  (there is no event for it)
                await anyio.sleep(0.02)
        assert not line._ended.is_set()
        assert json.loads((await world.step(state, add(1))).observation)["total"] == 2


async def test_a_step_that_hangs_and_a_server_that_dies():
    with served() as url:
        async with OpenEnv(url=f"{url}/sums", seconds=0.5, live=2).open() as world:
            _, one = await walked(world, add(1))
            with pytest.raises(WorldError, match=r"more than 0\.5 seconds"):
                await world.step(one, add(600))
            three = await world.step(one, add(2))
            assert json.loads(three.observation)["total"] == 3
            with pytest.raises(WorldError, match="is lost"):
                await world.step(one, add(500))
            with pytest.raises(WorldError, match="no connection"):
                await world.step(one, add(2))
            with pytest.raises(WorldError, match="is lost"):
                await world.step(three, add(2))


async def test_no_server(url):
    for address in ("http://127.0.0.1:9", f"{url}/nowhere"):
        async with OpenEnv(url=address).open() as world:
            with pytest.raises(WorldError, match="no connection to the OpenEnv server"):
                await world.reset(TASK)
    with pytest.raises(ValueError, match="begins with http"):
        OpenEnv(url="localhost:8000")


async def test_nothing_is_left(url):
    await check_closing(OpenEnv(url=f"{url}/sums", live=3).open, TASK, [add(1), add(2)])


async def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "websockets", None)
    with pytest.raises(SpecError, match="pip install"):
        async with OpenEnv(url="http://127.0.0.1").open():
            pass


class Adds:
    async def propose(self, node: Node, seeds):
        return [add(2) for _ in seeds]


async def test_a_rollout_walks_it(url):
    async with OpenEnv(url=f"{url}/sums").open() as world:
        answer = await solve(TASK, policy=Adds(), environment=world, controller=Rollout())
    assert answer.value == add(2).text
    assert answer.node.depth == 4
