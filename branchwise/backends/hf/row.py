"""One sequence that grows: what it continues, what it becomes, and where its memory lies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from branchwise.backends.hf.attention import Span
from branchwise.backends.hf.pool import Run, split
from branchwise.backends.hf.prefix import Place, Tokens
from branchwise.core.config import Sampling
from branchwise.core.errors import BackendError
from branchwise.core.types import Finish

# A token that could have been drawn, and its log-probabilities before and after all adapters.
Top: TypeAlias = tuple[int, float, float]


@dataclass(slots=True)
class Tail:
    """What a row has added to a place of the prefix tree.

    Args:
        place: what it continues.
        past: the slots of all that stands before it.

    Attributes:
        runs: the slots that it has.
        known: how many of them hold keys and values.
    """

    place: Place
    past: Sequence[Run]
    runs: list[Run] = field(default_factory=list[Run])
    known: int = 0

    @property
    def slots(self) -> int:
        """How many slots it has."""
        return sum(run.length for run in self.runs)

    def cut(self) -> list[Run]:
        """Give up the slots that hold nothing."""
        self.runs, rest = split(self.runs, self.known)
        return rest

    def extend(self, runs: Sequence[Run]) -> None:
        """Take more slots; runs that touch become one."""
        for run in runs:
            last = self.runs[-1] if self.runs else None
            if last is not None and last.start + last.length == run.start:
                self.runs[-1] = Run(last.start, last.length + run.length)
            else:
                self.runs.append(run)

    def span(self, tokens: Sequence[int]) -> Span:
        """The next tokens, as a pass takes them."""
        return Span(tokens, self.place.position + self.known, self.past, self.runs, self.known)


@dataclass(frozen=True, slots=True)
class Look:
    """What is wanted of a place in a text: what the value head says there, and more.

    Args:
        state: whether the model's state is wanted.
        words: tokens of which it is wanted how probable they are as the next one.
    """

    state: bool = False
    words: Tokens = ()


@dataclass(slots=True, eq=False, kw_only=True)
class Row:
    """One sample, one text whose tokens are judged, or one place of a text that is looked at.

    Args:
        context: the tokens that it continues; at least one.
        given: tokens that are judged; where there are any, none is drawn.
        look: what is wanted after the context; where anything is, no token is drawn or judged.
        limit: the most tokens to draw; at least one.
        asked: how many tokens of the context are the question; the rest is the answer so far.
        seed: of its random numbers.
        sampling: how tokens are drawn.
        top: of how many of the most probable tokens to tell.
        stops: told each token; whether the text ends here.
        gone: whether nobody waits for the row any more.

    Attributes:
        tokens: what has been drawn; the token that ended it included.
        logprobs: the log-probability of each token, drawn or given, under the model itself: at
            temperature 1, before all adapters.
        proposals: of each token drawn, under the distribution that it was drawn from.
        tops: for each token drawn, the most probable ones in its place.
        state: of the model after the context, where it is looked at.
        values: of the model's value head there.
        words: the log-probabilities of the words there, at temperature 1.
        finish: why it ended; None while it has not.
        error: why it failed; None if it did not.
        seconds: its share of the time that the model has spent.
        read: tokens of the context that were read for this row and not for an earlier one.
        mu: mirostat's state.
        tail: where it is; None while it has no place.
        waits: whether its context is still being read.
        path: all its tokens: of the context, and those drawn or given.
    """

    context: Tokens
    given: Tokens = ()
    look: Look | None = None
    limit: int = 1
    asked: int = 0
    seed: int = 0
    sampling: Sampling = Sampling()
    top: int = 0
    stops: Callable[[int], bool] = lambda _: False
    gone: Callable[[], bool] = lambda: False
    tokens: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])
    proposals: list[float] = field(default_factory=list[float])
    tops: list[list[Top]] = field(default_factory=list[list[Top]])
    state: tuple[float, ...] = ()
    values: tuple[float, ...] = ()
    words: tuple[float, ...] = ()
    finish: Finish | None = None
    error: BackendError | None = None
    seconds: float = 0.0
    read: int = 0
    mu: float | None = None
    tail: Tail | None = None
    waits: bool = False
    path: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.path = [*self.context, *self.given]

    @property
    def beginning(self) -> Tokens:
        """What must have been read before the row can go on."""
        return self.context if self.given else tuple(self.path)

    @property
    def done(self) -> bool:
        """Whether nothing is left to do for it."""
        return self.finish is not None or self.error is not None

    @property
    def fed(self) -> int:
        """Up to which given token the model must read to judge all: nothing follows the last."""
        return len(self.given) - 1

    @property
    def left(self) -> int:
        """How many tokens it may still take through the model."""
        known = self.tail.known if self.tail else 0
        return self.fed - known if self.given else self.limit - len(self.tokens)

    def next(self, most: int) -> Sequence[int]:
        """The tokens that it takes through the model next; of given ones so many at most."""
        if self.given:
            known = self.tail.known if self.tail else 0
            return self.given[known : min(known + most, self.fed)]
        return self.tokens[-1:]

    def write(self, token: int, logprob: float, proposal: float) -> None:
        """Add a token that was drawn."""
        self.tokens.append(token)
        self.path.append(token)
        self.logprobs.append(logprob)
        self.proposals.append(proposal)
