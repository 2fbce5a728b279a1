"""Environments of OpenEnv as worlds: a connection to their server for each session."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from hashlib import blake2b
from importlib import import_module
from importlib.util import find_spec
from math import isfinite
from typing import Any, Literal, TypeAlias, cast
from urllib.parse import urlsplit

import anyio
from anyio.abc import ByteStream, TaskGroup
from pydantic import Field, field_validator

from branchwise.core.config import Config
from branchwise.core.errors import SpecError, WorldError
from branchwise.core.tools import given
from branchwise.core.types import Json, State, Step, Task, Tool, ToolCall
from branchwise.environments.sessions import Session, Sessions
from branchwise.environments.writing import NO_TOOLS

_LARGEST = 100 << 20
"""Of a message, in bytes: as much as OpenEnv's own client takes."""
_FAREWELL = 2.0
"""How many seconds a server gets to free a session that was ended."""
_REFUSALS = frozenset({"VALIDATION_ERROR", "EXECUTION_ERROR"})
"""Errors of a server that are about the action: it is none, or the environment raised at it."""

Object: TypeAlias = Mapping[str, Json]


class OpenEnv(Config):
    """An environment that an OpenEnv server runs, in which each step's text is an action.

    An action is the JSON object that the text holds, or the text itself in `field`, or what `parse`
    makes of it. What the server or its environment refuses is an observation. An observation is
    shown as JSON without what is empty and without `metadata`, and where one text is left, as
    that. The text that ends an episode is its answer.

    With `tools`, the tools of the environment are the policy's, and what it calls is called there.

    A task's `meta["reset"]` is what its episode is reset with, beside `reset` and a seed made of
    the prompt. OpenEnv knows no way back: an older state is reached by acting again from the start
    in a new session, which tells an environment that is not a function of its seed. A server allows
    one session at a time if it says nothing else, and so does `live`.

    The protocol is spoken here, so of OpenEnv nothing has to be installed but on the server. Its
    own client would connect again without a word when a connection is lost, to an environment that
    knows nothing of what was done.

    Args:
        url: where the server listens.
        field: the field of an action that a step's text is.
        tools: whether the environment has tools.
        reset: what each episode is reset with, such as a split of the data.
        seconds: the most that connecting, a reset and a step may take, each.
        live: how many sessions at one time at most; the server's `max_concurrent_envs`.
        headers: what the connection is opened with, such as `Authorization`; no dump shows them.
        parse: reads an action of a text; what it raises is told the policy.
        render: shows an observation as a text.
        answer: reads the answer from the text and the observation that end an episode.

    Raises:
        SpecError: the package `websockets` is not installed.

    Source: github.com/meta-pytorch/OpenEnv, version 0.10.

    Example:
        >>> OpenEnv(url="http://localhost:8000", field="message").live
        1
    """

    kind: Literal["openenv"] = "openenv"
    url: str
    field: str = ""
    tools: bool = False
    reset: dict[str, Json] = Field(default_factory=dict)
    seconds: float = Field(default=60.0, gt=0)
    live: int = Field(default=1, ge=1)
    headers: dict[str, str] = Field(default_factory=dict, exclude=True, repr=False)
    parse: Callable[[str], Object] | None = Field(default=None, exclude=True, repr=False)
    render: Callable[[Object], str] | None = Field(default=None, exclude=True, repr=False)
    answer: Callable[[str, Object], str | None] | None = Field(
        default=None, exclude=True, repr=False
    )

    @field_validator("url")
    @classmethod
    def _known(cls, url: str) -> str:
        if urlsplit(url).scheme not in {"http", "https", "ws", "wss"}:
            raise ValueError("the URL of a server begins with http, https, ws or wss")
        return url

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Sessions]:
        """The world; its connections are closed with the block.

        Raises:
            SpecError: the package `websockets` is not installed.
        """
        if find_spec("websockets") is None:
            raise SpecError("openenv needs websockets", hint="pip install 'branchwise[openenv]'")
        failed: list[Exception] = []
        async with anyio.create_task_group() as group:

            async def start(task: Task) -> tuple[Session, State]:
                return await _Episode(self, _Line(self)).begun(group, task)

            try:
                async with Sessions(start, live=self.live) as world:
                    yield world
            except Exception as error:  # noqa: BLE001  (raised below, without the group around it)
                failed.append(error)
            finally:
                group.cancel_scope.cancel()
        if failed:
            raise failed[0]

    def action(self, text: str) -> Object:
        """The action that a text says.

        Raises:
            Exception: it says none; the message is for the policy.
        """
        if self.parse is not None:
            return self.parse(text)
        if self.field:
            return {self.field: text}
        return _object(text, "An action")

    def shown(self, seen: Object) -> str:
        """An observation as a text."""
        if self.render is not None:
            return self.render(seen)
        empty: tuple[Json, ...] = (None, "", [], {})
        left = {k: v for k, v in seen.items() if k != "metadata" and v not in empty}
        match list(left.values()):
            case [str(text)]:
                return text
            case []:
                return ""
            case _:
                return json.dumps(left)


class _Episode:
    """One session on the server."""

    def __init__(self, spec: OpenEnv, line: _Line) -> None:
        self._spec = spec
        self._line = line
        self._tools: tuple[Tool, ...] = ()

    async def begun(self, group: TaskGroup, task: Task) -> tuple[Session, State]:
        own = task.meta.get("reset", {})
        if not isinstance(own, dict):
            raise SpecError(f'meta["reset"] of a task is {own!r:.80}, which is no object')
        digest = blake2b(task.prompt.encode(), digest_size=4).digest()
        seed: Json = int.from_bytes(digest, "big") >> 1
        await self._line.connect(group)
        try:
            said = await self._line.ask("reset", {"seed": seed, **self._spec.reset, **own})
            if self._spec.tools:
                listed = await self._line.ask("step", {"type": "list_tools"})
                self._tools = _tools(listed)
        except BaseException as error:
            await self._line.close()
            if isinstance(error, _RefusedError):
                raise WorldError(f"the environment could not begin: {error}") from error
            raise
        return self, self._state(said, "")

    def _state(self, said: Object, text: str) -> State:
        seen = cast("Object", said.get("observation") or {})
        return self._earned(said, seen, text, observation=self._spec.shown(seen))

    def _earned(self, said: Object, seen: Object, text: str, **more: Any) -> State:
        reward = float(cast("float", said.get("reward") or 0.0))
        if not isfinite(reward):
            raise WorldError(f"the environment gave a reward of {reward}")
        done = bool(said.get("done"))
        read = self._spec.answer
        answer = None if not done else read(text, seen) if read else text.strip() or None
        return State(reward=reward, done=done, answer=answer, tools=self._tools, **more)

    async def act(self, action: Step) -> State:
        if action.finish in {"length", "filter"}:
            return State(cut=True, tools=self._tools)
        if action.tool_calls and not self._spec.tools:
            return State(observation=NO_TOOLS)
        if action.tool_calls:
            return await self._called(action)
        try:
            wanted = dict(self._spec.action(action.text))
        except Exception as error:  # noqa: BLE001  (of whatever kind, it is about the text)
            return State(observation=str(error), tools=self._tools)
        try:
            return self._state(await self._line.ask("step", wanted), action.text)
        except _RefusedError as error:
            return State(observation=str(error), tools=self._tools)

    async def _called(self, action: Step) -> State:
        """All calls one after the other, until one of them ends the episode."""
        results: list[str] = []
        total, last = 0.0, State(tools=self._tools)
        for call in action.tool_calls:
            if last.done:
                results.append("The call was not made: the episode was over.")
                continue
            result, last = await self._call(call, action.text)
            results.append(result)
            total += last.reward
        return State(
            results=tuple(results),
            reward=total,
            done=last.done,
            answer=last.answer,
            tools=self._tools,
        )

    async def _call(self, call: ToolCall, text: str) -> tuple[str, State]:
        arguments = given(call, self._tools)
        if isinstance(arguments, str):
            return f"Error: {arguments}", State(tools=self._tools)
        wanted: Object = {"type": "call_tool", "tool_name": call.name, "arguments": arguments}
        try:
            said = await self._line.ask("step", wanted)
        except _RefusedError as error:
            return str(error), State(tools=self._tools)
        seen = cast("Object", said.get("observation") or {})
        return _result(seen), self._earned(said, seen, text)

    async def save(self) -> Json:
        return None

    async def load(self, saved: Json) -> None:
        raise WorldError(f"OpenEnv has no way back: {saved!r:.80}")

    async def close(self) -> None:
        await self._line.close()


class _RefusedError(Exception):
    """The server did not carry out what it was asked; the message says why."""


class _Line:
    """A connection whose keep-alives are answered while nobody asks anything."""

    def __init__(self, spec: OpenEnv) -> None:
        self._spec = spec
        self._protocol: Any = None
        self._stream: ByteStream | None = None
        self._sending = anyio.Lock()
        self._ready = anyio.Event()
        self._ended = anyio.Event()
        self._put, self._got = anyio.create_memory_object_stream[bytes](max_buffer_size=16)
        self._parts: list[bytes] = []

    async def connect(self, group: TaskGroup) -> None:
        scheme, rest = self._spec.url.split("://", 1)
        secure = scheme in {"https", "wss"}
        address = f"{'wss' if secure else 'ws'}://{rest.rstrip('/')}/ws"
        uri = import_module("websockets.uri").parse_uri(address)
        protocol = import_module("websockets.client").ClientProtocol(uri, max_size=_LARGEST)
        try:
            with anyio.fail_after(self._spec.seconds):
                self._stream = (
                    await anyio.connect_tcp(
                        uri.host, uri.port, tls=True, tls_standard_compatible=False
                    )
                    if secure
                    else await anyio.connect_tcp(uri.host, uri.port)
                )
                self._protocol = protocol
                group.start_soon(self._listen)
                request = protocol.connect()
                request.headers.update(self._spec.headers)
                protocol.send_request(request)
                await self._flush()
                await self._ready.wait()
        except (OSError, TimeoutError, anyio.BrokenResourceError) as error:
            await self.close()
            why = str(error) or "it does not answer"
            raise WorldError(f"no connection to the OpenEnv server {address}: {why}") from error
        except BaseException:
            await self.close()
            raise
        if protocol.state.name == "CONNECTING" or protocol.handshake_exc is not None:
            why = protocol.handshake_exc or "it hung up"
            await self.close()
            raise WorldError(f"no connection to the OpenEnv server {address}: {why}")

    async def _listen(self) -> None:
        stream, protocol = self._stream, self._protocol
        if stream is None:
            return
        try:
            while True:
                protocol.receive_data(await stream.receive())
                await self._flush()
                for event in protocol.events_received():
                    await self._take(event)
                if protocol.handshake_exc is not None or protocol.close_expected():
                    return
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            return
        finally:
            self._put.close()
            self._ended.set()
            self._ready.set()

    async def _take(self, event: Any) -> None:
        """An event of the protocol: its opening, or a part of a message."""
        if not self._ready.is_set():
            self._ready.set()
        elif event.opcode in {0, 1, 2}:  # a continuation, text or bytes
            self._parts.append(bytes(event.data))
            if event.fin:
                message, self._parts = b"".join(self._parts), []
                await self._put.send(message)

    async def _flush(self) -> None:
        async with self._sending:
            if self._stream is not None:
                for data in self._protocol.data_to_send():
                    await (self._stream.send(data) if data else self._stream.send_eof())

    async def ask(self, kind: str, data: Object) -> Object:
        try:
            message = json.dumps({"type": kind, "data": data}, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise _RefusedError(f"An action has to be JSON: {error}") from error
        try:
            with anyio.fail_after(self._spec.seconds):
                await self._say(message)
                said = _object((await self._got.receive()).decode(), "A server's reply")
        except TimeoutError:
            self._ended.set()  # nor will it take leave
            limit = f"{self._spec.seconds:g} seconds"
            raise WorldError(f"the OpenEnv server took more than {limit}") from None
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            raise WorldError("the connection to the OpenEnv server is lost") from None
        except ValueError as error:
            raise WorldError(f"the OpenEnv server speaks otherwise: {error}") from error
        return _answered(said)

    async def _say(self, message: str) -> None:
        """Send a message; nothing where the server hung up, for its last word may say why."""
        if self._protocol.state.name == "OPEN":
            self._protocol.send_text(message.encode())
            await self._flush()

    async def close(self) -> None:
        """Let the server free the session, then hang up."""
        if self._stream is not None:
            lost = (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError)
            with anyio.move_on_after(_FAREWELL, shield=True), suppress(*lost):
                await self._say('{"type": "close"}')
                if self._ready.is_set():
                    await self._ended.wait()  # it frees the session before it closes
            await anyio.aclose_forcefully(self._stream)
            self._stream = None
        self._put.close()
        self._got.close()


def _answered(said: Object) -> Object:
    """The data of a reply.

    Raises:
        _RefusedError: the action could not be carried out.
        WorldError: the session broke.
    """
    data = said.get("data")
    if not isinstance(data, dict):
        raise WorldError(f"the OpenEnv server speaks otherwise: {said!r:.200}")
    if said.get("type") != "error":
        return data
    code, message = data.get("code"), data.get("message")
    if code not in _REFUSALS:
        hint = "lower `live`" if code == "CAPACITY_REACHED" else ""
        raise WorldError(f"the OpenEnv server failed: {message} ({code})", hint=hint)
    faults = data.get("errors")
    if not isinstance(faults, list):
        raise _RefusedError(str(message))
    told = [
        f"{'.'.join(map(str, cast('list[Json]', fault.get('loc') or [])))}: {fault.get('msg')}"
        for fault in faults
        if isinstance(fault, dict)
    ]
    raise _RefusedError("; ".join([f"{message}", *told]))


def _tools(listed: Object) -> tuple[Tool, ...]:
    seen = listed.get("observation")
    tools = seen.get("tools") if isinstance(seen, dict) else None
    if not isinstance(tools, list):
        raise WorldError("the environment has no tools", hint="leave `tools` out")
    return tuple(
        Tool(
            str(tool.get("name")),
            str(tool.get("description") or ""),
            cast("dict[str, Json]", tool.get("input_schema") or {}),
        )
        for tool in tools
        if isinstance(tool, dict)
    )


def _result(seen: Object) -> str:
    """What a call came to, as a text."""
    match seen.get("error") or seen.get("result"):
        case None:
            return ""
        case str(text) | {"message": str(text)}:
            return text
        case {"content": [*blocks]}:
            texts = [block.get("text") for block in blocks if isinstance(block, dict)]
            return "\n".join(str(text) for text in texts if text is not None)
        case other:
            return json.dumps(other)


def _object(text: str, what: str) -> dict[str, Json]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{what} has to be a JSON object.")  # noqa: TRY004  (of a text)
    return cast("dict[str, Json]", value)
