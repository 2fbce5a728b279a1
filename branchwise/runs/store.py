"""A run's directory: what has been done is on disk as soon as it is done."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from branchwise.core.errors import SpecError
from branchwise.core.node import Node
from branchwise.core.tree import to_json
from branchwise.core.types import Json, Usage

Grade = Literal["right", "wrong", "ungraded"]


@dataclass(frozen=True, slots=True)
class Result:
    """One problem with one strategy.

    Args:
        strategy: its name.
        problem: the problem's name.
        answer: the final answer; None where the search found none.
        target: the right answer, where the data has one.
        grade: `ungraded` where there is no target, or the grader could not tell (it ran out of
            time): never counted as wrong.
        why: a word of the grader, or what went wrong.
        stopped: why the search ended; `failed` where nothing could be grown.
        usage: what the tree cost.
        tree: the tree's file, relative to the run's directory.
    """

    strategy: str
    problem: str
    answer: str | None
    target: str | None
    grade: Grade
    why: str
    stopped: str
    usage: Usage
    tree: str | None = None


_result = TypeAdapter(Result)

SOURCE = "source"
"""Where the spec's file is, beside the fields of the spec."""


def kept_spec(file: Path) -> tuple[dict[str, Json], Path]:
    """The table in a run's `spec.json`, and the file that it came from.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON object.
    """
    table: dict[str, Json] | list[Json] = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(table, dict):
        raise ValueError("not an object")  # noqa: TRY004  (as for what is no JSON at all)
    return table, Path(str(table.pop(SOURCE, file)))


# What may change between two runs into the same directory: how much is done, not what.
_FREE = frozenset({"concurrency", "name", SOURCE})


class Store:
    """The directory of a run: `spec.json`, `journal.jsonl`, `results.jsonl`, `trees/`.

    Args:
        folder: the directory; made where it is missing.
        spec: the spec's table, as it was given.
        source: the spec's file, which relative paths in it are relative to.

    Raises:
        SpecError: the directory holds a run of another spec, or cannot be written.
    """

    def __init__(self, folder: Path, spec: dict[str, Json], source: Path | None = None) -> None:
        self.folder = folder
        self.results: dict[tuple[str, str], Result] = {}
        kept = folder / "spec.json"
        told = _comparable(spec) | ({} if source is None else {SOURCE: str(source.absolute())})
        new = json.dumps(told, sort_keys=True, indent=2, default=str)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if kept.exists() and self._begun():
                _refuse_changes(
                    folder, _comparable(json.loads(kept.read_text())), _comparable(json.loads(new))
                )
            else:
                kept.write_text(new, encoding="utf-8")
            self._read()
        except OSError as error:
            raise SpecError(f"cannot write the run to {folder}: {error.strerror}") from error

    @property
    def journal(self) -> Path:
        """Where the model's answers are."""
        return self.folder / "journal.jsonl"

    def save(self, result: Result, root: Node | None) -> None:
        """Write down a result and its tree.

        Raises:
            SpecError: they cannot be written.
        """
        try:
            if root is not None and result.tree is not None:
                tree = self.folder / result.tree
                tree.parent.mkdir(parents=True, exist_ok=True)
                tree.write_text(to_json(root), encoding="utf-8")
            row = json.dumps(_result.dump_python(result, mode="json"), ensure_ascii=False)
            with (self.folder / "results.jsonl").open("a", encoding="utf-8") as file:
                file.write(row + "\n")
        except OSError as error:
            raise SpecError(
                f"cannot write to {self.folder}: {error.strerror}",
                hint="what is there is kept; make room and run the same command again",
            ) from error
        self.results[result.strategy, result.problem] = result

    def _begun(self) -> bool:
        """Whether anything has been paid for; a run that could not even begin binds nobody."""
        paid = (self.journal, self.folder / "results.jsonl")
        return any(file.exists() and file.stat().st_size for file in paid)

    def _read(self) -> None:
        path = self.folder / "results.jsonl"
        if not path.exists():
            return
        whole = path.read_bytes()
        kept = whole[: whole.rfind(b"\n") + 1]
        if len(kept) < len(whole):  # a write that was cut off
            os.truncate(path, len(kept))
        for number, line in enumerate(kept.splitlines(), start=1):
            try:
                result = _result.validate_json(line)
            except ValidationError as error:
                raise SpecError(f"{path}, line {number}: not a result") from error
            self.results[result.strategy, result.problem] = result


def _comparable(spec: dict[str, Json]) -> dict[str, Json]:
    table = {key: value for key, value in spec.items() if key not in _FREE}
    data = table.get("data")
    if isinstance(data, dict):
        table["data"] = {key: value for key, value in data.items() if key != "limit"}
    return table


def _refuse_changes(folder: Path, old: dict[str, Json], new: dict[str, Json]) -> None:
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if changed:
        raise SpecError(
            f"{folder} holds a run of another spec: {', '.join(changed)} changed",
            hint="give another directory with --out",
        )
