"""Problems from a file."""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TextIO, cast

from pydantic import Field, field_validator

from branchwise.core.config import Config
from branchwise.core.errors import SpecError, suggestion
from branchwise.core.template import filled
from branchwise.core.types import Json, Task
from branchwise.environments.adapters import reasoning_gym

Row = Mapping[str, object]

_MADE = re.compile(r"reasoning-gym:(?P<family>\w+)")
_HUB = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)/(?P<file>[^#]+)")
_FORMS = {"hf:": "OWNER/NAME/FILE", "reasoning-gym:": "FAMILY"}


class Data(Config):
    """Where the problems are, and which of their fields say what.

    Args:
        path: a `.jsonl`, `.csv` or `.parquet` file, or `hf:OWNER/NAME/FILE`, a file of one of these
            kinds in a data set on the hub; `.jsonl` and `.csv` also with `.gz`. Or
            `reasoning-gym:FAMILY`, whose problems are made: as many as `limit` says.
        prompt: the field that holds the question, or a text with fields in braces. `tests.0` is
            the first entry of a list; a list of texts is its lines.
        target: the field that holds the right answer, or a text with fields in braces; nothing
            where there is none, and a world or a grader knows without.
        target_after: the right answer is what comes after the last of these marks in its field
            (`####` in GSM8K); the whole field where it is empty.
        id: the field that names a problem; its row number where it is None.
        meta: further fields that policies may see, or a table of the names that they get; no
            others reach them, for a worked solution beside the question would give the answer away.
        first: the row to begin with, counted from 0.
        limit: how many problems at most; None takes all.
        seed: of problems that are made.
        options: of the family of problems that are made, by name.

    Example:
        >>> Data(path="problems.jsonl", limit=60).target
        'answer'
    """

    path: str
    prompt: str = "question"
    target: str | None = "answer"
    target_after: str = ""
    id: str | None = None
    meta: tuple[str, ...] | dict[str, str] = ()
    first: int = Field(default=0, ge=0)
    limit: int | None = Field(default=None, ge=1)
    seed: int = 0
    options: dict[str, Json] = Field(default_factory=dict)

    @field_validator("target")
    @classmethod
    def _said(cls, target: str | None) -> str | None:
        """Nothing is no target: TOML has no None."""
        return target or None

    def within(self, folder: Path) -> Data:
        """The same, with a path that is relative made one of this folder."""
        if self.path.startswith((*_FORMS,)) or Path(self.path).is_absolute():
            return self
        return self.model_copy(update={"path": str(folder / self.path)})

    def tasks(self) -> list[Task]:
        """The problems, in order; `meta["id"]` names them.

        Raises:
            SpecError: the file cannot be read, or a line or a field is wrong; the message says
                which.
        """
        if made := _MADE.fullmatch(self.path):
            if self.limit is None:
                raise SpecError("data.limit: say how many problems shall be made")
            size = self.first + self.limit
            return reasoning_gym.tasks(made["family"], size, self.seed, **self.options)[
                self.first :
            ]
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
            target = _text(row, self.target, "data.target", place)
            if self.target_after:
                target = target.rpartition(self.target_after)[2]
            target = target.strip()
        prompt = _text(row, self.prompt, "data.prompt", place)
        name = number if self.id is None else _field(row, self.id, "data.id", place)
        names = self.meta if isinstance(self.meta, dict) else {key: key for key in self.meta}
        meta = {
            name: cast("Json", _field(row, key, "data.meta", place)) for name, key in names.items()
        }
        return Task(prompt, target, {**meta, "id": str(name)})

    def _local(self) -> Path:
        hub = _HUB.fullmatch(self.path)
        if hub is None:
            for kind, form in _FORMS.items():
                if self.path.startswith(kind):
                    raise SpecError(f"data.path: {self.path!r} is not of the form {kind}{form}")
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


def _text(row: Row, asked: str, asked_by: str, place: str) -> str:
    """A field, or a text with fields in braces."""
    if "{" not in asked:
        return _plain(_field(row, asked, asked_by, place))
    return filled(asked, lambda key: _plain(_field(row, key, asked_by, place)))


def _plain(value: object) -> str:
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return "\n".join(value)
    return str(value)


def _field(row: Row, name: str, asked_by: str, place: str) -> object:
    if name in row:
        return row[name]
    inside, _, index = name.rpartition(".")
    entries = row.get(inside)
    if isinstance(entries, list) and index.isdecimal() and int(index) < len(entries):
        return cast("list[object]", entries)[int(index)]
    raise SpecError(f"{place}: no field {name!r} for {asked_by}{suggestion(name, list(row))}")


def _rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Rows, and where each stands in the file."""
    if not path.is_file():
        raise SpecError(f"data.path: there is no file {path}")
    if path.suffix == ".parquet":
        yield from _parquet(path)
        return
    packed = path.suffix == ".gz"
    read = {".jsonl": _jsonl, ".csv": _csv}.get(
        path.with_suffix("").suffix if packed else path.suffix
    )
    if read is None:
        raise SpecError(
            f"data.path: {path} ends in {path.suffix!r}, not .jsonl, .csv (also .gz) or .parquet"
        )
    opening = gzip.open if packed else open
    try:
        with cast("TextIO", opening(path, "rt", encoding="utf-8", newline="")) as file:
            yield from read(path, file)
    except (gzip.BadGzipFile, zlib.error, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise SpecError(f"{path}: cannot be read: {error}") from error


def _csv(path: Path, file: TextIO) -> Iterator[tuple[str, Row]]:  # noqa: ARG001  (like `_jsonl`)
    for number, row in enumerate(csv.DictReader(file), start=2):
        yield f"line {number}", row


def _jsonl(path: Path, file: TextIO) -> Iterator[tuple[str, Row]]:
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
