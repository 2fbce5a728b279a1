import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchwise.backends.scripted import Scripted
from branchwise.core.aio import checkpoint, run_sync
from branchwise.core.errors import BackendError, Exhausted, SpecError, VerifierError
from branchwise.core.node import Node
from branchwise.core.types import Preference, State, Step, Task, Usage, Verdict
from branchwise.verifiers.pairwise import Comparison, Pairwise, PositionBias, position_bias

pytestmark = pytest.mark.anyio
ROOT = Node(Task("Tell {first}."), State())
A, B, C = (Node(ROOT.task, State(done=True), ROOT, i, Step(t)) for i, t in enumerate("abc"))
SHORT = "{prompt} {first}|{second}"


def judge(reply, **more):
    return Pairwise(backend=Scripted(reply), template=SHORT, **more)


def shown(request):
    return request.asked.removeprefix("Tell {first}. ").split("|")


async def scores(preference, pairs, seeds=None):
    verdicts = await preference.prefer(pairs, seeds or range(len(pairs)))
    return [verdict.score for verdict in verdicts]


async def test_a_model_that_sees_the_better_one_says_so_in_either_place():
    def greatest(request, seed):
        first, second = shown(request)
        return f"A says {first}, B says {second}. **{'A' if first > second else 'B'}**."

    assert await scores(judge(greatest), [(A, B), (B, A), (C, A), (B, C)]) == [0, 1, 1, 0]


@pytest.mark.parametrize("place", "AB")
async def test_a_model_that_prefers_a_place_prefers_no_answer(place):
    assert await scores(judge(lambda request, seed: place), [(A, B), (B, A)]) == [0.5, 0.5]


async def test_swapped_answers_have_the_opposite_chance_exactly():
    def moody(request, seed):
        return random.Random(f"{request.asked}/{seed}").choice("AB")

    pairs = [(A, B), (A, C), (B, C)] * 20
    there = await scores(judge(moody), pairs)
    back = await scores(judge(moody), [(b, a) for a, b in pairs])
    assert [1 - s for s in there] == back
    assert set(there) == {0.0, 0.5, 1.0}


async def test_all_votes_on_a_pair_are_two_requests():
    policy = judge(
        lambda request, seed: "A" if (shown(request) == ["a", "b"]) == (seed < 3) else "B"
    )
    got = await scores(policy, [(A, B), (B, C), (A, B), (A, B)], [1, 2, 3, 4])
    requests = [(request.asked, request.seeds) for request in policy.backend.requests]
    assert sorted(requests) == [
        ("Tell {first}. a|b", (1, 3, 4)),
        ("Tell {first}. b|a", (1, 3, 4)),
        ("Tell {first}. b|c", (2,)),
        ("Tell {first}. c|b", (2,)),
    ]
    assert got == [1.0, 0.5, 0.0, 0.0]


@pytest.mark.parametrize(
    "reply", ["Both are good.", "", "A is better", "Plan Ba", "grade: AB", "a"]
)
async def test_what_cannot_be_read_is_quoted_and_spoils_no_other_pair(reply):
    def shy(request, seed):
        return reply if "c" in shown(request) else "A"

    verdict, error = await judge(shy).prefer([(A, B), (A, C)], [0, 1])
    assert verdict.score == 0.5
    assert isinstance(error, VerifierError)
    assert repr(reply) in str(error)


@pytest.mark.parametrize(
    "reply", ["A", "[[A]]", "So: __A__", "Answer: (A).", "\\boxed{A}", "B or A?\nA\n"]
)
async def test_ways_to_end_with_a_letter(reply):
    assert await scores(judge(lambda r, s: reply if shown(r)[0] == "a" else "B"), [(A, B)]) == [1]


async def test_a_letter_where_the_reply_was_cut_is_no_verdict():
    [error] = await judge(lambda r, s: Step("Take A", finish="length")).prefer([(A, B)], [0])
    assert "was cut short" in str(error)


async def test_a_call_that_fails_costs_its_votes_only():
    class Half:
        name = "half"

        async def complete(self, request):
            replies = [Step("A") if seed % 2 else None for seed in request.seeds]
            raise BackendError("the line broke", arrived=replies if "c" in request.asked else ())

    half = Pairwise(backend=Half(), template=SHORT)
    verdicts = await half.prefer([(A, B), (A, C), (A, C)], [1, 1, 2])
    assert [getattr(verdict, "score", str(verdict)) for verdict in verdicts] == [
        "the line broke",
        0.5,
        "the line broke",
    ]


async def test_a_fatal_error_ends_it_and_hands_no_replies_on():
    def broke(request, seed):
        raise BackendError("the quota is spent", fatal=True, status=402, arrived=[Step("A")])

    with pytest.raises(BackendError, match="quota") as said:
        await judge(broke).prefer([(A, B)], [0])
    assert (said.value.fatal, said.value.status, said.value.arrived) == (True, 402, ())


async def test_it_costs_both_replies():
    reply = Step("A", usage=Usage(completion=3))
    [verdict] = await judge(lambda r, s: reply).prefer([(A, B)], [0])
    assert (verdict.usage.calls, verdict.usage.completion, verdict.detail) == (2, 6, "AA")


async def test_what_the_model_reads_is_data():
    policy = judge(lambda r, s: "A", system="S", max_tokens=9, stop=("\n",))
    request = policy.request(A, B, [4])
    assert [message.role for message in request.messages] == ["system", "user"]
    assert (request.seeds, request.max_tokens, request.stop) == ((4,), 9, ("\n",))
    dumped = json.loads(policy.model_dump_json())
    assert "backend" not in dumped
    assert Pairwise(backend=policy.backend, **dumped) == policy


async def test_any_function_of_two_nodes_compares():
    async def later(a, b):
        await checkpoint()
        return a.text < b.text

    pairs = [(A, B), (C, B)]
    assert await scores(Comparison(lambda a, b: a.text < b.text), pairs) == [1, 0]
    assert await scores(Comparison(later), pairs) == [1, 0]
    assert await scores(Comparison(lambda a, b: 0.25), pairs) == [0.25, 0.25]
    assert isinstance(Comparison(later), Preference)
    assert await Comparison(later).prefer([], []) == []


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: 1 / 0, "raised ZeroDivisionError"),
        (lambda: None, "raised TypeError"),
        (lambda: 1.5, "1.5, which is no probability"),
        (lambda: float("nan"), "nan, which is no probability"),
    ],
)
async def test_what_goes_wrong_with_a_pair_stays_with_it(wrong, words):
    good, bad = await Comparison(lambda a, b: wrong() if b is C else 1).prefer(
        [(A, B), (A, C)], [0, 1]
    )
    assert good.score == 1
    assert words in str(bad)


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (VerifierError("unsure"), False),
        (BackendError("gone"), False),
        (BackendError("wrong key", fatal=True), True),
        (Exhausted("spent"), True),
    ],
)
async def test_signals_pass_through_a_function_and_failures_do_not(error, passes):
    def raises(a, b):
        raise error

    if passes:
        with pytest.raises(type(error), match=str(error)):
            await Comparison(raises).prefer([(A, B)], [0])
    else:
        [verdict] = await Comparison(raises).prefer([(A, B)], [0])
        assert str(verdict) == str(error)


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("Feedback: The first is right. [RESULT] A", "A"),
        ("[RESULT] B\n", "B"),
        ("Feedback: So. **[RESULT]** Response B.", "B"),
        ("[RESULT]: (A)", "A"),
    ],
)
async def test_prometheus_ends_with_a_result(reply, letter):
    [verdict] = await judge(lambda r, s: reply, form="result").prefer([(A, B)], [0])
    assert verdict.detail == 2 * letter


@pytest.mark.parametrize(
    "reply",
    [
        "A",
        "RESULT A",
        "[RESULT]",
        "[RESULT] a",
        "[RESULT] AB",
        "[RESULT] A is better",
        "[RESULT] B, no: [RESULT] A",
        "[RESULT] 4",
    ],
)
async def test_what_does_not_end_with_a_result_is_quoted(reply):
    [error] = await judge(lambda r, s: reply, form="result").prefer([(A, B)], [0])
    assert repr(reply) in str(error)


@pytest.mark.parametrize("form", ["letter", "result"])
def test_the_packaged_templates_show_both_answers_once(form):
    policy = Pairwise(backend=Scripted(lambda r, s: "A"), form=form, rubric="RUBRIC")
    a, b = (Node(Task("TASK"), State(), None, 0, Step(text)) for text in ("{second}", "SECOND"))
    asked = policy.request(a, b, [0]).asked
    assert asked.index("TASK") < asked.index("{second}") < asked.index("SECOND")
    for part in ("TASK", "{second}", "SECOND", "RUBRIC"):
        assert asked.count(part) == 1
    assert "{" not in asked.replace("{second}", "")
    assert ("[RESULT]" in asked) == (form == "result")


@settings(max_examples=30)
@given(
    st.sampled_from(["letter", "result"]), st.text(st.sampled_from("AB [RESULT]ab."), max_size=12)
)
def test_any_reply_gives_opposite_verdicts_for_swapped_pairs_or_is_quoted(form, text):
    def moody(request, seed):
        return text if shown(request)[0] == "a" else "[RESULT] B"

    there, back = run_sync(judge(moody, form=form).prefer, [(A, B), (B, A)], [0, 0])
    if isinstance(there, VerifierError):
        assert repr(text) in str(there)
        assert repr(text) in str(back)
    else:
        assert there.score == 1 - back.score
        assert there.detail == back.detail[::-1]


async def test_the_place_s_share_is_counted():
    def judged_by_place(request, seed):
        first, second = shown(request)
        return "A" if first == "c" or (first, second) == ("a", "b") else "B"

    pairs = [(A, B), (A, C), (B, C)]
    verdicts = await judge(judged_by_place).prefer(pairs, [0, 0, 0])
    # "a|b" A, "b|a" B: a wins. "a|c" B, "c|a" A: c wins. "b|c" B, "c|b" A: c wins.
    assert [verdict.detail for verdict in verdicts] == ["AB", "BA", "BA"]
    assert position_bias(verdicts) == PositionBias(3, 0, 0)
    for place, expected in (("A", (2, 2, 0)), ("B", (2, 0, 2))):
        votes = [*await judge(lambda r, s, p=place: p).prefer(pairs[:2], [0, 0])]
        assert position_bias(votes) == expected
        assert position_bias([*votes, *verdicts, VerifierError("?")]).share == 2 / 5
    assert position_bias([]).share == 0
    with pytest.raises(SpecError, match="equal"):
        position_bias([Verdict(1.0, detail="equal")])


async def test_what_a_failed_call_has_cost_is_on_its_vote():
    def broke(request, seed):
        if shown(request)[0] == "b":
            raise BackendError("gone", spent=Usage(completion=5))
        return Step("A", usage=Usage(completion=2))

    [error] = await judge(broke).prefer([(A, B)], [0])
    assert (str(error), error.spent.completion) == ("gone", 7)
