"""Maps that make a probability mean what it says: Platt's and the isotonic one."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import groupby
from statistics import fmean
from typing import Annotated, Literal, NamedTuple, Self, TypeAlias

from pydantic import Field, model_validator

from branchwise.core.config import Config
from branchwise.core.errors import SpecError

_Finite = Annotated[float, Field(allow_inf_nan=False)]

_CERTAIN = 1e-12
"""A probability is taken for at least this much away from 0 and 1 where its logit is wanted."""

_ROUNDS = 100

_HALVINGS = 30

_NEAR = 1e-10
"""So much a step may still gain for each score where the search for the best map ends."""


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
        check(scores, right, probable=logit)
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
        check(scores, right)
        blocks: list[_Block] = []
        for value, group in groups(scores, right):
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


def groups(scores: Sequence[float], right: Sequence[bool]) -> Iterator[tuple[float, list[bool]]]:
    """Equal scores together, lowest first."""
    pairs = sorted((float(s), bool(true)) for s, true in zip(scores, right, strict=True))
    for score, group in groupby(pairs, key=lambda pair: pair[0]):
        yield score, [true for _, true in group]


def check(scores: Sequence[float], right: Sequence[bool], *, probable: bool = False) -> None:
    """Refuse what nothing can be said of.

    Args:
        scores: one for each answer.
        right: whether each answer is right.
        probable: whether the scores have to be probabilities.

    Raises:
        SpecError: the lengths differ, there is none, or a score is no finite number or probability.
    """
    if len(scores) != len(right):
        raise SpecError(f"there are {len(scores)} scores for {len(right)} answers")
    if not scores:
        raise SpecError("there are no scores")
    for score in scores:
        if not math.isfinite(score) or (probable and not 0 <= score <= 1):
            wanted = "a probability" if probable else "a finite number"
            raise SpecError(f"a score has to be {wanted}, and one is {score}")
