"""Text adventures of TextWorld as worlds: a step's text is a command."""

from __future__ import annotations

import re
import warnings
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Protocol, cast

from pydantic import Field

from branchwise.core.config import Config
from branchwise.core.errors import SpecError, WorldError
from branchwise.core.types import Json, State, Step, Task
from branchwise.environments.sessions import Session, Sessions
from branchwise.environments.writing import NO_TOOLS

_LONGEST = 150
"""In characters; what is not much longer is cut, and characters that do not print may hang it."""

_OUTSIDE = re.compile(
    r"\b(?:q|quit|save|undo)\b|\b(?:noscri|record|replay|restar|restor|script|transc|unscri)\w*|[#$]",
    re.IGNORECASE,
)
"""What speaks to the interpreter instead of the game, which would write files or turn time back;
games know words by their first six letters."""


class _Env(Protocol):
    """What is used of a `textworld.Environment`."""

    def seed(self, seed: int | None = None) -> object: ...

    def reset(self) -> Mapping[str, object]: ...

    def step(self, command: str) -> tuple[Mapping[str, object], float, bool]: ...

    def close(self) -> None: ...


class TextWorld(Config):
    """A game for the Z-machine: made by TextWorld, or an old one that Jericho knows.

    Each step's text is one command; the observation is what the game says to it. A state's reward
    is what the command changed in the score. A game that is won or lost is `done`, and its answer
    is its score. What the game does not understand it says itself; commands to its interpreter
    (`save`, `quit`, `undo`, a transcript) are refused.

    Older states are reached by playing again from the start, at some milliseconds a command.

    Args:
        game: the file of the game (`.z8`, with the `.json` that TextWorld puts beside it); the
            task's `meta["game"]`, where there is one, has precedence.
        commands: whether the observation lists the commands that would change something. TextWorld
            reads them from the state of its game, so they are a hint.
        live: how many games at one time at most.

    Raises:
        SpecError: TextWorld is not installed, or there is no such game.

    Source: Côté et al. 2018, "TextWorld: A Learning Environment for Text-based Games".

    Example:
        >>> TextWorld(game="games/coin.z8", commands=True).live
        8
    """

    kind: Literal["textworld"] = "textworld"
    game: str = ""
    commands: bool = False
    live: int = Field(default=8, ge=1)

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Sessions]:
        """The world; its games end with the block.

        Raises:
            SpecError: TextWorld is not installed.
        """
        if find_spec("textworld") is None:
            raise SpecError("textworld needs its package", hint="pip install textworld")
        games = _Games(self)
        try:
            async with Sessions(games.start, live=self.live) as world:
                yield world
        finally:
            games.close()

    def shown(self, seen: Mapping[str, object]) -> str:
        """What the game says, without its banner and its status line, and what may be said."""
        said = _BANNER.sub("", _PROMPT.sub("", str(seen.get("feedback") or ""))).strip()
        said = _GAP.sub("\n\n", said)
        able = cast("list[str]", seen.get("admissible_commands") or [])
        return f"{said}\n\nCommands: {', '.join(able)}" if able else said


class _Games:
    """Loads games; one that is loaded serves again, since to begin anew costs far less."""

    def __init__(self, spec: TextWorld) -> None:
        self._spec = spec
        self._spare: dict[str, list[_Env]] = {}

    async def start(self, task: Task) -> tuple[Session, State]:
        """A game of the task, and what it says first."""
        game, seed = str(task.meta.get("game") or self._spec.game), task.meta.get("seed", 0)
        spare = self._spare.setdefault(game, [])
        env = spare.pop() if spare else self._loaded(game)
        try:
            env.seed(seed if isinstance(seed, int) else 0)
            seen = env.reset()
            state = State(observation=self._spec.shown(seen))
        except BaseException:
            env.close()
            raise
        return _Playing(self._spec, env, seen, spare), state

    def _loaded(self, game: str) -> _Env:
        if not re.fullmatch(r"\.z[1-8]", Path(game).suffix) or not Path(game).is_file():
            raise SpecError(f"textworld: there is no game {game!r} that ends in .z1 to .z8")
        with warnings.catch_warnings():
            # Jericho knows some games by heart; those of TextWorld bring what it needs along.
            warnings.filterwarnings("ignore", "Game '.*' is not fully supported")
            textworld = import_module("textworld")
            wanted = textworld.EnvInfos(
                feedback=True,
                won=True,
                lost=True,
                score=True,
                admissible_commands=self._spec.commands,
            )
            return cast("_Env", textworld.start(game, request_infos=wanted))

    def close(self) -> None:
        for spare in self._spare.values():
            while spare:
                spare.pop().close()


class _Playing:
    """One game."""

    def __init__(
        self, spec: TextWorld, env: _Env, seen: Mapping[str, object], spare: list[_Env]
    ) -> None:
        self._spec = spec
        self._env = env
        self._spare = spare
        self._sound = True
        self._score = _score(seen)

    async def act(self, action: Step) -> State:
        if action.tool_calls:
            return State(observation=NO_TOOLS)
        command = action.text.strip()
        if not (0 < len(command) <= _LONGEST and command.isascii() and command.isprintable()):
            return State(observation=f"Say one command, of at most {_LONGEST} plain characters.")
        if outside := _OUTSIDE.search(command):
            return State(observation=f"There is no {outside[0]!r} here.")
        self._sound = False  # until it has come through the command
        seen, _, done = self._env.step(command)
        self._sound = True
        score = _score(seen)
        reward, self._score = score - self._score, score
        return State(
            observation=self._spec.shown(seen),
            reward=reward,
            done=bool(done),
            answer=f"{score:g}" if done else None,
        )

    async def save(self) -> Json:
        return None

    async def load(self, saved: Json) -> None:
        raise WorldError(f"nothing is saved here: {saved!r:.80}")

    async def close(self) -> None:
        if self._sound:
            self._spare.append(self._env)
        else:
            self._env.close()


_BANNER = re.compile(r"\A(?:[\s_|\\/$<>]*\n)+")
_PROMPT = re.compile(r"\n>[^\n]*\Z")
_GAP = re.compile(r"\n{3,}")


def _score(seen: Mapping[str, object]) -> float:
    score = seen.get("score")
    return float(score) if isinstance(score, int | float) else 0.0
