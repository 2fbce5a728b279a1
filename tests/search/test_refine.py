"""Refinement as search."""

import itertools
import math
from fractions import Fraction

import pytest
from worlds import Judge

from branchwise import (
    BackendError,
    Budget,
    Math,
    Node,
    Scripted,
    State,
    Step,
    Task,
    Usage,
    Verdict,
    solve,
)
from branchwise.agents.chat import Chat
from branchwise.agents.reviser import Reviser
from branchwise.search.refine import Refine
from branchwise.search.tree_refine import TreeRefine
from branchwise.testing import Word

pytestmark = pytest.mark.anyio
MENDS, BREAKS = Fraction(1, 2), Fraction(1, 4)


async def refined(controller, draft, revise, judge=None, world=None, **budget):
    return await solve(
        "a word?",
        policy={"policy": draft, "revise": revise},
        controller=controller,
        environment=world or Word(1),
        verifier=judge or Judge(lambda word: float(word == "a")),
        budget=Budget(**budget),
    )


class Says:
    def __init__(self, *texts):
        self.texts = iter(texts)

    async def propose(self, node, seeds):
        return [Step(next(self.texts)) for _ in seeds]


class Different:
    """Revises a draft into the same letter in the other case, then into the next one."""

    async def propose(self, node, seeds):
        return [Step({"b": "B", "B": "a"}.get(node.text, node.text)) for _ in seeds]


class Coins:
    """Mends a wrong draft (`b`) or breaks a right one (`a`) by the next coin; numbers each draft."""

    def __init__(self, coins):
        self.coins = iter(coins)

    async def propose(self, node, seeds):
        coin, wrong = next(self.coins), node.text[0] == "b"
        flips = coin < (MENDS if wrong else BREAKS)
        return [Step(("a" if wrong == flips else "b") + str(node.depth))]


@pytest.mark.parametrize("rounds", [1, 2, 3])
async def test_refinement_is_a_walk_of_the_chain(rounds):
    """Over all coins, the share of right answers is the two-state chain's, exactly."""
    right = 0
    for flips in itertools.product(range(4), repeat=rounds):
        coins = Coins(Fraction(flip, 4) for flip in flips)
        controller = Refine(rounds=rounds, take="last")
        answer = await refined(controller, Says("b0"), coins, Judge(len), Word(2))
        right += answer.text.startswith("a")
    limit = MENDS / (MENDS + BREAKS)
    assert Fraction(right, 4**rounds) == limit * (1 - (1 - MENDS - BREAKS) ** rounds)


async def test_a_draft_that_comes_back_unchanged_ends_its_line():
    answer = await refined(Refine(rounds=9), Says("b"), Different())
    assert [node.text for node in answer.root.walk()] == ["", "b", "B", "a", "a"]
    assert answer.text == "a"


async def test_a_draft_that_is_good_enough_is_not_revised():
    answer = await refined(Refine(drafts=2, enough=1.0), Says("a", "b"), Different())
    grown = {node.path: node.text for node in answer.root.walk()}
    assert grown == {(): "", (0,): "a", (1,): "b", (1, 0): "B", (1, 0, 0): "a"}


@pytest.mark.parametrize(
    ("base", "take", "parents", "answer"),
    [("last", "best", "xcba", "c"), ("best", "best", "xccc", "c"), ("last", "last", "xcba", "d")],
)
async def test_what_is_revised_and_what_answers(base, take, parents, answer):
    judge = Judge({"x": 0.0, "c": 3.0, "b": 2.0, "a": 1.0, "d": 0.5}.get)
    seen = []

    class Spy(Says):
        async def propose(self, node, seeds):
            seen.append(node.text)
            return await super().propose(node, seeds)

    controller = Refine(rounds=4, base=base, take=take)
    found = await refined(controller, Says("x"), Spy("c", "b", "a", "d"), judge)
    assert "".join(seen) == parents
    assert found.text == answer


async def test_tree_refinement_follows_the_shares():
    """Rewards log 3 and 0 share a width of 4 as 3 : 1; their best revision then takes all."""
    worth = {"a": math.log(3), "b": 0.0, "e": 99.0}
    judge = Judge(lambda word: worth.get(word, -99.0))
    said = {"a": "cde", "b": "f", "e": "ghij"}

    class Revise:
        async def propose(self, node, seeds):
            return [Step(letter) for letter in said[node.text]]

    answer = await refined(
        TreeRefine(width=4, rounds=2, temperature=1), Says(*"abzz"), Revise(), judge
    )
    family = {v.text: [w.text for w in v.children] for v in answer.root.walk() if v.children}
    assert family == {"": list("abzz"), "a": list("cde"), "b": ["f"], "e": list("ghij")}
    assert answer.text == "e"


async def test_tree_refinement_ends_where_a_draft_is_enough():
    controller = TreeRefine(width=2, rounds=5, enough=1.0)
    answer = await refined(controller, Says("b", "c"), Says("a", "a", "z", "z"))
    assert sorted(v.text for v in answer.root.walk()) == ["", "a", "a", "b", "c"]


class Teacher:
    async def score(self, nodes):
        return [
            Verdict(1.0) if node.state.answer == "42" else Verdict(0.0, feedback="Too small.")
            for node in nodes
        ]


async def test_a_reviser_reads_its_ancestors_and_their_feedback():
    def reply(request, seed):
        heard = [m.content for m in request.messages]
        drafts = [m.content for m in request.messages if m.role == "assistant"]
        assert all("Too small." in text for text in heard[2::2])
        return f"The answer is {(len(drafts) + 1) * 14}."

    model = Scripted(reply)
    answer = await solve(
        "How many?",
        policy={"policy": Chat(backend=model), "revise": Reviser(backend=model)},
        controller=Refine(rounds=5, enough=1.0),
        environment=Math(),
        verifier=Teacher(),
    )
    assert answer.value == "42"
    assert [len(request.messages) for request in model.requests] == [1, 3, 5]


async def test_a_critique_comes_first_and_may_be_satisfied():
    def reply(request, seed):
        last = request.messages[-1].content
        if last == "What is wrong?":
            draft = request.messages[-2].content
            return "There is nothing to improve." if "42" in draft else "It is not 42."
        return "The answer is 42." if "not 42" in last else "The answer is 41."

    model = Scripted(reply)
    reviser = Reviser(backend=model, critique="What is wrong?")
    answer = await solve(
        "How many?",
        policy={"policy": Chat(backend=model), "revise": reviser},
        controller=Refine(rounds=5, take="last"),
        environment=Math(),
    )
    assert answer.value == "42"
    assert answer.usage.calls == len(model.requests) == 4


async def test_a_memory_forgets_older_drafts():
    reviser = Reviser(backend=Scripted(lambda request, seed: "x"), memory=1)
    answer = await refined(Refine(rounds=2), Says("x"), Says("b", "c"))
    request = reviser.request(answer.root.children[0].children[0].children[0], [1])
    assert [message.content for message in request.messages][1] == "c"
    assert len(request.messages) == 3


async def test_a_revision_of_several_steps_goes_on_where_it_began():
    model = Scripted(lambda request, seed: Step("b", finish="stop"))
    reviser = Reviser(backend=model)
    answer = await solve(
        Task("a word?"),
        policy={"policy": Says(*"cc"), "revise": reviser},
        controller=Refine(rounds=1, take="last"),
        environment=Word(2),
        verifier=Judge(len),
    )
    assert answer.text == "bb"
    assert [len(request.said) for request in model.requests] == [0, 1]
    assert answer.node.state == State("bb", done=True, answer="bb")


async def test_the_last_draft_is_the_last_that_was_finished():
    """The second revision of the better line is cut on its way; the line still answers."""

    class Letters:
        async def propose(self, node, seeds):
            lines = "ab" if not node.path else "ab"[node.path[0]]
            return [Step(letter) for letter in lines]

    controller = Refine(drafts=2, rounds=1, take="last")
    judge = Judge(lambda word: float(word.count("a")))
    answer = await refined(controller, Letters(), Letters(), judge, Word(2), calls=4)
    assert [node.text for node in answer.root.walk()][1:] == ["a", "aa", "a", "b", "bb"]
    assert answer.node.path == (0, 0)


async def test_a_critique_that_comes_alone_is_no_draft():
    """Where some critiques or some revisions fail, only what was revised goes on."""

    class Half:
        name = "half"

        def __init__(self, fails):
            self.fails = fails

        async def complete(self, request):
            asked = request.messages[-1].content
            kind = "critique" if asked == "What is wrong?" else "revision"
            steps = [
                None if (kind, seed) == self.fails else Step(kind, usage=Usage(calls=1))
                for seed in request.seeds
            ]
            if None in steps:
                raise BackendError("lost", arrived=steps, spent=Usage(calls=1))
            return steps

    root = Node(Task("?"), State())
    draft = Node(root.task, State(done=True), root, 0, Step("x"))
    for kind, cost in (("critique", 1), ("revision", 2)):
        reviser = Reviser(backend=Half((kind, 2)), critique="What is wrong?")
        with pytest.raises(BackendError, match="lost") as caught:
            await reviser.propose(draft, [1, 2, 3])
        first, lost, last = caught.value.arrived
        assert first.text == last.text == "revision"
        assert lost is None
        assert first.usage.calls == last.usage.calls == 2
        assert caught.value.spent.calls == cost
