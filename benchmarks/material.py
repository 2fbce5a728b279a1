"""What every side of a comparison is given: the same weights, and the same prompts."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from transformers import AutoTokenizer
from transformers.utils import logging

from branchwise.backends.models import Dtype, folder
from branchwise.core.config import Sampling

# Bars of loading would stand between the lines of the table.
logging.disable_progress_bar()

SAMPLING = Sampling(temperature=0.8, top_p=0.95)

NAMES = ("Ada", "Ben", "Cem", "Dora", "Eli", "Fay", "Gus", "Hana")
THINGS = ("apples", "books", "coins", "drums", "eggs", "flags", "gems", "hats")


@contextmanager
def endless(name: str, dtype: str) -> Iterator[Path]:
    """The folder of a model whose answers end at their length only.

    Another token takes the place of the one that ends answers, so that all sides write exactly as
    many tokens as they are asked for, without an option that one has and another lacks.

    Args:
        name: a name of the catalogue.
        dtype: of the weights.
    """
    place = folder(name, cast("Dtype", dtype))
    tokenizer = AutoTokenizer.from_pretrained(place)
    # The last token of the vocabulary's special ones belongs to no text that a model writes here.
    end = max(tokenizer.added_tokens_decoder)
    changes: dict[str, dict[str, object]] = {
        "config.json": {"eos_token_id": end},
        "generation_config.json": {"eos_token_id": end, "pad_token_id": end},
        "tokenizer_config.json": {"eos_token": tokenizer.convert_ids_to_tokens(end)},
    }
    with tempfile.TemporaryDirectory(prefix="endless-") as scratch:
        target = Path(scratch) / name
        target.mkdir()
        for file in place.iterdir():
            if file.name in changes:
                said: dict[str, Any] = json.loads(file.read_text())
                (target / file.name).write_text(json.dumps(said | changes[file.name]))
            else:
                (target / file.name).symlink_to(file.resolve())
        yield target


class Prompts:
    """Prompts of one length, each different from its first words on.

    Args:
        place: the folder of the model whose tokenizer counts.
        length: in tokens.
    """

    def __init__(self, place: Path, length: int) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(place)
        self._length = length

    def __call__(self, number: int) -> tuple[int, ...]:
        """The tokens of one of them."""
        draw = random.Random(number)
        text = f"{number}:"
        tokens: list[int] = []
        while len(tokens) < self._length:
            few, many = draw.randint(2, 9), draw.randint(20, 99)
            text += (
                f" {draw.choice(NAMES)} has {many} {draw.choice(THINGS)} and gives {few} of them "
                f"to {draw.choice(NAMES)}, who buys {few + 3} more the next day."
            )
            tokens = self._tokenizer.encode(text)
        return tuple(tokens[: self._length])
