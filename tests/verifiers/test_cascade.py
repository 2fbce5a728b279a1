import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from worlds import Random

from branchwise import BestOfN, solve
from branchwise.core.aio import run_sync
from branchwise.core.errors import BackendError, Exhausted, VerifierError
from branchwise.core.node import Node
from branchwise.core.types import State, Task, Usage, Verdict
from branchwise.testing import Word
from branchwise.verifiers.cascade import Cascade, Stage

TASK = Task("?")
CALL = Usage(calls=1)


class Says:
    """A verifier that looks answers up and remembers what it was asked."""

    def __init__(self, table, **more):
        self.table, self.more, self.asked = table, more, []

    async def score(self, nodes):
        answers = [node.state.answer for node in nodes]
        self.asked.append(answers)
        said = [self.table[answer] for answer in answers]
        return [s if isinstance(s, VerifierError) else Verdict(s, **self.more) for s in said]


class Raises:
    """A verifier that raises where it sees a certain answer."""

    def __init__(self, error, on="b"):
        self.error, self.on = error, on

    async def score(self, nodes):
        if any(node.state.answer == self.on for node in nodes):
            raise self.error
        return [Verdict(0.5, usage=CALL) for _ in nodes]


class Replies:
    """A verifier that returns what it was given, whatever it is."""

    def __init__(self, *said):
        self.said = said

    async def score(self, nodes):
        return list(self.said)


def nodes(answers):
    return [Node(TASK, State(answer=answer)) for answer in answers]


async def scored(cascade, answers):
    return [
        str(v) if isinstance(v, VerifierError) else v.score
        for v in await cascade.score(nodes(answers))
    ]


CHEAP = {"a": 0.1, "b": 0.7, "c": 0.4, "d": 0.7}
DEAR = {"a": 1.0, "b": 0.3, "c": 0.9, "d": 0.2}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("rule", "survivors"),
    [
        ({"at_least": 0.4}, "bcd"),
        ({"at_least": 0.41}, "bd"),
        ({"at_least": 1.0}, ""),
        ({"top": 1}, "b"),
        ({"top": 2}, "bd"),
        ({"top": 9}, "abcd"),
        ({"share": 0.25}, "b"),
        ({"share": 0.3}, "bd"),
        ({"share": 1.0}, "abcd"),
    ],
)
async def test_the_dear_verifier_is_asked_about_survivors_only(rule, survivors):
    dear = Says(DEAR)
    cascade = Cascade(stages=(Stage(verifier=Says(CHEAP), **rule), Stage(verifier=dear)))
    verdicts = await cascade.score(nodes("abcd"))
    assert dear.asked == ([list(survivors)] if survivors else [])
    for answer, verdict in zip("abcd", verdicts, strict=True):
        if answer in survivors:
            assert (verdict.score, verdict.detail) == (DEAR[answer], "2 of 2")
        else:
            assert -1 < verdict.score < 0
            assert verdict.detail == "1 of 2"


@pytest.mark.anyio
async def test_the_score_by_hand():
    stages = (
        Stage(verifier=Says({"a": -1.0, "b": 3.0, "c": 5.0}), at_least=0),
        Stage(verifier=Says({"b": 1.0, "c": 2.0}), at_least=1.5),
        Stage(verifier=Says({"c": 10.25}, feedback="ok", detail="yes", steps=(1.0,))),
    )
    a, b, c = await Cascade(stages=stages, floor=10).score(nodes("abc"))
    assert (a.score, b.score) == (10 - 2 + 0.5 - 0.125, 10 - 1 + 0.5 + 0.125)
    assert c == Verdict(10.25, "ok", "3 of 3: yes", Usage(), (1.0,))
    assert (a.steps, b.steps) == ((), ())


@given(
    st.lists(
        st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 2, st.floats(-5, 5)),
        min_size=1,
        max_size=8,
    ),
    st.integers(1, 8),
    st.floats(0.1, 1),
    st.floats(-1e9, -5),
)
def test_who_gets_farther_scores_higher_and_within_a_stage_the_order_is_kept(
    table, top, share, floor
):
    first, second, third = (Says({str(i): row[k] for i, row in enumerate(table)}) for k in range(3))
    stages = (
        Stage(verifier=first, top=top),
        Stage(verifier=second, share=share),
        Stage(verifier=third),
    )
    verdicts = run_sync(
        Cascade(stages=stages, floor=floor).score, nodes([str(i) for i in range(len(table))])
    )
    ends = [(int(v.detail[0]), v.score, row) for v, row in zip(verdicts, table, strict=True)]
    assert len([end for end in ends if end[0] > 1]) == min(top, len(table))
    for stage, score, row in ends:
        assert math.isfinite(score)
        assert stage < 3 or score == row[2]
        for other_stage, other, other_row in ends:
            if stage < other_stage:
                assert score < other
            if stage == other_stage and row[stage - 1] <= other_row[stage - 1]:
                assert score <= other


@pytest.mark.anyio
async def test_what_could_not_be_judged_neither_passes_nor_takes_a_place():
    lost = VerifierError("cannot read", hint="write", spent=CALL)
    dear = Says(DEAR)
    cheap = Says({**CHEAP, "b": lost})
    cascade = Cascade(stages=(Stage(verifier=cheap, top=1), Stage(verifier=dear)))
    verdicts = await cascade.score(nodes("abcd"))
    assert str(verdicts[1]) == "stage 1 of 2: cannot read (write)"
    assert verdicts[1].spent == CALL
    assert dear.asked == [["d"]]


@pytest.mark.anyio
async def test_what_it_cost_adds_up_on_verdicts_and_errors():
    cheap = Says(CHEAP, usage=Usage(calls=1, completion=2))
    dear = Says(
        {**DEAR, "d": VerifierError("dull", spent=Usage(calls=1))},
        usage=Usage(calls=1, completion=30),
    )
    cascade = Cascade(stages=(Stage(verifier=cheap, top=2), Stage(verifier=dear)))
    a, b, _, d = await cascade.score(nodes("abcd"))
    assert (a.usage.calls, a.usage.completion) == (1, 2)
    assert (b.usage.calls, b.usage.completion) == (2, 32)
    assert (d.spent.calls, d.spent.completion) == (2, 2)


@pytest.mark.anyio
async def test_a_score_below_the_floor_is_an_error_that_says_so():
    stages = (Stage(verifier=Says(CHEAP), at_least=0), Stage(verifier=Says({"a": -0.5})))
    assert await scored(Cascade(stages=stages, floor=-0.5), "a") == [-0.5]
    assert await scored(Cascade(stages=stages), "a") == [
        "stage 2 of 2: the score -0.5 is below the floor, 0 (set `floor` to the least that it gives)"
    ]


BAD = [
    (Verdict(math.nan), "it gave the score nan, which is no finite number"),
    (Verdict(-math.inf), "it gave the score -inf, which is no finite number"),
    (Verdict(None), "it gave the score None, which is no finite number"),
    (Verdict("0.5"), "it gave the score '0.5', which is no finite number"),
    (None, "it gave None, which is no Verdict"),
    (0.5, "it gave 0.5, which is no Verdict"),
]


@pytest.mark.anyio
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(("said", "why"), BAD)
async def test_no_verdict_is_an_error_in_its_place_alone(said, why, place):
    wrong = Replies(said, Verdict(Decimal("0.5")))
    fine = Says(CHEAP)
    first, last = (wrong, fine) if place == 0 else (fine, wrong)
    cascade = Cascade(stages=(Stage(verifier=first, at_least=0), Stage(verifier=last)))
    good = {0: CHEAP["b"], 1: 0.5}[place]
    assert await scored(cascade, "ab") == [f"stage {place + 1} of 2: {why}", good]


@pytest.mark.anyio
async def test_a_wrong_number_of_verdicts_fails_all():
    short = Replies(Verdict(1.0))
    cascade = Cascade(stages=(Stage(verifier=short, top=1), Stage(verifier=Says(DEAR))))
    assert await scored(cascade, "ab") == ["stage 1 of 2: it gave 1 verdicts for 2 nodes"] * 2


@pytest.mark.anyio
async def test_a_verifier_that_raises_fails_for_the_culprit_alone():
    wrong = Raises(KeyError("x"))
    cascade = Cascade(stages=(Stage(verifier=wrong, at_least=0), Stage(verifier=Says(DEAR))))
    assert await scored(cascade, "abc") == [1.0, "stage 1 of 2: it raised KeyError: 'x'", 0.9]


@pytest.mark.anyio
async def test_a_failed_call_is_data_and_signals_pass():
    def cascade(error):
        cheap = Says(CHEAP, usage=CALL)
        return Cascade(stages=(Stage(verifier=cheap, top=3), Stage(verifier=Raises(error))))

    said = await cascade(BackendError("busy", spent=CALL)).score(nodes("ab"))
    assert [str(v) for v in said] == ["stage 2 of 2: busy"] * 2
    assert [v.spent.calls for v in said] == [2, 1]
    with pytest.raises(BackendError, match="no key") as raised:
        await cascade(BackendError("no key", fatal=True, spent=CALL)).score(nodes("ab"))
    assert raised.value.spent.calls == 3
    with pytest.raises(Exhausted):
        await cascade(Exhausted("spent")).score(nodes("ab"))


@pytest.mark.anyio
async def test_no_nodes_no_calls():
    cheap = Says(CHEAP)
    cascade = Cascade(stages=(Stage(verifier=cheap, top=1), Stage(verifier=cheap)))
    assert list(await cascade.score([])) == []
    assert cheap.asked == []


@pytest.mark.parametrize(
    ("stages", "why"),
    [
        ([{}], "at least 2 items"),
        ([{}, {}], "each stage but the last needs"),
        ([{"top": 1}, {"top": 1}], "takes no rule"),
        ([{"top": 1, "share": 0.5}, {}], "give one of"),
        ([{"top": 0}, {}], "greater than or equal to 1"),
        ([{"share": 0.0}, {}], "greater than 0"),
        ([{"at_least": math.nan}, {}], "finite"),
    ],
)
def test_stages_that_make_no_sense_are_refused(stages, why):
    with pytest.raises(ValidationError, match=why):
        Cascade(stages=[{"verifier": Says({}), **stage} for stage in stages])


def test_the_same_cascade_of_other_verifiers():
    one, two = Says(CHEAP), Says(DEAR)
    cascade = Cascade(stages=(Stage(verifier=None, top=2), Stage(verifier=None)), floor=-1)
    assert cascade.inner == (None, None)
    opened = cascade.around([one, two])
    assert opened.inner == (one, two)
    assert (opened.stages[0].top, opened.floor) == (2, -1)
    assert run_sync(scored, opened, "bc") == [0.3, 0.9]


@pytest.mark.anyio
async def test_cascades_nest_and_in_a_search_siblings_compete():
    class Letters:
        def __init__(self, letter, usage):
            self.letter, self.seen, self.usage = letter, 0, usage

        async def score(self, nodes):
            self.seen += len(nodes)
            return [Verdict(float(n.text.count(self.letter)), usage=self.usage) for n in nodes]

    a, b, c = Letters("a", Usage()), Letters("b", Usage()), Letters("c", CALL)
    inner = Cascade(stages=(Stage(verifier=b, share=0.5), Stage(verifier=c)))
    cascade = Cascade(stages=(Stage(verifier=a, top=4), Stage(verifier=inner)), floor=-1)
    answer = await solve(
        "a word?", policy=Random(), controller=BestOfN(n=16), environment=Word(4), verifier=cascade
    )
    # Of the 16 first letters 4 and 2 pass; the 48 that follow come one at a time, and all pass.
    assert (a.seen, b.seen, c.seen) == (64, 4 + 48, 2 + 48)
    assert answer.usage.calls == c.seen
