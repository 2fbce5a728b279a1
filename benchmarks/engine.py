"""The local engine against transformers' own `generate`: the same weights, prompts and threads.

    python benchmarks/engine.py [--model NAME] [--rounds 2] [--tokens 96]

16 prompts with 4 samples each, temperature 0.8, bfloat16; interleaved (ours, theirs, theirs, ours).
Prints tokens per second of each and their ratio. Run it on an idle machine: two programs with two
threads each on two cores are many times slower than one.
"""

import argparse
import os
import statistics
import time

import anyio
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from branchwise import HF, Backend, Message, Request, Sampling
from branchwise.backends.models import folder
from branchwise.core.aio import gather

QUESTIONS = [
    f"A shop has {7 * i} boxes with {i + 3} pencils each and sells {4 * i} pencils. "
    "How many pencils are left? Explain each step."
    for i in range(3, 19)
]
SAMPLES = 4


async def ours(backend: Backend, tokens: int, seed: int) -> float:
    """Tokens per second of the local engine."""
    requests = [
        Request(
            messages=(Message("user", question),),
            seeds=tuple(range(seed, seed + SAMPLES)),
            sampling=Sampling(temperature=0.8),
            max_tokens=tokens,
        )
        for question in QUESTIONS
    ]
    started = time.perf_counter()
    steps = await gather(backend.complete, requests)
    written = sum(step.usage.completion for several in steps for step in several)
    return written / (time.perf_counter() - started)


def theirs(model: PreTrainedModel, name: str, tokens: int) -> float:
    """Tokens per second of `generate` with one batch of all samples."""
    tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        for question in QUESTIONS
        for _ in range(SAMPLES)
    ]
    started = time.perf_counter()
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    with torch.inference_mode():
        said = model.generate(
            **batch, do_sample=True, temperature=0.8, top_k=0, top_p=1.0, max_new_tokens=tokens
        )
    seconds = time.perf_counter() - started
    new = said[:, batch["input_ids"].shape[1] :]
    return int((new != tokenizer.pad_token_id).sum()) / seconds


async def compare(name: str, rounds: int, tokens: int) -> None:
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16).eval()
    ratios: list[float] = []
    async with HF(model=name, dtype="bfloat16").open() as backend:
        await ours(backend, 8, 0)
        for i in range(rounds):
            a = await ours(backend, tokens, 100 * i + 1)
            b = [theirs(model, name, tokens) for _ in range(2)]
            c = await ours(backend, tokens, 100 * i + 51)
            print(f"ours {a:.0f} and {c:.0f}, generate {b[0]:.0f} and {b[1]:.0f} tokens/s")
            ratios.append((a + c) / sum(b))
    print(
        f"ratio {statistics.median(ratios):.2f} (spread {min(ratios):.2f} to {max(ratios):.2f}, "
        f"{rounds} rounds, load {os.getloadavg()[0]:.1f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b-instruct")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=96)
    arguments = parser.parse_args()
    name = str(folder(arguments.model, "bfloat16"))
    anyio.run(compare, name, arguments.rounds, arguments.tokens)


if __name__ == "__main__":
    main()
