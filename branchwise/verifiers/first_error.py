"""Where a worked answer first goes wrong: the numbers of ProcessBench."""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import cast

from branchwise.core.errors import SpecError

NO_ERROR = -1
"""The label of an answer whose steps are all right."""


@dataclass(frozen=True, slots=True)
class Marked:
    """A worked answer in which somebody has looked for the first error.

    Args:
        problem: the question.
        steps: the texts of the steps, in order.
        label: the index of the first wrong step, counted from 0; -1 where all are right.
    """

    problem: str
    steps: tuple[str, ...]
    label: int


@dataclass(frozen=True, slots=True)
class FirstErrors:
    """How well first errors are found.

    Args:
        wrong: how many answers have an error.
        found: of these, in how many the first error was found exactly.
        right: how many answers have none.
        passed: of these, in how many none was found.

    Example:
        >>> FirstErrors(wrong=4, found=2, right=2, passed=2).f1
        0.6666666666666666
    """

    wrong: int
    found: int
    right: int
    passed: int

    @property
    def on_wrong(self) -> float:
        """The accuracy on answers with an error; nan where there is none."""
        return self.found / self.wrong if self.wrong else math.nan

    @property
    def on_right(self) -> float:
        """The accuracy on answers without an error; nan where there is none."""
        return self.passed / self.right if self.right else math.nan

    @property
    def f1(self) -> float:
        """The harmonic mean of both; nan where one kind of answer is missing."""
        total = self.on_wrong + self.on_right
        return 2 * self.on_wrong * self.on_right / total if total else total


def first_error(scores: Sequence[float], threshold: float) -> int:
    """The index of the first score below the threshold; -1 where none is.

    Example:
        >>> first_error([0.9, 0.4, 0.2], 0.5), first_error([0.9, 0.5], 0.5)
        (1, -1)
    """
    return next((i for i, score in enumerate(scores) if score < threshold), NO_ERROR)


def compared(predictions: Sequence[int], labels: Sequence[int]) -> FirstErrors:
    """How well predicted first errors fit the labelled ones.

    Source: Zheng et al. 2024 (ProcessBench), §4: the accuracy on answers with an error counts only
    the exact index, and F1 is its harmonic mean with the accuracy on answers without one.

    Args:
        predictions: the index of the first wrong step of each answer; -1 for none.
        labels: the same, as it is.

    Raises:
        SpecError: the lengths differ.

    Example:
        >>> compared([1, -1, 0], [1, -1, 2]).on_wrong
        0.5
    """
    if len(predictions) != len(labels):
        raise SpecError(f"{len(predictions)} predictions, but {len(labels)} labels")
    pairs = list(zip(predictions, labels, strict=True))
    return FirstErrors(
        wrong=sum(label != NO_ERROR for label in labels),
        found=sum(said == label != NO_ERROR for said, label in pairs),
        right=sum(label == NO_ERROR for label in labels),
        passed=sum(said == label == NO_ERROR for said, label in pairs),
    )


def measured(
    scores: Sequence[Sequence[float]], labels: Sequence[int], threshold: float
) -> FirstErrors:
    """How well a verifier finds first errors with this threshold.

    Args:
        scores: of the steps of each answer.
        labels: the index of the first wrong step of each answer; -1 for none.
        threshold: a step with a score below it is called wrong.
    """
    return compared([first_error(steps, threshold) for steps in scores], labels)


def best_threshold(scores: Sequence[Sequence[float]], labels: Sequence[int]) -> float:
    """The threshold with the highest F1 on these answers; of equally good ones the lowest.

    An answer is judged rightly by the thresholds of one interval: above the score of its first
    wrong step, and not above any score before. The F1 can change only between two scores, so the
    thresholds tried are the middles between neighbouring scores, and one beyond each end.

    Args:
        scores: of the steps of each answer.
        labels: the index of the first wrong step of each answer; -1 for none.

    Raises:
        SpecError: answers with an error are missing, or answers without one; a label is of no
            step.

    Example:
        >>> best_threshold([[0.9, 0.2], [0.8, 0.6]], [1, -1])
        0.4
    """
    lows: dict[bool, list[float]] = {True: [], False: []}
    highs: dict[bool, list[float]] = {True: [], False: []}
    sizes = {True: 0, False: 0}
    if len(scores) != len(labels):
        raise SpecError(f"{len(scores)} answers have scores, but {len(labels)} labels")
    for steps, label in zip(scores, labels, strict=True):
        if not NO_ERROR <= label < len(steps):
            raise SpecError(f"a label is {label}, and the answer has {len(steps)} steps")
        wrong = label != NO_ERROR
        sizes[wrong] += 1
        low = steps[label] if wrong else -math.inf
        high = min(steps[:label] if wrong else steps, default=math.inf)
        if low < high:
            lows[wrong].append(low)
            highs[wrong].append(high)
    if not (sizes[True] and sizes[False]):
        missing = "without" if sizes[True] else "with"
        raise SpecError(f"a threshold needs answers with an error and without: none is {missing}")
    for ends in (*lows.values(), *highs.values()):
        ends.sort()

    def f1(threshold: float) -> float:
        right = {
            wrong: bisect_left(lows[wrong], threshold) - bisect_left(highs[wrong], threshold)
            for wrong in (True, False)
        }
        return FirstErrors(sizes[True], right[True], sizes[False], right[False]).f1

    known = sorted({score for steps in scores for score in steps})
    # Halves, since a sum may be infinite; between neighbouring numbers there is no middle.
    middles = [b if (middle := a / 2 + b / 2) <= a else middle for a, b in pairwise(known)]
    return max([known[0], *middles, math.nextafter(known[-1], math.inf)], key=f1)


def read_marked(path: Path) -> list[Marked]:
    """Worked answers from a file in ProcessBench's format.

    A line, or an entry of a list, is an object with `problem`, `steps` and `label`; what else it
    holds does not count.

    Args:
        path: a `.jsonl` file, or a `.json` file that holds a list.

    Raises:
        SpecError: the file cannot be read, or an entry is wrong; the message says which.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read: {error}") from error
    try:
        if path.suffix == ".json":
            rows = cast("object", json.loads(text))
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise SpecError(f"{path}: not JSON: {error}") from error
    if not isinstance(rows, list):
        raise SpecError(f"{path}: not a list of answers")
    entries = cast("list[object]", rows)
    return [_marked(row, f"{path}, entry {number}") for number, row in enumerate(entries, start=1)]


def _marked(row: object, place: str) -> Marked:
    if not isinstance(row, dict):
        raise SpecError(f"{place}: not a JSON object")
    entry = cast("dict[str, object]", row)
    problem, steps, label = (entry.get(name) for name in ("problem", "steps", "label"))
    if not isinstance(problem, str):
        raise SpecError(f"{place}: `problem` has to be a text")
    texts = cast("list[object]", steps) if isinstance(steps, list) else []
    said = tuple(text for text in texts if isinstance(text, str))
    if not said or len(said) < len(texts):
        raise SpecError(f"{place}: `steps` has to be a list of texts")
    if not isinstance(label, int) or not NO_ERROR <= label < len(said):
        raise SpecError(f"{place}: `label` has to be the index of a step, or -1")
    return Marked(problem, said, label)
