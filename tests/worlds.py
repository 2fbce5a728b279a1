"""What several tests search in."""

import math
import random
from itertools import product

import anyio
from anyio.lowlevel import checkpoint

from branchwise import Step, Verdict, solve
from branchwise.testing import Alphabet, Word

LETTERS = "abc"


def words(length, letters=LETTERS):
    return ["".join(word) for word in product(letters, repeat=length)]


def worth(word):
    """An arbitrary but fixed value of every word, in [0, 1)."""
    return random.Random(word).random()


class Judge:
    """A verifier that scores a node's text by a function."""

    def __init__(self, value=worth):
        self.value = value

    async def score(self, nodes):
        return [Verdict(self.value(node.text)) for node in nodes]


class Jittered:
    """A policy whose calls take a random number of turns of the loop, so many at a time."""

    def __init__(self, policy, at_once, seed):
        self.policy, self.random = policy, random.Random(seed)
        self.slots = anyio.CapacityLimiter(at_once)

    async def propose(self, node, seeds):
        async with self.slots:
            for _ in range(self.random.randrange(6)):
                await checkpoint()
            return await self.policy.propose(node, seeds)


class Random:
    """A policy that says a letter drawn by the seed, and at times repeats itself."""

    def __init__(self, letters=LETTERS):
        self.letters = letters

    async def propose(self, node, seeds):
        each = -math.log(len(self.letters))
        return [Step(random.Random(seed).choice(self.letters), logprob=each) for seed in seeds]


class Enumerate(Alphabet):
    def __init__(self, letters=LETTERS):
        super().__init__(letters)


class Spy(Enumerate):
    """Remembers what was grown, in order."""

    def __init__(self, letters=LETTERS):
        super().__init__(letters)
        self.grown = []

    async def propose(self, node, seeds):
        self.grown.append(node.text)
        return await super().propose(node, seeds)


async def found(controller, policy=None, judge=None, *, length=4, environment=None, **more):
    """The answer of a search for a word, which has to come to its end."""
    answer = await solve(
        "a word?",
        policy=policy or Enumerate(),
        controller=controller,
        environment=environment or Word(length),
        verifier=judge or Judge(),
        **more,
    )
    assert answer.stopped == "finished"
    return answer
