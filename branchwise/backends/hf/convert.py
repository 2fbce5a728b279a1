"""A GGUF file becomes a plain transformers folder, which loads in seconds."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import transformers
from transformers import modeling_gguf_pytorch_utils as gguf_reader
from transformers.utils import logging as chatter

from branchwise.backends.hf.quiet import without_bars

# Llama.cpp ends a sample at any of these; a GGUF file names only one of its model's.
_ENDS = ("<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<end_of_turn>", "</s>")


# The reader of GGUF files draws a bar that no switch turns off; this one obeys transformers' own.
gguf_reader.tqdm = chatter.tqdm  # pyright: ignore[reportPrivateImportUsage]  (so it is)


@without_bars()
def convert(file: Path, folder: Path, dtype: str) -> None:
    """Write a GGUF model as safetensors, with its tokenizer and its chat template.

    Args:
        file: the GGUF file.
        folder: where to write; it does not exist yet.
        dtype: of the weights, `bfloat16` or `float32`.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    kind: torch.dtype = getattr(torch, dtype)
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    level = chatter.get_verbosity()
    chatter.set_verbosity_error()  # it advises how to run quantised weights, which is not done here
    try:
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=kind
        )
    finally:
        chatter.set_verbosity(level)
    # The loaded model calls itself quantised and would refuse to be saved: its weights move into
    # a plain one of the same shape.
    config = copy.deepcopy(loaded.config)
    vars(config).pop("quantization_config", None)
    with torch.device("meta"):
        plain = transformers.AutoModelForCausalLM.from_config(config, dtype=kind)
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    generation = loaded.generation_config
    specials = set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab())
    ends = {tokenizer.convert_tokens_to_ids(end) for end in _ENDS if end in specials}
    generation.eos_token_id = sorted(ends | {tokenizer.eos_token_id})
    plain.generation_config = generation
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
