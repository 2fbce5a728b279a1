"""The laws of the interfaces as checks that anyone can call, and small worlds to search in."""

from __future__ import annotations

import dataclasses
import json
import os
import random
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from math import isfinite
from pathlib import Path

import anyio

from branchwise.core.aio import checkpoint, gather
from branchwise.core.errors import SpecError, WorldError
from branchwise.core.node import Node
from branchwise.core.types import Backend, Environment, Request, State, Step, Task, ToolCall

_ROUNDING = 1e-6  # what a log-probability of 0 may be off by in 32 bits


_VISITS = 16
"""How many steps a check takes in the tree of its actions."""

_NONSENSE = (
    Step("\x00 no such action", finish="stop"),
    Step("", finish="tools", tool_calls=(ToolCall("0", "no such tool", "{}"),)),
    Step("", finish="tools", tool_calls=(ToolCall("0", "", '{"a": '), ToolCall("1", "", "[1]"))),
)


async def check_environment(
    env: Environment, task: Task, actions: Sequence[Step], *, seed: int = 0
) -> None:
    """Check that an environment is a function of its states.

    `reset` gives a task the same state each time. Leaving a state and coming back never changes the
    world, whatever was done meanwhile, in turn or at once. Stepping changes no older state.
    Snapshots survive JSON, and their copies can be stepped from. What no world understands leads to
    a state or to a `WorldError`.

    Args:
        env: the environment.
        task: a task it knows.
        actions: steps it accepts, one after the other; each is tried in other states too.
        seed: of the random walks over the tree of the actions.

    Raises:
        AssertionError: a law is broken; the message says which.

    Example:
        >>> from branchwise import run_sync
        >>> run_sync(check_environment, Word(2), Task("any"), [Step("a"), Step("b")])
    """
    assert isinstance(env.instant, bool), "`instant` has to say whether `step` never waits"
    root = await env.reset(task)
    assert await env.reset(task) == root, "reset is not a function of the task"
    assert _copied(root) == root, "a snapshot does not survive JSON"
    states, first = [root], dict[tuple[int, int], State | None]()
    for i, action in enumerate(actions):
        states.append(await env.step(states[-1], action))
        first[i, i] = states[-1]
    before = [repr(state) for state in states]
    for (place, i), state in reversed(first.items()):
        again = await _outcome(env, _copied(states[place]), actions[i])
        assert again == state, f"stepping again from state {place} differs"
    walk = random.Random(seed)  # noqa: S311  (which way a check takes is no secret)
    for _ in range(_VISITS if actions else 0):
        place = walk.choice([i for i, state in enumerate(states) if not _over(state)] or [0])
        i = walk.randrange(len(actions))
        came = await _outcome(env, states[place], actions[i])
        if (place, i) in first:
            assert came == first[place, i], f"coming back to state {place} changed the world"
        else:
            first[place, i] = came
            if came is not None:
                states.append(came)
                before.append(repr(came))
    await _check_siblings(env, walk.choice([s for s in states if not _over(s)] or states), actions)
    for action in _NONSENSE:
        await _outcome(env, root, action)
    for place, i in walk.sample(list(first), min(len(first), _VISITS)):
        again = await _outcome(env, states[place], actions[i])
        assert again == first[place, i], f"stepping again from state {place} differs"
    assert [repr(state) for state in states] == before, "stepping changed an older state"


async def _check_siblings(env: Environment, state: State, actions: Sequence[Step]) -> None:
    """Twice each action, at once and then one after the other."""
    siblings = [*actions, *actions]
    together = await gather(lambda action: _outcome(env, state, action), siblings)
    alone = [await _outcome(env, state, action) for action in siblings]
    assert together == alone, "stepping siblings at once differs from stepping them in turn"


async def _outcome(env: Environment, state: State, action: Step) -> State | None:
    """Where an action leads; None where the world cannot take it."""
    try:
        came = await env.step(state, action)
    except WorldError:
        return None
    except Exception as error:
        raise AssertionError(f"a step raised {error!r}, which is no WorldError") from error
    assert isfinite(came.reward), f"the reward {came.reward} is no finite number"
    assert _copied(came) == came, "a snapshot does not survive JSON"
    return came


def _copied(state: State) -> State:
    """The state as it comes back from a saved tree."""
    try:
        return dataclasses.replace(state, snapshot=json.loads(json.dumps(state.snapshot)))
    except (TypeError, ValueError) as error:
        raise AssertionError(f"a snapshot is no JSON value: {error}") from error


def _over(state: State) -> bool:
    return state.done or state.cut


async def check_closing(
    opened: Callable[[], AbstractAsyncContextManager[Environment]],
    task: Task,
    actions: Sequence[Step],
    *,
    held: Callable[[], int] | None = None,
) -> None:
    """Check that an environment frees everything at its end, however it ends.

    It is used and closed, left by an error, and cancelled in the middle of its steps. Afterwards
    the process has to have as many open files and child processes as before.

    Args:
        opened: opens the environment.
        task: a task it knows.
        actions: steps it accepts, one after the other.
        held: counts what else has to be free afterwards, such as open sessions.

    Raises:
        AssertionError: something is left.

    Example:
        >>> from contextlib import nullcontext
        >>> from branchwise import run_sync
        >>> run_sync(check_closing, lambda: nullcontext(Word(2)), Task("any"), [Step("a")])
    """

    async def used() -> None:
        async with opened() as env:
            state = await env.reset(task)
            await gather(lambda action: _outcome(env, state, action), actions)
            for action in actions:
                state = await env.step(state, action)

    async def left() -> None:
        async with opened() as env:
            await env.reset(task)
            raise _Left

    async def cancelled(turns: int) -> None:
        async with opened() as env:
            state = await env.reset(task)
            async with anyio.create_task_group() as group:
                for action in actions:
                    group.start_soon(_outcome, env, state, action)
                for _ in range(turns):
                    await checkpoint()
                group.cancel_scope.cancel()

    await used()  # what a first use opens once and for all is no leak
    before = _holdings(held)
    for name, way in (
        ("when it was used", used),
        ("when it was left by an error", left),
        *((f"when it was cancelled after {n} turns", partial(cancelled, n)) for n in range(6)),
    ):
        with suppress(_Left):
            await way()
        with anyio.move_on_after(_SETTLING):
            while _holdings(held) != before:  # noqa: ASYNC110  (the system tells of no end)
                await anyio.sleep(0.01)
        after = _holdings(held)
        assert after == before, f"{name}, something is left: {before} before, {after} after"


class _Left(Exception):
    """Leaves a block."""


_SETTLING = 2.0
"""How many seconds the system gets to take back what was closed."""


def _holdings(held: Callable[[], int] | None) -> dict[str, int]:
    """How much of everything this process holds, as far as the system tells."""
    found = {"held": held() if held else 0}
    here = Path("/proc/self")
    if here.exists():
        found["files"] = len(list((here / "fd").iterdir()))
        found["children"] = 0
        for status in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # it ended meanwhile
                parent = int(status.read_text().rpartition(")")[2].split()[1])
                found["children"] += parent == os.getpid()
    return found


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
