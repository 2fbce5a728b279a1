"""The laws that hold for every controller."""

import itertools
import math

import anyio
import pytest
from anyio.lowlevel import checkpoint
from trio.testing import MockClock
from worlds import Enumerate, Jittered, Judge, Random, worth

from branchwise import (
    BackendError,
    Beam,
    BestFirst,
    BestOfN,
    Budget,
    Node,
    Rollout,
    Searched,
    SearchFailed,
    State,
    Step,
    Task,
    Usage,
    Verdict,
    Vote,
    from_json,
    search,
    solve,
    to_json,
)
from branchwise.allocate import solve_all
from branchwise.core.around import alive
from branchwise.core.grow import Grow
from branchwise.search.replay import ParticleSearch
from branchwise.testing import Word

pytestmark = pytest.mark.anyio

CONTROLLERS = [
    Rollout(),
    BestOfN(n=6),
    BestOfN(n=6, batch=2),
    BestOfN(n=6, pick=search.MBR()),
    Beam(width=4, fanout=3),
    Beam(width=4, fanout=3, trees=2),
    search.BeamDecoding(width=3, fanout=3),
    search.DiverseBeam(width=4, groups=2),
    search.StochasticBeam(width=3, fanout=3),
    search.ExactSearch(fanout=3),
    BestFirst(fanout=3, expansions=12),
    BestFirst(fanout=3, expansions=12, priority="parent", lanes=4),
    search.AStar(fanout=3, expansions=12),
    search.TreeOfThoughtsBFS(width=3, fanout=3),
    search.TreeOfThoughtsBFS(width=3, fanout=3, select="sample"),
    search.TreeOfThoughtsDFS(fanout=3, expansions=12),
    search.IterativeDeepening(fanout=3, expansions=15),
    search.LimitedDiscrepancy(fanout=3, expansions=15),
    search.Lookahead(width=2, fanout=3, steps=1),
    search.MCTS(simulations=12, fanout=3),
    search.MCTS(simulations=6, fanout=3, select="puct", rollout=4),
    search.MCTS(simulations=12, fanout=2, visit="one", widen_k=1.0),
    search.MCTS(simulations=12, fanout=3, lanes=4),
    search.GumbelMCTS(simulations=8, fanout=3),
    search.ABMCTS(trials=10),
    search.Rebase(n=8),
    search.SpeculativeRejection(n=6),
    search.Rejection(n=12, batch=3, threshold=0.9),
    search.ParticleFilter(n=5),
    search.SMC(n=5),
    search.ParticleGibbs(n=4, iterations=2),
    search.Transform(n=4, by="policy"),
    search.Refine(drafts=2, rounds=2, by="policy"),
    search.TreeRefine(width=4, rounds=2, by="policy"),
    search.Until(search=BestOfN(n=6, batch=2), stop={"kind": "enough", "score": 0.9}),
]
NAMES = [f"{controller.kind}-{i}" for i, controller in enumerate(CONTROLLERS)]
every = pytest.mark.parametrize("controller", CONTROLLERS, ids=NAMES)


async def found(controller, *, policy=None, judge=None, **more):
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
    straight = to_json((await found(controller, seed=3)).root)
    for at_once, seed in itertools.product([1, 8, 64], range(3)):
        jittered = await found(controller, policy=Jittered(Random(), at_once, seed), seed=3)
        assert to_json(jittered.root) == straight
    assert to_json((await found(controller, seed=4)).root) != straight


@every
async def test_budgets_of_nodes_calls_and_tokens_are_kept(controller):
    class Talker(Random):
        def __init__(self):
            super().__init__()
            self.calls = 0

        def bound(self, n):
            return Usage(calls=1, completion=5 * n)

        async def propose(self, node, seeds):
            self.calls += 1
            steps = await super().propose(node, seeds)
            return [
                Step(s.text, usage=Usage(completion=1 + seed % 5))
                for s, seed in zip(steps, seeds, strict=True)
            ]

    talker = Talker()
    whole = await found(controller, policy=talker)
    nodes, calls = sum(1 for _ in whole.root.walk()) - 1, talker.calls
    for limit in range(10):
        answer = await found(controller, policy=Talker(), budget=Budget(nodes=limit))
        assert sum(1 for _ in answer.root.walk()) - 1 == min(limit, nodes)
        talker = Talker()
        answer = await found(controller, policy=talker, budget=Budget(calls=limit))
        assert talker.calls == min(limit, calls)
        assert answer.stopped == ("exhausted" if limit < calls else "finished")
        answer = await found(controller, policy=Talker(), budget=Budget(tokens=7 * limit))
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
            await found(controller, policy=Alarm(scope, calls), watch=trees.append)
        for child in itertools.chain(*trees):
            assert controller.answer(child.lineage[0]).failure is None


class Waits(Random):
    """A policy that waits before it speaks, and proposes the same at any time."""

    async def propose(self, node, seeds):
        await checkpoint()
        return await super().propose(node, seeds)


class Doubts(Judge):
    """A verifier that waits: between a child's coming and its verdict there is a turn."""

    async def score(self, nodes):
        await checkpoint()
        return [Verdict(self.value(node.text), detail=node.text) for node in nodes]


async def grown(controller, turns=math.inf):
    """A tree that was cut after so many turns of the event loop, and whether it was."""
    root = Node(Task("a word?"), State(""))
    expand = alive(Grow({"policy": Waits()}, Word(3), {"verifier": Doubts()}, seed=5))
    finished = False

    async def search():
        nonlocal finished
        await controller.grow(root, expand)
        finished = True
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(search)
        while turns > 0:
            turns -= 1
            await checkpoint()
        tasks.cancel_scope.cancel()
    return root, finished


def loaded(root):
    return from_json(to_json(root))


@every
async def test_cut_at_every_turn_of_the_loop_it_answers_and_forgets(controller):
    others = len(anyio.get_running_tasks())
    straight, _ = await grown(controller)
    whole, cuts = False, 0
    while not whole:
        root, whole = await grown(controller, cuts)
        cuts += 1
        assert len(anyio.get_running_tasks()) == others
        before = to_json(root)
        node = controller.answer(root)
        assert node.failure is None
        assert controller.answer(root) is node
        assert controller.answer(loaded(root)).path == node.path
        assert to_json(root) == before
    assert cuts > 3
    assert to_json(root) == to_json(straight)  # nothing is left of the searches that were cut


async def forest():
    """A tree of every controller, a root alone, one that is done, and one whose drafts are cut."""
    roots = [(await grown(controller))[0] for controller in CONTROLLERS]
    roots += [Node(Task("?"), State("")), Node(Task("?"), State("", done=True, answer=""))]
    done = Node(Task("?"), State("", done=True))
    done.adopt([Node(done.task, State("a"), done, i, Step("a")) for i in range(3)])
    return [*roots, done]


PICKS = [
    Vote(),
    Vote(weight="score"),
    Vote(weight="exp"),
    search.MBR(),
    search.MBR(weight="exp", own=False, utility={"kind": "edit"}),
    search.MBR(utility={"kind": "agreement", "of": "text"}),
    search.Cluster(),
    search.Cluster(behaviour="verifier", tests="verifier", passed=0.5),
    search.DualAgreement(tests="verifier"),
]


async def test_every_answer_is_a_pure_function_of_any_tree():
    roots = await forest()
    copies = [loaded(root) for root in roots]
    for controller in [*CONTROLLERS, *(BestOfN(pick=pick) for pick in PICKS)]:
        for root, copy in zip(roots, copies, strict=True):
            before = to_json(root)
            node = controller.answer(root)
            assert node.failure is None
            assert node.lineage[0] is root
            assert controller.answer(copy).path == node.path
            assert to_json(root) == before


@every
@pytest.mark.parametrize(
    "score",
    [
        lambda text: 0.0,
        lambda text: 1e300 if worth(text) > 0.5 else -1e300,
        lambda text: -1e4 * len(text) - worth(text),
    ],
    ids=["equal", "huge", "unlikely"],
)
async def test_scores_may_be_of_any_size(controller, score):
    class Unlikely(Random):
        async def propose(self, node, seeds):
            steps = await super().propose(node, seeds)
            return [Step(s.text, (1,), -1e4, (-1e4,), proposals=(-9e3,)) for s in steps]

    answer = await found(controller, policy=Unlikely(), judge=Judge(score))
    assert answer.stopped == "finished"
    assert answer.node.score > -math.inf


@every
async def test_as_a_policy_it_revises_what_is_done(controller):
    """A controller whose root is done grows drafts, each from the task's beginning."""
    drafts = []

    class Watching(Judge):
        async def score(self, nodes):
            drafts.extend(node for node in nodes if node.start.step is not None)
            return await super().score(nodes)

    revise = Searched(controller, Random(), Word(3), Watching())
    answer = await solve(
        "a word?",
        policy={"policy": Random(), "revise": revise},
        controller=search.Refine(rounds=1),
        environment=Word(3),
        verifier=Judge(),
    )
    assert drafts
    assert all(node.state.snapshot == node.text for node in drafts)
    assert len(answer.text) == 3


@every
async def test_a_fifth_of_the_calls_may_fail(controller):
    class Flaky(Random):
        async def propose(self, node, seeds):
            if node.text and seeds[0] % 5 == 0:
                raise BackendError("the line broke")
            return await super().propose(node, seeds)

    for seed in range(8):
        answer = await found(controller, policy=Flaky(), seed=seed, horizon=9)
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
        answer = await found(controller, judge=Mad(), seed=seed)
        assert answer.text[1:] not in wrong
        for node in answer.root.walk():
            assert (node.failure is not None) == (node.text[1:] in wrong)


@every
@pytest.mark.parametrize(
    "budget", [Budget(nodes=1), Budget(nodes=31), Budget(calls=13), Budget(tokens=67)], ids=str
)
async def test_many_tasks_share_a_budget(controller, budget):
    class Talker(Random):
        def __init__(self):
            super().__init__()
            self.calls = 0

        def bound(self, n):
            return Usage(calls=1, completion=3 * n)

        async def propose(self, node, seeds):
            self.calls += 1
            for _ in range(seeds[0] % 4):
                await checkpoint()
            steps = await super().propose(node, seeds)
            return [Step(step.text, usage=Usage(completion=3)) for step in steps]

    async def answers(at_once):
        talker = Talker()
        jittered = Jittered(talker, at_once, at_once)
        jittered.bound = talker.bound
        found = await solve_all(
            ["a word?", "a second one?", "a third one?"],
            policy=jittered,
            controller=controller,
            environment=Word(3),
            verifier=Judge(),
            budget=budget,
        )
        return talker.calls, found

    calls, found = await answers(1)
    spent = {
        "nodes": sum(sum(1 for _ in answer.root.walk()) - 1 for answer in found),
        "calls": calls,
        "tokens": sum(answer.usage.completion for answer in found),
    }
    limit = {name: most for name, most in budget if most is not None}
    for name, most in limit.items():
        assert spent[name] <= most
        if any(answer.stopped == "exhausted" for answer in found):
            assert spent[name] > most - (3 if name == "tokens" else 1)  # nothing is left over
    _, again = await answers(64)
    assert [to_json(answer.root) for answer in again] == [to_json(answer.root) for answer in found]


@every
async def test_no_proposals_end_the_search(controller):
    class Silent:
        async def propose(self, node, seeds):
            return []

    answer = await found(controller, policy=Silent())
    assert answer.stopped == "finished"
    assert answer.node is answer.root


@every
async def test_duplicates_can_be_hidden_from_it(controller):
    answer = await found(controller, policy=Random("a"), unique="siblings")
    assert set(answer.text) == {"a"}
    grown = [node for node in answer.root.walk() if node.promised]
    if isinstance(controller, ParticleSearch):  # copies are a part of the sample
        assert answer.text == "aaaa"
        assert any(node.index for node in grown)
    else:
        assert all(node.index == 0 for node in grown)  # a copy is never grown


@every
@pytest.mark.parametrize("fatal", [True, False])
async def test_where_nothing_succeeds_it_says_why(controller, fatal):
    class Down:
        async def propose(self, node, seeds):
            raise BackendError("wrong key", fatal=fatal)

    with pytest.raises(SearchFailed, match="wrong key"):
        await found(controller, policy=Down())


async def test_an_outage_in_the_middle_keeps_what_has_grown():
    class Dies(Enumerate):
        async def propose(self, node, seeds):
            if len(node.text) == 2:
                raise BackendError("gone")
            return await super().propose(node, seeds)

    answer = await found(BestFirst(fanout=3), policy=Dies())
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

    answer = await found(Beam(width=3, fanout=3), policy=Half())
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

    answer = await found(Rollout(), policy=Slow(), budget=Budget(seconds=2.5))
    assert answer.stopped == "deadline"
    assert len(answer.text) == 2
