"""Searches in games with exact solvers: who finds the win with the same number of nodes.

    python benchmarks/games.py PUZZLES.csv [--first 900] [--limit 100] [--skill 1.0]

The policy draws legal moves at random and knows nothing else; the judge sees through noise whether
a state can still be won (`noisy`: with skill 1 he prefers the right one of two states with
probability 0.76). Every search gets the same nodes: 80 for each move that a game takes. So what
differs is the search alone. Games of 24 come from a CSV file with a column `Puzzles` (the default
rows are those of Yao et al. 2023); Countdown (4 numbers up to 25, a target up to 100) and
Blocksworld (4 blocks, goals 6 actions away and 6 actions allowed) are drawn, all of them winnable.

A dead end is a state that cannot be won any more, by the solver. For searches that grow one state
at a time the table says how often they left one for a state that can be won (a game), and in how
many of the won games they had grown one before.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import anyio

from branchwise import (
    MCTS,
    Beam,
    BestFirst,
    BestOfN,
    Budget,
    Controller,
    Function,
    Node,
    ParticleFilter,
    Policy,
    Rebase,
    Step,
    Task,
    TreeOfThoughtsBFS,
    TreeOfThoughtsDFS,
    solve,
)
from branchwise.environments.blocksworld import Blocksworld
from branchwise.environments.countdown import Countdown
from branchwise.environments.game import Game
from branchwise.environments.game24 import Game24
from branchwise.environments.moves import Moves, noisy
from branchwise.verifiers.quality import wilson

EACH = 80  # nodes for each move that a game takes

SEARCHES: dict[str, Controller] = {
    "random rollout": BestOfN(n=1),
    f"best of {EACH}": BestOfN(n=EACH),
    f"greedy rollout, 1 of {EACH}": TreeOfThoughtsBFS(width=1, fanout=EACH),
    "beam, 16 x 5": Beam(width=16, fanout=5),
    "tot-bfs, 8 x 10": TreeOfThoughtsBFS(width=8, fanout=10),
    f"rebase, {EACH}": Rebase(n=EACH),
    f"particle filter, {EACH}": ParticleFilter(n=EACH),
    "tot-dfs, 10 each": TreeOfThoughtsDFS(fanout=10, expansions=10**6, enough=1.0),
    "best-first, 10 each": BestFirst(fanout=10, expansions=10**6, enough=1.0),
    "mcts, 10 each": MCTS(fanout=10, simulations=10**6, exploration=0.2, enough=1.0),
}
ONE_BY_ONE = ("tot-dfs", "best-first", "mcts")


class Played(NamedTuple):
    """What became of one game."""

    won: bool
    nodes: int
    dead: int
    returns: int


class Watched:
    """A policy that remembers in which order states were grown."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.grown: list[Node] = []

    async def propose(self, node: Node, seeds: Sequence[int]) -> Sequence[Step]:
        """What the policy proposes."""
        self.grown.append(node)
        return await self.policy.propose(node, seeds)


async def play(
    game: Game[Any], task: Task, search: Controller, budget: int, skill: float
) -> Played:
    policy = Watched(Moves(game, "drawn"))
    answer = await solve(
        task,
        policy=policy,
        controller=search,
        environment=game,
        verifier=Function(noisy(game, skill)),
        budget=Budget(nodes=budget),
        unique="siblings",
    )
    alive = [bool(game.best(node.state)) for node in policy.grown]
    return Played(
        won=answer.node.state.reward == 1,
        nodes=sum(1 for _ in answer.root.walk()) - 1,
        dead=alive.count(False),
        returns=sum(after and not before for before, after in itertools.pairwise(alive)),
    )


def table(title: str, game: Game[Any], tasks: Sequence[Task], moves: int, skill: float) -> None:
    """Won games with 95 % Wilson intervals, one line for each search."""
    budget = EACH * moves
    print(f"\n{title}: n = {len(tasks)}, {budget} nodes, skill {skill:g}\n")
    print("| search | won | 95 % interval | nodes | dead ends grown | came back | wins after one |")
    print("|---|---|---|---|---|---|---|")
    for name, search in SEARCHES.items():
        played = [anyio.run(partial(play, game, task, search, budget, skill)) for task in tasks]
        n, won = len(played), sum(each.won for each in played)
        low, high = wilson(won, n)
        line = f"| {name} | {won / n:.0%} | {100 * low:.0f} to {100 * high:.0f}"
        line += f" | {sum(each.nodes for each in played) / n:.0f}"
        line += f" | {sum(each.dead for each in played) / n:.1f}"
        if name.startswith(ONE_BY_ONE):
            line += f" | {sum(each.returns for each in played) / n:.1f}"
            line += f" | {sum(each.won and each.dead > 0 for each in played)} of {won} |"
        else:
            line += " | | |"
        print(line, flush=True)


def drawn(
    game: Game[Any], n: int, fits: Callable[[Task], bool], make: Callable[[random.Random], Task]
) -> list[Task]:
    """So many random tasks that can be won."""
    draws = random.Random(0)

    def tasks() -> Iterator[Task]:
        while True:
            task = make(draws)
            if fits(task) and game.best(anyio.run(game.reset, task)):
                yield task

    return list(itertools.islice(tasks(), n))


def countdown(draws: random.Random) -> Task:
    numbers: list[Any] = [draws.randint(1, 25) for _ in range(4)]
    target = draws.choice([x for x in range(10, 101) if x not in numbers])
    return Task("countdown", meta={"numbers": numbers, "target": target})


def blocks(draws: random.Random) -> Task:
    def stacks() -> list[list[str]]:
        names = draws.sample("ABCD", 4)
        cuts = sorted(draws.sample(range(5), draws.randint(0, 3)))
        parts = [names[a:b] for a, b in itertools.pairwise([0, *cuts, 4])]
        return [part for part in parts if part]

    goal = [[stack[i], stack[i - 1]] for stack in stacks() for i in range(1, len(stack))]
    start: list[Any] = stacks()
    return Task("blocks", meta={"stacks": start, "goal": list[Any](goal or [["A", "table"]])})


def main() -> None:
    parser = argparse.ArgumentParser(description="Searches in games with exact solvers.")
    parser.add_argument("puzzles", type=Path, help="a CSV file with a column Puzzles")
    parser.add_argument("--first", type=int, default=900)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--skill", type=float, default=1.0)
    asked = parser.parse_args()
    with asked.puzzles.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[asked.first : asked.first + asked.limit]
    puzzles = [Task(row["Puzzles"]) for row in rows]
    table("Game of 24", Game24(), puzzles, 3, asked.skill)
    numbers = drawn(Countdown(), asked.limit, lambda _: True, countdown)
    table("Countdown", Countdown(), numbers, 3, asked.skill)
    world, short = Blocksworld(), Blocksworld(most_steps=6)

    def far(task: Task) -> bool:
        start = anyio.run(world.reset, task)
        return not start.done and world.distance(start) == short.most_steps

    table("Blocksworld", short, drawn(short, asked.limit, far, blocks), 6, asked.skill)


if __name__ == "__main__":
    main()
