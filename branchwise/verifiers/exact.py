"""The simplest grader: the same text."""

from collections.abc import Sequence
from typing import Literal

from branchwise.core.config import Config
from branchwise.core.errors import VerifierError
from branchwise.core.node import Node
from branchwise.core.types import Verdict


class Exact(Config):
    """1 where the answer is the target, letter for letter but for white space around it; else 0.

    A grader: in a search there is no target to compare with.

    Example:
        >>> from branchwise import Node, State, Task, run_sync
        >>> node = Node(Task("?", target="4"), State(answer="4"))
        >>> run_sync(Exact().score, [node])[0].score
        1.0
    """

    kind: Literal["exact"] = "exact"

    async def score(self, nodes: Sequence[Node]) -> Sequence[Verdict | VerifierError]:
        """One verdict for each node; an error where the task shows no target."""
        return [_compare(node) for node in nodes]


def _compare(node: Node) -> Verdict | VerifierError:
    if node.task.target is None:
        return VerifierError(
            "there is no target to compare with",
            hint="a search does not see it: use this verifier as the grader, or set oracle = true",
        )
    if node.state.answer is None:
        return Verdict(0.0, detail="no answer")
    same = node.state.answer.strip() == node.task.target.strip()
    return Verdict(float(same), detail="equal" if same else "different")
