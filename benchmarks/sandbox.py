"""What a sandbox costs: milliseconds per run, and runs per second on one core.

    python benchmarks/sandbox.py [--runs 50] [--rounds 5]

1. Latency: `python -S -c pass` as a plain subprocess, `python -c pass` without walls
   (`Unconfined`), in a sandbox that is built when it is asked for (`warm=0`) and in one that waits
   (`warm=4`, with a pause after each run, so that one does wait), interleaved, one at a time.
   Medians, and the spread of the middle half.
2. Throughput: the same program as often as it goes, several at a time, with the whole process
   bound to one core; runs per second, of each round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio

from branchwise.core.aio import gather
from branchwise.sandbox.bubblewrap import Bubblewrap
from branchwise.sandbox.ran import Sandbox
from branchwise.sandbox.unconfined import Unconfined

PROGRAM = ["-c", "pass"]
INTERPRETER = Path(sys.executable).resolve()  # that of the sandbox, outside of the environment
PAUSE = 0.15
AT_ONCE = 4


async def plain() -> None:
    """The interpreter as a plain subprocess."""
    command = [str(INTERPRETER), "-S", *PROGRAM]
    await anyio.to_thread.run_sync(lambda: subprocess.run(command, check=True))  # noqa: S603  (ours)


def of(sandbox: Sandbox) -> Callable[[], Awaitable[None]]:
    """One run in a sandbox."""

    async def run() -> None:
        ran = await sandbox.run({}, ["python", *PROGRAM])
        if not ran.ok:
            raise SystemExit(f"the program did not run: {ran}")

    return run


async def latency(ways: dict[str, Callable[[], Awaitable[None]]], runs: int) -> None:
    """Print how long a run takes each way."""
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, way in ways.items():
            begun = time.perf_counter()
            await way()
            took[name].append(1000 * (time.perf_counter() - begun))
            await anyio.sleep(PAUSE)
    base = statistics.median(took["plain subprocess"])
    for name, times in took.items():
        low, middle, high = statistics.quantiles(times, n=4)
        print(f"{name:20} {middle:6.1f} ms  [{low:.1f}, {high:.1f}]  {middle - base:+.1f} ms")


async def throughput(
    ways: dict[str, Callable[[], Awaitable[None]]], runs: int, rounds: int
) -> None:
    """Print how many runs a second go each way."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            left = iter(range(runs))

            async def lane(_: int, way: Callable[[], Awaitable[None]] = way) -> None:
                for _ in left:  # noqa: B023  (all lanes of a round share it, on purpose)
                    await way()

            begun = time.perf_counter()
            await gather(lane, range(AT_ONCE))
            rates[name].append(runs / (time.perf_counter() - begun))
    for name, found in rates.items():
        print(
            f"{name:20} {statistics.median(found):6.1f} runs/s  {min(found):.1f}-{max(found):.1f}"
        )


async def main(runs: int, rounds: int) -> None:
    """Both tables."""
    async with (
        Unconfined().open() as unconfined,
        Bubblewrap(warm=0).open() as cold,
        Bubblewrap(warm=AT_ONCE).open() as warm,
    ):
        ways = {
            "plain subprocess": plain,
            "unconfined": of(unconfined),
            "bubblewrap, cold": of(cold),
            "bubblewrap, warm": of(warm),
        }
        await latency(ways, runs)
        core = min(os.sched_getaffinity(0))
        print(f"on core {core}, {AT_ONCE} at a time:")
        os.sched_setaffinity(0, {core})
    async with Bubblewrap(warm=0).open() as cold, Bubblewrap(warm=AT_ONCE).open() as warm:
        ways = {
            "plain subprocess": plain,
            "bubblewrap, cold": of(cold),
            "bubblewrap, warm": of(warm),
        }
        await throughput(ways, runs, rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    anyio.run(main, given.runs, given.rounds)
