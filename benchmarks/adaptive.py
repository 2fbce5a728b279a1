"""What stopping early saves, and what it costs, replayed from a recorded bank of samples.

    branchwise run examples/bank.toml --out bank --set data.path=/path/to/test.jsonl
    python benchmarks/adaptive.py bank [--orders 100] [--strategy NAME]

The bank is the directory of a run with a `best-of-n` strategy; it may still be growing. The real
controllers run over the recorded samples, each problem's in many random orders, without a model.

1. Each stopping rule, looking after every batch of 1, 2, 4 or 8 samples, beside the vote over all:
   mean samples, tokens as a share of all, accuracy, the difference in points with a 95 % interval
   (paired bootstrap over problems), and how often the answer is that of all samples. The last
   column is the difference to a vote of a fixed number of samples that costs the same tokens
   (interpolated between neighbouring numbers).
2. Votes of a fixed number of samples: what simply drawing less gives.
3. One budget for all problems (`solve_all`) beside the same budget split equally, with and without
   a rule, at several shares of the tokens of all samples. `max_tokens` are reserved for each
   sample, so that an equal split leaves more unspent.

Patience and a threshold of the score do not stop votes: their pick is the best score, and they are
compared with the best of all samples.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from branchwise import (
    Answer,
    BestOfN,
    Budget,
    Controller,
    Environment,
    Node,
    State,
    Step,
    Task,
    Usage,
    Vote,
    from_json,
    run_sync,
    solve,
)
from branchwise.allocate import solve_all
from branchwise.runs.store import Result
from branchwise.search import AnyRule
from branchwise.search.regret import Regret
from branchwise.search.stopping import (
    AdaptiveConsistency,
    Curtailment,
    EarlyStopping,
    Enough,
    Patience,
)
from branchwise.search.until import Until
from branchwise.verifiers.math_equal import MathEqual

RESAMPLES = 10_000
FIXED = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 28)
BATCHES = (1, 2, 4, 8)
SHARES = (0.1, 0.2, 0.4, 0.6)
EQUAL = "equal split"

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """A recorded problem: its samples, and which answers are right."""

    name: str
    samples: Sequence[Node]
    right: dict[str, bool]

    @property
    def tokens(self) -> int:
        """What all samples cost."""
        return sum(tokens(sample) for sample in self.samples)


@dataclass
class Bank:
    """The recorded samples as a policy and a world: child i of a root is the i-th of an order."""

    problems: Sequence[Problem]
    most: int
    orders: list[list[int]] = field(default_factory=list[list[int]])

    def shuffle(self, seed: int) -> None:
        """Another order of each problem's samples."""
        dice = random.Random(seed)
        self.orders = [list(range(len(problem.samples))) for problem in self.problems]
        for order in self.orders:
            dice.shuffle(order)

    async def propose(self, node: Node, seeds: Sequence[int]) -> Sequence[Step]:
        """The next samples; none when all have been drawn."""
        place = int(node.task.prompt)
        drawn = self.orders[place][node.promised - len(seeds) : node.promised]
        samples = [self.problems[place].samples[i] for i in drawn]
        return [
            Step(f"{place} {i}", usage=Usage(completion=tokens(sample)))
            for i, sample in zip(drawn, samples, strict=True)
        ]

    def bound(self, n: int) -> Usage:
        """What `n` samples cost at most."""
        return Usage(calls=1, completion=n * self.most)

    def world(self) -> World:
        """Where a sample leads."""
        return World(self.problems)


class World(Environment):
    """Answers as they were read when they were recorded."""

    instant = True

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = problems

    async def reset(self, task: Task) -> State:  # noqa: ARG002  (a problem begins with nothing)
        """Nothing said."""
        return State("")

    async def step(self, state: State, action: Step) -> State:  # noqa: ARG002  (one step is all)
        """The recorded end, its score as the reward."""
        place, i = map(int, action.text.split())
        sample = self.problems[place].samples[i]
        end = sample.state
        return State("", reward=sample.score, done=end.done, cut=end.cut, answer=end.answer)


class Outcome(NamedTuple):
    """Of each problem with some strategy, averaged over the orders; the answers of each order."""

    accuracy: Floats
    samples: Floats
    tokens: Floats
    answers: Sequence[Sequence[str | None]]

    def agreement(self, other: Outcome) -> float:
        """How often the answer is that of another strategy in the same order."""
        pairs = [
            a == b
            for row, others in zip(self.answers, other.answers, strict=True)
            for a, b in zip(row, others, strict=True)
        ]
        return sum(pairs) / len(pairs)


class Means(NamedTuple):
    """Accuracy and share of the tokens, over all problems or over each resample of them."""

    accuracy: Floats
    share: Floats


def tokens(sample: Node) -> int:
    """What a sample cost."""
    return sample.step.usage.completion if sample.step is not None else 0


async def load(folder: Path, strategy: str | None) -> tuple[list[Problem], str, int]:
    """The finished problems of one strategy, graded answer by answer; its name; `max_tokens`.

    Raises:
        SystemExit: there is no such strategy.
    """
    spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
    names = [one["name"] for one in spec["strategies"]]
    if (chosen := strategy or names[0]) not in names:
        raise SystemExit(f"no strategy is called {chosen!r}; there is {', '.join(names)}")
    lines = (folder / "results.jsonl").read_bytes()
    whole = lines[: lines.rfind(b"\n") + 1].splitlines()  # the run may be writing right now
    results = [TypeAdapter(Result).validate_json(line) for line in whole]
    problems: list[Problem] = []
    async with MathEqual().open() as grader:
        for result in sorted(results, key=lambda result: int(result.problem)):
            if result.strategy != chosen or result.tree is None:
                continue
            root = from_json((folder / result.tree).read_text(encoding="utf-8"))
            samples = [node for node in root.children if node.failure is None]
            task = Task(root.task.prompt, result.target)
            ends = {node.state.answer: node.asked(task) for node in samples if node.state.answer}
            verdicts = await grader.score(list(ends.values()))
            right = {
                answer: getattr(verdict, "score", 0.0) > 0.5  # noqa: PLR2004  (right or wrong)
                for answer, verdict in zip(ends, verdicts, strict=True)
            }
            problems.append(Problem(result.problem, samples, right))
    return problems, chosen, spec["policy"]["max_tokens"]


class Replay:
    """Runs controllers over the bank."""

    def __init__(self, bank: Bank, orders: int) -> None:
        self.bank, self.orders = bank, orders
        self.world = bank.world()
        self.tasks = [Task(str(place)) for place in range(len(bank.problems))]

    async def alone(self, controller: Controller, budget: Budget | None = None) -> Outcome:
        """Each problem by itself."""

        async def run() -> list[Answer]:
            return [
                await solve(
                    task,
                    policy=self.bank,
                    controller=controller,
                    environment=self.world,
                    budget=budget,
                )
                for task in self.tasks
            ]

        return await self._average(run)

    async def together(self, controller: Controller, budget: Budget) -> Outcome:
        """All problems from one budget."""

        async def run() -> list[Answer]:
            return await solve_all(
                self.tasks,
                budget=budget,
                policy=self.bank,
                controller=controller,
                environment=self.world,
            )

        return await self._average(run)

    async def _average(self, run: Callable[[], Awaitable[list[Answer]]]) -> Outcome:
        rows: list[list[tuple[float, float, float]]] = []
        said: list[list[str | None]] = []
        for seed in range(self.orders):
            self.bank.shuffle(seed)
            answers = await run()
            said.append([answer.value for answer in answers])
            rows.append([self._row(place, answer) for place, answer in enumerate(answers)])
        accuracy, samples, spent = np.moveaxis(np.array(rows, dtype=float).mean(axis=0), -1, 0)
        return Outcome(accuracy, samples, spent, said)

    def _row(self, place: int, answer: Answer) -> tuple[float, float, float]:
        right = self.bank.problems[place].right.get(answer.value or "", False)
        return float(right), float(len(answer.root.children)), float(answer.usage.completion)


class Table:
    """Outcomes over all problems, with intervals that resample the problems."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        n = len(problems)
        self.whole = np.array([problem.tokens for problem in problems], dtype=float)
        draws = np.random.default_rng(0).multinomial(n, [1 / n] * n, size=RESAMPLES)
        self.weights = np.vstack([np.ones(n), draws]) / n  # the first row is what was measured

    def means(self, outcome: Outcome) -> Means:
        """What was measured, and what each resample would have given."""
        share = (self.weights @ outcome.tokens) / (self.weights @ self.whole)
        return Means(self.weights @ outcome.accuracy, share)

    def cells(self, outcome: Outcome, every: Outcome) -> tuple[str, ...]:
        """Samples, tokens, accuracy, and how it compares with all samples."""
        now, most = self.means(outcome), self.means(every)
        return (
            f"{outcome.samples.mean():.1f}",
            f"{now.share[0]:.1%}",
            f"{now.accuracy[0]:.1%}",
            "" if outcome is every else points(now.accuracy - most.accuracy),
            f"{outcome.agreement(every):.1%}",
        )

    def at_equal_tokens(self, fixed: Sequence[Outcome], share: Floats) -> Floats:
        """The accuracy of the fixed number of samples that costs this share of the tokens."""
        curve = [self.means(outcome) for outcome in fixed]
        y, x = (np.stack(column, axis=1) for column in zip(*curve, strict=True))
        return np.array([np.interp(at, *row) for at, *row in zip(share, x, y, strict=True)])


def points(difference: Floats) -> str:
    """A difference with its interval."""
    low, high = np.percentile(difference[1:], [2.5, 97.5])
    return f"{100 * difference[0]:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"


def row(*cells: object) -> None:
    print(f"| {' | '.join(str(cell) for cell in cells)} |")


def heading(*cells: str) -> None:
    row(*cells)
    row(*("---" for _ in cells))


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("bank", type=Path, help="the directory of the run")
    parser.add_argument("--orders", type=int, default=20, help="random orders of each problem")
    parser.add_argument("--strategy", help="the strategy to replay; the first one by default")
    asked = parser.parse_args()
    started = time.perf_counter()
    problems, name, most = await load(asked.bank, asked.strategy)
    n = max(len(problem.samples) for problem in problems)
    samples = [sample for problem in problems for sample in problem.samples]
    unfinished = sum(not sample.finished for sample in samples) / len(samples)
    print(f"{len(problems)} problems with up to {n} samples each ({name}), {asked.orders} orders;")
    print(
        f"{len(samples)} samples of {sum(map(tokens, samples)) / len(samples):.0f} tokens on "
        f"average, {unfinished:.0%} cut at {most} tokens (they have no vote).\n"
    )
    replay, table = Replay(Bank(problems, most), asked.orders), Table(problems)
    every = await rules(replay, table, n)
    await shared(replay, table, n, every)
    print(f"\n{time.perf_counter() - started:.0f} s")


async def rules(replay: Replay, table: Table, n: int) -> Outcome:
    """The first two tables; the outcome of all samples."""
    numbers = [k for k in FIXED if k < n]
    fixed = [await replay.alone(BestOfN(n=k, pick=Vote())) for k in (*numbers, n)]
    every = fixed[-1]
    best = await replay.alone(BestOfN(n=n))
    columns = ("samples", "tokens", "right", f"minus all {n}", f"as all {n}")
    heading("rule", "batch", *columns, "minus equal tokens")
    row(f"vote of {n}", "", *table.cells(every, every), "")
    for rule, batches in (
        (AdaptiveConsistency(), BATCHES),
        (AdaptiveConsistency(posterior="dirichlet"), (1,)),
        (AdaptiveConsistency(confidence=0.9), (1,)),
        (AdaptiveConsistency(confidence=0.8), (1,)),
        (Curtailment(n=n), BATCHES),
        (Curtailment(n=n, confidence=0.9), (1, 4)),
        (Curtailment(n=n, confidence=0.85), (1, 4)),
        (Curtailment(n=n, confidence=0.8), (1, 4)),
        (Regret(), BATCHES),
        (Regret(tolerance=0.03), (1, 4)),
        (EarlyStopping(), (5,)),
        (EarlyStopping(windows="sliding"), (1,)),
        (EarlyStopping(window=3), (3,)),
    ):
        for batch in batches:
            search = Until(search=BestOfN(n=n, batch=batch, pick=Vote()), stop=rule)
            outcome = await replay.alone(search)
            now = table.means(outcome)
            equal = points(now.accuracy - table.at_equal_tokens(fixed, now.share))
            row(named(rule), batch, *table.cells(outcome, every), equal)
    row(f"best of {n}", "", *table.cells(best, best), "")
    for rule in (Patience(), Enough(score=-0.1)):
        outcome = await replay.alone(Until(search=BestOfN(n=n, batch=1), stop=rule))
        row(named(rule), 1, *table.cells(outcome, best), "")
    print()
    heading("vote of", *columns)
    for k, outcome in zip((*numbers, n), fixed, strict=True):
        row(k, *table.cells(outcome, every))
    return every


async def shared(replay: Replay, table: Table, n: int, every: Outcome) -> None:
    """The third table."""
    vote = BestOfN(n=n, batch=1, pick=Vote())
    rules = {
        "adaptive-consistency": Until(search=vote, stop=AdaptiveConsistency()),
        "curtailment": Until(search=vote, stop=Curtailment(n=n)),
        "regret": Until(search=vote, stop=Regret()),
    }
    print()
    columns = ("samples", "tokens", "right", f"minus all {n}", f"as all {n}")
    heading("budget", "how", *columns, "minus equal split")
    for share in SHARES:
        total = int(share * table.whole.sum())
        each = Budget(tokens=total // len(replay.tasks))
        split = await replay.alone(vote, each)
        ways = {EQUAL: split}
        for rule, until in rules.items():
            ways[f"{EQUAL}, {rule}"] = await replay.alone(until, each)
            ways[f"shared, {rule}"] = await replay.together(until, Budget(tokens=total))
        for how, outcome in ways.items():
            gain = points(table.means(outcome).accuracy - table.means(split).accuracy)
            row(f"{share:.0%}", how, *table.cells(outcome, every), "" if how == EQUAL else gain)


def named(rule: AnyRule) -> str:
    """A rule with the fields that are not its defaults."""
    changed = rule.model_dump(exclude_defaults=True)
    return ", ".join([rule.kind, *(f"{key} = {value}" for key, value in changed.items())])


if __name__ == "__main__":
    run_sync(main)
