"""What a run looks like on the terminal while it goes on."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from branchwise.core.node import Node
from branchwise.runs.report import HEADINGS, Row, cells, footnotes
from branchwise.runs.store import Result


class _Shown:
    """What is drawn on the terminal while a block lasts, and where there is none is not.

    Args:
        console: where to.
        draw: what it looks like now.
    """

    def __init__(self, console: Console, draw: Callable[[], Table]) -> None:
        self.console = console
        self._live = Live(console=console, get_renderable=draw, refresh_per_second=4)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()


class Progress(_Shown):
    """An observer that draws a live table, or plain lines where there is no terminal.

    Args:
        console: where to.
    """

    def __init__(self, console: Console) -> None:
        self.problems = 0
        self.done: Counter[str] = Counter()
        self.right: Counter[str] = Counter()
        self.graded: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self.strategies: Sequence[str] = ()
        self.started = time.monotonic()
        self.kept = 0
        super().__init__(console, self._table)  # which draws it at once

    def began(self, strategies: Sequence[str], problems: int, kept: Sequence[Result]) -> None:
        """The run begins."""
        self.strategies, self.problems = strategies, problems
        self.kept = len(kept)
        for result in kept:
            self._count(result)
        self.tokens.clear()  # of this run: they tell its speed
        self.started = time.monotonic()
        if kept:
            self.console.print(f"{len(kept)} results are there already and are kept.")

    def grew(self, strategy: str, nodes: Sequence[Node]) -> None:
        """A search has grown nodes."""
        self.tokens[strategy] += sum(node.cost.completion for node in nodes)

    def finished(self, result: Result) -> None:
        """A search has ended."""
        self._count(result)
        done, everything = self.done.total(), self.problems * len(self.strategies)
        if not self.console.is_terminal and (done % 25 == 0 or done == everything):
            self.console.print(f"{done} of {everything} searches, {self._pace()}", highlight=False)

    def _count(self, result: Result) -> None:
        self.done[result.strategy] += 1
        self.graded[result.strategy] += result.grade != "ungraded"
        self.right[result.strategy] += result.grade == "right"

    def _pace(self) -> str:
        seconds = time.monotonic() - self.started
        return f"{self.tokens.total():,} tokens searched through in {seconds:.0f} s"

    def _table(self) -> Table:
        table = Table(title=self._pace(), title_justify="left", title_style="dim")
        for heading in ("strategy", "", "done", "right so far", "tokens"):
            table.add_column(heading, justify="left" if heading in {"", "strategy"} else "right")
        for name in self.strategies:
            graded = self.graded[name]
            table.add_row(
                name,
                ProgressBar(total=max(self.problems, 1), completed=self.done[name], width=24),
                f"{self.done[name]}/{self.problems}",
                f"{self.right[name] / graded:.0%}" if graded else "",
                f"{self.tokens[name]:,}",
            )
        return table


class Bar(_Shown):
    """One bar, or plain lines where there is no terminal; called with what is done, and of what.

    Args:
        what: is counted.
        console: where to.
    """

    def __init__(self, what: str, console: Console) -> None:
        self.what = what
        self._done, self._all = 0, 0
        super().__init__(console, self._bar)

    def __call__(self, done: int, everything: int) -> None:
        """So much is done."""
        self._done, self._all = done, everything
        if not self.console.is_terminal and (done % 25 == 0 or done == everything):
            self.console.print(f"{done} of {everything} {self.what}", highlight=False)

    def _bar(self) -> Table:
        table = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=max(self._all, 1), completed=self._done, width=40)
        table.add_row(bar, f"{self._done} of {self._all} {self.what}")
        return table


def show(rows: Sequence[Row], title: str, console: Console) -> None:
    """Print the table of a run."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*cells(row))
    console.print(table)
    for note in footnotes(rows):
        console.print(note, style="dim", highlight=False)
