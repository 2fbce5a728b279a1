"""Keys and values of every token that the engine knows, in one block that it never outgrows."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers import PreTrainedConfig


class Run(NamedTuple):
    """Neighbouring slots of a pool.

    Args:
        start: the first one.
        length: how many.
    """

    start: int
    length: int


class Space:
    """Which slots are free: taken and given back in runs.

    Args:
        slots: how many there are.

    Example:
        >>> space = Space(10)
        >>> space.take(4), space.take(7)
        ([Run(start=0, length=4)], None)
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.free = slots
        self._starts = [0] if slots else []  # of free runs, in order
        self._lengths = {0: slots} if slots else {}

    def take(self, slots: int) -> list[Run] | None:
        """So many slots, in one run where there is one that long; None where too few are free."""
        if slots > self.free:
            return None
        fit = next((start for start in self._starts if self._lengths[start] >= slots), None)
        if fit is not None:
            return [self._cut(fit, slots)] if slots else []
        taken: list[Run] = []
        while slots:
            longest = max(self._starts, key=self._lengths.__getitem__)
            taken.append(self._cut(longest, min(slots, self._lengths[longest])))
            slots -= taken[-1].length
        return taken

    def give(self, runs: Iterable[Run]) -> None:
        """Take slots back; runs that touch become one."""
        for start, length in runs:
            if not length:
                continue
            self.free += length
            begin, end = start, start + length
            at = bisect_left(self._starts, start)
            if at < len(self._starts) and self._starts[at] == end:
                end += self._lengths.pop(self._starts.pop(at))
            if at and self._starts[at - 1] + self._lengths[self._starts[at - 1]] == begin:
                begin = self._starts.pop(at - 1)
            insort(self._starts, begin)
            self._lengths[begin] = end - begin

    def _cut(self, start: int, slots: int) -> Run:
        length = self._lengths.pop(start)
        at = bisect_left(self._starts, start)
        if length == slots:
            del self._starts[at]
        else:
            self._starts[at] = start + slots
            self._lengths[start + slots] = length - slots
        self.free -= slots
        return Run(start, slots)


@dataclass(frozen=True, slots=True)
class Shape:
    """What the keys and values of a model take.

    Args:
        layers: of the model.
        heads: of keys, in each layer.
        size: of a head.
        dtype: of the numbers.
    """

    layers: int
    heads: int
    size: int
    dtype: torch.dtype

    @staticmethod
    def of(config: PreTrainedConfig, dtype: torch.dtype) -> Shape:
        """Read it off a model's configuration."""
        heads: int = config.num_attention_heads
        return Shape(
            config.num_hidden_layers,
            getattr(config, "num_key_value_heads", None) or heads,
            getattr(config, "head_dim", None) or config.hidden_size // heads,
            dtype,
        )

    @property
    def token_bytes(self) -> int:
        """Bytes of one token: 2 × layers × key heads × head size × bytes of a number."""
        return 2 * self.layers * self.heads * self.size * self.dtype.itemsize


class Pool:
    """One block for keys and one for values.

    A slot holds one token in all layers. The operating system provides the memory as it is first
    written, so a large pool costs little until it is used; it never grows.

    Args:
        shape: of a token's keys and values.
        room: the most bytes to take.
        device: where the blocks lie.

    Attributes:
        keys: shape (layers, key heads, slots, size).
        values: as `keys`.
    """

    def __init__(self, shape: Shape, room: int, device: torch.device) -> None:
        sizes = (shape.layers, shape.heads, room // shape.token_bytes, shape.size)
        self.keys = torch.empty(sizes, dtype=shape.dtype, device=device)
        self.values = torch.empty(sizes, dtype=shape.dtype, device=device)

    @property
    def slots(self) -> int:
        """How many tokens it holds."""
        return self.keys.shape[2]


def split(runs: Iterable[Run], at: int) -> tuple[list[Run], list[Run]]:
    """The first so many slots of several runs, and the rest.

    Example:
        >>> split([Run(0, 4), Run(9, 2)], 5)
        ([Run(start=0, length=4), Run(start=9, length=1)], [Run(start=10, length=1)])
    """
    head: list[Run] = []
    tail: list[Run] = []
    for start, length in runs:
        first = min(length, at)
        at -= first
        if first:
            head.append(Run(start, first))
        if first < length:
            tail.append(Run(start + first, length - first))
    return head, tail
