"""The next token of each row: a pure function of logits, parameters and random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from branchwise.backends.hf import plain
from branchwise.backends.hf.adapters import adapt, learned
from branchwise.backends.hf.basis import solver
from branchwise.backends.hf.choice import Choice, Past, Rows
from branchwise.backends.hf.scores import BLOCK, Scores
from branchwise.core.config import Sampling
from branchwise.core.errors import SpecError

__all__ = ["Choice", "Drawn", "Past", "check", "probabilities", "sample", "top", "uniform"]

# Rows at a time: their scores stay in the processor's caches, and in blocks that malloc reuses.
_ROWS = 16
_STREAM = np.uint64(40)


@dataclass(frozen=True, slots=True)
class Drawn:
    """The tokens of some rows; each tensor has the shape (rows,).

    Args:
        tokens: their ids.
        logprobs: the logarithms of their probabilities under the model, before all adapters; NaN
            for a row whose logits are not numbers.
        proposals: the same after all adapters: of the distribution that they were drawn from.
        mus: mirostat's new states; NaN where it is off.
    """

    tokens: torch.Tensor
    logprobs: torch.Tensor
    proposals: torch.Tensor
    mus: torch.Tensor


def check(sampling: Sampling, vocabulary: int, embedding: torch.Tensor | None = None) -> None:
    """Say before anything is drawn what would not work.

    Args:
        sampling: of a request.
        vocabulary: how many tokens there are.
        embedding: the model's output matrix, where there is one.

    Raises:
        SpecError: a bias names a token that is not there, or the basis cannot be looked at.

    Example:
        >>> check(Sampling(logit_bias={7: 1.0}), vocabulary=8)
    """
    alien = next((token for token in sampling.logit_bias if token >= vocabulary), None)
    if alien is not None:
        raise SpecError(
            f"`logit_bias` names the token {alien}, and the last one is {vocabulary - 1}",
            hint="name tokens by the ids of this model's tokenizer",
        )
    if sampling.uses("basis_cutoff"):
        if embedding is None:
            raise SpecError("`basis_cutoff` needs a model with an output matrix")
        solver()


def uniform(seeds: Sequence[int], positions: Sequence[int], stream: int = 0) -> torch.Tensor:
    """Random numbers in [0, 1), one for each pair of a seed and a position, shape (pairs,).

    They are counted, not drawn from a state: the finaliser of SplitMix64 (Steele et al. 2014) over
    all numbers. So a sample does not depend on what else is in its batch.

    Args:
        seeds: non-negative, below 2**64.
        positions: where in its sequence each token stands, below 2**40.
        stream: numbers of different streams have nothing to do with each other; below 2**24.

    Example:
        >>> uniform([1, 2], [5, 5]).equal(torch.cat([uniform([1], [5]), uniform([2], [5])]))
        True
        >>> uniform([1], [5], stream=1).equal(uniform([1], [5]))
        False
    """
    places = np.array(positions, np.uint64) + (np.uint64(stream) << _STREAM)
    bits = _mixed(_mixed(np.array(seeds, np.uint64)) + places)
    # 40 bits, so that a number times a sum of weights never rounds up to the sum.
    return torch.from_numpy((bits >> np.uint64(24)).astype(np.float64) * 2.0**-40)


def _mixed(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def sample(logits: torch.Tensor, choice: Choice, numbers: torch.Tensor) -> Drawn:
    """Draw a token for each row: the first at which the summed probabilities exceed its number.

    Args:
        logits: shape (rows, vocabulary); left as they are.
        choice: how each row draws.
        numbers: a uniform random number for each row, shape (rows,), double precision.

    Returns:
        the tokens and their probabilities. A row without a finite largest logit has NaN in all of
        its log-probabilities and disturbs no other one.
    """
    places = range(len(logits))
    easy = choice.plain if plain.runs_on(logits) else []
    if easy:
        tokens, logprobs, proposals = plain.draw(logits, easy, choice.numbers(easy), numbers)
        places = [place for place in places if not choice.recipes[place].plain]
    else:
        tokens = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        logprobs, proposals = torch.full_like(numbers, torch.nan).repeat(2, 1)
    drawn = Drawn(tokens, logprobs, proposals, torch.full_like(numbers, torch.nan))
    for group in choice.alike(places):
        for rows in group.split(_ROWS):
            _draw(logits, rows, numbers, drawn)
    return drawn


def _draw(logits: torch.Tensor, rows: Rows, numbers: torch.Tensor, drawn: Drawn) -> None:
    """Draw the tokens of rows with the same adapters and put them where they belong."""
    index = rows.index
    raw, bad = _numbers(logits[index].float())
    scores = adapt(raw, rows)
    if rows.greedy:
        token = scores.logits.argmax(-1, keepdim=True)
        proposals = torch.zeros_like(token, dtype=torch.float64)
    else:
        token = _inverted(scores, numbers[index][:, None])
        proposals = scores.logprobs_of(token)
    logprobs = Scores(raw).logprobs_of(token)
    drawn.tokens[index] = token[:, 0]
    drawn.logprobs[index] = logprobs.masked_fill_(bad, torch.nan)[:, 0]
    drawn.proposals[index] = proposals.masked_fill_(bad, torch.nan)[:, 0]
    if (mus := learned(scores, rows, token)) is not None:
        drawn.mus[index] = mus.masked_fill_(bad, torch.nan)[:, 0]


def _numbers(raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows with numbers where there were none, and which these are, shape (rows, 1)."""
    bad = ~raw.amax(-1, keepdim=True).isfinite()
    return (raw.masked_fill(bad, 0) if bad.any() else raw), bad


def _inverted(scores: Scores, numbers: torch.Tensor) -> torch.Tensor:
    """Where the summed weights first exceed these shares of them all, shape (rows, 1).

    In two levels: the block, then the token in it.
    """
    weights, size = scores.weights, scores.weights.shape[1]
    block, within = _invert(scores.sums, numbers)
    # The last block is short; what it lacks is taken from nowhere with a weight of zero.
    tokens = block * BLOCK + torch.arange(BLOCK, device=block.device)
    inside = weights.gather(-1, tokens.clamp(max=size - 1)).masked_fill_(tokens >= size, 0)
    return block * BLOCK + _invert(inside, within)[0]


def _invert(weights: torch.Tensor, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which of the weights each number falls on, and where within it, as a number in [0, 1)."""
    sums = weights.double().cumsum(-1)
    reached = numbers * sums[:, -1:]
    found = torch.searchsorted(sums, reached, right=True).clamp_(max=weights.shape[1] - 1)
    weight = weights.gather(-1, found).double()
    within = (reached - sums.gather(-1, found) + weight) / weight
    return found, within.clamp_(0, 1 - 2.0**-40)


def probabilities(logits: torch.Tensor, choice: Choice) -> torch.Tensor:
    """The distributions that `sample` draws from.

    Args:
        logits: shape (rows, vocabulary).
        choice: how each row draws.

    Returns:
        shape (rows, vocabulary), double precision; NaN for a row whose logits are not numbers.
    """
    found = torch.empty(logits.shape, dtype=torch.float64, device=logits.device)
    for group in choice.alike(range(len(logits))):
        for rows in group.split(_ROWS):
            raw, bad = _numbers(logits[rows.index].double())
            scores = adapt(raw, rows)
            if rows.greedy:
                best = scores.logits.argmax(-1, keepdim=True)
                weights = torch.zeros_like(scores.logits).scatter_(-1, best, 1)
            else:
                weights = scores.weights / scores.mass
            found[rows.index] = weights.masked_fill(bad, torch.nan)
    return found


def top(
    logits: torch.Tensor, choice: Choice, k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The most probable tokens of each row under the model, the most probable one first.

    Args:
        logits: shape (rows, vocabulary).
        choice: how each row draws.
        k: how many tokens.

    Returns:
        the tokens, and the logarithms of their probabilities before and after all adapters, each
        of shape (rows, k); -inf after them for what they cut.
    """
    raw = logits.double()
    values, tokens = raw.topk(min(k, logits.shape[1]), dim=-1)
    logprobs = values - raw.logsumexp(-1, keepdim=True)
    return tokens, logprobs, probabilities(logits, choice).gather(-1, tokens).log_()
