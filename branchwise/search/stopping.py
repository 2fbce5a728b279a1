"""When a search has seen enough: rules that look at the tree between two expansions."""

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Literal

from pydantic import Field

from branchwise.core.config import Config
from branchwise.core.node import Node

Look = Callable[[Node], bool]


class Rule(Config, ABC):
    """Says of a tree whether the search may stop."""

    @abstractmethod
    def begin(self) -> Look:
        """What looks at the tree during one search, after each of its expansions."""


class Pure(Rule):
    """A rule that needs no memory: a pure function of the tree, whenever it is asked."""

    @abstractmethod
    def __call__(self, root: Node) -> bool:
        """Whether the search may stop."""

    def begin(self) -> Look:
        """The rule itself."""
        return self


class AdaptiveConsistency(Pure):
    """Stop when the answer that leads the vote would win it, with this confidence.

        v1 ≥ v2 ≥ ... ≥ vm: how many finished nodes give each answer
        beta:       P(p1 > p2),            p1 ~ Beta(v1 + 1, v2 + 1),  p2 = 1 - p1
        dirichlet:  P(p1 > p2, ..., pm),   p ~ Dirichlet(v1 + 1, ..., vm + 1)

    The prior is uniform. `beta` looks at the two leaders alone and is the paper's default;
    `dirichlet` looks at all answers seen so far, and is the same where there are at most two. At a
    confidence of 0.95 four equal answers are the least that suffices. Answers count equally,
    whatever the weights of the vote that follows.

    Source: Aggarwal et al. 2023, §3; the authors' code for the prior and for `≥`.

    Args:
        confidence: C_thresh.
        posterior: over the two leaders, or over all answers.

    Example:
        >>> AdaptiveConsistency().probability([4]), AdaptiveConsistency().probability([3])
        (0.96875, 0.9375)
    """

    kind: Literal["adaptive-consistency"] = "adaptive-consistency"
    confidence: float = Field(default=0.95, gt=0.5, le=1)
    posterior: Literal["beta", "dirichlet"] = "beta"

    def __call__(self, root: Node) -> bool:
        """Whether the leader is certain enough."""
        votes = Counter(answer for answer in answers(root) if answer is not None)
        counts = [count for _, count in votes.most_common()]
        return bool(counts) and self.probability(counts) >= self.confidence

    def probability(self, counts: Sequence[int]) -> float:
        """The posterior probability that the first answer is the most probable one.

        Args:
            counts: how often each answer was given, the leader's first.
        """
        first, second = counts[0], counts[1] if len(counts) > 1 else 0
        if self.posterior == "dirichlet" and len(counts) > 2:  # noqa: PLR2004  (two: `beta`)
            return _leads(tuple(count + 1 for count in counts))
        n = first + second + 1
        return sum(math.comb(n, k) for k in range(second + 1, n + 1)) / 2**n


class Curtailment(Pure):
    """Stop when the leader of a vote over N samples would win it anyway, with this confidence.

        v1 ≥ v2: what the two leaders have;  v0: the other samples, without an answer too
        P(the leader is ahead after N - k more samples), these drawn from a Pólya urn that holds
        v1 + 1, v2 + 1 and v0 + 1 balls

    `AdaptiveConsistency` asks whether the leader is the most probable answer, which may take more
    samples than there are; this asks whether the rest of N could change the vote, so it stops
    earlier at equal confidence, and at a confidence of 1 only where no outcome can change it.

    Source: stochastic curtailment (Lan, Simon and Halperin 1982) by predictive probability
    (Spiegelhalter, Freedman and Blackburn 1986), for a vote; the uniform prior of Aggarwal et al.
    2023.

    Args:
        n: N, as in the `BestOfN` that is stopped.
        confidence: the least probability that the leader stays.

    Example:
        >>> Curtailment(n=4).probability(2, 0, 0, ties=True)
        1.0
    """

    kind: Literal["curtailment"] = "curtailment"
    n: int = Field(ge=1)
    confidence: float = Field(default=0.95, gt=0.5, le=1)

    def __call__(self, root: Node) -> bool:
        """Whether the vote is as good as over."""
        said = answers(root)
        votes = Counter(answer for answer in said if answer is not None)
        if not votes:
            return False
        (leader, first), (_, second) = [*votes.most_common(2), ("", 0)][:2]
        oldest = leader == next(iter(votes))  # it then wins every tie
        return self.probability(first, second, len(said) - first - second, ties=oldest) >= (
            self.confidence
        )

    def probability(self, first: int, second: int, rest: int, *, ties: bool) -> float:
        """The predictive probability that the leader is ahead at the end.

        Args:
            first: votes of the leader.
            second: votes of the runner-up.
            rest: all other samples.
            ties: whether the leader wins where both are equal.
        """
        more = max(self.n - first - second - rest, 0)
        return _stays(first, second + (not ties), second, rest, more)


class EarlyStopping(Pure):
    """Stop when a window of successive answers agrees (ESC).

        y_1, y_2, ... in the order in which they were asked for; a sample that was cut short, or
        that has no answer, agrees with none
        disjoint:  some (y_iw+1, ..., y_iw+w) are all equal
        sliding:   some (y_i+1, ..., y_i+w) are all equal

    The paper's windows are disjoint, and each is drawn at once: give `BestOfN` the window as its
    `batch`. The answer is the vote over all that was drawn, as in the paper; the authors' code
    takes the answer of the window.

    Source: Li et al. 2024, §2.2; w = 5 is the one of the authors' code for GSM8K.

    Args:
        window: w.
        windows: whether they overlap.

    Example:
        >>> EarlyStopping(window=3).kind
        'early-stopping'
    """

    kind: Literal["early-stopping"] = "early-stopping"
    window: int = Field(default=5, ge=1)
    windows: Literal["disjoint", "sliding"] = "disjoint"

    def __call__(self, root: Node) -> bool:
        """Whether some window agrees."""
        said, w = answers(root), self.window
        starts = range(0, len(said) - w + 1, w if self.windows == "disjoint" else 1)
        return any(said[i] is not None and len(set(said[i : i + w])) == 1 for i in starts)


class Patience(Rule):
    """Stop when the best finished node has not become better for so many expansions.

        b ← the highest score of a finished node;  stop when b was the same `looks` times in a row

    It does not begin to count before a node has finished. The tree does not say in which order its
    branches grew, so this rule remembers what it saw: it cannot be asked of a saved tree.

    Source: early stopping of training (Prechelt 1998).

    Args:
        looks: how many expansions without a gain.
        gain: how much better counts as better.

    Example:
        >>> Patience(looks=8).gain
        0.0
    """

    kind: Literal["patience"] = "patience"
    looks: int = Field(default=8, ge=1)
    gain: float = Field(default=0.0, ge=0)

    def begin(self) -> Look:
        """A new memory."""
        best, idle = -math.inf, 0

        def look(root: Node) -> bool:
            nonlocal best, idle
            now = max((node.score for node in root.walk() if node.finished), default=-math.inf)
            if now > best + self.gain or best == -math.inf:
                best, idle = now, 0
            else:
                idle += 1
            return idle >= self.looks

        return look


class Enough(Pure):
    """Stop when a finished node scores at least this.

    With a verifier that cannot be wrong (unit tests, a proof checker) it draws until the first
    success, and nothing is lost; of a learned score it makes a threshold.

    Source: rejection sampling; `enough` of `BestFirst` for any controller.

    Args:
        score: the threshold.

    Example:
        >>> Enough(score=1.0).kind
        'enough'
    """

    kind: Literal["enough"] = "enough"
    score: float = 1.0

    def __call__(self, root: Node) -> bool:
        """Whether there is such a node."""
        return any(node.finished and node.score >= self.score for node in root.walk())


def answers(root: Node) -> list[str | None]:
    """What each node that has come to its end answers, by path; None where it has no vote."""
    return [
        node.state.answer if node.finished else None
        for node in root.walk()
        if node.done and node.failure is None
    ]


_STEPS = 400


@lru_cache(maxsize=4096)
def _leads(alpha: tuple[int, ...]) -> float:
    """P(p_1 is the largest) for p ~ Dirichlet(alpha), alpha_1 being the largest.

    The p are independent gamma variables divided by their sum, which does not change their order:
    what is left is one integral over the leader's, of a function that is smooth and vanishes at
    both ends, where the trapezoid rule is at its best.
    """
    first, others = alpha[0], Counter(alpha[1:])
    end = first + 12 * math.sqrt(first) + 24  # beyond, less than 1e-10 of the leader's density
    total = 0.0
    for x in (end * i / _STEPS for i in range(1, _STEPS)):
        poisson = [math.exp(k * math.log(x) - x - math.lgamma(k + 1)) for k in range(first)]
        below = list(accumulate(poisson, initial=0.0))  # P(gamma of shape a > x) at place a
        total += poisson[-1] * math.prod((1 - below[a]) ** m for a, m in others.items())
    return total * end / _STEPS


@lru_cache(maxsize=4096)
def _stays(first: int, handicap: int, second: int, rest: int, more: int) -> float:
    """P(first + i ≥ handicap + j) where i and j of `more` draws from the urn are the leaders'."""
    kept = sum(
        math.comb(first + i, i) * math.comb(second + j, j) * math.comb(rest + others, others)
        for i in range(more + 1)
        for j in range(min(more - i, first + i - handicap) + 1)
        if (others := more - i - j) >= 0
    )
    return kept / math.comb(first + second + rest + 2 + more, more)
