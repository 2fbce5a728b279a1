"""Guess several tokens, read them in one pass, keep those that the model might have drawn itself.

What is kept follows the model's own law exactly, whatever the guesses are worth (Leviathan et al.
2023, *Fast Inference from Transformers via Speculative Decoding*, §2.3; Chen et al. 2023).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch.nn.functional import pad

from branchwise.backends.hf.attention import Span
from branchwise.backends.hf.model import Model
from branchwise.backends.hf.pool import Space
from branchwise.backends.hf.prefix import Tree
from branchwise.backends.hf.row import Row, Tail
from branchwise.backends.hf.sampler import Choice, Past, probabilities, uniform

# Streams of random numbers beside the sampler's own.
_ACCEPT, _REPLACE, _GUESS = 1, 2, 3
_CHUNK = 1024  # tokens that a drafting model reads in a pass


@dataclass(frozen=True, slots=True, eq=False)
class Draft:
    """What a row may go on with.

    Args:
        tokens: the guess.
        weights: the distributions that its tokens were drawn from, each of shape (vocabulary,);
            empty where the guess was certain.
    """

    tokens: Sequence[int]
    weights: Sequence[torch.Tensor] = ()

    def law(self, at: int, size: int, device: torch.device) -> torch.Tensor:
        """The distribution that one of its tokens was drawn from, shape (vocabulary,)."""
        if self.weights:
            return self.weights[at]
        certain = torch.zeros(size, dtype=torch.float64, device=device)
        certain[self.tokens[at]] = 1
        return certain


class Drafter(Protocol):
    """Guesses what rows go on with."""

    def drafts(self, rows: Sequence[Row]) -> Mapping[Row, Draft]:
        """A guess for each row that there is one for."""
        ...


def verify(
    target: torch.Tensor, guess: torch.Tensor, tokens: torch.Tensor, numbers: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Accept guessed tokens or replace them, so that what comes out follows the target.

    A token x is accepted with probability min(1, p(x) / q(x)); if it is not, another one is drawn
    from the normalised positive part of p - q.

    Args:
        target: p, shape (rows, vocabulary), double precision.
        guess: q, likewise.
        tokens: what was drawn from q, shape (rows,).
        numbers: uniform random numbers, shape (2, rows): to accept, and to replace.

    Returns:
        the tokens, shape (rows,), and whether they are those that were guessed, shape (rows,).

    Example:
        >>> certain, other = torch.eye(2, dtype=torch.float64)
        >>> verify(certain[None], other[None], torch.tensor([1]), torch.zeros(2, 1).double())
        (tensor([0]), tensor([False]))
    """
    column = tokens[:, None]
    p, q = (law.gather(-1, column)[:, 0] for law in (target, guess))
    accepted = numbers[0] * q < p
    left = (target - guess).clamp_(min=0)
    sums = left.cumsum(-1)
    reached = (numbers[1] * sums[:, -1])[:, None]
    others = torch.searchsorted(sums, reached, right=True)[:, 0].clamp_(max=target.shape[1] - 1)
    return torch.where(accepted, tokens, others), accepted


def settle(
    target: torch.Tensor,
    drafts: Sequence[Draft],
    at: int,
    seeds: Sequence[int],
    positions: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """`verify` for one token of several drafts, with the random numbers of their rows."""
    tokens = torch.tensor([draft.tokens[at] for draft in drafts], device=target.device)
    laws = [draft.law(at, target.shape[1], target.device) for draft in drafts]
    numbers = [uniform(seeds, positions, stream) for stream in (_ACCEPT, _REPLACE)]
    return verify(target, torch.stack(laws), tokens, torch.stack(numbers).to(target.device))


def _drafted(rows: Sequence[Row], most: int) -> dict[Row, int]:
    """How many tokens to guess for each row; mirostat learns from each, so it takes them singly."""
    # The last token that a row may draw is not worth guessing: it is drawn in that pass anyway.
    wanted = {row: min(most, row.left - 1) for row in rows if not row.given}
    return {r: n for r, n in wanted.items() if n > 0 and not r.sampling.mirostat}


class Lookup:
    """Guesses that a text repeats itself: what followed the newest tokens when they last occurred.

    Prompt lookup decoding (Saxena 2023): it needs no model and pays where answers copy.

    Args:
        most: tokens of a guess.
        sizes: how many of the newest tokens must recur; the first that do decide.
    """

    def __init__(self, most: int, sizes: Sequence[int] = (3, 2)) -> None:
        self._most = most
        self._sizes = sizes
        self._indexes: dict[Row, _Index] = {}

    def drafts(self, rows: Sequence[Row]) -> Mapping[Row, Draft]:  # noqa: D102  (see Drafter)
        old, self._indexes = self._indexes, {}
        found: dict[Row, Draft] = {}
        for row, most in _drafted(rows, self._most).items():
            index = self._indexes[row] = old.get(row) or _Index(self._sizes)
            if tokens := index.follows(row.path)[:most]:
                found[row] = Draft(tokens)
        return found


class _Index:
    """Where each few tokens of a growing text last occurred with something after them."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = sizes
        self._ends: dict[tuple[int, ...], int] = {}
        self._done = 0

    def follows(self, path: Sequence[int]) -> Sequence[int]:
        """What followed the newest tokens before; empty where they are new."""
        for end in range(self._done + 1, len(path)):
            for size in self._sizes:
                if size <= end:
                    self._ends[tuple(path[end - size : end])] = end
        self._done = max(self._done, len(path) - 1)
        ends = (self._ends.get(tuple(path[-size:])) for size in self._sizes if size <= len(path))
        end = next((end for end in ends if end is not None), len(path))
        return path[end:]


class Smaller:
    """Guesses with a smaller model of the same vocabulary, by each row's own sampling.

    Args:
        model: the smaller model.
        most: tokens of a guess.
        size: of the larger model's vocabulary; the two may be padded differently.
        longest: tokens that the smaller model can hold in one sequence.
    """

    def __init__(self, model: Model, most: int, size: int, longest: int = sys.maxsize) -> None:
        self._model = model
        self._most = most
        self._size = size
        self._longest = longest
        self._space = Space(model.pool.slots)
        self._tree = Tree(self._space)
        self._heads: dict[Row, _Head] = {}

    def drafts(self, rows: Sequence[Row]) -> Mapping[Row, Draft]:  # noqa: D102  (see Drafter)
        wanted = _drafted(rows, self._most)
        wanted = {r: n for r, n in wanted.items() if len(r.path) + n <= self._longest}
        for row in [row for row in self._heads if row not in wanted]:
            self._leave(self._heads.pop(row))
        for row in wanted:
            if row not in self._heads and (head := self._enter(row.path[:-1])):
                self._heads[row] = head
        heads = {row: self._heads[row] for row in wanted if row in self._heads}
        for row, head in heads.items():
            head.follow(row.path)
        guesses: dict[Row, tuple[list[int], list[torch.Tensor]]] = {row: ([], []) for row in heads}
        for at in range(max((wanted[row] for row in heads), default=0)):
            # Who could not be guessed for is left out from there on.
            open_ = [row for row in heads if at < wanted[row] and len(guesses[row][0]) == at]
            open_ = [row for row in open_ if self._reserve(heads[row])]
            if not open_:
                break
            self._guess(open_, [heads[row] for row in open_], [guesses[row] for row in open_])
        return {row: Draft(*guess) for row, guess in guesses.items() if guess[0]}

    def _guess(
        self,
        rows: Sequence[Row],
        heads: Sequence[_Head],
        guesses: Sequence[tuple[list[int], list[torch.Tensor]]],
    ) -> None:
        """One token more for each row."""
        spans = [head.tail.span(head.path[head.at :]) for head in heads]
        ends = [end - 1 for end in accumulate(len(span.tokens) for span in spans)]
        logits = self._model.read(spans, ends).logits
        assert logits is not None
        logits = logits[:, : self._size]
        pasts = [Past(head.path, row.asked) for row, head in zip(rows, heads, strict=True)]
        choice = Choice.of(
            [row.sampling for row in rows], pasts, logits.device, self._model.embedding
        )
        laws = pad(probabilities(logits, choice), (0, self._size - logits.shape[1]))
        positions = [len(head.path) - 1 for head in heads]
        numbers = uniform([row.seed for row in rows], positions, _GUESS).to(laws.device)
        sums = laws.nan_to_num(1).cumsum(-1)
        tokens = torch.searchsorted(sums, numbers[:, None] * sums[:, -1:], right=True)
        tokens = tokens.clamp_(max=laws.shape[1] - 1)[:, 0].tolist()
        for head, span, token, law, guess in zip(heads, spans, tokens, laws, guesses, strict=True):
            head.tail.known += len(span.tokens)
            if not law.isnan().any():  # a guess from no law would bend the other model's
                head.path.append(token)
                guess[0].append(token)
                guess[1].append(law)

    def _reserve(self, head: _Head) -> bool:
        missing = len(head.path) - head.at + head.tail.known - head.tail.slots
        if missing <= 0:
            return True
        runs = self._tree.room(max(missing, 2 * self._most))
        if runs is not None:
            head.tail.extend(runs)
        return runs is not None

    def _enter(self, path: Sequence[int]) -> _Head | None:
        """Read what is not known of a text; None where there is no room for it."""
        tokens = tuple(path)
        place = self._tree.find(tokens)
        self._tree.hold(place)
        while place.position < len(tokens):
            piece = tokens[place.position :][:_CHUNK]
            runs = self._tree.room(len(piece))
            if runs is None:
                self._tree.release(place)
                return None
            self._model.read([Span(piece, place.position, place.runs(), runs, 0)], [])
            farther = self._tree.adopt(place, piece, runs)
            self._tree.hold(farther)
            self._tree.release(place)
            place = farther
        return _Head(Tail(place, place.runs()), list(tokens))

    def _leave(self, head: _Head) -> None:
        self._space.give(head.tail.runs)
        self._tree.release(head.tail.place)


@dataclass(slots=True)
class _Head:
    """How far the smaller model has read one row.

    Args:
        tail: where it keeps that.
        path: the tokens, guesses included.
    """

    tail: Tail
    path: list[int]

    @property
    def at(self) -> int:
        """How many of the tokens it has read."""
        return self.tail.place.position + self.tail.known

    def follow(self, path: Sequence[int]) -> None:
        """Go on from what the row has become: of the guesses, what was right stays read."""
        agreed = next(
            (i for i, (a, b) in enumerate(zip(self.path, path, strict=False)) if a != b),
            min(len(self.path), len(path)),
        )
        self.tail.known = min(self.at, agreed, len(path) - 1) - self.tail.place.position
        self.path = list(path)
