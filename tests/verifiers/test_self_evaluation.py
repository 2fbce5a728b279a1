import json
import math

import pytest

from branchwise.backends.scripted import Scripted
from branchwise.core.errors import BackendError, VerifierError
from branchwise.core.node import Node
from branchwise.core.types import Candidate, State, Step, Task, Usage
from branchwise.environments.writing import Writing
from branchwise.search.best_of_n import BestOfN
from branchwise.solve import solve
from branchwise.verifiers.aggregate import Aggregate
from branchwise.verifiers.self_evaluation import SelfEvaluation

pytestmark = pytest.mark.anyio
TASK = Task("What is 6 * 7?", target="the-target")
SHORT = "{prompt}|{before}|{step}"


def grown(*texts, parent=None):
    """The last of some nodes below one another."""
    node = parent or Node(TASK, State())
    for text in texts:
        node = Node(TASK, State(), node, len(node.children), Step(text))
        node.parent.adopt([node])
    return node


def siblings(*texts):
    root = Node(TASK, State())
    return [grown(text, parent=root) for text in texts]


def letters(**law):
    top = tuple(Candidate(i, text, math.log(p), None) for i, (text, p) in enumerate(law.items()))
    return Step(next(iter(law)), finish="length", candidates=(top,), usage=Usage(completion=1))


async def test_p_true_is_the_probability_of_the_letter():
    model = Scripted(lambda request, seed: letters(A=0.5, B=0.25, a=0.125))
    raw, shares = (SelfEvaluation(backend=model, normalised=n) for n in (False, True))
    [verdict] = await raw.score([grown("6 * 7 = ", "42")])
    assert verdict.score == pytest.approx(0.5)
    assert (verdict.detail, verdict.steps) == ("p(A) = 0.5, p(B) = 0.25", ())
    assert (await shares.score([grown("42")]))[0].score == pytest.approx(2 / 3)
    text = model.requests[0].asked
    assert "What is 6 * 7?" in text
    assert "Proposed answer:\n6 * 7 = 42\n" in text
    assert "other ideas" not in text
    assert "the-target" not in repr(model.requests)


async def test_siblings_of_the_same_call_are_shown_once_each():
    model = Scripted(lambda request, seed: letters(A=1.0))
    verifier = SelfEvaluation(
        backend=model, others=2, template="{others}{answer}", shown="<{ideas}>"
    )
    family = siblings("41", "42", "41", " ", "40", "39")
    stranger = grown("7", parent=grown("6", parent=family[0].parent))
    await verifier.score([*family, stranger])
    assert sorted(request.asked for request in model.requests) == [
        "67",
        "<41\n\n40>\n\n42",
        "<41\n\n42>\n\n",
        "<41\n\n42>\n\n39",
        "<41\n\n42>\n\n40",
        "<42\n\n40>\n\n41",
        "<42\n\n40>\n\n41",
    ]
    await verifier.score(family[:1])
    assert model.requests[-1].asked == "41"
    packaged = SelfEvaluation(backend=model, others=1)
    await packaged.score(family[:2])
    asked = "".join(request.asked for request in model.requests[-2:])
    assert "other ideas for this place:\n\n42\n\nProposed answer:\n41\n" in asked


async def test_each_step_is_judged_after_those_before_it():
    chance = {"a": 0.5, "b": 0.75, "c": 0.25}
    model = Scripted(lambda r, s: letters(A=chance[r.asked[-1]], B=1 - chance[r.asked[-1]]))
    verifier = SelfEvaluation(backend=model, per="step", separator="\n", template=SHORT, how="prod")
    node = grown("a\n", "b\nc\n")
    [verdict] = await verifier.score([node])
    asked = [request.asked.removeprefix("What is 6 * 7?|") for request in model.requests]
    assert sorted(asked) == ["a\nb|c", "a|b"]
    assert verdict.steps == pytest.approx((0.75, 0.25))
    assert verdict.score == pytest.approx(0.75 * 0.25)
    assert verdict.usage.calls == 2
    [whole] = await SelfEvaluation(backend=model, per="step", template=SHORT, how="min").score(
        [grown("a", "b")]
    )
    assert whole.steps == (whole.score,) == pytest.approx((0.75,))
    # Guided beam search multiplies along the path: that is a rank.
    first = node.parent
    first.judged(("eval",), (await verifier.score([first]))[:1])
    node.judged(("eval",), [verdict])
    assert Aggregate(of="eval", how="prod")(node) == pytest.approx(0.5 * 0.75 * 0.25)


async def test_a_node_that_says_nothing_is_judged_by_the_step_before():
    model = Scripted(lambda request, seed: letters(A=0.5))
    verifier = SelfEvaluation(backend=model, per="step", template=SHORT)
    ended, silent = await verifier.score([grown("a", "b", ""), grown("")])
    assert ended.score == pytest.approx(0.5)
    assert [request.asked for request in model.requests] == ["What is 6 * 7?|a|b"]
    assert "nothing was said" in str(silent)


async def test_one_step_without_a_verdict_leaves_the_node_without_one():
    def reply(request, seed):
        return letters(Well=1.0) if request.asked.endswith("b") else letters(A=0.5)

    verifier = SelfEvaluation(backend=Scripted(reply), per="step", separator="\n", template=SHORT)
    bad, good = await verifier.score([grown("a\nb\nc"), grown("a\nc")])
    assert "'Well' (1)" in str(bad)
    assert (bad.spent.calls, bad.spent.completion) == (3, 3)
    assert good.score == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("reply", "score"),
    [("95", 0.95), ("95%", 0.95), ("Confidence: 7 %", 0.07), ("0", 0), ("99.5", 0.995)],
)
async def test_confidence_in_words(reply, score):
    verifier = SelfEvaluation(backend=Scripted(lambda r, s: reply), by="verbalised")
    [verdict] = await verifier.score([grown("42")])
    assert verdict.score == score
    assert verdict.detail == reply
    [request] = verifier.backend.requests
    assert (request.sampling.temperature, request.candidates) == (0, 0)


@pytest.mark.parametrize(
    "reply", ["", "very", "101", "-1", "80-90", "about 90", "0.9e1", "90 of 100"]
)
async def test_confidence_that_is_none_is_quoted(reply):
    def shy(request, seed):
        return reply if "bad" in request.asked else "80"

    verifier = SelfEvaluation(backend=Scripted(shy), by="verbalised")
    good, error = await verifier.score([grown("42"), grown("bad")])
    assert good.score == 0.8
    assert isinstance(error, VerifierError)
    assert repr(reply) in str(error)
    assert error.spent.calls == 1


async def test_confidence_in_each_step():
    model = Scripted(lambda request, seed: "50" if "step:\nb" in request.asked else "80")
    verifier = SelfEvaluation(backend=model, by="verbalised", per="step", separator="\n")
    [verdict] = await verifier.score([grown("a\nb")])
    assert verdict.steps == (0.8, 0.5)
    assert verdict.score == pytest.approx(0.4)


@pytest.mark.parametrize("by", ["p-true", "verbalised"])
async def test_a_fatal_error_ends_it(by):
    def broken(request, seed):
        raise BackendError("no key", fatal="bad" in request.asked)

    verifier = SelfEvaluation(backend=Scripted(broken), by=by)
    [error] = await verifier.score([grown("42")])
    assert str(error) == "no key"
    with pytest.raises(BackendError, match="no key"):
        await verifier.score([grown("bad")])


async def test_a_search_by_it():
    class Policy:
        async def propose(self, parent, seeds):
            return [Step(f"It is {i}.") for i in (41, 42)]

    model = Scripted(lambda r, s: letters(A=0.75 if "answer:\nIt is 42." in r.asked else 0.5))
    answer = await solve(
        TASK,
        policy=Policy(),
        controller=BestOfN(n=2),
        environment=Writing(),
        verifier=SelfEvaluation(backend=model, others=1),
    )
    assert answer.value == "It is 42."
    assert "the-target" not in repr(model.requests)


def test_the_model_is_no_part_of_the_configuration():
    verifier = SelfEvaluation(backend=Scripted(lambda r, s: ""), per="step", how="min", others=3)
    dumped = json.loads(verifier.model_dump_json())
    assert "backend" not in dumped
    assert SelfEvaluation(backend=verifier.backend, **dumped) == verifier
