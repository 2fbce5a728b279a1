"""The laws that hold for every controller."""

import itertools
import math

import anyio
import pytest
from trio.testing import MockClock
from worlds import Enumerate, Jittered, Judge, Random, worth

from branchwise import (
    MCTS,
    BackendError,
    Beam,
    BestFirst,
    BestOfN,
    Budget,
    Rebase,
    Rollout,
    SearchFailed,
    Step,
    Usage,
    Verdict,
    solve,
    to_json,
)
from branchwise.testing import Word

pytestmark = pytest.mark.anyio

CONTROLLERS = [
    Rollout(),
    BestOfN(n=6),
    Beam(width=4, fanout=3),
    Beam(width=4, fanout=3, trees=2),
    BestFirst(fanout=3, expansions=12),
    MCTS(simulations=12, fanout=3),
    MCTS(simulations=6, fanout=3, select="puct", rollout=4),
    Rebase(n=8),
]
NAMES = [f"{controller.kind}-{i}" for i, controller in enumerate(CONTROLLERS)]
every = pytest.mark.parametrize("controller", CONTROLLERS, ids=NAMES)


async def search(controller, *, policy=None, judge=None, **more):
    return await solve(
        "a word?",
        policy=policy or Random(),
        controller=controller,
        environment=Word(4),
        verifier=judge or Judge(),
        **more,
    )


@every
async def test_the_tree_does_not_depend_on_timing(controller):
    straight = to_json((await search(controller, seed=3)).root)
    for at_once, seed in itertools.product([1, 8, 64], range(3)):
        jittered = await search(controller, policy=Jittered(Random(), at_once, seed), seed=3)
        assert to_json(jittered.root) == straight
    assert to_json((await search(controller, seed=4)).root) != straight


@every
async def test_budgets_of_nodes_calls_and_tokens_are_kept(controller):
    class Talker(Random):
        def bound(self, n):
            return Usage(calls=1, completion=5 * n)

        async def propose(self, node, seeds):
            steps = await super().propose(node, seeds)
            return [
                Step(s.text, usage=Usage(completion=1 + seed % 5))
                for s, seed in zip(steps, seeds, strict=True)
            ]

    whole = await search(controller, policy=Talker())
    calls = sum(1 for node in whole.root.walk() if node.children)
    for limit in range(10):
        answer = await search(controller, policy=Talker(), budget=Budget(nodes=limit))
        grown = sum(1 for _ in answer.root.walk()) - 1
        assert grown == min(limit, sum(1 for _ in whole.root.walk()) - 1)
        answer = await search(controller, policy=Talker(), budget=Budget(calls=limit))
        assert sum(1 for node in answer.root.walk() if node.promised) <= limit
        assert answer.stopped == ("exhausted" if limit < calls else "finished")
        answer = await search(controller, policy=Talker(), budget=Budget(tokens=7 * limit))
        assert answer.usage.completion <= 7 * limit


@every
async def test_cut_at_any_turn_it_answers_and_leaks_nothing(controller):
    class Alarm(Random):
        """Cancels the search after so many calls, while others are in flight."""

        def __init__(self, scope, calls):
            super().__init__()
            self.scope, self.left = scope, calls

        async def propose(self, node, seeds):
            self.left -= 1
            if self.left < 0:
                self.scope.cancel()
            await anyio.lowlevel.checkpoint()
            return await super().propose(node, seeds)

    for calls in range(12):
        trees = []
        with anyio.CancelScope() as scope:
            await search(controller, policy=Alarm(scope, calls), watch=trees.append)
        for child in itertools.chain(*trees):
            assert controller.answer(child.lineage[0]).failure is None


@every
async def test_a_fifth_of_the_calls_may_fail(controller):
    class Flaky(Random):
        async def propose(self, node, seeds):
            if node.text and seeds[0] % 5 == 0:
                raise BackendError("the line broke")
            return await super().propose(node, seeds)

    for seed in range(8):
        answer = await search(controller, policy=Flaky(), seed=seed, horizon=9)
        failed = [node for node in answer.root.walk() if node.failure]
        assert all(node.failure == "the line broke" for node in failed)
        assert answer.node.failure is None
        assert all(node.score == -math.inf and not node.children for node in failed)


@every
async def test_scores_that_are_no_numbers_never_win(controller):
    wrong = {"a": math.nan, "b": math.inf, "ca": None, "cb": "1", "cc": -math.inf}

    class Mad(Judge):
        async def score(self, nodes):
            return [Verdict(wrong.get(node.text[1:], worth(node.text))) for node in nodes]

    for seed in range(4):
        answer = await search(controller, judge=Mad(), seed=seed)
        assert answer.text[1:] not in wrong
        for node in answer.root.walk():
            assert (node.failure is not None) == (node.text[1:] in wrong)


@every
async def test_no_proposals_end_the_search(controller):
    class Silent:
        async def propose(self, node, seeds):
            return []

    answer = await search(controller, policy=Silent())
    assert answer.stopped == "finished"
    assert answer.node is answer.root


@every
async def test_duplicates_can_be_hidden_from_it(controller):
    answer = await search(controller, policy=Random("a"), unique="siblings")
    assert answer.text == "aaaa"
    widest = max(len(node.children) for node in answer.root.walk())
    assert all(
        len({c.index for c in node.children}) == len(node.children) for node in answer.root.walk()
    )
    assert widest >= 1


@every
@pytest.mark.parametrize("fatal", [True, False])
async def test_where_nothing_succeeds_it_says_why(controller, fatal):
    class Down:
        async def propose(self, node, seeds):
            raise BackendError("wrong key", fatal=fatal)

    with pytest.raises(SearchFailed, match="wrong key"):
        await search(controller, policy=Down())


async def test_an_outage_in_the_middle_keeps_what_has_grown():
    class Dies(Enumerate):
        async def propose(self, node, seeds):
            if len(node.text) == 2:
                raise BackendError("gone")
            return await super().propose(node, seeds)

    answer = await search(BestFirst(fanout=3), policy=Dies())
    assert answer.stopped == "failing"
    assert "3 times in a row" in str(answer.error)
    assert len(answer.text) == 2


async def test_a_fatal_error_in_one_branch_does_not_lose_the_others():
    class Half(Enumerate):
        async def propose(self, node, seeds):
            if node.text == "b":
                raise BackendError("the quota is spent", fatal=True)
            await anyio.lowlevel.checkpoint()
            return await super().propose(node, seeds)

    answer = await search(Beam(width=3, fanout=3), policy=Half())
    assert answer.stopped == "failing"
    texts = {node.text for node in answer.root.walk()}
    assert {"aa", "ab", "ac", "ca", "cb", "cc"} <= texts


@pytest.mark.parametrize(
    "anyio_backend", [("trio", {"clock": MockClock(autojump_threshold=0)})], ids=["trio"]
)
async def test_a_deadline_cuts_it():
    class Slow(Random):
        async def propose(self, node, seeds):
            await anyio.sleep(1)
            return await super().propose(node, seeds)

    answer = await search(Rollout(), policy=Slow(), budget=Budget(seconds=2.5))
    assert answer.stopped == "deadline"
    assert len(answer.text) == 2
