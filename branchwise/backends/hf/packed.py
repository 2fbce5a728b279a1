"""Linear layers whose weights lie in memory as the processor's matrix units read them."""

from __future__ import annotations

import ctypes
import math
import sys
from collections import defaultdict
from functools import cache
from typing import TYPE_CHECKING, cast

import torch

from branchwise.backends.hf import layer, norm
from branchwise.backends.hf.native import library

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

# What `linear_supports` says, and the number of inputs that a panel's weights come in.
_KINDS = {torch.float32: (1, 1), torch.bfloat16: (2, 32)}
_WIDTH = 32  # outputs of a panel
_FRESH = 32 << 20  # bytes, above which the C library asks the system for memory each time
_KEPT = 128 << 20  # bytes, above which memory is not kept for the next output
_ROWS = 64  # the batch that oneDNN's layout is chosen for; it is right for any
_SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
_SAME_INPUT = {name: names for names in _SIBLINGS for name in names}


class _Layer(ctypes.Structure):
    _fields_ = (
        ("panels", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("round", ctypes.c_int64),
    )


class _Memory:
    """For outputs so large that the system would give fresh pages to each.

    Pages cost more to get than to fill. The last output's memory is used again when nobody holds
    it any more, or a view of it.
    """

    def __init__(self) -> None:
        self._held = bytearray()

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        numbers = math.prod(shape)
        size = numbers * dtype.itemsize
        if not _FRESH < size <= _KEPT:
            return torch.empty(shape, dtype=dtype, device="cpu")
        # A tensor's storage holds a reference; two more are the attribute and the argument.
        if len(self._held) < size or sys.getrefcount(self._held) > 2:  # noqa: PLR2004  (see above)
            self._held = bytearray(size)
        return torch.frombuffer(self._held, dtype=dtype, count=numbers).view(shape)


class Siblings:
    """Linear layers that read the same input, computed at one go: `y = x W^T + b` of each.

    The weights are read once for each call and their sums are made in float32, in an order which
    does not depend on the batch.

    Args:
        linears: on a processor, with as many inputs and one dtype that `kernel` supports.
        dtype: of the outputs; None is the dtype of the weights. bfloat16 weights may have float32.

    Attributes:
        sizes: the outputs of each.
    """

    def __init__(
        self, linears: Sequence[torch.nn.Linear], dtype: torch.dtype | None = None
    ) -> None:
        weight = linears[0].weight
        self._dtype, self._inputs = weight.dtype, weight.shape[1]
        self._kind, step = _KINDS[weight.dtype]
        self._gap = -self._inputs % step
        self.sizes = [linear.out_features for linear in linears]
        self._outputs = [(size, dtype or weight.dtype) for size in self.sizes]
        self._weights = [_panels(linear.weight.detach()) for linear in linears]
        self._biases = [_bias(linear) for linear in linears]
        self._layers = self.described(self._outputs[0][1])
        kernel = _library()
        assert kernel is not None
        self._linear = kernel.linear
        self._memory = _Memory()
        self._places = ctypes.c_void_p * len(linears)
        self._waiting: tuple[torch.Tensor | None, dict[int, torch.Tensor]] = (None, {})

    def described(self, dtype: torch.dtype) -> ctypes.Array[_Layer]:
        """The layers as the kernel wants them, with outputs of a dtype."""
        inputs, rounded = self._inputs + self._gap, dtype == torch.bfloat16
        pairs = zip(self._weights, self._biases, self.sizes, strict=True)
        layers = [_Layer(w.data_ptr(), b.data_ptr(), inputs, n, rounded) for w, b, n in pairs]
        return (_Layer * len(layers))(*layers)

    def output(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """What one of the layers gives for an input; the others' outputs wait for their turn.

        Args:
            index: of the layer.
            x: shape (..., inputs). It is known by identity: nobody may write to it between the
                calls of two siblings.
        """
        of, outputs = self._waiting
        if of is not x or index not in outputs:
            outputs = dict(enumerate(self._compute(x)))
        y = outputs.pop(index)
        self._waiting = (x, outputs) if outputs else (None, {})
        return y

    def _compute(self, x: torch.Tensor) -> list[torch.Tensor]:
        if x.dtype != self._dtype or x.shape[-1] != self._inputs or not x.is_cpu:
            expected = f"{self._dtype} of shape (..., {self._inputs}) on a processor"
            message = f"expected {expected}, not {x.dtype} of shape {tuple(x.shape)} on {x.device}"
            raise ValueError(message)
        shape = x.shape[:-1]
        x = torch.nn.functional.pad(x, (0, self._gap)) if self._gap else x.contiguous()
        ys = [self._memory.empty((*shape, size), dtype) for size, dtype in self._outputs]
        places = self._places(*[y.data_ptr() for y in ys])
        rows, threads = shape.numel(), torch.get_num_threads()
        self._linear(self._layers, len(ys), self._kind, x.data_ptr(), places, rows, threads)
        return ys


class Packed(torch.nn.Module):
    """One of some linear layers that are computed together.

    Args:
        siblings: all of them.
        index: which of them this one is.

    Attributes:
        siblings: all of them.
    """

    def __init__(self, siblings: Siblings, index: int) -> None:
        super().__init__()
        # No parameter: no device and no dtype but this one can use it.
        self.siblings, self._index = siblings, index

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output, shape (..., outputs)."""
        return self.siblings.output(self._index, x)


class Reordered(torch.nn.Module):
    """A linear layer in oneDNN's own layout, which `torch.nn.Linear` makes anew at each call.

    Args:
        linear: the layer that it stands for.
    """

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)  # noqa: SLF001  (torch's compiler calls it so; there is no public name)
        self._bias: torch.Tensor | None = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output, shape (..., features)."""
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")  # noqa: SLF001  (as above)


def supported(dtype: torch.dtype) -> bool:
    """Whether there is a kernel in C for weights of a dtype on this machine."""
    kernel, kind = _library(), _KINDS.get(dtype)
    return kernel is not None and kind is not None and bool(kernel.linear_supports() & kind[0])


def pack(model: PreTrainedModel) -> None:
    """Replace a model's linear layers on a processor by ones that are faster for small batches.

    The new layers hold the only copy of their weights, but for an output embedding that is tied to
    the input's: its table stays, for looking up, beside the packed copy (28 million weights in
    SmolLM2-135M, 136 million in Qwen2.5-0.5B). The output embedding gives float32 where it is
    packed by a kernel in C. Norms and decoder layers are fused, too. Nothing here keeps gradients.

    Args:
        model: its layers of float32 and bfloat16 are replaced in place, where that is faster.
    """
    head = model.get_output_embeddings()
    onednn = torch.backends.mkldnn.is_available()
    for names in _together(model):
        linears = [cast("torch.nn.Linear", model.get_submodule(name)) for name in names]
        dtype = linears[0].weight.dtype
        if supported(dtype):
            siblings = Siblings(linears, torch.float32 if head in linears else None)
            for index, name in enumerate(names):
                model.set_submodule(name, Packed(siblings, index))
        elif dtype == torch.bfloat16 and onednn:
            for name, linear in zip(names, linears, strict=True):
                model.set_submodule(name, Reordered(linear))
    norm.fuse(model)
    layer.fuse(model)


def _together(model: torch.nn.Module) -> list[list[str]]:
    """The names of a model's linear layers on a processor, siblings together."""
    groups: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for name, part in model.named_modules():
        if type(part) is torch.nn.Linear and part.weight.is_cpu:
            parent, _, own = name.rpartition(".")
            kind = (part.in_features, part.weight.dtype)
            groups[parent, _SAME_INPUT.get(own, own), kind].append(name)
    return list(groups.values())


def _panels(weight: torch.Tensor) -> torch.Tensor:
    """Weights, shape (outputs, inputs), as `native/linear.c` describes."""
    step = _KINDS[weight.dtype][1]
    outputs, inputs = weight.shape
    weight = torch.nn.functional.pad(weight, (0, -inputs % step, 0, -outputs % _WIDTH))
    panels, inputs = weight.shape[0] // _WIDTH, weight.shape[1]
    if weight.dtype == torch.float32:
        return weight.view(panels, _WIDTH, inputs).transpose(1, 2).contiguous()
    return weight.view(panels, 2, 16, inputs // step, 16, 2).permute(0, 3, 1, 4, 2, 5).contiguous()


def _bias(linear: torch.nn.Linear) -> torch.Tensor:
    bias = torch.zeros(linear.out_features + -linear.out_features % _WIDTH)
    if linear.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]  (torch's annotation leaves None out)
        bias[: linear.out_features] = linear.bias.detach()
    return bias


@cache
def _library() -> ctypes.CDLL | None:
    kernel = library("linear")
    if kernel is not None:
        number, pointer = ctypes.c_int64, ctypes.c_void_p
        kernel.linear.argtypes = [pointer, number, number, pointer, pointer, number, number]
        kernel.linear.restype = None
    return kernel
