import json

import pytest
from pydantic import ValidationError

from branchwise.core.errors import SpecError, WorldError
from branchwise.core.types import Step, Task, ToolCall
from branchwise.environments.adapters.aviary import Aviary
from branchwise.search.best_first import BestFirst
from branchwise.search.rollout import Rollout
from branchwise.solve import solve
from branchwise.testing import check_environment

pytestmark = pytest.mark.anyio

env = pytest.importorskip("aviary.env")
message = pytest.importorskip("aviary.message")
tools = pytest.importorskip("aviary.tools")


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Sums(env.Environment):
    """Make a total of 7 out of 2 and 3; hand in what it is."""

    def __init__(self, task):
        self.task, self.closed = task, False

    async def reset(self):
        self.total, self.reward, self.done = 0, 0.0, False
        self.tools = [tools.Tool.from_function(f) for f in (self.add, self.submit)]
        return [message.Message(content=self.task), message.Message(content="Begin.")], self.tools

    async def step(self, action):
        self.reward = 0.0
        if not action.tool_calls:
            return [message.Message(content="Call a tool.")], 0.0, False, False
        said = await self.exec_tool_calls(action, concurrency=False)
        said.append(message.Message(content=f"The total is {self.total}."))
        return said, self.reward, self.done, self.total > 9

    def add(self, number: int) -> str:
        """Add a number.

        Args:
            number: 2 or 3.
        """
        if number not in {2, 3}:
            raise ValueError("2 or 3!")
        self.total += number
        return str(self.total)

    async def submit(self, answer: str) -> None:
        """Hand in the total.

        Args:
            answer: what it is.
        """
        self.done, self.reward = True, float(answer == "7" and self.total == 7)

    async def close(self):
        self.closed = True


def call(*asked, text="", ids=None):
    calls = tuple(
        ToolCall(str(i) if ids is None else ids, name, arguments)
        for i, (name, arguments) in enumerate(asked)
    )
    return Step(text, finish="tools" if calls else "end", tool_calls=calls)


def add(number):
    return ("add", json.dumps({"number": number}))


def submit(answer):
    return ("submit", json.dumps({"answer": answer}))


SPEC = Aviary(make=lambda task: Sums(task.prompt), live=3)
TASK = Task("Make 7.")


async def after(*steps):
    async with SPEC.open() as world:
        state = await world.reset(TASK)
        for step in steps:
            state = await world.step(state, step)
        return state


async def test_it_is_a_function_of_its_states():
    steps = [call(add(2)), call(text="Hm."), call(add(2), add(3)), call(submit("7"))]
    async with SPEC.open() as world:
        await check_environment(world, TASK, steps)


async def test_tools_are_offered_as_they_are():
    state = await after()
    assert state.observation == "Make 7.\n\nBegin."
    assert [tool.name for tool in state.tools] == ["add", "submit"]
    assert state.tools[0].description == "Add a number."
    schema = state.tools[0].parameters
    assert schema["properties"]["number"] == {
        "description": "2 or 3.",
        "title": "Number",
        "type": "integer",
    }
    assert schema["required"] == ["number"]
    json.dumps(schema)


async def test_results_stand_in_the_order_of_their_calls():
    state = await after(call(add(2), ("fly", "{}"), add(3), ids="same"))
    assert state.results == ("2", "Invalid tool call: fly", "5")
    assert state.observation == "The total is 5."
    assert state.reward == 0
    assert (state.done, state.cut, state.answer) == (False, False, None)
    assert len(state.tools) == 2


@pytest.mark.parametrize("arguments", ['{"number": ', "[2]", "2", "[" * 100_000])
async def test_arguments_that_are_none_are_told_so(arguments):
    alone = await after(call(("add", arguments)))
    assert alone.results[0].startswith("Error: the arguments are no JSON")
    beside = await after(call(("add", arguments), add(3)))
    assert beside.results[0].startswith("Error: the arguments are no JSON")
    assert beside.results[1] == "3"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (add(5), "ValueError: 2 or 3!"),
        (("add", '{"n": 2}'), "TypeError"),
        (("add", ""), "TypeError"),
    ],
)
async def test_a_tool_that_raises_is_told_so(asked, said):
    state = await after(call(asked), call(add(2)))
    assert state.results == ("2",)
    assert (await after(call(asked))).results[0].startswith(said)


async def test_a_step_without_a_call_is_a_message():
    state = await after(call(text="I think."))
    assert (state.observation, state.results) == ("Call a tool.", ())


async def test_the_end_the_cut_and_the_answer():
    end = await after(call(add(2), add(2), add(3)), call(submit("7")))
    assert (end.reward, end.done, end.cut, end.answer) == (1, True, False, "7")
    cut = await after(call(add(3), add(3), add(3), add(2)))
    assert (cut.done, cut.cut, cut.answer) == (False, True, None)


async def test_environments_are_closed():
    made = []

    def make(task):
        made.append(Sums(task.prompt))
        return made[-1]

    async with Aviary(make=make, live=2).open() as world:
        root = await world.reset(TASK)
        for number in (2, 3, 2, 3):
            await world.step(root, call(add(number)))
    assert len(made) > 2
    assert all(one.closed for one in made)


class Adds:
    """Proposes each number and handing in 7, once, in order."""

    async def propose(self, node, seeds):
        every = [call(add(2)), call(add(3)), call(submit("7"))]
        return every[node.promised - len(seeds) : node.promised]


async def test_a_search_finds_what_a_loop_does_not():
    async with SPEC.open() as world:
        parts = {"policy": Adds(), "environment": world}
        greedy = await solve(TASK, controller=Rollout(), **parts)
        found = await solve(TASK, controller=BestFirst(fanout=3, enough=1.0), **parts)
    assert greedy.node.state.cut
    assert (found.value, found.node.score) == ("7", 1.0)
    numbers = [json.loads(v.tool_calls[0].arguments) for v in found.node.steps[:-1]]
    assert sum(each["number"] for each in numbers) == 7
    assert len(numbers) == 3


async def test_what_aviary_itself_brings():
    async with Aviary(name="dummy").open() as world:
        root = await world.reset(Task("ants"))
        assert root.observation == "Write a 5 word story via print_story about ants"
        story = call(("print_story", json.dumps({"story": "Ants walk home and sleep."})))
        await check_environment(world, Task("ants"), [story])
        end = await world.step(root, story)
    assert (end.reward, end.done, end.answer) == (1, True, "Ants walk home and sleep.")


async def test_pictures_are_left_out():
    picture = "data:image/png;base64,iVBORw0KGgo="

    class Shows(Sums):
        async def reset(self):
            await super().reset()
            parts = [
                {"type": "text", "text": "Look:"},
                {"type": "image_url", "image_url": {"url": picture}},
            ]
            return [message.Message(content=parts)], self.tools

    async with Aviary(make=lambda task: Shows("")).open() as world:
        assert (await world.reset(TASK)).observation == "Look:\n[image]"


@pytest.mark.parametrize("error", [ConnectionResetError("gone"), TimeoutError("late")])
async def test_a_lost_connection_fails_the_branch(error):
    class Far(Sums):
        async def step(self, action):
            raise error

    async with Aviary(make=lambda task: Far("")).open() as world:
        with pytest.raises(WorldError, match=type(error).__name__):
            await world.step(await world.reset(TASK), call(add(2)))


async def test_what_cannot_be_made_says_why():
    async with Aviary(name="nothing").open() as world:
        with pytest.raises(SpecError, match="Unknown environment name: nothing"):
            await world.reset(TASK)
    with pytest.raises(ValidationError, match="either `name` or `make`"):
        Aviary()


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_it_says_that_it_needs_asyncio(anyio_backend):
    with pytest.raises(SpecError, match="asyncio only"):
        async with SPEC.open():
            pass
