"""A language model over a few letters whose every probability is known."""

import math
import random
from itertools import product

from branchwise.agents.chat import Chat
from branchwise.agents.next_token import NextToken
from branchwise.core.types import Candidate, Step, Usage
from branchwise.environments.writing import Writing
from branchwise.verifiers.likelihood import Likelihood

WORLD = Writing(continue_at_length=True)


class ToyLM:
    """Says letters, or ends the text, by a law that is drawn once for each prefix.

    Args:
        letters: the alphabet; the token after its last one ends the text.
        law: the probabilities at a prefix, one for each token; by default arbitrary ones.
    """

    name = "toy"

    def __init__(self, letters="ab", law=None):
        self.letters = letters
        self.law = law or self._arbitrary
        self.asked = []

    def _arbitrary(self, prefix):
        rng = random.Random(f"law {prefix}")
        weights = [rng.expovariate(1) + 0.02 for _ in range(len(self.letters) + 1)]
        return [weight / sum(weights) for weight in weights]

    def text(self, token):
        return self.letters[token : token + 1]

    async def complete(self, request):
        self.asked.append(request.so_far)
        law = self.law(request.so_far)
        ranked = sorted(range(len(law)), key=lambda token: -law[token])
        tops = [
            Candidate(t, self.text(t), math.log(law[t]), math.log(law[t])) for t in ranked if law[t]
        ]
        steps = []
        for i, seed in enumerate(request.seeds):
            [token] = random.Random(seed).choices(range(len(law)), law)
            finish = "length" if self.text(token) else "end"
            logprob = math.log(law[token])
            steps.append(
                Step(
                    self.text(token),
                    (token,),
                    logprob,
                    (logprob,),
                    finish,
                    Usage(calls=int(i == 0), completion=1),
                    candidates=(tuple(tops[: request.candidates]),) if request.candidates else (),
                )
            )
        return steps

    def texts(self, length):
        """Every text that ends within so many tokens, with its log-probability and its tokens."""
        found = {}
        for size in range(length):
            for word in map("".join, product(self.letters, repeat=size)):
                logprobs = [
                    self.law(word[:i])[self.letters.index(letter)] for i, letter in enumerate(word)
                ]
                logprobs.append(self.law(word)[-1])
                if all(logprobs):
                    found[word] = math.fsum(map(math.log, logprobs))
        return found

    def prefix(self, word):
        """The log-probability that a text begins like this."""
        return math.fsum(
            math.log(self.law(word[:i])[self.letters.index(letter)])
            for i, letter in enumerate(word)
        )

    def parts(self, alpha=0.0, **more):
        """What `solve` needs to search over its tokens."""
        return {
            "policy": NextToken(policy=Chat(backend=self)),
            "environment": WORLD,
            "verifier": Likelihood(alpha=alpha),
            **more,
        }
