"""Rejection sampling against the laws of its answer and of its tries."""

import math
import random
from collections import Counter

import pytest
from worlds import Random

from branchwise import BestOfN, Budget, Step, Task, Verdict, solve
from branchwise.core.grow import Grow
from branchwise.core.node import Node
from branchwise.core.types import State
from branchwise.search.best import Best
from branchwise.search.rejection import Rejection
from branchwise.testing import Word

pytestmark = pytest.mark.anyio
P = {"a": 0.4, "b": 0.3, "c": 0.2, "d": 0.1}
REWARD = {"a": 0.0, "b": 1.0, "c": 0.5, "d": 2.0}
RUNS = 600


class Draws:
    """A policy that draws a letter from P by the seed."""

    async def propose(self, node, seeds):
        return [Step(random.Random(s).choices(list(P), P.values())[0]) for s in seeds]


class Rewards:
    def __init__(self, reward):
        self.reward = reward

    async def score(self, nodes):
        return [Verdict(float(self.reward(node.text))) for node in nodes]


async def runs(make, reward):
    """The answers and the numbers of tries of many runs."""
    answers, tries = Counter(), Counter()
    for seed in range(RUNS):
        controller = make(seed)
        root = Node(Task("?"), State(""))
        await controller.grow(
            root, Grow({"policy": Draws()}, Word(1), {"verifier": Rewards(reward)}, seed=seed)
        )
        answer = controller.answer(root)
        answers[answer.text] += 1
        tries[answer.path[0] + 1] += 1
    return answers, tries


def chi_square(counts, law):
    return sum((counts[x] - RUNS * p) ** 2 / (RUNS * p) for x, p in law.items())


async def test_the_accepted_answer_has_the_law_of_a_right_one():
    answers, tries = await runs(lambda seed: Rejection(n=200, batch=2), lambda text: text in "bd")
    right = P["b"] + P["d"]
    assert set(answers) == {"b", "d"}
    assert chi_square(answers, {y: P[y] / right for y in "bd"}) < 10.8  # 1 degree, 0.1 %
    geometric = {t: right * (1 - right) ** (t - 1) for t in range(1, 8)}
    assert chi_square(tries, geometric) < 24.3  # 7 degrees, with the tail left out: 0.1 %


@pytest.mark.parametrize("top", [2.0, 2.5])
async def test_statistical_rejection_has_the_law_of_the_tilted_model(top):
    beta = 0.8
    answers, tries = await runs(
        lambda seed: Rejection(n=400, batch=2, threshold=top, beta=beta, seed=seed), REWARD.get
    )
    tilted = {y: p * math.exp(REWARD[y] / beta) for y, p in P.items()}
    z = sum(tilted.values())
    assert chi_square(answers, {y: t / z for y, t in tilted.items()}) < 16.3  # 3 degrees, 0.1 %
    mean = math.exp(top / beta) / z  # M / Z
    spread = math.sqrt(mean * (mean - 1) / RUNS)
    assert abs(sum(t * c for t, c in tries.items()) / RUNS - mean) < 4 * spread


async def search(controller, policy=None, judge=len, length=3, **more):
    policy = policy or Random()
    parts = {"policy": policy, "environment": Word(length), "verifier": Rewards(judge)}
    return await solve("?", controller=controller, **parts, **more)


def accepted(word):
    return len(word) == 3 and word.startswith("ab")


async def test_the_answer_does_not_depend_on_the_batch():
    for seed in range(8):
        found = {
            batch: await search(Rejection(n=50, batch=batch), judge=accepted, seed=seed)
            for batch in (1, 3, 7, 50)
        }
        assert len({answer.node.path for answer in found.values()}) == 1
        first = found[1].node
        assert accepted(first.text)
        for batch, answer in found.items():  # no batch is begun after the one that held it
            drawn = len(answer.root.children)
            assert drawn == min(50, batch * math.ceil((first.path[0] + 1) / batch))
            whole = [leaf for leaf in answer.root.leaves() if leaf.finished]
            assert next(leaf for leaf in whole if accepted(leaf.text)) is answer.node


async def test_steps_on_the_way_are_not_accepted():
    answer = await search(Rejection(n=4, batch=1), judge=lambda word: 1.0)
    assert len(answer.text) == 3
    assert len(answer.root.children) == 1


@pytest.mark.parametrize("beta", [0.0, 1.0])
async def test_what_was_cut_short_is_not_accepted(beta):
    answer = await search(Rejection(n=4, batch=1, beta=beta), judge=lambda word: 1.0, horizon=2)
    assert len(answer.root.children) == 4
    assert answer.node.state.cut


async def test_where_none_is_accepted_the_pick_decides():
    answer = await search(Rejection(n=10, threshold=9.0), judge=lambda w: -len(w.strip("a")))
    assert len(answer.root.children) == 10
    assert answer.node is Best()(answer.root)


async def test_with_the_largest_score_as_threshold_it_is_best_of_n():
    for seed in range(5):
        ours = await search(Rejection(n=6, threshold="largest"), judge=hash_of, seed=seed)
        theirs = await search(BestOfN(n=6), judge=hash_of, seed=seed)
        assert ours.node.path == theirs.node.path
        assert len(ours.root.children) == 6


def hash_of(word):
    return random.Random(word).random()


async def test_the_largest_score_of_n_is_always_accepted():
    answer = await search(
        Rejection(n=5, threshold="largest", beta=1e-9, pick=Best()), judge=hash_of
    )
    assert answer.node is Best()(answer.root)
    uniform = await search(Rejection(n=5, threshold="largest", beta=1e9), judge=hash_of)
    assert uniform.node.path[0] == 0  # everything is accepted, so the first is


async def test_a_budget_cuts_it_and_the_answer_stands():
    budget = Budget(nodes=7)
    answer = await search(Rejection(n=9, batch=4), judge=lambda w: 0.0, budget=budget)
    assert answer.stopped == "exhausted"
    assert answer.node.failure is None


def test_it_accepts_nobody_who_has_not_been_judged():
    root = Node(Task("?"), State())
    ends = [Node(root.task, State(done=True), root, i) for i in range(2)]
    for end, score in zip(ends, [-math.inf, -3.0], strict=True):
        end.score = score
    root.adopt(ends)
    for controller in (Rejection(threshold="largest"), Rejection(threshold=-9, beta=1e9)):
        assert controller.answer(root) is ends[1]
    assert Rejection().answer(Node(Task("?"), State())).path == ()
