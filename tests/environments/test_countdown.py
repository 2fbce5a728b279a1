import random
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchwise import SpecError, Step, Task, run_sync
from branchwise.environments.countdown import Countdown
from branchwise.testing import check_environment

pytestmark = pytest.mark.anyio
GAME = Countdown()


def start(numbers, target, game=GAME):
    return run_sync(game.reset, Task("?", meta={"numbers": numbers, "target": target}))


def makeable(numbers):
    """All positive whole numbers that some of the numbers make, by splitting sets in two."""
    made = {}
    indices = range(len(numbers))
    for size in range(1, len(numbers) + 1):
        for chosen in combinations(indices, size):
            values = {numbers[chosen[0]]} if size == 1 else set()
            for k in range(1, size):
                for left in combinations(chosen, k):
                    right = tuple(i for i in chosen if i not in left)
                    for a in made[left]:
                        for b in made[right]:
                            values |= {a + b, a * b}
                            values |= {a - b} if a > b else set()
                            values |= {a // b} if a % b == 0 else set()
            made[chosen] = values
    return set().union(*made.values())


def test_the_solver_makes_what_can_be_made():
    draws = random.Random(1)
    for _ in range(6):
        numbers = [draws.randint(1, 25) for _ in range(4)]
        possible = makeable(numbers)
        targets = [t for t in draws.sample(range(10, 100), 20) if t not in numbers]
        found = {target for target in targets if GAME.best(start(numbers, target))}
        assert found == possible & set(targets)


@given(st.lists(st.integers(1, 12), min_size=2, max_size=4), st.integers(13, 60))
def test_the_solvers_moves_win(numbers, target):
    state = start(numbers, target)
    plan = GAME.solve(state)
    assert (plan is not None) == bool(GAME.best(state))
    for move in plan or []:
        assert move in GAME.moves(state)
        state = GAME.after(state, Step(move))
    if plan is not None:
        assert (state.done, state.reward, eval(state.answer)) == (True, 1.0, target)


def test_six_numbers_of_the_television_game():
    state = start([1, 3, 7, 10, 25, 50], 765)
    assert GAME.best(state) == 1.0
    said = GAME.after(state, Step("Answer: (25 - 10) * (50 + 1) = 765"))
    assert (said.done, said.reward) == (True, 1.0)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("3 - 7 = -4", "positive whole"),
        ("7 / 3 = 7/3", "positive whole"),
        ("7 - 7 = 0", "not left twice"),
        ("Answer: 3 - 7 + 8", "positive whole"),
        ("Answer: 3 * 3", "at most"),
    ],
)
def test_what_its_rules_forbid(line, why):
    state = GAME.after(start([3, 7, 8], 32), Step(line))
    assert why in state.observation
    assert not state.done


def test_not_all_numbers_need_be_used_and_it_stops_at_the_target():
    state = GAME.after(start([3, 4, 7], 12), Step("3 * 4 = 12 (left: 7 12)\n12 + 7 = 19"))
    assert (state.done, state.answer) == (True, "3 * 4")
    assert GAME.after(start([3, 4, 7], 12), Step("Answer: 3 * 4")).reward == 1.0
    assert GAME.after(start([3, 4, 7], 12), Step("Answer: 3 + 4")).reward == 0.0


def test_with_few_moves_left_only_short_ways_count():
    assert start([2, 3, 4], 24) is not None
    short = Countdown(most_steps=1)
    assert short.best(start([2, 3, 4], 24, short)) == 0.0
    assert short.best(start([2, 3, 4], 12, short)) == 1.0


async def test_the_text_may_say_the_task():
    state = await GAME.reset(Task("Use 3, 4 and 7 to make 25."))
    assert (state.snapshot["given"], state.snapshot["target"]) == (["3", "4", "7"], "25")
    for wrong in ("12", "none", "3 4 4", "3 -4 7"):
        with pytest.raises(SpecError):
            await GAME.reset(Task(wrong))


async def test_it_keeps_the_laws():
    lines = ["7 - 3 = 4", "3 - 7 = 1", "4 * 8 = 32", "?"]
    await check_environment(GAME, Task("3 7 8 32"), [Step(line) for line in lines])
