"""What can go wrong with one HTTP request, and what follows from it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, TypeAlias

from branchwise.backends.remote.retry import asked_wait
from branchwise.core.errors import BackendError

Kind: TypeAlias = Literal["final", "busy", "down", "gone", "malformed"]

_BUSY = frozenset({429, 503, 529})
_AGAIN = frozenset({408, 409, 425, *range(500, 600)} - {501, 503, 529})
_QUOTA = re.compile(r"insufficient_quota|exceeded your current quota", re.IGNORECASE)
_CONTEXT = re.compile(r"context.{0,20}(length|size|window)|maximum.{0,10}context", re.IGNORECASE)
_MODEL = re.compile(r"\bmodel\b", re.IGNORECASE)


class Fault(Exception):
    """One failed HTTP request.

    Args:
        error: what the caller is told if no further try is made.
        kind: `final` (another try changes nothing), `busy` (the server asks for less load), `down`
            (it did not do its work), `gone` (nobody is there), `malformed` (it answered something
            else).
        asked: the seconds that the server asks to wait.
        param: the request's field that the server refuses, where it names one.
    """

    def __init__(
        self,
        error: BackendError,
        kind: Kind,
        *,
        asked: float | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(str(error))
        self.error = error
        self.kind: Kind = kind
        self.asked = asked
        self.param = param


def one_line(text: str, most: int = 300) -> str:
    """The text without line breaks, cut to a length that fits a terminal."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def unreachable(url: str, cause: BaseException | None, *, gone: bool) -> Fault:
    """A connection that could not be made (`gone`), or one that broke."""
    why = one_line(str(cause) or type(cause).__name__)
    what = f"no connection to {url}" if gone else f"the connection to {url} broke"
    hint = "start the server there, or correct `base_url`" if gone else "see the server's log"
    return Fault(BackendError(f"{what}: {why}", hint=hint), "gone" if gone else "down")


def silent(url: str) -> Fault:
    """No answer in time."""
    error = BackendError(
        f"no whole answer from {url} in time",
        hint="raise `idle` and `attempt` if the model may take longer",
    )
    return Fault(error, "down")


def malformed(url: str, what: str) -> Fault:
    """A reply that is no completion."""
    error = BackendError(
        f"malformed reply from {url}: {one_line(what)}",
        hint="`base_url` must lead to an OpenAI-compatible API; it usually ends with /v1",
    )
    return Fault(error, "malformed")


def refused(
    url: str,
    status: int,
    *,
    body: object,
    text: str,
    headers: Mapping[str, str],
    model: str,
    wall: float,
) -> Fault:
    """A reply with an error status.

    Args:
        url: where it came from.
        status: the HTTP status.
        body: what the reply says, as JSON where it is.
        text: the same as text.
        headers: the reply's headers; their names in lower case.
        model: the model that was asked for.
        wall: the time now, in seconds since the epoch.
    """
    code, told, param = _read(body)
    said = one_line(told or text)
    words = f"{code} {said}"
    kind: Kind = "final"
    fatal = False
    if status in {402, 429} and _QUOTA.search(words):
        hint, fatal = "the quota of this key is spent: raise it, or use another key", True
    elif headers.get("x-should-retry", "").lower() == "false":
        hint = "the server asks not to try again"
    elif status in _BUSY:
        kind, hint = "busy", "the server is overloaded: lower `connections`, or wait"
    elif status in _AGAIN:
        kind, hint = "down", "see the server's log"
    else:
        hint, fatal = _verdict(status, words, model)
    error = BackendError(f"{url} answered {status}: {said}", hint=hint, fatal=fatal, status=status)
    return Fault(error, kind, asked=asked_wait(headers, wall), param=param)


def _verdict(status: int, words: str, model: str) -> tuple[str, bool]:
    """The hint for a refusal that no retry changes, and whether every later call meets it too."""
    match status:
        case 401:
            return "set `api_key` or the environment variable OPENAI_API_KEY", True
        case 403:
            return "this key may not use the model: ask for access, or use another", True
        case 404 if _MODEL.search(words):
            return f"the server does not serve {model!r}: correct `model`", True
        case 404:
            return "the server has no such path: `base_url` usually ends with /v1", False
        case 400 | 413 | 422 if _CONTEXT.search(words):
            return "prompt and `max_tokens` do not fit the model's context: shorten one", False
        case _:
            return "", False


def _read(body: object) -> tuple[str, str, str | None]:
    """Code, message and parameter of an error's body, whatever its shape."""
    if not isinstance(body, Mapping):
        return "", "" if body is None else str(body), None
    inner = body.get("error", body)
    if not isinstance(inner, Mapping):
        return "", str(inner), None
    message = inner.get("message") or inner.get("detail") or ""
    param = inner.get("param")
    code = f"{inner.get('code', '')} {inner.get('type', '')}"
    return code, str(message), param if isinstance(param, str) else None
