"""From results to a table with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from branchwise.runs.store import Result
from branchwise.verifiers.quality import wilson

Z = 1.959963984540054  # the 97.5 % point of the normal distribution


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table.

    Args:
        strategy: its name.
        right: how many problems it got right.
        graded: how many could be graded: the n of the accuracy.
        ungraded: how many could not, or failed before there was an answer to grade.
        low: lower end of the 95 % Wilson interval of the accuracy.
        high: its upper end.
        tokens: tokens written, all problems together.
        calls: model calls, all problems together.
        seconds: the model's time in seconds, all problems together.
        gain: accuracy minus that of the baseline on the problems both have; None for the baseline.
        gain_low: lower end of the 95 % interval of the gain (paired, Wald).
        gain_high: its upper end.
        p: the two-sided exact McNemar test against the baseline.
    """

    strategy: str
    right: int
    graded: int
    ungraded: int
    low: float
    high: float
    tokens: int
    calls: int
    seconds: float
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None
    p: float | None = None

    @property
    def accuracy(self) -> float:
        """The share of graded problems that are right; 0 where none is graded."""
        return self.right / self.graded if self.graded else 0.0


def mcnemar(won: int, lost: int) -> float:
    """The two-sided exact p-value that two paired strategies are equally good (McNemar 1947).

    Args:
        won: problems that only the one got right.
        lost: problems that only the other got right.

    Example:
        >>> mcnemar(5, 0)
        0.0625
    """
    n = won + lost
    tail = sum(math.comb(n, k) for k in range(min(won, lost) + 1))
    return min(1.0, 2 * tail / 2**n)


def table(strategies: Sequence[str], results: Iterable[Result]) -> list[Row]:
    """One row for each strategy; the first one is the baseline of the others.

    Args:
        strategies: their names, in order.
        results: what is there, of these strategies.
    """
    by_strategy: dict[str, dict[str, Result]] = {name: {} for name in strategies}
    for result in results:
        by_strategy[result.strategy][result.problem] = result
    baseline = by_strategy[strategies[0]]
    rows: list[Row] = []
    for name, done in by_strategy.items():
        graded = [result for result in done.values() if result.grade != "ungraded"]
        right = sum(result.grade == "right" for result in graded)
        low, high = wilson(right, len(graded))
        rows.append(
            Row(
                name,
                right,
                len(graded),
                len(done) - len(graded),
                low,
                high,
                tokens=sum(result.usage.completion for result in done.values()),
                calls=sum(result.usage.calls for result in done.values()),
                seconds=sum(result.usage.seconds for result in done.values()),
                **({} if name == strategies[0] else _gain(done, baseline)),
            )
        )
    return rows


def _gain(ours: dict[str, Result], theirs: dict[str, Result]) -> dict[str, float]:
    pairs = [
        (result.grade == "right", theirs[problem].grade == "right")
        for problem, result in ours.items()
        if result.grade != "ungraded" and problem in theirs and theirs[problem].grade != "ungraded"
    ]
    if not pairs:
        return {}
    won = sum(a and not b for a, b in pairs)
    lost = sum(b and not a for a, b in pairs)
    n = len(pairs)
    gain = (won - lost) / n
    half = Z * math.sqrt(max(won + lost - (won - lost) ** 2 / n, 0.0)) / n
    return {
        "gain": gain,
        "gain_low": max(-1.0, gain - half),
        "gain_high": min(1.0, gain + half),
        "p": mcnemar(won, lost),
    }


HEADINGS = (
    "strategy",
    "right",
    "95 % interval",
    "gain",
    "95 % interval",
    "p",
    "tokens",
    "calls",
    "s",
)


def cells(row: Row) -> tuple[str, ...]:
    """A row as text, one cell for each of `HEADINGS`."""
    right = f"{row.accuracy:.1%}" if row.graded else "-"
    span = f"{100 * row.low:.0f} to {100 * row.high:.0f}" if row.graded else ""
    gain = gain_span = p = ""
    if row.gain is not None and row.gain_low is not None and row.gain_high is not None:
        gain = f"{100 * row.gain:+.1f}"
        gain_span = f"{100 * row.gain_low:+.0f} to {100 * row.gain_high:+.0f}"
        p = "" if row.p is None else f"{row.p:.2g}"
    spent = (f"{row.tokens:,}", f"{row.calls:,}", f"{row.seconds:,.0f}")
    return (row.strategy, right, span, gain, gain_span, p, *spent)


def footnotes(rows: Sequence[Row]) -> list[str]:
    """What the columns mean, and what could not be graded."""
    graded = max((row.graded for row in rows), default=0)
    notes = [
        f"{graded} problems; gain over {rows[0].strategy} in points, paired; p: McNemar, exact;",
        "tokens, calls and the model's seconds as if each strategy had run alone.",
    ]
    notes += [
        f"{row.strategy}: {row.ungraded} could not be graded and do not count."
        for row in rows
        if row.ungraded
    ]
    return notes


def markdown(rows: Sequence[Row]) -> str:
    """The table as Markdown."""
    lines = [HEADINGS, tuple("---" for _ in HEADINGS), *(cells(row) for row in rows)]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"{table}\n{chr(10).join(footnotes(rows))}\n"
