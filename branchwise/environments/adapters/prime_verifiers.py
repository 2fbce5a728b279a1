"""Task sets of PrimeIntellect's `verifiers` (version 1) as tasks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Protocol

from branchwise.core.errors import SpecError
from branchwise.core.types import Json, Task


class TaskData(Protocol):
    """What is used of a `verifiers.v1.TaskData`."""

    @property
    def prompt(self) -> object:
        """The question: a text, messages, or None."""
        ...

    @property
    def prompt_text(self) -> str:
        """The texts of the question."""
        ...

    def model_dump(self, *, mode: str, exclude_defaults: bool) -> dict[str, Json]:
        """All its fields."""
        ...


class PrimeTask(Protocol):
    """What is used of a `verifiers.v1.Task`."""

    @property
    def data(self) -> TaskData:
        """What is asked."""
        ...

    @property
    def key(self) -> str:
        """What names it."""
        ...


class Taskset(Protocol):
    """What is used of a `verifiers.v1.Taskset`."""

    @property
    def bounded(self) -> bool:
        """Whether it comes to an end."""
        ...

    def __iter__(self) -> Iterator[PrimeTask]: ...


def prime_tasks(
    taskset: Taskset,
    *,
    limit: int | None = None,
    target: str = "answer",
    meta: tuple[str, ...] = (),
) -> list[Task]:
    """Read the tasks of a `verifiers.v1.Taskset`.

    A task's prompt is the text of its own, and its `meta` holds its `key`, by which `PrimeReward`
    finds it again, its system prompt as `system`, and the fields that `meta` names: what a search
    sees must not hold the solution. Its target is the field `target`, and all its data as JSON
    where it has no such field.

    Args:
        taskset: the task set, or a view of it (`taskset.shuffle(seed=0).take(100)`).
        limit: the most tasks to read; a task set without an end needs one.
        target: the field of the data that holds the right answer.
        meta: the fields of the data that policies may know.

    Raises:
        SpecError: the task set has no end and there is no limit, or a prompt is more than text.

    Source: github.com/PrimeIntellect-ai/verifiers, version 0.4.

    Example:
        >>> class Data:
        ...     prompt = prompt_text = "1 + 1?"
        ...     def model_dump(self, *, mode, exclude_defaults):
        ...         return {"prompt": self.prompt, "answer": 2}
        >>> class One:
        ...     data, key = Data(), "one"
        >>> class Endless:
        ...     bounded = False
        ...     def __iter__(self):
        ...         while True:
        ...             yield One()
        >>> prime_tasks(Endless(), limit=1)
        [Task(prompt='1 + 1?', target='2', meta={'key': 'one'})]
    """
    if limit is None and not taskset.bounded:
        raise SpecError("the task set has no end", hint="give a limit")
    return [_task(task, target, meta) for task in islice(taskset, limit)]


def _task(task: PrimeTask, target: str, meta: tuple[str, ...]) -> Task:
    data = task.data
    said = data.model_dump(mode="json", exclude_defaults=True)
    prompt = said.get("prompt")
    for message in prompt if isinstance(prompt, list) else []:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list) and any(
            not isinstance(part, dict) or part.get("type", "text") != "text" or "image_url" in part
            for part in content
        ):
            raise SpecError(f"the prompt of task {task.key} is more than text")
    known: dict[str, Json] = {"key": task.key}
    if system := said.get("system_prompt"):
        known["system"] = system
    known |= {name: said[name] for name in meta if name in said}
    return Task(data.prompt_text, _target(said, target), known)


def _target(said: Mapping[str, Json], target: str) -> str:
    right = said.get(target)
    if right is None:
        return json.dumps(said, sort_keys=True)
    return right if isinstance(right, str) else json.dumps(right)
