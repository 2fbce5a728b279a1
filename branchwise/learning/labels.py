"""Labelled answers, as `branchwise label` writes them, and what a step should be given."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from branchwise.core.errors import SpecError
from branchwise.core.types import FREE, Json, Usage
from branchwise.verifiers.head import Reads

Label: TypeAlias = Literal["hard", "soft", "outcome"]
On: TypeAlias = Literal["steps", "last"]
_SPEED = {"max_rows", "memory", "draft", "guess", "threads"}
"""Fields of a model that decide how fast it is, not what it makes of a text."""


class Labelled(BaseModel):
    """One answer, and how good its steps are.

    Args:
        problem: the problem's name.
        prompt: the question.
        answer: the final answer; None where there is none.
        right: whether it is the target.
        steps: the answer's text in steps.
        hard: for each step 1 where it is good; None where only the outcome is known.
        soft: for each step how probable it is that the policy gets from there to the target.
        rollouts: how many continuations each step was judged by.
        usage: what they cost.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    problem: str
    prompt: str
    answer: str | None = None
    right: bool
    steps: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
    hard: tuple[Literal[0, 1], ...] | None = None
    soft: tuple[Annotated[float, Field(ge=0, le=1)], ...] | None = None
    rollouts: int = 0
    usage: Usage = FREE

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        for name, labels in (("hard", self.hard), ("soft", self.soft)):
            if labels is not None and len(labels) != len(self.steps):
                raise ValueError(f"{len(self.steps)} steps have {len(labels)} {name} labels")
        return self

    def targets(self, label: Label) -> tuple[float, ...]:
        """What each step should be given.

        Where neither hard nor soft labels were made, each step has the outcome as its label: the
        verifier then learns how often answers that begin so come out right.

        Raises:
            ValueError: this kind of label was not made, but the other one was.
        """
        labels = {"hard": self.hard, "soft": self.soft, "outcome": None}[label]
        if labels is not None:
            return tuple(map(float, labels))
        if label != "outcome" and (self.hard is not None or self.soft is not None):
            raise ValueError(f"the labels are {'hard' if label == 'soft' else 'soft'} ones only")
        return (float(self.right),) * len(self.steps)


@dataclass(frozen=True)
class Labels:
    """Labelled answers of one model.

    Args:
        folder: where they lie.
        model: the model's table.
        reads: how a question is put before the model.
        rows: the answers.
    """

    folder: Path
    model: dict[str, Json]
    reads: Reads
    rows: Sequence[Labelled]


class _About(BaseModel):
    """What labels say of themselves; what else stands there is for others."""

    model_config = ConfigDict(extra="ignore")

    model: str | dict[str, Json]


class _Reads(Reads):
    model_config = ConfigDict(frozen=True, extra="ignore")


def read(folder: Path) -> Labels:
    """The labels in a folder.

    Raises:
        SpecError: there are none, or one is wrong; one line names the file, the line and the field.
    """
    file = folder / "labels.json"
    try:
        text = file.read_bytes()
        about, reads = _About.model_validate_json(text), _Reads.model_validate_json(text)
        file = folder / "labels.jsonl"
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise SpecError(f"{file}: cannot read the labels: {error.strerror}") from error
    except ValidationError as error:
        raise SpecError(f"{file}: {_fault(error)}") from error
    rows: list[Labelled] = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(Labelled.model_validate_json(line))
        except ValidationError as error:
            raise SpecError(f"{file}, line {number}: {_fault(error)}") from error
    if not rows:
        raise SpecError(f"{file}: there are no labels in it")
    named: dict[str, Json] = {"kind": "hf", "model": str(about.model)}
    model = named if isinstance(about.model, str) else about.model
    return Labels(folder, model, Reads(**reads.model_dump()), rows)


def together(several: Sequence[Labels]) -> Labels:
    """Labels of several folders as one; the first one's model stands for all.

    Raises:
        SpecError: they were read in different ways, or of different models.
    """
    first = several[0]
    for other in several[1:]:
        for what, one, two in (
            ("models", _judging(first.model), _judging(other.model)),
            ("prompts or separators", first.reads, other.reads),
        ):
            if one != two:
                raise SpecError(
                    f"{other.folder}: labels of other {what} than those in {first.folder}",
                    hint="a head is about one model that reads in one way",
                )
    rows = [row for labels in several for row in labels.rows]
    return Labels(first.folder, first.model, first.reads, rows)


def _judging(model: dict[str, Json]) -> dict[str, Json]:
    """What of a model's table decides its states."""
    return {name: value for name, value in model.items() if name not in _SPEED}


def key_of(reads: Reads, model: str, prompt: str, steps: Sequence[str]) -> str:
    """A canonical text of all that decides what a model makes of these steps."""
    return json.dumps([model, reads.model_dump(mode="json"), prompt, list(steps)], sort_keys=True)


def _fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False)[0]
    place = ".".join(map(str, fault["loc"]))
    return f"{place}: {fault['msg']}" if place else fault["msg"]
