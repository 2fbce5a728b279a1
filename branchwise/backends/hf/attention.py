"""Attention over keys and values that the engine keeps: registered with transformers by name."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedConfig

NAME = "branchwise"
_GRAIN = 64  # the slab grows in steps of this many tokens


class Memory(Protocol):
    """What a forward pass attends to besides itself, and where its keys and values go."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
    ) -> torch.Tensor:
        """The output of one layer's attention.

        Args:
            layer: the layer's index.
            query: of all tokens of the pass, shape (1, heads, tokens, size).
            key: shape (1, key heads, tokens, size).
            value: as `key`.
            scale: of the products; None for one over the root of the size.

        Returns:
            shape (1, tokens, heads, size).
        """
        ...


class Prompts:
    """Several prompts one after the other in one pass, each causal in itself: no padding.

    Args:
        lengths: tokens of each prompt.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        ends = torch.tensor([0, *lengths]).cumsum(0).tolist()
        self._spans = [slice(*span) for span in pairwise(ends)]
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []

    def attend(  # noqa: D102  (see Memory)
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
    ) -> torch.Tensor:
        assert layer == len(self._keys)
        self._keys.append(key[0])
        self._values.append(value[0])
        outs = [
            scaled_dot_product_attention(
                query[:, :, span],
                key[:, :, span],
                value[:, :, span],
                is_causal=True,
                scale=scale,
                enable_gqa=True,
            )
            for span in self._spans
        ]
        return torch.cat(outs, dim=2).transpose(1, 2)

    def read(self, prompt: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one prompt, shape (layers, key heads, tokens, size)."""
        span = self._spans[prompt]
        return (
            torch.stack([key[:, span] for key in self._keys]),
            torch.stack([value[:, span] for value in self._values]),
        )


class Slab:
    """Keys and values of the rows that are decoded together: one preallocated block.

    Each row has as many tokens as it has; attention masks the rest. Live rows lie at the front, so
    that a step reads nothing of the others.

    Args:
        config: the model's.
        dtype: of keys and values.
        device: where they lie.
    """

    def __init__(self, config: PreTrainedConfig, dtype: torch.dtype, device: torch.device) -> None:
        heads: int = config.num_attention_heads
        self._layers: int = config.num_hidden_layers
        self._heads: int = getattr(config, "num_key_value_heads", None) or heads
        self._size: int = getattr(config, "head_dim", None) or config.hidden_size // heads
        self._dtype = dtype
        self._device = device
        self._keys = self._values = self._empty(0, 0)

    def _empty(self, rows: int, length: int) -> torch.Tensor:
        # Zeros, for a masked key counts nothing only where it is a finite number.
        shape = (self._layers, rows, self._heads, length, self._size)
        return torch.zeros(shape, dtype=self._dtype, device=self._device)

    def reserve(self, rows: int, length: int) -> None:
        """Make room for so many rows of so many tokens; what lies there stays."""
        had_rows, had_length = self._keys.shape[1], self._keys.shape[3]
        if rows <= had_rows and length <= had_length:
            return
        rows = max(rows, had_rows)
        length = max(-(-length // _GRAIN) * _GRAIN, had_length)
        keys, values = self._empty(rows, length), self._empty(rows, length)
        keys[:, :had_rows, :, :had_length] = self._keys
        values[:, :had_rows, :, :had_length] = self._values
        self._keys, self._values = keys, values

    def put(self, row: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write a prompt, shape (layers, key heads, tokens, size), at the start of a row."""
        self._keys[:, row, :, : keys.shape[2]] = keys
        self._values[:, row, :, : values.shape[2]] = values

    def get(self, row: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A copy of the first tokens of a row, as `put` takes them."""
        return (
            self._keys[:, row, :, :length].clone(),
            self._values[:, row, :, :length].clone(),
        )

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a row over another one."""
        for block in (self._keys, self._values):
            block[:, target, :, :length] = block[:, source, :, :length]

    def at(self, positions: torch.Tensor) -> Step:
        """What a step attends to whose rows write at these positions, shape (rows,)."""
        return Step(self._keys, self._values, positions)


class Step:
    """One token for each live row, at the row's own position."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor) -> None:
        rows, length = len(positions), int(positions.max()) + 1
        self._keys, self._values = keys, values
        self._rows = torch.arange(rows, device=positions.device)
        self._positions = positions
        hidden = torch.arange(length, device=positions.device) > positions[:, None]
        self._mask = torch.zeros(hidden.shape, dtype=keys.dtype, device=positions.device)
        self._mask = self._mask.masked_fill_(hidden, -torch.inf)[:, None, None, :]

    def attend(  # noqa: D102  (see Memory)
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
    ) -> torch.Tensor:
        rows, length = len(self._rows), self._mask.shape[-1]
        keys, values = self._keys[layer], self._values[layer]
        keys[self._rows, :, self._positions] = key[0, :, :rows].transpose(0, 1)
        values[self._rows, :, self._positions] = value[0, :, :rows].transpose(0, 1)
        _, heads, tokens, size = query.shape
        # The query heads that share a key head stand side by side as queries of it, so that keys
        # and values are read once and never repeated.
        folded = query[0].transpose(0, 1).reshape(tokens, keys.shape[1], -1, size)[:rows]
        out = scaled_dot_product_attention(
            folded,
            keys[:rows, :, :length],
            values[:rows, :, :length],
            attn_mask=self._mask,
            scale=scale,
        )
        attended = query.new_zeros(1, tokens, heads, size)  # rows of padding stay zero
        attended[0, :rows] = out.reshape(rows, heads, size)
        return attended


def attend(  # noqa: PLR0917  (transformers' own signature)
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: torch.Tensor | None,
    scaling: float | None = None,
    memory: Memory | None = None,
    **special: object,
) -> tuple[torch.Tensor, None]:
    """The function that transformers calls in each layer.

    Raises:
        NotImplementedError: the model needs a kind of attention that is not this.
    """
    unknown = [what for what in ("softcap", "s_aux", "sliding_window") if special.get(what)]
    if memory is None or unknown:
        raise NotImplementedError(f"attention with {unknown[0] if unknown else 'hidden arguments'}")
    layer: int = module.layer_idx  # pyright: ignore[reportAssignmentType]  (every attention has it)
    return memory.attend(layer, query, key, value, scaling), None


AttentionInterface.register(NAME, attend)
