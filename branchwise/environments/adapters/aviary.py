"""Environments of Aviary as worlds: their tools become the policy's, its calls their requests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib import import_module
from importlib.util import find_spec
from math import isfinite
from types import ModuleType
from typing import Literal, Protocol, Self, SupportsFloat, TypeAlias, cast

from pydantic import BaseModel, Field, model_validator

from branchwise.core.config import Config
from branchwise.core.errors import SpecError, WorldError
from branchwise.core.tools import arguments_of
from branchwise.core.types import Json, State, Step, Task, Tool, ToolCall
from branchwise.environments.sessions import Session, Sessions


class Message(Protocol):
    """What is used of an `aviary.message.Message`."""

    @property
    def content(self) -> str | None:
        """The text, or JSON where it holds more than text."""
        ...


Taken: TypeAlias = tuple[Sequence[Message], SupportsFloat, bool, bool]
"""Messages, reward, done, truncated."""


class Env(Protocol):
    """What is used of an `aviary.env.Environment`."""

    async def reset(self) -> tuple[Sequence[Message], Sequence[BaseModel]]:
        """Begin: the first messages, and the tools."""
        ...

    async def step(self, action: object) -> Taken:
        """Carry out an assistant's message."""
        ...

    async def close(self) -> None:
        """Free everything."""
        ...


class Aviary(Config):
    """An environment of Aviary: each step is the message of an assistant that calls tools.

    The environment's tools are the state's, and the messages that answer calls are its `results`,
    one for each call; all other messages make up the observation. A call whose arguments are no
    JSON object, an unknown tool and a tool that raises are told the policy; only lost connections
    and running out of time fail the branch. `truncated` is `cut`. The answer of an episode is what
    the last call that ended it was given: its only argument, or all of them as JSON; without a
    call, the text of the last step.

    Older states are reached by acting again from the start, since a frame of Aviary cannot be gone
    on from; this tells an environment that does not do the same again. Aviary runs on asyncio only.

    Args:
        name: what `Environment.from_name` knows it by; the task's prompt is its task, which none of
            its messages has to repeat.
        live: how many environments at one time at most.
        make: makes the environment of a task, in the place of `name`.

    Raises:
        SpecError: Aviary is not installed or does not know the environment, or the event loop is
            not asyncio's.

    Source: Narayanan et al. 2024, "Aviary: training language agents on challenging scientific
    tasks".

    Example:
        >>> Aviary(name="dummy").live
        8
    """

    kind: Literal["aviary"] = "aviary"
    name: str = ""
    live: int = Field(default=8, ge=1)
    make: Callable[[Task], Env] | None = Field(default=None, exclude=True, repr=False)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if bool(self.name) == (self.make is not None):
            raise ValueError("give either `name` or `make`")
        return self

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Sessions]:
        """The world; its environments are closed with the block.

        Raises:
            SpecError: Aviary is not installed, or the event loop is not asyncio's.
        """
        if find_spec("aviary") is None:
            raise SpecError("aviary needs its package", hint="pip install fhaviary")
        try:
            asyncio.get_running_loop()
        except RuntimeError as error:
            raise SpecError("aviary runs on asyncio only", hint="choose that event loop") from error
        async with Sessions(self.start, live=self.live) as world:
            yield world

    async def start(self, task: Task) -> tuple[Session, State]:
        """An episode of the task, and its first messages."""
        env = self._made(task)
        try:
            messages, tools = await env.reset()
            offered = tuple(_tool(tool) for tool in tools)
            return _Episode(env, offered), State(observation=_text(messages), tools=offered)
        except BaseException:
            await env.close()
            raise

    def _made(self, task: Task) -> Env:
        if self.make is not None:
            return self.make(task)
        try:
            return import_module("aviary.env").Environment.from_name(self.name, task=task.prompt)
        except (ValueError, ImportError) as error:
            raise SpecError(f"aviary cannot make {self.name!r}: {error}") from error


class _Episode:
    """One life of an environment."""

    def __init__(self, env: Env, tools: tuple[Tool, ...]) -> None:
        self._env = env
        self._tools = tools
        self._library = import_module("aviary.tools")

    async def act(self, action: Step) -> State:
        read = [arguments_of(call.arguments) for call in action.tool_calls]
        # Ids of one's own: a model may give two calls the same one.
        calls = [
            (str(i), call, arguments)
            for i, (call, arguments) in enumerate(zip(action.tool_calls, read, strict=True))
            if isinstance(arguments, dict)
        ]
        results = {str(i): f"Error: {said}" for i, said in enumerate(read) if isinstance(said, str)}
        if action.tool_calls and not calls:
            return State(results=tuple(results.values()), tools=self._tools)
        try:
            taken = await self._env.step(_request(self._library, action.text, calls))
        except (ConnectionError, TimeoutError):
            raise
        except Exception as error:  # noqa: BLE001  (tools raise what they like at a wrong call)
            said = f"{type(error).__name__}: {error}"
            if not calls:
                return State(observation=said, tools=self._tools)
            results |= {name: said for name, _, _ in calls}
            return State(results=_in_order(results), tools=self._tools)
        messages, earned, done, truncated = taken
        reward = float(earned)
        if not isfinite(reward):
            raise WorldError(f"the environment gave a reward of {reward}")
        answers: dict[str, list[Message]] = {name: [] for name, _, _ in calls}
        others: list[Message] = []
        for message in messages:
            answers.get(str(getattr(message, "tool_call_id", None)), others).append(message)
        results |= {name: _text(said) for name, said in answers.items()}
        return State(
            observation=_text(others),
            reward=reward,
            done=bool(done),
            cut=bool(truncated) and not done,
            answer=_answer(action) if done else None,
            results=_in_order(results),
            tools=self._tools,
        )

    async def save(self) -> Json:
        return None

    async def load(self, saved: Json) -> None:
        raise WorldError(f"nothing is saved here: {saved!r:.80}")

    async def close(self) -> None:
        await self._env.close()


def _tool(tool: BaseModel) -> Tool:
    """A tool of Aviary's as one of ours."""
    info = tool.model_dump(by_alias=False)["info"]
    parameters = info["parameters"] or {"type": "object", "properties": {}}
    return Tool(info["name"], info["description"], parameters)


def _request(
    library: ModuleType, text: str, calls: Sequence[tuple[str, ToolCall, dict[str, Json]]]
) -> object:
    """The message of an assistant, in Aviary's words."""
    return library.ToolRequestMessage(
        content=text or None,
        tool_calls=[
            library.ToolCall(
                id=name,
                function=library.ToolCallFunction(name=call.name, arguments=arguments),
            )
            for name, call, arguments in calls
        ],
    )


def _in_order(results: dict[str, str]) -> tuple[str, ...]:
    return tuple(results[str(i)] for i in range(len(results)))


def _text(messages: Sequence[Message]) -> str:
    """What messages say, without their pictures."""
    said = (_words(message) for message in messages)
    return "\n\n".join(text for text in said if text)


def _words(message: Message) -> str:
    if not getattr(message, "is_multimodal", False):
        return message.content or ""
    parts = cast("list[dict[str, str]]", json.loads(message.content or "[]"))
    return "\n".join(part["text"] if part["type"] == "text" else "[image]" for part in parts)


def _answer(action: Step) -> str | None:
    """What was handed in."""
    if not action.tool_calls:
        return action.text.strip() or None
    given = arguments_of(action.tool_calls[-1].arguments)
    if isinstance(given, dict) and len(given) == 1:
        [given] = given.values()
    return given if isinstance(given, str) else json.dumps(given, sort_keys=True)
