"""Many samples of one prompt: the time to the first tokens of all, and to the last.

    python benchmarks/best_of_n.py [--model NAME] [--dtype bfloat16] [--quick]

1. 32 samples of one token after a prompt of 128: what it costs to read a prompt that is shared.
2. 32 samples of 64 tokens after a prompt of 512, temperature 0.8, top-p 0.95.

The limit of the first is the prompt read once; of the second, that and 63 steps which read weights
and prompt once and each row's own tokens.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from dashboard import Line, Setting, Timed, compare, main
from gate import gate
from material import Prompts, endless
from peers import PEERS, ours
from roofline import Machine, Shape
from side import Absent, Asked, Peer, Tokens, seconds
from transformers import AutoConfig


async def lines(setting: Setting) -> AsyncIterator[Line]:
    """Both with each peer."""
    n = 8 if setting.quick else 32
    with endless(setting.model, setting.dtype) as place:
        shape = Shape.of(AutoConfig.from_pretrained(place), setting.dtype)
        async with ours(place, setting.dtype, setting.threads) as engine:
            for name, opened in PEERS[setting.dtype].items():
                if not setting.includes(name):
                    continue
                try:
                    async with opened(place, setting.dtype, setting.threads) as peer:
                        for length, new in ((128, 1), (128, 16) if setting.quick else (512, 64)):
                            yield await samples(
                                setting,
                                (name, engine, peer),
                                shape,
                                Prompts(place, length),
                                (n, length, new),
                            )
                except Absent as absent:
                    yield Line(f"{n} samples", name, notes=str(absent))


async def samples(
    setting: Setting,
    sides: tuple[str, Peer, Peer],
    shape: Shape,
    prompts: Callable[[int], Tokens],
    sizes: tuple[int, int, int],
) -> Line:
    """Compare two sides.

    Args:
        setting: how.
        sides: the peer's name, the engine and the peer.
        shape: of the model.
        prompts: one for each number.
        sizes: how many samples, the tokens of a prompt, and those of a sample.
    """
    name, engine, peer = sides
    n, length, new = sizes

    def run(side: Peer) -> Timed:
        return lambda number: seconds(side, [Asked(prompts(number), n=n, new=new)])

    def least(machine: Machine) -> float:
        return shape.prefill(machine, length) + shape.decode(machine, n, length, new - 1)

    what = f"{n} samples of {new} after {length}"
    return await compare(setting, what, name, run(engine), run(peer), least=least)


if __name__ == "__main__":
    main(__doc__ or "", lines, gate=gate)
