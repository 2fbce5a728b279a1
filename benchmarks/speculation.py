"""One answer of 256 tokens that repeats itself: guesses from its own text, checked by the model.

    python benchmarks/speculation.py [--model NAME] [--quick]

The prompt says the same 32 tokens eight times, and the answer goes on much like that. Greedy, one
row. Against `generate` with `prompt_lookup_num_tokens` and against the engine without guesses. The
limit reads the weights once for each token, as without guesses: more than 100 % of it shows what
they save.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

import torch
from dashboard import Line, Setting, Timed, compare, main
from gate import gate
from libraries import Generate
from material import Prompts, endless
from peers import ours
from roofline import Machine, Shape
from side import Asked, Peer, seconds
from transformers import AutoConfig, AutoModelForCausalLM

from branchwise import Sampling

PERIOD, TIMES, GUESSES = 32, 8, 10
PROMPT = PERIOD * TIMES
GREEDY = Sampling(temperature=0)


async def lines(setting: Setting) -> AsyncIterator[Line]:
    """A line for each of the two."""
    new = 32 if setting.quick else 256
    with endless(setting.model, setting.dtype) as place:
        prompts = Prompts(place, PERIOD)
        shape = Shape.of(AutoConfig.from_pretrained(place), setting.dtype)
        model = AutoModelForCausalLM.from_pretrained(place, dtype=getattr(torch, setting.dtype))
        greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        common = (place, setting.dtype, setting.threads)

        def run(side: Peer) -> Timed:
            return lambda number: seconds(side, [Asked(prompts(number) * TIMES, new=new)])

        def least(machine: Machine) -> float:
            return shape.prefill(machine, PROMPT) + shape.decode(machine, 1, PROMPT, new - 1)

        async with (
            ours(*common, sampling=GREEDY) as plain,
            ours(*common, sampling=GREEDY, draft="lookup", guess=GUESSES) as guessing,
        ):
            peers = {
                "generate, prompt lookup": Generate(
                    model.eval(), prompt_lookup_num_tokens=GUESSES, **greedy
                ),
                "ours, without guesses": plain,
            }
            for name, peer in peers.items():
                what = f"{new} greedy tokens after {PROMPT}"
                yield await compare(setting, what, name, run(guessing), run(peer), least=least)


if __name__ == "__main__":
    main(__doc__ or "", lines, gate=partial(gate, draft="lookup"), dtypes=("bfloat16",))
