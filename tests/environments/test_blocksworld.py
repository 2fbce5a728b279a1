import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchwise import (
    BestFirst,
    Function,
    SpecError,
    State,
    Step,
    Task,
    WorldError,
    run_sync,
    solve,
)
from branchwise.environments.blocksworld import Blocksworld
from branchwise.environments.moves import Moves, exact
from branchwise.testing import check_environment

pytestmark = pytest.mark.anyio
HAND, MOVE = Blocksworld(), Blocksworld(actions="move")


def start(stacks, goal, game=HAND):
    return run_sync(game.reset, Task("?", meta={"stacks": stacks, "goal": goal}))


SUSSMAN = ([["A", "C"], ["B"]], [["A", "B"], ["B", "C"]])


def test_sussmans_anomaly_takes_six_actions_or_three_moves():
    assert HAND.solve(start(*SUSSMAN)) == [
        "unstack C from A",
        "put down C",
        "pick up B",
        "stack B on C",
        "pick up A",
        "stack A on B",
    ]
    plan = MOVE.solve(start(*SUSSMAN, MOVE))
    assert plan == ["move C from A to the table", "move B from the table to C", plan[2]]
    assert plan[2] == "move A from the table to B"


def world(state):
    snapshot = state.snapshot
    return frozenset(map(tuple, snapshot["stacks"])), snapshot["hand"]


def explored(game, state):
    """The graph of all worlds that playing reaches."""
    graph, open_ = nx.DiGraph(), [state]
    graph.add_node(world(state))
    seen = {world(state)}
    while open_:
        state = open_.pop()
        for move in game.moves(state):
            after = game.after(state, Step(move))
            assert not after.observation.startswith("Illegal")
            graph.add_edge(world(state), world(after))
            if world(after) not in seen:
                seen.add(world(after))
                open_.append(after)
    return graph


@pytest.mark.parametrize(("n", "arrangements"), [(1, 1), (2, 3), (3, 13), (4, 73)])
def test_there_are_as_many_worlds_as_ordered_partitions(n, arrangements):
    """Sequence A000262; with the hand, also those of all others for each block that is held."""
    names = "ABCD"[:n]
    never = [[names[0], names[0]]]  # no block stands on itself, so that no world is the end
    game = Blocksworld(actions="move", most_steps=10**6)
    assert len(explored(game, start([[x] for x in names], never, game))) == arrangements


def test_with_the_hand_the_held_block_counts_too():
    game = Blocksworld(most_steps=10**6)
    graph = explored(game, start([["A"], ["B"], ["C"]], [["A", "A"]], game))
    assert len(graph) == 13 + 3 * 3
    assert all(graph.has_edge(b, a) for a, b in graph.edges), "each action can be taken back"


ORDERS = st.permutations(["A", "B", "C", "D"])


@settings(max_examples=20)
@given(ORDERS, st.integers(0, 3), ORDERS, st.booleans())
def test_plans_are_as_short_as_networkx_finds(order, cut, wanted, hand):
    game = Blocksworld(actions="hand" if hand else "move", most_steps=100)
    stacks = [part for part in (order[:cut], order[cut:]) if part]
    goal = [[wanted[0], wanted[1]], [wanted[2], "table"]]
    state = start(stacks, goal, game)

    def holds(world):
        below = {b: s[i - 1] if i else "table" for s in world[0] for i, b in enumerate(s)}
        return all(below.get(a) == b for a, b in goal)

    free = start(stacks, [["A", "A"]], game)
    lengths = nx.single_source_shortest_path_length(explored(game, free), world(free))
    shortest = min(length for world, length in lengths.items() if holds(world))
    plan = game.solve(state)
    assert len(plan) == game.distance(state) == shortest
    for move in plan:
        state = game.after(state, Step(move))
    assert (state.done, state.reward) == (bool(plan) or state.done, float(bool(plan)))


def test_a_goal_that_is_too_far_is_a_dead_end():
    game = Blocksworld(most_steps=5)
    assert (game.best(start(*SUSSMAN, game)), game.solve(start(*SUSSMAN, game))) == (0.0, None)
    assert Blocksworld(most_steps=6).best(start(*SUSSMAN)) == 1.0
    assert HAND.best(start([["A", "B"]], [["A", "A"]])) == 0.0


def test_the_solver_refuses_what_would_take_minutes():
    state = start([[name] for name in "ABCDEFGH"], [["A", "B"]])
    with pytest.raises(SpecError, match="more than 7 blocks"):
        HAND.best(state)
    assert len(HAND.moves(state)) == 8


WORDS = ["pick up", "put down", "stack", "unstack", "move", "on", "from", "to", "top of", "the"]
WORDS += ["table", "A", "B", "c", "block", "D", "\n", "red", "_", "é"]


@given(st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join), st.sampled_from([HAND, MOVE]))
def test_nothing_that_is_said_breaks_the_game(text, game):
    root = start(*SUSSMAN, game)
    state = game.after(root, Step(text))
    blocks = [name for stack in state.snapshot["stacks"] for name in stack]
    assert sorted([*blocks, *filter(None, [state.snapshot["hand"]])]) == ["A", "B", "C"]
    for move in game.moves(state):
        assert "Illegal" not in game.after(state, Step(move)).observation


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("pick up A", "there is something on A."),
        ("pick up C", "C does not stand there"),
        ("unstack B from A", "B does not stand there"),
        ("put down C", "C is not held."),
        ("stack B on C", "B is not held."),
        ("pick up D", "there is no block D."),
        ("move C to B", "'move' is no action here."),
        ("Let me think.", "no move"),
    ],
)
def test_what_is_illegal_says_why_and_changes_nothing(line, why):
    before = start(*SUSSMAN)
    state = HAND.after(before, Step(line))
    assert state.observation.startswith("Illegal: ")
    assert why in state.observation
    assert {**state.snapshot, "steps": 0} == before.snapshot


def test_a_full_hand_and_moves_say_why_too():
    state = HAND.after(start(*SUSSMAN), Step("unstack C from A\npick up B"))
    assert "C is held." in state.observation
    state = HAND.after(start([["A", "B"], ["C"]], [["A", "A"]]), Step("pick up C\nstack C on A"))
    assert "there is something on A." in state.observation
    state = MOVE.after(start(*SUSSMAN, MOVE), Step("move B onto A"))
    assert "there is something on A." in state.observation
    assert "or is to stay" in MOVE.after(state, Step("move B to the table")).observation


def test_plans_in_the_words_of_planbench():
    task = Task(
        "As initial conditions I have that, the red block is clear, the hand is empty, the red "
        "block is on top of the blue block, the orange block is on the table and the blue block is "
        "on the table. My goal is to have that the blue block is on top of the orange block."
    )
    state = run_sync(HAND.reset, task)
    assert state.snapshot["stacks"] == [["blue", "red"], ["orange"]]
    assert HAND.distance(state) == 4
    plan = (
        "unstack the red block from on top of the blue block\nput down the red block\n"
        "pick up the blue block\nstack the blue block on top of the orange block\n[PLAN END]"
    )
    end = HAND.after(state, Step(plan))
    assert (end.done, end.reward, end.answer) == (True, 1.0, "4")


@pytest.mark.parametrize(
    "task",
    [
        Task("A is on B. Goal: C is on A."),
        Task("A is on B."),
        Task("?", meta={"stacks": [["A"], ["A"]], "goal": [["A", "table"]]}),
        Task("?", meta={"stacks": "A", "goal": [["A", "table"]]}),
        Task("?", meta={"stacks": [["A"]]}),
    ],
)
async def test_tasks_without_a_game_are_refused(task):
    with pytest.raises(SpecError):
        await HAND.reset(task)


@pytest.mark.parametrize("game", [HAND, MOVE])
async def test_it_keeps_the_laws(game):
    task = Task("?", meta={"stacks": SUSSMAN[0], "goal": SUSSMAN[1]})
    plan = game.solve(start(*SUSSMAN, game))
    await check_environment(game, task, [Step(line) for line in ["?", *plan[:2], *plan]])
    with pytest.raises(WorldError):
        await game.step(State("a text"), Step("?"))


async def test_a_search_finds_the_shortest_plan_where_the_steps_just_suffice():
    game = Blocksworld(most_steps=6)
    answer = await solve(
        Task("?", meta={"stacks": SUSSMAN[0], "goal": SUSSMAN[1]}),
        policy=Moves(game),
        controller=BestFirst(fanout=8, expansions=50, enough=1.0),
        environment=game,
        verifier=Function(exact(game)),
    )
    assert answer.value == "6"
