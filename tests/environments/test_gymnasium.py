import json
from collections import deque

import pytest
from pydantic import ValidationError

from branchwise.core.errors import SpecError, WorldError
from branchwise.core.types import Step, Task, ToolCall
from branchwise.environments.adapters.gymnasium import Gymnasium
from branchwise.search.best_first import BestFirst
from branchwise.search.mcts import MCTS
from branchwise.solve import solve
from branchwise.testing import check_environment
from branchwise.verifiers.function import Function

pytestmark = pytest.mark.anyio

gymnasium = pytest.importorskip("gymnasium")
np = pytest.importorskip("numpy")

LAKE = ("left", "down", "right", "up")
TAXI = ("south", "north", "east", "west", "pickup", "dropoff")
TASK = Task("Reach the goal.")


def put(env, saved):
    env.unwrapped.s = saved


def lake(**more):
    return Gymnasium(
        id="FrozenLake-v1", options={"is_slippery": False}, actions=LAKE, live=3, **more
    )


class Names:
    """Proposes each action, once, in order."""

    def __init__(self, names):
        self.names = names

    async def propose(self, node, seeds):
        first = node.promised - len(seeds)
        return [Step(name) for name in self.names[first : node.promised]]


def breadth_first(env):
    """How many steps the goal is away by the environment's own table, from each state."""
    table = env.unwrapped.P
    away = {s: 0 for a in table.values() for [(_, s, reward, _)] in a.values() if reward > 0}
    queue = deque(away)
    before = {}
    for s in table:
        for a in table[s]:
            [(_, after, _, _)] = table[s][a]
            before.setdefault(after, set()).add(s)
    while queue:
        s = queue.popleft()
        for prior in before.get(s, ()):
            if prior not in away:
                away[prior] = away[s] + 1
                queue.append(prior)
    return away


@pytest.fixture(scope="module")
def worth():
    """The optimal value of each state of the taxi: value iteration on its own table."""
    table, discount = gymnasium.make("Taxi-v4").unwrapped.P, 0.9
    value = dict.fromkeys(table, 0.0)
    for _ in range(40):  # no way of it is longer
        value = {
            s: max(
                sum(p * (r + discount * value[t] * (not over)) for p, t, r, over in outcomes)
                for outcomes in table[s].values()
            )
            for s in table
        }
    return value


@pytest.mark.parametrize("slippery", [False, True])
async def test_a_lake_is_a_function_of_its_states(slippery):
    spec = Gymnasium(id="FrozenLake-v1", options={"is_slippery": slippery}, actions=LAKE, live=2)
    said = ["down", "1", "right", "jump", "up"]
    async with spec.open() as world:
        await check_environment(world, TASK, [Step(text) for text in said])


async def test_a_world_that_saves_is_a_function_too_and_knows_equal_states():
    spec = lake(save=lambda env: int(env.unwrapped.s), load=put)
    async with spec.open() as world:
        await check_environment(world, TASK, [Step("right"), Step("left"), Step("down")])
        root = await world.reset(TASK)
        there, back = [await world.step(root, Step(text)) for text in ("right", "up")]
        again = await world.step(there, Step("left"))
    assert back.snapshot == again.snapshot != there.snapshot
    json.dumps(back.snapshot)


@pytest.mark.parametrize(
    ("text", "column"), [("right", 1), (" right\n", 1), ("2", 1), ("0", 0), ("left", 0)]
)
async def test_an_action_is_a_name_or_a_number(text, column):
    async with lake().open() as world:
        state = await world.step(await world.reset(TASK), Step(text))
    assert state.observation == str(column)


@pytest.mark.parametrize(
    "text",
    ["", "fly", "4", "-1", "1.5", "[1]", "{}", "null", "true", "[" * 100_000, "NaN", "1e999"],
)
async def test_what_is_no_action_is_told_so_and_changes_nothing(text):
    async with lake().open() as world:
        root = await world.reset(TASK)
        state = await world.step(root, Step(text))
        assert (state.reward, state.done, state.cut) == (0, False, False)
        assert state.observation.endswith("no action here. The actions are left, down, right, up.")
        assert (await world.step(state, Step("right"))).observation == "1"


async def test_there_are_no_tools():
    async with lake().open() as world:
        call = Step("", finish="tools", tool_calls=(ToolCall("1", "go", "{}"),))
        state = await world.step(await world.reset(TASK), call)
    assert state.observation == "There are no tools here. Answer in words."


async def test_the_end_the_cut_and_the_return():
    spec = Gymnasium(
        id="CliffWalking-v1", options={"max_episode_steps": 3}, actions=("up", "right", "down")
    )
    async with spec.open() as world:
        state = await world.reset(TASK)
        seen = []
        for text in ("right", "up", "up"):
            state = await world.step(state, Step(text))
            seen.append((state.reward, state.done, state.cut, state.answer))
    assert seen == [(-100, False, False, None), (-1, False, False, None), (-1, False, True, "-102")]


async def test_a_lake_is_drawn():
    spec = Gymnasium(id="FrozenLake-v1", options={"render_mode": "ansi"})
    async with spec.open() as world:
        state = await world.reset(TASK)
    assert state.observation.split() == ["[S]FFF", "FHFH", "FFFH", "HFFG"]


async def test_one_renders_and_parses_as_one_likes():
    spec = lake(
        parse=lambda text, env: "LDRU".index(text[-1]),
        render=lambda seen, env: f"row {seen // 4}, column {seen % 4}",
    )
    async with spec.open() as world:
        root = await world.reset(TASK)
        right = await world.step(root, Step("I shall go R"))
        wrong = await world.step(root, Step("I shall stay"))
    assert (right.observation, wrong.observation) == ("row 0, column 1", "substring not found")


class Shapes(gymnasium.Env):
    """Its actions have parts; it says what it was given."""

    def __init__(self):
        box = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        coin = gymnasium.spaces.Discrete(2, start=5)
        self.action_space = gymnasium.spaces.Dict(
            {"move": box, "both": gymnasium.spaces.Tuple((coin, coin))}
        )
        self.observation_space = self.action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return {"seed": seed, "options": options}, {}

    def step(self, action):
        return action, np.float64(0.5), np.bool_(False), np.bool_(False), {}


async def test_actions_with_parts_are_json():
    async with Gymnasium(make=lambda task: Shapes()).open() as world:
        root = await world.reset(Task("?", meta={"seed": 3, "options": {"level": 2}}))
        good = await world.step(root, Step('{"move": [0.5, -1], "both": [5, 6]}'))
        bad = [
            await world.step(root, Step(text))
            for text in ('{"move": [0.5, 2], "both": [5, 6]}', '{"move": [1, 1], "both": [5]}', "5")
        ]
    assert json.loads(root.observation) == {"seed": 3, "options": {"level": 2}}
    assert json.loads(good.observation) == {"move": [0.5, -1], "both": [5, 6]}
    assert good.reward == 0.5
    assert all("no action here" in state.observation for state in bad)


async def test_the_seed_is_the_tasks():
    async with Gymnasium(id="Taxi-v4").open() as world:
        seeds = [Task("Drive."), Task("Drive!"), *(Task("?", meta={"seed": i}) for i in range(8))]
        first = [(await world.reset(task)).observation for task in seeds]
        assert [(await world.reset(task)).observation for task in seeds] == first
        with pytest.raises(SpecError, match="no seed"):
            await world.reset(Task("?", meta={"seed": "x"}))
    env = gymnasium.make("Taxi-v4")
    assert first[2:] == [str(env.reset(seed=i)[0]) for i in range(8)]
    assert len(set(first)) > 5


async def test_best_first_finds_a_shortest_way_over_the_lake():
    away = breadth_first(gymnasium.make("FrozenLake-v1", is_slippery=False))
    spec = lake(save=lambda env: int(env.unwrapped.s), load=put)
    async with spec.open() as world:
        answer = await solve(
            TASK,
            policy=Names(LAKE),
            environment=world,
            controller=BestFirst(fanout=4, expansions=100, enough=1.0),
            unique="states",
        )
    assert answer.value == "1"
    assert len(answer.node.steps) == away[0] == 6


@pytest.mark.parametrize("controller", [BestFirst(fanout=3), MCTS(simulations=1)])
async def test_scores_are_rewards_where_no_verifier_is_in_charge(controller):
    spec = Gymnasium(id="CliffWalking-v1", actions=("up", "right", "down"))
    async with spec.open() as world:
        answer = await solve(
            TASK, policy=Names(spec.actions), environment=world, controller=controller
        )
    assert [v.score for v in answer.root.children[:3]] == [-1, -100, -1]


async def test_a_taxi_takes_the_best_way(worth):
    start = int(gymnasium.make("Taxi-v4").reset(seed=5)[0])

    def optimistic(node):
        """What a path has earned and what is left of it at best: exact, so that A* is greedy."""
        place = int(node.state.observation)
        past = sum(0.9**i * v.state.reward for i, v in enumerate(node.lineage[1:]))
        return past + (0 if node.state.done else 0.9**node.depth * worth[place])

    spec = Gymnasium(id="Taxi-v4", actions=TAXI)
    for controller in (
        BestFirst(fanout=6, expansions=40, enough=None),
        MCTS(simulations=60, fanout=6, exploration=0.05, backup="max"),
    ):
        async with spec.open() as world:
            answer = await solve(
                Task("Drive.", meta={"seed": 5}),
                policy=Names(TAXI),
                environment=world,
                verifier=Function(optimistic),
                controller=controller,
            )
        assert answer.node.finished
        assert answer.node.score == pytest.approx(worth[start])


def broken(seen, env):
    raise RuntimeError("no picture")


class Odd(Shapes):
    def step(self, action):
        return {}, float("nan"), False, False, {}


async def test_what_breaks_is_the_world():
    good = Step('{"move": [0, 0], "both": [5, 5]}')
    async with Gymnasium(make=lambda task: Odd()).open() as world:
        root = await world.reset(TASK)
        with pytest.raises(WorldError, match="a reward of nan"):
            await world.step(root, good)
    async with lake(render=broken).open() as world:
        with pytest.raises(WorldError, match="no picture"):
            await world.reset(TASK)


async def test_what_cannot_be_made_says_why():
    async with Gymnasium(id="NoSuchLake-v1").open() as world:
        with pytest.raises(SpecError, match="cannot make 'NoSuchLake-v1'"):
            await world.reset(TASK)
    with pytest.raises(ValidationError, match="either `id` or `make`"):
        Gymnasium()
    with pytest.raises(ValidationError, match="need each other"):
        Gymnasium(id="FrozenLake-v1", load=put)
