"""One budget for many tasks: exact shares, exact totals, and what it is worth."""

import itertools

import anyio
import pytest
from pydantic import Field
from trio.testing import MockClock
from worlds import Jittered

from branchwise import (
    BackendError,
    BestOfN,
    Budget,
    Controller,
    SpecError,
    Step,
    Usage,
    Verdict,
    Vote,
    solve,
    to_json,
)
from branchwise.allocate import solve_all
from branchwise.core.aio import lanes
from branchwise.search.stopping import Enough
from branchwise.search.until import Until
from branchwise.testing import Word

pytestmark = pytest.mark.anyio


class Hard:
    """A policy that says `b`, and `a` from the sample on that the task names."""

    async def propose(self, node, seeds):
        first = node.promised - len(seeds)
        hard = int(node.task.prompt)
        return [
            Step("a" if i + 1 >= hard else "b", usage=self.cost(i))
            for i in range(first, node.promised)
        ]

    def cost(self, i):
        return Usage()


class Talker(Hard):
    """Costs 1, 2 or 3 tokens a sample, at most 4."""

    def cost(self, i):
        return Usage(completion=1 + i % 3)

    def bound(self, n):
        return Usage(calls=1, completion=4 * n)


class Solved:
    """A verifier that knows."""

    async def score(self, nodes):
        return [Verdict(float(node.text == "a")) for node in nodes]


def until(batch=1, n=1000):
    return Until(search=BestOfN(n=n, batch=batch), stop=Enough())


async def run(tasks, budget, *, policy=None, controller=None, **more):
    answers = await solve_all(
        [str(task) for task in tasks],
        budget=budget,
        policy=policy or Hard(),
        controller=controller or until(),
        environment=Word(1),
        verifier=Solved(),
        **more,
    )
    return [len(answer.root.children) for answer in answers], answers


@pytest.mark.parametrize(
    ("tasks", "total", "drawn"),
    [
        ([1, 1, 1], 30, [1, 1, 1]),
        ([1, 3, 99], 30, [1, 3, 26]),  # 10 each; 9 + 7 are left for the third
        ([12, 1, 15], 30, [12, 1, 15]),  # 10 each; 9 are left: 5 and 4; 3 are left
        ([99, 99, 99], 10, [4, 3, 3]),  # the first gets what cannot be divided
        ([99, 1, 99, 99], 2, [1, 1, 0, 0]),
        ([99, 99], 0, [0, 0]),
        ([], 5, []),
    ],
)
async def test_what_the_easy_ones_leave_the_hard_ones_get(tasks, total, drawn):
    for budget in (Budget(nodes=total), Budget(calls=total)):
        assert (await run(tasks, budget))[0] == drawn


async def test_it_says_who_was_done_and_who_was_not():
    _, answers = await run([1, 99, 3], Budget(nodes=12))
    assert [answer.stopped for answer in answers] == ["finished", "exhausted", "finished"]
    assert [answer.value for answer in answers] == ["a", "b", "a"]
    _, answers = await run([1, 1], Budget(nodes=1))
    assert answers[1].node is answers[1].root
    assert answers[1].error is None


async def test_an_order_that_a_share_pays_in_part_goes_on_with_the_next():
    drawn, answers = await run([99, 1], Budget(nodes=20), controller=until(batch=16))
    assert drawn == [10, 10]  # each ordered 16 and got its share; then nothing was left
    drawn, answers = await run([99, 1, 1], Budget(nodes=30), controller=until(batch=8))
    assert drawn == [14, 8, 8]
    drawn, answers = await run([99, 1, 1], Budget(nodes=27), controller=until(batch=8))
    assert drawn == [11, 8, 8]
    whole = await solve(
        "99", policy=Hard(), controller=BestOfN(n=11), environment=Word(1), verifier=Solved()
    )
    assert to_json(answers[0].root) == to_json(whole.root)


@pytest.mark.parametrize("batch", [1, 3, 8])
async def test_tokens_are_never_exceeded_and_all_that_fits_is_spent(batch):
    for total in range(0, 60, 3):
        _, answers = await run(
            [99, 2, 99, 7], Budget(tokens=total), policy=Talker(), controller=until(batch)
        )
        spent = sum(answer.usage.completion for answer in answers)
        assert total - 4 < spent <= total or all(a.stopped == "finished" for a in answers)


async def test_several_limits_hold_at_once():
    tasks, controller = [99, 99, 2], until(1)
    for budget, drawn in [
        (Budget(tokens=40, calls=9, nodes=30), [4, 3, 2]),
        (Budget(tokens=40, calls=30, nodes=8), [3, 3, 2]),
        # Three shares of 3 pay for no sample of at most 4, two of 5 and 4 do: 1 + 2 and 1 are spent.
        # The 5 left go to the third: 1 and 2, and it is done; the last 2 pay for none.
        (Budget(tokens=9, calls=9, nodes=9), [2, 1, 2]),
    ]:
        assert (await run(tasks, budget, policy=Talker(), controller=controller))[0] == drawn


async def test_dollars_are_shared():
    class Paid(Hard):
        def cost(self, i):
            return Usage(dollars=0.25)

        def bound(self, n):
            return Usage(dollars=0.25 * n)

    assert (await run([99, 1, 99], Budget(dollars=3), policy=Paid()))[0] == [6, 1, 5]


async def test_it_does_not_depend_on_timing():
    tasks, budget = [5, 1, 30, 2, 99, 17], Budget(tokens=90)
    straight = [to_json(a.root) for a in (await run(tasks, budget, policy=Talker()))[1]]

    class Late(Jittered):
        def bound(self, n):
            return self.policy.bound(n)

    for at_once, seed in itertools.product([1, 3, 64], range(5)):
        answers = (await run(tasks, budget, policy=Late(Talker(), at_once, seed)))[1]
        assert [to_json(answer.root) for answer in answers] == straight


async def test_searches_that_nobody_limits_are_those_of_solve():
    for answer, task in zip((await run([3, 9], Budget()))[1], "39", strict=True):
        alone = await solve(
            task, policy=Hard(), controller=until(), environment=Word(1), verifier=Solved()
        )
        assert to_json(answer.root) == to_json(alone.root)


async def test_orders_of_several_nodes_keep_their_order_over_shares():
    orders = []

    class Levels(Controller):
        async def grow(self, root, expand):
            first = await expand([root], 3)
            orders.append([child.path for child in await expand(first, [2, 3, 2])])

        def answer(self, root):
            return root

    await solve_all(
        ["1", "1"],
        budget=Budget(nodes=18),
        policy=Hard(),
        controller=Levels(),
        environment=Word(2),
    )
    assert orders == []  # nine each: neither gets its ten
    await solve_all(
        ["1", "1", "1"],
        budget=Budget(nodes=29),
        policy=Hard(),
        controller=Levels(),
        environment=Word(2),
    )
    want = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]
    assert orders == [want, want]


async def test_a_task_that_fails_does_not_take_the_others_along():
    class Half(Hard):
        async def propose(self, node, seeds):
            if node.task.prompt == "7":
                raise BackendError("no such model", fatal=True)
            return await super().propose(node, seeds)

    _, answers = await run([7, 2], Budget(nodes=10), policy=Half())
    assert [answer.stopped for answer in answers] == ["failing", "finished"]
    assert "no such model" in str(answers[0].error)
    with pytest.raises(SpecError):
        await run([1], Budget(nodes=3), policy={"other": Hard()})


@pytest.mark.parametrize(
    "anyio_backend", [("trio", {"clock": MockClock(autojump_threshold=0)})], ids=["trio"]
)
async def test_the_deadline_is_one_for_all_also_while_they_wait():
    class Slow(Hard):
        async def propose(self, node, seeds):
            await anyio.sleep(1 if node.task.prompt == "9" else 0)
            return await super().propose(node, seeds)

    drawn, answers = await run([9, 99], Budget(nodes=8, seconds=2.5), policy=Slow())
    assert drawn == [2, 4]
    assert [answer.stopped for answer in answers] == ["deadline", "deadline"]


async def test_lanes_share_a_purse():
    class Lanes(Controller):
        n: int = Field(default=50)

        async def grow(self, root, expand):
            left = iter(range(self.n))

            async def lane():
                if next(left, None) is None:
                    return False
                await expand([root])
                return True

            await lanes(lane, 4)

        def answer(self, root):
            return Vote()(root)

    for seed in range(5):
        drawn, _ = await run(
            [99] * 3, Budget(nodes=40), policy=Jittered(Hard(), 64, seed), controller=Lanes()
        )
        assert sum(drawn) == 40
        drawn, _ = await run(
            [99] * 3, Budget(nodes=40), policy=Jittered(Hard(), 64, seed), controller=Lanes(n=5)
        )
        assert drawn == [5, 5, 5]


async def test_sharing_beats_an_equal_split_in_expectation():
    """Two tasks whose samples are right with probability 1/2 and 1/5, eight samples: all cases."""
    chances, total = (0.5, 0.2), 8

    class Coins(Hard):
        async def propose(self, node, seeds):
            place = int(node.task.prompt)
            first = node.promised - len(seeds)
            return [Step("ba"[hits[place][i]]) for i in range(first, node.promised)]

    first = []  # for each task, the law of its first success: at i, or not among the eight
    for p in chances:
        law = [((0,) * i + (1,) * (total - i), p * (1 - p) ** i) for i in range(total)]
        first.append([*law, ((0,) * total, (1 - p) ** total)])
    shared = 0.0
    for cases in itertools.product(*first):
        hits = [case for case, _ in cases]
        _, answers = await run([0, 1], Budget(nodes=total), policy=Coins())
        right = sum(answer.value == "a" for answer in answers)
        shared += right * cases[0][1] * cases[1][1]
    split = sum(1 - (1 - p) ** (total // 2) for p in chances)
    # A task succeeds within its own four, or within what the other one leaves of the eight.
    exact = 0.0
    for (i, a), (j, b) in itertools.product(
        enumerate(chance for _, chance in first[0]), enumerate(chance for _, chance in first[1])
    ):
        i, j = i + 1, j + 1  # noqa: PLW2901  (samples until the first success)
        half = total // 2
        one = i <= half or (j <= half and i <= total - j)
        two = j <= half or (i <= half and j <= total - i)
        exact += (one + two) * a * b
    assert shared == pytest.approx(exact)
    assert shared > split + 0.09
