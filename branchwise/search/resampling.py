"""Resampling: how many offspring each particle has."""

import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Literal, TypeAlias

from branchwise.core.errors import SpecError

Resampler: TypeAlias = Literal["multinomial", "residual", "stratified", "systematic"]


def offspring(
    weights: Sequence[float], n: int, draws: random.Random, resampler: Resampler = "stratified"
) -> list[int]:
    """How many of n offspring each particle has: N_i with Σ N_i = n and E[N_i] = n·W_i.

        W_i = w_i / Σ w
        N_i = the number of positions u_k with W_1 + ... + W_{i-1} ≤ u_k < W_1 + ... + W_i

        multinomial:  u_k ~ U(0, 1)
        stratified:   u_k = (k + U_k) / n,  k = 0..n-1
        systematic:   u_k = (k + U) / n, one U for all;  N_i is ⌊n·W_i⌋ or ⌈n·W_i⌉
        residual:     ⌊n·W_i⌋ for certain, the rest multinomial by what is left of n·W_i

    The sums Σ N_i f_i of stratified and residual never vary more than those of multinomial;
    systematic has the least variance of each N_i, but promises nothing for sums.

    Source: Douc, Cappé and Moulines 2005; multinomial: Gordon et al. 1993; residual: Liu and Chen
    1998; stratified: Kitagawa 1996; systematic: Carpenter et al. 1999.

    Args:
        weights: w, not negative, not all 0; they need not sum to 1.
        n: how many offspring there are in all.
        draws: where chance comes from.
        resampler: how the positions are drawn.

    Raises:
        SpecError: no weight is positive, or one is negative or not finite.

    Example:
        >>> offspring([0.5, 0.25, 0.25], 4, random.Random(0), "systematic")
        [2, 1, 1]
    """
    upto = list(accumulate(weights))
    if not weights or min(weights) < 0 or not 0 < upto[-1] < math.inf:
        raise SpecError(f"cannot resample by the weights {list(weights)}")
    match resampler:
        case "multinomial":
            positions = [draws.random() for _ in range(n)]
        case "stratified":
            positions = [(k + draws.random()) / n for k in range(n)]
        case "systematic":
            first = draws.random()
            positions = [(k + first) / n for k in range(n)]
        case "residual":
            return _residual([n * weight / upto[-1] for weight in weights], n, draws)
    last = max(i for i, weight in enumerate(weights) if weight)
    counts = [0] * len(weights)
    for position in positions:
        # A position that rounds up to the end belongs to the last particle that has a weight.
        counts[min(bisect_right(upto, position * upto[-1]), last)] += 1
    return counts


def _residual(shares: list[float], n: int, draws: random.Random) -> list[int]:
    sure = [math.floor(share) for share in shares]
    if sum(sure) == n:
        return sure
    rest = [share - whole for share, whole in zip(shares, sure, strict=True)]
    drawn = offspring(rest, n - sum(sure), draws, "multinomial")
    return [whole + more for whole, more in zip(sure, drawn, strict=True)]


def ess(weights: Sequence[float]) -> float:
    """The effective sample size (Σ w)² / Σ w²: n where all weights are equal, 1 where one is all.

    Source: Kong, Liu and Wong 1994.

    Example:
        >>> ess([1.0, 1.0, 0.0])
        2.0
    """
    return sum(weights) ** 2 / sum(weight * weight for weight in weights)


def log_mean(log_weights: Sequence[float], n: int) -> float:
    """The logarithm of the mean weight of n particles; those not listed have weight 0.

    Example:
        >>> log_mean([0.0, 0.0], 2), log_mean([], 2)
        (0.0, -inf)
    """
    if not log_weights:
        return -math.inf
    top = max(log_weights)
    return top + math.log(math.fsum(math.exp(w - top) for w in log_weights) / n)
