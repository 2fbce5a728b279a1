"""What goes through the model in one pass, and who waits for what it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from branchwise.backends.hf.attention import Span
from branchwise.backends.hf.prefix import Place, Segment
from branchwise.backends.hf.row import Row, Tail
from branchwise.backends.hf.speculation import Draft


@dataclass(slots=True, eq=False)
class Reading:
    """Tokens of a segment on their way through the model, and who waits for the last of them.

    Args:
        segment: where they stand.
        at: how many tokens of the segment are behind it.
        end: up to which it goes.
        rows: who waits.
    """

    segment: Segment
    at: int
    end: int
    rows: list[Row] = field(default_factory=list[Row])

    @property
    def ready(self) -> bool:
        """Whether all that stands before its next token is there."""
        return Place(self.segment, self.at).ready

    def span(self, tokens: int) -> Span:
        """Its next tokens, as a pass takes them."""
        segment, at = self.segment, self.at
        past = segment.parent.runs() if segment.parent else []
        return Span(segment.tokens[at : at + tokens], segment.start + at, past, segment.runs, at)


@dataclass(frozen=True, slots=True)
class Turn:
    """A row's part in a pass.

    Args:
        row: whose it is.
        first: which of the wanted tokens is its first one.
        tokens: how many of its own tokens it takes through the model; 0 where it waited for its
            context, of which the last token is the wanted one.
        draft: what it guessed to follow, if anything.
    """

    row: Row
    first: int
    tokens: int
    draft: Draft | None = None


@dataclass(slots=True)
class Batch:
    """A pass as it is put together.

    Attributes:
        spans: the tokens that go through the model.
        wanted: after which of them it is of interest what the model says.
        drawing: the rows that draw from it.
        judging: the rows whose given tokens are judged by it.
        looking: the rows that look at what it says after their context.
    """

    spans: list[Span] = field(default_factory=list[Span])
    wanted: list[int] = field(default_factory=list[int])
    drawing: list[Turn] = field(default_factory=list[Turn])
    judging: list[Turn] = field(default_factory=list[Turn])
    looking: list[Turn] = field(default_factory=list[Turn])
    _tokens: int = 0

    def add_row(self, row: Row, tail: Tail, tokens: Sequence[int], draft: Draft | None) -> None:
        """A row's next tokens, each followed by something of interest."""
        self._turn(Turn(row, len(self.wanted), len(tokens), draft))
        self.wanted += range(self._tokens, self._tokens + len(tokens))
        self._add(tail.span(tokens))

    def add_reading(self, reading: Reading, tokens: int) -> bool:
        """The next tokens of a context; whether it is read with them."""
        self._add(reading.span(tokens))
        reading.at += tokens
        reading.segment.filled = max(reading.segment.filled, reading.at)
        if reading.at < reading.end:
            return False
        if reading.rows:
            for row in reading.rows:
                row.waits = False
                self._turn(Turn(row, len(self.wanted), 0))
            self.wanted.append(self._tokens - 1)
        return True

    def _turn(self, turn: Turn) -> None:
        row = turn.row
        turns = self.looking if row.look else self.judging if row.given else self.drawing
        turns.append(turn)

    def _add(self, span: Span) -> None:
        self.spans.append(span)
        self._tokens += len(span.tokens)
