"""What the verifiers share that run a node's program."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field, SkipValidation

from branchwise.core.code import entry_point, prelude
from branchwise.core.config import Config
from branchwise.core.errors import SandboxError, VerifierError
from branchwise.core.node import Node
from branchwise.sandbox.harness import Checked, check
from branchwise.sandbox.ran import Limits, Sandbox


class Execution(Config):
    """Runs the program that is a node's answer.

    Args:
        sandbox: where programs run.
        seconds: the most time for one test.
        limits: of one program with all its tests.
    """

    sandbox: SkipValidation[Sandbox] = Field(exclude=True, repr=False)
    seconds: float = Field(default=3.0, gt=0)
    limits: Limits = Limits()

    async def tried(
        self, node: Node, program: str, tests: Sequence[str]
    ) -> Checked | VerifierError:
        """What became of the tests; an error where the sandbox broke."""
        try:
            return await check(
                self.sandbox,
                program,
                tests,
                prelude=prelude(node.task),
                entry_point=entry_point(node.task),
                seconds=self.seconds,
                limits=self.limits,
            )
        except SandboxError as error:
            return VerifierError(error.message, hint=error.hint)
