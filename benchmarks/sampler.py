"""The draw alone: 32 rows of logits to 32 tokens, temperature 0.8, top-p 0.95.

    python benchmarks/sampler.py [--quick]

Against transformers' own processors with top-p, and with the temperature only, each followed by
softmax and `multinomial`. `peaked` are logits as a model has them, where few tokens hold 95 % of
the probability; `flat` are such that tens of thousands do. The limit reads the logits once.

Checked first: the tokens that both can draw are the same, and with 4,096 draws of one row their
frequencies fit transformers' probabilities (chi-square).
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator

import torch
from dashboard import Line, Setting, compare, main, repeated
from material import SAMPLING
from roofline import Machine
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from branchwise.backends.hf.sampler import Choice, Past, sample, uniform

ROWS, VOCABULARY, DRAWS = 32, 49_152, 4096
SPREAD = {"peaked": 4.0, "flat": 0.5}
HOT = TemperatureLogitsWarper(SAMPLING.temperature)
NUCLEUS = TopPLogitsWarper(SAMPLING.top_p)
CPU = torch.device("cpu")


def ours(logits: torch.Tensor) -> torch.Tensor:
    """Tokens of the engine's sampler."""
    rows = len(logits)
    choice = Choice.of([SAMPLING] * rows, [Past((), 0)] * rows, CPU)
    return sample(logits, choice, uniform(range(rows), [7] * rows)).tokens


def theirs(logits: torch.Tensor, warpers: LogitsProcessorList) -> torch.Tensor:
    """Tokens of transformers, as `generate` draws them."""
    scores = warpers(torch.empty(len(logits), 0, dtype=torch.long), logits)
    return torch.multinomial(scores.softmax(-1), 1)[:, 0]


def check(logits: torch.Tensor) -> None:
    """Draw from one row many times.

    Raises:
        SystemExit: the draws do not fit the probabilities.
    """
    scores = NUCLEUS(torch.empty(1, 0, dtype=torch.long), HOT(torch.empty(1, 0), logits[:1]))
    expected = scores.softmax(-1)[0].double() * DRAWS
    found = ours(logits[:1].expand(DRAWS, -1)).bincount(minlength=VOCABULARY).double()
    if found[expected == 0].any():
        raise SystemExit("the sampler draws what top-p leaves out")
    # Rare tokens are counted together, as the test wants.
    rare = expected < 5  # noqa: PLR2004  (the usual bound)
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    found = torch.cat([found[~rare], found[rare].sum()[None]])
    kept = expected > 0
    distance = float(((found - expected)[kept] ** 2 / expected[kept]).sum())
    free = max(1, int(kept.sum()) - 1)
    if distance > free + 5 * math.sqrt(2 * free):
        raise SystemExit(f"the sampler's draws do not fit: chi-square {distance:.0f} of {free}")


async def lines(setting: Setting) -> AsyncIterator[Line]:
    """Both kinds of logits against both kinds of processors."""
    for name, spread in SPREAD.items():
        torch.manual_seed(0)
        logits = torch.randn(ROWS, VOCABULARY) * spread
        check(logits)
        peers = {
            "temperature and top-p": LogitsProcessorList([HOT, NUCLEUS]),
            "temperature only": LogitsProcessorList([HOT]),
        }
        for peer, warpers in peers.items():
            with torch.inference_mode():
                yield await compare(
                    setting,
                    f"draw {ROWS} of {VOCABULARY}, {name}",
                    f"transformers, {peer}",
                    repeated(lambda logits=logits: ours(logits), 20),
                    repeated(lambda logits=logits, w=warpers: theirs(logits, w), 3),
                    least=_least,
                )


def _least(machine: Machine) -> float:
    return ROWS * VOCABULARY * 4 / machine.bandwidth


if __name__ == "__main__":
    main(__doc__ or "", lines, models=("any model",), dtypes=("float32",))
