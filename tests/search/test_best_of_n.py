"""Independent samples, whatever the batch, and the law of the best of them."""

from collections import Counter
from itertools import pairwise

import pytest
from worlds import Judge, Random, worth

from branchwise import BestOfN, Rollout, solve, to_json
from branchwise.core.grow import seed_of
from branchwise.testing import Word

pytestmark = pytest.mark.anyio


async def found(controller, policy, *, length=4, judge=None, seed=0):
    answer = await solve(
        "a word?",
        policy=policy,
        controller=controller,
        environment=Word(length),
        verifier=judge or Judge(),
        seed=seed,
    )
    assert answer.stopped == "finished"
    return answer


async def test_best_of_n_is_the_argmax_of_independent_samples():
    answer = await found(BestOfN(n=9), policy=Random())
    paths = [[(i, *[0] * depth) for depth in range(4)] for i in range(9)]
    draws = [
        [(await Random().propose(None, [seed_of(0, p)]))[0].text for p in path] for path in paths
    ]
    assert answer.text == max(("".join(draw) for draw in draws), key=worth)


async def test_the_best_of_n_follows_its_law():
    letters, n, times = "aaabbc", 3, 1500  # scored a < b < c: P(best <= y) = P(sample <= y)^n
    below = [0.0, 3 / 6, 5 / 6, 1.0]
    expected = [times * (b**n - a**n) for a, b in pairwise(below)]
    judge = Judge(ord)
    seen = Counter(
        [
            (await found(BestOfN(n=n), Random(letters), length=1, judge=judge, seed=seed)).text
            for seed in range(times)
        ]
    )
    chi2 = sum((seen[y] - e) ** 2 / e for y, e in zip("abc", expected, strict=True))
    assert chi2 < 13.8  # two degrees of freedom, p = 0.001


async def test_the_batch_does_not_change_the_samples():
    whole = to_json((await found(BestOfN(n=7), Random())).root)
    for batch in range(1, 9):
        assert to_json((await found(BestOfN(n=7, batch=batch), Random())).root) == whole


async def test_each_batch_is_followed_to_its_end_before_the_next():
    orders = []

    class Spy(Random):
        async def propose(self, node, seeds):
            orders.append((node.path[:1], len(seeds)))
            return await super().propose(node, seeds)

    await found(BestOfN(n=3, batch=2), Spy(), length=2)
    assert orders[0] == ((), 2)
    assert sorted(orders[1:3]) == [((0,), 1), ((1,), 1)]  # side by side
    assert orders[3:] == [((), 1), ((2,), 1)]


async def test_one_of_one_is_a_rollout():
    one, rollout = [await found(c, Random(), seed=5) for c in (BestOfN(n=1), Rollout())]
    assert to_json(one.root) == to_json(rollout.root)
