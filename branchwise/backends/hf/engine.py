"""The loop over rows: what they share is read once, all go through the model together."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import torch

from branchwise.backends.hf.batch import Batch, Reading, Turn
from branchwise.backends.hf.model import Model, Seen
from branchwise.backends.hf.pool import Space
from branchwise.backends.hf.prefix import Place, Tokens, Tree
from branchwise.backends.hf.row import Row, Tail
from branchwise.backends.hf.sampler import Choice, Past, probabilities, sample, top, uniform
from branchwise.backends.hf.speculation import Drafter, settle
from branchwise.core.errors import BackendError

_ALONE = 1024  # tokens of contexts read in a pass that has nothing else to do
_BESIDE = 256  # the same beside rows that wait for their next token
_JUDGED = 128  # given tokens of one row in a pass: each takes a row of logits
_GROWTH = 32  # slots that a row takes at a time


class Engine:
    """A model and the loop that takes many rows through it.

    At each pass rows join and leave. A row's context is looked up in the prefix tree; what is not
    there is read, in pieces, once for all rows that share it. The same pass takes the newest token
    of every other row. When slots run out, what is longest unused is forgotten, and if that is not
    enough the youngest rows wait: what was forgotten is read again, and nothing fails for want of
    memory that can be had later.

    Args:
        model: what reads.
        ends: the tokens that end an answer.
        max_rows: the most rows of one pass.
        drafter: makes what guesses the next tokens, to be read in one pass; None for a token at a
            time.
    """

    def __init__(
        self,
        model: Model,
        ends: frozenset[int],
        max_rows: int,
        drafter: Callable[[], Drafter] | None = None,
    ) -> None:
        self._model = model
        self._ends = ends
        self._max_rows = max_rows
        self._make_drafter = drafter
        self._clear()

    def _clear(self) -> None:
        self._drafter = self._make_drafter() if self._make_drafter else None
        self._space = Space(self._model.pool.slots)
        self._tree = Tree(self._space)
        self._waiting: deque[Row] = deque()
        self._live: list[Row] = []
        self._readings: dict[Place, Reading] = {}
        # Set when a row had to make room: nobody enters before another one leaves.
        self._full = False

    def run(self, more: Callable[[], Sequence[Row]]) -> None:
        """Work until no row is left, first come, first served.

        Args:
            more: asked before each pass and after the last one; the rows that have arrived since.
        """
        try:
            with torch.inference_mode():
                while True:
                    self._waiting.extend(_together(more()))
                    self._leave([row for row in self._live if row.gone()])
                    if not self._live and not self._waiting:
                        return
                    self._admit()
                    if self._live:
                        self._pass()
        except BaseException:
            # What the tree calls read may not have been.
            self._clear()
            raise

    def _admit(self) -> None:
        """Let in as many as there are places and slots for."""
        while self._waiting and len(self._live) < self._max_rows and not self._full:
            row = self._waiting.popleft()
            if row.gone():
                continue
            if self._enter(row):
                self._live.append(row)
            elif self._live:
                self._waiting.appendleft(row)
                return
            else:
                row.error = self._too_large(row)

    def _enter(self, row: Row) -> bool:
        """Find what is known of a row's context and line up the rest for reading."""
        sequence = row.beginning
        place = self._tree.find(sequence)
        unread = sequence[place.position :]
        if unread:
            self._tree.hold(place)
            runs = self._tree.room(len(unread))
            self._tree.release(place)
            if runs is None:
                return False
            place = Place(self._tree.add(place, unread, runs), len(unread))
            self._readings[place] = Reading(place.segment, 0, place.upto)
            row.read += len(unread)
        self._tree.hold(place)
        row.tail = Tail(place, place.runs())
        row.waits = True
        # What follows a context is known only while its last token is read.
        if place not in self._readings:
            self._readings[place] = Reading(place.segment, place.upto - 1, place.upto)
            row.read += 1
        self._readings[place].rows.append(row)
        return True

    def _pass(self) -> None:
        """Take what is to be read, and what the rows go on with, through the model."""
        started = time.perf_counter()
        batch = self._batch()
        if batch.spans:
            seen = self._model.read(batch.spans, batch.wanted)
            self._look(batch.looking, seen)
            self._judge(batch.judging, seen)
            self._draw(batch.drawing, seen)
        share = (time.perf_counter() - started) / max(1, len(self._live))
        for row in self._live:
            row.seconds += share
        self._leave([row for row in self._live if row.done])

    def _batch(self) -> Batch:
        batch = Batch()
        going = [row for row in self._live if not row.waits and row.tail and row.tail.place.ready]
        drafts = self._drafter.drafts(going) if self._drafter else {}
        for row in going:
            tokens, draft = row.next(_JUDGED), drafts.get(row)
            if draft and row.tail and self._grow(row, row.tail, len(tokens) + len(draft.tokens)):
                batch.add_row(row, row.tail, [*tokens, *draft.tokens], draft)
            elif tail := self._reserve(row, len(tokens)):
                batch.add_row(row, tail, tokens, None)
        room = _BESIDE if batch.spans else _ALONE
        for place, reading in list(self._readings.items()):
            if room > 0 and self._wanted(place, reading) and reading.ready:
                tokens = min(reading.end - reading.at, room)
                room -= tokens
                if batch.add_reading(reading, tokens):
                    del self._readings[place]
        return batch

    def _wanted(self, place: Place, reading: Reading) -> bool:
        """Whether anybody needs all that is being read; if not, no more is read than is needed."""
        segment = reading.segment
        if reading.rows or segment.needed >= reading.end:
            return True
        del self._readings[place]
        shorter = Place(segment, segment.needed)
        self._tree.cut(segment)
        if shorter.upto > reading.at:
            rest = self._readings.setdefault(shorter, Reading(segment, reading.at, shorter.upto))
            # Who waits there has counted on this reading for what stands before.
            rest.at = min(rest.at, reading.at)
        return False

    def _grow(self, row: Row, tail: Tail, tokens: int) -> bool:
        """Whether a row has slots for its next tokens, or can have them from what is unused."""
        missing = tail.known + tokens - tail.slots
        if missing <= 0:
            return True
        most = max(missing, min(_GROWTH, row.left))
        runs = self._tree.room(most) or self._tree.room(missing)
        if runs is not None:
            tail.extend(runs)
        return runs is not None

    def _reserve(self, row: Row, tokens: int) -> Tail | None:
        """A row's tail with slots for its next tokens; None where it had to make room itself."""
        while row.tail is not None and not self._grow(row, row.tail, tokens):
            if len(self._live) == 1:
                row.error = self._too_large(row)
                return None
            self._put_off(self._live[-1])
        return row.tail

    def _put_off(self, row: Row) -> None:
        """Let a row wait again; what it has read can be forgotten now."""
        self._live.remove(row)
        self._release(row)
        if row.given:
            row.logprobs.clear()
        self._waiting.appendleft(row)
        self._full = True

    def _leave(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self._live.remove(row)
            self._release(row)
            self._full = False

    def _release(self, row: Row) -> None:
        """Hand what a row has read to the tree."""
        tail, row.tail = row.tail, None
        if tail is None:
            return
        if row.waits:
            self._readings[tail.place].rows.remove(row)
            row.waits = False
        self._space.give(tail.cut())
        start = tail.place.position
        self._tree.adopt(tail.place, tuple(row.path[start : start + tail.known]), tail.runs)
        self._tree.release(tail.place)

    def _judge(self, turns: Sequence[Turn], seen: Seen) -> None:
        """Note what the model makes of tokens that were given."""
        for turn in turns:
            row, tail = turn.row, turn.row.tail
            assert tail is not None
            # A context ends just before the first given token.
            first, count = (tail.known + 1, turn.tokens) if turn.tokens else (0, 1)
            given = torch.tensor(row.given[first : first + count], device=self._model.device)
            logits = _said(seen)[turn.first : turn.first + count].float()
            picked = logits.gather(-1, given[:, None])[:, 0]
            row.logprobs += (picked - logits.logsumexp(-1)).tolist()
            tail.known += turn.tokens
            if any(map(math.isnan, row.logprobs)):
                self._spoil(row)
            elif tail.known >= row.fed:
                row.finish = "end"

    def _look(self, turns: Sequence[Turn], seen: Seen) -> None:
        """Note what the model says after contexts that were looked at."""
        for turn in turns:
            row, look, at = turn.row, turn.row.look, turn.first
            assert look is not None
            if look.state:
                row.state = tuple(seen.states[at].tolist())
            if seen.values is not None:
                row.values = tuple(seen.values[at].tolist())
            if look.words:
                logits = _said(seen)[at].float()
                row.words = tuple((logits[list(look.words)] - logits.logsumexp(-1)).tolist())
            if any(map(math.isnan, (*row.state, *row.values, *row.words))):
                self._spoil(row, "values" if row.values else "logits")
            else:
                row.finish = "end"

    def _draw(self, turns: Sequence[Turn], seen: Seen) -> None:
        """Draw a token for each row; more where it guessed right."""
        at = 0
        while turns and seen.logits is not None:
            logits = _rows(seen.logits, [turn.first + at for turn in turns])
            for turn in turns:
                if turn.row.tail is not None and turn.tokens:
                    turn.row.tail.known += 1
            going: list[Turn] = []
            guessed = [turn.draft is not None and at < len(turn.draft.tokens) for turn in turns]
            for wanted, draw in ((False, self._sample), (True, self._verify)):
                places = [i for i, guess in enumerate(guessed) if guess == wanted]
                if places:
                    going += draw([turns[i] for i in places], _rows(logits, places), at)
            turns = going
            at += 1

    def _sample(self, turns: Sequence[Turn], logits: torch.Tensor, _at: int) -> list[Turn]:
        """Draw a token for each row; they have nothing left to go on with."""
        rows = [turn.row for turn in turns]
        choice = self._choice(rows)
        numbers = uniform([row.seed for row in rows], [len(row.path) - 1 for row in rows])
        drawn = sample(logits, choice, numbers.to(logits.device))
        self._note_tops(rows, logits, choice)
        columns = (drawn.tokens, drawn.logprobs, drawn.proposals, drawn.mus)
        for row, *values, mu in zip(rows, *(column.tolist() for column in columns), strict=True):
            row.mu = None if math.isnan(mu) else mu
            self._write(row, *values)
        return []

    def _verify(self, turns: Sequence[Turn], logits: torch.Tensor, at: int) -> list[Turn]:
        """Keep guessed tokens or replace them; the rows go on whose guess was kept."""
        rows = [turn.row for turn in turns]
        choice = self._choice(rows)
        law = probabilities(logits, choice)
        guesses = [turn.draft for turn in turns if turn.draft is not None]
        seeds, positions = [row.seed for row in rows], [len(row.path) - 1 for row in rows]
        tokens, kept = settle(law, guesses, at, seeds, positions)
        self._note_tops(rows, logits, choice)
        logprobs = logits.double().log_softmax(-1)
        chosen = (x.gather(-1, tokens[:, None])[:, 0].tolist() for x in (logprobs, law.log()))
        for row, *values in zip(rows, tokens.tolist(), *chosen, strict=True):
            self._write(row, *values)
        return [
            t for t, right in zip(turns, kept.tolist(), strict=True) if right and not t.row.done
        ]

    def _choice(self, rows: Sequence[Row]) -> Choice:
        pasts = [Past(row.path, row.asked, row.mu) for row in rows]
        samplings = [row.sampling for row in rows]
        return Choice.of(samplings, pasts, self._model.device, self._model.embedding)

    def _note_tops(self, rows: Sequence[Row], logits: torch.Tensor, choice: Choice) -> None:
        most = max(row.top for row in rows)
        if most:
            columns = [column.tolist() for column in top(logits, choice, most)]
            for row, *lists in zip(rows, *columns, strict=True):
                if row.top:
                    row.tops.append(list(zip(*lists, strict=True))[: row.top])

    def _write(self, row: Row, token: int, logprob: float, proposal: float) -> None:
        if math.isnan(logprob):
            self._spoil(row)
            return
        row.write(token, logprob, proposal)
        if token in self._ends:
            row.finish = "end"
        elif row.stops(token):
            row.finish = "stop"
        elif len(row.tokens) == row.limit:
            row.finish = "length"

    def _spoil(self, row: Row, what: str = "logits") -> None:
        """Fail a row, and let nobody build on what it has read."""
        row.error = BackendError(f"the model's {what} are not numbers", hint="try dtype='float32'")
        if row.tail is not None:
            row.tail.known = 0
            self._tree.forget(row.tail.place.segment)

    def _too_large(self, row: Row) -> BackendError:
        slots = self._space.slots
        return BackendError(
            f"{len(row.path) + 1} tokens do not fit the memory for keys and values, "
            f"which holds {slots}",
            hint="raise `memory`, the gigabytes of it",
        )


def _together(rows: Sequence[Row]) -> list[Row]:
    """Rows that share a context stand side by side: attention reads it once for neighbours."""
    groups: dict[Tokens, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.context, []).append(row)
    return [row for group in groups.values() for row in group]


def _said(seen: Seen) -> torch.Tensor:
    assert seen.logits is not None  # nobody asks a model for words that has no language head
    return seen.logits


def _rows(logits: torch.Tensor, places: Sequence[int]) -> torch.Tensor:
    """Some rows; all of them, which is the rule, without a copy."""
    return logits if places == list(range(len(logits))) else logits[places]
