"""How many requests an endpoint gets at once: found out by asking, never by a timer."""

from __future__ import annotations


class Limiter:
    """Additive increase, multiplicative decrease, with slow start (Jacobson 1988).

    It grows only while it is the limit that holds requests back. It is cut at most once for the
    requests that were under way together: the *round* a request started in decides, and not a time
    to cool down, so no `Retry-After` can freeze it.

    Args:
        most: the largest limit.
        start: the first limit.
        least: where cutting ends.

    Attributes:
        limit: how many requests may be under way.
        running: how many are.
        round: counts the cuts.

    Example:
        >>> limiter = Limiter(most=100)
        >>> limiter.cut(limiter.take())
        >>> limiter.limit
        8.0
    """

    def __init__(self, most: int, *, start: int = 16, least: int = 4) -> None:
        self._most = float(most)
        self._least = float(min(least, most))
        # Above this the growth is additive; below it every success adds one.
        self._threshold = float(most)
        self.limit = float(min(start, most))
        self.running = 0
        self.round = 0

    @property
    def free(self) -> bool:
        """Whether another request may start."""
        return self.running < int(self.limit)

    @property
    def load(self) -> float:
        """The share of the limit that is in use."""
        return self.running / self.limit

    def take(self) -> int:
        """Start a request; returns the round it belongs to."""
        self.running += 1
        return self.round

    def release(self) -> None:
        """End a request, however it went."""
        self.running -= 1

    def grow(self) -> None:
        """Note a success; call it before `release`."""
        if self.free:
            return
        slow_start = self.limit < self._threshold
        self.limit = min(self._most, self.limit + (1.0 if slow_start else 1.0 / self.limit))

    def cut(self, round_: int, *, to_one: bool = False) -> None:
        """Halve the limit for a request of this round; stale rounds are ignored.

        Args:
            round_: the round in which the refused request started.
            to_one: send one request at a time until one succeeds: for an endpoint that is down.
        """
        if round_ != self.round:
            return
        self.round += 1
        self._threshold = max(self._least, self.limit / 2)
        self.limit = 1.0 if to_one else self._threshold
