"""What the framework itself costs: controllers with a model that takes no time, or a known one.

    python benchmarks/controller.py [--simulations 10000] [--rounds 5]

1. MCTS with a null model: microseconds per simulation, and bytes per node at the peak. The model
   and the world say one and the same thing each time, so what is counted is the framework's own:
   nodes, verdicts, statistics, seeds; steps and states of one's own come on top.
2. The same beside the MCTS of llm-reasoners and of TreeQuest, each with its defaults, in
   interleaved rounds: microseconds per simulation, theirs over ours. TreeQuest copies its whole
   tree at each step by default, so that its cost grows with the tree; ours is taken at the same
   number of simulations.
3. Efficiency with 256 calls of 50 ms in flight: the ideal time over the measured time, and what
   the event loop reaches with the same sleeps alone.
4. Lanes: 8 problems of 40 expansions by 4 samples each, all at once and with 4 lanes each, beside
   one problem at a time with a beam's barriers (4 x 4 samples on each of 10 levels). The model's
   steps are simulated: a step of B rows takes what the local engine took on two cores, samples have
   replayed lognormal lengths, and the clock is virtual, so the ratio is exact.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import math
import random
import statistics
import time
import tracemalloc
from collections.abc import Callable, Sequence

import anyio
import trio
from trio.testing import MockClock

from branchwise import MCTS, Beam, BestFirst, BestOfN, Node, State, Step, Task, Verdict, solve
from branchwise.core.aio import gather
from branchwise.core.types import Environment

CALL = 0.05
IN_FLIGHT = 256
STEPS = 40
FANOUT = 4
PROBLEMS, LEVELS, WIDTH = 8, 10, 4
STEP_MS = ((1, 10.2), (32, 18.7), (64, 28.4), (128, 50.0))  # rows, ms: docs/engine.md
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


async def mcts(simulations: int, select: str = "uct") -> Node:
    controller = MCTS(simulations=simulations, fanout=FANOUT, select=select)
    answer = await solve(
        "?",
        policy=Null(),
        controller=controller,
        environment=Endless(),
        verifier=Dice(),
        horizon=10**6,
    )
    return answer.root


def micros(run: Callable[[int], object], simulations: int) -> float:
    gc.collect()
    started = time.perf_counter()
    run(simulations)
    return (time.perf_counter() - started) / simulations * 1e6


def micros_and_bytes(simulations: int, select: str, rounds: int) -> None:
    taken = [micros(lambda n: anyio.run(mcts, n, select), simulations) for _ in range(rounds)]
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    root = anyio.run(mcts, simulations, select)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    nodes = list(root.walk())
    print(
        f"MCTS {select}: {simulations} simulations, {len(nodes)} nodes, "
        f"depth {max(node.depth for node in nodes)}: "
        f"{statistics.median(taken):.1f} us per simulation "
        f"(spread {min(taken):.1f} to {max(taken):.1f}, {rounds} rounds), "
        f"{(peak - before) / len(nodes):.0f} bytes per node at the peak"
    )


def reasoners(simulations: int) -> None:
    """llm-reasoners: 4 actions, rewards by dice, its own default depth of 5."""
    from reasoners import algorithm  # noqa: PLC0415  (a peer, if it is installed)

    throw = random.Random(0).random

    class World:
        def init_state(self) -> int:
            return 0

        def step(self, state: int, action: int) -> tuple[int, dict[str, float]]:  # noqa: ARG002
            return 0, {}

        def is_terminal(self, state: int) -> bool:  # noqa: ARG002
            return False

    class Rewards:
        def get_actions(self, state: int) -> list[int]:  # noqa: ARG002
            return list(range(FANOUT))

        def fast_reward(self, state: int, action: int) -> tuple[float, dict[str, float]]:  # noqa: ARG002
            return throw(), {}

        def reward(self, state: int, action: int) -> tuple[float, dict[str, float]]:  # noqa: ARG002
            return throw(), {}

    algorithm.MCTS(n_iters=simulations)(World(), Rewards())


def treequest(simulations: int) -> None:
    """TreeQuest: `step` as its pages show it."""
    from treequest import StandardMCTS  # noqa: PLC0415  (a peer, if it is installed)

    throw = random.Random(0).random
    search = StandardMCTS(samples_per_action=FANOUT)
    state = search.init_tree()
    for _ in range(simulations):
        state = search.step(state, {"say": lambda parent: (0, throw())})  # noqa: ARG005


def beside(name: str, theirs: Callable[[int], object], simulations: int, rounds: int) -> None:
    try:
        theirs(1)
    except ImportError:
        print(f"{name}: not installed (pip install {name}; llm-reasoners with --no-deps)")
        return
    ours: list[float] = []
    other: list[float] = []
    for _ in range(rounds):  # interleaved, so that a noisy moment meets both
        ours.append(micros(lambda n: anyio.run(mcts, n), simulations))
        other.append(micros(theirs, simulations))
    ratios = [b / a for a, b in zip(ours, other, strict=True)]
    print(
        f"{name}, {simulations} simulations: {statistics.median(other):.0f} us each, "
        f"ours {statistics.median(ours):.1f}: {statistics.median(ratios):.1f} times "
        f"(spread {min(ratios):.1f} to {max(ratios):.1f}, {rounds} rounds)"
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


async def asleep() -> float:
    """Seconds for the same sleeps without branchwise: what the event loop itself allows."""

    async def one() -> None:
        for _ in range(STEPS):
            await anyio.sleep(CALL)

    started = time.perf_counter()
    async with anyio.create_task_group() as group:
        for _ in range(IN_FLIGHT):
            group.start_soon(one)
    return time.perf_counter() - started


def efficiency(rounds: int) -> None:
    pairs = [(anyio.run(in_flight), anyio.run(asleep)) for _ in range(rounds)]
    for name, taken in zip(("of ideal", "asyncio alone"), zip(*pairs, strict=True), strict=True):
        ratios = [STEPS * CALL / seconds for seconds in taken]
        print(
            f"{IN_FLIGHT} calls of {CALL * 1000:.0f} ms in flight, {name}: "
            f"{statistics.median(ratios):.1%} "
            f"(spread {min(ratios):.1%} to {max(ratios):.1%}, {rounds} rounds)"
        )


class Engine:
    """A model whose rows share steps: one step of B rows takes as long as the engine's."""

    def __init__(self, lengths: random.Random) -> None:
        self.lengths = lengths
        self.rows: list[tuple[int, trio.Event]] = []
        self.busy = False

    async def propose(self, node: Node, seeds: Sequence[int]) -> Sequence[Step]:  # noqa: ARG002
        """Steps of lognormal lengths: 32 tokens in the median, σ = 0.6."""
        events = [trio.Event() for _ in seeds]
        self.rows += [(round(self.lengths.lognormvariate(math.log(32), 0.6)), e) for e in events]
        if not self.busy:
            self.busy = True
            trio.lowlevel.spawn_system_task(self._steps)
        for event in events:
            await event.wait()
        return [STEP] * len(seeds)

    async def _steps(self) -> None:
        while self.rows:
            await trio.sleep(_step_seconds(len(self.rows)))
            self.rows = [(left - 1, event) for left, event in self.rows]
            for left, event in self.rows:
                if left <= 0:
                    event.set()
            self.rows = [row for row in self.rows if row[0] > 0]
            for _ in range(8):  # who was answered asks again before the next step begins
                await trio.lowlevel.checkpoint()
        self.busy = False


def _step_seconds(rows: int) -> float:
    for (low, a), (high, b) in itertools.pairwise(STEP_MS):
        if rows <= high:
            return (a + (b - a) * (rows - low) / (high - low)) / 1000
    return STEP_MS[-1][1] * rows / STEP_MS[-1][0] / 1000


def virtual(lanes: int, *, together: bool, seed: int, in_order: bool = True) -> float:
    """Virtual seconds for all problems; `lanes` 0 is a beam, whose levels are barriers."""

    async def run() -> float:
        engine = Engine(random.Random(seed))
        beam = Beam(width=WIDTH, fanout=FANOUT)
        free = BestFirst(
            fanout=FANOUT, expansions=LEVELS * WIDTH, lanes=max(lanes, 1), in_order=in_order
        )

        async def one(_: int) -> None:
            await solve(
                "?",
                policy=engine,
                controller=free if lanes else beam,
                environment=Endless(),
                verifier=Dice(),
                horizon=LEVELS,
            )

        started = trio.current_time()
        if together:
            await gather(one, range(PROBLEMS))
        else:
            for problem in range(PROBLEMS):
                await one(problem)
        return trio.current_time() - started

    return trio.run(run, clock=MockClock(autojump_threshold=0))


def barriers(rounds: int) -> None:
    ways = {
        "8 problems at once, 4 lanes each": {
            "lanes": WIDTH,
            "together": True,
            "in_order": False,
        },
        "8 problems at once, 4 lanes in order": {"lanes": WIDTH, "together": True},
        "8 problems at once, with barriers": {"lanes": 0, "together": True},
        "one problem at a time, 4 lanes": {
            "lanes": WIDTH,
            "together": False,
            "in_order": False,
        },
    }
    base = [virtual(0, together=False, seed=seed) for seed in range(rounds)]
    for name, way in ways.items():
        times = [virtual(seed=seed, **way) for seed in range(rounds)]
        ratios = [b / t for b, t in zip(base, times, strict=True)]
        print(
            f"{name}: {statistics.median(ratios):.2f} times one at a time with barriers "
            f"(spread {min(ratios):.2f} to {max(ratios):.2f}, {rounds} seeds)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    for select in ("uct", "puct"):
        micros_and_bytes(arguments.simulations, select, arguments.rounds)
    beside("llm-reasoners", reasoners, arguments.simulations, arguments.rounds)
    beside("treequest", treequest, arguments.simulations // 20, arguments.rounds)
    efficiency(arguments.rounds)
    barriers(arguments.rounds)


if __name__ == "__main__":
    main()
