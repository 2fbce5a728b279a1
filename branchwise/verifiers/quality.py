"""Whether scores tell right from wrong, and whether a probability means what it says."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev
from typing import Literal, NamedTuple

from branchwise.core.errors import SpecError
from branchwise.verifiers.calibration import Isotonic, check, groups

Binning = Literal["width", "mass"]


class Interval(NamedTuple):
    """Where a number probably lies.

    Args:
        low: the lower end.
        high: the upper end.
    """

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Bin:
    """Predictions that lie near each other, and how many of them were right.

    Args:
        low: where the bin begins.
        high: where it ends.
        n: how many predictions it holds.
        predicted: their mean.
        observed: the share of them that is right.
        interval: the 95 % Wilson interval of that share.
    """

    low: float
    high: float
    n: int
    predicted: float
    observed: float
    interval: Interval

    @property
    def gap(self) -> float:
        """How much more was predicted than observed: above 0 is overconfident."""
        return self.predicted - self.observed


def wilson(right: int, n: int, level: float = 0.95) -> Interval:
    """The interval of a share (Wilson 1927).

    Args:
        right: how many are right.
        n: of how many.
        level: how probable it is that the interval holds the true share.

    Example:
        >>> [round(end, 3) for end in wilson(8, 10)]
        [0.49, 0.943]
    """
    if n == 0:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, z2 = right / n, z * z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def mean_interval(numbers: Sequence[float], level: float = 0.95) -> Interval:
    """The interval of a mean of shares by its standard error, cut off at 0 and 1.

    Of numbers that do not depend on each other, such as one for each problem. It has no width where
    all are the same: such data bound the mean only by their number.

    Args:
        numbers: between 0 and 1.
        level: how probable it is that the interval holds the true mean.

    Raises:
        SpecError: there are fewer than two.

    Example:
        >>> [round(end, 3) for end in mean_interval([0.0, 0.5, 0.5, 1.0])]
        [0.1, 0.9]
    """
    if len(numbers) < 2:  # noqa: PLR2004  (a variance needs two)
        raise SpecError("the interval of a mean needs two numbers at least")
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre, half = fmean(numbers), z * stdev(numbers) / math.sqrt(len(numbers))
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def auc(scores: Sequence[float], right: Sequence[bool]) -> float:
    """The probability that a right one scores higher than a wrong one; equal scores count half.

    It is the area under the ROC curve, and the statistic of Mann and Whitney over the number of
    pairs.

    Args:
        scores: any finite numbers.
        right: which of them belong to something right.

    Raises:
        SpecError: there is none that is right, or none that is wrong.

    Example:
        >>> auc([0.1, 0.4, 0.4, 0.9], [False, False, True, True])
        0.875
    """
    above, _ = _placements(scores, right)
    return fmean(above)


def auc_interval(scores: Sequence[float], right: Sequence[bool], level: float = 0.95) -> Interval:
    """The interval of `auc` by the variance of DeLong et al. 1988, cut off at 0 and 1.

    It is too narrow where scores depend on each other, as those of answers to the same problem do.
    It has no width where right and wrong are told apart without a fault: such data bound the area
    only by their number.

    Args:
        scores: any finite numbers.
        right: which of them belong to something right.
        level: how probable it is that the interval holds the true area.

    Raises:
        SpecError: there are fewer than two that are right, or than two that are wrong.

    Example:
        >>> scores = [0.1, 0.4, 0.35, 0.8, 0.7, 0.3]
        >>> right = [False, False, True, True, True, False]
        >>> [round(end, 3) for end in auc_interval(scores, right)]
        [0.581, 1.0]
    """
    above, below = _placements(scores, right)
    if len(above) < 2 or len(below) < 2:  # noqa: PLR2004  (a variance needs two)
        raise SpecError("the interval of an AUC needs two right and two wrong ones at least")
    centre = fmean(above)  # of both
    spread = math.fsum(
        math.fsum((each - centre) ** 2 for each in side) / (len(side) - 1) / len(side)
        for side in (above, below)
    )
    half = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(spread)
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def _placements(scores: Sequence[float], right: Sequence[bool]) -> tuple[list[float], list[float]]:
    """For each right one the share of wrong ones below it, for each wrong one the right ones above.

    Raises:
        SpecError: there is none that is right, or none that is wrong.
    """
    check(scores, right)
    good = sum(map(bool, right))
    bad = len(right) - good
    if not good or not bad:
        raise SpecError(f"an AUC needs right and wrong ones, and all {len(right)} are the same")
    above: list[float] = []
    below: list[float] = []
    wrong_before = right_before = 0
    for _, group in groups(scores, right):
        hits = sum(group)
        misses = len(group) - hits
        above += [(wrong_before + misses / 2) / bad] * hits
        below += [(good - right_before - hits / 2) / good] * misses
        wrong_before += misses
        right_before += hits
    return above, below


def brier(p: Sequence[float], right: Sequence[bool]) -> float:
    """The mean squared error of probabilities (Brier 1950): 0 is best, 1/4 is a coin's.

    Args:
        p: the probability given to being right.
        right: what was right.

    Raises:
        SpecError: there are none, or one is no probability.

    Example:
        >>> brier([1.0, 0.5], [True, False])
        0.125
    """
    check(p, right, probable=True)
    return fmean((each - bool(true)) ** 2 for each, true in zip(p, right, strict=True))


@dataclass(frozen=True, slots=True)
class Decomposition:
    """What a Brier score consists of: miscalibration - discrimination + uncertainty.

    Args:
        miscalibration: what the best monotone map of the predictions would gain.
        discrimination: what the predictions, so mapped, are better than always the base rate.
        uncertainty: the score of always the base rate.
    """

    miscalibration: float
    discrimination: float
    uncertainty: float

    @property
    def score(self) -> float:
        """The Brier score."""
        return self.miscalibration - self.discrimination + self.uncertainty


def decomposed(p: Sequence[float], right: Sequence[bool]) -> Decomposition:
    """The Brier score in three parts, which add up exactly.

    The predictions are recalibrated by isotonic regression, so there are no bins to choose. Where
    the shares of right ones rise with the predictions, the parts are those of Murphy 1973:
    reliability, resolution and uncertainty.

    Source: Dimitriadis, Gneiting and Jordan 2021 (CORP).

    Args:
        p: the probability given to being right.
        right: what was right.

    Raises:
        SpecError: there are none, or one is no probability.

    Example:
        >>> decomposed([0.2, 0.2, 0.8, 0.8], [False, False, True, True]).discrimination
        0.25
    """
    whole = brier(p, right)
    best = Isotonic.fit(p, right)
    rate = fmean(map(bool, right))
    mapped, constant = brier([*map(best, p)], right), rate * (1 - rate)
    return Decomposition(whole - mapped, constant - mapped, constant)


def log_loss(p: Sequence[float], right: Sequence[bool]) -> float:
    """The mean of -ln of the probability that was given to what came true.

    It is infinite where something came true that was held impossible.

    Args:
        p: the probability given to being right.
        right: what was right.

    Raises:
        SpecError: there are none, or one is no probability.

    Example:
        >>> log_loss([0.5, 1.0], [True, False])
        inf
    """
    check(p, right, probable=True)
    chances = [each if true else 1 - each for each, true in zip(p, right, strict=True)]
    return fmean(-math.log(chance) if chance else math.inf for chance in chances)


def reliability(
    p: Sequence[float], right: Sequence[bool], bins: int = 10, *, by: Binning = "width"
) -> tuple[Bin, ...]:
    """The predictions in bins, lowest first; bins without any are left out.

    Args:
        p: the probability given to being right.
        right: what was right.
        bins: how many.
        by: of equal `width`, the i-th from (i - 1) / bins, not included, to i / bins, as in Guo et
            al. 2017; or of equal `mass`, with the same number of predictions in each as far as
            equal predictions, which stay together, allow.

    Raises:
        SpecError: there are none, or one is no probability.

    Example:
        >>> bins = reliability([0.1, 0.2, 0.9], [False, True, True], 2)
        >>> [(one.n, one.observed) for one in bins]
        [(2, 0.5), (1, 1.0)]
    """
    check(p, right, probable=True)
    if bins < 1:
        raise SpecError(f"there have to be bins, not {bins}")
    edges = [i / bins for i in range(bins + 1)]
    held: dict[int, list[tuple[float, list[bool]]]] = {}
    before = 0
    for value, group in groups(p, right):
        middle = before + len(group) / 2
        place = bisect_left(edges, value) - 1 if by == "width" else int(bins * middle / len(p))
        held.setdefault(max(place, 0), []).append((value, group))
        before += len(group)
    return tuple(
        _bin(groups, Interval(edges[place], edges[place + 1]) if by == "width" else None)
        for place, groups in held.items()
    )


def _bin(groups: Sequence[tuple[float, list[bool]]], edges: Interval | None) -> Bin:
    n = sum(len(group) for _, group in groups)
    hits = sum(sum(group) for _, group in groups)
    low, high = edges or (groups[0][0], groups[-1][0])
    predicted = math.fsum(value * len(group) for value, group in groups) / n
    return Bin(low, high, n, predicted, hits / n, wilson(hits, n))


def ece(
    p: Sequence[float], right: Sequence[bool], bins: int = 10, *, by: Binning = "width"
) -> float:
    """The expected calibration error: the mean gap of the bins, weighted by what they hold.

    It is biased: even perfect predictions have gaps, which grow with the number of bins and shrink
    with the number of predictions.

    Source: Naeini et al. 2015; Guo et al. 2017; bins of equal mass: Nixon et al. 2019.

    Args:
        p: the probability given to being right.
        right: what was right.
        bins: how many.
        by: bins of equal `width` or of equal `mass`.

    Raises:
        SpecError: there are none, or one is no probability.

    Example:
        >>> ece([0.75, 0.75], [True, False])
        0.25
    """
    return math.fsum(one.n * abs(one.gap) for one in reliability(p, right, bins, by=by)) / len(p)


def mce(
    p: Sequence[float], right: Sequence[bool], bins: int = 10, *, by: Binning = "width"
) -> float:
    """The maximum calibration error: the gap of the bin where it is widest.

    Args:
        p: the probability given to being right.
        right: what was right.
        bins: how many.
        by: bins of equal `width` or of equal `mass`.

    Raises:
        SpecError: there are none, or one is no probability.

    Example:
        >>> mce([0.25, 0.75], [True, True])
        0.75
    """
    return max(abs(one.gap) for one in reliability(p, right, bins, by=by))
