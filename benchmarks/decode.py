"""A step of decoding against the machine's limit.

    python benchmarks/decode.py [--model NAME] [--dtype bfloat16] [--quick]

1 to 128 samples of one prompt of 128 tokens. A step is a 64th of the difference between samples of
65 tokens and samples of one. The limit reads the weights and the prompt's keys and values once, and
those of each row's own tokens; or it is the arithmetic, where that takes longer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from calibration import Calibrated, calibrate
from dashboard import Line, Setting, Spread, Timed, main, pairs, short
from dashboard import seconds as unit
from gate import gate
from material import Prompts, endless
from peers import ours
from roofline import Shape
from side import Asked, Peer, Tokens, seconds
from transformers import AutoConfig

PROMPT = 128
ROWS = (1, 8, 32, 64, 128)


async def lines(setting: Setting) -> AsyncIterator[Line]:
    """A line for each number of rows."""
    with endless(setting.model, setting.dtype) as place:
        shape = Shape.of(AutoConfig.from_pretrained(place), setting.dtype)
        prompts = Prompts(place, PROMPT)
        async with ours(place, setting.dtype, setting.threads, max_rows=max(ROWS)) as engine:
            for rows in ROWS[:3] if setting.quick else ROWS:
                sizes = (rows, PROMPT, 16 if setting.quick else 64)
                yield await steps(setting, engine, shape, prompts, sizes)


async def steps(
    setting: Setting,
    engine: Peer,
    shape: Shape,
    prompts: Callable[[int], Tokens],
    sizes: tuple[int, int, int],
) -> Line:
    """Measure the steps of some rows.

    Args:
        setting: how.
        engine: what decodes.
        shape: of the model.
        prompts: one for each number.
        sizes: how many rows, the tokens of the prompt, and how many steps.
    """
    rows, length, new = sizes

    def samples(tokens: int) -> Timed:
        # Twice the number, for the sides of a pair must not know each other's prompt.
        def asked(number: int) -> Asked:
            return Asked(prompts(2 * number + (tokens > 1)), n=rows, new=tokens)

        return lambda number: seconds(engine, [asked(number)])

    before = calibrate(setting.device)
    taken = await pairs(samples(1), samples(new + 1), setting.pairs)
    calibrated = Calibrated(before, calibrate(setting.device))
    each = [(long - first) / new for first, long in taken]
    least = shape.decode(calibrated.machine, rows, length, new) / new
    step = Spread.of(each)
    return Line(
        f"a step of {rows} rows after {length}",
        "the limit",
        f"{unit(step.median)}, {short(rows / step.median)} tokens/s",
        unit(least),
        str(Spread.of([least / seconds for seconds in each])),
        f"{least / step.median:.0%}",
        calibrated.notes,
    )


if __name__ == "__main__":
    main(__doc__ or "", lines, gate=gate)
