import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchwise import Usage
from branchwise.runs.report import cells, footnotes, markdown, mcnemar, table
from branchwise.runs.store import Result


def result(strategy, problem, grade, tokens=10):
    usage = Usage(calls=1, completion=tokens, seconds=0.5)
    return Result(strategy, str(problem), "1", "1", grade, "", "finished", usage)


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),  # from scipy.stats.binomtest(...).proportion_ci(method="wilson")
    [
        (0, 10, 0.0, 0.27753279986288926),
        (8, 10, 0.4901624715366418, 0.9433178485456248),
        (55, 100, 0.45244602997442135, 0.6438546202048803),
        (100, 100, 0.9630065017930143, 1.0),
    ],
)
def test_wilson_s_interval_is_scipy_s(right, n, low, high):
    results = [result("one", i, "right" if i < right else "wrong") for i in range(n)]
    [row] = table(["one"], results)
    assert (row.low, row.high) == pytest.approx((low, high), abs=1e-9)


@given(st.integers(0, 30), st.integers(0, 30))
def test_mcnemar_s_p_is_the_binomial_tail(won, lost):
    n = won + lost
    probabilities = [math.comb(n, k) / 2**n for k in range(n + 1)]
    extreme = sum(p for k, p in enumerate(probabilities) if abs(k - n / 2) >= abs(won - n / 2))
    assert mcnemar(won, lost) == pytest.approx(min(1.0, extreme))


def test_a_gain_is_paired_and_leaves_out_what_is_ungraded():
    base = ["right", "wrong", "wrong", "wrong", "right", "ungraded"]
    ours = ["right", "right", "right", "wrong", "wrong", "right"]
    rows = table(
        ["a", "b"],
        [result("a", i, grade) for i, grade in enumerate(base)]
        + [result("b", i, grade) for i, grade in enumerate(ours)],
    )
    a, b = rows
    assert (a.right, a.graded, a.ungraded) == (2, 5, 1)
    assert (b.right, b.graded, b.ungraded) == (4, 6, 0)
    differences = [1, 1, 0, 0, -1]
    half = 1.959963984540054 * statistics.pstdev(differences) / math.sqrt(5)
    assert b.gain == pytest.approx(0.2)
    assert (b.gain_low, b.gain_high) == pytest.approx((0.2 - half, 0.2 + half))
    assert b.p == 1.0
    assert (b.tokens, b.calls, b.seconds) == (60, 6, 3.0)
    assert a.gain is None
    assert cells(a)[:3] == ("a", "40.0%", "12 to 77")
    assert "a: 1 could not be graded and do not count." in footnotes(rows)
    assert markdown(rows).count("\n| ") == 3
