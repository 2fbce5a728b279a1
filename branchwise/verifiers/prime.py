"""The rewards of a task of PrimeIntellect's `verifiers` (version 1) as a verifier."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from typing import Any, Protocol, cast

from anyio import to_thread

from branchwise.core.aio import gather
from branchwise.core.errors import SpecError, VerifierError
from branchwise.core.node import Node
from branchwise.core.types import Step, Verdict


class Reward(Protocol):
    """What is used of a `verifiers.v1.trace.Reward`."""

    @property
    def score(self) -> float:
        """What the function said."""
        ...


class Trace(Protocol):
    """What is used of a `verifiers.v1.Trace`."""

    @property
    def reward(self) -> float:
        """The weighted sum of all rewards."""
        ...

    @property
    def rewards(self) -> Mapping[str, Reward | None]:
        """All rewards by name."""
        ...


class PrimeTask(Protocol):
    """What is used of a `verifiers.v1.Task`."""

    @property
    def data(self) -> Any:
        """What is asked."""
        ...

    @property
    def key(self) -> str:
        """What names it."""
        ...

    @property
    def hash(self) -> str:
        """A digest of what is asked."""
        ...

    def hooks(self, attr: str) -> list[Callable[..., object]]:
        """Its functions of a kind."""
        ...

    def score(self, trace: Any) -> Coroutine[Any, Any, None]:
        """Write the rewards into a trace."""
        ...


class Taskset(Protocol):
    """What is used of a `verifiers.v1.Taskset`."""

    def __iter__(self) -> Iterator[PrimeTask]: ...


class PrimeReward:
    """The reward that a `verifiers.v1` task gives for a finished node: a grader.

    The node's lineage becomes a trace of messages: the question, the model's turns with their tool
    calls, what the world answered. The task's `@vf.reward` functions see it, and the score is their
    weighted sum. A task is found by `meta["key"]`, which `prime_tasks` writes. Like every grader it
    asks for the target, so that in a search it judges only where `oracle = true`.

    Hooks for set-up and clean-up are not run, there is no runtime, and token counts are not filled
    in; a reward that wants a runtime is an error, not a 0.

    Args:
        taskset: the task set that the tasks come from.
        limit: how many of its tasks are read to look them up.

    Raises:
        SpecError: the package is not installed.

    Source: github.com/PrimeIntellect-ai/verifiers, version 0.4.
    """

    def __init__(self, taskset: Taskset, *, limit: int = 100_000) -> None:
        if find_spec("verifiers") is None:
            raise SpecError("the rewards need their package", hint="pip install verifiers")
        self._rest = islice(taskset, limit)
        self._tasks: dict[str, PrimeTask] = {}

    async def score(self, nodes: Sequence[Node]) -> Sequence[Verdict | VerifierError]:
        """One verdict for each node; an error where a reward raised or there is none."""
        return await gather(self._judge, nodes)

    async def _judge(self, node: Node) -> Verdict | VerifierError:
        if node.task.target is None:
            return VerifierError(
                "there is no target to compare with",
                hint="a search does not see it: use this verifier as the grader, or oracle = true",
            )
        try:
            task = self._found(node.task.meta.get("key"))
            trace = _trace(task, node)
            await _on_asyncio(lambda: task.score(trace))
        except VerifierError as error:
            return error
        except Exception as error:  # noqa: BLE001  (of others' functions; their faults are data)
            return VerifierError(f"a reward raised {type(error).__name__}: {error}")
        score = float(trace.reward)
        if not math.isfinite(score):
            return VerifierError(f"the rewards came to {score}, which is no finite number")
        said = [f"{name} = {reward.score:g}" for name, reward in trace.rewards.items() if reward]
        return Verdict(score, detail=", ".join(said))

    def _found(self, key: object) -> PrimeTask:
        if not isinstance(key, str):
            raise VerifierError('the task has no meta["key"]', hint="read it with prime_tasks")
        while key not in self._tasks:
            task = next(self._rest, None)
            if task is None:
                raise VerifierError(f"the task set has no task {key}")
            self._tasks[task.key] = task
        task = self._tasks[key]
        hooks = task.hooks("reward")
        if not hooks:
            raise VerifierError("the task has no rewards")
        for hook in hooks:
            wanted = inspect.signature(hook).parameters.get("runtime")
            if wanted is not None and wanted.default is inspect.Parameter.empty:
                name = getattr(hook, "__name__", "a reward")
                raise VerifierError(f"{name} wants a runtime, and there is none here")
        return task


async def _on_asyncio(score: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """The library gathers its rewards with asyncio, so elsewhere they get a loop of their own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        await to_thread.run_sync(lambda: asyncio.run(score()))
    else:
        await score()


def _trace(task: PrimeTask, node: Node) -> Trace:
    vf = import_module("verifiers.v1")
    states = import_module("verifiers.v1.state")
    data = task.data
    asked = data.prompt
    messages = [vf.SystemMessage(content=data.system_prompt)] if data.system_prompt else []
    messages += [vf.UserMessage(content=asked)] if isinstance(asked, str) else list(asked or [])
    graph = [_node(vf, message, place, sampled=False) for place, message in enumerate(messages)]
    said: list[Step] = []

    def turn() -> None:
        if said:
            calls = [
                vf.ToolCall(id=call.id, name=call.name, arguments=call.arguments)
                for step in said
                for call in step.tool_calls
            ]
            text = "".join(step.text for step in said)
            reply = vf.AssistantMessage(content=text, tool_calls=calls or None)
            graph.append(_node(vf, reply, len(graph), sampled=True))
            said.clear()

    for place in node.lineage[node.start.depth + 1 :]:
        if place.step is not None:
            said.append(place.step)
        state, calls = place.state, [c for step in said for c in step.tool_calls]
        if not (state.observation or state.results):
            continue
        turn()
        results = state.results or (state.observation,) * len(calls)
        for call, result in zip(calls, results, strict=False):
            answer = vf.ToolMessage(tool_call_id=call.id, content=result)
            graph.append(_node(vf, answer, len(graph), sampled=False))
        if state.observation and (state.results or not calls):
            heard = vf.UserMessage(content=state.observation)
            graph.append(_node(vf, heard, len(graph), sampled=False))
    turn()
    trace = vf.Trace(
        task=vf.TraceTask(type=type(task).__name__, data=data, key=task.key, hash=task.hash),
        agent=vf.AgentInfo(config=vf.AgentConfig()),
        nodes=graph,
        state=states.state_cls(type(task))(),
        is_completed=True,
        ok=not node.failure,
        stop_condition="agent_completed",
    )
    return cast("Trace", trace)


def _node(vf: Any, message: object, place: int, *, sampled: bool) -> object:
    return vf.MessageNode(message=message, parent=place - 1 if place else None, sampled=sampled)
