"""A loopback server that answers whatever a test writes, byte by byte if need be."""

import asyncio
import contextlib
import json
import time
from contextlib import asynccontextmanager

from branchwise.backends.openai import OpenAI, connected
from branchwise.backends.remote.retry import Clock
from branchwise.core.config import Sampling
from branchwise.core.types import Message, Request

HELLO = (Message("user", "Say hello."),)


def request(**fields):
    given = {"messages": HELLO} if not {"messages", "prompt", "tokens"} & fields.keys() else {}
    return Request(**given, **{"logprobs": False, "max_tokens": 8, **fields})


GREEDY = Sampling(temperature=0)


class Asked:
    """One HTTP request, and the means to answer it."""

    def __init__(self, path, headers, body, reader, writer):
        self.path, self.headers, self.body = path, headers, body
        self._reader, self._writer = reader, writer

    async def write(self, data):
        self._writer.write(data)
        await self._writer.drain()

    async def head(self, length, status=200, kind="application/json", headers=()):
        lines = [f"HTTP/1.1 {status} x", f"content-type: {kind}", f"content-length: {length}"]
        lines += [f"{name}: {value}" for name, value in dict(headers).items()]
        await self.write("\r\n".join([*lines, "", ""]).encode())

    async def reply(self, body, status=200, headers=(), kind="application/json"):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        await self.head(len(data), status, kind, headers)
        await self.write(data)

    async def chat(self, *texts, **extra):
        await self.reply(completion(*texts, **extra))

    async def refuse(self, status, message="no", headers=(), **error):
        await self.reply({"error": {"message": message, **error}}, status, headers)

    async def gone(self):
        """Wait until the client hangs up."""
        assert await self._reader.read() == b""

    def reset(self):
        self._writer.transport.abort()


class Server:
    """Counts what it is asked and leaves the answers to `answer`."""

    def __init__(self, answer):
        self.answer = answer
        self.asked = []
        self.running = self.peak = 0
        self._talks = set()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def bodies(self):
        return [asked.body for asked in self.asked]

    async def _serve(self, reader, writer):
        self._talks.add(asyncio.current_task())
        broken = (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError)
        with contextlib.suppress(*broken):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                path = head[0].split()[1].removeprefix("/v1")
                asked = Asked(path, headers, json.loads(body or b"null"), reader, writer)
                if path == "/models":
                    await asked.reply({"data": [{"id": "m", "owned_by": self.owner}]})
                    continue
                self.asked.append(asked)
                self.running += 1
                self.peak = max(self.peak, self.running)
                try:
                    await self.answer(asked)
                finally:
                    self.running -= 1
        writer.transport.abort()
        self._talks.discard(asyncio.current_task())

    owner = "nobody"
    port = 0

    async def start(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self):
        """Hang up on everybody and stop listening."""
        self._server.close()
        talks = tuple(self._talks)
        for talk in talks:
            talk.cancel()
        await asyncio.gather(*talks)


@asynccontextmanager
async def serving(answer, owner="nobody"):
    server = Server(answer)
    server.owner = owner
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def talking(answer, *, owner="nobody", clock=None, **fields):
    """A server and a backend that is connected to it."""
    async with serving(answer, owner) as server:
        spec = spec_of(server, **fields)
        async with connected(spec, clock or Jump().clock) as backend:
            yield server, backend


def spec_of(*servers, **fields):
    urls = tuple(server.url for server in servers)
    return OpenAI(**{"model": "m", "base_urls": urls, "continuation": "prompt", **fields})


def completion(*texts, finish="stop", usage=(5, 7), **extra):
    counts = usage and {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    choices = [
        {"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        for i, text in enumerate(texts)
    ]
    return {"id": "x", "model": "m", "choices": choices, "usage": counts, **extra}


def script(*answers):
    """Answer by a list; the last one stays."""
    left = list(answers)

    async def answer(asked):
        await (left.pop(0) if len(left) > 1 else left[0])(asked)

    return answer


def refuse(status, message="no", headers=(), **error):
    return lambda asked: asked.refuse(status, message, headers, **error)


def chat(*texts, **extra):
    return lambda asked: asked.chat(*texts, **extra)


class Jump:
    """A clock that jumps over every sleep, for one request at a time."""

    def __init__(self):
        self.time, self.sleeps = 1000.0, []
        self.clock = Clock(lambda: self.time, self.sleep, lambda: 0.0, lambda: 0.5)

    async def sleep(self, seconds):
        self.sleeps.append(seconds)
        self.time += seconds
        await asyncio.sleep(0)


def swift(factor=200.0):
    """A clock that runs so many times faster."""
    return Clock(lambda: time.monotonic() * factor, lambda seconds: asyncio.sleep(seconds / factor))
