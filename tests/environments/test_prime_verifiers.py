import itertools
import json

import pytest

from branchwise.core.errors import SpecError
from branchwise.core.types import Task
from branchwise.environments.adapters.prime_verifiers import prime_tasks

vf = pytest.importorskip("verifiers.v1")


class Data(vf.TaskData):
    answer: str | None = None
    level: int = 1


class Sum(vf.Task[Data]):
    pass


class Sums(vf.Taskset[Sum]):
    def load(self):
        for n in range(4):
            yield Sum(Data(prompt=f"{n} + 1?", answer=str(n + 1), level=2 + n))


class Endless(vf.Taskset[Sum]):
    INFINITE = True

    def load(self):
        for n in itertools.count():
            yield Sum(Data(prompt=[vf.UserMessage(content=f"{n}?")], system_prompt="Be brief."))


def test_tasks_are_read():
    taskset = Sums(vf.TasksetConfig())
    keys = [task.key for task in taskset]
    assert prime_tasks(taskset) == [
        Task(f"{n} + 1?", str(n + 1), {"key": keys[n]}) for n in range(4)
    ]
    (task,) = prime_tasks(taskset.include(idx=["2:3"]), meta=("level", "name"))
    assert task.meta == {"key": keys[2], "level": 4}
    assert [task.prompt for task in prime_tasks(taskset.shuffle(seed=0), limit=2)] == [
        task.data.prompt for task in itertools.islice(taskset.shuffle(seed=0), 2)
    ]


def test_a_task_set_without_an_end_needs_a_limit():
    taskset = Endless(vf.TasksetConfig())
    with pytest.raises(SpecError, match="no end"):
        prime_tasks(taskset)
    first, second = prime_tasks(taskset, limit=2)
    assert (first.prompt, second.prompt) == ("0?", "1?")
    assert first.meta["system"] == "Be brief."
    assert json.loads(first.target)["prompt"][0]["content"] == "0?"
    assert len(prime_tasks(taskset.take(3))) == 3


def test_a_picture_is_no_text():
    class Pictures(vf.Taskset[Sum]):
        def load(self):
            picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
            yield Sum(Data(prompt=[vf.UserMessage(content=[picture])]))

    with pytest.raises(SpecError, match="more than text"):
        prime_tasks(Pictures(vf.TasksetConfig()))
