"""When a call is tried again: what the server asks for, full jitter, and a deadline."""

from __future__ import annotations

import math
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime

import anyio

LONGEST = 120.0
"""The longest wait, in seconds, whatever a server asks for."""

_NUMBER = re.compile(r"\d+(\.\d*)?(e\+?\d+)?", re.IGNORECASE | re.ASCII)
_SPAN = re.compile(
    r"(?:(?P<h>\d+(?:\.\d+)?)h)?(?:(?P<m>\d+(?:\.\d+)?)m(?!s))?"
    r"(?:(?P<s>\d+(?:\.\d+)?)s)?(?:(?P<ms>\d+(?:\.\d+)?)ms)?",
    re.IGNORECASE | re.ASCII,
)
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


@dataclass(frozen=True, slots=True)
class Clock:
    """Time as the retries see it; a test hands over its own.

    Args:
        now: seconds on a clock that never jumps.
        sleep: waits so many seconds.
        wall: seconds since the epoch, for dates that a server names.
        jitter: draws the share of a window that is waited, in [0, 1).
    """

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep
    wall: Callable[[], float] = time.time
    jitter: Callable[[], float] = field(default_factory=lambda: random.Random().random)  # noqa: S311  (spreads load; no secret)


def asked_wait(headers: Mapping[str, str], wall: float) -> float | None:
    """The wait that a server asks for in `Retry-After`, at most `LONGEST`.

    Args:
        headers: the reply's headers, with names in lower case.
        wall: the time now, in seconds since the epoch.

    Returns:
        Seconds; None where nothing is asked or what is asked is no finite, non-negative time.

    Example:
        >>> asked_wait({"retry-after": "1m30s"}, wall=0.0)
        90.0
        >>> asked_wait({"retry-after": "inf"}, wall=0.0) is None
        True
    """
    if (seconds := _span(headers.get("retry-after-ms", ""))) is not None:
        return min(seconds / 1000, LONGEST)
    told = headers.get("retry-after", "").strip()
    seconds = _span(told)
    if seconds is None:
        seconds = _until(told, wall)
    return None if seconds is None else min(seconds, LONGEST)


def _span(told: str) -> float | None:
    told = told.strip()
    if _NUMBER.fullmatch(told):
        seconds = float(told)
    elif told and (parts := _SPAN.fullmatch(told)):
        seconds = sum(float(n) * _SECONDS[unit] for unit, n in parts.groupdict("0").items())
    else:
        return None
    return seconds if math.isfinite(seconds) else None


def _until(told: str, wall: float) -> float | None:
    try:
        return max(0.0, parsedate_to_datetime(told).timestamp() - wall)
    except (ValueError, OverflowError):
        return None


def pause(tries: int, asked: float | None, jitter: float, *, first: float = 0.5) -> float:
    """How long to wait after so many failed tries: full jitter over a doubling window.

    What the server asks for is waited in full and the jitter comes on top, at most as much again,
    so that those who were sent away together do not come back together (Brooker 2015, "Exponential
    backoff and jitter").

    Args:
        tries: how many tries have failed, from 1.
        asked: the seconds that the server asks for.
        jitter: the share of the window, in [0, 1).
        first: the first window in seconds.

    Example:
        >>> pause(3, None, 0.5), pause(1, 8.0, 0.5)
        (1.0, 8.25)
    """
    window = min(LONGEST / 2, first * 2.0 ** min(tries - 1, 16))
    if asked is None:
        return jitter * window
    return asked + jitter * min(window, max(first, asked))


class Deadline:
    """How long one request may take with all its retries.

    Args:
        clock: the time.
        seconds: the allowance.

    Example:
        >>> Deadline(Clock(now=lambda: 5.0), 10.0).left
        10.0
    """

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._at = clock.now() + seconds

    @property
    def left(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self._at - self._clock.now()

    def extend(self, seconds: float) -> None:
        """Take a wait off the count that was nobody's fault, such as that for a connection."""
        self._at += seconds
