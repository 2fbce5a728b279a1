"""Root mean square normalisation in one call, which transformers spells in seven operators."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import TYPE_CHECKING, cast

import torch

from branchwise.backends.hf.native import library

if TYPE_CHECKING:
    from collections.abc import Callable


class Norm(torch.nn.Module):
    """`w x / sqrt(mean(x^2) + eps)` over the last dimension (Zhang and Sennrich, 2019).

    Args:
        norm: the module that it stands for, which is still asked where the input has another
            dtype or device than its weight.
        eps: added to the mean.

    Attributes:
        scale: its weight.
        eps: what is added to the mean.
    """

    def __init__(self, norm: torch.nn.Module, eps: float) -> None:
        super().__init__()
        self.norm = norm
        weight = norm.weight
        assert isinstance(weight, torch.Tensor)
        self.scale, self.eps = weight.detach(), eps
        self._kernel = _kernels()[weight.dtype]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The normalised input, of its shape."""
        weight = self.scale
        size = weight.numel()
        if x.dtype != weight.dtype or x.shape[-1] != size or not x.is_cpu:
            return cast("torch.Tensor", self.norm(x))
        x = x.contiguous()
        y = torch.empty_like(x)
        rows, threads = x.numel() // size, torch.get_num_threads()
        pointers = x.data_ptr(), weight.data_ptr(), y.data_ptr()
        self._kernel(*pointers, rows, size, self.eps, threads)
        return y


def fuse(model: torch.nn.Module) -> None:
    """Replace a model's modules that are called `...RMSNorm` and compute just that.

    Args:
        model: its modules on a processor are replaced in place.
    """
    for name, part in list(model.named_modules()):
        if type(part).__name__.endswith("RMSNorm") and (norm := _fused(part)) is not None:
            model.set_submodule(name, norm)


def _fused(norm: torch.nn.Module) -> Norm | None:
    weight = getattr(norm, "weight", None)
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if not isinstance(weight, torch.Tensor) or not isinstance(eps, float):
        return None
    if not weight.is_cpu or weight.ndim != 1 or weight.dtype not in _kernels():
        return None
    fused = Norm(norm, eps)
    return fused if _agree(norm, fused, weight) else None


@torch.no_grad()
def _agree(norm: torch.nn.Module, fused: Norm, like: torch.Tensor) -> bool:
    """Whether two modules give the same, for inputs of usual size and for tiny ones.

    Names promise little: some modules multiply by `1 + w`, some round elsewhere.
    """
    rows = torch.tensor([[1e-3], [0.1], [1.0], [30.0]])
    x = torch.randn(4, like.numel(), generator=torch.Generator().manual_seed(0)) * rows
    x = x.to(like.dtype)
    # A last bit of bfloat16 may differ where the mean, summed in another order, does.
    tolerance = 1e-5 if like.dtype == torch.float32 else 2**-7
    return torch.allclose(norm(x), fused(x), rtol=tolerance, atol=1e-7)


@cache
def _kernels() -> dict[torch.dtype, Callable[..., None]]:
    kernel = library("norm")
    if kernel is None:
        return {}
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    found = {torch.float32: kernel.norm_float, torch.bfloat16: kernel.norm_bfloat16}
    for function in found.values():
        function.argtypes = [*[pointer] * 3, number, number, ctypes.c_float, number]
        function.restype = None
    return found
