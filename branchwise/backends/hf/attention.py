"""Attention of a pass over the pool: what many tokens share is read once, the rest by each.

The result of a softmax over disjoint sets of keys is the sum of the results over each, weighted by
their log-sum-exps (Juravsky et al. 2024, *Hydragen*, §3.2). So a pass attends in three parts: to
its own prompts, to runs that many of its tokens share, and to whatever is left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from typing import TypeAlias

import torch
from transformers import AttentionInterface

from branchwise.backends.hf.pool import Pool, Run, split
from branchwise.backends.hf.ragged import Ranges, attend, compiled

NAME = "branchwise"
# Products of a token's head and a key from which on a call of its own pays for a run: its tiles are
# fuller, but its result must be merged. Measured; the kernel in C is as good far longer.
_SHARED = {torch.float32: 128_000, torch.bfloat16: 320_000}
_SHARED_WITHOUT_KERNEL = 20_000
_CHUNK = 16  # so many tokens in a row are a prompt, which attends to itself in one call

_Part: TypeAlias = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens of one sequence that go through the model together.

    Args:
        tokens: the tokens.
        position: of the first of them in its sequence.
        past: the slots of what stands before its segment or tail, in order.
        own: the slots of its segment or tail, in order.
        known: how many tokens of the segment or tail stand before these.
    """

    tokens: Sequence[int]
    position: int
    past: Sequence[Run]
    own: Sequence[Run]
    known: int


class Pass:
    """What the tokens of one forward pass attend to; made once, used in every layer.

    Args:
        pool: the keys and values.
        spans: the tokens, one after the other; together at least one.
    """

    def __init__(self, pool: Pool, spans: Sequence[Span]) -> None:
        self.layers = 0  # that have attended
        self._pool = pool
        self._spans = spans
        self._device = pool.keys.device
        slots: list[int] = []
        for span in spans:
            for start, length in _between(span.own, span.known, span.known + len(span.tokens)):
                slots += range(start, start + length)
        self._slots = torch.tensor(slots, device=self._device)
        # Layers of a model may differ in how far back they look.
        self._plan = cache(self._planned)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
    ) -> torch.Tensor:
        """The output of one layer's attention.

        Args:
            layer: the layer's index.
            query: of all tokens of the pass, shape (1, heads, tokens, size).
            key: shape (1, key heads, tokens, size).
            value: as `key`.
            scale: of the products.
            window: how many tokens back a token looks, itself included; 0 for all.
            softcap: bounds the scores smoothly; 0 does not.

        Returns:
            shape (1, tokens, heads, size).
        """
        keys, values, slots = self.places(layer)
        keys.index_copy_(1, slots, key[0])
        values.index_copy_(1, slots, value[0])
        rows = query[0].transpose(0, 1)
        out = self.attended(rows, keys, values, scale=scale, window=window, softcap=softcap)
        return out[None].to(query.dtype)

    def places(self, layer: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The keys and values of a layer, and the slots where those of this pass belong."""
        return self._pool.keys[layer], self._pool.values[layer], self._slots

    def attended(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        *,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
    ) -> torch.Tensor:
        """As `attend`, where keys and values are in their places already.

        Args:
            query: shape (tokens, heads, size).
            keys: of the layer, as `places` gives them.
            values: as `keys`.
            scale: of the products.
            window: how many tokens back a token looks, itself included; 0 for all.
            softcap: bounds the scores smoothly; 0 does not.

        Returns:
            float32, shape (tokens, heads, size).
        """
        self.layers += 1
        plan = self._plan(window, bool(softcap), query.shape[1])
        out = query.new_zeros(query.shape, dtype=torch.float32)
        lse = query.new_full(query.shape[:2], -torch.inf, dtype=torch.float32)
        by_head = query.transpose(0, 1)
        for rows in plan.prompts:
            own = self._slots[rows]
            part = _causal(by_head[:, rows], keys[:, own], values[:, own], scale)
            _merge(out, lse, rows, part, fresh=True)
        for rows, (start, length), fresh in plan.shared:
            read = keys[:, start : start + length], values[:, start : start + length]
            _merge(out, lse, rows, _dense(by_head[:, rows], *read, scale), fresh=fresh)
        if plan.rest is not None:
            attend(query, keys, values, plan.rest, out, lse, scale, softcap)
        return out

    def _planned(self, window: int, capped: bool, heads: int) -> _Plan:
        longest = max(span.position + len(span.tokens) for span in self._spans)
        windowed = 0 < window < longest
        # A prompt's earlier pieces are there already; it attends to the newest in one call.
        chunks = [len(s.tokens) >= _CHUNK and not windowed and not capped for s in self._spans]
        past = [
            [*s.past, *_between(s.own, 0, s.known)] if chunk else list(s.past)
            for s, chunk in zip(self._spans, chunks, strict=True)
        ]
        ends = [0, *accumulate(len(span.tokens) for span in self._spans)]
        rows = [range(*bounds) for bounds in pairwise(ends)]
        prompts = [slice(r.start, r.stop) for r, chunk in zip(rows, chunks, strict=True) if chunk]
        shared = [] if windowed or capped else self._shared(past, rows, chunks, heads)
        rest: list[list[Run]] = []
        for span, runs, chunk in zip(self._spans, past, chunks, strict=True):
            for i in range(len(span.tokens)):
                all_ = runs if chunk else [*runs, *_between(span.own, 0, span.known + i + 1)]
                rest.append(_last(all_, window) if windowed else all_)
        return _Plan(prompts, shared, Ranges.of(rest, self._device) if any(rest) else None)

    def _shared(
        self, past: list[list[Run]], rows: Sequence[range], chunks: Sequence[bool], heads: int
    ) -> list[tuple[slice | torch.Tensor, Run, bool]]:
        """The runs that are read once for many tokens; they are taken out of `past`.

        Args:
            past: of each span.
            rows: the tokens of each span.
            chunks: whether each span attends to itself in a call of its own.
            heads: of the queries.
        """
        least = _SHARED.get(self._pool.keys.dtype, 0) if compiled() else _SHARED_WITHOUT_KERNEL
        readers: dict[int, dict[int, int]] = {}  # by the start of a run: spans, and how far each
        for span, runs in enumerate(past):
            for start, length in runs:
                readers.setdefault(start, {})[span] = length
        shared: list[tuple[slice | torch.Tensor, Run, bool]] = []
        served = {token for r, chunk in zip(rows, chunks, strict=True) if chunk for token in r}
        for start, lengths in readers.items():
            # Most read a run to the same point; those who go further read on by themselves.
            length = Counter(lengths.values()).most_common(1)[0][0]
            spans = [span for span, far in lengths.items() if far >= length]
            tokens = [token for span in spans for token in rows[span]]
            if len(tokens) * length * heads < least or len(tokens) == 1:
                continue
            for span in spans:
                past[span] = [piece for run in past[span] for piece in _beyond(run, start, length)]
            shared.append((self._rows(tokens), Run(start, length), served.isdisjoint(tokens)))
            served.update(tokens)
        return shared

    def _rows(self, tokens: list[int]) -> slice | torch.Tensor:
        if tokens[-1] - tokens[0] + 1 == len(tokens):
            return slice(tokens[0], tokens[-1] + 1)
        return torch.tensor(tokens, device=self._device)


@dataclass(frozen=True, slots=True)
class _Plan:
    """The parts of a pass.

    Args:
        prompts: tokens that follow one another and attend to themselves.
        shared: tokens, the run that they attend to, and whether it is their first.
        rest: what else each token attends to; None where nothing is left.
    """

    prompts: Sequence[slice]
    shared: Sequence[tuple[slice | torch.Tensor, Run, bool]]
    rest: Ranges | None


def hook(  # noqa: PLR0917  (transformers' own signature)
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: torch.Tensor | None,
    scaling: float | None = None,
    memory: Pass | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **special: object,
) -> tuple[torch.Tensor, None]:
    """The function that transformers calls in each layer.

    Raises:
        NotImplementedError: the model needs a kind of attention that is not this.
    """
    if memory is None or special.get("s_aux") is not None:
        raise NotImplementedError("attention with hidden arguments")
    layer: int = module.layer_idx  # pyright: ignore[reportAssignmentType]  (every attention has it)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window, cap = sliding_window or 0, softcap or 0.0
    attended = memory.attend(layer, query, key, value, scale=scale, window=window, softcap=cap)
    return attended, None


AttentionInterface.register(NAME, hook)


def _dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> _Part:
    """Each of some tokens attends to the same keys; shapes (heads, tokens, size).

    The query heads of a key head become queries of it: keys are read once and never repeated.
    """
    heads, tokens, size = query.shape
    folded = query.reshape(1, len(key), -1, size)
    out, lse = _flash(folded, key[None], value[None], scale, causal=False)
    return out.reshape(heads, tokens, size), lse.reshape(heads, tokens)


def _causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> _Part:
    """Each of some tokens attends to those before it and to itself; shapes as in `_dense`."""
    heads, tokens, size = query.shape
    group = heads // len(key)
    grouped = query.reshape(len(key), group, tokens, size)
    key, value = (x[:, None].expand(-1, group, -1, -1) for x in (key, value))
    out, lse = _flash(grouped, key, value, scale, causal=True)
    return out.reshape(heads, tokens, size), lse.reshape(heads, tokens)


def _flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, *, causal: bool
) -> _Part:
    """Attention and its log-sum-exp, shapes (batch, heads, tokens, size)."""
    ops = torch.ops.aten
    if query.device.type == "cpu":
        return ops._scaled_dot_product_flash_attention_for_cpu(  # noqa: SLF001  (its log-sum-exp is what the public function drops)
            query, key, value, is_causal=causal, scale=scale
        )
    if query.device.type == "cuda" and query.dtype != torch.float32:
        out, lse, *_ = ops._scaled_dot_product_flash_attention(  # noqa: SLF001  (as above)
            query, key, value, is_causal=causal, scale=scale
        )
        return out, lse[..., : query.shape[2]]
    return plain(query, key, value, scale, causal=causal)


def plain(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, *, causal: bool
) -> _Part:
    """The same, as it is written in textbooks: for devices that have no better."""
    scores = query.float() @ key.float().mT * scale
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu_(1)
        scores = scores.masked_fill_(later, -torch.inf)
    lse = scores.logsumexp(-1)
    return ((scores - lse[..., None]).exp() @ value.float()).to(query.dtype), lse


def _merge(
    out: torch.Tensor, lse: torch.Tensor, rows: slice | torch.Tensor, part: _Part, *, fresh: bool
) -> None:
    """Add the attention to more keys to what some tokens have; `part` as `_dense` returns it."""
    more, far = part[0].transpose(0, 1), part[1].transpose(0, 1)
    if fresh:
        out[rows], lse[rows] = more, far
        return
    more = more.float()
    both = torch.logaddexp(lse[rows], far)
    kept, added = (lse[rows] - both).exp_(), (far - both).exp_()
    out[rows] = out[rows] * kept[..., None] + more * added[..., None]
    lse[rows] = both


def _between(runs: Sequence[Run], begin: int, end: int) -> list[Run]:
    """The slots of several runs from the one with this number up to that one."""
    if len(runs) == 1:  # almost always
        return [Run(runs[0].start + begin, end - begin)] if end > begin else []
    return split(split(runs, end)[0], begin)[1]


def _last(runs: Sequence[Run], tokens: int) -> list[Run]:
    """The last so many slots of several runs."""
    kept: list[Run] = []
    for start, length in reversed(runs):
        if tokens <= 0:
            break
        some = min(length, tokens)
        kept.append(Run(start + length - some, some))
        tokens -= some
    return kept[::-1]


def _beyond(run: Run, start: int, length: int) -> list[Run]:
    """A run without its first slots, where those are shared from `start` on."""
    if run.start != start:
        return [run]
    return [Run(start + length, run.length - length)] if run.length > length else []
