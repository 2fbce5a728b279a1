"""What a compiler or a prover says of an answer, as a score."""

from collections.abc import Sequence
from typing import Literal

from branchwise.core.aio import gather
from branchwise.core.errors import SandboxError, VerifierError
from branchwise.core.node import Node
from branchwise.core.types import Verdict
from branchwise.sandbox.command import Check


class Command(Check):
    r"""Runs a command on the text of each node; its messages are the feedback.

    The text is looked for in the node's answer, or in all of its text where it has no answer. The
    score is 1 where the command is content, -1 where the text is invalid or forbidden, 0 where the
    run did not end on its own; else, where `counts` tells how much is verified, Treefinement's
    value (verified - 0.1 errors - 0.04 other messages) / (verified + unverified), and 0 where not.
    A verdict's `detail` is `verified`, `failed`, `invalid`, `forbidden`, or how the run ended
    (`timeout`, `memory`, `output`, `killed`, `denied`).

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
        shown: the most characters of a feedback.

    Raises:
        pydantic.ValidationError: a pattern is no regular expression.

    Example:
        >>> from branchwise import State, Task, run_sync
        >>> from branchwise.sandbox.ran import Ran
        >>> class Unhappy:
        ...     async def run(self, files, argv, limits, **more):
        ...         return Ran("exited", 0, b"1 verified, 3 errors")
        >>> counts = r"(?P<verified>\d+) verified, (?P<errors>\d+) errors"
        >>> command = ("dafny", "verify", "{file}")
        >>> verifier = Command(
        ...     sandbox=Unhappy(), command=command, file="p.dfy", passes=" 0 errors", counts=counts
        ... )
        >>> node = Node(Task("?"), State(answer="method M() {}"))
        >>> run_sync(verifier.score, [node])[0].score
        0.25
    """

    kind: Literal["command"] = "command"

    async def score(self, nodes: Sequence[Node]) -> Sequence[Verdict | VerifierError]:
        """One verdict for each node; equal texts are checked once."""
        texts = [node.text if node.state.answer is None else node.state.answer for node in nodes]
        unique = list(dict.fromkeys(texts))
        found = dict(zip(unique, await gather(self._judged, unique), strict=True))
        return [found[text] for text in texts]

    async def _judged(self, text: str) -> Verdict | VerifierError:
        try:
            checked = await self.check(text)
        except SandboxError as error:
            return VerifierError(error.message, hint=error.hint)
        return Verdict(checked.score, feedback=checked.feedback, detail=checked.detail)
