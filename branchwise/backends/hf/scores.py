"""The scores of rows of tokens while adapters change them."""

from __future__ import annotations

import torch

# Tokens looked at before more are: truncation almost always keeps fewer than the first.
_WIDTHS = (256, 8192)
BLOCK = 512
"""Tokens whose weights are summed in single precision; their sums are added in double."""


class Scores:
    """The logits of some rows while adapters change them.

    Args:
        raw: the model's logits, shape (rows, vocabulary), finite or -inf, single or double
            precision; left as they are.

    Attributes:
        logits: as the adapters so far leave them; -inf where a token is cut.
        surprise: of each token under what mirostat was given, in bits; None without mirostat.
        mu: mirostat's state, shape (rows, 1); None without mirostat.
    """

    def __init__(self, raw: torch.Tensor) -> None:
        self.raw = raw
        self.logits = raw
        self.surprise: torch.Tensor | None = None
        self.mu: torch.Tensor | None = None
        self._weights: torch.Tensor | None = None
        self._sums: torch.Tensor | None = None
        self._shift = raw[:, :0]  # the logit whose weight is 1, once there are weights

    @property
    def weights(self) -> torch.Tensor:
        """Probabilities up to a factor. Not to be changed."""
        if self._weights is None:
            self._shift = self.largest
            self._weights = (self.logits - self._shift).exp_()
        return self._weights

    @property
    def largest(self) -> torch.Tensor:
        """The largest logit of each row, shape (rows, 1)."""
        return self.logits.amax(-1, keepdim=True)

    @property
    def sums(self) -> torch.Tensor:
        """The sum of the weights of each block of tokens, double precision."""
        if self._sums is None:
            whole = self.weights.shape[1] // BLOCK * BLOCK
            blocks = self.weights[:, :whole].unflatten(-1, (-1, BLOCK)).sum(-1)
            rest = self.weights[:, whole:].sum(-1, keepdim=True)
            self._sums = torch.cat([blocks, rest], dim=-1).double()
        return self._sums

    @property
    def mass(self) -> torch.Tensor:
        """The sum of each row's weights, shape (rows, 1), double precision."""
        return self.sums.sum(-1, keepdim=True)

    @property
    def logprobs(self) -> torch.Tensor:
        """The logarithms of the probabilities, shape (rows, vocabulary)."""
        mass = self.mass.log().to(self.logits)
        return self.logits - (self._shift + mass)

    def logprobs_of(self, tokens: torch.Tensor) -> torch.Tensor:
        """The logarithms of these tokens' probabilities, shape of `tokens`, double precision."""
        mass = self.mass.log()
        return (self.logits.gather(-1, tokens) - self._shift).double() - mass

    def change(self, logits: torch.Tensor) -> None:
        """Other logits."""
        self.logits, self._weights, self._sums = logits, None, None

    def keep(self, kept: torch.Tensor) -> None:
        """Cut all other tokens."""
        if self.logits is self.raw:
            self.logits = self.raw.masked_fill(~kept, -torch.inf)
        else:
            self.logits.masked_fill_(~kept, -torch.inf)
        if self._weights is not None:
            self._weights.mul_(kept)
            self._sums = None


def boundary(
    keys: torch.Tensor, weights: torch.Tensor, mass: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the tokens of the largest keys first have this mass together.

    Args:
        keys: what tokens are ranked by, shape (rows, vocabulary).
        weights: what they weigh, the same shape.
        mass: to be reached, shape (rows, 1), double precision.

    Returns:
        the smallest key that is needed, and how many of the tokens with this very key are, both of
        shape (rows, 1).
    """
    size = keys.shape[1]
    values = torch.empty_like(keys[:, :1])
    ties = torch.empty_like(values, dtype=torch.long)
    left = torch.arange(len(keys), device=keys.device)
    for width in (*(w for w in _WIDTHS if w < size), size):
        some = keys if len(left) == len(keys) else keys[left]
        top, order = some.sort(-1, descending=True) if width == size else some.topk(width)
        weight = (weights if some is keys else weights[left]).gather(-1, order)
        before = (weight.cumsum(-1, dtype=torch.float64) < mass[left]).sum(-1, keepdim=True)
        sure = (before < width)[:, 0] | (width == size)
        before.clamp_(max=size - 1)
        value = top.gather(-1, before.clamp(max=width - 1))
        values[left[sure]] = value[sure]
        ties[left[sure]] = (before + 1 - (top > value).sum(-1, keepdim=True))[sure]
        left = left[~sure]
        if not len(left):
            break
    return values, ties
