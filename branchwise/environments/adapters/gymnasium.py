"""Environments of Gymnasium as worlds: a text becomes an action, an observation a text."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from hashlib import blake2b
from importlib import import_module
from importlib.util import find_spec
from math import isfinite
from numbers import Integral
from typing import Literal, Protocol, Self, SupportsFloat, cast

from pydantic import Field, model_validator

from branchwise.core.config import Config
from branchwise.core.errors import SpecError, WorldError
from branchwise.core.types import Json, State, Step, Task
from branchwise.environments.sessions import Session, Sessions
from branchwise.environments.writing import NO_TOOLS


class Space(Protocol):
    """What is used of a `gymnasium.Space`."""

    def contains(self, x: object) -> bool:
        """Whether the value is one of the space."""
        ...

    def from_jsonable(self, sample_n: list[Json]) -> list[object]:
        """Values of the space, from what JSON can say."""
        ...


class Env(Protocol):
    """What is used of a `gymnasium.Env`."""

    @property
    def action_space(self) -> Space:
        """What may be done."""
        ...

    @property
    def render_mode(self) -> str | None:
        """How it shows itself."""
        ...

    def reset(
        self, *, seed: int | None = None, options: dict[str, Json] | None = None
    ) -> tuple[object, Mapping[str, object]]:
        """Begin an episode."""
        ...

    def step(
        self, action: object
    ) -> tuple[object, SupportsFloat, bool, bool, Mapping[str, object]]:
        """Act."""
        ...

    def render(self) -> object:
        """Show itself."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...


class Gymnasium(Config):
    """An environment of Gymnasium, in which each step's text is an action.

    An action of a `Discrete` space is its number or its name in `actions`, one of any other space
    is its JSON value. A text that is no action is told so and changes nothing. An observation is
    shown as JSON, or as the environment draws itself where `options` has `render_mode = "ansi"`,
    with brackets around what would be coloured.

    A state's reward is that of its step; `terminated` is `done`, `truncated` is `cut`, and the
    answer at the end of an episode is its return, the sum of its rewards. The seed of the episode
    is the task's `meta["seed"]`, or one made of its prompt; its `meta["options"]`, where it has
    any, are those of `reset`.

    Older states are reached by acting again from the start, which tells an environment that is
    not a function of its seed. Where `save` and `load` are given, they are reached by these, equal
    states of different pasts are one state, and the limit on an episode's steps is not Gymnasium's
    but the search's `horizon`.

    Args:
        id: what `gymnasium.make` knows it by.
        options: what else `make` is told.
        actions: names of the actions of a `Discrete` space, in order, the first for its least.
        live: how many environments at one time at most.
        make: makes the environment of a task, in the place of `id`.
        parse: reads an action of a text; what it raises is told the policy.
        render: shows an observation as a text.
        save: all there is to know of the environment, as a JSON value other than None, its random
            numbers included where it draws any.
        load: brings the environment back to what was saved.

    Raises:
        SpecError: Gymnasium is not installed, or does not know the environment.

    Source: Towers et al. 2024, "Gymnasium: A Standard Interface for Reinforcement Learning
    Environments".

    Example:
        >>> lake = Gymnasium(id="FrozenLake-v1", actions=("left", "down", "right", "up"))
        >>> lake.live
        8
    """

    kind: Literal["gymnasium"] = "gymnasium"
    id: str = ""
    options: dict[str, Json] = Field(default_factory=dict)
    actions: tuple[str, ...] = ()
    live: int = Field(default=8, ge=1)
    make: Callable[[Task], Env] | None = Field(default=None, exclude=True, repr=False)
    parse: Callable[[str, Env], object] | None = Field(default=None, exclude=True, repr=False)
    render: Callable[[object, Env], str] | None = Field(default=None, exclude=True, repr=False)
    save: Callable[[Env], Json] | None = Field(default=None, exclude=True, repr=False)
    load: Callable[[Env, Json], None] | None = Field(default=None, exclude=True, repr=False)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if bool(self.id) == (self.make is not None):
            raise ValueError("give either `id` or `make`")
        if (self.save is None) != (self.load is None):
            raise ValueError("`save` and `load` need each other")
        return self

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Sessions]:
        """The world; its environments are closed with the block.

        Raises:
            SpecError: Gymnasium is not installed.
        """
        if find_spec("gymnasium") is None:
            raise SpecError("gymnasium needs its package", hint="pip install gymnasium")
        envs = _Envs(self)
        try:
            async with Sessions(envs.start, live=self.live) as world:
                yield world
        finally:
            envs.close()

    def shown(self, seen: object, env: Env) -> str:
        """An observation as a text."""
        if self.render is not None:
            return self.render(seen, env)
        if env.render_mode == "ansi":
            drawn = str(env.render())
            return _COLOUR.sub("", _COLOURED.sub(r"[\1]", drawn)).strip("\n")
        return seen if isinstance(seen, str) else json.dumps(_plain(seen))

    def chosen(self, text: str, env: Env) -> object:
        """The action that a text says.

        Raises:
            Exception: it says none; the message is for the policy.
        """
        if self.parse is not None:
            return self.parse(text, env)
        text, space = text.strip(), env.action_space
        if text in self.actions:
            return self.actions.index(text) + _least(space)
        try:
            action = _value(space, json.loads(text))
        except Exception:  # noqa: BLE001  (spaces raise what they like)
            action = None
        if action is None or not space.contains(action):
            known = ", ".join(self.actions) or f"values of {space}, in JSON"
            raise ValueError(f"{text!r:.80} is no action here. The actions are {known}.")
        return action


class _Envs:
    """Makes environments; those with an `id` serve again: `reset` costs far less than `make`."""

    def __init__(self, spec: Gymnasium) -> None:
        self._spec = spec
        self._spare: list[Env] = []

    async def start(self, task: Task) -> tuple[Session, State]:
        """An episode of the task, and its first observation."""
        seed, options = _seed(task), task.meta.get("options")
        env = self._spare.pop() if self._spare else self._made(task)
        try:
            seen, _ = env.reset(seed=seed, options=options if isinstance(options, dict) else None)
            state = State(observation=self._spec.shown(seen, env))
        except BaseException:
            env.close()
            raise
        return _Episode(self._spec, env, self._free), state

    def _made(self, task: Task) -> Env:
        if self._spec.make is not None:
            return self._spec.make(task)
        gymnasium = import_module("gymnasium")
        unlimited = {} if self._spec.save is None else {"max_episode_steps": -1}
        try:
            return gymnasium.make(self._spec.id, **{**unlimited, **self._spec.options})
        except gymnasium.error.Error as error:
            raise SpecError(f"gymnasium cannot make {self._spec.id!r}: {error}") from error

    def _free(self, env: Env, *, sound: bool) -> None:
        if sound and self._spec.make is None:
            self._spare.append(env)
        else:
            env.close()

    def close(self) -> None:
        while self._spare:
            self._spare.pop().close()


class _Free(Protocol):
    def __call__(self, env: Env, *, sound: bool) -> None: ...


class _Episode:
    """One life of an environment."""

    def __init__(self, spec: Gymnasium, env: Env, free: _Free) -> None:
        self._spec = spec
        self._env = env
        self._free = free
        self._sound = True
        self._total = 0.0

    async def act(self, action: Step) -> State:
        if action.tool_calls:
            return State(observation=NO_TOOLS)
        try:
            chosen = self._spec.chosen(action.text, self._env)
        except Exception as error:  # noqa: BLE001  (of whatever kind, it is about the text)
            return State(observation=str(error))
        self._sound = False  # until it has come through the step
        seen, earned, terminated, truncated, _ = self._env.step(chosen)
        self._sound = True
        reward = float(earned)
        if not isfinite(reward):
            raise WorldError(f"the environment gave a reward of {reward}")
        self._total += reward
        over = bool(terminated or truncated)
        return State(
            observation=self._spec.shown(seen, self._env),
            reward=reward,
            done=bool(terminated),
            cut=over and not terminated,
            answer=f"{self._total:.10g}" if over else None,
        )

    async def save(self) -> Json:
        if self._spec.save is None:
            return None
        return [self._total, self._spec.save(self._env)]

    async def load(self, saved: Json) -> None:
        match saved, self._spec.load:
            case [int() | float() as total, there], load if load is not None:
                self._total = float(total)
                load(self._env, cast("Json", there))
            case _:
                raise WorldError(f"nothing that was saved here: {saved!r:.80}")

    async def close(self) -> None:
        self._free(self._env, sound=self._sound)


_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_COLOURED = re.compile(r"\x1b\[[1-9][0-9;]*m((?:(?!\x1b).)*)\x1b\[0?m", re.DOTALL)


def _seed(task: Task) -> int:
    """The task's own, or a digest of its prompt."""
    seed = task.meta.get("seed")
    if isinstance(seed, int) and seed >= 0:
        return seed
    if seed is not None:
        raise SpecError(f'meta["seed"] of a task is {seed!r:.80}, which is no seed')
    return int.from_bytes(blake2b(task.prompt.encode(), digest_size=4).digest(), "big")


def _least(space: Space) -> int:
    return int(getattr(space, "start", 0))


def _value(space: Space, said: Json) -> object:
    """A value of a space, of spaces of spaces too; `from_jsonable` wants lists of values."""
    inner = getattr(space, "spaces", None)
    if isinstance(inner, Mapping) and isinstance(said, dict):
        parts = cast("Mapping[str, Space]", inner)
        return {name: _value(part, said[name]) for name, part in parts.items()}
    if isinstance(inner, tuple) and isinstance(said, list):
        pairs = zip(cast("tuple[Space, ...]", inner), said, strict=True)
        return tuple(_value(part, value) for part, value in pairs)
    value = space.from_jsonable([said])[0]
    if isinstance(value, Integral) and type(said) is not int:
        raise ValueError("a whole number was expected")  # and 1.5 would have become 1
    return value


def _plain(seen: object) -> object:
    """An observation as what JSON can say."""
    if isinstance(seen, Mapping):
        return {
            str(key): _plain(value) for key, value in cast("Mapping[object, object]", seen).items()
        }
    if isinstance(seen, tuple | list):
        return [_plain(value) for value in cast("list[object]", seen)]
    if callable(tolist := getattr(seen, "tolist", None)):
        return tolist()
    return seen if seen is None or isinstance(seen, str | int | float | bool) else str(seen)
