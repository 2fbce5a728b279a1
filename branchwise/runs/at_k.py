"""What k samples would have done, estimated from n ≥ k of them without drawing again.

All functions are expectations over a random choice of k of the n samples in random order. They are
therefore unbiased: a mean over data sets of n is what k fresh samples do on average. All are exact,
but for `weighted_vote_at_k` where there are too many choices to look at each.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import combinations, groupby

from branchwise.core.errors import SpecError
from branchwise.search.vote import Weight

DRAWS = 500
"""So many choices of k samples stand for all of them where there are more: the error of a share is
then below 0.023 for one problem, and falls with the root of the number of problems."""


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that at least one of k samples is right: 1 - C(n - c, k) / C(n, k).

    Source: Chen et al. 2021, §2.1, in the form of a product, where nothing overflows.

    Args:
        n: how many samples there are.
        c: how many of them are right.
        k: how many are looked at.

    Raises:
        SpecError: not 0 ≤ c ≤ n, or not 1 ≤ k ≤ n.

    Example:
        >>> pass_at_k(4, 2, 1)
        0.5
    """
    _check(n, k)
    if not 0 <= c <= n:
        raise SpecError(f"{c} of {n} samples cannot be right")
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def coverage(problems: Iterable[tuple[int, int]], k: int) -> float:
    """The mean of `pass_at_k` over problems (Brown et al. 2024, §2).

    Args:
        problems: for each problem how many samples there are, and how many of them are right.
        k: how many samples of each are looked at.

    Raises:
        SpecError: there is no problem, or one has fewer than k samples.

    Example:
        >>> coverage([(4, 4), (4, 0)], 2)
        0.5
    """
    shares = [pass_at_k(n, c, k) for n, c in problems]
    if not shares:
        raise SpecError("a coverage needs at least one problem")
    return math.fsum(shares) / len(shares)


def best_of_n_at_k(scores: Sequence[float], correct: Sequence[bool], k: int) -> float:
    """The chance that the best of k samples is right.

        Σ over scores v:  (C(n(≤ v), k) - C(n(< v), k)) / C(n, k) · share right among those of v

    Of equal scores the first one wins; in random order each is as likely to be the first.

    Args:
        scores: one for each sample.
        correct: whether each sample is right.
        k: how many samples are looked at.

    Raises:
        SpecError: the lengths differ, or not 1 ≤ k ≤ n.

    Example:
        >>> best_of_n_at_k([0.1, 0.9, 0.5], [False, True, False], 1) == 1 / 3
        True
        >>> best_of_n_at_k([0.1, 0.9, 0.5], [False, True, False], 3)
        1.0
    """
    n = _check(len(scores), k, len(correct))
    ordered = sorted(zip(scores, correct, strict=True), key=lambda sample: sample[0])
    below, total = 0, 0.0
    for _, tied in groupby(ordered, key=lambda sample: sample[0]):
        rights = [right for _, right in tied]
        upto = below + len(rights)
        ways = math.comb(upto, k) - math.comb(below, k)
        total += ways * sum(rights) / (len(rights) * math.comb(n, k))
        below = upto
    return total


def majority_at_k(answers: Sequence[str | None], correct: Sequence[bool], k: int) -> float:
    """The chance that the answer most of k samples give is right.

    Samples without an answer do not vote. Of answers with equally many votes the one that came
    first wins; in random order each of them is as likely to be the first. Where no sample of the k
    has an answer, the majority is wrong.

    Exact, by counting choices with a polynomial for each answer: for the answer a with j votes,

        Π_{b ≠ a} (Σ_{i < j} C(n_b, i) x^i + C(n_b, j) x^j y),

    where x counts votes and y the answers that tie with a. About n · k² · log k steps.

    Args:
        answers: one for each sample.
        correct: whether each sample is right; the word on an answer is the share of its samples.
        k: how many samples are looked at.

    Raises:
        SpecError: the lengths differ, or not 1 ≤ k ≤ n.

    Example:
        >>> majority_at_k(["4", "4", "5"], [True, True, False], 3)
        1.0
    """
    n = _check(len(answers), k, len(correct))
    votes = Counter(answers)
    silent = votes.pop(None, 0)
    rights = Counter(a for a, right in zip(answers, correct, strict=True) if right)
    wins: dict[int, float] = {}  # answers with equally many samples win equally often
    total = 0.0
    for answer, own in votes.items():
        if rights[answer]:
            if own not in wins:
                others = [votes[other] for other in votes if other != answer]
                wins[own] = float(_wins(own, others, silent, k) / math.comb(n, k))
            total += wins[own] * rights[answer] / own
    return total


def _wins(own: int, others: Sequence[int], silent: int, k: int) -> Fraction:
    """In how many choices of k an answer of `own` samples wins; a tie of t counts 1 / t."""
    total = Fraction(0)
    for j in range(1, min(own, k) + 1):
        # ways[t][m]: how to choose m samples of the others, no answer above j votes, t at j.
        ways = [[math.comb(silent, m) for m in range(k - j + 1)]]
        for size in others:
            ways = _with(ways, size, j)
        for t, row in enumerate(ways):
            total += Fraction(math.comb(own, j) * row[k - j], t + 1)
    return total


def _with(ways: list[list[int]], size: int, j: int) -> list[list[int]]:
    """The same with one more answer, of `size` samples."""
    longest = len(ways[0])
    more = [[0] * longest for _ in range(len(ways) + (j < longest and j <= size))]
    for t, row in enumerate(ways):
        for m, count in enumerate(row):
            if count:
                for i in range(min(size, j, longest - 1 - m) + 1):
                    more[t + (i == j)][m + i] += count * math.comb(size, i)
    return more


def weighted_vote_at_k(
    answers: Sequence[str | None],
    scores: Sequence[float],
    correct: Sequence[bool],
    k: int,
    *,
    weight: Weight = "score",
    draws: int = DRAWS,
    seed: int = 0,
) -> float:
    """The chance that the answer with the largest sum of weights among k samples is right.

    Samples without an answer do not vote, and those with a score of -inf have no weight. Of answers
    with equal sums the one that came first wins: in random order, of those t the answer a with a
    share n_a / Σ n of their votes. Where no sample of the k has an answer, the vote is wrong.

    Exact where there are at most `draws` choices of k samples; else the mean over `draws` choices
    that the seed draws, the same ones for all scores, so that verifiers are compared by them.

    Source: weighted voting, Li et al. 2023 (DiVeRSe).

    Args:
        answers: one for each sample.
        scores: one for each sample.
        correct: whether each sample is right; the word on an answer is the share of its samples.
        k: how many samples are looked at.
        weight: what a score counts, as in `Vote`.
        draws: the most choices to look at.
        seed: of the choices.

    Raises:
        SpecError: the lengths differ, or not 1 ≤ k ≤ n.

    Example:
        >>> weighted_vote_at_k(["4", "5", "5"], [0.9, 0.2, 0.3], [True, False, False], 3)
        1.0
    """
    n = _check(len(answers), k, len(correct))
    _check(n, k, len(scores))
    votes = Counter(answers)
    rights = Counter(a for a, right in zip(answers, correct, strict=True) if right)
    share = {answer: rights[answer] / given for answer, given in votes.items()}
    own = [1.0 if weight == "equal" else score if score > -math.inf else 0.0 for score in scores]
    words: list[float] = []
    for chosen in _choices(n, k, draws, seed):
        voters = [i for i in chosen if answers[i] is not None]
        if weight == "exp":  # scaled as in `Vote`, so that something is left of it
            top = max((scores[i] for i in voters if scores[i] > -math.inf), default=0.0)
            own = [math.exp(min(score - top, 0.0)) for score in scores]
        weights: dict[str | None, list[float]] = {}
        for i in voters:
            weights.setdefault(answers[i], []).append(own[i])
        # Exactly rounded: what is equal must not depend on the order of the samples.
        sums = {answer: math.fsum(given) for answer, given in weights.items()}
        most = max(sums.values(), default=0.0)
        winners = {answer for answer, total in sums.items() if total == most}
        if len(winners) == 1:
            words.append(share[winners.pop()])
        elif winners:
            first = Counter(answers[i] for i in voters if answers[i] in winners)
            words.append(sum(share[a] * n_a for a, n_a in first.items()) / first.total())
        else:
            words.append(0.0)
    return math.fsum(words) / len(words)


@lru_cache(maxsize=32)
def _choices(n: int, k: int, draws: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """All choices of k of n where they are at most so many; else so many of them, drawn."""
    if math.comb(n, k) <= draws:
        return tuple(combinations(range(n), k))
    drawn = random.Random(seed)  # noqa: S311  (an estimate, no secret)
    return tuple(tuple(sorted(drawn.sample(range(n), k))) for _ in range(draws))


def _check(n: int, k: int, other: int | None = None) -> int:
    if other is not None and other != n:
        raise SpecError(f"{n} samples, but {other} marks of which are right")
    if not 1 <= k <= n:
        raise SpecError(f"cannot look at {k} of {n} samples")
    return n
