"""Rows with no more than temperature, top-k, top-p and min-p: one kernel in C for all of it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch

from branchwise.backends.hf.native import library

_TYPES = (torch.float32, torch.bfloat16)


def runs_on(logits: torch.Tensor) -> bool:
    """Whether the kernel is there and takes these logits."""
    fits = logits.device.type == "cpu" and logits.dtype in _TYPES and logits.stride(-1) == 1
    return fits and _kernel() is not None


def draw(
    logits: torch.Tensor, places: Sequence[int], parameters: np.ndarray, numbers: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw for some of the rows.

    Args:
        logits: shape (rows, vocabulary).
        places: of the rows to draw for.
        parameters: their temperatures, top-k, top-p and min-p, shape (places, 4).
        numbers: random numbers, shape (rows,), double precision.

    Returns:
        tokens, log-probabilities before and after truncation, each of shape (rows,), and zero and
        NaN for the other rows.
    """
    kernel = _kernel()
    if kernel is None:
        raise RuntimeError("there is no compiler for the kernel")
    tokens = torch.zeros(len(logits), dtype=torch.long)
    logprobs, proposals = torch.full((2, len(logits)), torch.nan, dtype=torch.float64)
    numbers = numbers.contiguous()
    which = np.array(places, np.int64)
    kernel(
        logits.data_ptr(),
        logits.dtype == torch.bfloat16,
        logits.stride(0),
        logits.shape[1],
        len(which),
        which.ctypes.data,
        parameters.ctypes.data,
        numbers.data_ptr(),
        tokens.data_ptr(),
        logprobs.data_ptr(),
        proposals.data_ptr(),
    )
    return tokens, logprobs, proposals


@cache
def _kernel() -> Callable[..., None] | None:
    native = library("sampler")
    if native is None:
        return None
    address, number = ctypes.c_void_p, ctypes.c_long
    native.draw.argtypes = [address, ctypes.c_int, number, number, number, *[address] * 6]
    native.draw.restype = None
    return native.draw
