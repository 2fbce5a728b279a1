"""The engine on a GPU: steps of decoding and many samples of one prompt, with random weights.

    python benchmarks/gpu.py [--model 1b] [--model 8b] [--quick]

Models have the shapes of Llama 3.2 1B and Llama 3.1 8B and weights drawn here: nothing is fetched.
Steps follow a prompt of 1,024 tokens and stand against the limit of the device, measured in the
same run; 32 samples of 64 tokens after 512 stand against `generate` with a static cache as well.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from best_of_n import samples
from dashboard import Line, Setting, main
from decode import steps
from libraries import Generate
from peers import ours
from roofline import Shape
from side import Tokens, warm
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

VOCABULARY = 128_256
CONFIGS = {
    "1b": LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=131_072,
        tie_word_embeddings=True,
        eos_token_id=None,
    ),
    "8b": LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=131_072,
        eos_token_id=None,
    ),
}
ROWS = (1, 8, 32, 64, 128, 256)
PROMPT, NEW = 1024, 256
BEST_OF = (32, 512, 64)


@dataclass(frozen=True, slots=True)
class Noise:
    """Prompts of random tokens.

    Args:
        length: in tokens.
    """

    length: int

    def __call__(self, number: int) -> Tokens:
        """One of them."""
        draw = Random(number)
        return tuple(draw.randrange(VOCABULARY) for _ in range(self.length))


@contextmanager
def drawn(name: str, dtype: str) -> Iterator[Path]:
    """The folder of a model with random weights, whose answers end at their length only."""
    with tempfile.TemporaryDirectory(prefix="drawn-") as scratch:
        place = Path(scratch) / name
        model = AutoModelForCausalLM.from_config(CONFIGS[name], dtype=getattr(torch, dtype))
        model.save_pretrained(place)
        words = Tokenizer(WordLevel({f" {i}": i for i in range(VOCABULARY)}, unk_token=" 0"))  # noqa: S106  (no password)
        PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(place)
        yield place


async def lines(setting: Setting) -> AsyncIterator[Line]:
    """A line for each number of rows, and one for many samples."""
    with drawn(setting.model, setting.dtype) as place:
        shape = Shape.of(AutoConfig.from_pretrained(place), setting.dtype)
        common = (place, setting.dtype, setting.threads)
        async with ours(*common, device=setting.device, max_rows=max(ROWS)) as engine:
            for rows in ROWS[:3] if setting.quick else ROWS:
                sizes = (rows, PROMPT, 16 if setting.quick else NEW)
                yield await steps(setting, engine, shape, Noise(PROMPT), sizes)
            model = AutoModelForCausalLM.from_pretrained(place, dtype=getattr(torch, setting.dtype))
            peer = Generate(model.to(setting.device).eval(), cache_implementation="static")
            await warm(peer)
            sides = ("generate, static cache", engine, peer)
            yield await samples(setting, sides, shape, Noise(BEST_OF[1]), BEST_OF)


if __name__ == "__main__":
    if torch.cuda.is_available():
        main(__doc__ or "", lines, models=("1b",), dtypes=("bfloat16",), device="cuda")
    else:
        print("no CUDA device")
