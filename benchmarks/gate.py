"""Before anything is timed: in float32 the engine's greedy tokens are those of `generate`."""

from __future__ import annotations

import torch
from material import Prompts, endless
from transformers import AutoModelForCausalLM

from branchwise import HF, Request, Sampling
from branchwise.core.aio import gather

LENGTHS = (7, 40, 130)
NEW = 24


async def gate(name: str, **options: object) -> None:
    """Compare the engine with `generate` on prompts of different lengths, decoded together.

    Args:
        name: of the model, in the catalogue.
        options: further fields of `HF`.

    Raises:
        SystemExit: they differ.
    """
    with endless(name, "float32") as place:
        prompts = [Prompts(place, length)(length) for length in LENGTHS]
        spec = HF.model_validate({"model": str(place), "dtype": "float32", **options})
        async with spec.open() as backend:

            async def ours(prompt: tuple[int, ...]) -> tuple[int, ...]:
                greedy = Sampling(temperature=0)
                request = Request(tokens=prompt, sampling=greedy, max_tokens=NEW)
                (step,) = await backend.complete(request)
                return step.tokens

            said = await gather(ours, prompts)
        model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
        for prompt, tokens in zip(prompts, said, strict=True):
            context = torch.tensor([prompt])
            answer = model.generate(
                context,
                attention_mask=torch.ones_like(context),
                max_new_tokens=NEW,
                do_sample=False,
            )
            expected = tuple(answer[0, len(prompt) :].tolist())
            if tokens != expected:
                raise SystemExit(f"{name}: the engine says {tokens}, generate {expected}")
    print(f"{name}: greedy tokens equal those of generate in float32 ({len(LENGTHS)} prompts)")
