"""A model that can all that a spec may ask for: it writes, names candidates, chooses and reads."""

import math
import random
from contextlib import asynccontextmanager

from branchwise import Candidate, Config, Reading, Step, Usage, Verdict

TOKENS = ("The answer is 3.", "1", "2", "\n", "")


class Parrot(Config):
    model: str = "parrot"
    says: str = ""

    @asynccontextmanager
    async def open(self):
        yield _Live(self.says)


class _Live:
    name = "parrot"

    def __init__(self, says):
        self.says = says

    async def complete(self, request):
        return [self._step(request, random.Random(seed)) for seed in request.seeds]

    async def read(self, request, *, since=0, state=False, words=()):
        law = tuple(-1.0 - i for i in range(len(words)))
        values = (0.5, 1.5)
        return [
            Reading((1, 2), (-1.0, -0.5), values, words=law) for _ in request.said[since:] or " "
        ]

    def _step(self, request, draws):
        usage = Usage(calls=1, completion=1)
        if self.says:
            return Step(self.says, finish="end", usage=usage)
        if request.max_tokens == 1:
            ranked = list(enumerate(TOKENS))[:: -1 if request.said else 1]  # soon it ends
            law = [math.log(0.5 / 2**rank) for rank in range(len(ranked))]
            known = [Candidate(i, text, p, p) for (i, text), p in zip(ranked, law, strict=True)]
            drawn = draws.choice(known)
            return Step(
                drawn.text,
                (drawn.token,),
                drawn.logprob,
                (drawn.logprob,),
                "length" if drawn.text else "end",
                usage,
                candidates=(tuple(known[: request.candidates]),) if request.candidates else (),
            )
        if "the number of that response" in request.asked:
            text, finish = "They agree on response 1.", "end"
        elif "\nScore: (a whole number" in request.asked:
            text, finish = "Reasons: Fine.\nScore: 4", "end"
        elif "A or B" in request.asked:
            text, finish = draws.choice(["It is A.", "It is B."]), "end"
        elif request.stop and len(request.said) < 2:
            text, finish = f"Adding {draws.randrange(9)}.{request.stop[0]}", "stop"
        else:
            text, finish = f"The answer is {draws.choice([3, 3, 4])}.", "end"
        logprobs = (-0.1 - draws.random(), -0.2)
        return Step(text, (1, 2), sum(logprobs), logprobs, finish, usage, proposals=logprobs)


class Judge(Config):
    """Stands for a reader's own verifier: a score, and what the answer does."""

    async def score(self, nodes):
        return [Verdict((1 + len(v.text) % 9) / 10, detail="110"[len(v.text) % 2 :]) for v in nodes]
