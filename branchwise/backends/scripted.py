"""A model that says what a function tells it to: for tests, and to try a search without a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import anyio

from branchwise.core.aio import checkpoint, gather
from branchwise.core.types import Request, Step, Usage

Reply = Callable[[Request, int], str | Step]


class Scripted:
    """A backend whose samples a function writes.

    A `str` is treated as a model's whole answer: it is cut after the first stop string and after
    `max_tokens` words, and its words count as tokens. A `Step` is passed on as it is. What the
    function raises, `complete` raises.

    Args:
        reply: from the request and one of its seeds to what is said.
        latency: how many seconds a sample takes; None answers at once.
        name: what a journal calls it.

    Attributes:
        requests: every request so far, in the order of arrival.

    Example:
        >>> from branchwise import Request, run_sync
        >>> model = Scripted(lambda request, seed: "4" if "2 + 2" in request.asked else "?")
        >>> said = run_sync(model.complete, Request(prompt="2 + 2 =", seeds=(1, 2)))
        >>> [step.text for step in said]
        ['4', '4']
    """

    def __init__(
        self,
        reply: Reply,
        *,
        latency: Callable[[Request, int], float] | None = None,
        name: str = "scripted",
    ) -> None:
        self.reply, self.latency = reply, latency
        self.name = name
        self.requests: list[Request] = []

    async def complete(self, request: Request) -> Sequence[Step]:
        """One step for each seed."""
        self.requests.append(request)
        if self.latency is None:
            await checkpoint()
            steps = [self._said(request, seed) for seed in request.seeds]
        else:
            steps = await gather(lambda seed: self._late(request, seed), request.seeds)
        read = len((request.asked + request.so_far).split())
        first = dataclasses.replace(steps[0], usage=steps[0].usage + Usage(calls=1, prompt=read))
        return [first, *steps[1:]]

    async def _late(self, request: Request, seed: int) -> Step:
        if self.latency is not None:
            await anyio.sleep(self.latency(request, seed))
        return self._said(request, seed)

    def _said(self, request: Request, seed: int) -> Step:
        said = self.reply(request, seed)
        return said if isinstance(said, Step) else _cut(said, request)


def _cut(text: str, request: Request) -> Step:
    ends = [text.find(stop) + len(stop) for stop in request.stop if stop in text]
    finish = "end"
    if ends:
        text, finish = text[: min(ends)], "stop"
    words = text.split(" ")
    if len(words) > request.max_tokens:
        words = words[: request.max_tokens]
        text, finish = " ".join(words), "length"
    return Step(text, finish=finish, usage=Usage(completion=len(words)))
