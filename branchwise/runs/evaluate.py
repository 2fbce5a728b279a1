"""How good a verifier is: measured on all the answers of a run."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import get_args

from anyio import to_thread
from pydantic import TypeAdapter, ValidationError

from branchwise.core.errors import SpecError
from branchwise.core.node import Node
from branchwise.core.types import Json
from branchwise.learning.labels import Labelled
from branchwise.runs.rescore import WEIGHTS, at_notes, rescored
from branchwise.runs.samples import Samples, Share, accuracy, sampled, weight_of
from branchwise.runs.saved import Grown, Saved, Sheet, filed, judges, percent, verifier
from branchwise.runs.spec import Strategy
from branchwise.search.vote import Weight
from branchwise.verifiers.aggregate import How, aggregated
from branchwise.verifiers.diagram import reliability_svg
from branchwise.verifiers.first_error import NO_ERROR, FirstErrors, best_threshold, measured
from branchwise.verifiers.quality import auc, brier, ece, reliability

ROUNDS = 1000
"""So many times problems are drawn anew for an interval."""

AS_GIVEN = "as given"
"""The verifier's own word on a node, without an aggregation."""

_labelled = TypeAdapter(Labelled)


@dataclass(frozen=True, slots=True)
class Number:
    """An estimate with its 95 % interval.

    Args:
        value: the estimate; nan where there is none.
        low: the lower end; nan where there is no interval.
        high: the upper end.
    """

    value: float
    low: float = math.nan
    high: float = math.nan

    def cells(self, *, share: bool = False) -> tuple[str, str]:
        """The estimate and its interval as text."""
        if share:
            ends = f"{100 * self.low:.0f} to {100 * self.high:.0f}"
            return percent(self.value), "" if math.isnan(self.low) else ends
        value = "-" if math.isnan(self.value) else f"{self.value:.3f}"
        return value, "" if math.isnan(self.low) else f"{self.low:.3f} to {self.high:.3f}"

    @property
    def json(self) -> Json:
        """The same as JSON, which knows no nan."""
        ends = [None if math.isnan(end) else end for end in (self.low, self.high)]
        return {"value": None if math.isnan(self.value) else self.value, "interval": list(ends)}


def bootstrapped(
    size: int, statistic: Callable[[Sequence[int]], float], rounds: int = ROUNDS, seed: int = 0
) -> Number:
    """A statistic with its interval, by drawing as many problems with replacement.

    The interval lies between the 2.5 % and the 97.5 % quantile. Draws in which the statistic has no
    value, such as an AUC of right answers alone, are left out.

    Source: Efron 1979; by problem, because the answers to one problem depend on each other.

    Args:
        size: how many problems there are.
        statistic: of how often each problem counts; nan where it has no value.
        rounds: how often to draw.
        seed: of the draws.

    Example:
        >>> bootstrapped(2, lambda counts: counts[0] / 2)
        Number(value=0.5, low=0.0, high=1.0)
    """
    draws = random.Random(seed)  # noqa: S311  (an estimate, no secret)
    values: list[float] = []
    for _ in range(rounds if size > 1 else 0):
        counts = [0] * size
        for drawn in draws.choices(range(size), k=size):
            counts[drawn] += 1
        values.append(statistic(counts))
    known = sorted(value for value in values if not math.isnan(value))
    value = statistic([1] * size)
    if not known or math.isnan(value):
        return Number(value)
    last = len(known) - 1
    return Number(value, known[round(0.025 * last)], known[round(0.975 * last)])


def pooled_auc(
    problems: Sequence[tuple[Sequence[float], Sequence[bool]]],
) -> Callable[[Sequence[int]], float]:
    """The AUC over the answers to all problems, as a function of how often each problem counts.

    Args:
        problems: for each the scores, and which of them are right.

    Example:
        >>> pooled_auc([([0.9, 0.1], [True, False]), ([0.5], [False])])([1, 2])
        1.0
    """
    flat = [
        (score, place, right)
        for place, (scores, marks) in enumerate(problems)
        for score, right in zip(scores, marks, strict=True)
    ]
    flat.sort(key=lambda one: one[0])
    groups = [[one[1:] for one in tied] for _, tied in groupby(flat, key=lambda one: one[0])]

    def of(counts: Sequence[int]) -> float:
        below = above = 0
        twice = 0  # the pairs in the right order, ties being half of one
        for group in groups:
            good = bad = 0
            for place, right in group:
                if right:
                    good += counts[place]
                else:
                    bad += counts[place]
            twice += good * (2 * below + bad)
            below += bad
            above += good
        return twice / (2 * above * below) if above and below else math.nan

    return of


def within_auc(
    problems: Sequence[tuple[Sequence[float], Sequence[bool]]],
) -> Callable[[Sequence[int]], float]:
    """The mean of the AUCs within problems that have right and wrong answers, likewise."""
    own = [
        auc(scores, marks) if len(set(marks)) == 2 else math.nan  # noqa: PLR2004  (right and wrong)
        for scores, marks in problems
    ]

    def of(counts: Sequence[int]) -> float:
        known = [(a, n) for a, n in zip(own, counts, strict=True) if n and not math.isnan(a)]
        total = sum(n for _, n in known)
        return math.fsum(a * n for a, n in known) / total if total else math.nan

    return of


def step_scores(node: Node, of: str) -> tuple[float, ...]:
    """What a verifier says of each step of the draft that ends at a node, in order."""
    draft = node.lineage[node.start.depth + 1 :]
    said = [verdicts[of] for one in draft if of in (verdicts := one.verdicts)]
    return tuple(score for verdict in said for score in verdict.steps or (verdict.score,))


@dataclass(frozen=True, slots=True)
class Discrimination:
    """How well scores tell right answers from wrong ones, and mean what they say.

    Args:
        way: how the scores of the steps became one.
        pooled: the AUC over all answers: what a threshold for all problems would meet.
        within: the mean AUC within problems: what choosing among answers to one problem meets.
        brier: the Brier score; nan where scores are no probabilities.
        ece: the expected calibration error, likewise.
    """

    way: str
    pooled: Number
    within: Number
    brier: float
    ece: float


@dataclass(frozen=True, slots=True)
class Chosen:
    """How often a choice among N samples is right.

    Args:
        name: of the choice.
        at: for each N.
        last: at the largest N.
        gain: over the majority there.
    """

    name: str
    at: Sequence[float]
    last: Number
    gain: Number | None


@dataclass(frozen=True, slots=True)
class Localisation:
    """How well a verifier finds the steps that are wrong, by labels.

    Args:
        answers: how many of them are labelled and were judged step by step.
        unmatched: labelled answers that the trees do not hold, or whose steps are others.
        steps: the AUC of the scores of steps against their labels.
        threshold: chosen on half of the problems; nan where one kind of answer is missing there.
        errors: how first errors are found on the other half, with that threshold.
        f1: the harmonic mean of ProcessBench.
    """

    answers: int
    unmatched: int
    steps: Number
    threshold: float
    errors: FirstErrors
    f1: Number


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What is known of a verifier from the trees of one strategy.

    Args:
        strategy: the strategy.
        problems: how many problems.
        answers: how many finished answers with a grade.
        right: the share of these that is right.
        ungraded: how many answers the grader had no opinion of.
        discrimination: for each way of aggregation.
        numbers: the N of `choices`.
        choices: what each choice is right in.
        weight: how votes are weighted in each way.
        plot: the calibration plot; None where scores are no probabilities.
        localisation: by labels, where some were given.
    """

    strategy: Strategy
    problems: int
    answers: int
    right: float
    ungraded: int
    discrimination: Sequence[Discrimination]
    numbers: Sequence[int]
    choices: Sequence[Chosen]
    weight: Mapping[str, Weight]
    plot: str | None
    localisation: Localisation | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What is known of a verifier.

    Args:
        verifier: its name.
        by_strategy: what each strategy's trees say.
        left_out: strategies without an answer that has a verdict and a grade.
    """

    verifier: str
    by_strategy: Sequence[Evaluated]
    left_out: Sequence[str] = ()

    @property
    def sheets(self) -> list[Sheet]:
        """The numbers as tables."""
        sheets = [sheet for one in self.by_strategy for sheet in _sheets(one, self.verifier)]
        notes = [f"{name}: no answer has a verdict and a grade." for name in self.left_out]
        return [*sheets[:-1], replace(sheets[-1], notes=[*sheets[-1].notes, *notes])]

    @property
    def json(self) -> Json:
        """The numbers as JSON."""
        return {"verifier": self.verifier, "strategies": [_json(one) for one in self.by_strategy]}

    def write(self, folder: Path) -> list[Path]:
        """Write `verifier-NAME.md`, `.json` and `.svg`, and say which files there are.

        Raises:
            SpecError: one cannot be written.
        """
        stem = f"verifier-{filed(self.verifier)}"
        page = "\n".join(sheet.markdown for sheet in self.sheets)
        files = {
            f"{stem}.md": f"# {self.verifier}\n\n{page}",
            f"{stem}.json": json.dumps(self.json, indent=2) + "\n",
        }
        for one in self.by_strategy:
            if one.plot is not None:
                alone = len(self.by_strategy) == 1
                name = stem if alone else f"{stem}-{filed(one.strategy.name)}"
                files[f"{name}.svg"] = one.plot
        try:
            for name, text in files.items():
                (folder / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise SpecError(f"cannot write to {folder}: {error.strerror}") from error
        return [folder / name for name in files]


async def evaluate(
    saved: Saved,
    of: str | None = None,
    *,
    names: Sequence[str] = (),
    how: How | None = None,
    labels: Path | None = None,
    seed: int = 0,
) -> Evaluation:
    """How good a verifier is on all the answers of a run: no model is asked.

    Args:
        saved: the run.
        of: the verifier; None where it is the only one.
        names: the strategies; all that it has judged where none is named.
        how: the only way of aggregation; all of them where steps have scores, if it is None.
        labels: a directory with labels of steps.
        seed: of the intervals, and of the halves for the threshold.

    Raises:
        SpecError: what is asked for is not there, or a tree cannot be read.
    """
    known = None if labels is None else await to_thread.run_sync(read_labels, labels)
    strategies = saved.strategies(names)
    trees = {one.name: await to_thread.run_sync(saved.trees, one.name) for one in strategies}
    of = verifier([grown for own in trees.values() for grown in own], of, saved.folder)
    found: list[Evaluated] = []
    empty: list[str] = []
    for strategy in strategies:
        own = trees[strategy.name]
        if any(of in judges(grown.root) for grown in own):
            rescored(own, of, None, saved)  # finds verdicts that are missing
            one = await _evaluated(saved, strategy, own, of, how=how, labels=known, seed=seed)
            if one is None:
                empty.append(strategy.name)
            else:
                found.append(one)
        elif names:
            raise SpecError(f"{saved.folder}: {of!r} has judged nothing of {strategy.name!r}")
    if empty and (names or not found):
        raise SpecError(f"{saved.folder}: no answer of {empty[0]!r} has a verdict and a grade")
    if labels is not None and not any(one.localisation for one in found):
        raise SpecError(
            f"no answer that is labelled in {labels} was judged step by step",
            hint="labels are of the run's own answers, divided as the verifier divides them; "
            "without --labels the rest is measured",
        )
    return Evaluation(of, found, empty)


async def _evaluated(
    saved: Saved,
    strategy: Strategy,
    trees: Sequence[Grown],
    of: str,
    *,
    how: How | None,
    labels: Mapping[tuple[str, str], Labelled] | None,
    seed: int,
) -> Evaluated | None:
    """What one strategy's trees say; None where no answer has a verdict and a grade."""
    samples = await sampled(saved.spec, trees)
    told = [[_steps(end.node, of) for end in own] for own in samples]
    by_way: dict[str, list[Samples]] = {
        name: [
            Samples.of(
                own,
                [_score(end.node, of, steps, way) for end, steps in zip(own, said, strict=True)],
            )
            for own, said in zip(samples, told, strict=True)
        ]
        for name, way in _ways(how, told).items()
    }
    any_way = next(iter(by_way.values()))
    least = min((n for one in any_way if (n := len(one.answers))), default=0)
    numbers = sorted({2**i for i in range(least.bit_length())} | ({least} if least else set()))
    enough = {way: [one for one in own if one.answers] for way, own in by_way.items()}
    weight: dict[str, Weight] = {
        way: weight_of([score for one in own for score in one.scores])
        for way, own in by_way.items()
    }
    judged = [_judged(one) for one in any_way]
    marks = [right for _, own in judged for right in own]
    if not marks:
        return None
    return Evaluated(
        strategy,
        problems=len(trees),
        answers=len(marks),
        right=sum(marks) / len(marks),
        ungraded=sum(right is None for one in any_way for right in one.right),
        discrimination=[_discrimination(way, own, seed) for way, own in by_way.items()],
        numbers=numbers,
        choices=_choices(enough, weight, numbers, seed) if numbers else [],
        weight=weight,
        plot=_plot(judged, f"{of}, {next(iter(by_way))}: {strategy.name}"),
        localisation=None if labels is None else _localised(trees, of, labels, seed),
    )


def _steps(node: Node, of: str) -> tuple[float, ...]:
    """The scores of the steps of an answer; none where it has not finished or was not judged."""
    return step_scores(node, of) if node.finished and of in node.verdicts else ()


def _ways(how: How | None, told: Sequence[Sequence[Sequence[float]]]) -> dict[str, How | None]:
    """The ways of making one score of an answer: all, where one has several steps."""
    if how is not None:
        return {how: how}
    several = any(len(steps) > 1 for own in told for steps in own)
    ways: tuple[How, ...] = get_args(How) if several else ()
    return {AS_GIVEN: None, **{way: way for way in ways}}


def _score(node: Node, of: str, steps: Sequence[float], how: How | None) -> float:
    if not steps:
        return -math.inf
    return node.verdicts[of].score if how is None else aggregated(steps, how)


def _judged(samples: Samples) -> tuple[list[float], list[bool]]:
    """The scores and grades of the answers that have both."""
    known = [
        (score, right)
        for score, right, finished in zip(
            samples.scores, samples.right, samples.finished, strict=True
        )
        if finished and right is not None and score > -math.inf
    ]
    return [score for score, _ in known], [right for _, right in known]


def _discrimination(way: str, problems: Sequence[Samples], seed: int) -> Discrimination:
    judged = [_judged(one) for one in problems]
    scores = [score for own, _ in judged for score in own]
    marks = [right for _, own in judged for right in own]
    probable = bool(scores) and all(0 <= score <= 1 for score in scores)
    return Discrimination(
        way,
        bootstrapped(len(judged), pooled_auc(judged), seed=seed),
        bootstrapped(len(judged), within_auc(judged), seed=seed),
        brier(scores, marks) if probable else math.nan,
        ece(scores, marks) if probable else math.nan,
    )


def _choices(
    by_way: Mapping[str, Sequence[Samples]],
    weight: Mapping[str, Weight],
    numbers: Sequence[int],
    seed: int,
) -> list[Chosen]:
    """What each choice among N samples is right in, for each N; the majority is the baseline."""
    first = next(iter(by_way.values()))
    shares: dict[str, list[list[Share]]] = {
        "any right": [[one.any(n) for one in first] for n in numbers],
        "majority": [[one.majority(n) for one in first] for n in numbers],
    }
    for way, problems in by_way.items():
        shares[f"best, {way}"] = [[one.best(n) for one in problems] for n in numbers]
    for way, problems in by_way.items():
        shares[f"weighted vote, {way}"] = [
            [one.weighted(n, weight[way]) for one in problems] for n in numbers
        ]
    base = shares["majority"][-1]
    return [
        Chosen(
            name,
            [accuracy(own) for own in at],
            bootstrapped(len(first), _accuracy(at[-1]), seed=seed),
            None if at[-1] is base else bootstrapped(len(first), _gain(at[-1], base), seed=seed),
        )
        for name, at in shares.items()
    ]


def _accuracy(shares: Sequence[Share]) -> Callable[[Sequence[int]], float]:
    def of(counts: Sequence[int]) -> float:
        known = math.fsum(n * one.graded for n, one in zip(counts, shares, strict=True))
        right = math.fsum(n * one.right for n, one in zip(counts, shares, strict=True))
        return right / known if known else math.nan

    return of


def _gain(shares: Sequence[Share], base: Sequence[Share]) -> Callable[[Sequence[int]], float]:
    ours, theirs = _accuracy(shares), _accuracy(base)
    return lambda counts: ours(counts) - theirs(counts)


def _plot(judged: Sequence[tuple[Sequence[float], Sequence[bool]]], title: str) -> str | None:
    scores = [score for own, _ in judged for score in own]
    marks = [right for _, own in judged for right in own]
    if not scores or not all(0 <= score <= 1 for score in scores):
        return None
    return reliability_svg(reliability(scores, marks), title)


# By labels


def read_labels(folder: Path) -> dict[tuple[str, str], Labelled]:
    """Labels of steps by the problem and the whole text of the answer.

    Raises:
        SpecError: there are none, or a line is no label.
    """
    file = folder / "labels.jsonl"
    try:
        whole = file.read_bytes()
    except OSError as error:
        raise SpecError(f"{file}: cannot be read: {error.strerror}") from error
    labels: dict[tuple[str, str], Labelled] = {}
    lines = whole[: whole.rfind(b"\n") + 1].splitlines()  # more may still be written
    for number, line in enumerate(lines, start=1):
        try:
            one = _labelled.validate_json(line)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            where = ".".join(map(str, fault["loc"]))
            said = f"{where}: {fault['msg']}" if where else fault["msg"]
            raise SpecError(f"{file}, line {number}: {said}") from error
        if one.hard is not None:
            labels[one.problem, "".join(one.steps)] = one
    if not labels:
        raise SpecError(f"{file}: no step has a label")
    return labels


def _localised(
    trees: Sequence[Grown], of: str, labels: Mapping[tuple[str, str], Labelled], seed: int
) -> Localisation | None:
    """How well a verifier finds wrong steps; None where it judged no labelled answer by steps."""
    said: dict[str, list[tuple[tuple[float, ...], tuple[int, ...]]]] = {}
    seen: set[tuple[str, str]] = set()
    problems = {grown.result.problem for grown in trees}
    for grown in trees:
        problem = grown.result.problem
        for node in grown.root.walk():
            key = (problem, node.text) if node.finished else None
            if key is None or key in seen or (label := labels.get(key)) is None:
                continue
            scores = step_scores(node, of)
            if label.hard is not None and len(scores) == len(label.hard):
                seen.add(key)
                said.setdefault(problem, []).append((scores, label.hard))
    if not said:
        return None
    everyone = [
        (
            [score for scores, _ in own for score in scores],
            [bool(mark) for _, hard in own for mark in hard],
        )
        for own in said.values()
    ]
    steps = bootstrapped(len(everyone), pooled_auc(everyone), seed=seed)
    order = sorted(said)
    random.Random(seed).shuffle(order)  # noqa: S311  (no secret)
    half = len(order) // 2
    chosen, tested = (
        [_errors(said[name]) for name in part] for part in (order[:half], order[half:])
    )
    try:
        threshold = best_threshold(
            [scores for own in chosen for scores, _ in own],
            [label for own in chosen for _, label in own],
        )
    except SpecError:  # a kind of answer is missing
        threshold = math.nan

    def errors(counts: Sequence[int]) -> FirstErrors:
        rows = [row for own, n in zip(tested, counts, strict=True) for row in own * n]
        return measured([scores for scores, _ in rows], [label for _, label in rows], threshold)

    f1 = bootstrapped(len(tested), lambda counts: errors(counts).f1, seed=seed)
    return Localisation(
        answers=sum(map(len, said.values())),
        unmatched=sum(key not in seen for key in labels if key[0] in problems),
        steps=steps,
        threshold=threshold,
        errors=errors([1] * len(tested)),
        f1=Number(math.nan) if math.isnan(threshold) else f1,
    )


def _errors(
    judged: Sequence[tuple[tuple[float, ...], tuple[int, ...]]],
) -> list[tuple[tuple[float, ...], int]]:
    """The scores of each answer, and where its first wrong step is."""
    return [(scores, hard.index(0) if 0 in hard else NO_ERROR) for scores, hard in judged]


# What is shown


def _sheets(one: Evaluated, of: str) -> list[Sheet]:
    name = f"{of} on {one.strategy.name}"
    about = f"{one.problems} problems, {one.answers} answers, {percent(one.right)} of them right; "
    notes = [
        about + "intervals: bootstrap over problems, 95 %.",
        "within: the mean over problems with right and wrong answers; it is what a choice needs.",
    ]
    if one.ungraded:
        notes.append(f"{one.ungraded} answers could not be graded and do not count.")
    if any(math.isnan(row.brier) for row in one.discrimination):
        notes.append("Brier and ECE only where all scores lie in [0, 1].")
    tells = Sheet(
        f"{name}: right from wrong",
        ("scores", "AUC", "95 %", "AUC within", "95 %", "Brier", "ECE"),
        [
            (
                row.way,
                *row.pooled.cells(),
                *row.within.cells(),
                *("-" if math.isnan(x) else f"{x:.3f}" for x in (row.brier, row.ece)),
            )
            for row in one.discrimination
        ],
        notes,
    )
    sheets = [tells, *_choice_sheet(one, name)]
    if one.localisation is not None:
        sheets.append(_step_sheet(one.localisation, name))
    return sheets


def _choice_sheet(one: Evaluated, name: str) -> list[Sheet]:
    if not one.choices:
        return []
    headings = ("choice", *map(str, one.numbers), "95 %", "gain", "95 %")
    rows: list[tuple[str, ...]] = []
    for row in one.choices:
        gain = ("", "")
        if row.gain is not None:
            ends = f"{100 * row.gain.low:+.0f} to {100 * row.gain.high:+.0f}"
            gain = (
                f"{100 * row.gain.value:+.1f}",
                "" if math.isnan(row.gain.low) else ends,
            )
        rows.append((row.name, *map(percent, row.at), row.last.cells(share=True)[1], *gain))
    votes = {WEIGHTS[weight] for weight in one.weight.values()}
    notes = [
        *at_notes(one.strategy),
        f"The intervals and the gain over the majority, in points, are those of {one.numbers[-1]}.",
        f"Votes are weighted by {' or '.join(sorted(votes))}.",
    ]
    return [Sheet(f"{name}: right of N samples", headings, rows, notes)]


def _step_sheet(by: Localisation, name: str) -> Sheet:
    errors = by.errors
    rows = [
        ("AUC of steps", *by.steps.cells()),
        ("first error, F1", *by.f1.cells()),
        (f"found of {errors.wrong} with an error", *Number(errors.on_wrong).cells(share=True)),
        (f"passed of {errors.right} without", *Number(errors.on_right).cells(share=True)),
    ]
    notes = [f"{by.answers} labelled answers; {by.unmatched} others were not judged step by step."]
    if math.isnan(by.threshold):
        rows = rows[:1]
        notes.append("No threshold: one half of the problems lacks answers with or without errors.")
    else:
        notes.append(
            f"A step is called wrong below {by.threshold:.4g}, the best on half of the problems; "
            "the numbers are those of the other half."
        )
    return Sheet(f"{name}: steps", ("measure", "value", "95 %"), rows, notes)


def _json(one: Evaluated) -> Json:
    def plain(value: float) -> Json:
        return None if math.isnan(value) else value

    table: dict[str, Json] = {
        "strategy": one.strategy.name,
        "problems": one.problems,
        "answers": one.answers,
        "right": plain(one.right),
        "ungraded": one.ungraded,
        "scores": {
            row.way: {
                "auc": row.pooled.json,
                "auc_within": row.within.json,
                "brier": plain(row.brier),
                "ece": plain(row.ece),
                "vote": one.weight[row.way],
            }
            for row in one.discrimination
        },
        "numbers": list(one.numbers),
        "choices": {
            row.name: {
                "right": [plain(share) for share in row.at],
                "last": row.last.json,
                "gain": None if row.gain is None else row.gain.json,
            }
            for row in one.choices
        },
    }
    if (by := one.localisation) is not None:
        table["steps"] = {
            "answers": by.answers,
            "unmatched": by.unmatched,
            "auc": by.steps.json,
            "threshold": plain(by.threshold),
            "wrong": by.errors.wrong,
            "found": by.errors.found,
            "right": by.errors.right,
            "passed": by.errors.passed,
            "f1": by.f1.json,
        }
    return table
