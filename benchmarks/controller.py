"""What the framework itself costs: a controller with a model that takes no time, or always 50 ms.

    python benchmarks/controller.py [--simulations 10000] [--rounds 5]

1. MCTS with a null model: microseconds per simulation, and bytes per node at the peak. The model
   and the world say one and the same thing each time, so what is counted is the framework's own:
   nodes, verdicts, statistics, seeds; steps and states of one's own come on top.
2. Efficiency with 256 calls of 50 ms in flight: the ideal time over the measured time.
"""

import argparse
import gc
import random
import statistics
import time
import tracemalloc
from collections.abc import Sequence

import anyio

from branchwise import MCTS, BestOfN, Node, State, Step, Task, Verdict, solve
from branchwise.core.types import Environment

CALL = 0.05
IN_FLIGHT = 256
STEPS = 40
STEP, STATE = Step("x"), State("")


class Null:
    """A policy that says a letter at once."""

    async def propose(self, node: Node, seeds: Sequence[int]) -> Sequence[Step]:  # noqa: ARG002
        """The same step for each seed."""
        return [STEP] * len(seeds)


class Late:
    """A policy whose every call takes 50 ms."""

    async def propose(self, node: Node, seeds: Sequence[int]) -> Sequence[Step]:  # noqa: ARG002
        """The same step for each seed, later."""
        await anyio.sleep(CALL)
        return [STEP] * len(seeds)


class Endless(Environment):
    """A world that never ends or changes."""

    instant = True

    async def reset(self, task: Task) -> State:  # noqa: ARG002
        """The one state there is."""
        return STATE

    async def step(self, state: State, action: Step) -> State:  # noqa: ARG002
        """The same state again."""
        return STATE


class Dice:
    """A verifier whose scores are spread evenly over [0, 1)."""

    def __init__(self) -> None:
        self.random = random.Random(0).random

    async def score(self, nodes: Sequence[Node]) -> Sequence[Verdict]:
        """A throw for each node."""
        return [Verdict(self.random()) for _ in nodes]


async def mcts(simulations: int, select: str) -> Node:
    controller = MCTS(simulations=simulations, fanout=4, select=select)
    answer = await solve(
        "?",
        policy=Null(),
        controller=controller,
        environment=Endless(),
        verifier=Dice(),
        horizon=10**6,
    )
    return answer.root


def micros_and_bytes(simulations: int, select: str, rounds: int) -> None:
    taken: list[float] = []
    for _ in range(rounds):
        gc.collect()
        started = time.perf_counter()
        root = anyio.run(mcts, simulations, select)
        taken.append((time.perf_counter() - started) / simulations * 1e6)
        depth = max(node.depth for node in root.walk())
        del root
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    root = anyio.run(mcts, simulations, select)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    nodes = sum(1 for _ in root.walk())
    print(
        f"MCTS {select}: {simulations} simulations, {nodes} nodes, depth {depth}: "
        f"{statistics.median(taken):.1f} us per simulation "
        f"(spread {min(taken):.1f} to {max(taken):.1f}, {rounds} rounds), "
        f"{(peak - before) / nodes:.0f} bytes per node at the peak"
    )


async def in_flight() -> float:
    """Seconds for 256 searches at once, each of 40 calls of 50 ms one after the other."""

    async def one() -> None:
        await solve(
            "?", policy=Late(), controller=BestOfN(n=1), environment=Endless(), horizon=STEPS
        )

    started = time.perf_counter()
    async with anyio.create_task_group() as group:
        for _ in range(IN_FLIGHT):
            group.start_soon(one)
    return time.perf_counter() - started


def efficiency(rounds: int) -> None:
    ideal = STEPS * CALL
    taken = [anyio.run(in_flight) for _ in range(rounds)]
    ratios = [ideal / seconds for seconds in taken]
    print(
        f"{IN_FLIGHT} calls of {CALL * 1000:.0f} ms in flight: "
        f"{statistics.median(ratios):.1%} of ideal "
        f"(spread {min(ratios):.1%} to {max(ratios):.1%}, {rounds} rounds)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    for select in ("uct", "puct"):
        micros_and_bytes(arguments.simulations, select, arguments.rounds)
    efficiency(arguments.rounds)


if __name__ == "__main__":
    main()
