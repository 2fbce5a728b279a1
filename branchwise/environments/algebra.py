"""Computer algebra as a tool."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SkipValidation

from branchwise.core.config import Config
from branchwise.core.errors import SandboxError
from branchwise.sandbox.ran import Limits, Sandbox


class Algebra(Config):
    """SymPy in a sandbox: `Tools(functions=[Algebra(sandbox=sandbox).sympy])`.

    SymPy evaluates what it reads as Python, so it never reads a model's words in this process. The
    sandbox needs SymPy inside: `Bubblewrap(packages=True)` where it is installed.

    Args:
        sandbox: where it runs.
        limits: the most that one expression may use.

    Example:
        >>> from branchwise.environments.tools import declared
        >>> declared(Algebra(sandbox=None).sympy).parameters["required"]
        ['expression']
    """

    sandbox: SkipValidation[Sandbox] = Field(exclude=True, repr=False)
    limits: Limits = Limits(seconds=20.0)

    async def sympy(self, expression: str) -> str:
        """Work out a SymPy expression exactly.

        Args:
            expression: such as solve(x**2 - 2, x), simplify(sin(x)**2 + cos(x)**2), diff(x^3, x),
                integrate(exp(-x), (x, 0, oo)), factor(x^2 - 1), nsolve or N(pi, 30).

        Raises:
            SandboxError: there is no SymPy in the sandbox, or the sandbox broke.
        """
        ran = await self.sandbox.run(
            {"algebra.py": _WORKER},
            ["python", "algebra.py"],
            self.limits,
            stdin=expression.encode(),
        )
        if ran.status != "exited":
            return f"Error: {_WORDS.get(ran.status, ran.status)}"
        if ran.code:
            fault = ran.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            raise SandboxError(f"SymPy does not run in the sandbox: {fault}")
        return ran.stdout.decode(errors="replace")


_WORKER = Path(__file__).with_name("algebra_worker.py").read_bytes()
_WORDS = {"timeout": "it takes too long", "memory": "it needs too much memory"}
