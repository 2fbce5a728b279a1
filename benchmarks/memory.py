"""A thousand live branches under a limit of memory: what the process really takes.

    python benchmarks/memory.py [--model NAME] [--rows 1000] [--memory 0.25] [--tokens 32]

The branches share a prompt; what they say does not fit the limit at once. The limit holds if the
process grows by no more than that beyond its peak in passes of as many rows that say almost
nothing: what such a pass works with, its logits above all, is not keys and values.
"""

from __future__ import annotations

import argparse
import threading
import time
from pathlib import Path
from typing import Self

import anyio
import torch
from transformers import AutoConfig

from branchwise import HF, Request, Sampling
from branchwise.backends.hf.pool import Shape
from branchwise.backends.models import folder

MIB = 2**20


def resident() -> float:
    """What the process takes now, in MiB."""
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * 4096 / MIB


class Peak:
    """The most that the process takes while something runs, in MiB."""

    def __enter__(self) -> Self:
        self.most = resident()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            self.most = max(self.most, resident())


async def measure(model: str, rows: int, memory: float, tokens: int) -> None:
    """Print one line."""
    shape = Shape.of(AutoConfig.from_pretrained(folder(model, "bfloat16")), torch.bfloat16)
    spec = HF(model=model, dtype="bfloat16", max_rows=rows, memory=memory)
    prompt = Request(tokens=tuple(range(300, 428)), max_tokens=1)
    sampling = Sampling(temperature=1.0)
    async with spec.open() as backend:
        await backend.complete(prompt)
        with Peak() as wide:
            await backend.complete(
                Request(tokens=prompt.tokens, seeds=tuple(range(rows)), max_tokens=2)
            )
        with Peak() as peak:
            started = time.perf_counter()
            steps = await backend.complete(
                Request(
                    tokens=prompt.tokens,
                    seeds=tuple(range(rows)),
                    max_tokens=tokens,
                    sampling=sampling,
                )
            )
            seconds = time.perf_counter() - started
    said = sum(len(step.tokens) for step in steps)
    wanted = (said + 128) * shape.token_bytes / MIB
    print("| branches | tokens | limit | would take at once | process grew by | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    print(
        f"| {rows} | {said} | {memory * 1024:.0f} MiB | {wanted:.0f} MiB | "
        f"{peak.most - wide.most:.0f} MiB | {seconds:.1f} |"
    )


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--memory", type=float, default=0.25)
    parser.add_argument("--tokens", type=int, default=32)
    asked = parser.parse_args()
    anyio.run(measure, asked.model, asked.rows, asked.memory, asked.tokens)


if __name__ == "__main__":
    main()
