import networkx as nx
import pytest
from pydantic import ValidationError

from branchwise import MCTS, State, Step, Task, WorldError, run_sync, solve
from branchwise.environments.grid import Grid
from branchwise.environments.moves import Moves
from branchwise.testing import check_environment

pytestmark = pytest.mark.anyio
TASK = Task("?")
MAZE = Grid(map=("S..#....", ".#.#.##.", ".#...#.G", ".####P.."), most_steps=60, cost=-0.01)


def start(game):
    return run_sync(game.reset, TASK)


def values(game, sweeps=200):
    """Value iteration in place until nothing changes, without a horizon."""
    squares = {
        (r, c): mark for r, row in enumerate(game.map) for c, mark in enumerate(row) if mark != "#"
    }
    value = dict.fromkeys(squares, 0.0)
    for _ in range(sweeps):
        for (r, c), mark in squares.items():
            if mark not in game.ends:
                beside = [
                    s for s in ((r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1)) if s in squares
                ]
                value[r, c] = max(game.ends.get(squares[s], game.cost) + value[s] for s in beside)
    return value


@pytest.mark.parametrize("game", [Grid(most_steps=60), MAZE])
def test_values_are_those_of_value_iteration(game):
    for (row, column), value in values(game).items():
        state = State({"steps": 0, "row": row, "column": column})
        assert game.best(state) == pytest.approx(value)


def test_the_walk_is_a_shortest_path():
    graph = nx.grid_2d_graph(4, 8)
    graph.remove_nodes_from(
        [(r, c) for r, row in enumerate(MAZE.map) for c, mark in enumerate(row) if mark in "#P"]
    )
    plan = MAZE.solve(start(MAZE))
    assert len(plan) == nx.shortest_path_length(graph, (0, 0), (2, 7))
    state, earned = start(MAZE), 0.0
    for move in plan:
        state = MAZE.after(state, Step(move))
        earned += state.reward
    assert (state.done, state.answer) == (True, "G")
    assert earned == pytest.approx(MAZE.best(start(MAZE)))


def test_with_few_moves_left_the_goal_is_out_of_reach():
    assert Grid(most_steps=4).best(start(Grid())) == pytest.approx(-0.16)
    assert Grid(most_steps=5).best(start(Grid())) == pytest.approx(0.84)


def test_walls_stop_and_count():
    state = Grid().after(start(Grid()), Step("left"))
    assert state.observation.startswith("Illegal: there is a wall left of here.")
    assert state.snapshot == {**start(Grid()).snapshot, "steps": 1}
    assert Grid().moves(state) == ["up", "right"]


def test_a_pit_ends_the_walk():
    state = Grid().after(start(Grid()), Step("go right\nright.\n**Right**\nthen Up!\nup"))
    assert (state.done, state.answer, state.reward) == (True, "P", pytest.approx(-1.12))
    assert Grid().moves(state) == []


def test_what_it_shows():
    assert start(Grid()).observation.endswith("...G\n.#.P\n@...")
    assert Grid().after(start(Grid()), Step("up")).observation == "...G\n@#.P\n...."
    assert not Grid(tell=False).after(start(Grid()), Step("up")).observation


@pytest.mark.parametrize(
    "wrong",
    [{"map": ("S.", "...")}, {"map": ("..",)}, {"map": ("SS",)}, {"ends": {"#": 1.0}}],
)
def test_maps_are_checked(wrong):
    with pytest.raises(ValidationError):
        Grid(**wrong)


async def test_it_keeps_the_laws():
    walk = [Step(word) for word in ("up", "left", "down", "?", "right")]
    await check_environment(Grid(), TASK, walk)
    with pytest.raises(WorldError):
        await Grid().step(State(3), Step("up"))


async def test_mcts_finds_the_best_walk():
    game = Grid(most_steps=8)
    answer = await solve(
        TASK,
        policy=Moves(game, "listed"),
        controller=MCTS(simulations=1500, fanout=4, returns="sum", backup="max"),
        environment=game,
    )
    best = max(
        sum(node.state.reward for node in leaf.lineage)
        for leaf in answer.root.leaves()
        if leaf.done
    )
    assert best == pytest.approx(game.best(answer.root.state))
