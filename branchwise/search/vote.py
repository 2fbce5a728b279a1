"""The pick behind self-consistency."""

import math
from typing import Literal

from branchwise.core.config import Config
from branchwise.core.node import Node
from branchwise.search.best import best, candidates


class Vote(Config):
    """Pick the answer that most finished leaves give; of its leaves, the one that scores highest.

        â = argmax_a Σ_i w(y_i) · 1[answer(y_i) = a]

    Leaves without an answer do not vote; of equal sums, the answer that came first wins.

    Args:
        weight: w: `equal` counts (self-consistency, Wang et al. 2023), `score` adds the scores up
            (weighted voting, Li et al. 2023, DiVeRSe), `exp` adds up exp(score), which suits
            scores that are log-probabilities.

    Example:
        >>> from branchwise import Node, State, Task
        >>> root = Node(Task("?"), State())
        >>> ends = [State(answer=said, done=True) for said in "abb"]
        >>> root.adopt([Node(root.task, end, root, i) for i, end in enumerate(ends)])
        >>> Vote()(root).state.answer
        'b'
    """

    kind: Literal["vote"] = "vote"
    weight: Literal["equal", "score", "exp"] = "equal"

    def __call__(self, root: Node) -> Node:
        """The chosen node."""
        ballots: dict[str, list[Node]] = {}
        for leaf in candidates(root):
            if leaf.state.answer is not None:
                ballots.setdefault(leaf.state.answer, []).append(leaf)
        if not ballots:
            return best(candidates(root))
        return best(max(ballots.values(), key=lambda leaves: sum(map(self._weight, leaves))))

    def _weight(self, leaf: Node) -> float:
        match self.weight:
            case "equal":
                return 1.0
            case "score":
                return leaf.score
            case "exp":
                return math.exp(min(leaf.score, 700.0))  # beyond, a float overflows
