import pytest
from worlds import Enumerate, Judge, Random, worth

from branchwise import (
    Beam,
    BestOfN,
    Chat,
    Exact,
    Request,
    Rollout,
    Scripted,
    Searched,
    SearchFailed,
    Step,
    Task,
    Usage,
    Vote,
    Writing,
    solve,
)
from branchwise.testing import Word, check_backend

pytestmark = pytest.mark.anyio


async def test_the_target_is_hidden_unless_it_is_an_oracle():
    seen = []

    class Spy(Random):
        async def propose(self, node, seeds):
            seen.append(node.task.target)
            return await super().propose(node, seeds)

    class Reader(Judge):
        async def score(self, nodes):
            seen.extend(node.task.target for node in nodes)
            return await super().score(nodes)

    class Place(Word):
        async def reset(self, task):
            seen.append(task.target)
            return await super().reset(task)

    parts = {"policy": Spy(), "controller": BestOfN(n=2), "verifier": Reader()}
    answer = await solve(Task("?", target="abc"), environment=Place(3), **parts)
    assert set(seen) == {None}
    assert answer.root.task.target is None
    seen.clear()
    await solve(Task("?", target="abc"), environment=Place(3), oracle=True, **parts)
    assert set(seen) == {"abc"}


async def test_a_grader_in_a_search_says_that_it_sees_no_target():
    with pytest.raises(SearchFailed, match="set oracle = true"):
        await solve(
            Task("?", target="a"),
            policy=Enumerate(),
            controller=Rollout(),
            environment=Word(1),
            verifier=Exact(),
        )


async def test_what_it_cost_adds_up():
    model = Scripted(lambda request, seed: Step("x", usage=Usage(completion=seed % 9)))
    answer = await solve(
        "?", policy=Chat(backend=model), controller=BestOfN(n=4), environment=Writing()
    )
    assert answer.usage.calls == 1
    assert answer.usage.completion == sum(seed % 9 for seed in model.requests[0].seeds)


async def test_new_nodes_are_shown_as_they_come():
    shown = []
    answer = await solve(
        "?",
        policy=Enumerate(),
        controller=Rollout(),
        environment=Word(3),
        watch=lambda nodes: shown.append([node.text for node in nodes]),
    )
    assert shown == [["a"], ["aa"], ["aaa"]]
    assert answer.seconds >= 0


async def test_a_search_is_a_policy_of_another_search():
    """The best of three words of two letters, followed by the best of three such endings."""
    inner = Searched(BestOfN(n=3), Random(), Word(4), Judge(), horizon=2)
    answer = await solve(
        "?", policy=inner, controller=Rollout(), environment=Word(4), verifier=Judge()
    )
    assert len(answer.text) == 4
    assert answer.usage.calls == 0  # the letters were free


async def test_an_inner_search_starts_where_the_outer_one_stands():
    greedy = Searched(Beam(width=1, fanout=3), Enumerate(), Word(4), Judge(), horizon=1)
    answer = await solve("?", policy=greedy, controller=Rollout(), environment=Word(4))
    word = ""
    while len(word) < 4:
        word = max((word + letter for letter in "abc"), key=worth)
    assert answer.text == word


async def test_searches_nest_as_policies_of_policies():
    """Each step of the outer search is a search over steps that are searches themselves."""
    letter = Searched(Beam(width=1, fanout=3), Enumerate(), Word(4), Judge(), horizon=1)
    pair = Searched(Beam(width=9, fanout=1), letter, Word(4), Judge(), horizon=2)
    answer = await solve("?", policy=pair, controller=Rollout(), environment=Word(4))
    word = ""
    while len(word) < 4:
        word = max((word + letter for letter in "abc"), key=worth)
    assert answer.text == word
    assert [len(node.step.text) for node in answer.root.walk() if node.step] == [2, 2]


async def test_searches_nest_as_models_of_models():
    model = Scripted(lambda request, seed: str(seed % 3), name="dice")
    once = Searched(BestOfN(n=5, pick=Vote()), Chat(backend=model), Writing())
    twice = Searched(BestOfN(n=3, pick=Vote()), Chat(backend=once), Writing())
    await check_backend(twice, Request(prompt="?", seeds=(1, 2)))
    steps = await twice.complete(Request(prompt="?", seeds=(1, 2)))
    assert [step.usage.calls for step in steps] == [3, 3]
    assert {step.text for step in steps} <= {"0", "1", "2"}
