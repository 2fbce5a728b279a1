"""Linear layers whose weights lie in memory as the processor's matrix units read them."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

_ROWS = 64  # the batch that the layout is chosen for; it is right for any


class Packed(torch.nn.Module):
    """A linear layer in oneDNN's own layout, which `torch.nn.Linear` makes anew at each call.

    Args:
        linear: the layer that it stands for.
    """

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        # No parameter: no device and no dtype but this one can use it.
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)  # noqa: SLF001  (torch's compiler calls it so; there is no public name)
        self._bias: torch.Tensor | None = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output, shape (..., features)."""
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")  # noqa: SLF001  (as above)


def pack(model: PreTrainedModel) -> None:
    """Replace the linear layers of a model where that is faster: bfloat16 on a processor."""
    fast = torch.backends.mkldnn.is_available()
    if model.dtype != torch.bfloat16 or model.device.type != "cpu" or not fast:
        return
    for name, part in list(model.named_modules()):
        if type(part) is torch.nn.Linear:
            model.set_submodule(name, Packed(part))
