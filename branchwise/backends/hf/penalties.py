"""Adapters that raise or lower the logits of single tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from branchwise.backends.hf.choice import Past, Rows
from branchwise.backends.hf.scores import Scores

Change = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def logit_bias(scores: Scores, rows: Rows) -> None:
    """Add to each token's logit what the request says."""
    biases = [sampling.logit_bias for sampling in rows.samplings]
    tokens = [np.fromiter(bias.keys(), np.int64) for bias in biases]
    values = [np.fromiter(bias.values(), np.float64) for bias in biases]
    _change(scores, tokens, values, torch.add)


def repetition_penalty(scores: Scores, rows: Rows) -> None:
    """Divide positive logits of what question and answer contain, multiply negative ones."""
    tokens = [np.unique(np.asarray(past.tokens, np.int64)) for past in rows.pasts]
    values = [
        np.full(len(seen), sampling.repetition_penalty)
        for seen, sampling in zip(tokens, rows.samplings, strict=True)
    ]
    _change(scores, tokens, values, lambda x, by: torch.where(x < 0, x * by, x / by))


def frequency_penalty(scores: Scores, rows: Rows) -> None:
    """Subtract from each token's logit for each time that the answer has it."""
    found = [np.unique(_answer(past), return_counts=True) for past in rows.pasts]
    values = [
        counts * sampling.frequency_penalty
        for (_, counts), sampling in zip(found, rows.samplings, strict=True)
    ]
    _change(scores, [tokens for tokens, _ in found], values, torch.sub)


def presence_penalty(scores: Scores, rows: Rows) -> None:
    """Subtract once from the logit of each token that the answer has."""
    tokens = [np.unique(_answer(past)) for past in rows.pasts]
    values = [
        np.full(len(seen), sampling.presence_penalty)
        for seen, sampling in zip(tokens, rows.samplings, strict=True)
    ]
    _change(scores, tokens, values, torch.sub)


def _answer(past: Past) -> np.ndarray:
    return np.asarray(past.tokens[past.asked :], np.int64)


def _change(
    scores: Scores, tokens: Sequence[np.ndarray], values: Sequence[np.ndarray], change: Change
) -> None:
    """Change the logits of some tokens of each row, each by its own value."""
    rows = np.repeat(np.arange(len(tokens)), [len(each) for each in tokens])
    which = np.concatenate(tokens)
    known = which < scores.logits.shape[1]
    device = scores.logits.device
    where = torch.from_numpy(rows[known]).to(device), torch.from_numpy(which[known]).to(device)
    value = torch.from_numpy(np.concatenate(values)[known]).to(scores.logits)
    logits = scores.logits.clone()
    logits[where] = change(logits[where], value)
    scores.change(logits)
