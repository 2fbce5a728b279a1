"""Who is compared: what transformers offers, from its defaults to its best."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import torch
from material import SAMPLING
from side import Absent, Asked, Tokens, warm
from transformers import (
    AutoModelForCausalLM,
    ContinuousBatchingConfig,
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
)


class Generate:
    """transformers' `generate` as its pages show it: each row reads its whole context.

    Several contexts are one batch with padding on the left.

    Args:
        model: with its default attention.
        options: further ones of its `GenerationConfig`.
    """

    together = True
    busy = 0.0

    def __init__(self, model: PreTrainedModel, **options: object) -> None:
        self._model = model
        self._options = options
        self._forwarded = 0

    async def extend(self, asked: Sequence[Asked]) -> list[list[Tokens]]:
        """All samples in one batch, which runs until its longest is done."""
        new = max(one.new for one in asked)
        with torch.inference_mode():
            rows = self._rows(asked, new)
        samples = iter(rows.tolist())
        return [[tuple(next(samples)[: one.new]) for _ in range(one.n)] for one in asked]

    async def forwarded(self) -> int:
        """All tokens that went through the model, those of padding too."""
        return self._forwarded

    def _rows(self, asked: Sequence[Asked], new: int) -> torch.Tensor:
        length = max(len(one.context) for one in asked)
        lacks = [length - len(one.context) for one in asked for _ in range(one.n)]
        contexts = [one.context for one in asked for _ in range(one.n)]
        padded = [(0,) * lack + context for lack, context in zip(lacks, contexts, strict=True)]
        mask = [(0,) * lack + (1,) * (length - lack) for lack in lacks]
        self._count(len(padded) * length, len(padded), new)
        return self._generate(self._tensor(padded), self._tensor(mask), new)

    def _tensor(self, numbers: Sequence[Tokens]) -> torch.Tensor:
        return torch.tensor(numbers, device=self._model.device)

    def _count(self, read: int, rows: int, new: int) -> None:
        self._forwarded += read + rows * (new - 1)

    def _generate(
        self,
        contexts: torch.Tensor,
        mask: torch.Tensor,
        new: int,
        cache: DynamicCache | None = None,
    ) -> torch.Tensor:
        rows = self._model.generate(
            contexts,
            attention_mask=mask,
            past_key_values=cache,
            generation_config=_config(self._model, new, **self._options),
        )
        return rows[:, contexts.shape[1] :]


class Repeated(Generate):
    """`generate` at its best for one context: it is read once, and its cache repeated."""

    def _rows(self, asked: Sequence[Asked], new: int) -> torch.Tensor:
        if len(asked) > 1:
            return super()._rows(asked, new)
        (one,) = asked
        context = self._tensor([one.context])
        cache = DynamicCache(config=self._model.config)
        self._model.base_model(context[:, :-1], past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(one.n)
        self._count(len(one.context) - 1 + one.n, one.n, new)
        contexts = context.expand(one.n, -1)
        return self._generate(contexts, torch.ones_like(contexts), new, cache)


@asynccontextmanager
async def generate(place: Path, dtype: str, threads: int) -> AsyncIterator[Generate]:  # noqa: ARG001  (torch's threads are set for the process)
    """Open `generate` with its defaults."""
    peer = Generate(_loaded(place, dtype))
    await warm(peer)
    yield peer


@asynccontextmanager
async def repeated(place: Path, dtype: str, threads: int) -> AsyncIterator[Repeated]:  # noqa: ARG001  (as above)
    """Open `generate` at its best."""
    peer = Repeated(_loaded(place, dtype))
    await warm(peer)
    yield peer


class Continuous:
    """transformers' continuous batching: requests join and leave, full pages of prefixes shared.

    Args:
        manager: that runs.
    """

    together = True
    busy = 0.0

    def __init__(self, manager: object) -> None:
        self._manager = manager

    async def extend(self, asked: Sequence[Asked]) -> list[list[Tokens]]:
        """One request for each context, which forks its samples when it has been read."""
        names: list[str] = []
        for one in asked:
            # What `num_return_sequences` sets; a manager takes it for all requests to come.
            self._manager.num_return_sequences = one.n
            names.append(self._manager.add_request(list(one.context), max_new_tokens=one.new))
        done: dict[str, Tokens] = {}
        while len(done) < sum(one.n for one in asked):
            result = self._manager.get_result(timeout=60)
            if result is None or result.error:
                raise Absent(f"fails: {result and result.error}")
            if result.is_finished():
                done[result.request_id] = tuple(result.generated_tokens)
        return [
            [done[name], *(done[f"{name}__child#{i}"] for i in range(one.n - 1))]
            for name, one in zip(names, asked, strict=True)
        ]

    async def forwarded(self) -> None:
        """It does not say."""


@asynccontextmanager
async def continuous(place: Path, dtype: str, threads: int) -> AsyncIterator[Continuous]:  # noqa: ARG001  (as above)
    """Open continuous batching with pages small enough to share what steps share."""
    model = _loaded(place, dtype)
    config = ContinuousBatchingConfig(page_size=32, num_blocks=1024, max_batch_tokens=1024)
    with model.continuous_batching_context_manager(
        generation_config=_config(model, 1), continuous_batching_config=config
    ) as manager:
        peer = Continuous(manager)
        await warm(peer)
        yield peer


def _loaded(place: Path, dtype: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(place, dtype=getattr(torch, dtype)).eval()


def _config(model: PreTrainedModel, new: int, **options: object) -> GenerationConfig:
    config = {
        "do_sample": True,
        "temperature": SAMPLING.temperature,
        "top_p": SAMPLING.top_p,
        "top_k": 0,
        "max_new_tokens": new,
        "min_new_tokens": new,
        "eos_token_id": model.generation_config.eos_token_id,
        "pad_token_id": model.generation_config.pad_token_id,
    }
    return GenerationConfig(**(config | options))
