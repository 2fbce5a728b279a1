"""The samples of a run's trees, and what other choices among them would be right in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from branchwise.core.node import Node
from branchwise.runs.at_k import best_of_n_at_k, majority_at_k, pass_at_k, weighted_vote_at_k
from branchwise.runs.saved import Grown, graded
from branchwise.runs.spec import Spec
from branchwise.runs.store import Grade
from branchwise.search.vote import Weight


@dataclass(frozen=True, slots=True)
class End:
    """A sample: where a branch of a tree has ended.

    Args:
        node: the node.
        right: what its answer was graded; None where the grader had no opinion.
    """

    node: Node
    right: bool | None

    @property
    def answer(self) -> str | None:
        """Its answer; None where it has none, was cut short or failed."""
        return self.node.state.answer if self.node.finished else None


def ends(root: Node) -> list[Node]:
    """Where the branches of a tree have ended, in order: each is a sample.

    Answers, also those that were revised, leaves that were cut short, and calls that failed: who
    asks for n samples gets those, too.
    """
    return [node for node in root.walk() if node is not root and _ends(node)]


def _ends(node: Node) -> bool:
    if node.failure is not None:  # where all children failed, their parent is the end
        return node.parent is not None and not node.parent.is_leaf
    return node.finished or node.is_leaf


async def sampled(spec: Spec, trees: Sequence[Grown]) -> list[list[End]]:
    """The samples of each tree, graded; those without an answer are wrong.

    Raises:
        SpecError: the grader cannot be opened.
    """
    nodes = [ends(grown.root) for grown in trees]
    jobs = [
        (grown.result, node)
        for grown, own in zip(trees, nodes, strict=True)
        for node in own
        if node.finished
    ]
    words = iter(await graded(spec, jobs) if jobs else [])
    right: dict[Grade, bool | None] = {"right": True, "wrong": False, "ungraded": None}
    return [
        [End(node, right[next(words)[0]] if node.finished else False) for node in own]
        for own in nodes
    ]


@dataclass(frozen=True, slots=True)
class Share:
    """An expected share of right choices, of those that can be graded.

    Args:
        right: how probable a right choice is.
        graded: how probable one that can be graded is.
    """

    right: float
    graded: float


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples of one problem, as estimates at other N look at them.

    Args:
        answers: of each sample; None where it has none.
        right: whether it is right; None where that is not known.
        scores: of each.
        finished: whether it came to its end.
    """

    answers: Sequence[str | None]
    right: Sequence[bool | None]
    scores: Sequence[float]
    finished: Sequence[bool]

    @classmethod
    def of(cls, samples: Sequence[End], scores: Sequence[float] | None = None) -> Samples:
        """Of graded ends, with their own scores where no others are given."""
        return cls(
            [end.answer for end in samples],
            [end.right for end in samples],
            [end.node.score for end in samples] if scores is None else scores,
            [end.node.finished for end in samples],
        )

    def any(self, k: int) -> Share:
        """Whether one of k samples is right: what a choice that knows would come to."""
        n, c = len(self.right), sum(one is True for one in self.right)
        right = pass_at_k(n, c, k)
        unknown = pass_at_k(n, c + sum(one is None for one in self.right), k) - right
        return Share(right, 1 - unknown)

    def majority(self, k: int) -> Share:
        """Whether the answer that most of k samples give is right."""
        return self._share(lambda marks: majority_at_k(self.answers, marks, k))

    def best(self, k: int) -> Share:
        """Whether the best of k samples is right; what has not finished loses against the rest."""
        keys = list(zip(self.finished, self.scores, strict=True))
        places = {key: float(place) for place, key in enumerate(sorted(set(keys)))}
        ranks = [places[key] for key in keys]
        return self._share(lambda marks: best_of_n_at_k(ranks, marks, k))

    def weighted(self, k: int, weight: Weight) -> Share:
        """Whether the answer with the largest sum of weights among k samples is right."""
        return self._share(
            lambda marks: weighted_vote_at_k(self.answers, self.scores, marks, k, weight=weight)
        )

    def _share(self, chance: Callable[[Sequence[bool]], float]) -> Share:
        right = chance([one is True for one in self.right])
        if None not in self.right:
            return Share(right, 1.0)
        return Share(right, 1 - chance([one is None for one in self.right]))


def accuracy(shares: Sequence[Share]) -> float:
    """The share of right choices of those that can be graded; nan where none can."""
    known = math.fsum(share.graded for share in shares)
    return math.fsum(share.right for share in shares) / known if known else math.nan


def weight_of(scores: Sequence[float]) -> Weight:
    """How votes are weighted: by the scores, or by exp(score) where one is below 0.

    With weights below 0 an answer would lose by being given more often.
    """
    return "exp" if any(-math.inf < score < 0 for score in scores) else "score"
