"""Each verifier's number, worked out from the formula of its paper with pencil and paper."""

import math
from fractions import Fraction

import pytest

from branchwise import Scripted
from branchwise.core.aio import run_sync
from branchwise.core.node import Node
from branchwise.core.types import Candidate, Reading, State, Step, Task, Verdict
from branchwise.verifiers.aggregate import Aggregate, aggregated
from branchwise.verifiers.cascade import Cascade, Stage
from branchwise.verifiers.ensemble import Ensemble
from branchwise.verifiers.function import Function
from branchwise.verifiers.generative import GenRM, GenRMCoT
from branchwise.verifiers.implicit import ImplicitReward
from branchwise.verifiers.judge import Judge
from branchwise.verifiers.outcome import BradleyTerry, Words
from branchwise.verifiers.product import Product
from branchwise.verifiers.self_evaluation import SelfEvaluation

ROOT = Node(Task("?"), State())
WAYS = ("min", "prod", "last", "mean", "max", "sum")


def leaf(text="x", index=0, **state):
    return Node(ROOT.task, State(**state), ROOT, index, Step(text))


def path(*said):
    """A path of nodes, each with its text and what a verifier called `v` says of it."""
    node = ROOT
    for text, score, *steps in said:
        node = Node(ROOT.task, State(), node, 0, Step(text))
        node.judged(("v",), (Verdict(score, steps=tuple(steps)),))
    return node


def aggregates(node):
    return [pytest.approx(Aggregate(of="v", how=how)(node), rel=1e-12) for how in WAYS]


def test_six_ways_to_make_one_score():
    # 1/2, 3/4, 1/4: min 1/4, product 3/32, last 1/4, mean 1/2, max 3/4, sum 3/2.
    numbers = [0.25, 3 / 32, 0.25, 0.5, 0.75, 1.5]
    assert [aggregated((0.5, 0.75, 0.25), how) for how in WAYS] == numbers
    assert numbers == aggregates(path(("a", 0.5), ("b", 0.75), ("c", 0.25)))
    # The same three steps in two nodes: the first holds two of them, and its own score counts not.
    assert numbers == aggregates(path(("ab", 9.0, 0.5, 0.75), ("c", 0.25)))
    # An end that says nothing is judged by the last step again, and counts no second time.
    for end in ("", "\n"):
        assert numbers == aggregates(path(("ab", 9.0, 0.5, 0.75), ("c", 0.25), (end, 0.25)))
    # Unless there is a step in it, such as the mark that ends a text.
    last = aggregates(path(("ab", 9.0, 0.5, 0.75), ("", 0.25, 0.25)))
    assert numbers == last


def test_an_earlier_draft_is_no_part_of_the_path():
    first = Node(ROOT.task, State(done=True), ROOT, 0, Step("wrong"))
    first.judged(("v",), (Verdict(0.01),))
    second = Node(ROOT.task, State(done=True), first, 0, Step("right"))
    second.judged(("v",), (Verdict(0.5),))
    assert aggregates(second) == [0.5] * 6


def test_bradley_and_terry():
    # P = e^ra / (e^ra + e^rb): rewards ln 3 and 0 are 3 to 1; halved, √3 to 1.
    a, b = leaf("a"), leaf("b", 1)
    reward = Function(lambda node: math.log(3) if node is a else 0.0)
    for scale, chance in ((1.0, 3 / 4), (2.0, math.sqrt(3) / (1 + math.sqrt(3)))):
        prefer = BradleyTerry(reward=reward, scale=scale).prefer
        there, back = run_sync(prefer, [(a, b), (b, a)], [0, 1])
        assert there.score == pytest.approx(chance)
        assert back.score == pytest.approx(1 - chance)


def test_the_share_of_the_good_word():
    # +: 3/10, -: 1/10, neutral: 1/10. Good neutral 4/5, bad neutral 3/5; bare 3/10 + 1/10.
    reading = Reading((), words=(math.log(0.3), math.log(0.1), math.log(0.1)))
    words = Words(good=("+",), bad=("-",), neutral=("0",))
    for change, number in (
        ({}, 4 / 5),
        ({"neutral_is": "bad"}, 3 / 5),
        ({"normalised": False}, 2 / 5),
    ):
        assert words.model_copy(update=change).number(reading) == pytest.approx(number)


def says(law):
    return Step(
        next(iter(law)),
        candidates=(
            tuple(Candidate(i, w, math.log(p), None) for i, (w, p) in enumerate(law.items())),
        ),
    )


def test_generative_verifiers():
    # Yes 2/5 + 1/10, No 1/8: bare 1/2, among both 4/5.
    law = {"Yes": 0.4, " yes": 0.1, "No": 0.125, "Maybe": 0.3}
    model = Scripted(lambda request, seed: says(law))
    for normalised, number in ((False, 1 / 2), (True, 4 / 5)):
        [verdict] = run_sync(GenRM(backend=model, normalised=normalised).score, [leaf()])
        assert verdict.score == pytest.approx(number)
    # After three rationales 1/4, 1/2 and 1/8: the mean is 7/24, and the worst one explains.
    drawn = {}

    def thinks(request, seed):
        if not request.candidates:
            return f"thought {drawn.setdefault(seed, len(drawn))}"
        thought = request.messages[1].content
        return says({"Yes": [0.25, 0.5, 0.125][int(thought[-1])], "No": 0.5})

    [verdict] = run_sync(GenRMCoT(backend=Scripted(thinks), samples=3).score, [leaf()])
    assert verdict.score == pytest.approx(7 / 24)
    assert verdict.feedback == "thought 2"


def test_the_implicit_reward():
    # β = 1/10. Steps of 2 and 1 tokens; log-ratios (-1 + 3) + (-2 + 2) and (-4 + 1): 0.2, -0.3.
    class Model:
        def __init__(self, *logprobs):
            self.logprobs = logprobs

        async def read(self, request, *, since=0, state=False, words=()):
            told = [Reading(tuple(range(len(each))), each) for each in self.logprobs]
            return told[since:]

    judge = ImplicitReward(
        backend=Model((-1.0, -2.0), (-4.0,)), reference=Model((-3.0, -2.0), (-1.0,)), beta=0.1
    )
    [verdict] = run_sync(judge.score, [leaf("one\n\ntwo")])
    assert verdict.steps == pytest.approx((0.2, -0.3))
    assert verdict.score == pytest.approx(-0.1)


def test_the_product_of_experts():
    # Odds 3 and 1/2 multiply to 3/2: 3/5. Of a base rate of 1/4, odds 1/3, counted once: 9/2, 9/11.
    node = path(("x", 0.0))
    node.judged(("a", "b"), (Verdict(3 / 4), Verdict(1 / 3)))
    both = {"a": 1.0, "b": 1.0}
    assert Product(of=both)(node) == pytest.approx(3 / 5)
    assert Product(of=both, prior=0.25)(node) == pytest.approx(9 / 11)
    # Weights 2 and 1: 9 · 1/2. Weights of a half are a geometric mean of the odds, √(3/2).
    assert Product(of={"a": 2.0, "b": 1.0})(node) == pytest.approx(9 / 11)
    odds = math.sqrt(3 / 2)
    assert Product(of={"a": 0.5, "b": 0.5})(node) == pytest.approx(odds / (1 + odds))


def test_judges():
    # (2 · 4 + 1 · 1) / 3 = 3, on [1, 5] a half.
    grades = {"x": 4, "y": 1}
    criteria = {"x": {"text": "CX", "weight": 2}, "y": {"text": "CY"}}
    model = Scripted(lambda r, seed: f"Score: {grades['x' if 'CX' in r.asked else 'y']}")
    assert run_sync(Judge(backend=model, criteria=criteria).score, [leaf()])[0].score == 0.5
    # G-Eval: 4 with 3/5 and 2 with 1/5, of 4/5 in all: 14/5 / 4/5 = 3.5.
    step = Step(
        "Score: 4",
        tokens=(1, 0),
        candidates=(
            (Candidate(1, "Score: ", 0.0, None),),
            says({"4": 0.6, "2": 0.2, "x": 0.2}).candidates[0],
        ),
    )
    judge = Judge(backend=Scripted(lambda r, s: step), expected=True, scale="raw")
    assert run_sync(judge.score, [leaf()])[0].score == pytest.approx(3.5)


def test_steps_of_a_self_evaluation():
    # p(A) of the three steps 1/2, 1/4, 1/2: the product is 1/16.
    chances = {"one": 0.5, "two": 0.25, "three": 0.5}

    def model(request, seed):
        step = request.asked.split("Next step:\n")[1].split("\n")[0]
        return says({"A": chances[step], "B": 0.1})

    judge = SelfEvaluation(backend=Scripted(model), per="step", separator="\n")
    node = Node(ROOT.task, State(), leaf("one\n"), 0, Step("two\nthree\n"))
    [verdict] = run_sync(judge.score, [node])
    assert verdict.steps == pytest.approx((1 / 4, 1 / 2))
    assert verdict.score == pytest.approx(1 / 8)
    # What says nothing is judged by the step before, and has none of its own.
    for silence in ("", " \n"):
        [verdict] = run_sync(judge.score, [Node(ROOT.task, State(), node, 0, Step(silence))])
        assert verdict.score == pytest.approx(1 / 2)
        assert verdict.steps == ()


@pytest.mark.parametrize(("share", "count", "passed"), [(0.07, 100, 7), (0.14, 50, 7), (0.5, 3, 2)])
def test_a_share_is_rounded_up_as_it_is_written(share, count, passed):
    assert math.ceil(Fraction(str(share)) * count) == passed
    assert len(Stage(verifier=None, share=share).passed([0.0] * count)) == passed


def test_a_cascade_of_three():
    # floor 0, stops at stage 1 with s = 1: -2 + 1/2 + 1/8; at stage 2 with -3: -1 + 1/2 - 3/16.
    scores = {"a": (1.0,), "b": (2.0, -3.0), "c": (2.0, 0.0, 0.25)}
    stages = [Function(lambda node, k=k: scores[node.text][k]) for k in range(3)]
    cascade = Cascade(
        stages=(
            Stage(verifier=stages[0], at_least=2),
            Stage(verifier=stages[1], at_least=0),
            Stage(verifier=stages[2]),
        )
    )
    verdicts = run_sync(cascade.score, [leaf(text, i) for i, text in enumerate("abc")])
    assert [v.score for v in verdicts] == [-1.375, -0.6875, 0.25]


def test_an_ensemble_of_three():
    # 0, 1/2, 1 with the weights 1, 1, 2: mean 5/8, variance (25 + 1 + 2 · 9) / 64 / 4 = 11/64.
    scores = {"x": 0.0, "y": 0.5, "z": 1.0}
    members = {name: Function(lambda _, s=s: s) for name, s in scores.items()}
    for fields, number in (
        ({"penalty": 2.0, "spread": "variance"}, 5 / 8 - 2 * 11 / 64),
        ({"penalty": 1.0}, 5 / 8 - math.sqrt(11) / 8),
        ({"how": "sum"}, 2.5),
        ({"how": "majority"}, 0.5),
    ):
        ensemble = Ensemble(members=members, weights={"z": 2.0}, **fields)
        assert run_sync(ensemble.score, [leaf()])[0].score == pytest.approx(number)
    for how, number in (("min", 0.0), ("median", 0.5), ("majority", 0.0)):
        ensemble = Ensemble(members=members, how=how)
        assert run_sync(ensemble.score, [leaf()])[0].score == number


@pytest.mark.parametrize("weights", [(0.1, 0.2, 0.4), (0.3, 0.6, 0.7), (1 / 3, 1 / 7, 1 / 9)])
def test_rounding_leads_no_mean_out_of_the_scale(weights):
    names = [f"m{i}" for i in range(len(weights))]
    sure = {name: Function(lambda _: 1.0) for name in names}
    ensemble = Ensemble(members=sure, weights=dict(zip(names, weights, strict=True)))
    assert run_sync(ensemble.score, [leaf()])[0].score == 1.0


def test_a_grade_that_is_certain_is_that_grade():
    for number in range(1, 200):
        place = (Candidate(2, "9", -number / 7, None),)
        step = Step(
            "Score: 9", tokens=(1, 2), candidates=((Candidate(1, "Score: ", 0.0, None),), place)
        )
        judge = Judge(backend=Scripted(lambda r, s, step=step: step), high=9, expected=True)
        assert run_sync(judge.score, [leaf()])[0].score == 1.0
