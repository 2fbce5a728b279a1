"""The world of programs whose output is the answer."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, SkipValidation, ValidationError

from branchwise.core.code import extract
from branchwise.core.config import Config
from branchwise.core.errors import WorldError
from branchwise.core.spelling import canonical
from branchwise.core.types import State, Step, Task
from branchwise.environments.writing import NO_TOOLS
from branchwise.sandbox.ran import Limits, Ran, Sandbox


class Attempt(Config):
    """What became of the last program.

    Args:
        faults: how many programs have failed so far.
        program: the last one.
        output: what it wrote.
    """

    faults: int = 0
    program: str = ""
    output: str = ""


class ProgramAided(Config):
    """The reply is a Python program; it is run, and what it comes to is the answer.

    The answer is what `solution()` returns, or else what the variable `answer` is, or else the last
    line that the program prints, in the canonical form that `Math` uses. A program that fails is
    answered with its error, and the next step may be a better one.

    Source: Gao et al. 2022 (PAL), whose programs define `solution()`; Chen et al. 2022 (program of
    thoughts), whose programs set a variable.

    Args:
        sandbox: where programs run.
        limits: the most that one program may use.
        attempts: after so many programs that failed the branch is cut; 1 is PAL as published.

    Example:
        >>> ProgramAided(sandbox=None).attempts
        3
    """

    instant: ClassVar[bool] = False
    kind: Literal["program-aided"] = "program-aided"
    sandbox: SkipValidation[Sandbox] = Field(exclude=True, repr=False)
    limits: Limits = Limits()
    attempts: int = Field(default=3, ge=1)

    async def reset(self, task: Task) -> State:  # noqa: ARG002  (the question is the policy's)
        """No program yet."""
        return State(snapshot=Attempt().model_dump())

    async def step(self, state: State, action: Step) -> State:
        """Run the program in a reply.

        Raises:
            WorldError: the state is not one of this world.
            SandboxError: the sandbox broke.
        """
        try:
            before = Attempt.model_validate(state.snapshot)
        except ValidationError as error:
            raise WorldError(f"no state of this world: {state.snapshot!r:.80}") from error
        if action.finish in {"length", "filter"}:
            return State(snapshot=state.snapshot, cut=True)
        if action.finish == "tools":
            return State(snapshot=state.snapshot, observation=NO_TOOLS)
        program = extract(action.text)
        if program is None:
            return self._fault(before, "", "", "There is no program in this.")
        files = {"program.py": program.encode(errors="replace"), "run.py": _WORKER}
        ran = await self.sandbox.run(files, ["python", "run.py"], self.limits)
        output = ran.stdout.decode(errors="replace")
        if not ran.ok:
            return self._fault(before, program, output, self._wrong(ran))
        lines = [line for line in output.splitlines() if line.strip()]
        if not lines:
            return self._fault(before, program, output, "The program printed nothing.")
        done = before.model_copy(update={"program": program, "output": output})
        return State(snapshot=done.model_dump(), done=True, answer=canonical(lines[-1]) or None)

    def _fault(self, before: Attempt, program: str, output: str, why: str) -> State:
        after = Attempt(faults=before.faults + 1, program=program, output=output)
        cut = after.faults >= self.attempts
        return State(snapshot=after.model_dump(), observation=why, cut=cut)

    def _wrong(self, ran: Ran) -> str:
        """Why a program failed, as its author needs it."""
        match ran.status:
            case "exited" | "killed":
                said = ran.stderr.decode(errors="replace").strip()
                return f"The program failed:\n{said[-_LONGEST:]}" if said else "The program failed."
            case "timeout":
                return f"The program was stopped after {self.limits.seconds:g} seconds."
            case "memory":
                return "The program needed too much memory."
            case "output":
                return "The program wrote too much."
            case "denied":
                return "The program asked the system for what no program here may have."


_LONGEST = 2000  # characters of an error: its end says most
_WORKER = Path(__file__).with_name("program_aided_worker.py").read_bytes()
