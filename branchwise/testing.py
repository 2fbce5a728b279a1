"""The laws of the interfaces as checks that anyone can call, and small worlds to search in."""

from __future__ import annotations

import json
from collections.abc import Sequence

from branchwise.core.errors import SpecError
from branchwise.core.node import Node
from branchwise.core.types import Backend, Environment, Request, State, Step, Task

_ROUNDING = 1e-6  # what a log-probability of 0 may be off by in 32 bits


async def check_environment(env: Environment, task: Task, actions: Sequence[Step]) -> None:
    """Check that an environment is a function of its states.

    Stepping again from an older state gives the same world, stepping changes no older state, and
    snapshots survive JSON.

    Args:
        env: the environment.
        task: a task it knows.
        actions: steps it accepts, one after the other.

    Raises:
        AssertionError: a law is broken; the message says which.

    Example:
        >>> from branchwise import run_sync
        >>> run_sync(check_environment, Word(2), Task("any"), [Step("a"), Step("b")])
    """
    states = [await env.reset(task)]
    assert await env.reset(task) == states[0], "reset is not a function of the task"
    for action in actions:
        states.append(await env.step(states[-1], action))
    before = [repr(state) for state in states]
    for place, action in reversed(list(enumerate(actions))):
        again = await env.step(states[place], action)
        assert again == states[place + 1], f"stepping again from state {place} differs"
    assert [repr(state) for state in states] == before, "stepping changed an older state"
    for state in states:
        copied = json.loads(json.dumps(state.snapshot))
        assert copied == state.snapshot, "a snapshot does not survive JSON"


async def check_backend(backend: Backend, request: Request, *, seeded: bool = True) -> None:
    """Check that a backend keeps the promises of `complete`.

    Args:
        backend: the backend.
        request: what to ask it, with at least two seeds.
        seeded: whether it promises the same sample for the same seed.

    Raises:
        AssertionError: a promise is broken; the message says which.

    Example:
        >>> from branchwise import Scripted, run_sync
        >>> model = Scripted(lambda request, seed: f"word {seed}")
        >>> run_sync(check_backend, model, Request(prompt="?", seeds=(1, 2)))
    """
    assert len(request.seeds) > 1, "give the check at least two seeds"
    steps = await backend.complete(request)
    assert len(steps) == len(request.seeds), "there has to be one step for each seed"
    assert steps[0].usage.calls >= 1, "the first step carries the call"
    for step in steps:
        if step.logprobs and step.tokens:
            assert len(step.logprobs) == len(step.tokens), "one log-probability for each token"
        for each in (step.proposals, step.candidates):
            assert len(each) in {0, len(step.tokens)}, "something for each token, or for none"
        highest = max((*step.logprobs, *step.proposals), default=0)
        assert highest <= _ROUNDING, "log-probabilities are at most 0"
        if step.finish == "stop" and request.stop:
            assert any(stop in step.text for stop in request.stop), "a stop string ends the text"
        assert step.usage.completion <= request.max_tokens, "more tokens than max_tokens"
    if seeded:
        again = await backend.complete(request)
        assert [s.text for s in again] == [s.text for s in steps], "the same seeds, other samples"


class Word(Environment):
    """A world of letters: each step adds one; it ends after so many, and the answer is the word.

    Args:
        length: how many letters a word has.
    """

    instant = True

    def __init__(self, length: int) -> None:
        self.length = length

    async def reset(self, task: Task) -> State:  # noqa: ARG002  (every task begins with no letter)
        """The empty word."""
        return State("")

    async def step(self, state: State, action: Step) -> State:
        """The word with one more letter."""
        word = f"{state.snapshot}{action.text}"
        done = len(word) >= self.length
        return State(word, done=done, answer=word if done else None)


class Alphabet:
    """A policy that proposes the letters of an alphabet in turn, each once under a node.

    Args:
        letters: the alphabet.

    Raises:
        SpecError: the alphabet is empty.
    """

    def __init__(self, letters: str) -> None:
        if not letters:
            raise SpecError("an alphabet needs a letter")
        self.letters = letters

    async def propose(self, node: Node, seeds: Sequence[int]) -> Sequence[Step]:
        """The next letters; none where all have been proposed."""
        first = node.promised - len(seeds)
        return [Step(letter) for letter in self.letters[first : node.promised]]
