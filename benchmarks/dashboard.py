"""How everything here is measured: calibrated, in interleaved pairs, with spread and limit.

A comparison runs ours and theirs in the order A B B A A B; each pair gives a ratio, and a line of
the table says their median and their spread. Memory bandwidth and matrix products are measured
right before and right after; where the two differ by more than a tenth, something else was running
and the line says so. Beside the ratio stands the part of the machine's limit that ours reaches.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TypeAlias

import anyio
import torch
from calibration import Calibrated, calibrate, once
from roofline import DTYPES, Machine

MODELS = ("smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct")
COLUMNS = ("measure", "peer", "ours", "theirs", "theirs / ours", "of the limit", "notes")

# Counts the rounds of the whole process: a prompt of an earlier round would be in every cache.
FRESH = count()

Timed: TypeAlias = Callable[[int], Awaitable[float]]


@dataclass(frozen=True, slots=True)
class Setting:
    """What a benchmark was asked.

    Args:
        model: a name of the catalogue.
        dtype: of weights and computation.
        pairs: of each comparison.
        quick: whether sizes shall be small.
        threads: for everyone.
        peers: parts of the names of those to compare with; empty for all.
        device: that is measured.
    """

    model: str
    dtype: str
    pairs: int
    quick: bool
    threads: int
    peers: tuple[str, ...] = ()
    device: str = "cpu"

    def includes(self, peer: str) -> bool:
        """Whether it is to be compared with this one."""
        return not self.peers or any(part in peer for part in self.peers)


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle and the ends of several measurements.

    Example:
        >>> str(Spread.of([3.0, 1.0, 2.0]))
        '2.00 (1.00..3.00)'
    """

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Of some numbers, at least one."""
        return Spread(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{short(self.median)} ({short(self.low)}..{short(self.high)})"


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table; an empty cell says that there is nothing to say."""

    measure: str
    peer: str = ""
    ours: str = ""
    theirs: str = ""
    ratio: str = ""
    limit: str = ""
    notes: str = ""

    def __str__(self) -> str:
        cells = (self.measure, self.peer, self.ours, self.theirs, self.ratio, self.limit)
        return "| " + " | ".join((*cells, self.notes)) + " |"


def repeated(call: Callable[[], object], times: int, each: int = 1) -> Timed:
    """The mean seconds of something short.

    Args:
        call: does it.
        times: how often it is called in a row.
        each: how often one call does it.
    """

    async def run(_number: int) -> float:
        return once(lambda: [call() for _ in range(times)]) / times / each

    return run


async def pairs(ours: Timed, theirs: Timed, times: int) -> list[tuple[float, float]]:
    """Seconds of ours and theirs, measured A B B A A B.

    Args:
        ours: is told the number of the round and says how long it took.
        theirs: the same.
        times: how many pairs.
    """
    taken: list[tuple[float, float]] = []
    for index in range(times):
        fresh = next(FRESH)
        if index % 2:
            b = await theirs(fresh)
            taken.append((await ours(fresh), b))
        else:
            a = await ours(fresh)
            taken.append((a, await theirs(fresh)))
    return taken


async def compare(
    setting: Setting,
    measure: str,
    peer: str,
    ours: Timed,
    theirs: Timed,
    *,
    least: Callable[[Machine], float] | None = None,
    notes: str = "",
) -> Line:
    """A line of the table: how many times as long theirs takes.

    Args:
        setting: how.
        measure: what is measured.
        peer: whom it is compared with.
        ours: is told the number of the round and says how many seconds it took.
        theirs: the same.
        least: the seconds that a machine needs at the least, where there is such a limit.
        notes: what else the line shall say.
    """
    before = calibrate(setting.device)
    taken = await pairs(ours, theirs, setting.pairs)
    calibrated = Calibrated(before, calibrate(setting.device))
    own = statistics.median(a for a, _ in taken)
    return Line(
        measure,
        peer,
        seconds(own),
        seconds(statistics.median(b for _, b in taken)),
        str(Spread.of([b / a for a, b in taken])),
        f"{least(calibrated.machine) / own:.0%}" if least else "",
        "; ".join(filter(None, (notes, calibrated.notes))),
    )


def short(number: float) -> str:
    """Three digits that mean something.

    Example:
        >>> short(0.0123), short(1.234), short(123.4), short(1234.5)
        ('0.0123', '1.23', '123', '1234')
    """
    if number >= 100:  # noqa: PLR2004  (three digits before the point)
        return f"{number:.0f}"
    return f"{number:.2f}" if 1 <= number < 10 else f"{number:.3g}"  # noqa: PLR2004  (as above)


def seconds(value: float) -> str:
    """A time in a unit that fits it.

    Example:
        >>> seconds(2.5), seconds(0.0123), seconds(4e-6)
        ('2.50 s', '12.3 ms', '4.00 us')
    """
    for unit, size in (("s", 1), ("ms", 1e-3)):
        if value >= size:
            return f"{short(value / size)} {unit}"
    return f"{short(value * 1e6)} us"


def main(
    doc: str,
    lines: Callable[[Setting], AsyncIterator[Line]],
    *,
    gate: Callable[[str], Awaitable[None]] | None = None,
    models: Sequence[str] = MODELS[:1],
    dtypes: Sequence[str] = DTYPES,
    device: str = "cpu",
) -> None:
    """Read the arguments, pass the gate, measure, and print a table for each model and dtype.

    Args:
        doc: what `--help` says.
        lines: measures; one line after the other, printed as they come.
        gate: raises where a model's answers are not right; none where `lines` checks them itself.
        models: those that are measured where none is asked for.
        dtypes: the same.
        device: that is measured.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", action="append", help=f"default: {', '.join(models)}; repeatable"
    )
    parser.add_argument(
        "--dtype", action="append", choices=DTYPES, help=f"default: {', '.join(dtypes)}"
    )
    parser.add_argument("--peer", action="append", help="part of a name; repeatable; default all")
    parser.add_argument("--pairs", type=int, help="of each comparison; default 3, quick 1")
    parser.add_argument("--quick", action="store_true", help="small sizes: whether it works")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    times = asked.pairs or (1 if asked.quick else 3)

    async def run() -> None:
        for model in asked.model or models:
            if gate:
                await gate(model)
            for dtype in asked.dtype or dtypes:
                peers = tuple(asked.peer or ())
                setting = Setting(model, dtype, times, asked.quick, asked.threads, peers, device)
                await _table(lines, setting)

    anyio.run(run)


async def _table(lines: Callable[[Setting], AsyncIterator[Line]], setting: Setting) -> None:
    machine, load = calibrate(setting.device), os.getloadavg()[0]
    products = ", ".join(f"{key} {machine.flops[key] / 1e9:.0f}" for key in DTYPES)
    print(
        f"\n**{setting.model}, {setting.dtype}**: {setting.threads} threads, load {load:.1f}, "
        f"reads {machine.bandwidth / 1e9:.1f} GB/s, products in GFLOP/s: {products}; "
        f"pairs {setting.pairs}{', quick' if setting.quick else ''}\n"
    )
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + " --- |" * len(COLUMNS), flush=True)
    async for line in lines(setting):
        print(line, flush=True)
