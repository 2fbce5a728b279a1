import math
import sys

import pytest

from branchwise.core.errors import SpecError, VerifierError
from branchwise.core.node import Node
from branchwise.core.types import State, Step, Task, ToolCall
from branchwise.verifiers.prime import PrimeReward

vf = pytest.importorskip("verifiers.v1")
pytestmark = pytest.mark.anyio
SEEN = []


class Data(vf.TaskData):
    answer: str
    wrong: str = ""


class Sum(vf.Task[Data]):
    @vf.reward(weight=2.0)
    async def right(self, trace) -> float:
        return float(trace.last_reply == self.data.answer)

    @vf.reward(weight=0.25)
    async def parts(self, task, trace):
        match task.wrong:
            case "raises":
                raise ValueError("no such sum")
            case "nan":
                return math.nan
        return {"turns": trace.num_turns, "said": len(trace.messages)}

    @vf.metric
    async def roles(self, trace):
        trace.info["roles"] = [
            (message.role, message.content, [call.name for call in message.tool_calls or []])
            if message.role == "assistant"
            else (message.role, message.content)
            for message in trace.messages
        ]
        SEEN.append(trace.info["roles"])
        return 0.0


class Boxed(vf.Task[Data]):
    @vf.reward
    async def inside(self, trace, runtime) -> float:
        return 1.0


class Sums(vf.Taskset[Sum]):
    def load(self):
        for wrong in ("", "raises", "nan"):
            yield Sum(Data(prompt="1 + 1?", answer="2", system_prompt="Add.", wrong=wrong))


class Boxes(vf.Taskset[Boxed]):
    def load(self):
        yield Boxed(Data(prompt="?", answer="2"))


def tasks(taskset):
    return [Task(task.data.prompt, task.data.answer, {"key": task.key}) for task in taskset]


def finished(task, *places):
    """A path of steps and states."""
    node = Node(task, State())
    for step, state in places:
        node = Node(task, state, node, 0, step)
    return node


async def test_the_rewards_see_the_conversation():
    SEEN.clear()
    taskset = Sums(vf.TasksetConfig())
    task, raises, nan = tasks(taskset)
    called = Step("Let me see.", finish="tools", tool_calls=(ToolCall("7", "add", "{}"),))
    node = finished(
        task,
        (called, State(results=("2",))),
        (Step("So it is "), State()),
        (Step("3."), State(observation="No.")),
        (Step("2"), State(done=True, answer="2")),
    )
    other = finished(task, (Step("5"), State(done=True)))
    right, wrong, raised, not_a_number = await PrimeReward(taskset).score(
        [node, other, finished(raises, (Step("2"), State())), finished(nan, (Step("2"), State()))]
    )
    conversation = [
        ("system", "Add."),
        ("user", "1 + 1?"),
        ("assistant", "Let me see.", ["add"]),
        ("tool", "2"),
        ("assistant", "So it is 3.", []),
        ("user", "No."),
        ("assistant", "2", []),
    ]
    assert conversation in SEEN
    assert right.score == 2 * 1 + 0.25 * (3 + 7)
    assert right.detail == "right = 1, turns = 3, said = 7"
    assert wrong.score == 0.25 * (1 + 3)
    assert "no such sum" in raised.message
    assert "no finite number" in not_a_number.message


async def test_a_new_draft_is_a_new_conversation():
    taskset = Sums(vf.TasksetConfig())
    task = tasks(taskset)[0]
    node = finished(task, (Step("5"), State(done=True)), (Step("2"), State(done=True)))
    (verdict,) = await PrimeReward(taskset).score([node])
    assert verdict.detail == "right = 1, turns = 1, said = 3"


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (Task("?", "2"), "no meta"),
        (Task("?", "2", {"key": "another"}), "no task another"),
        (Task("?", None, {"key": "another"}), "no target"),
    ],
)
async def test_what_it_cannot_judge(task, words):
    (verdict,) = await PrimeReward(Sums(vf.TasksetConfig())).score([finished(task)])
    assert isinstance(verdict, VerifierError)
    assert words in verdict.message


async def test_a_reward_that_wants_a_runtime_is_no_zero():
    taskset = Boxes(vf.TasksetConfig())
    (verdict,) = await PrimeReward(taskset).score([finished(tasks(taskset)[0])])
    assert "inside wants a runtime" in verdict.message


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "verifiers", None)
    with pytest.raises(SpecError, match="pip install"):
        PrimeReward([])
