"""A world in which what is written is a program, and the public tests answer."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field, PrivateAttr, SkipValidation, ValidationError

from branchwise.core.code import closed, entry_point, extract, prelude, public_tests
from branchwise.core.config import Config
from branchwise.core.errors import WorldError
from branchwise.core.types import State, Step, Task
from branchwise.environments.writing import Text
from branchwise.sandbox.harness import Checked, check
from branchwise.sandbox.ran import Limits, Sandbox

NO_PROGRAM = "There is no program in your reply. Write it in a block that begins with ```python."
TELLS = 3
"""So many tests that a program does not pass are told."""
PRINTED = 300
"""So many characters of what it printed are told."""
KEPT = 1024
"""So many results are kept, so that equal programs run once."""


class Desk(Config):
    """What a snapshot says: what has been written, and what it has to do.

    The tests are part of it, because a step sees no task.
    """

    text: str = ""
    attempt: int = 1
    prelude: str
    entry_point: str | None
    tests: list[str]

    def state(self) -> State:
        """The state with this snapshot."""
        return State(self.model_dump())


_Key = tuple[str, str, str | None, tuple[str, ...]]


class _Kept(OrderedDict[_Key, tuple[Sandbox, Checked]]):
    """The latest results; worlds with different ones are equal all the same."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Kept)

    __hash__ = None


class PythonTests(Text):
    r"""A finished text is a program; the public tests say what becomes of it.

    The answer is the code in the text. The observation tells which tests the program does not pass
    and why, the reward is the share that it passes. A task without public tests rewards a program
    that can be loaded and defines the entry point.

    The task's `meta` says what the program needs: `prelude`, code that stands before it, which it
    may also complete; `entry_point`, the name that it has to define; `tests`, the public ones, a
    text or a list. Without `tests` they are the examples in the prelude and in the prompt.

    The text also ends where the block of code that it holds is closed.

    Args:
        sandbox: where programs run.
        delimiter: what ends a step; with it in a policy's `stop`, each line is a step.
        continue_at_length: whether a step cut short by `max_tokens` may be continued by the next.
        attempts: how many programs may be written one after the other; after one that fails, the
            world goes on and the next text is the next attempt.
        seconds: the most time for one test.
        limits: of one program with all its tests.

    Example:
        >>> from branchwise import Step, Task, run_sync
        >>> world = PythonTests(sandbox=None)
        >>> async def say(text: str) -> str:
        ...     return (await world.step(await world.reset(Task("?")), Step(text))).observation
        >>> run_sync(say, "It cannot be done.")[:36]
        'There is no program in your reply. W'
    """

    instant: ClassVar[bool] = False
    kind: Literal["python-tests"] = "python-tests"
    sandbox: SkipValidation[Sandbox] = Field(exclude=True, repr=False)
    attempts: int = Field(default=1, ge=1)
    seconds: float = Field(default=3.0, gt=0)
    limits: Limits = Limits()
    _kept: _Kept = PrivateAttr(default_factory=_Kept)

    async def reset(self, task: Task) -> State:
        """The empty text."""
        return Desk(
            prelude=prelude(task),
            entry_point=entry_point(task),
            tests=public_tests(task),
        ).state()

    async def step(self, state: State, action: Step) -> State:
        """The text with the step added; where that ends it, what the tests say.

        Raises:
            WorldError: the state is not one of this world.
            SandboxError: the sandbox broke.
        """
        try:
            desk = Desk.model_validate(state.snapshot)
        except ValidationError as error:
            raise WorldError(f"no snapshot of this world: {state.snapshot!r:.80}") from error
        written = await super().step(State(desk.text), action)
        here = {**desk.model_dump(), "text": written.snapshot}
        if not written.done:
            return replace(written, snapshot=here)
        share, told = await self._tried(written.answer, desk)
        if share == 1 or desk.attempt >= self.attempts:
            return replace(written, snapshot=here, observation=told, reward=share)
        here = {**here, "text": "", "attempt": desk.attempt + 1}
        return State(here, observation=told, reward=share, answer=written.answer)

    def read(self, text: str) -> str | None:
        """The code in a text."""
        return extract(text)

    def over(self, text: str) -> bool:
        """Whether the block of code is closed."""
        return closed(text)

    async def _tried(self, code: str | None, desk: Desk) -> tuple[float, str]:
        """The share of public tests that a program passes, and what there is to say."""
        if code is None:
            return 0.0, NO_PROGRAM
        tests = desk.tests
        checked = await self._checked(code, desk, tests or [desk.entry_point or "None"])
        outcomes = checked.outcomes
        share = checked.passed / len(outcomes)
        if share == 1:
            return share, f"all {len(tests)} public tests pass" if tests else "the program loads"
        fallen = [outcome for outcome in outcomes if outcome.status != "passed"]
        lines = list(dict.fromkeys(outcome.told for outcome in fallen))[:TELLS]
        if tests and checked.fault is None:
            lines.insert(0, f"{checked.passed} of {len(tests)} public tests pass")
        if printed := fallen[0].printed.strip():
            lines.append(f"it printed: {printed[:PRINTED]}")
        return share, "\n".join(lines)

    async def _checked(self, code: str, desk: Desk, tests: list[str]) -> Checked:
        key = (code, desk.prelude, desk.entry_point, tuple(tests))
        sandbox, checked = self._kept.get(key, (None, None))
        if checked is None or sandbox is not self.sandbox:
            checked = await check(
                self.sandbox,
                code,
                tests,
                prelude=desk.prelude,
                entry_point=desk.entry_point,
                seconds=self.seconds,
                limits=self.limits,
            )
            self._kept[key] = self.sandbox, checked
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return checked
