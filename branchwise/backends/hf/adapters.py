"""What changes the distribution before a token is drawn, one function for each adapter.

Each works on many rows at once, each row by its own parameters, and leaves -inf where a token is
cut. None sorts a vocabulary where looking at its largest part suffices.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from branchwise.backends.hf import penalties
from branchwise.backends.hf.basis import certified
from branchwise.backends.hf.choice import Rows
from branchwise.backends.hf.scores import Scores, boundary
from branchwise.core.config import Adapter
from branchwise.core.errors import SpecError

# So many of the largest probabilities tell mirostat how steeply they fall (Basu et al. 2021, §4).
_SLOPE = 100
_COLDEST = 1e-6


def _down_to(keys: torch.Tensor, value: torch.Tensor, ties: torch.Tensor) -> torch.Tensor:
    """Which keys are larger than the value, and the first few of those that equal it."""
    equal = keys == value
    if (equal.sum(-1, keepdim=True) > ties).any():
        equal &= equal.cumsum(-1) <= ties
    return equal.logical_or_(keys > value)


def _temperature(scores: Scores, rows: Rows) -> None:
    heat = rows.column("temperature").clamp_min(_COLDEST).to(scores.logits)
    scores.change(scores.logits / heat)


def _top_k(scores: Scores, rows: Rows) -> None:
    k = rows.column("top_k").long().clamp(max=scores.logits.shape[1])
    largest = scores.logits.topk(int(k.max())).values
    scores.keep(scores.logits >= largest.gather(-1, k - 1))


def _top_p(scores: Scores, rows: Rows) -> None:
    mass = rows.column("top_p") * scores.mass
    scores.keep(_down_to(scores.logits, *boundary(scores.logits, scores.weights, mass)))


def _min_p(scores: Scores, rows: Rows) -> None:
    weights = scores.weights
    scores.keep(weights >= rows.column("min_p").to(weights) * weights.amax(-1, keepdim=True))


def _typical_p(scores: Scores, rows: Rows) -> None:
    logprobs = scores.logprobs
    keys = (logprobs + _entropy(logprobs)).abs_().neg_()
    value, _ = boundary(keys, scores.weights, rows.column("typical_p") * scores.mass)
    scores.keep(keys >= value)


def _epsilon_cutoff(scores: Scores, rows: Rows) -> None:
    _cut_off(scores, rows.column("epsilon_cutoff"))


def _eta_cutoff(scores: Scores, rows: Rows) -> None:
    epsilon = rows.column("eta_cutoff")
    spread = (-_entropy(scores.logprobs).double()).exp()
    _cut_off(scores, torch.minimum(epsilon, epsilon.sqrt() * spread))


def _cut_off(scores: Scores, least: torch.Tensor) -> None:
    """Keep probabilities of at least this, and the largest in any case."""
    weights = scores.weights
    weight = (least * scores.mass).to(weights)
    scores.keep(weights >= torch.minimum(weight, weights.amax(-1, keepdim=True)))


def _entropy(logprobs: torch.Tensor) -> torch.Tensor:
    """In nats, shape (rows, 1)."""
    return -(logprobs.exp() * logprobs).nansum(-1, keepdim=True)


def _top_n_sigma(scores: Scores, rows: Rows) -> None:
    logits = scores.logits
    there = logits > -torch.inf
    count = there.sum(-1, keepdim=True)
    known = logits.double().masked_fill(~there, 0)
    mean = known.sum(-1, keepdim=True) / count
    squares = (known - mean).square_().mul_(there).sum(-1, keepdim=True)
    sigma = (squares / (count - 1).clamp(min=1)).sqrt()
    scores.keep(logits >= scores.largest - rows.column("top_n_sigma") * sigma)


def _basis_cutoff(scores: Scores, rows: Rows) -> None:
    if rows.embedding is None:
        raise SpecError("`basis_cutoff` needs a model with an output matrix")
    kept = scores.logits >= scores.largest
    for row, sampling in enumerate(rows.samplings):
        asked = scores.logits[row] > -torch.inf
        probs = scores.raw[row].double().softmax(-1)
        size, cutoff = sampling.basis_size, sampling.basis_cutoff
        kept[row] |= certified(probs, asked, cutoff, rows.embedding, size)
    scores.keep(kept)


def _mirostat(scores: Scores, rows: Rows) -> None:
    states = zip(rows.pasts, rows.samplings, strict=True)
    mus = [2 * s.mirostat_tau if past.mu is None else past.mu for past, s in states]
    mu = torch.tensor(mus, dtype=torch.float64, device=rows.device)[:, None]
    surprise = scores.logprobs / -math.log(2)
    scores.surprise, scores.mu = surprise, mu
    kept = (surprise <= mu) | (scores.logits >= scores.largest)
    first = rows.column("mirostat") == 1
    if first.any():
        ones = torch.ones_like(scores.logits)
        few = _down_to(scores.logits, *boundary(scores.logits, ones, _steps(scores, mu)))
        kept = torch.where(first, few, kept)
    scores.keep(kept)


def _steps(scores: Scores, mu: torch.Tensor) -> torch.Tensor:
    """How many tokens mirostat 1 keeps, as Zipf's law has it (Basu et al. 2021, equation 30)."""
    size = scores.logits.shape[1]
    most = min(_SLOPE + 1, size)
    top = scores.logits.topk(most).values.double()
    ranks = torch.arange(1, most, dtype=torch.float64, device=top.device)
    ratios = ((ranks + 1) / ranks).log()
    falls = top[:, :-1] - top[:, 1:]
    there = top[:, 1:] > -torch.inf
    rising = (ratios * falls).masked_fill_(~there, 0).sum(-1, keepdim=True)
    slope = rising / (ratios.square() * there).sum(-1, keepdim=True).clamp_min(1e-12)
    slope = slope.clamp_min(1e-9)
    # As the slope goes to 1 so does ε / (1 - N^-ε) to 1 / log N.
    excess = slope - 1
    excess = torch.where(excess.abs() < 1e-9, 1e-9, excess)  # noqa: PLR2004  (as in the line before)
    logs = (excess / -torch.expm1(-excess * math.log(size))).log() + mu * math.log(2)
    return (logs / slope).clamp(0, math.log(size)).exp().round()


APPLY: dict[Adapter, Callable[[Scores, Rows], None]] = {
    "logit_bias": penalties.logit_bias,
    "repetition_penalty": penalties.repetition_penalty,
    "frequency_penalty": penalties.frequency_penalty,
    "presence_penalty": penalties.presence_penalty,
    "temperature": _temperature,
    "top_k": _top_k,
    "top_p": _top_p,
    "min_p": _min_p,
    "typical_p": _typical_p,
    "epsilon_cutoff": _epsilon_cutoff,
    "eta_cutoff": _eta_cutoff,
    "top_n_sigma": _top_n_sigma,
    "basis_cutoff": _basis_cutoff,
    "mirostat": _mirostat,
}


def adapt(raw: torch.Tensor, rows: Rows) -> Scores:
    """What the adapters of some rows leave of their logits.

    Args:
        raw: shape (rows, vocabulary).
        rows: that apply the same adapters.
    """
    scores = Scores(raw)
    for name in rows.applied:
        APPLY[name](scores, rows)
    return scores


def learned(scores: Scores, rows: Rows, tokens: torch.Tensor) -> torch.Tensor | None:
    """Mirostat's states after these tokens, shape (rows, 1); None where it is off.

    Args:
        scores: what the tokens were drawn from.
        rows: the same.
        tokens: shape (rows, 1).
    """
    if scores.surprise is None or scores.mu is None:
        return None
    error = scores.surprise.gather(-1, tokens) - rows.column("mirostat_tau")
    return scores.mu - rows.column("mirostat_eta") * error
