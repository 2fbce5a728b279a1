"""What repeated sampling would have done, beside the strategies of a run over programs.

    branchwise run examples/humaneval.toml --out run --set data.path=/path/to/HumanEval.jsonl.gz
    python benchmarks/programs.py run [--samples "best of 16"] [--orders 200]

The samples are those of one strategy, `best-of-n` in a world of programs, whose scores are the
shares of public tests that they pass. All of them are graded by the hidden tests.

1. For k samples: pass@k (one of them is right), best@k (the first with the best score is), and the
   same where drawing stops at the first that passes all public tests: right, and tokens for each
   problem. 95 % intervals by a bootstrap over problems.
2. Each other strategy of the run: what it got right, its tokens, and the difference in points to
   drawing until the public tests pass, at the same tokens (interpolated between neighbouring k).
   Paired bootstrap over problems.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from branchwise import Bubblewrap, Node, UnitTests, Verdict, from_json, run_sync
from branchwise.runs.at_k import best_of_n_at_k, pass_at_k
from branchwise.runs.store import Result
from branchwise.search.best import candidates

RESAMPLES = 10_000
Floats = NDArray[np.float64]


class Sample(NamedTuple):
    """A program: the share of public tests that it passes, whether it is right, its tokens."""

    score: float
    right: bool
    tokens: int


@dataclasses.dataclass(frozen=True)
class Problem:
    """The samples of a problem, and what the other strategies did with it."""

    samples: Sequence[Sample]
    others: dict[str, Result]


async def graded(folder: Path, results: Sequence[Result], seconds: float) -> list[list[Sample]]:
    """All samples of the trees of these results, each program graded once."""
    async with Bubblewrap(workers=4).open() as sandbox:
        grader = UnitTests(sandbox=sandbox, seconds=seconds)
        return [await _samples(folder, result, grader) for result in results]


async def _samples(folder: Path, result: Result, grader: UnitTests) -> list[Sample]:
    root = from_json((folder / str(result.tree)).read_text(encoding="utf-8"))
    task = dataclasses.replace(root.task, target=result.target)
    nodes = [node for node in root.walk() if node is not root and node.is_leaf]
    programs = {node.state.answer: node for node in nodes}
    verdicts = await grader.score([node.asked(task) for node in programs.values()])
    said = dict(zip(programs, verdicts, strict=True))
    done = set(candidates(root))
    return [Sample(*_judged(node, said[node.state.answer], node in done)) for node in nodes]


def _judged(node: Node, verdict: object, done: bool) -> tuple[float, bool, int]:
    right = isinstance(verdict, Verdict) and verdict.score == 1
    return node.score if done else -1.0, right and done, node.cost.completion


def drawn(samples: Sequence[Sample], k: int, orders: int, seed: int) -> tuple[float, float]:
    """Right and tokens where drawing stops at the first that passes, after k at the latest."""
    dice = random.Random(seed)
    right = tokens = 0.0
    for _ in range(orders):
        best = None
        for sample in dice.sample(samples, min(k, len(samples))):
            tokens += sample.tokens
            if best is None or sample.score > best.score:
                best = sample
            if best.score >= 1:
                break
        right += best is not None and best.right
    return right / orders, tokens / orders


def interval(values: Floats) -> str:
    """The mean of values over problems, in points, with its bootstrap interval."""
    dice = np.random.default_rng(0)
    means = values[dice.integers(0, len(values), (RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{100 * values.mean():5.1f} ({100 * low:5.1f} to {100 * high:5.1f})"


def at_equal_tokens(curve: Sequence[tuple[Floats, Floats]], tokens: float) -> tuple[Floats, bool]:
    """For each problem, what drawing gets right where it costs so much; and whether it reaches."""
    costs = [float(spent.mean()) for _, spent in curve]
    if tokens >= costs[-1]:
        return curve[-1][0], False
    above = next(i for i, cost in enumerate(costs) if cost > tokens)
    if above == 0:
        return curve[0][0], False
    share = (tokens - costs[above - 1]) / (costs[above] - costs[above - 1])
    return (1 - share) * curve[above - 1][0] + share * curve[above][0], True


def table(problems: Sequence[Problem], orders: int) -> None:
    """Print both tables."""
    most = min(len(problem.samples) for problem in problems)
    print(f"{len(problems)} problems, {most} samples each; right in %, 95 % intervals\n")
    print(
        f"{'k':>3} {'pass@k':>24} {'best@k':>24} {'tokens':>7} "
        f"{'until one passes':>24} {'tokens':>7}"
    )
    curve: list[tuple[Floats, Floats]] = []
    ones = np.array([np.mean([s.tokens for s in problem.samples]) for problem in problems])
    for k in range(1, most + 1):
        pairs = [drawn(p.samples, k, orders, seed) for seed, p in enumerate(problems)]
        curve.append((np.array([r for r, _ in pairs]), np.array([t for _, t in pairs])))
        if k & (k - 1):
            continue
        cover = [
            _at(p, lambda s, k=k: pass_at_k(len(s), sum(x.right for x in s), k)) for p in problems
        ]
        best = [
            _at(p, lambda s, k=k: best_of_n_at_k([x.score for x in s], [x.right for x in s], k))
            for p in problems
        ]
        print(
            f"{k:>3} {interval(np.array(cover)):>24} {interval(np.array(best)):>24} "
            f"{k * ones.mean():>7.0f} {interval(curve[-1][0]):>24} {curve[-1][1].mean():>7.0f}"
        )
    print(f"\n{'strategy':<26} {'right':>24} {'tokens':>7} {'minus drawing until one passes':>32}")
    for name in problems[0].others:
        results = [problem.others[name] for problem in problems]
        right = np.array([float(result.grade == "right") for result in results])
        tokens = float(np.mean([result.usage.completion for result in results]))
        theirs, inside = at_equal_tokens(curve, tokens)
        mark = "" if inside else "  (tokens outside the curve)"
        print(
            f"{name:<26} {interval(right):>24} {tokens:>7.0f} {interval(right - theirs):>32}{mark}"
        )


def _at(problem: Problem, measure: Callable[[Sequence[Sample]], float]) -> float:
    return measure(problem.samples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--samples", default="best of 16", help="the strategy with the samples")
    parser.add_argument("--orders", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=5.0, help="for one hidden test")
    asked = parser.parse_args()
    rows = (asked.run / "results.jsonl").read_text(encoding="utf-8").splitlines()
    results = [TypeAdapter(Result).validate_json(row) for row in rows]
    bank = [result for result in results if result.strategy == asked.samples]
    if not bank:
        parser.error(f"no strategy {asked.samples!r} in {asked.run}")
    others: dict[str, dict[str, Result]] = {result.problem: {} for result in bank}
    for result in results:
        if result.problem in others:
            others[result.problem][result.strategy] = result
    samples = run_sync(graded, asked.run, bank, asked.seconds)
    found = zip(bank, samples, strict=True)
    table([Problem(each, others[result.problem]) for result, each in found], asked.orders)


if __name__ == "__main__":
    main()
