"""Ragged attention on a GPU, as a kernel in Triton; imported only where Triton is.

Verified with Triton's interpreter against a dense softmax (bfloat16 widened before products, which
the interpreter has in float32 only), and compiled for compute capabilities 8.0 and 9.0. Run and
measured on a GPU: not yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton  # pyright: ignore[reportMissingImports]  (an option, which not every machine has)
import triton.language as tl  # pyright: ignore[reportMissingImports]  (as above)

if TYPE_CHECKING:
    from branchwise.backends.hf.ragged import Ranges

_BLOCK = 64  # keys at a time, if they are no more than so many bytes:
_BYTES = 16 * 1024
_LEAST = 16  # rows and columns that the units for products of matrices take


@triton.jit  # pyright: ignore[reportUntypedFunctionDecorator]  (as above)
def _attend(  # noqa: PLR0917  (a kernel takes pointers and sizes one by one)
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    pointers: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    query_stride: int,
    query_head_stride: int,
    key_head_stride: int,
    key_stride: int,
    value_head_stride: int,
    value_stride: int,
    out_stride: int,
    out_head_stride: int,
    lse_stride: int,
    lse_head_stride: int,
    scale: float,
    softcap: float,
    size: tl.constexpr,
    group: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    block: tl.constexpr,
    capped: tl.constexpr,
    widened: tl.constexpr,
) -> None:
    """One query, one key head: its heads are rows, padded to what products of matrices take."""
    # Pools are larger than an int32 counts.
    index = tl.program_id(0).to(tl.int64)
    key_head = tl.program_id(1).to(tl.int64)
    row = tl.arange(0, rows)
    column = tl.arange(0, columns)
    head = key_head * group + row
    live = (row < group)[:, None] & (column < size)[None, :]
    part = query + index * query_stride + head[:, None] * query_head_stride + column[None, :]
    rows_of_query = tl.load(part, mask=live, other=0.0)
    if widened:
        rows_of_query = rows_of_query.to(tl.float32)
    # The attention so far is one more key, whose score is its lse and whose value it is.
    where_lse = lse + index * lse_stride + head * lse_head_stride
    top = tl.load(where_lse, mask=row < group, other=-float("inf"))
    some = top != -float("inf")
    total = tl.where(some, 1.0, 0.0)
    where_out = out + index * out_stride + head[:, None] * out_head_stride + column[None, :]
    attended = tl.load(where_out, mask=live & some[:, None], other=0.0)
    for i in range(tl.load(pointers + index), tl.load(pointers + index + 1)):
        start = tl.load(starts + i).to(tl.int64)
        length = tl.load(lengths + i)
        for first in range(0, length, block):
            slot = first + tl.arange(0, block)
            read = (slot < length)[:, None] & (column < size)[None, :]
            slots = (start + slot)[:, None]
            where_key = keys + key_head * key_head_stride + slots * key_stride + column[None, :]
            key = tl.load(where_key, mask=read, other=0.0)
            if widened:
                key = key.to(tl.float32)
            # "ieee": single precision stays what it is.
            scores = tl.dot(rows_of_query, tl.trans(key), input_precision="ieee") * scale
            if capped:
                scores = softcap - 2 * softcap / (tl.exp(2 * scores / softcap) + 1)
            scores = tl.where((slot < length)[None, :], scores, -float("inf"))
            higher = tl.maximum(top, tl.max(scores, 1))
            base = tl.where(higher == -float("inf"), 0.0, higher)
            shrink = tl.exp(top - base)
            weights = tl.exp(scores - base[:, None])
            total = total * shrink + tl.sum(weights, 1)
            where_value = values + key_head * value_head_stride + slots * value_stride
            value = tl.load(where_value + column[None, :], mask=read, other=0.0)
            if widened:
                value = value.to(tl.float32)
            added = tl.dot(weights.to(value.dtype), value, input_precision="ieee")
            attended = attended * shrink[:, None] + added
            top = higher
    none = total == 0
    tl.store(where_out, attended / tl.where(none, 1.0, total)[:, None], mask=live)
    merged = tl.where(none, -float("inf"), top + tl.log(tl.where(none, 1.0, total)))
    tl.store(where_lse, merged, mask=row < group)


def attend(  # noqa: PLR0917  (as `ragged.attend`)
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    ranges: Ranges,
    out: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    softcap: float = 0.0,
) -> None:
    """As `branchwise.backends.hf.ragged.attend`; one program for each query and key head.

    Weights are rounded to the type of the values before they multiply them.
    """
    queries, heads, size = query.shape
    if not queries:
        return
    group = heads // len(keys)
    columns = max(_LEAST, triton.next_power_of_2(size))
    _attend[queries, len(keys)](  # pyright: ignore[reportIndexIssue]  (the decorator is unknown)
        query,
        keys,
        values,
        ranges.pointers,
        ranges.starts,
        ranges.lengths,
        out,
        lse,
        *query.stride()[:2],
        *keys.stride()[:2],
        *values.stride()[:2],
        *out.stride()[:2],
        *lse.stride(),
        scale,
        softcap,
        size=size,
        group=group,
        rows=max(_LEAST, triton.next_power_of_2(group)),
        columns=columns,
        block=max(_LEAST, min(_BLOCK, _BYTES // (columns * keys.itemsize))),
        capped=softcap > 0,
        widened=not keys.is_cuda,  # the interpreter cannot multiply matrices of bfloat16
    )
