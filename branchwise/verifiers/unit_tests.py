"""Does the program pass its tests? In the search the public ones, in grading the hidden ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from branchwise.core.aio import gather
from branchwise.core.code import public_tests, single_tests
from branchwise.core.errors import VerifierError
from branchwise.core.node import Node
from branchwise.core.types import Task, Verdict
from branchwise.verifiers.execution import Execution

TELLS = 3
"""So many tests that a program does not pass are told."""


class UnitTests(Execution):
    """The share of tests that a program passes; as a grader, whether it passes all.

    The program is the node's answer. The task's `meta` says the rest: `prelude`, code before the
    program, and `entry_point`, the name that it has to define. The tests are those of the task's
    target, or the public ones: those in `meta["tests"]`, a text or a list, or else the examples in
    the prelude and the prompt.

    A verdict's `detail` has one character for each test: `1` passed, `0` failed, `E` raised, `T`
    took too long, `X` ended its process. Its `feedback` tells what happened in the first tests that
    the program does not pass.

    Args:
        sandbox: where programs run.
        of: which tests.
        all: whether only all tests count: the score is 1 or 0. For the tests of a target it has to
            be so where this is the grader of a run, which takes more than a half for right.
        seconds: the most time for one test.
        limits: of one program with all its tests.

    Source: Chen et al. 2021 (HumanEval), §2: functional correctness; marks as CodeT (Chen et al.
    2022) and AlphaCode (Li et al. 2022) need them.

    Example:
        >>> from branchwise import Node, State, Task, run_sync
        >>> judge = UnitTests(sandbox=None)
        >>> node = Node(Task("?", target="assert f(1) == 2"), State())
        >>> run_sync(judge.score, [node])[0].detail
        'no answer'
    """

    kind: Literal["unit-tests"] = "unit-tests"
    of: Literal["target", "public"] = "target"
    all: bool = True

    async def score(self, nodes: Sequence[Node]) -> Sequence[Verdict | VerifierError]:
        """One verdict for each node; an error where the task has no tests or the sandbox broke."""
        return await gather(self._judge, nodes)

    async def _judge(self, node: Node) -> Verdict | VerifierError:
        tests = self._tests(node.task)
        if isinstance(tests, VerifierError):
            return tests
        if node.state.answer is None:
            return Verdict(0.0, detail="no answer")
        checked = await self.tried(node, node.state.answer, tests)
        if isinstance(checked, VerifierError):
            return checked
        share = checked.passed / len(tests)
        told = dict.fromkeys(outcome.told for outcome in checked.outcomes if outcome.told)
        return Verdict(
            float(share == 1) if self.all else share,
            feedback="\n".join([*told][:TELLS]),
            detail=checked.marks,
        )

    def _tests(self, task: Task) -> list[str] | VerifierError:
        if self.of == "public":
            return public_tests(task) or VerifierError(
                "the task has no public tests",
                hint="put them into the task's `meta` as `tests`, or examples into its prompt",
            )
        if task.target is None:
            return VerifierError(
                "there is no target with tests",
                hint="the target is hidden from a search: use unit-tests as the grader, "
                'set of = "public", or set oracle = true',
            )
        return single_tests(task.target) or VerifierError("the target holds no tests")
