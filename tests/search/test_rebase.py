"""REBASE: its shares, and the tree they grow."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import LETTERS, Judge, worth

from branchwise import State, Step, solve
from branchwise.search.rebase import Rebase
from branchwise.testing import Word


class Cycle:
    """Proposes the letters in turn."""

    async def propose(self, node, seeds):
        return [Step(LETTERS[i % 3]) for i in range(len(seeds))]


async def found(controller, judge=None):
    answer = await solve(
        "a word?",
        policy=Cycle(),
        controller=controller,
        environment=Word(4),
        verifier=judge or Judge(),
    )
    assert answer.stopped == "finished"
    return answer


@pytest.mark.anyio
@pytest.mark.parametrize("temperature", [0.1, 1.0])
async def test_levels_are_shared_out_by_the_rewards(temperature):
    n, level = 8, [LETTERS[i % 3] for i in range(8)]
    for _ in range(3):
        weights = [math.exp(worth(word) / temperature) for word in level]
        shares = {i: n * weight / sum(weights) for i, weight in enumerate(weights)}
        left, widths = n, {}
        for i in sorted(shares, key=shares.get, reverse=True):
            widths[i] = min(math.ceil(shares[i]), left)
            left -= widths[i]
        level = [word + LETTERS[j % 3] for i, word in enumerate(level) for j in range(widths[i])]
        assert len(level) == n
    answer = await found(Rebase(n=n, temperature=temperature))
    assert [node.text for node in answer.root.walk() if node.done] == level
    assert answer.text == max(level, key=worth)


@pytest.mark.anyio
async def test_it_follows_the_rewards():
    judge = Judge(lambda word: -len(word.strip("b")))
    assert (await found(Rebase(n=3, temperature=1e-3), judge)).text == "bbbb"


@pytest.mark.anyio
async def test_what_is_finished_has_had_its_share():
    class Uneven(Word):
        async def step(self, state, action):
            after = await super().step(state, action)
            return State(after.snapshot, done=True, answer="a") if after.snapshot == "a" else after

    answer = await solve(
        "?",
        policy=Cycle(),
        controller=Rebase(n=6, temperature=10.0),
        environment=Uneven(3),
        verifier=Judge(lambda _: 0.0),
    )
    ends = [node.text for node in answer.root.walk() if node.done]
    assert sorted(map(len, ends)) == [1, 1, 3, 3, 3, 3]


@given(
    st.lists(st.floats(-50, 50), min_size=1, max_size=20),
    st.integers(1, 64),
    st.floats(0.05, 10),
)
def test_ceilings_spend_the_whole_budget(rewards, budget, temperature):
    widths = Rebase(temperature=temperature).widths(rewards, budget)
    weights = [math.exp((reward - max(rewards)) / temperature) for reward in rewards]
    assert sum(widths) == budget
    for width, weight in zip(widths, weights, strict=True):
        assert 0 <= width <= math.ceil(budget * weight / sum(weights))


def test_the_shares_of_each_definition():
    rewards = [math.log(3), 0.0]  # a softmax of 3 : 1
    assert Rebase(temperature=1, share="round").widths(rewards, 4) == [3, 1]
    # 1.5 rounds up twice
    assert Rebase(temperature=1, share="round").widths([0.0, 0.0], 3) == [2, 2]
    assert Rebase(temperature=1, share="ceil").widths([0.0, 0.0], 3) == [2, 1]
    drawn = Rebase(temperature=1, share="multinomial").widths(rewards, 4000)
    assert sum(drawn) == 4000
    assert abs(drawn[0] - 3000) < 5 * math.sqrt(4000 * 3 / 16)


def test_rounded_shares_miss_the_budget_in_a_large_part_of_all_cases():
    draws = random.Random(0)
    cases = [[draws.random() for _ in range(draws.randint(2, 16))] for _ in range(500)]
    sums = {
        share: [sum(Rebase(n=16, share=share).widths(case, 16)) for case in cases]
        for share in ("round", "ceil", "multinomial")
    }
    assert 200 < sum(total != 16 for total in sums["round"]) < 300
    assert min(sums["round"]) < 16 < max(sums["round"])
    assert set(sums["ceil"]) == set(sums["multinomial"]) == {16}
