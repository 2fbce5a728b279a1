"""What a side of a comparison is: it extends contexts by samples."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import anyio

Tokens: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """Samples that continue one context.

    Args:
        prompt: the tokens of the question.
        said: the tokens of the answer so far.
        n: how many samples.
        new: how many tokens each of them has, exactly.
    """

    prompt: Tokens
    said: Tokens = ()
    n: int = 1
    new: int = 1

    @property
    def context(self) -> Tokens:
        """All that the samples continue."""
        return self.prompt + self.said


class Peer(Protocol):
    """One side of a comparison.

    Attributes:
        together: whether it is at its best when all that is known is asked for in one call; the
            others are asked concurrently.
        busy: seconds that it may go on computing after its last answer.
    """

    together: bool
    busy: float

    async def extend(self, asked: Sequence[Asked]) -> list[list[Tokens]]:
        """The samples of each, in order."""
        ...

    async def forwarded(self) -> int | None:
        """Tokens that have gone through the model since it was opened; None where it hides them."""
        ...


class Open(Protocol):
    """Opens a peer for a model's folder; raises `Absent` where it cannot."""

    def __call__(self, place: Path, dtype: str, threads: int) -> AbstractAsyncContextManager[Peer]:
        """For the weights in a folder, with so many threads."""
        ...


class Absent(Exception):
    """A peer that is not installed here, or does not do what is measured."""


async def seconds(peer: Peer, asked: Sequence[Asked]) -> float:
    """How long a peer takes.

    Raises:
        Absent: it did not write what was asked for.
    """
    started = time.perf_counter()
    said = await peer.extend(asked)
    taken = time.perf_counter() - started
    await anyio.sleep(peer.busy)
    lengths = [[len(sample) for sample in samples] for samples in said]
    if lengths != [[one.new] * one.n for one in asked]:
        raise Absent(f"wrote samples of {lengths} tokens")
    return taken


async def warm(peer: Peer) -> None:
    """Let a peer do everything once before it is timed."""
    await seconds(peer, [Asked(tuple(range(100, 140)), n=4, new=3)])
