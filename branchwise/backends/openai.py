"""Models behind an OpenAI-compatible server: vLLM, llama.cpp, SGLang, OpenAI, gateways."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Literal

import anyio.to_thread
from pydantic import Field, SecretStr, field_validator, model_validator

from branchwise.backends.remote.backend import OpenAIBackend
from branchwise.backends.remote.call import Continuation, Template
from branchwise.backends.remote.endpoints import Endpoint, Endpoints
from branchwise.backends.remote.limiter import Limiter
from branchwise.backends.remote.retry import Clock
from branchwise.backends.remote.steps import Prices
from branchwise.core.config import Config
from branchwise.core.errors import SpecError

if TYPE_CHECKING:
    from branchwise.backends.remote.client import Client


class OpenAI(Config):
    """A model behind one or several OpenAI-compatible endpoints.

    Replies are read whole and not streamed: a token costs the event loop nothing, and a reply that
    breaks off is a failed try, never a short answer. `idle` ends a try whose bytes stop coming,
    `attempt` one whose bytes drip; a try that is cancelled or timed out closes its connection, so
    that the server stops generating.

    Args:
        model: the model's name at the server.
        base_url: where the API is, including `/v1`; by default that of the environment variable
            OPENAI_BASE_URL, else OpenAI's own.
        base_urls: several endpoints that serve the same model; load goes where room is.
        api_key: the key; by default that of the environment variable OPENAI_API_KEY. Servers
            without keys need none. It is never written out with the spec.
        connect: seconds to wait for a connection.
        idle: seconds without a byte after which a try is given up; the model's whole answer falls
            into it where the server sends nothing before it is done.
        attempt: seconds for one try.
        deadline: seconds for one request with all its retries, without the wait for a connection.
        connections: the most requests under way at one endpoint.
        start: how many there are at first; the number doubles as long as nothing fails.
        continuation: how an answer that has begun is continued: `continue_final_message` (through
            the chat), `completions` (as a prompt rendered with `template`), `prompt` (the model is
            asked in words to go on), or `auto`: a few tokens are asked for at opening to see which
            of these the server really does.
        template: how a chat becomes a prompt; ChatML by default.
        prices: what tokens cost.

    Example:
        >>> spec = OpenAI(model="qwen2.5-coder", base_url="http://127.0.0.1:8000/v1/")
        >>> spec.urls
        ('http://127.0.0.1:8000/v1',)
    """

    kind: Literal["openai"] = "openai"
    model: str = Field(min_length=1)
    base_url: str | None = None
    base_urls: tuple[str, ...] = ()
    api_key: SecretStr | None = Field(default=None, exclude=True)
    connect: float = Field(default=10.0, gt=0)
    idle: float = Field(default=300.0, gt=0)
    attempt: float = Field(default=600.0, gt=0)
    deadline: float = Field(default=900.0, gt=0)
    connections: int = Field(default=100, ge=1)
    start: int = Field(default=16, ge=1)
    continuation: Literal["auto"] | Continuation = "auto"
    template: Template | None = None
    prices: Prices = Prices()

    @field_validator("base_url", "base_urls")
    @classmethod
    def _address(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        for url in (value,) if isinstance(value, str) else value or ():
            if not url.startswith(("http://", "https://")):
                msg = f"{url!r} is no address: it begins with http:// or https://"
                raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _one_kind_of_address(self) -> OpenAI:
        if self.base_url is not None and self.base_urls:
            msg = "give `base_url` or `base_urls`, not both"
            raise ValueError(msg)
        return self

    @property
    def urls(self) -> tuple[str, ...]:
        """The addresses of the endpoints."""
        default = os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        urls = self.base_urls or (self.base_url or default,)
        return tuple(url.rstrip("/") for url in urls)

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[OpenAIBackend]:
        """Connect; see what the server is and, with `auto`, how it continues and heeds seeds.

        Raises:
            SpecError: the package `openai` is not installed.
            BackendError: no endpoint can be reached, or the key is refused.
        """
        async with connected(self) as backend:
            yield backend


@asynccontextmanager
async def connected(spec: OpenAI, clock: Clock | None = None) -> AsyncGenerator[OpenAIBackend]:
    """What `OpenAI.open` does, with a clock of one's own."""
    clock = clock or Clock()
    # The import of the SDK and the certificates take a second: not on the event loop.
    clients = await anyio.to_thread.run_sync(_clients, spec, clock)
    endpoints = [Endpoint(c, Limiter(spec.connections, start=spec.start)) for c in clients]
    try:
        backend = OpenAIBackend(spec, Endpoints(endpoints, clock), clock)
        await backend.meet()
        yield backend
    finally:
        with anyio.CancelScope(shield=True):
            for client in clients:
                await client.close()


def _clients(spec: OpenAI, clock: Clock) -> list[Client]:
    try:
        from branchwise.backends.remote.client import Client  # noqa: PLC0415  (an optional package)
    except ImportError as error:
        raise SpecError(
            "the backend `openai` needs the package of that name",
            hint="pip install 'branchwise[openai]'",
        ) from error
    key = spec.api_key.get_secret_value() if spec.api_key else os.environ.get("OPENAI_API_KEY")
    return [
        Client(
            url,
            model=spec.model,
            key=key,
            connect=spec.connect,
            idle=spec.idle,
            connections=spec.connections,
            clock=clock,
        )
        for url in spec.urls
    ]
