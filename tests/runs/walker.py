"""A model for specs, `walker:Walker` there: three lines, and half of the time the second is a slip.

Where nothing has slipped so far the chance of the right answer is known: a half before the second
line, one after it, and none after a slip.
"""

import random
import re
from contextlib import asynccontextmanager

from branchwise import BackendError, Config, Scripted


class Walker(Config):
    model: str = "walker"
    limit: int = 10**9

    @asynccontextmanager
    async def open(self):
        self.calls.clear()
        yield Scripted(self._reply, name="walker")

    @property
    def calls(self):
        return CALLS

    def _reply(self, request, seed):
        CALLS.append(request)
        if len(CALLS) > self.limit:
            raise BackendError("the line is dead", fatal=True)
        total = sum(map(int, re.findall(r"\d+", request.asked)))
        lines = request.so_far.splitlines()
        lucky = random.Random(seed).random() < 0.5
        second = lines[1] if len(lines) > 1 else ("Carefully." if lucky else "A slip.")
        answer = total + (second == "A slip.")
        return "\n".join(["We add.", second, f"The answer is {answer}."][len(lines) :])


CALLS = []
