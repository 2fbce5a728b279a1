"""What models and users' verifiers get wrong, inside of whole searches and to the last token."""

import json
import math
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import Enumerate

from branchwise import BestOfN, Scripted, solve
from branchwise.core.aio import run_sync
from branchwise.core.errors import BackendError, SearchFailed, VerifierError
from branchwise.core.grow import Grow
from branchwise.core.node import Node
from branchwise.core.tree import from_json, to_json
from branchwise.core.types import Candidate, Reading, State, Step, Task, Usage, Verdict
from branchwise.testing import Word
from branchwise.verifiers.calibrated import Calibrated
from branchwise.verifiers.calibration import Platt
from branchwise.verifiers.cascade import Cascade, Stage
from branchwise.verifiers.channel import NoisyChannel
from branchwise.verifiers.critic import Critic
from branchwise.verifiers.ensemble import Ensemble
from branchwise.verifiers.function import Function
from branchwise.verifiers.generative import GenRM, GenRMCoT
from branchwise.verifiers.implicit import ImplicitReward
from branchwise.verifiers.judge import Criterion, Judge
from branchwise.verifiers.outcome import BradleyTerry, OutcomeReward
from branchwise.verifiers.pairwise import Pairwise
from branchwise.verifiers.process import ProcessReward
from branchwise.verifiers.self_evaluation import SelfEvaluation


def searched(verifier):
    """The children `a`, `b`, `c`, judged in a search, and what it came to."""

    async def main():
        return await solve(
            "a letter?",
            policy=Enumerate(),
            controller=BestOfN(n=3),
            environment=Word(1),
            verifier=verifier,
        )

    answer = run_sync(main)
    return answer, answer.root.children


CALL = Usage(calls=1, completion=7)
PLAIN = Function(lambda node: 0.5)
HELD = {
    "alone": lambda one: one,
    "ensemble": lambda one: Ensemble(members={"bad": one, "good": PLAIN}),
    "first stage": lambda one: Cascade(
        stages=(Stage(verifier=one, at_least=0), Stage(verifier=PLAIN))
    ),
    "last stage": lambda one: Cascade(
        stages=(Stage(verifier=PLAIN, at_least=0), Stage(verifier=one)), floor=-10
    ),
    "calibrated": lambda one: Calibrated(of=one, map=Platt(slope=1.0, bias=0.0)),
}


class Gives:
    """A user's verifier: `b` gets whatever it says, the others a sound verdict."""

    def __init__(self, said):
        self.said = said

    async def score(self, nodes):
        return [self.said if v.text == "b" else Verdict(0.5, usage=CALL) for v in nodes]


@pytest.mark.parametrize("held", HELD.values(), ids=HELD)
@pytest.mark.parametrize(
    "score",
    [
        math.nan,
        math.inf,
        -math.inf,
        None,
        "1",
        1j,
        10**400,
        Decimal("NaN"),
        Decimal("sNaN"),
    ],
    ids=repr,
)
def test_what_is_no_finite_number_fails_its_node_alone_and_never_wins(score, held):
    answer, (a, b, c) = searched(held(Gives(Verdict(score, usage=CALL))))
    assert "which is no finite number" in b.failure
    assert b.score == -math.inf
    assert (a.failure, c.failure) == (None, None)
    assert answer.node is a
    assert answer.usage.completion == 3 * CALL.completion


@pytest.mark.parametrize("held", HELD.values(), ids=HELD)
@pytest.mark.parametrize("score", [Decimal("0.5"), Fraction(1, 2), 1, True])
def test_numbers_of_other_kinds_are_taken(score, held):
    _, children = searched(held(Gives(Verdict(score, usage=CALL))))
    assert [type(v.score) for v in children] == [float] * 3
    assert all(v.failure is None for v in children)


def test_numbers_of_numpy_are_taken_and_its_other_things_are_not():
    numpy = pytest.importorskip("numpy")
    for held in HELD.values():
        _, children = searched(held(Gives(Verdict(numpy.float32(0.5)))))
        assert [type(v.score) for v in children] == [float] * 3
        for said in (numpy.float64("nan"), numpy.array([1.0, 2.0])):
            _, (a, b, c) = searched(held(Gives(Verdict(said))))
            assert "which is no finite number" in b.failure
            assert (a.failure, c.failure) == (None, None)


class Raises:
    async def score(self, nodes):
        return [{"a": Verdict(0.5), "c": Verdict(0.25)}[v.text] for v in nodes]


class Nothing:
    async def score(self, nodes):
        return None


class Short:
    async def score(self, nodes):
        return [Verdict(0.5, usage=CALL)] * 2


@pytest.mark.parametrize("held", HELD.values(), ids=HELD)
def test_a_verifier_that_raises_fails_for_the_culprit_alone(held):
    answer, (a, b, c) = searched(held(Raises()))
    assert "raised KeyError: 'b'" in b.failure
    assert (a.failure, c.failure) == (None, None)
    assert answer.node is a


@pytest.mark.parametrize("held", HELD.values(), ids=HELD)
@pytest.mark.parametrize(
    ("verifier", "words"), [(Nothing(), "raised TypeError"), (Short(), "gave 2 verdicts for 3")]
)
def test_what_is_no_list_of_verdicts_ends_no_search_by_accident(verifier, words, held):
    with pytest.raises(SearchFailed, match=words):
        searched(held(verifier))


def test_verdicts_that_do_not_fit_are_paid_all_the_same():
    async def grown():
        root = Node(Task("?"), State())
        await Grow({"policy": Enumerate()}, Word(1), {"short": Short()})([root], 3)
        return root.usage

    assert run_sync(grown) == CALL + CALL


def test_what_one_verifier_has_said_is_paid_where_the_next_is_cut():
    class Cut:
        async def score(self, nodes):
            raise KeyboardInterrupt

    root = Node(Task("?"), State())

    async def grown():
        judges = {"first": Gives(Verdict(0.5, usage=CALL)), "second": Cut()}
        await Grow({"policy": Enumerate()}, Word(1), judges)([root], 3)

    with pytest.raises(KeyboardInterrupt):
        run_sync(grown)
    assert [v.cost for v in root.children] == [CALL] * 3
    assert from_json(to_json(root)).usage == root.usage


def test_a_head_that_gives_no_number_fails_its_node_alone():
    class Head:
        async def read(self, request, *, since=0, state=False, words=()):
            value = math.nan if request.said[-1].text.startswith("b") else 0.0
            return [Reading((1,), values=(value, 0.0), usage=CALL) for _ in request.said[since:]]

    judge = ProcessReward(backend=Head(), format="qwen2.5-math-prm")
    for held in HELD.values():
        answer, (a, b, c) = searched(held(judge))
        assert "number after the step 'b' is nan" in b.failure
        assert (a.failure, c.failure) == (None, None)
        assert answer.usage.completion == 3 * CALL.completion


# Replies that are in no format.


def top(*words):
    law = tuple(Candidate(i, word, math.log(0.9) - i, None) for i, word in enumerate(words))
    return Step(words[0], tokens=(0,), candidates=(law,), usage=CALL)


def writes(text):
    """A judge that writes a text, whatever it is asked, and would say nothing else."""
    return Scripted(lambda request, seed: replace(top(text), text=text, finish="end"))


READERS = {
    "genrm": lambda model: GenRM(backend=model),
    "genrm-cot": lambda model: GenRMCoT(backend=model, samples=2),
    "critic, expected": lambda model: Critic(backend=model),
    "critic, written": lambda model: Critic(backend=model, by="written"),
    "p-true": lambda model: SelfEvaluation(backend=model),
    "p-true of steps": lambda model: SelfEvaluation(backend=model, per="step"),
    "verbalised": lambda model: SelfEvaluation(backend=model, by="verbalised"),
    "judge, score": lambda model: Judge(backend=model),
    "judge, result": lambda model: Judge(backend=model, form="result"),
    "judge, json": lambda model: Judge(backend=model, form="json"),
    "judge, expected": lambda model: Judge(backend=model, expected=True),
}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
NEAR = st.sampled_from(
    [
        *("Score:", "score: four", "[RESULT]", "Yes, but", "(A) or (B)", "4", "-4", ".5", "4,5"),
        *("4 or 5", "NaN", "inf", "{prompt}", '{"score": 4}', '{"reasons": "", "score":', "9/5"),
        *("1e9", "²", "٤", "100 %%", "Score: 4 and 5", "0x4", "4" * 500, "Score: 6", "Score: 4.5"),
    ]
)
OURS = {
    "genrm": {"Yes", "yes", "YES", "No", "no", "NO"},
    "genrm-cot": {"Yes", "yes", "YES", "No", "no", "NO"},
    "critic, expected": set("12345"),
    "p-true": {"A", "(A", "B", "(B"},
    "p-true of steps": {"A", "(A", "B", "(B"},
}


def is_said(name, text, score):
    """Whether the reply, read by eye, says this: it ends with the number, or is it in JSON."""
    if name in OURS:
        return text.strip() in OURS[name]
    if name == "judge, json":
        return json.loads(text)["score"] == 1 + 4 * score
    said = score * 100 if name == "verbalised" else 1 + 4 * score
    tail = text.rstrip("".join(c for c in text if not c.isalnum()))
    ends = [f"{said:g}", f"{said:g}/5", f"{said:g} out of 5", f"{said:g}/100"]
    return any(tail.endswith(end) for end in ends)


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=40)
@given(text=TEXT | NEAR | st.builds("".join, st.lists(NEAR, min_size=2, max_size=3)))
def test_a_reply_in_no_format_fails_its_nodes_and_is_quoted(name, text):
    async def grown():
        root = Node(Task("?"), State())
        verifiers = {"it": READERS[name](writes(text))}
        return await Grow({"policy": Enumerate()}, Word(1), verifiers)([root], 2)

    for node in run_sync(grown):
        if node.failure is None:
            assert 0 <= node.score <= 1
            assert is_said(name, text, node.score), (text, node.score)
        elif text.strip():
            # Of the text, or where a word was to come, of the first candidate's.
            quoted = (repr(text.strip()[-40:])[1:-1], repr(text)[1:-1])
            assert any(part in node.failure for part in quoted), node.failure
        else:
            assert "is empty" in node.failure or repr(text) in node.failure
        assert node.cost.completion >= CALL.completion


@pytest.mark.parametrize("form", ["letter", "result"])
@given(text=TEXT | NEAR)
def test_a_comparison_in_no_format_is_no_vote(form, text):
    root = Node(Task("?"), State())
    a, b = (Node(root.task, State(), root, i, Step(said)) for i, said in enumerate("xy"))
    [said] = run_sync(Pairwise(backend=writes(text), form=form).prefer, [(a, b)], [0])
    letters = [c for c in text if c.isalnum()]
    if not letters or letters[-1] not in "AB":
        assert isinstance(said, VerifierError)
        assert repr(text[-80:]) in str(said)
        assert said.spent == CALL + CALL + Usage(calls=2, prompt=said.spent.prompt)


def test_halves_of_characters_in_json_are_no_grade():
    reply = '{"reasons": "\\ud800", "score": 4}'
    with pytest.raises(SearchFailed, match="could not be read"):
        searched(Judge(backend=writes(reply), form="json"))


@pytest.mark.parametrize("size", [30, 400, 5000])
def test_a_grade_beyond_all_numbers_is_quoted(size):
    reply = json.dumps({"reasons": ""})[:-1] + f', "score": {"9" * size}' + "}"
    with pytest.raises(SearchFailed, match="99999}'"):
        searched(Judge(backend=writes(reply), form="json"))


# Braces in what a judge reads are text.

HOSTILE = "{prompt}{answer}{step}{before}{others}{reference}{rubric}{low}{first}{second}{ideas}"


@pytest.mark.parametrize("name", READERS)
def test_braces_in_texts_and_in_meta_fill_nothing(name):
    model = writes("?")
    keys = ("prompt", "answer", "step", "before", "others", "rubric", "grades", "reference", "low")
    task = Task(HOSTILE + " ASKED", target="TARGET", meta=dict.fromkeys(keys, "SMUGGLED")).hidden()
    root = Node(task, State())
    nodes = [Node(task, State(), root, i, Step(f"{HOSTILE} SAID {i}")) for i in range(2)]
    verifier = READERS[name](model)
    if isinstance(verifier, SelfEvaluation):
        verifier = verifier.model_copy(update={"others": 2})
    run_sync(verifier.score, nodes)
    assert model.requests
    for request in model.requests:
        shown = request.messages[0].content
        assert "SMUGGLED" not in shown
        assert shown.count("ASKED") == 1
        assert shown.count(f"{HOSTILE} SAID") == 1 + isinstance(verifier, SelfEvaluation)


# What was paid is in the tree.


class Till:
    """A model of which each call goes as the next outcome says; it knows what it was paid."""

    name = "till"

    def __init__(self, outcomes):
        self.outcomes, self.calls, self.paid = outcomes, 0, Usage()

    def next(self):
        self.calls += 1
        return self.outcomes[(self.calls - 1) % len(self.outcomes)]

    def charge(self, what):
        self.paid += what
        return what

    async def complete(self, request):
        outcome = self.next()
        steps = [replace(self.said(outcome), usage=CALL) for _ in request.seeds]
        if outcome in {"fails", "dies"}:
            arrived = [*steps[:-1], None]
            self.paid += sum([CALL] * (len(steps) - 1), self.charge(Usage(calls=1, completion=2)))
            spent = Usage(calls=1, completion=2)
            raise BackendError("no", fatal=outcome == "dies", arrived=arrived, spent=spent)
        self.paid += sum([CALL] * len(steps), Usage())
        return steps

    def said(self, outcome):
        if outcome == "garbage":
            return top("what?")
        text = '{"reasons": "", "score": 4}' if outcome == "json" else "4"
        return replace(top("Yes", "A", "4"), text=text, finish="end")


class Reads(Till):
    async def read(self, request, *, since=0, state=False, words=()):
        outcome = self.next()
        spent = Usage(calls=1, prompt=5)
        if outcome in {"fails", "dies"}:
            self.paid += spent
            raise BackendError("no", fatal=outcome == "dies", spent=spent)
        value = math.nan if outcome == "garbage" else 0.5
        said = request.said[since:] or [Step("")]
        self.paid += sum([spent] * len(said), Usage())
        return [
            Reading((1,), (-value,), (value, 0.0), words=(-value - 9,) * len(words), usage=spent)
            for _ in said
        ]


PAYING = {
    **READERS,
    "two criteria": lambda model: Judge(
        backend=model, form="json", criteria={name: Criterion(text=name) for name in ("x", "y")}
    ),
    "critic, values": lambda model: Critic(backend=model, by="values", samples=2),
    "prm": lambda model: ProcessReward(backend=model, format="qwen2.5-math-prm"),
    "prm of turns": lambda model: ProcessReward(
        backend=model,
        format={"like": "qwen2.5-math-prm", "first": "{prompt} {step}", "reply": "+"},
    ),
    "orm": lambda model: OutcomeReward(backend=model),
    "implicit": lambda model: ImplicitReward(backend=model, reference=model),
    "channel": lambda model: NoisyChannel(backend=model),
    "ensemble": lambda model: Ensemble(
        members={"x": GenRM(backend=model), "y": Judge(backend=model)}, failed="skip"
    ),
    "cascade": lambda model: Cascade(
        stages=(
            Stage(verifier=GenRM(backend=model), at_least=0),
            Stage(verifier=Critic(backend=model, by="written"), top=2),
            Stage(verifier=Judge(backend=model, form="json")),
        )
    ),
}
FATE = st.lists(
    st.sampled_from(["json", "number", "garbage", "fails", "dies"]), min_size=1, max_size=9
)


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("name", PAYING)
@settings(max_examples=30)
@given(outcomes=FATE)
def test_what_the_model_was_paid_is_what_the_tree_has_cost(name, reads, outcomes):
    if not reads and name in {
        "prm",
        "prm of turns",
        "orm",
        "implicit",
        "channel",
        "critic, values",
    }:
        return
    model = (Reads if reads else Till)(outcomes)
    root = Node(Task("?"), State())

    async def grown():
        grow = Grow({"policy": Enumerate()}, Word(2), {"it": PAYING[name](model), "free": PLAIN})
        try:
            await grow([n for n in await grow([root], 3) if n.failure is None], 2)
        except SearchFailed:
            assert "dies" in outcomes

    run_sync(grown)
    assert root.usage == model.paid
    assert from_json(to_json(root)).usage == model.paid


@given(outcomes=FATE)
def test_what_comparisons_were_paid_is_on_their_votes(outcomes):
    root = Node(Task("?"), State())
    nodes = [Node(root.task, State(), root, i, Step(said)) for i, said in enumerate("xyz")]
    pairs = [(a, b) for a in nodes for b in nodes if a is not b]
    for preference in (
        Pairwise,
        lambda backend: BradleyTerry(reward=OutcomeReward(backend=backend)),
    ):
        model = Reads(outcomes)
        try:
            said = run_sync(preference(backend=model).prefer, pairs, range(len(pairs)))
            costs = [v.usage if isinstance(v, Verdict) else v.spent or Usage() for v in said]
        except BackendError as error:
            costs = [error.spent]
        assert sum(costs, Usage()) == model.paid
