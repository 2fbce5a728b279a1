import random
from collections import Counter

import pytest
from pydantic import ValidationError
from worlds import Jittered, found

from branchwise.agents.chat import Chat
from branchwise.agents.router import Router
from branchwise.backends.scripted import Scripted
from branchwise.core.around import Budget
from branchwise.core.errors import BackendError, SearchFailed, SpecError, WorldError
from branchwise.core.node import Node
from branchwise.core.types import Bounded, State, Step, Task, Usage
from branchwise.search import Beam, BestOfN
from branchwise.solve import solve
from branchwise.testing import Word

pytestmark = pytest.mark.anyio


class Says:
    """A policy that says its name and the seed; what it is told to, it raises."""

    def __init__(self, name, error=None, most=9999):
        self.name, self.error, self.most = name, error, most

    async def propose(self, node, seeds):
        if self.error is not None:
            raise self.error
        return [Step(f"{self.name}{seed}") for seed in seeds[: self.most]]


def node(promised, depth=0):
    here = Node(Task("?"), State())
    for _ in range(depth):
        here = Node(here.task, State(), here)
    here.promised = promised
    return here


def router(rule="turns", names="abc", **more):
    return Router(policies={name: Says(name) for name in names}, rule=rule, **more)


async def said(policy, where, seeds):
    return [step.text for step in await policy.propose(where, seeds)]


async def test_children_go_round_whatever_the_calls_they_come_in():
    assert await said(router(), node(4), [5, 6, 7, 8]) == ["a5", "b6", "c7", "a8"]
    assert await said(router(), node(6), [9, 9]) == ["b9", "c9"]
    assert await said(router(), node(0), [1]) == ["a1"]


async def test_by_depth_the_last_goes_on():
    for depth, name in enumerate("abccc"):
        assert await said(router("depth"), node(2, depth), [1, 2]) == [f"{name}1", f"{name}2"]


async def test_weights_are_those_of_the_draws():
    weights = {"a": 1.0, "b": 3.0, "c": 0.0}
    policy = router("weights", weights=weights)
    seeds = list(range(4000))
    counts = Counter(text[0] for text in await said(policy, node(4000), seeds))
    assert counts["a"] == pytest.approx(1000, abs=4 * (4000 * 3 / 16) ** 0.5)
    assert counts["a"] + counts["b"] == 4000
    assert await said(policy, node(1), [seeds[17]]) == (await said(policy, node(99), seeds))[17:18]
    even = Counter(text[0] for text in await said(router("weights"), node(4000), seeds))
    assert min(even.values()) > 1200


async def test_the_choice_is_not_the_policy_s_own_draw():
    draws = {name: [] for name in "ab"}

    class Draws:
        def __init__(self, name):
            self.name = name

        async def propose(self, node, seeds):
            draws[self.name] += [random.Random(seed).random() for seed in seeds]
            return [Step("") for _ in seeds]

    policy = Router(policies={name: Draws(name) for name in "ab"}, rule="weights")
    await policy.propose(node(2000), list(range(2000)))
    for values in draws.values():
        assert sum(values) / len(values) == pytest.approx(0.5, abs=0.05)


async def test_a_function_chooses():
    policy = router(lambda node, index, seed: "ab"[(index + node.depth + seed) % 2])
    assert await said(policy, node(3, 1), [4, 4, 4]) == ["b4", "a4", "b4"]
    with pytest.raises(SpecError, match=r"'z'.*a, b, c"):
        await router(lambda *_: "z").propose(node(1), [1])


@pytest.mark.parametrize("error", [BackendError("gone"), WorldError("gone"), ValueError("gone")])
async def test_what_one_policy_loses_the_others_keep(error):
    policy = Router(policies={"a": Says("a"), "b": Says("b", error), "c": Says("c")})
    with pytest.raises(BackendError, match="gone") as caught:
        await policy.propose(node(5), [1, 2, 3, 4, 5])
    texts = [step and step.text for step in caught.value.arrived]
    assert texts == ["a1", None, "c3", "a4", None]
    assert not caught.value.fatal


async def test_what_arrived_at_a_failed_policy_is_kept_in_its_place():
    error = BackendError("slow", arrived=[None, Step("late")], spent=Usage(completion=2))
    worse = BackendError("no key", fatal=True, spent=Usage(completion=3))
    policies = {"a": Says("a", error), "b": Says("b"), "c": Says("c", worse)}
    with pytest.raises(BackendError, match="no key") as caught:
        await Router(policies=policies).propose(node(6), [1, 2, 3, 4, 5, 6])
    assert [step and step.text for step in caught.value.arrived] == [
        *(None, "b2", None, "late", "b5", None)
    ]
    assert caught.value.fatal
    assert caught.value.spent == Usage(completion=5)


async def test_a_policy_may_give_fewer_steps():
    policies = {"a": Says("a", most=1), "b": Says("b")}
    assert await said(Router(policies=policies), node(4), [1, 2, 3, 4]) == ["a1", "b2", "b4"]


async def test_the_tree_does_not_depend_on_who_is_faster():
    trees = []
    for jitter in range(4):
        policies = {name: Jittered(Says(name), 1, jitter) for name in "ab"}
        answer = await found(
            Beam(width=2, fanout=3), Router(policies=policies), environment=Word(40)
        )
        trees.append([child.text for child in answer.root.walk()])
    assert len(set(map(tuple, trees))) == 1


async def test_its_failures_are_branches_and_a_fatal_one_ends_the_search():
    for fatal in (False, True):
        broken = Says("b", BackendError("gone", fatal=fatal))
        policy = Router(policies={"a": Says("a"), "b": broken})
        parts = {"policy": policy, "environment": Word(1), "controller": BestOfN(n=4)}
        answer = await solve("?", **parts)
        assert [bool(child.failure) for child in answer.root.children] == [False, True] * 2
        assert (answer.stopped == "failing") is fatal
    with pytest.raises(SearchFailed):
        await solve("?", **{**parts, "policy": Router(policies={"b": broken})})


def chat(max_tokens):
    return Chat(backend=Scripted(lambda request, seed: "x " * 99), max_tokens=max_tokens)


def test_bounds_add_up():
    policies = {"small": chat(10), "large": chat(100), "free": Says("x")}
    assert isinstance(Router(policies=policies), Bounded)
    assert Router(policies=policies).bound(7) == Usage(calls=2, completion=3 * 10 + 3 * 100)
    drawn = Router(policies=policies, rule="weights").bound(7)
    assert drawn == Usage(calls=2, completion=7 * 10 + 7 * 100)


@pytest.mark.parametrize("rule", ["turns", "weights", "depth"])
async def test_no_search_spends_more_than_its_budget(rule):
    policy = Router(policies={"small": chat(3), "large": chat(20)}, rule=rule)
    answer = await solve(
        "?",
        policy=policy,
        controller=BestOfN(n=30),
        environment=Word(1),
        budget=Budget(tokens=100),
    )
    assert answer.stopped == "exhausted"
    assert 0 < answer.usage.completion <= 100


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"policies": {}}, "needs a policy"),
        ({"weights": {"a": 1.0}}, "count with rule"),
        ({"rule": "weights", "weights": {"b": 1.0}}, "one number for each of a"),
        ({"rule": "weights", "weights": {"a": 0.0}}, "at least 0"),
        ({"rule": "weights", "weights": {"a": float("nan")}}, "at least 0"),
        ({"rule": "round"}, "turns"),
    ],
)
def test_wrong_rules_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        Router(**{"policies": {"a": Says("a")}, **fields})
