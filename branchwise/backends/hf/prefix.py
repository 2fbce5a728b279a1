"""What has been read, as a tree: sequences that begin alike share what is kept of the beginning."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import count
from typing import NamedTuple, TypeAlias

from branchwise.backends.hf.pool import Run, Space, split

Tokens: TypeAlias = tuple[int, ...]


class Segment:
    """Tokens that follow one another, and where their keys and values lie.

    A segment hangs on a place of its parent, which may be anywhere in it: nothing is ever split.

    Args:
        parent: the place that it continues; None for the root.
        tokens: what it says.
        runs: the slots of its tokens, in their order.
        filled: of how many tokens the keys and values are there; the rest is about to be read.

    Attributes:
        start: the position of its first token.
        children: the segments that hang on it, by how many of its tokens they follow and by their
            own first token.
        held: up to which of its tokens somebody holds on to it, and how many do; each of the
            segments that hang on it does.
        seen: when it was last let go of.
    """

    __slots__ = ("children", "filled", "held", "parent", "runs", "seen", "start", "tokens")

    def __init__(
        self, parent: Place | None, tokens: Tokens, runs: Sequence[Run], filled: int
    ) -> None:
        self.parent = parent
        self.start: int = parent.position if parent else 0
        self.tokens = tokens
        self.runs = list(runs)
        self.filled = filled
        self.children: dict[tuple[int, int], Segment] = {}
        self.held: dict[int, int] = {}
        self.seen = 0

    @property
    def idle(self) -> bool:
        """Whether nothing hangs on it and nobody holds it."""
        return not self.held

    @property
    def needed(self) -> int:
        """How many of its tokens somebody needs."""
        return max(self.held, default=0)


class Place(NamedTuple):
    """A point between two tokens; to fork there is to make one: no copy, no bytes.

    Args:
        segment: where it is.
        upto: how many tokens of the segment stand before it.
    """

    segment: Segment
    upto: int

    @property
    def position(self) -> int:
        """How many tokens stand before it in all."""
        return self.segment.start + self.upto

    @property
    def ready(self) -> bool:
        """Whether the keys and values of all that stands before it are there.

        A segment is read after what it hangs on, so that its own tell.
        """
        place: Place | None = self
        while place is not None:
            if place.segment.filled < place.upto:
                return False
            if place.segment.filled:
                return True
            place = place.segment.parent
        return True

    def runs(self) -> list[Run]:
        """The slots of all that stands before it, in order."""
        pieces: list[list[Run]] = []
        place: Place | None = self
        while place is not None:
            segment, upto = place
            whole = upto == len(segment.tokens)
            pieces.append(segment.runs if whole else split(segment.runs, upto)[0])
            place = segment.parent
        return [run for piece in reversed(pieces) for run in piece]


class Tree:
    """The prefix tree. What is held stays; of the rest the longest unused goes when room is needed.

    Args:
        space: the slots that it hands out.

    Attributes:
        segments: how many it has, the root not counted.

    Example:
        >>> tree = Tree(Space(100))
        >>> said = tree.adopt(tree.top, (5, 6, 7), tree.room(3) or [])
        >>> tree.find((5, 6, 9)).position  # and to fork there is to hang something on that place
        2
    """

    def __init__(self, space: Space) -> None:
        self._space = space
        self._root = Segment(None, (), (), 0)
        self._root.held[0] = 1
        self._ticks = count(1)
        # Idle segments by when they were last used; entries that are no longer true stay behind.
        self._idle: list[tuple[int, int, Segment]] = []
        self.segments = 0

    @property
    def top(self) -> Place:
        """The place before the first token."""
        return Place(self._root, 0)

    def find(self, tokens: Sequence[int], start: Place | None = None) -> Place:
        """The farthest place that these tokens lead to.

        Args:
            tokens: what stands between the start and the place.
            start: where they begin; the top where it is not said.
        """
        place = start or self.top
        at = 0
        while at < len(tokens):
            segment, upto = place
            child = segment.children.get((upto, tokens[at]))
            if child is not None:
                place = Place(child, 0)
                continue
            common = _common(segment.tokens, upto, tokens, at)
            if not common:
                break
            at += common
            place = Place(segment, upto + common)
        return place

    def add(self, place: Place, tokens: Tokens, runs: Sequence[Run], filled: int = 0) -> Segment:
        """Hang tokens on a place from which none of the tree's lead the same way."""
        segment = Segment(place, tokens, runs, filled)
        place.segment.children[place.upto, tokens[0]] = segment
        self.hold(place)
        self.segments += 1
        self._touch(segment)
        return segment

    def adopt(self, place: Place, tokens: Tokens, runs: Sequence[Run]) -> Place:
        """Make what was read elsewhere part of the tree; what the tree has already is given back.

        Args:
            place: what the tokens continue.
            tokens: the tokens.
            runs: their slots; the tree's from here on.
        """
        found = self.find(tokens, place)
        if not found.ready:
            # What is about to be read cannot be built on yet.
            self._space.give(runs)
            return place
        known = found.position - place.position
        given, kept = split(runs, known)
        self._space.give(given)
        if known == len(tokens):
            self._touch(found.segment)
            return found
        segment = self.add(found, tokens[known:], kept, len(tokens) - known)
        return Place(segment, len(segment.tokens))

    def hold(self, place: Place) -> None:
        """Keep all that stands before a place until it is released."""
        held = place.segment.held
        held[place.upto] = held.get(place.upto, 0) + 1

    def release(self, place: Place) -> None:
        """Undo one `hold`."""
        _let_go(place)
        self._touch(place.segment)

    def room(self, slots: int) -> list[Run] | None:
        """Free slots, at the price of what is longest unused; None where too much is held."""
        while self._space.free < slots:
            if not self._evict() and not self._shorten():
                return None
        return self._space.take(slots)

    def cut(self, segment: Segment) -> bool:
        """Forget of a segment what nobody needs; whether that was anything."""
        needed = segment.needed
        if segment.parent is None or needed == len(segment.tokens):
            return False
        if not needed:
            self._drop(segment)
            return True
        segment.runs, rest = split(segment.runs, needed)
        segment.tokens = segment.tokens[:needed]
        segment.filled = min(segment.filled, needed)
        self._space.give(rest)
        return True

    def forget(self, segment: Segment) -> None:
        """Let no search lead to a segment again; it goes when it is idle."""
        parent = segment.parent
        if parent is not None:
            key = (parent.upto, segment.tokens[0])
            if parent.segment.children.get(key) is segment:
                del parent.segment.children[key]

    def _touch(self, segment: Segment) -> None:
        segment.seen = max(segment.seen, next(self._ticks))
        self._rest(segment)

    def _rest(self, segment: Segment) -> None:
        """Let an idle segment be found by who needs room."""
        if not segment.idle:
            return
        if len(self._idle) > 2 * self.segments + 64:
            self._idle = [entry for entry in self._idle if _true(entry)]
            heapq.heapify(self._idle)
        heapq.heappush(self._idle, (segment.seen, id(segment), segment))

    def _evict(self) -> bool:
        while self._idle:
            entry = heapq.heappop(self._idle)
            if _true(entry):
                self._drop(entry[2])
                return True
        return False

    def _shorten(self) -> bool:
        """Cut all segments that are held in the middle; whether there were any."""
        left, found = [self._root], False
        while left:
            segment = left.pop()
            left += segment.children.values()
            found |= self.cut(segment)
        return found

    def _drop(self, segment: Segment) -> None:
        self.forget(segment)
        self._space.give(segment.runs)
        segment.runs = []
        self.segments -= 1
        if segment.parent is not None:
            place, segment.parent = segment.parent, None
            _let_go(place)
            # Who used the child has used the parent.
            place.segment.seen = max(place.segment.seen, segment.seen)
            self._rest(place.segment)


def _let_go(place: Place) -> None:
    held = place.segment.held
    held[place.upto] -= 1
    if not held[place.upto]:
        del held[place.upto]


def _true(entry: tuple[int, int, Segment]) -> bool:
    seen, _, segment = entry
    return segment.seen == seen and segment.idle and segment.parent is not None


def _common(a: Sequence[int], start: int, b: Sequence[int], at: int) -> int:
    """How many tokens `a` from `start` and `b` from `at` have in common."""
    most = min(len(a) - start, len(b) - at)
    if a[start : start + most] == b[at : at + most]:
        return most
    return next(i for i in range(most) if a[start + i] != b[at + i])
