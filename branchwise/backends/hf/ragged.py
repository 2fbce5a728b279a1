"""Attention of queries that each read their own ranges of one pool of keys and values.

Siblings of a tree share the ranges of their ancestors. No range is copied, padded or masked: what a
query does not list it does not read. Three implementations give the same: a kernel in C, one in
Triton for a GPU, and torch's own operators for everything else.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain

import numpy as np
import torch

from branchwise.backends.hf import native

_CALL = struct.Struct("8Q15q2d")  # as `Call` in ragged.c
_IN_C = (torch.float32, torch.bfloat16)
_GATHERED = 64 * 2**20  # elements of keys that torch's operators copy at a time


@dataclass(frozen=True)  # without slots: a cached property needs the instance's dict
class Ranges:
    """What each query attends to: query `i` reads the ranges `pointers[i] : pointers[i + 1]`.

    A slot that a query lists twice counts twice. Queries that share ranges are fastest side by
    side, with what they share at the same place of their lists: ancestors first.

    Args:
        pointers: int32, shape (queries + 1,).
        starts: int32, shape (ranges,): the first slot of each.
        lengths: int32, shape (ranges,): slots of each; 0 is allowed.

    >>> Ranges.of([[(0, 5), (8, 2)], []], torch.device("cpu")).pointers.tolist()
    [0, 2, 2]
    """

    pointers: torch.Tensor
    starts: torch.Tensor
    lengths: torch.Tensor

    @staticmethod
    def of(ranges: Sequence[Sequence[tuple[int, int]]], device: torch.device) -> Ranges:
        """From the (start, length) pairs of each query; one transfer to the device."""
        queries = len(ranges)
        flat = list(chain.from_iterable(chain.from_iterable(ranges)))
        count = len(flat) // 2
        packed = np.zeros(queries + 1 + 2 * count, np.int32)
        np.cumsum([len(pairs) for pairs in ranges], out=packed[1 : queries + 1])
        packed[queries + 1 :].reshape(2, count)[:] = np.array(flat, np.int32).reshape(count, 2).T
        pointers, starts, lengths = (
            torch.from_numpy(packed).to(device).split_with_sizes([queries + 1, count, count])
        )
        return Ranges(pointers, starts, lengths)

    @cached_property
    def padded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The slots of each query and whether it is none of them, shape (queries, most slots)."""
        lengths = self.lengths.long()
        ends = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
        bounds = ends[self.pointers.long()]
        sizes = bounds.diff()
        most = int(sizes.max()) if len(sizes) else 0
        # The i-th slot of all ranges laid one after the other is start + (i - end of those before).
        slots = torch.arange(int(ends[-1]), device=lengths.device)
        slots += (self.starts - ends[:-1]).repeat_interleave(lengths)
        hidden = torch.arange(most, device=lengths.device) >= sizes[:, None]
        index = slots.new_zeros(hidden.shape).masked_scatter_(~hidden, slots)
        return index, hidden


def attend(  # noqa: PLR0917  (all of them are needed, in each layer)
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    ranges: Ranges,
    out: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    softcap: float = 0.0,
) -> None:
    """Attend to the ranges and merge with what was attended to elsewhere, in place.

    `out` and `lse` become those of one softmax over all keys, these and the earlier ones. A query
    with no keys at all gets zeros and an lse of -inf.

    Args:
        query: of the model's dtype, shape (queries, heads, size).
        keys: a layer's pool, shape (key heads, slots, size); the last dimension is contiguous.
        values: as `keys`.
        ranges: which slots each query reads.
        out: float32, shape (queries, heads, size): the attention so far.
        lse: float32, shape (queries, heads): log of its sum of exponentials; -inf for none.
        scale: of the products.
        softcap: products `s` become `softcap * tanh(s / softcap)`; 0 for none.
    """
    if keys.is_cuda and (kernel := _in_triton()):
        kernel(query, keys, values, ranges, out, lse, scale, softcap)
    elif not attend_in_c(query, keys, values, ranges, out, lse, scale, softcap):
        attend_gathered(query, keys, values, ranges, out, lse, scale, softcap)


@cache
def _in_triton() -> Callable[..., None] | None:
    """The kernel in Triton, where that is installed."""
    try:
        from branchwise.backends.hf import ragged_triton  # noqa: PLC0415  (an option)
    except ImportError:
        return None
    return ragged_triton.attend


def compiled() -> bool:
    """Whether the kernel in C is there."""
    return native.library("ragged") is not None


def attend_in_c(  # noqa: PLR0917  (as `attend`)
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    ranges: Ranges,
    out: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    softcap: float = 0.0,
) -> bool:
    """`attend` with the kernel in C; False, and nothing done, where it cannot be used."""
    library = native.library("ragged")
    dtype = keys.dtype
    if library is None or keys.device.type != "cpu" or dtype not in _IN_C or query.dtype != dtype:
        return False
    return bool(
        library.attend(
            _CALL.pack(
                query.data_ptr(),
                keys.data_ptr(),
                values.data_ptr(),
                ranges.pointers.data_ptr(),
                ranges.starts.data_ptr(),
                ranges.lengths.data_ptr(),
                out.data_ptr(),
                lse.data_ptr(),
                *query.shape[:2],
                keys.shape[0],
                query.shape[2],
                dtype == torch.bfloat16,
                *query.stride()[:2],
                *keys.stride()[:2],
                *values.stride()[:2],
                *out.stride()[:2],
                *lse.stride(),
                scale,
                softcap,
            )
        )
    )


def attend_gathered(  # noqa: PLR0917  (as `attend`)
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    ranges: Ranges,
    out: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    softcap: float = 0.0,
) -> None:
    """`attend` with torch's operators, on any device: some queries' slots are copied at a time."""
    index, hidden = ranges.padded
    queries, heads, size = query.shape
    key_heads = keys.shape[0]
    if not index.numel():
        out.masked_fill_(lse.isneginf()[..., None], 0)
        return
    grouped = query.float().view(queries, key_heads, heads // key_heads, size)
    rows = max(1, _GATHERED // (index.shape[1] * key_heads * size))
    for first in range(0, queries, rows):
        some = slice(first, first + rows)
        key = keys[:, index[some]].float()
        value = values[:, index[some]].float()
        scores = torch.einsum("qhgd,hqtd->qhgt", grouped[some], key) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        # A slot of padding holds anything, so that both its score and its value are replaced.
        scores.masked_fill_(hidden[some, None, None], -torch.inf)
        value.masked_fill_(hidden[None, some, :, None], 0)
        # The attention so far is one more key, of this score and with this value.
        before = lse[some].view(-1, key_heads, heads // key_heads, 1)
        total = torch.cat([before, scores], dim=-1).logsumexp(-1, keepdim=True)
        base = total.masked_fill(total.isneginf(), 0)
        attended = torch.einsum("qhgt,hqtd->qhgd", (scores - base).exp(), value)
        earlier = out[some].view(attended.shape).masked_fill(before.isneginf(), 0)
        attended += (before - base).exp() * earlier
        out[some] = attended.view(-1, heads, size)
        lse[some] = total.view(-1, heads)
