"""Both sides: the local engine, and all who are compared with it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from libraries import continuous, generate, repeated
from material import SAMPLING
from servers import llama, vllm
from side import Asked, Open, Tokens, warm

from branchwise import HF, Backend, Request, Sampling, Step
from branchwise.core.aio import gather

BOTH: Mapping[str, Open] = {
    "generate, defaults": generate,
    "generate, cache repeated": repeated,
    "continuous batching": continuous,
}

# llama.cpp has weights of four bits and vLLM's kernels for processors are made for bfloat16.
PEERS: Mapping[str, Mapping[str, Open]] = {
    "float32": BOTH,
    "bfloat16": {**BOTH, "llama.cpp, 4 bits": llama, "vLLM": vllm},
}


class Ours:
    """The local engine, through the public backend.

    Args:
        backend: what `HF` opens.
        sampling: how tokens are drawn.
    """

    together = False
    busy = 0.0

    def __init__(self, backend: Backend, sampling: Sampling = SAMPLING) -> None:
        self._backend = backend
        self._sampling = sampling
        self._forwarded = 0
        self._seeds = 0

    async def extend(self, asked: Sequence[Asked]) -> list[list[Tokens]]:
        """One request for each context, all at once."""
        return await gather(self._samples, asked)

    async def forwarded(self) -> int:
        """What was read of prompts, and each token of a sample but its last, which none needed."""
        return self._forwarded

    async def _samples(self, asked: Asked) -> list[Tokens]:
        self._seeds += asked.n
        request = Request(
            tokens=asked.prompt,
            said=(Step("", asked.said, finish="length"),) if asked.said else (),
            seeds=tuple(range(self._seeds - asked.n, self._seeds)),
            sampling=self._sampling,
            max_tokens=asked.new,
            logprobs=False,
        )
        steps = await self._backend.complete(request)
        for step in steps:
            self._forwarded += step.usage.prompt + step.usage.completion - 1
        return [step.tokens for step in steps]


@asynccontextmanager
async def ours(
    place: Path, dtype: str, threads: int, *, sampling: Sampling = SAMPLING, **options: object
) -> AsyncIterator[Ours]:
    """Open the engine.

    Args:
        place: the model's folder.
        dtype: of weights and computation.
        threads: of the processor.
        sampling: how tokens are drawn.
        options: further fields of `HF`.
    """
    spec = HF.model_validate({"model": str(place), "dtype": dtype, "threads": threads, **options})
    async with spec.open() as backend:
        peer = Ours(backend, sampling)
        await warm(peer)
        yield peer
