"""The next token of each row: a pure function of logits, parameters and random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from branchwise.core.config import Sampling

# Candidates looked at before more are: truncation almost always keeps fewer than the first.
_WIDTHS = (256, 8192)
_BLOCK = 512
# Rows at a time: their scores stay in the processor's caches, and in blocks that malloc reuses.
_ROWS = 16


@dataclass(frozen=True, slots=True)
class Choice:
    """How each row draws: tensors of shape (rows,).

    Args:
        temperature: divides the logits; 0 takes the most probable token.
        top_k: 0 keeps all.
        top_p: 1 keeps all.
        min_p: 0 keeps all.
    """

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor

    @staticmethod
    def of(samplings: Sequence[Sampling], device: torch.device) -> Choice:
        """The parameters of several requests side by side."""

        def column(values: list[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float64, device=device)

        return Choice(
            column([s.temperature for s in samplings]),
            column([s.top_k for s in samplings]).long(),
            column([s.top_p for s in samplings]),
            column([s.min_p for s in samplings]),
        )

    def rows(self, which: torch.Tensor | slice) -> Choice:
        """The parameters of some of the rows."""
        return Choice(
            self.temperature[which], self.top_k[which], self.top_p[which], self.min_p[which]
        )

    @property
    def truncates(self) -> torch.Tensor:
        """Which rows leave tokens out, shape (rows,)."""
        return (self.top_k > 0) | (self.top_p < 1) | (self.min_p > 0)


def uniform(seeds: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
    """Random numbers in [0, 1), one for each pair of a seed and a position, shape (pairs,).

    They are counted, not drawn from a state: the finaliser of SplitMix64 (Steele et al. 2014) over
    both numbers. So a sample does not depend on what else is in its batch.

    Args:
        seeds: non-negative, below 2**64.
        positions: where in its sequence each token stands.

    Example:
        >>> uniform([1, 2], [5, 5]).equal(torch.cat([uniform([1], [5]), uniform([2], [5])]))
        True
    """
    bits = _mixed(_mixed(np.array(seeds, np.uint64)) + np.array(positions, np.uint64))
    # 40 bits, so that a number times a sum of weights never rounds up to the sum.
    return torch.from_numpy((bits >> np.uint64(24)).astype(np.float64) * 2.0**-40)


def _mixed(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def sample(
    logits: torch.Tensor, choice: Choice, numbers: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a token for each row.

    Args:
        logits: shape (rows, vocabulary).
        choice: how each row draws.
        numbers: a uniform random number for each row, shape (rows,), double precision.

    Returns:
        the tokens, shape (rows,), and the logarithms of their probabilities at temperature 1
        without truncation, shape (rows,). A row whose logits are not finite has NaN there.
    """
    parts = [
        _sample(logits[rows].float(), choice.rows(rows), numbers[rows])
        for rows in (slice(i, i + _ROWS) for i in range(0, len(logits), _ROWS))
    ]
    tokens, logprobs = zip(*parts, strict=True)
    return torch.cat(tokens), torch.cat(logprobs)


def _sample(
    logits: torch.Tensor, choice: Choice, numbers: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.empty(len(logits), dtype=torch.long, device=logits.device)
    top = logits.amax(-1, keepdim=True)
    shifted = logits - top
    drawn = choice.temperature > 0
    truncated = drawn & choice.truncates
    for rows, draw in ((~drawn, _best), (drawn & ~truncated, _draw), (truncated, _draw_truncated)):
        if rows.any():
            heat = choice.temperature[rows, None].float().clamp_min(1e-6)
            scaled = shifted / heat if rows.all() else shifted[rows].div_(heat)
            tokens[rows] = draw(scaled, choice.rows(rows), numbers[rows])
    chosen = shifted.gather(-1, tokens[:, None])
    return tokens, (chosen - shifted.exp_().sum(-1, keepdim=True).log_())[:, 0]


def _best(scaled: torch.Tensor, _choice: Choice, _numbers: torch.Tensor) -> torch.Tensor:
    return scaled.argmax(-1)


def _draw(scaled: torch.Tensor, _choice: Choice, numbers: torch.Tensor) -> torch.Tensor:
    """Invert the cumulative distribution in two levels: find the block, then the token in it."""
    size = scaled.shape[1]
    whole = size - size % _BLOCK
    weights = scaled.exp_()
    blocks = weights[:, :whole].unflatten(-1, (-1, _BLOCK))
    sums = torch.cat([blocks.sum(-1), weights[:, whole:].sum(-1, keepdim=True)], dim=-1)
    block, within = _invert(sums, numbers)
    # The last block is short; what it lacks is taken from nowhere with a weight of zero.
    tokens = block[:, None] * _BLOCK + torch.arange(_BLOCK, device=block.device)
    inside = weights.gather(-1, tokens.clamp(max=size - 1)).masked_fill_(tokens >= size, 0)
    return block * _BLOCK + _invert(inside, within)[0]


def _invert(weights: torch.Tensor, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which of the weights each number falls on, and where within it, as a number in [0, 1)."""
    sums = weights.double().cumsum(-1)
    reached = (numbers * sums[:, -1])[:, None]
    found = torch.searchsorted(sums, reached, right=True).clamp_(max=weights.shape[1] - 1)
    weight = weights.gather(-1, found).double()
    within = (reached - sums.gather(-1, found) + weight) / weight
    return found[:, 0], within.clamp_(0, 1 - 2.0**-40)[:, 0]


def _draw_truncated(scaled: torch.Tensor, choice: Choice, numbers: torch.Tensor) -> torch.Tensor:
    """Draw from the most probable tokens only, looking at more of them where few do not suffice."""
    tokens = torch.empty(len(scaled), dtype=torch.long, device=scaled.device)
    left = torch.arange(len(scaled), device=scaled.device)
    mass = scaled.exp().sum(-1)
    for width in (*(w for w in _WIDTHS if w < scaled.shape[1]), scaled.shape[1]):
        values, order = _largest(scaled[left], width)
        weights, sure = truncate(values, mass[left], choice.rows(left), scaled.shape[1])
        drawn, _ = _invert(weights, numbers[left])
        drawn = order.gather(-1, drawn[:, None])[:, 0]
        tokens[left[sure]] = drawn[sure]
        left = left[~sure]
        if not len(left):
            break
    return tokens


def _largest(scaled: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest values, falling, and their tokens; of equal ones the earlier token first."""
    if width == scaled.shape[1]:
        return scaled.sort(dim=-1, descending=True, stable=True)
    # Which of equal values stands first is left open by `topk`; two stable sorts settle it.
    order = scaled.topk(width, dim=-1).indices.sort(dim=-1).values
    values, by_value = scaled.gather(-1, order).sort(dim=-1, descending=True, stable=True)
    return values, order.gather(-1, by_value)


def truncate(
    values: torch.Tensor, mass: torch.Tensor, choice: Choice, vocabulary: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights that top-k, then top-p, then min-p leave of the most probable tokens.

    Args:
        values: logits over temperature, the largest shifted to 0, falling, shape (rows, width).
        mass: the sum of the exponentials over the whole vocabulary, shape (rows,).
        choice: how each row draws.
        vocabulary: how many tokens there are in all.

    Returns:
        the weights, zero for what is left out, shape (rows, width), and whether nothing beyond
        `values` could have been kept or changes what is, shape (rows,).
    """
    width = values.shape[1]
    weights = values.double().exp()
    kth = values.gather(-1, (choice.top_k.clamp(1, width) - 1)[:, None])
    by_k = (choice.top_k == 0)[:, None] | (values >= kth)
    weights = weights * by_k
    total = torch.where(choice.top_k > 0, weights.sum(-1), mass.double())
    before = weights.cumsum(-1) - weights
    by_p = (choice.top_p >= 1)[:, None] | (before < (choice.top_p * total)[:, None])
    by_min = weights >= choice.min_p[:, None] * weights[:, :1]
    by_p[:, 0] = True
    kept = by_k & by_p & by_min
    last = values.gather(-1, kept.sum(-1, keepdim=True) - 1)
    # Ties with the last value seen may go on beyond it.
    sure = (last > values[:, -1:]) & ((choice.top_k == 0)[:, None] | (kth > values[:, -1:]))
    return weights * kept, sure[:, 0] | (width == vocabulary)
