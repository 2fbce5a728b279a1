"""Whether scores tell right from wrong, and whether a probability means what it says."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from statistics import NormalDist, fmean, stdev
from typing import Annotated, Literal, NamedTuple, Self, TypeAlias

from pydantic import Field, model_validator

from branchwise.core.config import Config
from branchwise.core.errors import SpecError

Binning = Literal["width", "mass"]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_CERTAIN = 1e-12
"""A probability is taken for at least this much away from 0 and 1 where its logit is wanted."""
_ROUNDS = 100
_HALVINGS = 30
_NEAR = 1e-10
"""So much a step may still gain for each score where the search for the best map ends."""


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


# Telling right from wrong


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
    _check(scores, right)
    good = sum(map(bool, right))
    bad = len(right) - good
    if not good or not bad:
        raise SpecError(f"an AUC needs right and wrong ones, and all {len(right)} are the same")
    above: list[float] = []
    below: list[float] = []
    wrong_before = right_before = 0
    for _, group in _groups(scores, right):
        hits = sum(group)
        misses = len(group) - hits
        above += [(wrong_before + misses / 2) / bad] * hits
        below += [(good - right_before - hits / 2) / good] * misses
        wrong_before += misses
        right_before += hits
    return above, below


# Meaning what it says


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
    _check(p, right, probable=True)
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
    _check(p, right, probable=True)
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
    _check(p, right, probable=True)
    if bins < 1:
        raise SpecError(f"there have to be bins, not {bins}")
    edges = [i / bins for i in range(bins + 1)]
    held: dict[int, list[tuple[float, list[bool]]]] = {}
    before = 0
    for value, group in _groups(p, right):
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


# Maps


class Platt(Config):
    """A sigmoid of the score: p = σ(slope · s + bias).

    With `logit`, s is the logit of the score, which then has to be a probability. A bias of 0 is
    temperature scaling, with the temperature 1 / slope.

    Source: Platt 1999; Guo et al. 2017, §4.2.

    Args:
        slope: what the score is multiplied with.
        bias: what is added.
        logit: whether scores are probabilities, of which the logit is taken first.

    Example:
        >>> Platt(slope=2.0, bias=-1.0)(0.5)
        0.5
    """

    kind: Literal["platt"] = "platt"
    slope: _Finite = 1.0
    bias: _Finite = 0.0
    logit: bool = False

    def __call__(self, score: float) -> float:
        """The probability that belongs to a score.

        Raises:
            SpecError: the score is no probability, and one is needed.
        """
        return sigmoid(self.slope * (logit(score) if self.logit else score) + self.bias)

    @classmethod
    def fit(
        cls,
        scores: Sequence[float],
        right: Sequence[bool],
        *,
        bias: bool = True,
        logit: bool = False,
        smooth: bool = True,
    ) -> Self:
        """The most likely map, by Newton's method.

        Args:
            scores: what a verifier said.
            right: what was right.
            bias: whether to fit a bias; without one it is temperature scaling.
            logit: whether scores are probabilities, of which the logit is taken first.
            smooth: whether to aim at (R + 1) / (R + 2) for the R right ones and at 1 / (W + 2) for
                the W wrong ones, as Platt does, instead of at 1 and 0: the map is then finite also
                where a threshold tells right from wrong.

        Raises:
            SpecError: there are none, one is no finite number, or no finite map is the most likely.

        Example:
            >>> fitted = Platt.fit([-2, -1, 1, 2], [False, True, False, True], smooth=False)
            >>> round(fitted.slope, 4)
            0.4196
        """
        _check(scores, right, probable=logit)
        said = [_logit(score) for score in scores] if logit else [float(s) for s in scores]
        good = sum(map(bool, right))
        top, bottom = (good + 1) / (good + 2), 1 / (len(said) - good + 2)
        if not smooth:
            top, bottom = 1.0, 0.0
            _refuse_separable(said, right, bias=bias)
        aims = [top if true else bottom for true in right]
        # Centred and scaled, so that neither squares nor differences lose what matters.
        middle = fmean(said) if bias else 0.0
        size = max(abs(score - middle) for score in said) or 1.0
        slope, shift = _newton([(score - middle) / size for score in said], aims, bias=bias)
        return cls(slope=slope / size, bias=shift - slope / size * middle, logit=logit)


class Isotonic(Config):
    """A map that never falls: constant or linear between knots, constant beyond the outermost.

    Where it is constant it makes unequal scores equal: the order among them is lost.

    Source: Zadrozny and Elkan 2002; pool adjacent violators: Ayer et al. 1955.

    Args:
        scores: the knots' places, rising.
        values: the knots' values, in [0, 1], never falling; one for each place.

    Raises:
        pydantic.ValidationError: the knots do not rise, or there are not as many values.

    Example:
        >>> Isotonic(scores=(0.0, 1.0), values=(0.25, 0.75))(0.5)
        0.5
    """

    kind: Literal["isotonic"] = "isotonic"
    scores: tuple[_Finite, ...] = Field(min_length=1)
    values: tuple[Annotated[float, Field(ge=0, le=1)], ...]

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if len(self.scores) != len(self.values):
            raise ValueError("there has to be one value for each score")
        if any(a >= b for a, b in zip(self.scores, self.scores[1:], strict=False)):
            raise ValueError("the scores have to rise")
        if any(a > b for a, b in zip(self.values, self.values[1:], strict=False)):
            raise ValueError("the values must not fall")
        return self

    def __call__(self, score: float) -> float:
        """The probability that belongs to a score."""
        after = bisect_left(self.scores, score)
        if after == len(self.scores) or after == 0:
            return self.values[min(after, len(self.scores) - 1)]
        (x0, x1), (y0, y1) = self.scores[after - 1 : after + 1], self.values[after - 1 : after + 1]
        # Halves, since the difference of two finite numbers may be infinite.
        share = (score / 2 - x0 / 2) / (x1 / 2 - x0 / 2)
        return min(max(y0 + (y1 - y0) * share, y0), y1)

    @classmethod
    def fit(cls, scores: Sequence[float], right: Sequence[bool]) -> Self:
        """The map with the least squared error of all that never fall.

        Args:
            scores: what a verifier said.
            right: what was right.

        Raises:
            SpecError: there are none, or one is no finite number.

        Example:
            >>> Isotonic.fit([1, 2, 3, 4], [False, True, False, True]).values
            (0.0, 0.5, 0.5, 1.0)
        """
        _check(scores, right)
        blocks: list[_Block] = []
        for value, group in _groups(scores, right):
            block = _Block(value, value, sum(group), len(group))
            # Shares are compared as fractions: rounding must not decide what is pooled.
            while blocks and blocks[-1].right * block.n >= block.right * blocks[-1].n:
                last = blocks.pop()
                block = _Block(last.low, block.high, last.right + block.right, last.n + block.n)
            blocks.append(block)
        knots: dict[float, float] = {}
        for block in blocks:
            knots[block.low] = knots[block.high] = block.right / block.n
        return cls(scores=tuple(knots), values=tuple(knots.values()))


Map: TypeAlias = Annotated[Platt | Isotonic, Field(discriminator="kind")]


class _Block(NamedTuple):
    """Scores from `low` to `high` that share a value."""

    low: float
    high: float
    right: int
    n: int


def sigmoid(x: float) -> float:
    """1 / (1 + e^-x), without an overflow.

    Example:
        >>> sigmoid(0.0), sigmoid(-1000.0)
        (0.5, 0.0)
    """
    e = math.exp(-abs(x))
    return (1.0 if x >= 0 else e) / (1 + e)


def logit(p: float) -> float:
    """The inverse of `sigmoid`; 0 and 1 are taken for 1e-12 and 1 - 1e-12.

    Raises:
        SpecError: it is no probability.

    Example:
        >>> logit(0.5)
        0.0
    """
    if not 0 <= p <= 1:
        raise SpecError(f"{p} is no probability, and only one has a logit")
    p = min(max(p, _CERTAIN), 1 - _CERTAIN)
    return math.log(p) - math.log1p(-p)


_logit = logit  # a name that the argument of `Platt.fit` does not hide


def _refuse_separable(scores: Sequence[float], right: Sequence[bool], *, bias: bool) -> None:
    """Raises where the likelihood grows for ever with the slope or the bias."""
    good = [score for score, true in zip(scores, right, strict=True) if true]
    bad = [score for score, true in zip(scores, right, strict=True) if not true]
    one = not good or not bad
    if bias:
        constant = min(scores) == max(scores) and not one
        apart = one or max(bad) <= min(good) or max(good) <= min(bad)
        endless = apart and not constant
    else:
        rises = all(score >= 0 for score in good) and all(score <= 0 for score in bad)
        falls = all(score <= 0 for score in good) and all(score >= 0 for score in bad)
        endless = (rises or falls) and any(scores)
    if endless:
        raise SpecError(
            "no finite map is the most likely: a threshold tells right from wrong",
            hint="fit with smooth = True, or on more data",
        )


def _newton(scores: Sequence[float], aims: Sequence[float], *, bias: bool) -> tuple[float, float]:
    """Slope and bias of the logistic regression of `aims`, in the form of Lin et al. 2007."""
    rate = fmean(aims)
    slope, shift = 0.0, (math.log(rate / (1 - rate)) if bias and 0 < rate < 1 else 0.0)
    loss = _loss(scores, aims, slope, shift)
    for _ in range(_ROUNDS):
        g1 = g0 = h11 = h10 = h00 = 0.0
        for score, aim in zip(scores, aims, strict=True):
            p = sigmoid(slope * score + shift)
            g1 += score * (p - aim)
            g0 += p - aim
            weight = p * (1 - p)
            h11 += weight * score * score
            h10 += weight * score
            h00 += weight
        # A trace on the diagonal: scores that are all the same leave the slope at 0.
        ridge = 1e-12 * len(scores)
        h11, h00 = h11 + ridge, h00 + ridge
        if bias:
            det = h11 * h00 - h10 * h10
            along = ((h00 * g1 - h10 * g0) / det, (h11 * g0 - h10 * g1) / det)
        else:
            along = (g1 / h11, 0.0)
        decrease = g1 * along[0] + (g0 * along[1] if bias else 0.0)
        if decrease < _NEAR * len(scores):  # the last step doubles the digits that are right
            return slope - along[0], shift - along[1]
        for half in range(_HALVINGS):
            size = 0.5**half
            slope_there, shift_there = slope - size * along[0], shift - size * along[1]
            there = _loss(scores, aims, slope_there, shift_there)
            if there <= loss - 1e-4 * size * decrease:
                slope, shift, loss = slope_there, shift_there, there
                break
    return slope, shift


def _loss(scores: Sequence[float], aims: Sequence[float], slope: float, shift: float) -> float:
    """The negative log-likelihood."""
    total: list[float] = []
    for score, aim in zip(scores, aims, strict=True):
        x = slope * score + shift
        total.append(math.log1p(math.exp(-abs(x))) + (max(x, 0.0) - aim * x))
    return math.fsum(total)


# Telling


def report(p: Sequence[float], right: Sequence[bool], bins: int = 10) -> str:
    """All of these numbers as a page in Markdown.

    Args:
        p: the probability given to being right.
        right: what was right.
        bins: how many.

    Raises:
        SpecError: there are none, or one is no probability.

    Example:
        >>> print(report([0.2, 0.2, 0.8, 0.8], [False, False, True, True]).splitlines()[2])
        | predictions | 4, of which 2 right |
    """
    parts, hits = decomposed(p, right), sum(map(bool, right))
    area = "needs right and wrong ones"
    if 0 < hits < len(p):
        area = f"{auc(p, right):.4f}"
        if min(hits, len(p) - hits) > 1:
            low, high = auc_interval(p, right)
            area += f" ({low:.4f} to {high:.4f})"
    lines = [
        "| measure | value |",
        "|---|---|",
        f"| predictions | {len(p)}, of which {hits} right |",
        f"| AUC, with its 95 % interval | {area} |",
        f"| Brier score | {parts.score:.4f} |",
        f"| of it miscalibration | {parts.miscalibration:.4f} |",
        f"| of it discrimination, which counts against it | {parts.discrimination:.4f} |",
        f"| of it uncertainty | {parts.uncertainty:.4f} |",
        f"| log loss | {log_loss(p, right):.4f} |",
        f"| ECE, {bins} bins of equal width | {ece(p, right, bins):.4f} |",
        f"| ECE, {bins} bins of equal mass | {ece(p, right, bins, by='mass'):.4f} |",
        f"| MCE, {bins} bins of equal width | {mce(p, right, bins):.4f} |",
        "",
        "| from | to | n | predicted | right | 95 % interval |",
        "|---|---|---|---|---|---|",
    ]
    for one in reliability(p, right, bins):
        low, high = one.interval
        lines.append(
            f"| {one.low:.3g} | {one.high:.3g} | {one.n} | {one.predicted:.4f} "
            f"| {one.observed:.4f} | {low:.4f} to {high:.4f} |"
        )
    return "\n".join([*lines, ""])


_SIDE, _LEFT, _TOP, _LOW = 300, 52, 34, 54
_STYLE = (
    "text{font:12px sans-serif;fill:#555}.t{font-size:13px}.a{stroke:#888;fill:none}"
    ".d{stroke:#888;stroke-dasharray:3 4}.b{fill:#1b7f79;fill-opacity:.25}"
    ".o{fill:#1b7f79}.i{stroke:#1b7f79;stroke-width:1.5}"
    "@media(prefers-color-scheme:dark){text{fill:#bbb}.b,.o{fill:#4fc3b8}.i{stroke:#4fc3b8}}"
)


def reliability_svg(bins: Sequence[Bin], title: str = "") -> str:
    """A reliability diagram: the share that was right over the probability that was predicted.

    Each bin is a dot with its 95 % interval, over a bar for its share of all predictions; dots on
    the diagonal are calibrated. There is no background, and colours and text suit a
    light page as well as a dark one.

    Args:
        bins: from `reliability`.
        title: what stands above.

    Example:
        >>> reliability_svg(reliability([0.5, 0.5], [True, False])).count('class="o"')
        1
    """
    wide, tall = _LEFT + _SIDE + 16, _TOP + _SIDE + _LOW

    def x(value: float) -> str:
        return f"{_LEFT + _SIDE * value:.1f}"

    def y(value: float) -> str:
        return f"{_TOP + _SIDE * (1 - value):.1f}"

    total = sum(one.n for one in bins) or 1
    marks = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{tall}"',
        f'viewBox="0 0 {wide} {tall}" role="img">',
        f"<title>{escape(title or 'Reliability diagram')}</title><style>{_STYLE}</style>",
        f'<text class="t" x="{_LEFT}" y="20">{escape(title)}</text>',
        f'<rect class="a" x="{_LEFT}" y="{_TOP}" width="{_SIDE}" height="{_SIDE}"/>',
        f'<line class="d" x1="{x(0)}" y1="{y(0)}" x2="{x(1)}" y2="{y(1)}"/>',
    ]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        marks.append(
            f'<text x="{x(tick)}" y="{_TOP + _SIDE + 18}" text-anchor="middle">{tick:g}</text>'
        )
        marks.append(
            f'<text x="{_LEFT - 8}" y="{y(tick)}" dy="4" text-anchor="end">{tick:g}</text>'
        )
    for one in bins:
        low, high = max(one.low, 0.0), min(one.high, 1.0)
        width = max(_SIDE * (high - low) - 1, 1)
        marks.append(
            f'<rect class="b" x="{x(low)}" y="{y(one.n / total)}" width="{width:.1f}" '
            f'height="{_SIDE * one.n / total:.1f}"><title>{one.n} of {total}</title></rect>'
        )
    for one in bins:
        at = x(one.predicted)
        marks.append(
            f'<line class="i" x1="{at}" y1="{y(one.interval.low)}" x2="{at}" '
            f'y2="{y(one.interval.high)}"/>'
            f'<circle class="o" cx="{at}" cy="{y(one.observed)}" r="4">'
            f"<title>{one.observed:.3f} of {one.n}</title></circle>"
        )
    middle = _LEFT + _SIDE / 2
    marks += [
        f'<text x="{middle:g}" y="{tall - 12}" text-anchor="middle">predicted</text>',
        f'<text transform="translate(14 {_TOP + _SIDE / 2:g}) rotate(-90)"',
        'text-anchor="middle">right</text>',
        "</svg>",
    ]
    return "\n".join([*marks, ""])


def _groups(scores: Sequence[float], right: Sequence[bool]) -> Iterator[tuple[float, list[bool]]]:
    """Equal scores together, lowest first."""
    pairs = sorted((float(s), bool(true)) for s, true in zip(scores, right, strict=True))
    for score, group in groupby(pairs, key=lambda pair: pair[0]):
        yield score, [true for _, true in group]


def _check(scores: Sequence[float], right: Sequence[bool], *, probable: bool = False) -> None:
    if len(scores) != len(right):
        raise SpecError(f"there are {len(scores)} scores for {len(right)} answers")
    if not scores:
        raise SpecError("there are no scores")
    for score in scores:
        if not math.isfinite(score) or (probable and not 0 <= score <= 1):
            wanted = "a probability" if probable else "a finite number"
            raise SpecError(f"a score has to be {wanted}, and one is {score}")
