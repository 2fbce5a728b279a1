"""The world's own word as a grader."""

from collections.abc import Sequence
from typing import Literal

from branchwise.core.config import Config
from branchwise.core.node import Node
from branchwise.core.types import Verdict


class Reward(Config):
    """1 where the world's reward at the answer is high enough, else 0: a grader without a target.

    For games, workspaces and other worlds that know themselves what is right. A search needs no
    such verifier, for without one the rewards are the scores.

    Args:
        enough: the least reward that counts.
        total: whether the rewards of the whole path count, for worlds that pay for each step.

    Example:
        >>> from branchwise import Node, State, Task, run_sync
        >>> won = State(reward=1.0, done=True, answer="(10 - 4) * (13 - 9)")
        >>> run_sync(Reward().score, [Node(Task("4 9 10 13"), won)])[0].score
        1.0
    """

    kind: Literal["reward"] = "reward"
    enough: float = 1.0
    total: bool = False

    async def score(self, nodes: Sequence[Node]) -> Sequence[Verdict]:
        """One verdict for each node; its detail is the reward."""
        return [self._judged(node) for node in nodes]

    def _judged(self, node: Node) -> Verdict:
        paid = node.lineage if self.total else (node,)
        reward = sum(each.state.reward for each in paid)
        return Verdict(float(reward >= self.enough), detail=f"{reward:g}")
