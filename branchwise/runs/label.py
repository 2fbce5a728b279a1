"""Make labels to learn a verifier from: which steps of sampled answers still lead to the target."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import zip_longest
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import anyio
from anyio import to_thread
from pydantic import ValidationError

from branchwise.agents.chat import Asking
from branchwise.core.aio import gather
from branchwise.core.around import alive
from branchwise.core.errors import SearchFailed, SpecError, VerifierError
from branchwise.core.grow import Grow
from branchwise.core.node import Node
from branchwise.core.types import FREE, Environment, Json, Policy, Step, Task, Usage, Verifier
from branchwise.environments.writing import Writing
from branchwise.learning.labels import Labelled
from branchwise.runs.runner import grading, opened
from branchwise.runs.saved import Saved, apart
from branchwise.runs.spec import UNOPENED
from branchwise.runs.store import Result
from branchwise.search.rollout import follow
from branchwise.verifiers.step_aware import matched_steps
from branchwise.verifiers.steps import split

How: TypeAlias = Literal["rollouts", "match", "outcome"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How labels are made.

    Args:
        how: `rollouts`: from each step the policy goes on several times (Math-Shepherd); `match`:
            a step is good where a right answer comes to the same intermediate result (DiVeRSe);
            `outcome`: only whether the answer is right.
        rollouts: continuations from each step.
        answers: of each problem at most, right and wrong ones in turn; None takes all.
        separator: what ends a step.
        seed: of the continuations.
    """

    how: How = "rollouts"
    rollouts: int = 8
    answers: int | None = 4
    separator: str = "\n\n"
    seed: int = 0


class _Parts(NamedTuple):
    """Of the run, opened; nobody proposes where nothing is rolled out."""

    policies: Mapping[str, Policy]
    world: Environment
    grader: Verifier


class _Value(NamedTuple):
    """How many continuations got to the target, of how many; and what they cost."""

    right: int
    graded: int
    usage: Usage


@dataclass
class Labelling:
    """Labels for the answers of a run, in a directory; what it holds already is not made again.

    Monte-Carlo labels estimate V(s), the chance that the policy gets from step s to the target.
    `soft` is the share of N continuations that do: unbiased. `hard` is 1 where at least one does:
    its mean is 1 - (1 - V)^N, so the more continuations, the more hopeless steps count as good
    ones. The last step's label is the outcome itself.

    Source: Wang et al. 2024 (Math-Shepherd), §3.2-3.3; Li et al. 2023 (DiVeRSe), §2.3, for `match`;
    Cobbe et al. 2021 for `outcome`.

    Args:
        run: the run's directory.
        out: the labels' directory.
        recipe: how.
        strategy: whose answers; None is the first strategy.
        limit: problems at most; None takes all.
        watch: told how many problems are done, and of how many.

    Attributes:
        rows: the labels so far.
        ungraded: answers that the grader had no opinion of: they get no labels.

    Raises:
        SpecError: there is no such run or strategy, or `out` holds a run or labels of another
            kind.
    """

    run: Path
    out: Path
    recipe: Recipe = Recipe()
    strategy: str | None = None
    limit: int | None = None
    watch: Callable[[int, int], None] = lambda _done, _all: None
    rows: list[Labelled] = field(default_factory=list[Labelled])
    ungraded: int = 0

    def __post_init__(self) -> None:
        saved = Saved.read(self.run)
        apart(self.out)
        self._spec, self._saved = saved.spec, saved
        self._strategy = saved.strategies([self.strategy] if self.strategy else [])[0]
        named = [one for one in saved.results if one.strategy == self._strategy.name]
        self._results = named[: self.limit]
        self._done: set[str] = set()

    async def carry_out(self) -> list[Labelled]:
        """Label what has no labels yet.

        Raises:
            SearchFailed: the model is out of reach; what has been made is kept.
            SpecError: a part cannot be opened, or the labels cannot be written.
        """
        self._done = self._begun()
        left = [result for result in self._results if result.problem not in self._done]
        self.watch(len(self._done), len(self._results))
        if not left:
            return self.rows
        async with self._opened() as parts:
            jobs = iter(left)
            workers = range(min(self._spec.concurrency, len(left)))
            await gather(lambda _: self._worker(jobs, parts), workers)
        return self.rows

    @asynccontextmanager
    async def _opened(self) -> AsyncGenerator[_Parts]:
        """What the labels need: a grader, and for rollouts the policy and its world."""
        if self.recipe.how != "rollouts":
            async with grading(self._spec) as grader:
                yield _Parts({}, Writing(), grader)
            return
        strategy = self._strategy.model_copy(update={"verifier": None})
        spec = self._spec.model_copy(update={"verifier": {}})  # nobody judges here
        journal = self.out / "journal.jsonl"
        async with opened(spec, [strategy], journal) as ready, grading(spec) as grader:
            yield _Parts(spec.policies_of(strategy, ready.backend), ready.environment, grader)

    async def _worker(self, jobs: Iterator[Result], parts: _Parts) -> None:
        for result in jobs:
            root = await to_thread.run_sync(self._saved.tree, result)
            rows = await self._labelled(root, result, parts)
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(self._write, rows)
            self.rows += rows
            self._done.add(result.problem)
            self.watch(len(self._done), len(self._results))

    async def _labelled(self, root: Node, result: Result, parts: _Parts) -> list[Labelled]:
        task = dataclasses.replace(root.task, target=result.target)
        rows = await self._answers(root, task, result.problem, parts.grader)
        match self.recipe.how:
            case "outcome":
                return self._chosen(rows)
            case "match":
                marks = matched_steps([row.steps for row in rows], [row.right for row in rows])
                matched = [
                    row.model_copy(update={"hard": tuple(map(int, hard))})
                    for row, hard in zip(rows, marks, strict=True)
                ]
                return self._chosen(matched)
            case "rollouts":
                return await self._rolled_out(self._chosen(rows), task, parts)

    async def _answers(
        self, root: Node, task: Task, problem: str, grader: Verifier
    ) -> list[Labelled]:
        """The different answers of a tree whose grade is known, in the order of the tree."""
        different = {leaf.text: leaf for leaf in root.leaves() if leaf.finished and leaf.text}
        grades: dict[str | None, bool | None] = {None: False}
        rows: list[Labelled] = []
        for text, node in different.items():
            said = node.state.answer
            if said not in grades:
                grades[said] = await _right(grader, node.asked(task))
            right = grades[said]
            if right is None:
                self.ungraded += 1
            else:
                steps = split(text, self.recipe.separator)
                rows.append(
                    Labelled(
                        problem=problem, prompt=task.prompt, answer=said, right=right, steps=steps
                    )
                )
        return rows

    def _chosen(self, rows: list[Labelled]) -> list[Labelled]:
        """As many as are wanted, right and wrong ones in turn."""
        kinds = [[row for row in rows if row.right], [row for row in rows if not row.right]]
        in_turn = [row for pair in zip_longest(*kinds) for row in pair if row is not None]
        return in_turn[: self.recipe.answers]

    async def _rolled_out(self, rows: list[Labelled], task: Task, parts: _Parts) -> list[Labelled]:
        # Answers that begin with the same steps share what is found there.
        beginnings = list(dict.fromkeys(row.steps[:i] for row in rows for i in _inner(row)))
        values = await gather(lambda begun: self._value(begun, task, parts), beginnings)
        found = dict(zip(beginnings, values, strict=True))
        paid: set[tuple[str, ...]] = set()
        labelled: list[Labelled] = []
        for row in rows:
            begun = [row.steps[:i] for i in _inner(row)]
            hard = (*(int(found[b].right > 0) for b in begun), int(row.right))
            soft = (*(found[b].right / found[b].graded for b in begun), float(row.right))
            cost = sum((found[b].usage for b in begun if b not in paid), FREE)
            labels = {"hard": hard, "soft": soft, "rollouts": self.recipe.rollouts, "usage": cost}
            labelled.append(row.model_copy(update=labels))
            paid.update(begun)
        return labelled

    async def _value(self, beginning: tuple[str, ...], task: Task, parts: _Parts) -> _Value:
        """How often the policy gets from here to the target."""
        shown = task.hidden()
        node = Node(shown, await parts.world.reset(shown))
        for text in beginning:
            step = Step(text, finish="stop")
            node = Node(shown, await parts.world.step(node.state, step), node, 0, step)
            if node.done:
                raise SpecError(
                    f"the world ends after {text!r:.60}, so nothing can follow",
                    hint="steps have to end in the world's `delimiter`: see --separator",
                )
        # Of what was said, not of where it stands: another choice of answers finds it recorded.
        seed = _digest([self.recipe.seed, task.prompt, *beginning])
        grow = Grow(parts.policies, parts.world, {}, None, seed, self._strategy.horizon)
        expand = alive(grow)
        await follow(await expand([node], self.recipe.rollouts), expand)
        ends = [leaf for leaf in node.leaves() if leaf is not node]
        if not ends:
            why = node.children[0].failure if node.children else "the policy proposed nothing"
            raise SearchFailed(f"nothing follows {beginning[-1]!r:.60}: {why}")
        # What was cut short or gives no answer did not get there.
        grades = [
            await _right(parts.grader, leaf.asked(task)) if leaf.finished else False
            for leaf in ends
        ]
        known = [right for right in grades if right is not None]
        if not known:
            raise SearchFailed(f"no answer that follows {beginning[-1]!r:.60} could be graded")
        return _Value(sum(known), len(known), node.usage)

    def _begun(self) -> set[str]:
        """What an earlier labelling has done; its rows are taken in."""
        about = self._about()
        told, file = self.out / "labels.json", self.out / "labels.jsonl"
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            if file.exists() and file.stat().st_size and json.loads(told.read_text()) != about:
                raise SpecError(
                    f"{self.out} holds labels that were made in another way",
                    hint="give another directory with --out",
                )
            told.write_text(json.dumps(about, indent=2), encoding="utf-8")
            whole = file.read_bytes() if file.exists() else b""
            rows = [_row(file, number, line) for number, line in enumerate(_lines(whole), start=1)]
            if whole and not whole.endswith(b"\n"):  # a write, of one problem's rows, was cut off
                torn = rows[-1].problem if rows else ""
                rows = [row for row in rows if row.problem != torn]
                file.write_bytes(b"".join(map(_line, rows)))
        except (OSError, ValueError) as error:
            raise SpecError(f"cannot label to {self.out}: {error}") from error
        self.rows += rows
        return {row.problem for row in rows}

    def _about(self) -> dict[str, Json]:
        """What the labels are of, as those who learn from them have to know it."""
        policy = self._spec.policies_of(self._strategy, UNOPENED)["policy"]
        asked = policy if isinstance(policy, Asking) else None
        return {
            "run": self.run.name,
            "model": self._saved.model,
            "strategy": self._strategy.name,
            "system": "" if asked is None else asked.system,
            "template": "{prompt}" if asked is None else asked.template,
            "shots": [] if asked is None else [shot.model_dump() for shot in asked.shots],
            **dataclasses.asdict(self.recipe),
        }

    def _write(self, rows: list[Labelled]) -> None:
        file = self.out / "labels.jsonl"
        try:
            with file.open("ab") as opened_file:
                opened_file.write(b"".join(map(_line, rows)))
        except OSError as error:
            raise SpecError(f"cannot write to {file}: {error.strerror}") from error


def told(rows: Sequence[Labelled], ungraded: int) -> list[str]:
    """What labels say in sum, in lines.

    Args:
        rows: the labels.
        ungraded: answers that got none.
    """
    steps = sum(len(row.steps) for row in rows)
    right = sum(row.right for row in rows)
    problems = len({row.problem for row in rows})
    lines = [f"{len(rows)} answers to {problems} problems, {right} right, in {steps} steps"]
    inner = [row for row in rows if row.hard is not None and len(row.steps) > 1]
    hard = [mark for row in inner for mark in (row.hard or ())[:-1]]
    soft = [share for row in inner for share in (row.soft or ())[:-1]]
    if hard:
        lines.append(f"good before the last step: {sum(hard) / len(hard):.0%} by the hard label")
    if soft:
        lines[-1] += f", {sum(soft) / len(soft):.0%} by the soft one"
        lines.append(
            f"the hard label is 1 where one of {rows[0].rollouts} continuations ends right: "
            "its mean is 1 - (1 - V)^N, the soft one's V"
        )
        spent = sum((row.usage for row in rows), FREE)
        lines.append(f"{spent.completion:,} tokens in {spent.calls:,} calls")
    if ungraded:
        lines.append(f"{ungraded} answers could not be graded and have no labels")
    return lines


async def _right(grader: Verifier, node: Node) -> bool | None:
    """Whether a node's answer is the target; None where the grader has no opinion."""
    if node.state.answer is None:
        return False
    try:
        (verdict,) = await grader.score([node])
    except VerifierError:
        return None
    return None if isinstance(verdict, VerifierError) else verdict.score > 0.5  # noqa: PLR2004  (right)


def _inner(row: Labelled) -> range:
    """After how many steps it is open how an answer ends: not after the last."""
    return range(1, len(row.steps))


def _digest(said: Sequence[Json]) -> int:
    return int.from_bytes(blake2b(json.dumps(said).encode(), digest_size=6).digest(), "big")


def _lines(whole: bytes) -> list[bytes]:
    return whole[: whole.rfind(b"\n") + 1].splitlines()


def _line(row: Labelled) -> bytes:
    return row.model_dump_json().encode() + b"\n"


def _row(file: Path, number: int, line: bytes) -> Labelled:
    try:
        return Labelled.model_validate_json(line)
    except ValidationError as error:
        raise SpecError(f"{file}, line {number}: no label") from error
