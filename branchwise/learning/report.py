"""What a trained head is worth, on problems that it has not seen."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import get_args

import torch
from torch import Tensor

from branchwise.core.types import Json
from branchwise.learning.train import Data, Epoch, Recipe
from branchwise.verifiers.aggregate import How, aggregated
from branchwise.verifiers.calibration import Platt, sigmoid
from branchwise.verifiers.diagram import reliability_svg
from branchwise.verifiers.quality import Interval, auc, brier, ece, mean_interval, reliability

_SHARES_OF = 10
"""A soft label of an unknown number of continuations counts as so many."""


@dataclass(frozen=True)
class Mean:
    """A mean over the problems that have such a number.

    Args:
        value: the mean.
        interval: its 95 % interval; None of a single problem.
    """

    value: float
    interval: Interval | None

    @classmethod
    def of(cls, numbers: Iterable[float | None]) -> Mean | None:
        """The mean of the numbers that are there; None where none is."""
        known = [number for number in numbers if number is not None]
        if not known:
            return None
        return cls(fmean(known), mean_interval(known) if len(known) > 1 else None)


@dataclass(frozen=True)
class Ranking:
    """How well one way of aggregation ranks the held-out answers.

    Args:
        auc: the chance that a right answer scores above a wrong one.
        pairs: the same among answers to the same problem.
        picked: the share of problems where the answer with the highest score is right; of equally
            high ones each is as likely to be picked.
    """

    auc: float | None
    pairs: Mean | None
    picked: Mean | None


@dataclass(frozen=True)
class Findings:
    """What the held-out problems say.

    Args:
        calibration: the map of the head's output to a probability, fitted on all of them.
        auc: the chance that a good step scores above a bad one.
        ece: the expected calibration error of the steps, before calibration and after it.
        brier: the same of the Brier score.
        chance: the share of problems where an answer picked blindly is right.
        oracle: the share of problems that have a right answer.
        answers: by the way of aggregation.
        svg: the reliability diagram.
    """

    calibration: Platt
    auc: float | None
    ece: tuple[float, float]
    brier: tuple[float, float]
    chance: float
    oracle: float
    answers: dict[How, Ranking]
    svg: str


def examined(model: Callable[[Tensor], Tensor], held_out: Data, how: Recipe) -> Findings:
    """Calibrate a head on the held-out problems and say what it is worth there.

    What is said after calibration is said by halves: each half of the problems is judged by the map
    that the other half has given. Scores of both halves are never compared: a half that is easy
    gives the other one high scores.
    """
    with torch.no_grad():
        flat: list[float] = model(held_out.states).tolist()
    outputs = [flat[begin:end] for begin, end in pairwise(held_out.starts)]
    groups = list(held_out.problems.values())
    random.Random(f"halves {how.seed}").shuffle(groups)  # noqa: S311  (nothing secret)
    halves = [[i for group in groups[side::2] for i in group] for side in (0, 1)]
    scores: list[list[float]] = [[] for _ in outputs]
    for ours, others in (halves, halves[::-1]):
        fitted = _fitted(outputs, held_out, others, how)
        for i in ours:
            scores[i] = [fitted(output) for output in outputs[i]]
    everything = range(len(outputs))
    before, seen = _observed([[sigmoid(o) for o in own] for own in outputs], held_out, how)
    after, _ = _observed(scores, held_out, how)
    right = [answer.right for answer in held_out.answers]
    return Findings(
        calibration=_fitted(outputs, held_out, everything, how),
        auc=_auc(before, seen),
        ece=(ece(before, seen), ece(after, seen)),
        brier=(brier(before, seen), brier(after, seen)),
        chance=fmean(fmean(right[i] for i in group) for group in groups),
        oracle=fmean(any(right[i] for i in group) for group in groups),
        answers={way: _ranking(scores, right, groups, halves, way) for way in get_args(How)},
        svg=reliability_svg(reliability(after, seen), "Held-out steps, calibrated"),
    )


def _fitted(
    outputs: Sequence[Sequence[float]], data: Data, places: Iterable[int], how: Recipe
) -> Platt:
    """The map from the head's output to a probability, by the answers in these places.

    One that falls would turn the head's order round, on the word of problems on which it knows
    nothing: the output is then taken as it is.
    """
    if how.calibration == "none":
        return Platt()
    kept = list(places)
    part = Data([data.rows[i] for i in kept], [data.answers[i] for i in kept], data.states)
    said, seen = _observed([outputs[i] for i in kept], part, how)
    fitted = Platt.fit(said, seen, bias=how.calibration == "platt")
    return fitted if fitted.slope > 0 else Platt()


def _observed(
    scores: Sequence[Sequence[float]], data: Data, how: Recipe
) -> tuple[list[float], list[bool]]:
    """The scores of the steps that have a target, each with what came of it.

    A soft label is what so many continuations came to, and each of them is an observation.
    """
    said: list[float] = []
    seen: list[bool] = []
    for own, answer, row in zip(scores, data.answers, data.rows, strict=True):
        n = (row.rollouts or _SHARES_OF) if how.label == "soft" and row.soft else 1
        steps = list(zip(own, answer.targets, strict=True))
        for score, target in steps if how.on == "steps" else steps[-1:]:
            good = round(n * target)
            said += [score] * n
            seen += [True] * good + [False] * (n - good)
    return said, seen


def _ranking(
    scores: Sequence[Sequence[float]],
    right: Sequence[bool],
    groups: Sequence[Sequence[int]],
    halves: Sequence[Sequence[int]],
    way: How,
) -> Ranking:
    whole = [aggregated(own, way) for own in scores]

    def area(places: Sequence[int]) -> float | None:
        return _auc([whole[i] for i in places], [right[i] for i in places])

    def picked(group: Sequence[int]) -> float:
        top = max(whole[i] for i in group)
        return fmean(right[i] for i in group if whole[i] == top)

    areas = [one for one in map(area, halves) if one is not None]
    return Ranking(
        auc=fmean(areas) if areas else None,
        pairs=Mean.of(map(area, groups)),
        picked=Mean.of(map(picked, groups)),
    )


def _auc(scores: Sequence[float], right: Sequence[bool]) -> float | None:
    """None where all are right, or none is."""
    return auc(scores, right) if len(set(right)) > 1 else None


def numbers(
    found: Findings, how: Recipe, history: Sequence[Epoch], train: Data, held_out: Data
) -> dict[str, Json]:
    """The findings as the head's file keeps them."""
    best = _kept(history)
    return {
        "training": how.model_dump(mode="json"),
        "train": _size(train),
        "held_out": _size(held_out),
        "epochs": len(history),
        "loss": None if best is None else {"train": best.train, "held_out": best.held_out},
        "auc": found.auc,
        "ece": list(found.ece),
        "brier": list(found.brier),
        "chance": found.chance,
        "oracle": found.oracle,
        "answers": {
            way: {"auc": one.auc, "pairs": _json(one.pairs), "picked": _json(one.picked)}
            for way, one in found.answers.items()
        },
    }


def _json(mean: Mean | None) -> Json:
    if mean is None:
        return None
    ends: Json = None if mean.interval is None else [*mean.interval]
    return {"value": mean.value, "interval": ends}


def _kept(history: Sequence[Epoch]) -> Epoch | None:
    return next((epoch for epoch in reversed(history) if epoch.best), None)


def _size(data: Data) -> dict[str, Json]:
    return {"problems": len(data.problems), "answers": len(data), "steps": len(data.states)}


def page(
    title: str,
    found: Findings,
    how: Recipe,
    history: Sequence[Epoch],
    parts: Sequence[Data],
    *,
    note: str = "",
) -> str:
    """The report in Markdown."""
    (train, held_out), kept = parts, _kept(history)
    rows = [
        ("problems, answers, steps: training", _sizes(train)),
        ("problems, answers, steps: held out", _sizes(held_out)),
        ("AUC of steps", _shown(found.auc)),
        ("ECE before and after calibration", " and ".join(map(_shown, found.ece))),
        ("Brier score before and after calibration", " and ".join(map(_shown, found.brier))),
        ("an answer picked blindly is right", f"{found.chance:.1%}"),
        ("one of the answers is right", f"{found.oracle:.1%}"),
    ]
    lines = [f"# {title}", "", "| on the held-out problems | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows]
    lines += ["", "![Reliability of the steps](calibration.svg)", ""]
    lines += ["| aggregation | AUC of answers | within problems | best answer is right |"]
    lines += ["|---|---|---|---|"]
    lines += [
        f"| {way} | {_shown(one.auc)} | {shown(one.pairs)} | {shown(one.picked)} |"
        for way, one in found.answers.items()
    ]
    lines += [
        "",
        "After calibration, and for answers, each half of the held-out problems is judged by the",
        f"map that the other half has given. Intervals, of 95 %: of means over problems.{note}",
        "",
        "| epoch | loss in training | held out | |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {epoch.number} | {epoch.train:.5f} | {epoch.held_out:.5f} | "
        f"{'kept' if epoch is kept else ''} |"
        for epoch in history
    ]
    lines += ["", "```toml", *_settings(how), "```", ""]
    return "\n".join(lines)


def _settings(how: Recipe) -> list[str]:
    table = how.model_dump(mode="json", exclude_none=True)
    return [f"{name} = {json.dumps(value)}" for name, value in table.items()]


def _sizes(data: Data) -> str:
    return f"{len(data.problems):,}, {len(data):,}, {len(data.states):,}"


def shown(mean: Mean | None) -> str:
    """A mean with its interval, in words."""
    if mean is None or mean.interval is None:
        return "not defined" if mean is None else f"{mean.value:.3f}"
    return f"{mean.value:.3f} ({mean.interval.low:.3f} to {mean.interval.high:.3f})"


def _shown(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.4f}"
