"""Attention alone: one step of 32 rows that share 1,024 tokens and have 64 each, in all layers.

    python benchmarks/attention.py [--model NAME] [--dtype bfloat16] [--quick]

Against torch's scaled dot-product attention with grouped heads over a cache that holds the prompt
once for each row, as transformers calls it. The engine's time includes the plan of the step, made
once for all layers. The limit reads the shared keys and values once and each row's own.

Checked first: in float32 both give the same to 1e-4.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import torch
from dashboard import Line, Setting, compare, main, repeated
from roofline import Machine, Shape
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoConfig

from branchwise.backends.hf.attention import Pass, Span
from branchwise.backends.hf.pool import Pool, Run
from branchwise.backends.hf.pool import Shape as Cell
from branchwise.backends.models import folder

CLOSE = 1e-4


class Step:
    """The tensors of one step: the same numbers for both sides.

    Args:
        shape: of the model.
        rows: how many.
        shared: tokens that all rows share.
        own: tokens that each row has, the newest included.
    """

    def __init__(self, shape: Shape, rows: int, shared: int, own: int) -> None:
        self._shape = shape
        dtype: torch.dtype = getattr(torch, shape.dtype)
        cell = Cell(shape.layers, shape.key_heads, shape.size, dtype)
        slots = shared + rows * own
        self._pool = Pool(cell, slots * cell.token_bytes, torch.device("cpu"))
        self._pool.keys.normal_()
        self._pool.values.normal_()
        self._query = torch.randn(1, shape.query_heads, rows, shape.size).to(dtype)
        tails = [Run(shared + row * own, own) for row in range(rows)]
        past = (Run(0, shared),)
        self._spans = [Span((0,), shared + own - 1, past, (tail,), own - 1) for tail in tails]
        self._last = torch.tensor([tail.start + own - 1 for tail in tails])
        index = torch.tensor(
            [[*range(shared), *range(tail.start, tail.start + own)] for tail in tails]
        )
        # A cache of their own for each row, and for each layer, as transformers has it.
        self._keys = [layer[:, index].transpose(0, 1).contiguous() for layer in self._pool.keys]
        self._values = [layer[:, index].transpose(0, 1).contiguous() for layer in self._pool.values]
        self._mask = torch.zeros(rows, 1, 1, shared + own, dtype=dtype)
        self._scale = shape.size**-0.5

    def ours(self) -> list[torch.Tensor]:
        """The engine's, shape (rows, heads, size) for each layer."""
        whole = Pass(self._pool, self._spans)
        return [
            whole.attend(
                layer,
                self._query,
                self._pool.keys[layer][None, :, self._last],
                self._pool.values[layer][None, :, self._last],
                scale=self._scale,
            )[0]
            for layer in range(self._shape.layers)
        ]

    def theirs(self) -> list[torch.Tensor]:
        """torch's, as `ours`."""
        query = self._query[0].transpose(0, 1)[:, :, None]
        return [
            scaled_dot_product_attention(
                query, keys, values, self._mask, scale=self._scale, enable_gqa=True
            )[:, :, 0]
            for keys, values in zip(self._keys, self._values, strict=True)
        ]

    def check(self) -> None:
        """Compare the two.

        Raises:
            SystemExit: they are not the same.
        """
        for a, b in zip(self.ours(), self.theirs(), strict=True):
            if not torch.allclose(a, b, atol=CLOSE):
                raise SystemExit(f"attention is off by {float((a - b).abs().max())}")


async def lines(setting: Setting) -> AsyncIterator[Line]:
    """One line."""
    rows, shared, own = (8, 256, 16) if setting.quick else (32, 1024, 64)
    config = AutoConfig.from_pretrained(folder(setting.model, "bfloat16"))
    with torch.inference_mode():
        Step(Shape.of(config, "float32"), rows, shared, own).check()
        shape = Shape.of(config, setting.dtype)
        step = Step(shape, rows, shared, own)

        def least(machine: Machine) -> float:
            return (shared + rows * own) * shape.token / machine.bandwidth

        def mean(call: Callable[[], object]) -> Callable[..., object]:
            call()
            return repeated(call, 5)

        yield await compare(
            setting,
            f"attention of {rows} rows to {shared} + {own}",
            "SDPA over a repeated cache",
            mean(step.ours),
            mean(step.theirs),
            least=least,
        )


if __name__ == "__main__":
    main(__doc__ or "", lines)
