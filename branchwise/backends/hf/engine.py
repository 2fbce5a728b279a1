"""The loop over rows: prompts are read once, rows are decoded together, and leave when done."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from branchwise.backends.hf.attention import Prompts, Slab
from branchwise.backends.hf.recent import KeysValues, Recent, Tokens
from branchwise.backends.hf.sampler import Choice, sample, uniform
from branchwise.core.config import Sampling
from branchwise.core.errors import BackendError
from branchwise.core.types import Finish

_TILE = 16  # rows of a matrix tile: a step of fewer costs as much
_PASS = 1024  # tokens of prompts that are read before a step, unless a single prompt is longer
_ROOM = 1 << 30  # bytes of keys and values that are kept for calls that continue earlier ones


@dataclass(slots=True, eq=False, kw_only=True)
class Row:
    """One sample: what it continues, how it is drawn, and what has been drawn so far.

    Args:
        context: the tokens that it continues; at least one.
        seed: of its random numbers.
        sampling: how tokens are drawn.
        limit: the most tokens to draw; at least one.
        stops: told each token; whether the text ends here.
        gone: whether nobody waits for the sample any more.

    Attributes:
        tokens: what has been drawn; the token that ended it included.
        logprobs: the log-probability of each, at temperature 1 without truncation.
        finish: why it ended; None while it has not.
        seconds: its share of the time that the model has spent.
        read: tokens of the context that were read for this row and not for an earlier one.
    """

    context: Tokens
    seed: int
    sampling: Sampling
    limit: int
    stops: Callable[[int], bool] = lambda _: False
    gone: Callable[[], bool] = lambda: False
    tokens: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])
    finish: Finish | None = None
    seconds: float = 0.0
    read: int = 0

    @property
    def position(self) -> int:
        """Where the newest token stands in the sequence; it is the next to go through the model."""
        return len(self.context) + len(self.tokens) - 1

    @property
    def newest(self) -> int:
        """The token that goes through the model next."""
        return self.tokens[-1] if self.tokens else self.context[-1]


class Engine:
    """A model and the loop that decodes many rows with it.

    Before each step rows join. All but the last token of their contexts are read in one packed
    pass, once for rows that share them, and not at all where they are recalled from earlier rows.
    The step takes one token of every live row through the model. A row that is done makes place
    for one that waits; where none does, the step gets smaller.

    Args:
        model: with the attention of this package.
        ends: the tokens that end an answer.
        max_rows: the most rows of one step.
    """

    def __init__(self, model: PreTrainedModel, ends: frozenset[int], max_rows: int) -> None:
        self._model = model
        self._ends = ends
        self._max_rows = max_rows
        self._device = model.device
        self._slab = Slab(model.config.get_text_config(), model.dtype, model.device)
        self._recent = Recent(_ROOM)
        tiled = model.dtype == torch.bfloat16 and model.device.type == "cpu"
        self._tile = _TILE if tiled else 1

    def decode(self, more: Callable[[], Sequence[Row]]) -> None:
        """Draw rows until there are none left, first come, first served.

        Args:
            more: asked before each step and after the last one; the rows that have arrived since.

        Raises:
            BackendError: the model's logits are not numbers.
        """
        waiting: deque[Row] = deque()
        live: list[Row] = []
        with torch.inference_mode():
            while True:
                waiting.extend(_together(more()))
                if not waiting and not live:
                    return
                started = time.perf_counter()
                self._admit(waiting, live)
                if live:
                    self._step(live)
                    share = (time.perf_counter() - started) / len(live)
                    for row in live:
                        row.seconds += share
                live = self._compact(live)

    def _admit(self, waiting: deque[Row], live: list[Row]) -> None:
        """Fill the free places with as many of those who wait as one pass can read.

        One pass, so that the rows that are live already do not stand still for long.
        """
        heads: dict[Tokens, KeysValues] = {}
        unread: dict[Tokens, None] = {}
        newcomers: list[Row] = []
        room = _PASS
        while waiting and len(live) + len(newcomers) < self._max_rows:
            row = waiting.popleft()
            head = row.context[:-1]
            if row.gone():
                continue
            if head not in heads and head not in unread:
                if recalled := self._recent.get(head):
                    heads[head] = recalled
                elif unread and len(head) > room:
                    waiting.appendleft(row)
                    break
                else:
                    row.read = len(row.context)
                    unread[head] = None
                    room -= len(head)
            newcomers.append(row)
        if not newcomers:
            return
        heads |= self._read([head for head in unread if head])
        longest = max(len(row.context) for row in newcomers)
        self._slab.reserve(len(live) + len(newcomers), longest)
        for row in newcomers:
            if head := row.context[:-1]:
                self._slab.put(len(live), *heads[head])
            live.append(row)

    def _read(self, heads: Sequence[Tokens]) -> dict[Tokens, KeysValues]:
        """Keys and values of the beginnings of contexts, which are read in one pass."""
        if not heads:
            return {}
        memory = Prompts([len(head) for head in heads])
        tokens = [token for head in heads for token in head]
        positions = [position for head in heads for position in range(len(head))]
        self._model.base_model(
            input_ids=self._tensor([tokens]),
            position_ids=self._tensor([positions]),
            use_cache=False,
            memory=memory,
        )
        read = {head: memory.read(index) for index, head in enumerate(heads)}
        for head, keys_values in read.items():
            self._recent.put(head, keys_values)
        return read

    def _step(self, live: Sequence[Row]) -> None:
        """Take the newest token of each row through the model and draw the next one."""
        positions = [row.position for row in live]
        self._slab.reserve(len(live), max(positions) + 1)
        padding = [0] * (-len(live) % self._tile)
        logits = self._model(
            input_ids=self._tensor([[row.newest for row in live] + padding]),
            position_ids=self._tensor([positions + padding]),
            use_cache=False,
            memory=self._slab.at(self._tensor(positions)),
        ).logits[0, : len(live)]
        choice = Choice.of([row.sampling for row in live], self._device)
        numbers = uniform([row.seed for row in live], positions).to(self._device)
        tokens, logprobs = sample(logits, choice, numbers)
        for row, token, logprob in zip(live, tokens.tolist(), logprobs.tolist(), strict=True):
            if math.isnan(logprob):
                raise BackendError("the model's logits are not numbers", hint="try dtype='float32'")
            row.tokens.append(token)
            row.logprobs.append(logprob)
            if token in self._ends:
                row.finish = "end"
            elif row.stops(token):
                row.finish = "stop"
            elif len(row.tokens) == row.limit:
                row.finish = "length"

    def _compact(self, live: list[Row]) -> list[Row]:
        """The rows that go on; the last ones move into the places of those that do not."""
        for place, row in enumerate(live):
            # What was cut may be continued; an answer that the model ended is not.
            if row.finish in {"stop", "length"}:
                known = (*row.context, *row.tokens[:-1])
                self._recent.put(known, self._slab.get(place, len(known)))
        rows, place = list(live), 0
        while place < len(rows):
            if _goes_on(rows[place]):
                place += 1
                continue
            last = rows.pop()
            if place < len(rows) and _goes_on(last):
                self._slab.move(len(rows), place, last.position)
                rows[place] = last
        return rows

    def _tensor(self, numbers: Sequence[object]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self._device)


def _goes_on(row: Row) -> bool:
    return row.finish is None and not row.gone()


def _together(rows: Sequence[Row]) -> list[Row]:
    """Rows that share a context stand side by side, so that they find places together."""
    groups: dict[Tokens, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.context, []).append(row)
    return [row for group in groups.values() for row in group]
