"""A compiler or a prover as a world: a reply is a text for it, what it says is the observation."""

from typing import ClassVar, Literal

from branchwise.core.types import State, Step, Task
from branchwise.sandbox.command import Check


class CommandLine(Check):
    r"""Each reply holds a text that a command is run on; it ends when the command is content.

    The text is written to a file and the command runs on it in the sandbox. What it says is the
    observation, so that the next reply may do better. The reward is 1 where it is verified, -1
    where the text is invalid or forbidden, 0 where the run did not end on its own; else, where
    `counts` tells how much is verified, Treefinement's value
    (verified - 0.1 errors - 0.04 other messages) / (verified + unverified), and 0 where not. The
    answer is the text that the command got last, verified or not.

    Source: Aggarwal et al. 2024 (Treefinement), its value of a program.

    Args:
        sandbox: where it runs; open.
        command: the command and its arguments; `{file}` is the file's name.
        file: the name of the file that the text is written to.
        language: the mark of the fenced blocks in a reply that hold the text, such as `dafny`; the
            last one counts. Any block does where it is empty, and all of a reply without blocks.
        passes: what the output of a run that is right has to match, besides the exit status 0.
        message: matches one message of the output; its groups `file`, `line`, `severity` and
            `message` are read, those that it has.
        counts: matches the output's summary; its groups `verified` and `errors` are numbers.
        forbidden: what the text must not match, such as a prover's `assume`.
        limits: of a run.
        shown: the most characters of an observation.

    Raises:
        pydantic.ValidationError: a pattern is no regular expression.

    Example:
        >>> from branchwise import run_sync
        >>> from branchwise.sandbox.ran import Ran
        >>> class Content:
        ...     async def run(self, files, argv, limits, **more):
        ...         return Ran("exited", 0, files["sum.smt2"])
        >>> world = CommandLine(sandbox=Content(), command=("z3", "{file}"), file="sum.smt2")
        >>> async def check():
        ...     return await world.step(await world.reset(Task("?")), Step("(check-sat)"))
        >>> run_sync(check).done
        True
    """

    instant: ClassVar[bool] = False
    kind: Literal["command-line"] = "command-line"

    async def reset(self, task: Task) -> State:  # noqa: ARG002  (every task begins with no text)
        """No text yet."""
        return State(snapshot=None)

    async def step(self, state: State, action: Step) -> State:  # noqa: ARG002  (each text stands alone)
        """What the command says of the reply's text.

        Raises:
            SandboxError: the sandbox broke.
        """
        if action.finish in {"length", "filter"}:
            return State(snapshot=None, cut=True)
        if action.tool_calls:
            none = "There are no tools here. Answer with the text itself."
            return State(snapshot=None, results=(none,) * len(action.tool_calls))
        checked = await self.check(action.text)
        return State(
            snapshot=checked.program,
            observation=checked.feedback or f"The text is {checked.detail}.",
            reward=checked.score,
            done=checked.detail == "verified",
            answer=checked.program,
        )
