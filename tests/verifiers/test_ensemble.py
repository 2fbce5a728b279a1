import math
import statistics

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from branchwise.core.aio import run_sync
from branchwise.core.errors import BackendError, Exhausted, VerifierError
from branchwise.core.node import Node
from branchwise.core.types import State, Task, Usage, Verdict
from branchwise.verifiers.ensemble import Ensemble
from branchwise.verifiers.function import Function

CALL = Usage(calls=1)
NODES = [Node(Task("?"), State(answer=answer)) for answer in "ab"]


class Gives:
    """A verifier that gives the same for each node, or raises it."""

    def __init__(self, said, **more):
        self.said, self.more = said, more

    async def score(self, nodes):
        if isinstance(self.said, Exception) and not isinstance(self.said, VerifierError):
            raise self.said
        one = self.said if isinstance(self.said, VerifierError) else Verdict(self.said, **self.more)
        return [one] * len(nodes)


def ensemble(*scores, **fields):
    return Ensemble(members=dict(zip("xyzuvw", map(Gives, scores), strict=False)), **fields)


def verdict(*scores, **fields):
    return run_sync(ensemble(*scores, **fields).score, NODES[:1])[0]


@pytest.mark.parametrize(
    ("fields", "score", "detail"),
    [
        ({}, 0.5, "std 0.374166: x 0.1, y 0.4, z 1"),
        ({"penalty": 0.5}, 0.5 - 0.5 * math.sqrt(0.14), None),
        ({"penalty": 0.5, "spread": "variance"}, 0.5 - 0.07, None),
        ({"weights": {"z": 2.0}}, 0.625, "std 0.389711: x 0.1, y 0.4, z 1"),
        ({"weights": {"x": 0.0, "y": 0.0}}, 1.0, "std 0: x 0.1, y 0.4, z 1"),
        ({"how": "min"}, 0.1, "std 0.374166: x 0.1, y 0.4, z 1"),
        ({"how": "median"}, 0.4, None),
        ({"how": "sum"}, 1.5, None),
        ({"how": "sum", "weights": {"x": -2.0, "y": 0.5}}, 1.0, None),
        ({"how": "majority"}, 0.0, "entropy 0.918296: x 0.1, y 0.4, z 1"),
        ({"how": "majority", "above": 0.3}, 1.0, "entropy 0.918296: x 0.1, y 0.4, z 1"),
        ({"how": "majority", "above": 0.4}, 0.0, None),
        ({"how": "majority", "weights": {"z": 2.0}}, 0.5, "entropy 1: x 0.1, y 0.4, z 1"),
        ({"how": "majority", "above": 2.0}, 0.0, "entropy 0: x 0.1, y 0.4, z 1"),
    ],
)
def test_by_hand(fields, score, detail):
    said = verdict(0.1, 0.4, 1.0, **fields)
    assert said.score == pytest.approx(score, abs=1e-12)
    assert detail in (None, said.detail)


FINITE = st.floats(-1e300, 1e300)


@given(st.lists(FINITE, min_size=1, max_size=6), st.floats(0, 10))
def test_the_ways_agree_with_the_library_of_statistics(scores, penalty):
    near = pytest.approx
    mean, std = statistics.fmean(scores), statistics.pstdev(scores)
    scale = max(map(abs, scores)) or 1
    assert verdict(*scores).score == near(mean, abs=1e-9 * scale)
    assert verdict(*scores, how="median").score == statistics.median(scores)
    assert verdict(*scores, how="min").score == min(scores)
    bound = verdict(*scores, penalty=penalty).score
    assert bound == near(mean - penalty * std, abs=1e-7 * scale * (1 + penalty))
    assert bound <= verdict(*scores).score


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=6),
    st.lists(st.floats(0.01, 9), min_size=6, max_size=6),
    st.floats(0.01, 9),
)
def test_laws_of_weighted_means(scores, weights, factor):
    named = dict(zip("xyzuvw"[: len(scores)], weights, strict=False))
    said = verdict(*scores, weights=named, penalty=1)
    scaled = verdict(*scores, weights={n: w * factor for n, w in named.items()}, penalty=1)
    assert said.score == pytest.approx(scaled.score, abs=1e-9)
    assert said.score <= max(scores) + 1e-9
    same = verdict(*[scores[0]] * len(scores), weights=named, penalty=5)
    assert same.score == pytest.approx(scores[0], abs=1e-7)


@given(
    st.permutations([0.1, 0.2, 0.6, 0.7, 0.9]),
    st.sampled_from(["mean", "min", "median", "majority"]),
)
def test_the_order_of_members_does_not_matter(scores, how):
    straight = verdict(0.1, 0.2, 0.6, 0.7, 0.9, how=how)
    assert verdict(*scores, how=how).score == pytest.approx(straight.score, abs=1e-12)


@pytest.mark.anyio
async def test_usage_and_feedback_of_all_members():
    members = {
        "x": Gives(1.0, feedback="Check line 2.", usage=CALL),
        "y": Gives(0.0, usage=CALL),
        "z": Gives(0.5, feedback="Too long.", detail="kept by none", steps=(0.5,)),
    }
    said, _ = await Ensemble(members=members).score(NODES)
    assert (said.usage.calls, said.feedback, said.steps) == (2, "Check line 2.\nToo long.", ())


@pytest.mark.anyio
async def test_members_are_asked_side_by_side():
    arrived = anyio.Event()

    async def first(node):
        with anyio.fail_after(5):
            await arrived.wait()
        return 1

    async def second(node):
        arrived.set()
        return 0

    members = {"first": Function(first), "second": Function(second)}
    assert [v.score for v in await Ensemble(members=members).score(NODES)] == [0.5, 0.5]


LOST = VerifierError("cannot read 'hm'", hint="ask again", spent=CALL)


def test_a_member_that_fails_is_quoted_by_default():
    said = verdict(0.5, LOST, 0.7)
    assert isinstance(said, VerifierError)
    assert (str(said), said.spent) == ("y: cannot read 'hm' (ask again)", CALL)


@pytest.mark.parametrize(
    ("how", "score"), [("mean", 0.6), ("min", 0.5), ("median", 0.6), ("majority", 0.5)]
)
def test_a_member_that_fails_can_be_left_out(how, score):
    said = verdict(0.5, LOST, 0.7, how=how, failed="skip")
    assert said.score == pytest.approx(score)
    assert said.detail.endswith("x 0.5, z 0.7, y failed")
    assert said.usage == CALL


def test_where_all_fail_nothing_can_be_left_out():
    said = verdict(LOST, BackendError("busy", spent=CALL), failed="skip")
    assert str(said) == "x: cannot read 'hm' (ask again); y: busy"
    assert said.spent.calls == 2
    said = verdict(0.5, LOST, failed="skip", weights={"x": 0.0})
    assert str(said) == "y: cannot read 'hm' (ask again)"


@pytest.mark.parametrize("said", [math.nan, math.inf, None, "1", KeyError("x"), 10**400, 1j])
def test_what_is_no_score_names_the_member(said):
    fault = verdict(0.5, said)
    assert isinstance(fault, VerifierError)
    assert str(fault).startswith("y: it ")


def test_a_sum_beyond_all_numbers_is_an_error():
    said = verdict(1.7e308, 1.7e308, how="sum")
    assert str(said) == "the sum of x 1.7e+308, y 1.7e+308 is too large"
    assert verdict(1.7e308, 1.7e308, how="min").score == 1.7e308


@pytest.mark.anyio
async def test_a_member_that_gives_too_few_fails_all_nodes():
    class Short:
        async def score(self, nodes):
            return [Verdict(1.0)]

    said = await Ensemble(members={"x": Gives(1.0), "y": Short()}).score(NODES)
    assert [str(v) for v in said] == ["y: it gave 1 verdicts for 2 nodes"] * 2


@pytest.mark.anyio
async def test_a_fatal_error_ends_it_when_the_others_have_arrived():
    members = {"x": Gives(BackendError("no key", fatal=True)), "y": Gives(1.0, usage=CALL)}
    with pytest.raises(BackendError, match="no key") as raised:
        await Ensemble(members=members, failed="skip").score(NODES)
    assert raised.value.spent.calls == 2
    with pytest.raises(Exhausted):
        await Ensemble(members={"x": Gives(Exhausted("spent"))}).score(NODES)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"members": {}}, "needs a member"),
        ({"weights": {"xx": 1}}, "no member 'xx' for the weight .did you mean 'x'"),
        ({"weights": {"x": -1}}, "-1.0 is no weight for 'x' in a mean"),
        ({"weights": {"x": math.nan}, "how": "sum"}, "no weight"),
        ({"weights": {"x": 0}}, "above 0"),
        ({"weights": {"x": 1}, "how": "min"}, "a min knows no weights"),
        ({"penalty": 1, "how": "min"}, "belongs to `mean`"),
        ({"penalty": -1}, "greater than or equal to 0"),
        ({"how": "sum", "failed": "skip"}, "another scale"),
    ],
)
def test_fields_that_make_no_sense_are_refused(fields, why):
    with pytest.raises(ValidationError, match=why):
        Ensemble(**{"members": {"x": Gives(1.0)}, **fields})


def test_the_same_ensemble_of_other_members():
    opened = ensemble(None, None, weights={"y": 3.0}).around([Gives(0.0), Gives(1.0)])
    assert run_sync(opened.score, NODES)[0].score == 0.75
    assert [v.said for v in opened.inner] == [0.0, 1.0]
