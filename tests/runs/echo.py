"""A model for specs, `echo:Echo` there: adds the numbers of the question, at times wrongly."""

import random
import re
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from branchwise import BackendError, Config, Request, Scripted, Search, Step, Verdict


class Echo(Config):
    model: str = "echo"
    luck: float = 0.6
    broken: bool = False
    fatal: bool = False

    @asynccontextmanager
    async def open(self):
        yield Scripted(self._reply, name="echo")

    def _reply(self, request, seed):
        if self.broken:
            raise BackendError("the line is dead", fatal=self.fatal)
        total = sum(map(int, re.findall(r"\d+", request.asked)))
        lucky = request.sampling.temperature == 0 or random.Random(seed).random() < self.luck
        return f"Adding up.\nThe answer is {total if lucky else total + seed % 7 + 1}."


class Nameless(Config):
    @asynccontextmanager
    async def open(self):
        yield Scripted(lambda request, seed: "5", name="nameless")


class Stalling(Echo):
    """Answers while the results of nine searches are not yet there, then never again."""

    @asynccontextmanager
    async def open(self):
        results = Path("runs/spec/results.jsonl")

        class Stalled(Scripted):
            async def complete(self, request):
                if results.exists() and len(results.read_text().splitlines()) >= 9:
                    print("stalled", flush=True)
                    await anyio.sleep_forever()
                return await super().complete(request)

        yield Stalled(self._reply, name="echo")


class Flat(Config):
    async def score(self, nodes):
        return [Verdict(0.0) for _ in nodes]


class Widest(Search):
    n: int

    async def grow(self, root, expand):
        await expand([root], self.n)


class Constant(Config):
    text: str

    async def propose(self, node, seeds):
        return [Step(self.text) for _ in seeds]


class Asking(Config):
    backend: object

    async def score(self, nodes):
        await self.backend.complete(Request(prompt="How good?", seeds=(1,)))
        return [Verdict(0.0) for _ in nodes]


class Length(Config):
    def __call__(self, node):
        return float(len(node.text))
