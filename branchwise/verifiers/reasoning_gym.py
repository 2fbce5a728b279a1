"""The scorers of Reasoning Gym as a grader."""

import json
import re
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, cast

from pydantic import Field

from branchwise.core.aio import gather
from branchwise.core.config import Config
from branchwise.core.errors import SpecError, VerifierError
from branchwise.core.node import Node
from branchwise.core.types import Verdict
from branchwise.verifiers.workers import WorkerDiedError, Workers

_WORKER = Path(__file__).with_name("reasoning_gym_worker.py")


class ReasoningGym(Config):
    """What the scorer of a problem's family says of an answer, in [0, 1]: a grader.

    It grades the tasks of `environments.adapters.reasoning_gym.tasks`. A verdict's `detail` is
    `right` (1), `partly right`, `wrong` (0) or `no answer`; an answer at which the scorer raises is
    worth 0. The scorers run in processes that can be killed, since some take for ever or hand an
    answer to `eval`, where it may name nothing but mathematics here. Running out of time or memory
    is no wrong answer but an error, whose message begins with `timeout`.

    Scores are the families' own: many give 0.01 to any answer, and those that compare texts give
    some of the credit to a text that holds the answer.

    Args:
        workers: the most processes at one time; each starts when it is first needed.
        seconds: the most time for one answer, of which making the problem again takes a part.
        memory: the most address space of a process, in bytes.
        tag: an answer that is a text is what its last `<tag>` holds, or the whole text where it has
            none.

    Source: Stojanovski et al. 2025, "Reasoning Gym: Reasoning Environments for Reinforcement
    Learning with Verifiable Rewards".

    Example:
        >>> ReasoningGym(seconds=2.0).tag
        'answer'
    """

    kind: Literal["reasoning-gym"] = "reasoning-gym"
    workers: int = Field(default=2, ge=1)
    seconds: float = Field(default=10.0, gt=0)
    memory: int = Field(default=2 << 30, ge=1 << 29)
    tag: str = Field(default="answer", min_length=1)

    @asynccontextmanager
    async def open(self) -> AsyncGenerator["ReasoningGymScores"]:
        """The verifier; its processes end with the block.

        Raises:
            SpecError: Reasoning Gym is not installed.
        """
        if find_spec("reasoning_gym") is None:
            raise SpecError("reasoning-gym needs its package", hint="pip install reasoning-gym")
        command = [sys.executable, "-P", str(_WORKER), str(self.seconds + 1), str(self.memory)]
        workers = Workers(command, count=self.workers, seconds=self.seconds)
        try:
            yield ReasoningGymScores(self.tag, workers)
        finally:
            await workers.aclose()


class ReasoningGymScores:
    """A `ReasoningGym` at work.

    Args:
        tag: what holds the answer in a text.
        workers: the processes in which the scorers run.
    """

    def __init__(self, tag: str, workers: Workers) -> None:
        tag = re.escape(tag)
        self._tagged = re.compile(f"<{tag}>(.*?)</{tag}>", re.DOTALL)
        self._workers = workers

    async def score(self, nodes: Sequence[Node]) -> Sequence[Verdict | VerifierError]:
        """One verdict for each node; an error where the task is none of Reasoning Gym's."""
        return await gather(self._judge, nodes)

    async def _judge(self, node: Node) -> Verdict | VerifierError:
        problem, target, answer = (
            node.task.meta.get("reasoning_gym"),
            node.task.target,
            node.state.answer,
        )
        if problem is None:
            return VerifierError("this is no problem of reasoning-gym")
        if target is None:
            return VerifierError(
                "there is no target to compare with",
                hint="the target is hidden from a search: use reasoning-gym as the grader, "
                "or set oracle = true",
            )
        if answer is None:
            return Verdict(0.0, detail="no answer")
        tagged = self._tagged.findall(answer)
        said = tagged[-1].strip() if tagged else answer.strip()
        try:
            reply = await self._workers.ask(json.dumps([problem, target, said]).encode())
        except TimeoutError:
            return VerifierError("timeout: scoring took too long", hint=_NEITHER)
        except WorkerDiedError:
            return VerifierError(
                "timeout: scoring took too much memory or ended its process", hint=_NEITHER
            )
        score, detail = cast("tuple[float | None, str]", json.loads(reply))
        return VerifierError(detail) if score is None else Verdict(score, detail=detail)


_NEITHER = "it counts neither as right nor as wrong"
