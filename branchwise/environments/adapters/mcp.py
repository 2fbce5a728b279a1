"""The tools of MCP servers as worlds: what a model calls is called there, and answered here."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from hashlib import blake2b
from importlib import import_module
from importlib.util import find_spec
from tempfile import TemporaryFile
from typing import Literal, Protocol, Self, TextIO

import anyio
from anyio.abc import TaskGroup, TaskStatus
from pydantic import Field, model_validator

from branchwise.core.config import Config
from branchwise.core.errors import BranchwiseError, SpecError, WorldError
from branchwise.core.tools import given
from branchwise.core.types import Environment, Json, State, Step, Task, Tool, ToolCall
from branchwise.environments.sessions import Session, Sessions

_REFUSALS = frozenset({-32601, -32602, -32603})
"""Errors of JSON-RPC that are about the call: no such method, wrong parameters, the call failed."""
_MOST_PAGES = 100
"""Of a list of tools; a server that never ends its list must not hang a search."""


class Content(Protocol):
    """What is used of a block of content."""

    @property
    def type(self) -> str:
        """Which kind of block it is."""
        ...


class Result(Protocol):
    """What is used of an `mcp.types.CallToolResult`."""

    @property
    def content(self) -> Sequence[Content]:
        """What the model may read, or look at."""
        ...

    @property
    def structured_content(self) -> object:
        """The same as a JSON value; None where there is none."""
        ...


class Described(Protocol):
    """What is used of an `mcp.types.Tool`."""

    @property
    def name(self) -> str:
        """What it is called by."""
        ...

    @property
    def description(self) -> str | None:
        """What it does."""
        ...

    @property
    def input_schema(self) -> Mapping[str, Json]:
        """The JSON schema of its arguments."""
        ...


class Page(Protocol):
    """What is used of an `mcp.types.ListToolsResult`."""

    @property
    def tools(self) -> Sequence[Described]:
        """Some of the tools."""
        ...

    @property
    def next_cursor(self) -> str | None:
        """Where the next page begins; None on the last."""
        ...


class Client(Protocol):
    """What is used of an `mcp.Client`."""

    @property
    def instructions(self) -> str | None:
        """What the server tells those who use its tools."""
        ...

    async def list_tools(self, *, cursor: str | None = None) -> Page:
        """The tools, page by page."""
        ...

    async def call_tool(self, name: str, arguments: dict[str, Json]) -> Result:
        """What a tool comes to."""
        ...


class MCP(Config):
    """A server of the Model Context Protocol, whose tools the policy may call.

    A step that calls tools has them called one after the other; `State.results` holds what each
    came to. A tool that fails, an unknown tool and wrong arguments are results too. A step without
    a call ends the episode, and its text is the answer. Images, sounds and binary resources are
    named, not shown. The server's instructions are the first observation.

    Each session has a connection of its own, and with `command` a process of its own; older states
    are reached by calling the tools again from the start, so calls must be repeatable. Over HTTP a
    stateful server is asked for the protocol up to 2025-11-25, for later ones have no sessions.
    Where answers depend on nothing but the call, `stateless` saves all that: there is one
    connection, and nothing is ever called twice.

    Args:
        command: starts a server that talks on its standard input and output; its environment is
            `env` and a few variables such as PATH.
        url: where a server listens (streamable HTTP).
        env: variables of the environment of `command`.
        headers: what each request to `url` carries, such as `Authorization`; no dump shows them.
        stateless: whether no call changes what later ones answer.
        tools: the names of those that may be called; all where it is empty.
        seconds: the most that connecting and a call may take, each.
        live: how many sessions at one time at most.
        server: makes what `mcp.Client` connects to, in the place of `command` and `url`: a
            transport, or a server in this process.
        answer: reads the answer from the text that ends an episode.

    Raises:
        SpecError: version 2 of the package `mcp` is not installed, or the command cannot be
            started.

    Source: modelcontextprotocol.io, revisions 2025-11-25 and 2026-07-28.

    Example:
        >>> MCP(command=("uvx", "mcp-server-time"), stateless=True).seconds
        60.0
    """

    kind: Literal["mcp"] = "mcp"
    command: tuple[str, ...] = ()
    url: str = ""
    env: dict[str, str] = Field(default_factory=dict, repr=False)
    headers: dict[str, str] = Field(default_factory=dict, exclude=True, repr=False)
    stateless: bool = False
    tools: tuple[str, ...] = ()
    seconds: float = Field(default=60.0, gt=0)
    live: int = Field(default=8, ge=1)
    server: Callable[[], object] | None = Field(default=None, exclude=True, repr=False)
    answer: Callable[[str], str | None] | None = Field(default=None, exclude=True, repr=False)

    @model_validator(mode="after")
    def _one_server(self) -> Self:
        if bool(self.command) + bool(self.url) + (self.server is not None) != 1:
            raise ValueError("give one of `command`, `url` and `server`")
        return self

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Sessions | Shared]:
        """The world; its connections and processes end with the block.

        Raises:
            SpecError: version 2 of the package `mcp` is not installed.
        """
        if find_spec("mcp_types") is None:  # the SDK has it since version 2
            raise SpecError("mcp needs its package", hint="pip install 'branchwise[mcp]'")
        failed: list[Exception] = []
        async with self._http() as http, anyio.create_task_group() as group:
            lines = _Lines(self, group, http)
            try:
                if self.stateless:
                    yield Shared(lines)
                else:
                    async with Sessions(lines.start, live=self.live) as world:
                        yield world
            except Exception as error:  # noqa: BLE001  (raised below, without the group around it)
                failed.append(error)
            finally:
                group.cancel_scope.cancel()
        if failed:
            raise failed[0]

    @asynccontextmanager
    async def _http(self) -> AsyncGenerator[object]:
        """What all connections share: reading the certificates again for each takes longest."""
        if not self.url:
            yield None
            return
        httpx = import_module("httpx2")
        async with httpx.AsyncClient(
            headers=self.headers,
            timeout=httpx.Timeout(self.seconds, read=None),
            limits=httpx.Limits(max_connections=None),
        ) as http:
            yield http

    def client(self, log: TextIO, http: object) -> AbstractAsyncContextManager[Client]:
        """A client of the SDK.

        Args:
            log: where a process's standard error goes.
            http: what speaks HTTP.
        """
        mcp = import_module("mcp")
        if self.server is not None:
            server = self.server()
        elif self.url:
            transport = import_module("mcp.client.streamable_http")
            server = transport.streamable_http_client(self.url, http_client=http)
        else:
            start = mcp.StdioServerParameters(
                command=self.command[0], args=list(self.command[1:]), env=self.env
            )
            server = mcp.stdio_client(start, log)
        return mcp.Client(server, mode="auto" if self.stateless or self.command else "legacy")

    def read(self, text: str) -> str | None:
        """The answer in the text that ends an episode."""
        return self.answer(text) if self.answer is not None else text.strip() or None


class Shared(Environment):
    """The world of a stateless server: a connection that all steps share.

    Args:
        lines: opens connections.
    """

    def __init__(self, lines: _Lines) -> None:
        self._lines = lines
        self._line: _Line | None = None
        self._opening = anyio.Lock()

    async def reset(self, task: Task) -> State:  # noqa: ARG002  (every task has the same tools)
        """The state in which nothing was called.

        Raises:
            WorldError: the server does not answer.
        """
        line = await self._connected()
        return State(snapshot="", observation=line.instructions, tools=line.tools)

    async def step(self, state: State, action: Step) -> State:
        """What the calls come to, or the end where there are none.

        Raises:
            WorldError: the server was lost, or a call took too long; or the world is done here.
        """
        if state.done:
            raise WorldError("the world is done here: it accepts no further action")
        after = await (await self._connected()).act(action)
        calls = action.tool_calls
        # The snapshot holds nothing to go on from, but it tells different pasts apart.
        said = [state.snapshot, action.text, [[c.name, c.arguments] for c in calls]]
        past = json.dumps([*said, after.results]).encode()
        digest = blake2b(past, digest_size=16).hexdigest()
        return State(
            snapshot=digest,
            done=after.done,
            cut=after.cut,
            answer=after.answer,
            results=after.results,
            tools=after.tools,
        )

    async def _connected(self) -> _Line:
        async with self._opening:
            if self._line is None or self._line.lost:
                if self._line is not None:
                    await self._line.close()
                    self._line = None
                self._line = await self._lines.opened()
            return self._line


class _Lines:
    """Opens connections, each held by a task that lives as long as the world."""

    def __init__(self, spec: MCP, group: TaskGroup, http: object) -> None:
        self._spec = spec
        self._group = group
        self._http = http
        self._tools: tuple[Tool, ...] = ()

    async def start(self, task: Task) -> tuple[Session, State]:  # noqa: ARG002  (as in `reset`)
        line = await self.opened()
        return line, State(observation=line.instructions, tools=line.tools)

    async def opened(self) -> _Line:
        line = _Line(self._spec, self._http)
        try:
            with anyio.fail_after(self._spec.seconds):
                await self._group.start(line.hold)
        except TimeoutError:
            raise WorldError(f"no MCP server within {self._spec.seconds:g} seconds") from None
        if line.tools == self._tools:
            line.tools = self._tools  # one object for all states
        self._tools = line.tools
        return line


class _Line:
    """One connection. The SDK's scopes belong to the task that opened them, so one task holds it.

    Args:
        spec: what to connect to.
        http: what speaks HTTP.
    """

    def __init__(self, spec: MCP, http: object) -> None:
        self._spec = spec
        self._http = http
        self._client: Client | None = None
        self._over = anyio.Event()
        self._ended = anyio.Event()
        self.tools: tuple[Tool, ...] = ()
        self.instructions = ""
        self.lost = False

    async def hold(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Connect, and keep the connection until it is closed or breaks.

        Raises:
            WorldError: there was no connection.
            SpecError: the command cannot be started.
        """
        with TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
            try:
                async with self._spec.client(log, self._http) as client:
                    self.tools = await self._listed(client)
                    self.instructions = client.instructions or ""
                    self._client = client
                    task_status.started()
                    await self._over.wait()
            except Exception as error:
                if self._client is None:
                    raise self._unreachable(error, log) from error
            finally:
                self.lost = True
                self._ended.set()

    async def _listed(self, client: Client) -> tuple[Tool, ...]:
        listed: list[Tool] = []
        cursor: str | None = None
        for _ in range(_MOST_PAGES):
            page = await client.list_tools(cursor=cursor)
            listed += [Tool(t.name, t.description or "", dict(t.input_schema)) for t in page.tools]
            if (cursor := page.next_cursor) is None:
                break
        names = [tool.name for tool in listed]
        if missing := [name for name in self._spec.tools if name not in names]:
            raise SpecError(f"the MCP server has no tool {missing[0]!r}", hint=f"it has {names}")
        return tuple(t for t in listed if not self._spec.tools or t.name in self._spec.tools)

    def _unreachable(self, error: Exception, log: TextIO) -> BranchwiseError:
        cause = error
        while isinstance(cause, ExceptionGroup):
            cause = cause.exceptions[0]
        if isinstance(cause, BranchwiseError):
            return cause
        if isinstance(cause, FileNotFoundError | PermissionError) and self._spec.command:
            return SpecError(f"the MCP server cannot be started: {cause}")
        log.seek(0)
        said = log.read().split("\n")
        last = next((line for line in reversed(said) if line.strip()), "")
        why = f"{type(cause).__name__}: {cause}"
        return WorldError(f"no connection to the MCP server: {why}", hint=last.strip()[:500])

    async def act(self, action: Step) -> State:
        if action.finish in {"length", "filter"}:
            return State(cut=True, tools=self.tools)
        if not action.tool_calls:
            return State(done=True, answer=self._spec.read(action.text), tools=self.tools)
        results = [await self._called(call) for call in action.tool_calls]
        return State(results=tuple(results), tools=self.tools)

    async def _called(self, call: ToolCall) -> str:
        arguments = given(call, self.tools)
        if isinstance(arguments, str):
            return f"Error: {arguments}"
        client = self._client
        if client is None or self.lost:
            raise WorldError("the connection to the MCP server is lost")
        try:
            with anyio.fail_after(self._spec.seconds):
                return said(await client.call_tool(call.name, arguments))
        except TimeoutError:
            limit = f"{self._spec.seconds:g} seconds"
            raise WorldError(f"{call.name} of the MCP server took more than {limit}") from None
        except Exception as error:
            if getattr(error, "code", None) in _REFUSALS:
                return f"{call.name} failed: {error}"
            self.lost = True
            raise WorldError(f"the MCP server failed at {call.name}: {error!r}") from error

    async def save(self) -> Json:
        return None

    async def load(self, saved: Json) -> None:
        raise WorldError(f"an MCP server has no way back: {saved!r:.80}")

    async def close(self) -> None:
        self._over.set()
        await self._ended.wait()


def said(result: Result) -> str:
    """What a model gets to read of a tool's result."""
    parts = [_shown(block) for block in result.content]
    if not parts and result.structured_content is not None:
        return json.dumps(result.structured_content)
    return "\n".join(parts)


def _shown(block: Content) -> str:
    kind = block.type
    if kind == "text":
        return str(getattr(block, "text", ""))
    resource = getattr(block, "resource", block)
    if (text := getattr(resource, "text", None)) is not None:
        return str(text)
    uri = getattr(resource, "uri", None)
    data = getattr(resource, "data", None) or getattr(resource, "blob", None)
    size = f"{len(str(data)) * 3 // 4} bytes" if data else ""
    parts = (kind, uri, getattr(resource, "mime_type", None), size)
    return f"[{', '.join(str(part) for part in parts if part)}]"
