import dataclasses
import json
import random
import re
from pathlib import Path

import anyio
import pytest
from anyio.lowlevel import checkpoint

from branchwise import Node, from_json, to_json
from branchwise.core.errors import SpecError, WorldError
from branchwise.core.types import State, Step, Task, ToolCall
from branchwise.environments.sessions import Sessions
from branchwise.testing import check_closing, check_environment

pytestmark = pytest.mark.anyio
TASK = Task("Add.", target="9", meta={"first": 1})
ADD = [Step(digit, finish="stop", logprob=-1.0) for digit in "123"]


def digits(task, actions):
    """The oracle: the state as a pure function of the actions."""
    total = task.meta["first"]
    for action in actions:
        total = (7 * total + int(action)) % 1000
    return str(total)


class Adding:
    """Does sums in a register; counts what is open, and who uses a session that another uses."""

    def __init__(self, saves="never", hurdle=None, seed=0):
        self.saves, self.hurdle = saves, hurdle
        self.random = random.Random(seed)
        self.open = self.most = self.starts = self.acts = self.loads = 0
        self.noise = ""

    async def start(self, task):
        for _ in range(self.random.randrange(3)):
            await checkpoint()
        self.starts += 1
        self.open += 1
        self.most = max(self.most, self.open)
        first = task.meta["first"]
        return Register(self, first), State(observation=f"{first}{self.noise}")


class Register:
    def __init__(self, world, first):
        self.world, self.total, self.busy, self.closed = world, first, False, False

    async def act(self, action):
        assert not self.busy
        assert not self.closed
        assert action == Step(action.text, finish=action.finish, tool_calls=action.tool_calls)
        self.busy = True
        self.world.acts += 1
        if self.world.hurdle is not None:
            await self.world.hurdle(action)
        for _ in range(self.world.random.randrange(3)):
            await checkpoint()
        self.busy = False
        if not action.text.isdigit():
            return State(observation=f"{action.text!r} is no digit.")
        self.total = (7 * self.total + int(action.text)) % 1000
        return State(observation=f"{self.total}{self.world.noise}", done=self.total % 10 == 2)

    async def save(self):
        assert not self.busy
        often = self.world.saves == "always" or (self.world.saves == "odd" and self.total % 2)
        return {"total": self.total} if often else None

    async def load(self, saved):
        assert not self.busy
        assert not self.closed
        self.world.loads += 1
        self.total = saved.pop("total")

    async def close(self):
        assert not self.closed
        self.closed = True
        await checkpoint()
        self.world.open -= 1


@pytest.mark.parametrize("live", [1, 2, 8])
@pytest.mark.parametrize("saves", ["never", "odd", "always"])
async def test_it_keeps_the_laws(saves, live):
    adding = Adding(saves)
    async with Sessions(adding.start, live) as world:
        await check_environment(world, TASK, ADD)
    assert adding.most <= live
    assert adding.open == 0


@pytest.mark.parametrize("saves", ["never", "odd"])
async def test_it_closes_everything_however_it_ends(saves):
    adding = Adding(saves)
    await check_closing(lambda: Sessions(adding.start, 2), TASK, ADD, held=lambda: adding.open)


@pytest.mark.parametrize("live", [1, 3])
@pytest.mark.parametrize("saves", ["never", "odd", "always"])
async def test_many_at_once_each_get_their_own_world(saves, live):
    adding = Adding(saves)

    async def wander(seed):
        choice = random.Random(seed)
        for _ in range(12):
            path, state = choice.choice(seen)
            action = choice.choice("0248")
            after = await world.step(state, Step(action))
            assert after.observation == digits(TASK, path + action)
            if not after.done:
                seen.append((path + action, after))

    async with Sessions(adding.start, live) as world:
        seen = [("", await world.reset(TASK))]
        async with anyio.create_task_group() as group:
            for seed in range(6):
                group.start_soon(wander, seed)
        assert adding.most <= live
    assert adding.open == 0


async def line(world, actions):
    states = [await world.reset(TASK)]
    for action in actions:
        states.append(await world.step(states[-1], Step(action)))
    return states


async def test_a_straight_line_takes_one_session_and_each_action_once():
    adding = Adding()
    async with Sessions(adding.start, live=1) as world:
        await line(world, "2204")
    assert (adding.starts, adding.acts) == (1, 4)


async def test_what_can_be_loaded_is_not_replayed():
    adding = Adding("always")
    async with Sessions(adding.start, live=1) as world:
        states = await line(world, "2204")
        await world.step(states[1], Step("2"))
    assert (adding.starts, adding.acts, adding.loads) == (1, 5, 1)


async def test_replay_begins_at_the_last_state_that_could_be_saved():
    adding = Adding("odd")
    async with Sessions(adding.start, live=1) as world:
        states = await line(world, "0220")
        assert [int(state.observation) % 2 for state in states] == [1, 1, 1, 1, 1]
        even = await world.step(states[2], Step("3"))
        assert int(even.observation) % 2 == 0
        await world.step(states[4], Step("0"))
        adding.acts = 0
        assert (await world.step(even, Step("1"))).observation == digits(TASK, "0231")
    assert adding.acts == 2


async def test_snapshots_share_their_past_and_equal_saved_ones_are_equal():
    async with Sessions(Adding().start) as world:
        states = await line(world, "22")
        one, two = states[1:]
        assert one.snapshot["before"] is two.snapshot["before"] is states[0].snapshot
        assert one.snapshot["actions"][0] is two.snapshot["actions"][0]
    async with Sessions(Adding("always").start) as world:
        states = await line(world, "22")
        again = await world.step(states[0], Step("2"))
        assert again.snapshot == states[1].snapshot
        assert again.snapshot["start"] is states[2].snapshot["start"]


@pytest.mark.parametrize("saves", ["never", "odd", "always"])
async def test_a_saved_tree_goes_on_in_another_process(saves):
    async with Sessions(Adding(saves).start) as world:
        states = await line(world, "224")
        root = Node(TASK, states[0])
        root.adopt([Node(TASK, states[3], root, 0, Step("224"))])
        text = to_json(root)
    (child,) = from_json(text).children
    async with Sessions(Adding(saves).start) as elsewhere:
        after = await elsewhere.step(child.state, Step("8"))
    assert after.observation == digits(TASK, "2248")


async def test_a_state_two_thousand_actions_deep_can_be_saved_and_gone_on_from():
    actions = "04" * 1000
    async with Sessions(Adding().start) as world:
        *_, last = await line(world, actions)
    again = State(json.loads(json.dumps(last.snapshot)))
    assert again.snapshot == last.snapshot
    async with Sessions(Adding().start) as elsewhere:
        assert (await elsewhere.step(again, Step("6"))).observation == digits(TASK, actions + "6")


async def test_tool_calls_reach_a_replay_too():
    seen = []

    async def look(action):
        seen.append((action.finish, action.tool_calls))

    call = ToolCall("7", "add", '{"n": 2}')
    async with Sessions(Adding(hurdle=look).start) as world:
        root = await world.reset(TASK)
        first = await world.step(root, Step("2", finish="tools", tool_calls=(call,)))
        for action in "22":
            await world.step(first, Step(action))
    assert seen.count(("tools", (call,))) == 2


async def test_a_cancelled_step_spoils_its_session_only():
    begun, never = anyio.Event(), anyio.Event()

    async def hang(action):
        if action.text == "8":
            begun.set()
            await never.wait()

    adding = Adding(hurdle=hang)
    async with Sessions(adding.start, live=1) as world:
        root = await world.reset(TASK)
        async with anyio.create_task_group() as group:
            group.start_soon(world.step, root, Step("8"))
            await begun.wait()
            group.cancel_scope.cancel()
        assert adding.open == 0
        assert (await world.step(root, Step("2"))).observation == digits(TASK, "2")
        assert adding.starts == 2


@pytest.mark.parametrize(
    "error", [WorldError("broken"), ValueError("broken"), TimeoutError("broken")]
)
async def test_a_session_that_raises_fails_its_branch_and_the_next_visit_replays(error):
    async def stumble(action):
        if action.text == "8":
            raise error

    adding = Adding(hurdle=stumble)
    async with Sessions(adding.start, live=2) as world:
        one = (await line(world, "2"))[1]
        with pytest.raises(WorldError, match="broken"):
            await world.step(one, Step("8"))
        assert adding.open == 0
        assert (await world.step(one, Step("2"))).observation == digits(TASK, "22")


async def test_a_start_that_fails_leaves_room_for_the_next():
    async def start(task):
        if task.prompt == "fail":
            raise OSError("no port is free")
        return await adding.start(task)

    adding = Adding()
    async with Sessions(start, live=1) as world:
        for _ in range(3):
            with pytest.raises(WorldError, match="no port is free"):
                await world.reset(Task("fail"))
        assert (await world.reset(TASK)).observation == "1"


@pytest.mark.parametrize("depth", [0, 2])
async def test_a_world_that_answers_otherwise_is_found_out(depth):
    adding = Adding()
    async with Sessions(adding.start, live=1) as world:
        states = await line(world, "224")
        if depth:
            adding.noise = "!"
            with pytest.raises(WorldError, match="not deterministic: the start"):
                await world.step(states[0], Step("2"))
        else:

            async def later(action):
                adding.noise = "!"

            adding.hurdle = later
            with pytest.raises(WorldError, match=r"not deterministic: action 1 now led to '9!'"):
                await world.step(states[2], Step("2"))
        adding.noise, adding.hurdle = "", None
        assert (await world.step(states[3], Step("2"))).observation == digits(TASK, "2242")


async def test_an_end_closes_what_is_still_at_work():
    begun, never = anyio.Event(), anyio.Event()

    async def hang(action):
        begun.set()
        await never.wait()

    async def step():
        with pytest.raises(WorldError, match="closed meanwhile"):
            await world.step(root, Step("2"))

    adding = Adding(hurdle=hang)
    async with anyio.create_task_group() as group:
        async with Sessions(adding.start, live=1) as world:
            root = await world.reset(TASK)
            group.start_soon(step)
            group.start_soon(step)
            await begun.wait()
        assert adding.open == 0
    with pytest.raises(WorldError, match="not open"):
        await world.step(root, Step("2"))


async def test_a_session_that_does_not_close_is_told_and_nobody_s_fault():
    class Stuck(Register):
        async def close(self):
            await super().close()
            if adding.stuck:
                raise OSError("gone already")

    async def start(task):
        _, state = await adding.start(task)
        return Stuck(adding, 1), state

    adding = Adding()
    adding.stuck = True
    async with Sessions(start, live=1) as world:
        states = await line(world, "2")
        with pytest.warns(ResourceWarning, match="gone already"):
            after = await world.step(states[0], Step("4"))
        assert after.observation == digits(TASK, "4")
        adding.stuck = False


async def test_what_cannot_be_stepped_from():
    async with Sessions(Adding().start) as world:
        root = await world.reset(TASK)
        for foreign in (None, 3, {}, {"at": 1}):
            with pytest.raises(WorldError, match="no snapshot"):
                await world.step(State(foreign), Step("1"))
        with pytest.raises(WorldError, match="done"):
            await world.step(dataclasses.replace(root, done=True), Step("1"))
        broken = json.loads(json.dumps(root.snapshot)) | {"at": "0"}
        with pytest.raises(WorldError):
            await world.step(State(broken), Step("1"))
    with pytest.raises(SpecError, match="at least one"):
        Sessions(Adding().start, live=0)


@pytest.mark.parametrize("page", ["your-own", "sessions"])
async def test_the_page_works(page):
    text = (Path(__file__).parents[2] / "docs" / "environments" / f"{page}.md").read_text()
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        names = {}
        exec(block, names)
        await names["main"]()
