import operator
import random
import re
from contextlib import suppress
from fractions import Fraction
from itertools import permutations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchwise import (
    MCTS,
    Beam,
    BestFirst,
    Budget,
    Chat,
    Function,
    Rollout,
    Scripted,
    SpecError,
    State,
    Step,
    Task,
    WorldError,
    run_sync,
    solve,
)
from branchwise.environments.game24 import Game24
from branchwise.environments.moves import Moves, exact, noisy
from branchwise.testing import check_environment

pytestmark = pytest.mark.anyio
GAME = Game24()


def reset(game, *args):
    return run_sync(game.reset, *args)


def after(game, state, *lines):
    for line in lines:
        state = game.after(state, Step(line))
    return state


OPS = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": lambda a, b: a / b if b else None,
}
SHAPES = (
    lambda a, b, c, d, f, g, h: h(g(f(a, b), c), d),
    lambda a, b, c, d, f, g, h: h(f(a, g(b, c)), d),
    lambda a, b, c, d, f, g, h: g(f(a, b), h(c, d)),
    lambda a, b, c, d, f, g, h: f(a, h(g(b, c), d)),
    lambda a, b, c, d, f, g, h: f(a, g(b, h(c, d))),
)


def brute_force(numbers, target=24):
    """Every order, every operator, every way to bracket four numbers."""
    for order in set(permutations(map(Fraction, numbers))):
        for ops in product(OPS.values(), repeat=3):
            for shape in SHAPES:
                with suppress(TypeError):  # a part of it has no value
                    if shape(*order, *ops) == target:
                        return True
    return False


def test_the_solver_agrees_with_brute_force_over_all_expressions():
    draws = random.Random(0)
    puzzles = [[draws.randint(1, 13) for _ in range(4)] for _ in range(12)]
    puzzles += [[3, 3, 8, 8], [1, 5, 5, 5], [1, 1, 1, 1], [3, 3, 7, 7], [1, 1, 11, 11]]
    verdicts = [bool(GAME.best(reset(GAME, Task(str(puzzle))))) for puzzle in puzzles]
    assert verdicts == [brute_force(puzzle) for puzzle in puzzles]
    assert 0 < sum(verdicts) < len(puzzles)


@pytest.mark.parametrize("puzzle", ["3 3 8 8", "4 9 10 13", "2 2 2 9"])
def test_all_solutions_are_right_and_are_found_again_as_answers(puzzle):
    start = reset(GAME, Task(puzzle))
    found = GAME.solutions(start)
    assert len(set(found)) == len(found) > 0
    for expression in found:
        exact = re.sub(r"(\d+)", r"Fraction(\1)", expression)
        assert eval(exact, {"Fraction": Fraction}) == 24
        said = after(GAME, start, f"Answer: {expression} = 24")
        assert (said.done, said.reward, said.answer) == (True, 1.0, expression)
    assert reset(GAME, Task("1 1 1 1")).done is False
    assert GAME.solutions(reset(GAME, Task("1 1 1 1"))) == []


def test_3388_has_its_one_solution():
    assert GAME.solutions(reset(GAME, Task("3 3 8 8"))) == ["8 / (3 - (8 / 3))"]


@pytest.mark.parametrize("puzzle", ["3 3 8 8", "1 5 5 5", "5 5 5 9"])
def test_playing_the_solvers_moves_wins(puzzle):
    start = reset(GAME, Task(puzzle))
    end = after(GAME, start, *GAME.solve(start))
    assert (end.done, end.cut, end.reward) == (True, False, 1.0)
    assert GAME.solve(reset(GAME, Task("1 1 1 1"))) is None


@settings(max_examples=30)
@given(st.lists(st.integers(1, 13), min_size=2, max_size=3), st.integers(0, 30))
def test_a_state_is_as_good_as_its_best_move(numbers, target):
    game = Game24(target=target)

    def check(state):
        moves = game.moves(state)
        if state.done:
            assert (game.best(state), moves) == (state.reward, [])
            return
        states = [game.after(state, Step(move)) for move in moves]
        assert not any(s.observation.startswith("Illegal") for s in states), "all listed are legal"
        assert game.best(state) == max(map(game.best, states))
        for each in states:
            check(each)

    check(reset(game, Task(str(numbers))))


START = reset(GAME, Task("4 9 10 13"))


@pytest.mark.parametrize(
    "line",
    [
        "13 - 9 = 4 (left: 4 4 10)",
        "13 - 9 = 4",
        "13-9=4",
        "1. 13 - 9 = 4, left: 10 4 4",
        "- First, 13 − 9 = 4 (left: 4 10 4).",
        "**13 - 9 = 4**",
    ],
)
def test_lines_as_models_write_them(line):
    state = after(GAME, START, line)
    assert state.observation == "Left: 10 4 4"
    assert not after(Game24(tell=False), START, line).observation


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("13 - 9 = 5", "13 - 9 is 4, not 5."),
        ("13 - 8 = 5", "8 is not left."),
        ("13 - 13 = 0", "13 is not left twice."),
        ("13 - 9 = 4 (left: 4 10)", "then 10 4 4 are left."),
        ("4 + 9 * 10 = 94", "one operation on two numbers"),
        ("10 * (9 - 4) = 50", "one operation on two numbers"),
        ("Answer: 4 * 9 = 36", "uses each of"),
        ("Answer: __import__('os')", "numbers, brackets"),
        ("Answer: (10 - 4", "no expression"),
        ("Answer: 4 / (9 - 9) * 10 + 13", "divides by zero"),
        ("I do not know.", "no move"),
        ("", "no move"),
    ],
)
def test_what_is_illegal_says_why_and_changes_nothing(line, why):
    state = after(GAME, START, line)
    assert state.observation.startswith("Illegal: ")
    assert why in state.observation
    assert {**state.snapshot, "steps": 0} == START.snapshot
    assert (state.done, state.cut, state.reward) == (False, False, 0.0)
    assert after(GAME, state, "13 - 9 = 4").observation == "Left: 10 4 4"


PIECES = [
    *"0149()+-*/=:,x×÷",
    " ",
    "\n",
    " left: ",
    "Answer: ",
    "13",
    "10 - 4",
    " = ",
    "1/0",
    "9" * 300,
]


@settings(max_examples=400)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12).map("".join))
@pytest.mark.parametrize("task", ["4 9 10 13", "1 1/2 0 -3"])
def test_nothing_that_is_said_breaks_the_game(task, text):
    root = run_sync(GAME.reset, Task(task))
    state = GAME.after(root, Step(text))
    assert state == GAME.after(root, Step(text))
    assert state.reward == float(state.done and state.answer is not None and won(state.answer))
    if "Illegal" in state.observation.partition("\n")[0] and "\n" not in text:
        assert state.snapshot == root.snapshot | {"steps": 1}
    for move in GAME.moves(state)[:3]:
        assert "Illegal" not in GAME.after(state, Step(move)).observation


def won(answer):
    with suppress(ZeroDivisionError):
        return eval(re.sub("[0-9]+", r"Fraction(\g<0>)", answer), {"Fraction": Fraction}) == 24
    return False


def test_the_solver_refuses_what_would_take_minutes():
    state = run_sync(GAME.reset, Task("1 2 3 4 5 6 7"))
    with pytest.raises(SpecError, match="more than 6 numbers"):
        GAME.best(state)
    assert GAME.moves(state)


def test_zero_cannot_be_divided_by():
    state = after(GAME, reset(GAME, Task("4 4 5 6")), "4 - 4 = 0", "5 / 0 = 0")
    assert "divides by zero" in state.observation


def test_illegal_moves_count_and_may_end_the_branch():
    assert after(Game24(illegal="end"), START, "13 - 9 = 5").cut
    game = Game24(most_steps=3)
    state = after(game, START, "?", "?")
    assert game.best(START) == 1
    assert (state.cut, game.best(state), game.moves(state) != []) == (False, 0.0, True)
    late = after(game, state, "13 - 9 = 4")
    assert (late.cut, game.best(late), game.moves(late)) == (True, 0.0, [])


def test_a_whole_game_may_be_one_step():
    text = "Steps:\n13 - 9 = 4 (left: 4 4 10)\nso\n10 - 4 = 6\n4 * 6 = 24\nAnswer: (1"
    state = after(GAME, START, text)
    assert (state.done, state.reward, state.answer) == (True, 1.0, "(13 - 9) * (10 - 4)")
    wrong = after(GAME, START, "13 - 9 = 4\n10 - 4 = 5\n4 * 6 = 24")
    assert wrong.observation == "Illegal: 10 - 4 is 6, not 5.\nLeft: 10 4 4"


def test_a_wrong_end_is_an_answer_without_a_reward():
    state = after(GAME, START, "Answer: 4 + 9 + 10 + 13")
    assert (state.done, state.reward, state.answer) == (True, 0.0, "4 + 9 + 10 + 13")
    assert GAME.best(state) == 0.0


def test_fractions_and_other_targets():
    state = after(GAME, reset(GAME, Task("3 3 8 8")), "8 / 3 = 8/3 (left: 8/3 3 8)")
    assert "3 - (8/3) = 1/3 (left: 8 1/3)" in GAME.moves(state)
    state = after(GAME, state, "3 - 8/3 = 1/3 (left: 8 1/3)", "8 / (1/3) = 24")
    assert state.reward == 1.0
    task = Task("?", meta={"numbers": [3, 5, 7], "target": 36})
    assert GAME.solve(reset(GAME, task))
    assert GAME.best(reset(Game24(target=10), Task("1 1 1 1 1 1"))) == 0.0


def test_moves_that_commute_lead_to_one_state():
    a, b = "13 - 9 = 4", "10 * 4 = 40"
    assert after(GAME, START, a, b).snapshot == after(GAME, START, b, a).snapshot


async def test_it_keeps_the_laws():
    lines = ["13 - 9 = 4", "10 - 4 = 7", "10 - 4 = 6 (left: 4 6)", "Answer: (13-9)*(10-4)", "x"]
    await check_environment(GAME, Task("4 9 10 13"), [Step(line) for line in lines])


async def test_bad_tasks_and_foreign_states_are_refused():
    with pytest.raises(SpecError, match="two numbers"):
        await GAME.reset(Task("nothing"))
    with pytest.raises(WorldError, match="no position"):
        await GAME.step(State("a text"), Step("1 + 1 = 2"))
    assert (await GAME.step(START, Step("13 - 9 = 4", finish="filter"))).cut


async def search(value, policy=None, nodes=4000):
    return await solve(
        "1 5 5 5",
        policy=policy or Moves(GAME),
        controller=BestFirst(fanout=40, expansions=100, enough=1.0),
        environment=GAME,
        verifier=Function(value),
        budget=Budget(nodes=nodes),
    )


async def test_an_exact_judge_needs_no_way_back():
    answer = await search(exact(GAME))
    assert answer.value == "5 * (5 - (1 / 5))"
    grown = [node for node in answer.root.walk() if node.children]
    assert len(grown) == 3


async def test_a_noisy_judge_makes_the_search_come_back_from_dead_ends():
    answer = await search(noisy(GAME, 1.0, seed=0))
    assert answer.node.state.reward == 1.0
    dead = [node for node in answer.root.walk() if node.children and not GAME.best(node.state)]
    assert dead


async def test_noise_is_worth_its_skill():
    """Of a winnable and a lost state the right one is preferred with probability Φ(d'/√2)."""
    won, lost = START, after(GAME, START, "4 + 9 = 13", "13 * 13 = 169")

    class At:
        done = False

        def __init__(self, state):
            self.state = state

    trials = [noisy(GAME, 1.0, seed=seed) for seed in range(2000)]
    right = sum(judge(At(won)) > judge(At(lost)) for judge in trials) / len(trials)
    assert GAME.best(lost) == 0
    assert abs(right - 0.7602) < 4 * (0.76 * 0.24 / 2000) ** 0.5
    assert trials[0](At(won)) == trials[0](At(won))


async def test_the_legal_moves_come_each_once_or_drawn():
    answer = await solve(
        "1 5 5 5",
        policy=Moves(GAME, "shuffled", seed=3),
        controller=BestFirst(fanout=5, expansions=1),
        environment=GAME,
    )
    texts = [child.step.text for child in answer.root.children]
    assert len(set(texts)) == 5 < len(GAME.moves(answer.root.state))
    drawn = await solve(
        "1 5 5 5",
        policy=Moves(GAME, "drawn", illegal=0.5),
        controller=BestFirst(fanout=200, expansions=1),
        environment=GAME,
    )
    illegal = [c for c in drawn.root.children if c.state.observation.startswith("Illegal")]
    assert 60 < len(illegal) < 140
    with pytest.raises(SpecError, match="share"):
        Moves(GAME, illegal=2)


LINES = ["13 - 9 = 5", "13 - 9 = 4 (left: 4 4 10)", "10 - 4 = 6", "4 * 6 = 24 (left: 24)"]


@pytest.mark.parametrize(
    "controller", [Rollout(), BestFirst(fanout=1), MCTS(simulations=9, fanout=1), Beam(width=1)]
)
async def test_a_chat_model_plays_under_any_search(controller):
    asked = []

    def reply(request, seed):
        asked.append([message.content for message in request.messages])
        return LINES[len(request.messages) // 2]

    answer = await solve(
        "4 9 10 13", policy=Chat(backend=Scripted(reply)), controller=controller, environment=GAME
    )
    assert (answer.value, answer.node.state.reward) == ("(13 - 9) * (10 - 4)", 1.0)
    assert "Make 24 from 4 9 10 13" in asked[0][0]
    assert max(asked, key=len)[2].startswith("Illegal: 13 - 9 is 4, not 5.")
