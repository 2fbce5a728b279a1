"""A run that is over, read again: its trees, and what its grader says of further answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from branchwise.core.aio import gather
from branchwise.core.errors import SpecError, suggestion
from branchwise.core.node import Node
from branchwise.core.tree import from_json
from branchwise.core.types import Json
from branchwise.environments.math import Math
from branchwise.runs.runner import graded as word
from branchwise.runs.runner import opened
from branchwise.runs.spec import UNOPENED, Spec, Strategy, parse
from branchwise.runs.store import Grade, Result, kept_spec
from branchwise.verifiers.exact import Exact
from branchwise.verifiers.math_equal import MathEqual
from branchwise.verifiers.reasoning_gym import ReasoningGym
from branchwise.verifiers.unit_tests import UnitTests

_result = TypeAdapter(Result)
_BY_ANSWER = (MathEqual, Exact, UnitTests, ReasoningGym)
"""Graders that look at nothing but the answer: equal answers are graded once."""


@dataclass(frozen=True, slots=True)
class Grown:
    """A problem with the tree that a strategy has grown for it.

    Args:
        result: what the run says of it.
        root: the tree.
    """

    result: Result
    root: Node


@dataclass(frozen=True, slots=True)
class Saved:
    """A run's directory, which is only read.

    Args:
        folder: the directory.
        spec: what was run.
        model: the table of its model.
        results: what is there of it.
    """

    folder: Path
    spec: Spec
    model: Json
    results: tuple[Result, ...]

    @classmethod
    def read(cls, folder: Path) -> Saved:
        """The run in a directory.

        Raises:
            SpecError: there is none, or a file of it cannot be read.
        """
        kept, rows = folder / "spec.json", folder / "results.jsonl"
        if not kept.is_file():
            raise SpecError(f"{folder} holds no run: there is no {kept.name}")
        try:
            table, source = kept_spec(kept)
            lines = rows.read_bytes() if rows.exists() else b""
        except (OSError, ValueError) as error:
            raise SpecError(f"{kept}: cannot be read: {error}") from error
        spec = parse(table, source)
        whole = lines[: lines.rfind(b"\n") + 1].splitlines()  # the run may still go on
        last: dict[tuple[str, str], Result] = {}
        for number, line in enumerate(whole, start=1):
            try:
                result = _result.validate_json(line)
            except ValidationError as error:
                raise SpecError(f"{rows}, line {number}: not a result") from error
            last[result.strategy, result.problem] = result
        if not last:
            raise SpecError(f"{folder} has no results yet")
        return cls(folder, spec, table["model"], tuple(last.values()))

    def strategies(self, names: Sequence[str] = ()) -> list[Strategy]:
        """The strategies of these names; all that have results where none is named.

        Raises:
            SpecError: one is not there, or has no results.
        """
        done = {result.strategy for result in self.results}
        known = {one.name: one for one in self.spec.strategies if one.name in done}
        for name in names:
            if name not in known:
                there = suggestion(name, [*known])
                raise SpecError(f"{self.folder} has no results of a strategy {name!r}{there}")
        return [known[name] for name in dict.fromkeys(names or known)]

    def trees(self, strategy: str) -> list[Grown]:
        """All trees of a strategy, in the order of the results.

        Raises:
            SpecError: one is missing or damaged.
        """
        return [Grown(r, self.tree(r)) for r in self.results if r.strategy == strategy]

    def tree(self, result: Result) -> Node:
        """The tree that a result is from.

        Raises:
            SpecError: it is missing or damaged.
        """
        if result.tree is None:
            raise SpecError(
                f"{self.folder}: {result.strategy} has no tree of problem {result.problem}"
            )
        path = self.folder / result.tree
        try:
            return from_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, SpecError) as error:
            raise SpecError(f"{path}: cannot be read: {error}") from error


def apart(out: Path) -> None:
    """See to it that what is made from runs does not come among the files of one.

    Raises:
        SpecError: there is a run in that directory, or it is a file.
    """
    if out.exists() and not out.is_dir():
        raise SpecError(f"{out} is no directory")
    if (out / "spec.json").exists():
        raise SpecError(f"{out} holds a run", hint="give another directory with --out")


def verifier(trees: Sequence[Grown], of: str | None, folder: Path) -> str:
    """The name of the verifier that is meant: the only one where none is named.

    Args:
        trees: where it has judged.
        of: its name, where one is given.
        folder: the run's directory, for messages.

    Raises:
        SpecError: there is none, none of this name, or several to choose from.
    """
    names = list(dict.fromkeys(name for grown in trees for name in judges(grown.root)))
    if not names:
        raise SpecError(f"{folder}: no verifier has judged anything there")
    if of is None and len(names) > 1:
        raise SpecError(
            f"{folder}: several verifiers have judged: {', '.join(names)}; name one by --of"
        )
    if of is not None and of not in names:
        raise SpecError(f"{folder}: no verifier is called {of!r}{suggestion(of, names)}")
    return of or names[0]


def judges(root: Node) -> tuple[str, ...]:
    """The names of the verifiers that have judged the nodes of a tree."""
    return next((tuple(node.verdicts) for node in root.walk() if node.verdicts), ())


async def graded(spec: Spec, jobs: Sequence[tuple[Result, Node]]) -> list[tuple[Grade, str]]:
    """What the run's grader says of these nodes, with the results' targets; no model is asked.

    Raises:
        SpecError: the grader needs a model, or cannot be opened.
    """
    if "backend" in getattr(type(spec.grader), "model_fields", {}):
        raise SpecError("the grader of this run asks a model, so nothing can be graded without one")
    parts = spec.model_copy(update={"model": UNOPENED, "verifier": {}, "environment": Math()})
    alike = by_answer(spec)
    keys = [
        (result.problem, node.state.answer if alike else (result.strategy, node.path))
        for result, node in jobs
    ]
    first = dict(zip(reversed(keys), reversed(jobs), strict=True))
    async with opened(parts, [], grader=spec.grader) as ready:

        async def judge(job: tuple[Result, Node]) -> tuple[Grade, str]:
            result, node = job
            return await word(replace(node.task, target=result.target), node, ready.grader)

        words = dict(zip(first, await gather(judge, list(first.values())), strict=True))
    return [words[key] for key in keys]


def by_answer(spec: Spec) -> bool:
    """Whether the run's grader looks at nothing but the answer."""
    return isinstance(spec.grader, _BY_ANSWER)


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table to print and to keep.

    Args:
        title: what it is about.
        headings: of the columns.
        rows: the cells.
        notes: what has to be known to read it.
    """

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def show(self, console: Console) -> None:
        """Print it."""
        table = Table(
            title=Text(self.title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
        )
        for i, heading in enumerate(self.headings):
            table.add_column(heading, justify="left" if i == 0 else "right")
        for row in self.rows:
            table.add_row(*map(Text, row))
        console.print(table)
        for note in self.notes:
            console.print(Text(note), style="dim")

    @property
    def markdown(self) -> str:
        """The same as Markdown."""
        lines = [self.headings, ["---"] * len(self.headings), *self.rows]
        cells = [" | ".join(cell.replace("|", "\\|") for cell in line) for line in lines]
        table = "".join(f"| {line} |\n" for line in cells)
        notes = "".join(f"{note}\n" for note in self.notes)
        return f"## {self.title}\n\n{table}" + (f"\n{notes}" if notes else "")


def percent(share: float) -> str:
    """A share as text; nothing for nan."""
    return "-" if math.isnan(share) else f"{share:.1%}"


def filed(name: str) -> str:
    """A name as a part of a file's name."""
    kept = "".join(c if c.isalnum() or c in "_.+=" else "-" for c in name)
    return "-".join(part for part in kept.split("-") if part).strip(".") or "_"
