import json
import math
import random
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchwise.backends.journal import Journal
from branchwise.backends.scripted import Scripted
from branchwise.core.config import Sampling
from branchwise.core.errors import BackendError, VerifierError
from branchwise.core.node import Node
from branchwise.core.types import Candidate, State, Step, Task, Usage, Verifier
from branchwise.environments.math import Math
from branchwise.search.best_of_n import BestOfN
from branchwise.search.vote import Vote
from branchwise.solve import solve
from branchwise.verifiers.judge import Criterion, Judge

pytestmark = pytest.mark.anyio
WARM = Sampling()
ROOT = Node(Task("What is {answer}?", meta={"solution": "Nine."}), State())
A, B, C = (Node(ROOT.task, State(done=True), ROOT, i, Step(t)) for i, t in enumerate("abc"))


def says(reply, **fields):
    return Judge(backend=Scripted(lambda request, seed: reply), **fields)


async def score(judge, *nodes):
    return await judge.score(nodes or [A])


class Mouth:
    """Says one thing, at once."""

    name = "mouth"

    def __init__(self, reply):
        self.reply = reply if isinstance(reply, Step) else Step(reply)

    async def complete(self, request):
        return [self.reply for _ in request.seeds]


def read(reply, **fields):
    """The verdict on a reply; nothing waits here, so there is no need of an event loop."""
    judging = Judge(backend=Mouth(reply), **{"scale": "raw", **fields}).score([A])
    with pytest.raises(StopIteration) as ended:
        judging.send(None)
    return ended.value.value[0]


@pytest.mark.parametrize(
    "reply",
    [
        "Score: 4",
        "It holds.\nScore: 4",
        "Reasons: It holds.\nScore: (4)",
        "**Score:** 4",
        "**Score**: **4**.",
        "score: 4/5\n",
        "Final Score: [[4]]",
        "(Score: 4)",
        "Score: 4, as I say.\n\nScore: 4",
        "The score: is high. Score: 4",
    ],
)
def test_ways_to_end_with_a_score(reply):
    assert read(reply).score == 4
    assert not read(reply).feedback.startswith("Reasons")
    assert read(reply, scale="unit").score == 0.75


@pytest.mark.parametrize(
    "reply", ["Feedback: So. [RESULT] 4", "So.[Result]: **4**", "[RESULT] 4/5"]
)
def test_ways_to_end_with_a_result(reply):
    verdict = read(reply, form="result")
    assert (verdict.score, verdict.feedback) in {(4.0, "So."), (4.0, "")}


@pytest.mark.parametrize(
    ("form", "reply"),
    [
        *(
            ("score", reply)
            for reply in (
                "",
                "  \n",
                "4",
                "I give it a 4",
                "Score 4",
                "Score:",
                "Score: four",
                "Score: 0",
                "Score: 6",
                "Score: -4",
                "Score: 44",
                "Score: 04",
                "Score: 4.5",
                "Score: 4,5",
                "Score: 4/10",
                "Score: 80%",
                "Score: nan",
                "Score: ٤",
                "Score: 4 or 5",
                "Score: 4 because it is right",
                "Score: 3\nScore: 4",
                "Score: 3.5. Score: 4",
                "Underscore: 4",
                "[RESULT] 4",
                '{"reasons": "", "score": 4}',
                "Score: " + "9" * 5000,
            )
        ),
        *(("result", reply) for reply in ("Score: 4", "[RESULT]", "[RESULT] A", "RESULT 4")),
        ("result", "[RESULT] 2 [RESULT] 4"),
        *(
            ("json", reply)
            for reply in (
                "",
                "Score: 4",
                "4",
                "null",
                "[4]",
                "{}",
                '{"score": 4}',
                '{"reasons": "x"}',
                '{"reasons": "x", "score": "4"}',
                '{"reasons": "x", "score": true}',
                '{"reasons": "x", "score": 4.0}',
                '{"reasons": "x", "score": null}',
                '{"reasons": "x", "score": NaN}',
                '{"reasons": "x", "score": Infinity}',
                '{"reasons": "x", "score": 6}',
                '{"reasons": 1, "score": 4}',
                '{"reasons": "x", "score": 4, "more": 1}',
                '{"reasons": "x", "score": 2, "score": 4}',
                '{"reasons": "x", "score": 4} and more',
                '```json\n{"reasons": "x", "score": 4}\n```',
                '{"reasons": "x", "score": 4',
                '{"reasons": "x", "score": ' + "9" * 5000 + "}",
                "[" * 100_000,
            )
        ),
    ],
)
def test_what_is_no_grade_is_an_error_that_quotes_it(form, reply):
    error = read(reply, form=form)
    assert isinstance(error, VerifierError)
    assert repr(reply.strip()[-60:])[1:-1] in str(error)
    assert error.message.startswith("no grade for 'correctness'")


@pytest.mark.parametrize("finish", ["length", "filter"])
@pytest.mark.parametrize("form", ["score", "result", "json"])
def test_a_grade_where_the_reply_was_cut_is_none(form, finish):
    reply = {"score": "Score: 4", "result": "[RESULT] 4", "json": '{"reasons": "", "score": 4}'}
    error = read(Step(reply[form], finish=finish), form=form)
    assert "was cut short" in str(error) or "withheld" in str(error)
    assert repr(reply[form]) in str(error)


PIECES = st.sampled_from(
    ["Score", ":", " ", "4", "5", "6", "/", ".", "\n", "**", "[RESULT]", "-", "so", "Score: 3", "é"]
)


@given(st.lists(PIECES, max_size=9).map("".join) | st.text(max_size=40))
def test_any_text_has_one_grade_at_its_end_or_is_an_error(text):
    verdict = read(text)
    if isinstance(verdict, VerifierError):
        assert repr(text.strip()[-60:])[1:-1] in str(verdict)
        return
    # Read again in another way: from its end, word by word.
    bare = text.replace("*", "").replace(" ", "").replace("\n", "").rstrip(".)]!`_")
    end = bare.lower().rpartition("score:")[2].removesuffix("/5").strip("([_`")
    assert end == str(int(verdict.score))
    assert 1 <= verdict.score <= 5


@given(
    st.integers(-20, 20),
    st.integers(1, 30),
    st.data(),
    st.text().filter(lambda text: ":" not in text and "[" not in text),
)
def test_a_verdict_in_the_form_comes_back(low, width, data, reasons):
    high = low + width
    grade = data.draw(st.integers(low, high))
    written = {
        "score": f"{reasons}\nScore: {grade}",
        "result": f"Feedback: {reasons} [RESULT] {grade}",
        "json": json.dumps({"reasons": reasons, "score": grade}),
    }
    for form, reply in written.items():
        verdict = read(reply, form=form, low=low, high=high)
        assert verdict.score == grade
        assert verdict.feedback == reasons.strip(" \t\n\r*_#" if form != "json" else None).strip()
        unit = read(reply, form=form, low=low, high=high, scale="unit").score
        assert unit == pytest.approx((grade - low) / width)
        assert 0 <= unit <= 1


async def test_criteria_are_asked_apart_and_weighed():
    def grades(request, seed):
        return "wrong unit. Score: 2" if "RIGHT" in request.asked else "reads well. Score: 5"

    judge = Judge(
        backend=Scripted(grades),
        criteria={
            "right": Criterion(text="RIGHT", weight=3),
            "clear": Criterion(text="CLEAR", grades=("mud", "so", "so-so", "fine", "glass")),
        },
    )
    [verdict] = await score(judge)
    assert verdict.score == pytest.approx(((3 * 2 + 5) / 4 - 1) / 4)
    assert verdict.feedback == "right: wrong unit.\n\nclear: reads well."
    assert verdict.detail == "right 2, clear 5"
    assert verdict.usage.calls == 2
    asked = sorted(request.asked for request in judge.backend.requests)
    assert "Score 1: mud\nScore 2: so\nScore 3: so-so\nScore 4: fine\nScore 5: glass" in asked[0]
    assert "mud" not in asked[1]


async def test_samples_are_averaged_and_the_worst_one_explains():
    replies = iter(["good. Score: 5", "slip in line 2. Score: 2", "fine. Score: 5"])
    [verdict] = await score(
        Judge(backend=Scripted(lambda r, s: next(replies)), samples=3, sampling=WARM, scale="raw")
    )
    assert (verdict.score, verdict.detail, verdict.feedback) == (
        4.0,
        "correctness 4",
        "slip in line 2.",
    )


async def test_a_sample_that_cannot_be_read_is_left_out_and_quoted():
    replies = iter(["Score: 5", "Well, well.", "Score: 3", "No.", "Hm."])
    judge = Judge(backend=Scripted(lambda r, s: next(replies)), samples=3, sampling=WARM)
    [verdict] = await score(judge)
    assert verdict.score == 0.75
    assert "1 left out" in verdict.detail
    assert "'Well, well.'" in verdict.detail
    judge = judge.model_copy(update={"samples": 2})
    [error] = await score(judge)
    assert "none of 2 replies" in str(error)
    assert "'No.'" in str(error)


async def test_the_same_node_asks_with_the_same_seeds_and_no_two_alike():
    judge = says("Score: 4", samples=2, sampling=WARM)
    await score(judge, A, B)
    await score(judge, A, B)
    seeds = [request.seeds for request in judge.backend.requests]
    assert sorted(seeds[:2]) == sorted(seeds[2:])
    assert len({seed for pair in seeds for seed in pair}) == 4


async def test_a_journal_judges_again_without_the_model(tmp_path):
    law = {str(grade): 0.2 for grade in range(1, 6)}
    for number, fields in enumerate(({}, {"expected": True})):
        path = tmp_path / str(number)
        fields |= {"samples": 3, "sampling": WARM}
        paid = await score(Judge(backend=Journal(path, Law(law)), **fields), A, B)
        assert await score(Judge(backend=Journal(path), **fields), A, B) == paid


async def test_what_the_model_reads_is_data():
    judge = says(
        "Score: 4", system="S", template="{prompt}|{answer}|{solution}|{nobody}|{low}-{high}"
    )
    braces = Node(ROOT.task, State(), ROOT, 0, Step("{prompt} Score: 1"))
    [verdict] = await score(judge, braces)
    [request] = judge.backend.requests
    assert [message.content for message in request.messages] == [
        "S",
        "What is {answer}?|{prompt} Score: 1|Nine.|{nobody}|1-5",
    ]
    assert verdict.score == 0.75  # what the answer says of itself is no grade


async def test_a_model_without_a_chat_reads_on():
    judge = says("4 is right. Score: 4", chat=False, stop=("\n",), max_tokens=9)
    [verdict] = await score(judge)
    [request] = judge.backend.requests
    assert (request.messages, request.stop, request.max_tokens) == ((), ("\n",), 9)
    assert request.prompt.startswith("Somebody was given a task")
    assert verdict.score == 0.75


@pytest.mark.parametrize("form", ["score", "result", "json"])
def test_the_packaged_templates_are_filled(form):
    for reference in ("", "solution"):
        judge = says("", form=form, reference=reference)
        plain = Node(Task("1 + 1?", meta={"solution": "Nine."}), State(), step=Step("ANSWER"))
        request = judge.request(plain, "correctness")
        assert "{" not in request.asked
        assert "\n\n\n" not in request.asked
        for part in ("1 + 1?", "ANSWER", "Score 1: ", "Score 5: ", "Is what it concludes right"):
            assert request.asked.count(part) == 1
        assert ("Nine." in request.asked) == bool(reference)
        assert (request.schema is not None) == (form == "json")
    if form == "result":
        headings = [line for line in request.asked.splitlines() if line.startswith("###")]
        assert [heading.strip("#: ") for heading in headings] == [
            "Task Description",
            "The instruction to evaluate",
            "Response to evaluate",
            "Reference Answer (Score 5)",
            "Score Rubrics",
            "Feedback",
        ]
        assert "[RESULT]" in request.asked


async def test_a_reference_comes_from_meta_by_its_name_or_not_at_all():
    for meta in ({}, {"solution": 9}):
        node = Node(Task("?", target="9", meta=meta), State(), step=Step("a"))
        judge = says("Score: 4", reference="solution")
        [error] = await score(judge, node)
        assert "no text 'solution'" in str(error)
        assert judge.backend.requests == []


async def test_one_reply_that_cannot_be_read_spoils_no_sibling_and_is_paid():
    def shy(request, seed):
        text = "It depends." if "\nb\n" in request.asked else "Score: 4"
        return Step(text, usage=Usage(completion=7))

    first, error, third = await score(Judge(backend=Scripted(shy)), A, B, C)
    assert first.score == third.score == 0.75
    assert isinstance(error, VerifierError)
    assert (error.spent.calls, error.spent.completion) == (1, 7)
    assert first.usage.completion == 7


async def test_a_call_that_fails_costs_its_node_only():
    class Half:
        name = "half"

        async def complete(self, request):
            paid = Step("Score: 4", usage=Usage(completion=1))
            if "\nb\n" in request.asked:
                raise BackendError("the line broke", spent=Usage(completion=5))
            if "\nc\n" in request.asked:
                raise BackendError("half", arrived=[None, paid], spent=Usage(completion=5))
            return [paid] * 2

    whole, lost, half = await score(Judge(backend=Half(), samples=2, sampling=WARM), A, B, C)
    assert (whole.score, whole.usage.completion) == (0.75, 2)
    assert "the line broke" in str(lost)
    assert lost.spent.completion == 5
    assert (half.score, half.usage.completion) == (0.75, 6)
    assert "1 left out" in half.detail


async def test_a_fatal_error_passes_through():
    def broke(request, seed):
        raise BackendError("the quota is spent", fatal=True)

    with pytest.raises(BackendError, match="quota"):
        await score(Judge(backend=Scripted(broke)))


def token(text):
    return int.from_bytes(text.encode(), "big")


class Law:
    """Writes letter by letter; the grade is drawn by a law, which its candidates tell."""

    name = "law"

    def __init__(self, law, before="So. Score: ", after="."):
        self.law, self.before, self.after = law, before, after

    async def complete(self, request):
        return [self._step(request, random.Random(seed)) for seed in request.seeds]

    def _step(self, request, dice):
        drawn = dice.choices([*self.law], [*self.law.values()])[0]
        laws = [{one: 1.0} for one in self.before]
        laws += [self.law, *({one: 1.0} for one in self.after), {"": 1.0}]
        said = [*self.before, drawn, *self.after, ""]
        rows = tuple(
            tuple(
                Candidate(token(text), text, math.log(p), None)
                for text, p in sorted(row.items(), key=lambda one: -one[1])[: request.candidates]
            )
            for row in laws
        )
        return Step("".join(said), tuple(map(token, said)), candidates=rows)


@pytest.mark.parametrize("after", ["", ".", "/5"])
async def test_the_expected_grade_is_the_mean_over_the_scale(after):
    law = {"1": 0.05, "2": 0.1, "3": 0.2, "4": 0.3, "5": 0.05, "9": 0.2, "x": 0.1}
    exact = sum(int(g) * p for g, p in law.items() if g in "12345") / 0.7
    judge = Judge(
        backend=Law(law, after=after), expected=True, scale="raw", samples=20, sampling=WARM
    )
    [verdict] = await score(judge)
    # Replies that drew what is no grade are left out; all others say the same.
    assert verdict.score == pytest.approx(exact)
    assert "left out" in verdict.detail


async def test_sampling_tends_to_the_expected_grade():
    law = {"1": 0.1, "2": 0.2, "3": 0.3, "5": 0.4}
    fields = {"backend": Law(law), "sampling": WARM, "scale": "raw"}
    [sampled] = await score(Judge(samples=1000, **fields))
    [expected] = await score(Judge(expected=True, **fields))
    assert expected.score == pytest.approx(3.4)
    assert sampled.score == pytest.approx(3.4, abs=4 * 1.5 / math.sqrt(1000))


async def test_both_ways_to_write_a_digit_count():
    law = {"4": 0.3, " 4": 0.2, "2": 0.5}
    [verdict] = await score(
        Judge(backend=Law(law, before="Score:", after=""), expected=True, scale="raw")
    )
    assert verdict.score == pytest.approx(3.0)


@pytest.mark.parametrize(
    "reply",
    [
        Step("Score: 4"),
        Step("Score: 4", (1, 2), candidates=((), ())),
        Step("Score: 4", (1,), candidates=((Candidate(1, "Score: 4", -0.1, None),),)),
        Step("Score: 4", (1, 2), candidates=((), (Candidate(7, "4", -0.1, None),))),
    ],
)
def test_probabilities_that_are_not_told_are_no_verdict(reply):
    error = read(reply, expected=True)
    assert "does not tell" in str(error)
    assert "'Score: 4'" in str(error)


@pytest.mark.parametrize(
    "fields",
    [
        {"low": 5, "high": 5},
        {"criteria": {}},
        {"criteria": {"c": Criterion(text="?", grades=("a", "b"))}},
        {"samples": 2},
        {"samples": 0},
        {"expected": True, "high": 10},
        {"expected": True, "low": -1},
        {"expected": True, "form": "json"},
        {"system": "S", "chat": False},
    ],
)
def test_settings_that_cannot_work_are_refused(fields):
    with pytest.raises(ValueError, match="Judge"):
        says("", **fields)
    with pytest.raises(ValueError, match="weight"):
        Criterion(text="?", weight=0)


async def test_it_is_read_back_from_its_dump():
    judge = says("Score: 4", criteria={"c": Criterion(text="?", weight=2)}, reference="solution")
    assert isinstance(judge, Verifier)
    dumped = json.loads(judge.model_dump_json())
    assert "backend" not in dumped
    assert Judge(backend=judge.backend, **dumped) == judge


class Says:
    """Draws whole answers."""

    async def propose(self, node, seeds):
        first = node.promised - len(seeds)
        texts = ["The answer is 5.", "Garbage!", "The answer is 6.", "The answer is 6."]
        return [Step(text) for text in texts[first : node.promised]]


@pytest.mark.parametrize(
    ("form", "reference"), [*product(["score", "result", "json"], [False, True])]
)
async def test_in_a_search_nobody_sees_the_target_and_garbage_costs_one_branch(form, reference):
    target = "31415926"

    def reply(request, seed):
        if "Garbage!" in request.asked:
            return Step("I will not.", usage=Usage(completion=11))
        grade = 5 if "is 5" in request.asked else 3
        text = {
            "score": f"Score: {grade}",
            "result": f"[RESULT] {grade}",
            "json": json.dumps({"reasons": "", "score": grade}),
        }[form]
        return Step(text, usage=Usage(completion=2))

    model = Scripted(reply)
    answer = await solve(
        Task("?", target=target, meta={"hint": "Look twice."}),
        policy=Says(),
        controller=BestOfN(n=4, pick=Vote(weight="score")),
        environment=Math(),
        verifier=Judge(backend=model, form=form, reference="hint" if reference else ""),
    )
    assert answer.value == "5"  # 1 beats 1/2 + 1/2 as the older one, with the weights of the judge
    assert target not in repr(model.requests)
    assert len(model.requests) == 4
    failed = [node for node in answer.root.walk() if node.failure]
    assert [node.text for node in failed] == ["Garbage!"]
    assert "'I will not.'" in failed[0].failure
    assert answer.root.usage.completion == 3 * 2 + 11
    assert answer.root.usage.calls == 4
