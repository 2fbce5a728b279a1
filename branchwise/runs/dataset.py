"""Problems from a file."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

from pydantic import Field

from branchwise.core.config import Config
from branchwise.core.errors import SpecError, suggestion
from branchwise.core.template import filled
from branchwise.core.types import Json, Task

Row = Mapping[str, object]

_HUB = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)/(?P<file>[^#]+)")


class Data(Config):
    """Where the problems are, and which of their fields say what.

    Args:
        path: a `.jsonl`, `.csv` or `.parquet` file, or `hf:OWNER/NAME/FILE`, a file of one of these
            kinds in a data set on the hub.
        prompt: the field that holds the question, or a text with fields in braces.
        target: the field that holds the right answer; None where there is none.
        target_after: the right answer is what comes after the last of these marks in its field
            (`####` in GSM8K); the whole field where it is empty.
        id: the field that names a problem; its row number where it is None.
        meta: further fields that policies may see; no others reach them, for a worked solution
            beside the question would give the answer away.
        first: the row to begin with, counted from 0.
        limit: how many problems at most; None takes all.

    Example:
        >>> Data(path="problems.jsonl", limit=60).target
        'answer'
    """

    path: str
    prompt: str = "question"
    target: str | None = "answer"
    target_after: str = ""
    id: str | None = None
    meta: tuple[str, ...] = ()
    first: int = Field(default=0, ge=0)
    limit: int | None = Field(default=None, ge=1)

    def within(self, folder: Path) -> Data:
        """The same, with a path that is relative made one of this folder."""
        if _HUB.fullmatch(self.path) or Path(self.path).is_absolute():
            return self
        return self.model_copy(update={"path": str(folder / self.path)})

    def tasks(self) -> list[Task]:
        """The problems, in order; `meta["id"]` names them.

        Raises:
            SpecError: the file cannot be read, or a line or a field is wrong; the message says
                which.
        """
        path = self._local()
        end = None if self.limit is None else self.first + self.limit
        tasks: list[Task] = []
        for number, (line, row) in enumerate(_rows(path)):
            if end is not None and number >= end:
                break
            if number >= self.first:
                tasks.append(self._task(row, number, f"{path}, {line}"))
        if not tasks:
            raise SpecError(f"{path}: no problem between row {self.first} and row {end}")
        names = [str(task.meta["id"]) for task in tasks]
        if len(set(names)) < len(names):
            raise SpecError(f"{path}: two problems have the same {self.id!r}")
        return tasks

    def _task(self, row: Row, number: int, place: str) -> Task:
        target = None
        if self.target is not None:
            target = str(_field(row, self.target, "data.target", place))
            if self.target_after:
                target = target.rpartition(self.target_after)[2]
            target = target.strip()
        if "{" in self.prompt:
            prompt = filled(self.prompt, lambda key: _field(row, key, "data.prompt", place))
        else:
            prompt = str(_field(row, self.prompt, "data.prompt", place))
        name = number if self.id is None else _field(row, self.id, "data.id", place)
        meta = {key: cast("Json", _field(row, key, "data.meta", place)) for key in self.meta}
        return Task(prompt, target, {**meta, "id": str(name)})

    def _local(self) -> Path:
        hub = _HUB.fullmatch(self.path)
        if hub is None:
            if self.path.startswith("hf:"):
                raise SpecError(f"data.path: {self.path!r} is not of the form hf:OWNER/NAME/FILE")
            return Path(self.path)
        try:
            from huggingface_hub import hf_hub_download  # noqa: PLC0415  (an extra)
        except ImportError as error:
            raise SpecError(
                "data.path: reading from the hub needs huggingface-hub",
                hint="pip install 'branchwise[data]'",
            ) from error
        try:
            return Path(hf_hub_download(hub["repo"], hub["file"], repo_type="dataset"))
        except Exception as error:
            raise SpecError(
                f"data.path: cannot fetch {self.path!r}: {type(error).__name__}",
                hint="check the name and the connection, or give a local file",
            ) from error


def _field(row: Row, name: str, asked_by: str, place: str) -> object:
    if name not in row:
        raise SpecError(f"{place}: no field {name!r} for {asked_by}{suggestion(name, list(row))}")
    return row[name]


def _rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Rows, and where each stands in the file."""
    if not path.is_file():
        raise SpecError(f"data.path: there is no file {path}")
    match path.suffix:
        case ".jsonl":
            yield from _jsonl(path)
        case ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                for number, row in enumerate(csv.DictReader(file), start=2):
                    yield f"line {number}", row
        case ".parquet":
            yield from _parquet(path)
        case suffix:
            raise SpecError(f"data.path: {path} ends in {suffix!r}, not .jsonl, .csv or .parquet")


def _jsonl(path: Path) -> Iterator[tuple[str, Row]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise SpecError(f"{path}, line {number}: not JSON: {error}") from error
            if not isinstance(row, dict):
                raise SpecError(f"{path}, line {number}: not a JSON object")
            yield f"line {number}", cast("Row", row)


def _parquet(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        from pyarrow import ArrowException, parquet  # noqa: PLC0415  (an extra)
    except ImportError as error:
        raise SpecError(
            "data.path: reading Parquet needs pyarrow", hint="pip install 'branchwise[data]'"
        ) from error
    try:
        table = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        raise SpecError(f"{path}: not a Parquet file: {error}") from error
    for number, row in enumerate(table.to_pylist()):
        yield f"row {number}", row
