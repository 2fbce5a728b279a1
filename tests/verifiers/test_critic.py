import json
import math

import pytest
from pydantic import ValidationError

from branchwise.backends.scripted import Scripted
from branchwise.core.errors import BackendError, SpecError, VerifierError
from branchwise.core.node import Node
from branchwise.core.types import Candidate, Reading, State, Step, Task, Usage
from branchwise.verifiers.asked import number
from branchwise.verifiers.critic import Critic

pytestmark = pytest.mark.anyio
ROOT = Node(Task("What is 6 * 7?", target="the-target"), State())
CRITIQUES = ("It is right.", "It is terse.", "It is wrong.")


def node(text="It is 42.", place=0):
    return Node(ROOT.task, State(done=True), ROOT, place, Step(text))


def critiquing(after, critiques=CRITIQUES, **fields):
    """A critic whose model writes these critiques, and after each what a function says."""
    order = {}

    def reply(request, seed):
        last = request.messages[-1].content
        if len(request.messages) == 1:
            return critiques[order.setdefault(seed, len(order)) % len(critiques)]
        assert last.startswith("Score the response from")
        return after(request.messages[-2].content)

    return Critic(backend=Scripted(reply), **{"samples": 3, **fields})


def digits(law):
    top = tuple(Candidate(i, text, math.log(p), None) for i, (text, p) in enumerate(law.items()))
    return Step(next(iter(law)), finish="length", candidates=(top,), usage=Usage(completion=1))


async def test_the_expected_score_is_the_mean_over_the_digits():
    laws = {
        CRITIQUES[0]: {"5": 0.5, "4": 0.25, "The": 0.25},  # 14/3
        CRITIQUES[1]: {" 3": 0.25, "3": 0.5, "2": 0.125, "9": 0.125},  # 20/7
        CRITIQUES[2]: {"1": 1.0},
    }
    critic = critiquing(lambda critique: digits(laws[critique]), scale="raw")
    [verdict] = await critic.score([node()])
    assert verdict.score == pytest.approx((14 / 3 + 20 / 7 + 1) / 3)
    assert verdict.feedback == "It is wrong."
    assert verdict.detail == "mean of 3: 4.667, 2.857, 1"
    assert (verdict.usage.calls, verdict.usage.completion) == (1 + 3, 9 + 3)
    [unit] = await critiquing(lambda critique: digits(laws[critique])).score([node()])
    assert unit.score == pytest.approx((verdict.score - 1) / 4)


@pytest.mark.parametrize(
    ("reply", "score"),
    [("4", 0.75), ("Score: 4", 0.75), ("**4.5**", 0.875), ("1/5", 0.0), ("5 out of 5.", 1.0)],
)
async def test_the_written_score_is_read(reply, score):
    [verdict] = await critiquing(lambda critique: reply, by="written").score([node()])
    assert verdict.score == score


@pytest.mark.parametrize(
    "reply",
    ["", "four", "6", "0", "-4", "4/10", "4%", "3-4", "4 or 5", "It earns a 4", "4 of 5", "nan"],
)
async def test_what_is_no_score_is_an_error_that_quotes(reply):
    critic = critiquing(lambda critique: reply, by="written")
    [error] = await critic.score([node()])
    assert isinstance(error, VerifierError)
    assert repr(reply) in str(error)
    assert "none of 3" in str(error)
    assert error.spent.calls == 4


def test_a_number_that_was_cut_is_none():
    with pytest.raises(VerifierError, match="was cut short: it ends with '8'"):
        number(Step("8", finish="length"), 0, 100)
    assert number(Step("80 %"), 0, 100) == 80


async def test_a_critique_without_a_score_is_left_out():
    critic = critiquing(
        lambda c: "?" if "terse" in c else "5" if "right" in c else "3", by="written"
    )
    [verdict] = await critic.score([node()])
    assert verdict.score == (1 + 0.5) / 2
    assert verdict.feedback == "It is wrong."
    assert (
        "1 left out, the first: the judge's reply is no number from 1 to 5: '?'" in verdict.detail
    )


class Head:
    """A value head: the length of all that it was given, and twice that."""

    def __init__(self):
        self.requests = []

    async def read(self, request, *, since=0, state=False, words=()):
        self.requests.append((request, since))
        size = float(len(request.so_far) or len(request.messages[-1].content))
        size = math.nan if "nan" in request.asked else size
        return [Reading((1,), values=(size, 2 * size), usage=Usage(calls=1, prompt=5))]


@pytest.mark.parametrize("label", [0, 1])
async def test_a_value_head_reads_question_answer_and_critique(label):
    head = Head()
    critiques = ("good", "mediocre")
    model = Scripted(lambda request, seed: critiques[request.seeds.index(seed)])
    critic = Critic(
        backend=model, by="values", samples=2, head=head, label=label, template="{prompt}|{answer}"
    )
    [verdict] = await critic.score([node("42")])
    assert verdict.score == (4 + 8) / 2 * (1 + label)
    assert verdict.feedback == "good"
    assert verdict.usage == Usage(calls=3, prompt=5 + 2 * 5, completion=2)
    asked = [[(m.role, m.content) for m in request.messages] for request, _ in head.requests]
    question = ("user", "What is 6 * 7?|42")
    assert sorted(asked) == [
        [question, ("assistant", "good")],
        [question, ("assistant", "mediocre")],
    ]


async def test_a_value_head_reads_plain_text_to_its_end():
    head = Head()
    critic = Critic(
        backend=Scripted(lambda request, seed: " good "), by="values", head=head, chat=False
    )
    await critic.score([node()])
    [(request, since)] = head.requests
    assert (request.so_far, since) == ("\n\ngood", 0)


async def test_heads_that_say_nothing():
    model = Scripted(lambda request, seed: "good")
    with pytest.raises(SpecError, match="needs a model with a value head"):
        await Critic(backend=model, by="values").score([node()])
    with pytest.raises(SpecError, match=r"no label 2: .* 2 numbers"):
        await Critic(backend=model, by="values", head=Head(), label=2).score([node()])
    fine, error = await Critic(backend=model, by="values", head=Head()).score(
        [node(), node("nan", 1)]
    )
    assert fine.score == 4
    assert "nan, which is no finite number" in str(error)
    assert error.spent.calls == 2


async def test_faults_stay_with_their_node_and_fatal_ones_do_not():
    def broken(request, seed):
        if "bad" in request.messages[0].content:
            raise BackendError("gone")
        if "worst" in request.messages[0].content:
            raise BackendError("no key", fatal=True)
        return "4"

    critic = Critic(backend=Scripted(broken), by="written")
    good, bad = await critic.score([node(), node("bad", 1)])
    assert (good.score, str(bad)) == (0.75, "gone")
    with pytest.raises(BackendError, match="no key"):
        await critic.score([node(), node("worst", 1)])
    assert "the-target" not in repr(critic.backend.requests)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"low": 5, "high": 5}, "`low` has to be below"),
        ({"high": 10}, "`high` is at most 9"),
        ({"samples": 0}, "samples"),
    ],
)
def test_scales_that_cannot_be(fields, words):
    with pytest.raises(ValidationError, match=words):
        Critic(backend=Scripted(lambda request, seed: ""), **fields)


def test_the_models_are_no_part_of_the_configuration():
    critic = Critic(backend=Scripted(lambda request, seed: ""), by="written", high=10, head=Head())
    dumped = json.loads(critic.model_dump_json())
    assert not {"backend", "head"} & dumped.keys()
    assert Critic(backend=critic.backend, head=critic.head, **dumped) == critic
