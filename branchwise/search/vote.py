"""The pick behind self-consistency."""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, TypeAlias

from branchwise.core.node import Node
from branchwise.search.best import best, candidates
from branchwise.search.card import Card
from branchwise.search.pick import Pick

Weight: TypeAlias = Literal["equal", "score", "exp"]


class Vote(Pick):
    """Pick the answer that most finished leaves give; of its leaves, the one that scores highest.

        â = argmax_a Σ_i w(y_i) · 1[answer(y_i) = a]

    Leaves without an answer do not vote; of equal sums, the answer that came first wins. Answers
    are equal when their texts are: one spelling for each value is the environment's business.

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
    card: ClassVar[Card] = Card(
        structure="pick",
        signals="answers; a score for each where weighted",
        paper="Wang et al. 2023; Li et al. 2023",
        oracle="majority voting in expectation, by enumeration of all samples",
        test="search/test_votes.py::test_the_majority_of_n_has_its_exact_law",
    )
    weight: Weight = "equal"

    def __call__(self, root: Node) -> Node:
        """The chosen node."""
        voters = [leaf for leaf in candidates(root) if leaf.state.answer is not None]
        ballots: dict[str | None, list[Node]] = {}
        sums: dict[str | None, float] = {}
        for leaf, weight in zip(voters, weights(voters, self.weight), strict=True):
            answer = leaf.state.answer
            ballots.setdefault(answer, []).append(leaf)
            sums[answer] = sums.get(answer, 0.0) + weight
        if not voters:
            return best(candidates(root))
        return best(ballots[max(sums, key=sums.__getitem__)])


def weights(nodes: Sequence[Node], how: Weight) -> list[float]:
    """What each node's word counts; nothing where a score is wanted and nobody has judged it.

    Those of `exp` are scaled so that the largest is 1: nothing overflows, and the log-probabilities
    of long texts do not all vanish.
    """
    judged = [node.score for node in nodes if node.score > -math.inf]
    top = max(judged, default=0.0)
    match how:
        case "equal":
            return [1.0] * len(nodes)
        case "score":
            return [node.score if node.score > -math.inf else 0.0 for node in nodes]
        case "exp":
            return [math.exp(node.score - top) for node in nodes]
