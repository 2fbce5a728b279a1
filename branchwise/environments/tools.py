"""A world of Python functions that a model may call."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, cast

import anyio
from anyio import to_thread
from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    TypeAdapter,
    ValidationError,
    field_validator,
)
from pydantic.errors import PydanticUserError
from pydantic_core import ArgsKwargs, to_json

from branchwise.core.aio import gather
from branchwise.core.answers import Way, extract
from branchwise.core.config import Config
from branchwise.core.errors import BranchError, BranchwiseError, WorldError
from branchwise.core.tools import arguments_of, given
from branchwise.core.types import Json, State, Step, Task, Tool, ToolCall

FINISH = Tool(
    "finish",
    "Give the final answer. This ends the task.",
    {
        "type": "object",
        "properties": {"answer": {"type": "string", "description": "The final answer."}},
        "required": ["answer"],
        "additionalProperties": False,
    },
)
"""The tool that ends an episode."""


def _loaded(function: object) -> object:
    """A function from `module:name`; `name` may have dots."""
    if not isinstance(function, str):
        return function
    module, _, name = function.partition(":")
    try:
        found: object = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"cannot load {function!r}: {error}") from error
    return found


def _named(function: Callable[..., object]) -> str:
    return f"{function.__module__}:{getattr(function, '__qualname__', repr(function))}"


AnyFunction: TypeAlias = Annotated[
    Callable[..., Any],
    BeforeValidator(_loaded),
    PlainSerializer(_named, return_type=str),
]


class Tools(Config):
    """Functions are the tools; a text without a call is the answer.

    A tool's name, description and arguments are those of the function: its signature and its
    docstring in Google style. Arguments are checked and converted by pydantic. What a call comes to
    (or an unknown name, wrong arguments, an exception, a time-out) is one of `State.results`, which
    the model reads; several calls in one step run side by side. A function that is not async runs
    in a thread.

    Functions have to be pure: the same arguments, the same result, and nothing else changed. Search
    takes steps from older states and replays none of the calls before them. Tools with a memory
    are a stateful world instead (`Sessions`).

    Args:
        functions: the tools, as functions or as `"module:name"`.
        finish: whether an episode ends by a tool `finish(answer)` instead; a text without a call is
            then answered with a reminder.
        extract: where in the text to look for the answer, as `Math` does; nothing takes all of it.
        seconds: the most that one call may take. A thread cannot be stopped: the call is given up
            and its thread goes on, so a function that may hang belongs into a sandbox.
        longest: the most characters of a result that are shown.

    Raises:
        pydantic.ValidationError: a function cannot be loaded or cannot be a tool, or two have the
            same name.

    Example:
        >>> from branchwise import Step, Task, ToolCall, run_sync
        >>> def add(a: int, b: int) -> int:
        ...     "Add two numbers."
        ...     return a + b
        >>> async def call(arguments: str) -> tuple[str, ...]:
        ...     world = Tools(functions=[add])
        ...     state = await world.reset(Task("2 + 3?"))
        ...     said = Step("", finish="tools", tool_calls=(ToolCall("1", "add", arguments),))
        ...     return (await world.step(state, said)).results
        >>> run_sync(call, '{"a": 2, "b": 3}'), run_sync(call, '{"a": 2, "b": "x"}')
        (('5',), ('Error: b: Input should be a valid integer, unable to parse string ...',))
    """

    instant: ClassVar[bool] = False
    kind: Literal["tools"] = "tools"
    functions: tuple[AnyFunction, ...] = Field(min_length=1)
    finish: bool = False
    extract: tuple[Way, ...] = ()
    seconds: float = Field(default=30.0, gt=0)
    longest: int = Field(default=10_000, ge=100)

    @field_validator("functions")
    @classmethod
    def _are_tools(cls, functions: tuple[AnyFunction, ...]) -> tuple[AnyFunction, ...]:
        names = [declared(function).name for function in functions]
        for name in names:
            if names.count(name) > 1 or name == FINISH.name:
                raise ValueError(f"two tools would be called {name!r}")
        return functions

    @cached_property
    def tools(self) -> tuple[Tool, ...]:
        """What may be called."""
        tools = tuple(declared(function) for function in self.functions)
        return (*tools, FINISH) if self.finish else tools

    @cached_property
    def _callable(self) -> Mapping[str, _Callable]:
        return {
            tool.name: _Callable(function)
            for tool, function in zip(self.tools, self.functions, strict=False)
        }

    async def reset(self, task: Task) -> State:  # noqa: ARG002  (every task has the same tools)
        """Nothing has been called yet."""
        return State(snapshot=[], tools=self.tools)

    async def step(self, state: State, action: Step) -> State:
        """Carry out the calls of a step, or take its text for the answer.

        Raises:
            WorldError: the state is not one of this world, or what a tool needs is broken.
        """
        if not isinstance(state.snapshot, list):
            raise WorldError(f"a list of calls was expected as snapshot: {state.snapshot!r:.80}")
        called = cast("list[Json]", state.snapshot)
        if action.tool_calls:
            return await self._called(called, action.tool_calls)
        if action.finish in {"length", "filter"}:
            return State(snapshot=called, cut=True, tools=self.tools)
        if self.finish or action.finish == "tools":
            told = "There is no call in this." + (" End with finish(answer)." * self.finish)
            return State(snapshot=called, observation=told, tools=self.tools)
        return State(snapshot=called, done=True, answer=self._read(action.text), tools=self.tools)

    async def _called(self, before: list[Json], calls: Sequence[ToolCall]) -> State:
        results = await gather(self._result, calls)
        now: list[Json] = [
            [call.name, call.arguments, result] for call, result in zip(calls, results, strict=True)
        ]
        answer = next((a for call in calls if (a := self._finished(call)) is not None), None)
        return State(
            snapshot=[*before, *now],
            done=answer is not None,
            answer=None if answer is None else self._read(answer),
            results=tuple(results),
            tools=self.tools,
        )

    def _finished(self, call: ToolCall) -> str | None:
        """The answer that a call of `finish` gives."""
        if not self.finish or call.name != FINISH.name:
            return None
        arguments = arguments_of(call.arguments)
        answer = arguments.get("answer") if isinstance(arguments, dict) else None
        return answer if isinstance(answer, str) else None

    def _read(self, text: str) -> str | None:
        return extract(text, self.extract) if self.extract else text.strip() or None

    async def _result(self, call: ToolCall) -> str:
        if self.finish and call.name == FINISH.name:
            done = self._finished(call) is not None
            return "Done." if done else "Error: answer: a string is needed"
        arguments = given(call, self.tools)
        if isinstance(arguments, str):
            return f"Error: {arguments}"
        with anyio.move_on_after(self.seconds):
            return self._shortened(await self._callable[call.name](arguments))
        return f"Error: no result after {self.seconds:g} seconds"

    def _shortened(self, text: str) -> str:
        more = len(text) - self.longest
        return f"{text[: self.longest]}... ({more} characters more)" if more > 0 else text


class _Callable:
    """A function that takes arguments as a model gives them and returns a text."""

    def __init__(self, function: Callable[..., object]) -> None:
        self._adapter = _adapter(function)
        self._waits = any(
            map(inspect.iscoroutinefunction, (function, getattr(function, "__call__", None)))  # noqa: B004  (whether it is async, not whether it is there)
        )

    async def __call__(self, arguments: dict[str, Json]) -> str:
        given = ArgsKwargs((), arguments)
        try:
            if self._waits:
                said = self._adapter.validate_python(given)
            else:
                said = await to_thread.run_sync(
                    self._adapter.validate_python, given, abandon_on_cancel=True
                )
            return _text(await said if inspect.isawaitable(said) else said)
        except ValidationError as error:
            return f"Error: {_explained(error)}"
        except BranchError as error:
            raise WorldError(error.message, hint=error.hint, spent=error.spent) from error
        except BranchwiseError:
            raise
        except Exception as error:  # noqa: BLE001  (a tool's exception is for the model to read)
            return f"Error: {type(error).__name__}: {error}"


def declared(function: Callable[..., object]) -> Tool:
    """A function as a tool: its name, its docstring, and the JSON schema of its arguments.

    Raises:
        ValueError: it has no name, or its arguments cannot be given by name.

    Example:
        >>> def greet(name: str, loud: bool = False) -> str:
        ...     '''Greet somebody.
        ...
        ...     Args:
        ...         name: whom.
        ...     '''
        ...     return name
        >>> tool = declared(greet)
        >>> tool.description, tool.parameters["properties"]["name"]
        ('Greet somebody.', {'type': 'string', 'description': 'whom.'})
    """
    name = getattr(function, "__name__", "")
    if not _NAME.fullmatch(name):
        raise ValueError(f"{function!r:.80} has no name that a tool can have")
    try:
        schema = _adapter(function).json_schema()
    except (PydanticUserError, NameError, TypeError) as error:
        raise ValueError(f"{name} cannot be a tool: {error}") from error
    if schema.get("type") != "object":
        raise ValueError(f"{name} cannot be a tool: its arguments cannot all be given by name")
    text = inspect.getdoc(function) or ""
    said = _SECTION.split(text, maxsplit=1)[0].strip()
    told = _documented(text)
    properties: dict[str, dict[str, Json]] = schema.get("properties", {})
    for argument, parameter in properties.items():
        parameter.pop("title", None)
        if argument in told:
            parameter.setdefault("description", told[argument])
    return Tool(name, said, schema)


def _adapter(function: Callable[..., object]) -> TypeAdapter[object]:
    """Checks arguments and calls the function; to pydantic a function is a type."""
    return TypeAdapter(cast("type[object]", function))


_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECTION = re.compile(
    r"^(?:Args|Arguments|Returns|Raises|Yields|Examples?|Notes?|Source):", re.MULTILINE
)
_ARGUMENT = re.compile(r"^ +(\w+)(?: *\([^)]*\))?: *(.+(?:\n(?: {8,}|\t{2,}).+)*)", re.MULTILINE)


def _documented(text: str) -> dict[str, str]:
    """What a docstring's section `Args` says of each argument."""
    _, _, after = text.partition("Args:\n")
    section = re.split(r"^\S", after, maxsplit=1, flags=re.MULTILINE)[0]
    return {name: " ".join(said.split()) for name, said in _ARGUMENT.findall(section)}


def _explained(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()
    )


def _text(said: object) -> str:
    return said if isinstance(said, str) else to_json(said, fallback=str).decode()
