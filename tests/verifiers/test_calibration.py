import itertools
import json
import math
import random
import xml.etree.ElementTree as ET
from fractions import Fraction
from statistics import NormalDist, fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from branchwise.core.aio import run_sync
from branchwise.core.errors import BackendError, SpecError, VerifierError
from branchwise.core.node import Node
from branchwise.core.types import State, Task, Usage, Verdict
from branchwise.verifiers import diagram
from branchwise.verifiers.calibrated import Calibrated
from branchwise.verifiers.calibration import Isotonic, Map, Platt, logit, sigmoid
from branchwise.verifiers.diagram import reliability_svg, report
from branchwise.verifiers.quality import (
    auc,
    auc_interval,
    brier,
    decomposed,
    ece,
    log_loss,
    mce,
    mean_interval,
    reliability,
    wilson,
)

near = pytest.approx

# 30 scores and answers; what scikit-learn 1.9.1 says of them.

S = [
    *(-0.5, 1.0, -0.5, -0.6, -1.9, -0.4, 2.2, 0.8, 2.1, 0.5, 0.8, 0.4, -3.3, 1.7, 1.0),
    *(1.0, -3.4, -3.5, -1.8, -0.9, 0.6, -0.1, 1.0, -1.3, 0.6, 0.8, -1.3, 3.4, 1.1, 2.4),
]
Y = [bool(int(digit)) for digit in "010111111111011100010110111101"]
P = [
    *(0.458, 0.583, 0.458, 0.45, 0.347, 0.467, 0.676, 0.566, 0.668, 0.542, 0.566, 0.533, 0.25),
    *(0.638, 0.583, 0.583, 0.244, 0.237, 0.354, 0.426, 0.55, 0.492, 0.583, 0.393, 0.55, 0.566),
    *(0.393, 0.756, 0.591, 0.69),
]


def test_scores_agree_with_scikit_learn():
    assert auc(S, Y) == near(0.8148148148148149, abs=1e-12)
    assert brier(P, Y) == near(0.1963707666666666, abs=1e-12)
    assert log_loss(P, Y) == near(0.5802348077797126, abs=1e-12)


def test_maps_agree_with_scikit_learn():
    places = [-6, -2.3, -1.05, -0.45, 0, 0.33, 0.71, 1.9, 2.75, 9]
    values = [0, 5 / 14, 0.5, 2 / 3, 5 / 6, 5 / 6, 0.85625, 1, 1, 1]
    assert [*map(Isotonic.fit(S, Y), places)] == near(values, abs=1e-11)
    platt = Platt.fit(S, Y)
    assert (platt.slope, platt.bias) == near((0.7564088, 1.0029526), abs=1e-5)
    likeliest = Platt.fit(S, Y, smooth=False)
    assert (likeliest.slope, likeliest.bias) == near((0.97623929, 1.10989564), abs=1e-6)
    assert Platt.fit(S, Y, smooth=False, bias=False).slope == near(0.91954328, abs=1e-6)


def test_bins_agree_with_scikit_learn():
    bins = reliability(P, Y, 5)
    observed, predicted = [2 / 7, 7 / 9, 1.0], [0.316857142857, 0.530388888889, 0.6856]
    assert [one.observed for one in bins] == near(observed)
    assert [one.predicted for one in bins] == near(predicted)
    gaps = [abs(o - p) for o, p in zip(observed, predicted, strict=True)]
    assert ece(P, Y, 5) == near((7 * gaps[0] + 18 * gaps[1] + 5 * gaps[2]) / 30)
    assert mce(P, Y, 5) == near(max(gaps))


# Telling right from wrong

SCORES = st.lists(
    st.tuples(st.sampled_from([-2.0, -0.5, 0.0, 0.5, 1.0, 3.0]), st.booleans()),
    min_size=1,
    max_size=30,
)


def columns(rows):
    return [row[0] for row in rows], [row[1] for row in rows]


def mixed(rows):
    return len({right for _, right in rows}) == 2


@given(SCORES.filter(mixed))
def test_the_auc_is_the_share_of_pairs_in_order(rows):
    scores, right = columns(rows)
    wins = [(x > y) + (x == y) / 2 for x, good in rows for y, bad in rows if good and not bad]
    assert auc(scores, right) == near(fmean(wins), abs=1e-12)
    assert auc([-x for x in scores], right) == near(1 - auc(scores, right), abs=1e-12)
    assert auc([math.atan(x) for x in scores], right) == near(auc(scores, right), abs=1e-12)
    assert auc([7.0] * len(rows), right) == 0.5


@given(SCORES.filter(lambda rows: 1 < sum(right for _, right in rows) < len(rows) - 1))
def test_the_interval_is_delongs_by_its_definition(rows):
    good = [x for x, right in rows if right]
    bad = [x for x, right in rows if not right]

    def psi(x, y):
        return Fraction(x > y) + Fraction(x == y, 2)

    above = [sum(psi(x, y) for y in bad) / len(bad) for x in good]
    below = [sum(psi(x, y) for x in good) / len(good) for y in bad]
    area = sum(above) / len(above)
    parts = [sum((v - area) ** 2 for v in s) / (len(s) - 1) / len(s) for s in (above, below)]
    half = 1.959963984540054 * math.sqrt(sum(parts))
    low, high = auc_interval(*columns(rows))
    assert (low, high) == near((max(0, area - half), min(1, area + half)), abs=1e-9)


def test_the_interval_holds_the_true_area_as_often_as_it_says():
    """Two normal distributions: the area is Φ(d / √2)."""
    chance, held, rounds = random.Random(3), 0, 300
    true = NormalDist().cdf(1.2 / math.sqrt(2))
    right = [True] * 50 + [False] * 70
    for _ in range(rounds):
        low, high = auc_interval([chance.gauss(1.2 * good, 1) for good in right], right)
        held += low <= true <= high
    assert 0.91 <= held / rounds <= 0.98


@pytest.mark.parametrize(
    ("scores", "right", "why"),
    [
        ([1, 2], [True, True], "needs right and wrong ones, and all 2 are the same"),
        ([1], [True, False], "1 scores for 2 answers"),
        ([], [], "no scores"),
        ([math.nan, 1], [True, False], "a finite number, and one is nan"),
        ([math.inf, 1], [True, False], "a finite number, and one is inf"),
    ],
)
def test_an_auc_of_nothing_is_refused(scores, right, why):
    with pytest.raises(SpecError, match=why):
        auc(scores, right)
    with pytest.raises(SpecError):
        auc_interval(scores, right)


def test_the_interval_of_a_mean_holds_it_as_often_as_it_says():
    chance, rounds = random.Random(1), 400
    drawn = [mean_interval([chance.betavariate(2, 1) for _ in range(40)]) for _ in range(rounds)]
    assert 0.92 <= sum(low <= 2 / 3 <= high for low, high in drawn) / rounds <= 0.98
    with pytest.raises(SpecError, match="two numbers at least"):
        mean_interval([0.5])


def test_an_interval_needs_two_of_each():
    with pytest.raises(SpecError, match="two right and two wrong"):
        auc_interval([1, 2, 3], [True, False, False])
    assert auc_interval([1, 2, 3, 4], [False, False, True, True]) == (1.0, 1.0)


# Meaning what it says

PROBABLE = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 0.8, 1.0]), st.booleans()),
    min_size=1,
    max_size=40,
)


def test_calibration_errors_by_hand():
    p, right = [0.1, 0.3, 0.35, 0.9], [False, True, False, True]
    # Two bins: 0.25 predicted and 1/3 right, 0.9 predicted and all right.
    assert ece(p, right, 2) == near((3 * (1 / 3 - 0.25) + 1 * 0.1) / 4)
    assert mce(p, right, 2) == near(0.1)
    # Two by two: 0.2 and 1/2, 0.625 and 1/2.
    assert ece(p, right, 2, by="mass") == near((2 * 0.3 + 2 * 0.125) / 4)
    assert mce(p, right, 2, by="mass") == near(0.3)
    assert ece(p, right, 1) == ece(p, right, 1, by="mass") == near(abs(0.4125 - 0.5))


def test_edges_belong_to_the_bin_below():
    bins = reliability([0.0, 0.1, 0.3, 0.30000001, 1.0], [True] * 5)
    assert [(one.low, one.high, one.n) for one in bins] == [
        *((0.0, 0.1, 2), (0.2, 0.3, 1), (0.3, 0.4, 1), (0.9, 1.0, 1)),
    ]


@given(PROBABLE, st.integers(1, 12), st.sampled_from(["width", "mass"]))
def test_laws_of_bins(rows, bins, by):
    p, right = columns(rows)
    found = reliability(p, right, bins, by=by)
    assert sum(one.n for one in found) == len(rows)
    assert 1 <= len(found) <= bins
    assert all(a.high <= b.low for a, b in itertools.pairwise(found))
    assert sum(one.n * one.observed for one in found) == near(sum(right))
    assert sum(one.n * one.predicted for one in found) == near(sum(p))
    for one in found:
        assert one.low <= one.predicted + 1e-12
        assert one.predicted <= one.high + 1e-12
        assert one.interval.low <= one.observed <= one.interval.high
    gap = abs(fmean(p) - fmean(right))
    assert gap - 1e-12 <= ece(p, right, bins, by=by) <= mce(p, right, bins, by=by) + 1e-12
    mixed_up = list(rows)
    random.Random(0).shuffle(mixed_up)
    assert reliability(*columns(mixed_up), bins, by=by) == found


@given(PROBABLE, st.integers(1, 12))
def test_bins_of_equal_mass_hold_equally_many_where_nothing_is_equal(rows, bins):
    p = [(i + 0.5) / len(rows) for i in range(len(rows))]
    found = reliability(p, [right for _, right in rows], bins, by="mass")
    sizes = {one.n for one in found}
    assert max(sizes) - min(sizes) <= 1
    assert len(found) == min(bins, len(rows))


def test_perfect_and_terrible_probabilities():
    assert (ece([0.0, 1.0], [False, True]), ece([0.0, 1.0], [True, False])) == (0.0, 1.0)
    assert (brier([0.0, 1.0], [False, True]), brier([0.0, 1.0], [True, False])) == (0.0, 1.0)
    assert log_loss([0.0, 1.0], [False, True]) == 0.0
    assert log_loss([0.0], [True]) == math.inf


@given(PROBABLE)
def test_the_parts_add_up_to_the_brier_score(rows):
    p, right = columns(rows)
    parts = decomposed(p, right)
    assert parts.score == near(brier(p, right), abs=1e-12)
    assert parts.miscalibration >= -1e-12
    assert parts.discrimination >= -1e-12
    assert parts.uncertainty == near(fmean(right) * (1 - fmean(right)), abs=1e-12)


@given(st.lists(st.integers(0, 4), min_size=2, max_size=6).map(sorted), st.randoms())
def test_where_shares_rise_the_parts_are_murphys(hits, chance):
    """Four answers at each prediction, of which so many are right."""
    p = sorted(chance.sample([i / 10 for i in range(11)], len(hits)))
    rows = [(q, i < hit) for q, hit in zip(p, hits, strict=True) for i in range(4)]
    rate = sum(hits) / (4 * len(hits))
    murphy = fmean((q - hit / 4) ** 2 for q, hit in zip(p, hits, strict=True))
    resolution = fmean((hit / 4 - rate) ** 2 for hit in hits)
    parts = decomposed(*columns(rows))
    assert (parts.miscalibration, parts.discrimination) == near((murphy, resolution), abs=1e-12)


@pytest.mark.parametrize("measure", [brier, log_loss, ece, mce, reliability, decomposed, report])
@pytest.mark.parametrize("p", [[0.5, 1.2], [-0.1, 0.5], [math.nan, 0.5], [], [0.5]])
def test_what_is_no_probability_is_refused(measure, p):
    with pytest.raises(SpecError):
        measure(p, [True, False])


def test_there_have_to_be_bins():
    with pytest.raises(SpecError, match="bins, not 0"):
        reliability([0.5], [True], 0)


@given(st.integers(0, 50), st.integers(0, 50))
def test_the_interval_of_a_share_solves_its_equation(right, wrong):
    n = right + wrong
    low, high = wilson(right, n)
    if n == 0:
        assert (low, high) == (0, 1)
        return
    for end in (low, high):  # the share is just as far away as the error at that end allows
        far = 1.959963984540054 * math.sqrt(end * (1 - end) / n)
        assert abs(right / n - end) == near(far, abs=1e-9)


# Maps


def logistic(slope, bias, n=4000, seed=5):
    chance = random.Random(seed)
    scores = [chance.gauss(0, 2) for _ in range(n)]
    return scores, [chance.random() < sigmoid(slope * s + bias) for s in scores]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5, 10.0])
def test_a_known_temperature_is_found(temperature):
    scores, right = logistic(1 / temperature, 0.0)
    for smooth in (True, False):
        fitted = Platt.fit(scores, right, bias=False, smooth=smooth)
        assert fitted.bias == 0.0
        assert 1 / fitted.slope == near(temperature, rel=0.15)


def test_a_known_slope_and_bias_are_found_and_calibrate():
    scores, right = logistic(0.7, -1.0)
    fitted = Platt.fit(scores, right)
    assert (fitted.slope, fitted.bias) == near((0.7, -1.0), abs=0.1)
    raw = [sigmoid(score) for score in scores]
    mapped = [*map(fitted, scores)]
    assert ece(raw, right) > 0.1
    assert ece(mapped, right) < 0.03
    assert auc(mapped, right) == near(auc(scores, right))
    assert log_loss(mapped, right) < log_loss(raw, right)


def loss(fitted, scores, right, smooth):
    hits = sum(right)
    top, bottom = ((hits + 1) / (hits + 2), 1 / (len(right) - hits + 2)) if smooth else (1, 0)
    total = 0.0
    for score, good in zip(scores, right, strict=True):
        x, aim = fitted.slope * score + fitted.bias, top if good else bottom
        total += math.log1p(math.exp(-abs(x))) + max(x, 0) - aim * x
    return total


@given(SCORES, st.booleans(), st.floats(-0.3, 0.3), st.floats(-0.3, 0.3))
def test_no_map_nearby_is_likelier(rows, bias, more, shift):
    scores, right = columns(rows)
    fitted = Platt.fit(scores, right, bias=bias)
    other = Platt(slope=fitted.slope + more, bias=fitted.bias + shift * bias)
    assert loss(fitted, scores, right, True) <= loss(other, scores, right, True) + 1e-9


@given(SCORES.filter(mixed), st.floats(0.01, 100), st.floats(-100, 100))
def test_the_fit_does_not_depend_on_the_scale_of_scores(rows, scale, shift):
    scores, right = columns(rows)
    one = Platt.fit(scores, right)
    other = Platt.fit([scale * score + shift for score in scores], right)
    for score in scores:
        assert other(scale * score + shift) == near(one(score), abs=1e-5)


def test_large_scores_far_from_zero_can_be_fitted():
    scores = [1e8 + score for score in S]
    fitted = Platt.fit(scores, Y)
    assert [*map(fitted, scores)] == near([*map(Platt.fit(S, Y), S)], abs=1e-4)


@pytest.mark.parametrize(
    ("scores", "right", "bias"),
    [
        ([1, 2, 3, 4], [False, False, True, True], True),
        ([1, 2, 2, 3], [False, False, True, True], True),
        ([4, 3, 2, 1], [False, False, True, True], True),
        ([1, 2], [True, True], True),
        ([-1, -2, 1], [False, False, True], False),
        ([1, 2], [False, False], False),
    ],
)
def test_where_a_threshold_settles_it_only_the_smooth_fit_is_finite(scores, right, bias):
    with pytest.raises(SpecError, match="a threshold tells right from wrong"):
        Platt.fit(scores, right, bias=bias, smooth=False)
    fitted = Platt.fit(scores, right, bias=bias)
    assert math.isfinite(fitted.slope)
    assert all(0 < fitted(score) < 1 for score in scores)


def test_scores_that_say_nothing_give_the_base_rate():
    fitted = Platt.fit([2.0] * 4, [True, True, True, False], smooth=False)
    assert fitted(2.0) == near(0.75)
    assert Platt.fit([0.0] * 4, [True, True, True, False], bias=False, smooth=False)(0.0) == 0.5


def test_probabilities_are_mapped_by_their_logits():
    p = [sigmoid(score) for score in S]
    by_logit = Platt.fit(p, Y, logit=True)
    assert [*map(by_logit, p)] == near([*map(Platt.fit(S, Y), S)])
    assert 0 <= Platt(slope=2.0, logit=True)(0.0) < 1e-20
    assert Platt(slope=2.0, logit=True)(1.0) == near(1.0)
    with pytest.raises(SpecError, match=r"1\.5 is no probability"):
        Platt(logit=True)(1.5)
    with pytest.raises(SpecError, match="a probability, and one is 2"):
        Platt.fit([0.5, 2], [True, False], logit=True)


@given(st.floats(-700, 700))
def test_a_sigmoid_and_a_logit(x):
    assert sigmoid(x) + sigmoid(-x) == near(1)
    if abs(x) < 20:
        assert logit(sigmoid(x)) == near(x, abs=1e-5)


def cuts(n):
    """All ways to divide n things in a row into runs."""
    for marks in itertools.product([False, True], repeat=n - 1):
        edges = [0, *(i + 1 for i, mark in enumerate(marks) if mark), n]
        yield list(itertools.pairwise(edges))


@given(
    st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=14).filter(
        lambda rows: len({row[0] for row in rows}) <= 7
    )
)
def test_isotonic_regression_is_the_best_of_all_partitions(rows):
    scores, right = columns(rows)
    groups = [[good for s, good in rows if s == score] for score in sorted(set(scores))]
    best = math.inf
    for runs in cuts(len(groups)):
        means = [Fraction(sum(map(sum, groups[a:b])), sum(map(len, groups[a:b]))) for a, b in runs]
        if means == sorted(means):
            error = sum(
                (good - mean) ** 2
                for (a, b), mean in zip(runs, means, strict=True)
                for group in groups[a:b]
                for good in group
            )
            best = min(best, error)
    fitted = Isotonic.fit(scores, right)
    error = sum((good - fitted(score)) ** 2 for score, good in rows)
    assert error == near(float(best), abs=1e-9)


@given(SCORES, st.lists(st.floats(-5, 5), min_size=2, max_size=9).map(sorted))
def test_an_isotonic_map_never_falls_and_keeps_the_mean(rows, places):
    scores, right = columns(rows)
    fitted = Isotonic.fit(scores, right)
    values = [*map(fitted, places)]
    assert values == sorted(values)
    assert all(0 <= value <= 1 for value in values)
    assert sum(map(fitted, scores)) == near(sum(right))
    assert ece([*map(fitted, scores)], right, 40) < 1 / 40 + 1e-9
    again = Isotonic.fit([*map(fitted, scores)], right)
    assert [again(fitted(score)) for score in scores] == near([*map(fitted, scores)])


def test_an_isotonic_map_by_hand():
    fitted = Isotonic(scores=(-1.0, 0.0, 2.0), values=(0.2, 0.4, 0.4))
    places = (-9, -1, -0.5, 0, 1, 2, 9)
    assert [*map(fitted, places)] == near([0.2, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4])
    huge = Isotonic(scores=(-1e308, 1e308), values=(0.0, 1.0))
    assert huge(0.0) == 0.5


@pytest.mark.parametrize(
    "fields",
    [
        {"scores": [0, 0], "values": [0, 1]},
        {"scores": [0, 1], "values": [1, 0]},
        {"scores": [0, 1], "values": [0]},
        {"scores": [], "values": []},
        {"scores": [0], "values": [2]},
        {"scores": [math.inf], "values": [0]},
    ],
)
def test_knots_that_make_no_map_are_refused(fields):
    with pytest.raises(ValidationError):
        Isotonic(**fields)


@pytest.mark.parametrize("fitted", [Platt.fit(S, Y), Isotonic.fit(S, Y)])
def test_maps_survive_json(fitted):
    assert TypeAdapter(Map).validate_json(fitted.model_dump_json()) == fitted


@pytest.mark.parametrize("fit", [Platt.fit, Isotonic.fit])
@pytest.mark.parametrize("scores", [[], [math.nan, 1], [1]])
def test_a_fit_to_nothing_is_refused(fit, scores):
    with pytest.raises(SpecError):
        fit(scores, [True, False])


# Telling


def test_the_report_says_all_of_it():
    page = report(P, Y, 5)
    low, high = auc_interval(P, Y)
    for line in (
        "| predictions | 30, of which 21 right |",
        f"| AUC, with its 95 % interval | {auc(P, Y):.4f} ({low:.4f} to {high:.4f}) |",
        "| Brier score | 0.1964 |",
        "| log loss | 0.5802 |",
        f"| ECE, 5 bins of equal width | {ece(P, Y, 5):.4f} |",
        f"| ECE, 5 bins of equal mass | {ece(P, Y, 5, by='mass'):.4f} |",
        "| 0.2 | 0.4 | 7 | 0.3169 | 0.2857 | 0.0822 to 0.6411 |",
    ):
        assert line in page.splitlines()
    assert "needs right and wrong ones" in report([0.5, 0.6], [True, True])
    assert "| 0.5000 |" in report([0.5, 0.5], [True, False])


def test_the_picture_shows_each_bin_where_it_is():
    bins = reliability(P, Y, 5)
    text = reliability_svg(bins, "A & <B>")
    picture = ET.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    assert next(t.text for t in picture.iter(f"{space}text")) == "A & <B>"
    left, top, side = diagram._LEFT, diagram._TOP, diagram._SIDE
    dots = [(float(c.get("cx")), float(c.get("cy"))) for c in picture.iter(f"{space}circle")]
    assert dots == [
        near((left + side * one.predicted, top + side * (1 - one.observed)), abs=0.06)
        for one in bins
    ]
    lines = [mark for mark in picture.iter(f"{space}line") if mark.get("class") == "i"]
    for mark, one in zip(lines, bins, strict=True):
        ends = [float(mark.get("y1")), float(mark.get("y2"))]
        assert ends == near([top + side * (1 - end) for end in one.interval], abs=0.06)
    assert "prefers-color-scheme:dark" in text
    assert reliability_svg(()).count("<circle") == 0


# Calibrated

NODES = [Node(Task("?"), State(answer=answer)) for answer in "abc"]


class Gives:
    def __init__(self, *said):
        self.said = said

    async def score(self, nodes):
        if isinstance(self.said[0], BackendError):
            raise self.said[0]
        return list(self.said)


def calibrated(fitted, *said):
    return run_sync(Calibrated(of=Gives(*said), map=fitted).score, NODES[: len(said)])


def test_a_calibrated_verifier_maps_the_score_and_keeps_the_rest():
    usage = Usage(calls=1)
    said = Verdict(2.0, "wrong in line 2", "equal", usage, (1.0, 2.0))
    [verdict] = calibrated(Platt(slope=1.0, bias=-2.0), said)
    assert verdict == Verdict(0.5, "wrong in line 2", "equal, raw 2.0", usage)


def test_what_the_map_cannot_take_is_an_error_in_its_place_alone():
    lost = VerifierError("cannot read")
    usage = Usage(calls=1)
    good, bad, gone = calibrated(Platt(logit=True), Verdict(0.25), Verdict(3.0, usage=usage), lost)
    assert good.score == near(0.25)
    assert (str(bad), bad.spent) == ("3.0 is no probability, and only one has a logit", usage)
    assert gone is lost
    nan, none = calibrated(Platt(), Verdict(math.nan), None)
    assert "nan, which is no finite number" in str(nan)
    assert "None, which is no Verdict" in str(none)
    with pytest.raises(BackendError):
        calibrated(Platt(), BackendError("no key", fatal=True))


def test_a_map_may_be_a_file(tmp_path):
    fitted = Isotonic.fit(S, Y)
    path = tmp_path / "map.json"
    path.write_text(fitted.model_dump_json())
    assert Calibrated(of=Gives(), map=str(path)).map == fitted
    table = {"of": Gives(), "map": "map.json"}
    assert Calibrated.model_validate(table, context={"folder": tmp_path}).map == fitted
    inline = json.loads(path.read_text())
    assert Calibrated(of=Gives(), map=inline).map == fitted


def test_a_file_that_holds_no_map_is_refused(tmp_path):
    with pytest.raises(ValidationError, match="cannot read"):
        Calibrated(of=Gives(), map=str(tmp_path / "none.json"))
    path = tmp_path / "map.json"
    for text, why in (("{", "is no JSON"), ('{"kind": "spline"}', "platt"), ("[]", "map")):
        path.write_text(text)
        with pytest.raises(ValidationError, match=why):
            Calibrated(of=Gives(), map=path)


def test_the_same_map_of_another_verifier():
    opened = Calibrated(of=None, map=Platt()).around([Gives(Verdict(0.0))])
    assert run_sync(opened.score, NODES[:1])[0].score == 0.5
    assert opened.inner[0].said == (Verdict(0.0),)
