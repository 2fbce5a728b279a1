"""The value head of a checkpoint: found by the names of its tensors, built from their shapes."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedConfig

from branchwise.core.errors import SpecError

# What reward models and those who train them call it: transformers and Qwen, TRL, OpenRLHF, others.
_HEAD = re.compile(
    r"(score|classifier|v_head|value_head|reward_head|rm_head|regression_head)\.(.+)"
)
# What stands between two layers is told by no checkpoint: in these it is ReLU.
_RELU = frozenset({"Qwen2ForProcessRewardModel", "Qwen2ForRewardModel"})


def only_judges(config: PreTrainedConfig) -> bool:
    """Whether a model is said to judge and not to speak, whatever else its weights could do."""
    names = config.architectures or ()
    return any(name.endswith("Classification") or "Reward" in name for name in names)


def load(folder: Path, config: PreTrainedConfig) -> torch.nn.Module | None:
    """The value head in a folder's safetensors; None where there is none.

    It takes states of the last layer, after the final norm. It is float32 whatever the model is:
    rewards that bfloat16 rounds alike decide nothing. No code that comes with a checkpoint is run.

    Args:
        folder: of the checkpoint.
        config: of the model.

    Raises:
        SpecError: tensors of it are missing, do not fit, or are not understood.
    """
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            names = [name for name in tensors.keys() if _HEAD.match(name)]  # noqa: SIM118  (it is no mapping)
            found |= {name: tensors.get_tensor(name) for name in names}
    if not found:
        return None
    layers: list[torch.nn.Module] = []
    width: int = config.get_text_config().hidden_size
    for prefix, biased in _layers(found, config):
        weight, bias = (found.pop(f"{prefix}.{kind}", None) for kind in ("weight", "bias"))
        if weight is None or (biased and bias is None):
            missing = "weight" if weight is None else "bias"
            raise SpecError(f"its value head lacks {prefix}.{missing}")
        shapes = [tuple(part.shape) for part in (weight, bias) if part is not None]
        if [*shapes, shapes[0][:1]][:2] != [(len(weight), width), (len(weight),)]:
            raise SpecError(f"its value head does not fit {width} numbers: {prefix} is {shapes}")
        linear = torch.nn.Linear(width, len(weight), bias=bias is not None)
        linear.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
        layers += [torch.nn.ReLU(), linear] if layers else [linear]
        width = len(weight)
    labels = config.num_labels
    if any(n.endswith("Classification") for n in config.architectures or ()) and labels != width:
        raise SpecError(f"its value head has {width} labels, its config {labels}")
    return torch.nn.Sequential(*layers)


def _layers(found: dict[str, torch.Tensor], config: PreTrainedConfig) -> list[tuple[str, bool]]:
    """The names of the layers that a head has, and whether it cannot do without a bias."""
    names = config.architectures or ()
    prefixes = {name.rpartition(".")[0] for name in found}
    kinds = {name.rpartition(".")[2] for name in found}
    heads = {name.partition(".")[0] for name in found}
    parts = {prefix.partition(".")[2] for prefix in prefixes}
    head = min(heads)
    if len(heads) == 1 and kinds <= {"weight", "bias"}:
        if parts == {""}:
            return [(head, any(name.endswith("TokenClassification") for name in names))]
        if parts == {"summary"}:
            return [(f"{head}.summary", True)]
        if parts <= {"0", "2"} and not _RELU.isdisjoint(names):
            return [(f"{head}.0", True), (f"{head}.2", True)]
    told = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in sorted(found.items()))
    raise SpecError(
        f"its value head is not understood: {told}", hint="one layer, or two of a known kind"
    )
