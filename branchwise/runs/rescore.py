"""Choose again among the answers of a run, from the verdicts it keeps: no model is asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from anyio import to_thread
from pydantic import TypeAdapter, ValidationError

from branchwise.core.errors import SpecError, VerifierError, suggestion
from branchwise.core.node import Node
from branchwise.core.types import Json
from branchwise.runs.report import HEADINGS, cells, table
from branchwise.runs.samples import Samples, accuracy, sampled, weight_of
from branchwise.runs.saved import (
    Grown,
    Saved,
    Sheet,
    by_answer,
    graded,
    judges,
    percent,
    verifier,
)
from branchwise.runs.spec import Strategy, explain
from branchwise.runs.store import Result
from branchwise.search.best import Best
from branchwise.search.cluster import Cluster
from branchwise.search.dual_agreement import DualAgreement
from branchwise.search.mbr import MBR
from branchwise.search.pick import Pick
from branchwise.search.search import AnyPick
from branchwise.search.vote import Vote, Weight
from branchwise.verifiers.aggregate import Aggregate, How, rescore

WEIGHTED = "weighted-vote"
PICKS: dict[str, type[Pick]] = {
    str(pick.model_fields["kind"].default): pick
    for pick in (Best, Vote, MBR, Cluster, DualAgreement)
}
WEIGHTS: dict[Weight, str] = {"equal": "1", "score": "the score", "exp": "exp(score)"}
"""What a vote counts, in words."""

_pick: TypeAdapter[Pick] = TypeAdapter(AnyPick)


@dataclass(frozen=True, slots=True)
class Choice:
    """How to choose anew.

    Args:
        of: the verifier that the scores shall come from; None where it is the only one, or where
            the scores stay as they are.
        how: how the scores of its steps become one; None takes its own word on each node.
        pick: chooses among the answers; None leaves that to the search, as in the run.
        weighted: vote by the scores: `pick` is then None.
    """

    of: str | None = None
    how: How | None = None
    pick: Pick | None = None
    weighted: bool = False

    @property
    def scores_anew(self) -> bool:
        """Whether nodes get other scores."""
        return self.of is not None or self.how is not None


def choice(of: str | None, how: How | None, kind: str | None, fields: Mapping[str, Json]) -> Choice:
    """What the command line asks for.

    Args:
        of: a verifier.
        how: the way of aggregation.
        kind: of the pick; `weighted-vote` is a vote by the scores.
        fields: of the pick.

    Raises:
        SpecError: there is no such pick or field, or nothing would change.
    """
    if fields and kind is None:
        raise SpecError(
            f"--set {next(iter(fields))}: these are fields of a pick: name one by --pick"
        )
    if kind is None:
        if of is None and how is None:
            raise SpecError("nothing would change: give --aggregate, --of or --pick")
        return Choice(of, how)
    known = [*PICKS, WEIGHTED]
    if kind not in known:
        raise SpecError(f"--pick: unknown kind {kind!r}{suggestion(kind, known)}")
    if kind == WEIGHTED and not fields:
        return Choice(of, how, weighted=True)
    given = {"kind": "vote", "weight": "score"} if kind == WEIGHTED else {"kind": kind}
    try:
        return Choice(of, how, _pick.validate_python({**given, **fields}))
    except ValidationError as error:
        raise SpecError(f"--set {explain(error, PICKS[str(given['kind'])])}") from error


def rank(of: str, how: How | None) -> Callable[[Node], float]:
    """The score of a node from what a verifier has said.

    Args:
        of: the verifier.
        how: how the scores of the steps on the path become one; None takes its word on the node.
    """
    whole = None if how is None else Aggregate(of=of, how=how)

    def score(node: Node) -> float:
        verdicts = node.verdicts
        if not verdicts:  # the search was cut before anybody looked at it
            return -math.inf
        if of not in verdicts:
            raise VerifierError(f"node {node.path} has no verdict of {of!r}")
        value = verdicts[of].score if whole is None else whole(node)
        if not math.isfinite(value):
            raise VerifierError(f"what {of!r} says of node {node.path} comes to {value}")
        return value

    return score


def rescored(trees: Sequence[Grown], of: str, how: How | None, saved: Saved) -> None:
    """Write the scores of trees anew.

    Raises:
        SpecError: a node has no verdict, or one that is no number; the message names the file.
    """
    score = rank(of, how)
    for grown in trees:
        try:
            rescore(grown.root, score)
        except VerifierError as error:
            path = saved.folder / str(grown.result.tree)
            raise SpecError(f"{path}: {error.message}") from error


def told(pick: Pick) -> str:
    """A pick in words: its kind and the fields that are not as usual."""
    fields = pick.model_dump(exclude_defaults=True, exclude={"kind"})
    said = ", ".join(f"{name} = {value}" for name, value in fields.items())
    return f"{pick.model_dump()['kind']}" + (f" ({said})" if said else "")


@dataclass(frozen=True, slots=True)
class Rescored:
    """What came of choosing again.

    Args:
        what: how it was chosen, in words.
        sheets: the tables.
    """

    what: str
    sheets: list[Sheet]


async def rescore_run(
    saved: Saved, chosen: Choice, names: Sequence[str] = (), at: Sequence[int] = ()
) -> Rescored:
    """Choose again in the trees of a run, grade, and compare with what the run has chosen.

    Args:
        saved: the run.
        chosen: how to choose.
        names: the strategies; all where none is named, those without the verifier left out.
        at: for these N, what the best of N samples and the votes of N would be right in.

    Raises:
        SpecError: what is asked for is not there, or a tree cannot be chosen from.
    """
    strategies = saved.strategies(names)
    trees = {one.name: await to_thread.run_sync(saved.trees, one.name) for one in strategies}
    of = None
    if chosen.scores_anew:
        of = verifier([grown for own in trees.values() for grown in own], chosen.of, saved.folder)
        judged = {name for name, own in trees.items() if any(of in judges(g.root) for g in own)}
        for name in names:
            if name not in judged:
                raise SpecError(f"{saved.folder}: {of!r} has judged nothing of {name!r}")
        strategies = [one for one in strategies if one.name in judged]
    scores = [] if of is None else [f"{chosen.how} of {of}" if chosen.how else f"score of {of}"]
    lines: list[tuple[str, ...]] = []
    notes: list[str] = []
    curves: list[Sheet] = []
    for strategy in strategies:
        own = trees[strategy.name]
        if of is not None:
            rescored(own, of, chosen.how, saved)
        pick = _pick_of(chosen, own)
        if of is None:
            _refuse_blind(pick, own, strategy, saved)
        if chosen.weighted and isinstance(pick, Vote):
            notes.append(f"{strategy.name}: votes are weighted by {WEIGHTS[pick.weight]}.")
        after = await _chosen_again(saved, strategy, pick, own)
        lines_, notes_ = _compared(strategy.name, [grown.result for grown in own], after)
        lines += lines_
        notes += notes_
        if at:
            curves.append(await curve(saved, strategy, own, at))
    curves = [sheet for sheet in curves if sheet.rows]
    if at and not curves:
        raise SpecError(f"--at {min(at)}: no problem has so many samples")
    picked = WEIGHTED if chosen.weighted else told(chosen.pick) if chosen.pick else ""
    what = ", ".join([*scores, *([picked] if picked else [])])
    headings = ("strategy", "chosen", *HEADINGS[1:6], "other answers")
    gain = "gain over the run's own choice in points, paired; p: McNemar, exact."
    return Rescored(
        what, [Sheet(f"Chosen again: {what}", headings, lines, [gain, *notes]), *curves]
    )


def _pick_of(chosen: Choice, trees: Sequence[Grown]) -> Pick | None:
    if not chosen.weighted:
        return chosen.pick
    scores = [node.score for grown in trees for node in grown.root.walk() if node.finished]
    return Vote(weight=weight_of(scores))


def _refuse_blind(
    pick: Pick | None, trees: Sequence[Grown], strategy: Strategy, saved: Saved
) -> None:
    """Scores that nobody gave are all the same: to choose by them would be to choose the first.

    Raises:
        SpecError: the pick looks at scores, and there are none.
    """
    looks = isinstance(pick, Best) or getattr(pick, "weight", "equal") != "equal"
    nodes = (node for grown in trees for node in grown.root.walk())
    if looks and all(not node.verdicts and not node.state.reward for node in nodes):
        raise SpecError(
            f"{saved.folder}: no verifier has judged anything of {strategy.name!r}, "
            "so there are no scores to choose by"
        )


async def _chosen_again(
    saved: Saved, strategy: Strategy, pick: Pick | None, trees: Sequence[Grown]
) -> list[Result]:
    """What the run would have said, with the new choice."""
    nodes = [
        strategy.search.answer(grown.root) if pick is None else pick(grown.root) for grown in trees
    ]
    # The same answer has the same grade, also where the grader ran out of time.
    kept = [
        by_answer(saved.spec) and node.state.answer == grown.result.answer
        for node, grown in zip(nodes, trees, strict=True)
    ]
    jobs = [
        (grown.result, node)
        for node, grown, same in zip(nodes, trees, kept, strict=True)
        if not same
    ]
    words = iter(await graded(saved.spec, jobs) if jobs else [])
    results: list[Result] = []
    for node, grown, same in zip(nodes, trees, kept, strict=True):
        grade, why = (grown.result.grade, grown.result.why) if same else next(words)
        results.append(replace(grown.result, answer=node.state.answer, grade=grade, why=why))
    return results


def _compared(
    strategy: str, before: list[Result], after: list[Result]
) -> tuple[list[tuple[str, ...]], list[str]]:
    """Two lines of the table: the run's own choice, and the new one."""
    pair = ("as run", "again")
    named = [
        replace(result, strategy=name)
        for name, results in zip(pair, (before, after), strict=True)
        for result in results
    ]
    rows = table(pair, named)
    others = sum(a.answer != b.answer for a, b in zip(before, after, strict=True))
    lines = [
        (strategy if row is rows[0] else "", *cells(row)[:6], "" if row is rows[0] else str(others))
        for row in rows
    ]
    return lines, [
        f"{strategy}, {row.strategy}: {row.ungraded} could not be graded and do not count."
        for row in rows
        if row.ungraded
    ]


# At other N


async def curve(
    saved: Saved, strategy: Strategy, trees: Sequence[Grown], at: Sequence[int]
) -> Sheet:
    """What would be right with other numbers of samples, in expectation over all choices of N.

    A number that is larger than all trees has no row.
    """
    problems = [Samples.of(own) for own in await sampled(saved.spec, trees)]
    weight = weight_of([score for one in problems for score in one.scores])
    rows: list[tuple[str, ...]] = []
    for n in at:
        if enough := [one for one in problems if len(one.answers) >= n]:
            shares = (
                [one.any(n) for one in enough],
                [one.majority(n) for one in enough],
                [one.best(n) for one in enough],
                [one.weighted(n, weight) for one in enough],
            )
            rows.append((str(n), str(len(enough)), *(percent(accuracy(one)) for one in shares)))
    headings = ("N", "problems", "any right", "majority", "best", "weighted vote")
    notes = [*at_notes(strategy), f"Votes are weighted by {WEIGHTS[weight]}."]
    return Sheet(f"{strategy.name}: of N samples", headings, rows, notes)


def at_notes(strategy: Strategy) -> list[str]:
    """What has to be known of estimates at other N."""
    notes = [
        "At N: expected over all choices of N of the samples; weighted votes over some of them."
    ]
    card = getattr(strategy.search, "card", None)
    if card is None or card.structure != "parallel":
        notes.append(
            f"{strategy.name}: its branches are not drawn independently, so N of them are not what "
            "a search of N would find."
        )
    return notes
