"""One endpoint over HTTP: the only file that imports the OpenAI SDK."""

from __future__ import annotations

from collections.abc import Mapping

import anyio
import httpx2
import openai
from pydantic import BaseModel, ValidationError

from branchwise.backends.remote.faults import Fault, refused, silent, unreachable
from branchwise.backends.remote.retry import Clock
from branchwise.core.types import Json


class _Owned(BaseModel):
    owned_by: str = ""


class _Models(BaseModel):
    data: list[_Owned] = []


class Client:
    """Speaks to one endpoint; every failure comes out as a `Fault`, and nothing is retried.

    Args:
        url: the base URL.
        model: the model's name, for messages.
        key: the API key; None for servers without.
        connect: seconds to wait for a connection.
        idle: seconds to wait for the next byte.
        connections: how many connections are kept open.
        clock: the time.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str,
        key: str | None,
        connect: float,
        idle: float,
        connections: int,
        clock: Clock,
    ) -> None:
        self.url = url
        self._model = model
        self._clock = clock
        # The limiter bounds the requests, so the pool must not: who waits for a slot waits outside
        # of every HTTP timeout.
        timeout = httpx2.Timeout(idle, connect=connect, pool=None)
        self._sdk = openai.AsyncOpenAI(
            base_url=url,
            api_key=key or "none",
            max_retries=0,
            timeout=timeout,
            http_client=openai.DefaultAsyncHttpxClient(
                timeout=timeout,
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=connections),
            ),
        )

    async def post(self, path: str, body: Mapping[str, Json], *, seconds: float) -> bytes:
        """The body of the reply, once all of it is here.

        Args:
            path: below the base URL.
            body: what is sent.
            seconds: how long it may take in all.

        Raises:
            Fault: there was no good reply.
        """
        return await self._answer("POST", path, body, seconds)

    async def owner(self, *, seconds: float) -> str:
        """What the server writes into `owned_by` of its first model; empty where it does not.

        Raises:
            Fault: nobody can be reached, or the server does not list its models.
        """
        try:
            models = _Models.model_validate_json(
                await self._answer("GET", "/models", None, seconds)
            )
        except ValidationError:
            return ""
        return models.data[0].owned_by if models.data else ""

    async def close(self) -> None:
        """Close all connections."""
        await self._sdk.close()

    async def _answer(
        self, method: str, path: str, body: Mapping[str, Json] | None, seconds: float
    ) -> bytes:
        try:
            with anyio.fail_after(seconds):
                if method == "GET":
                    response = await self._sdk.get(path, cast_to=httpx2.Response)
                else:
                    response = await self._sdk.post(path, cast_to=httpx2.Response, body=body)
        except openai.APIStatusError as error:
            raise self._refused(error) from error
        except openai.APITimeoutError as error:
            if isinstance(error.__cause__, httpx2.ConnectTimeout):
                raise unreachable(self.url, error.__cause__, gone=True) from error
            raise silent(self.url) from error
        except openai.APIConnectionError as error:
            gone = isinstance(error.__cause__, httpx2.ConnectError)
            raise unreachable(self.url, error.__cause__, gone=gone) from error
        except TimeoutError as error:
            raise silent(self.url) from error
        return response.content

    def _refused(self, error: openai.APIStatusError) -> Fault:
        return refused(
            self.url,
            error.status_code,
            body=error.body,
            text=error.response.text or error.response.reason_phrase,
            headers=error.response.headers,
            model=self._model,
            wall=self._clock.wall(),
        )
