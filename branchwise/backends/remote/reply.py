"""A server's reply as it comes over the wire; tolerant of what servers leave out or add."""

from __future__ import annotations

from itertools import chain, repeat

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class WireToken(_Lenient):
    """One sampled token, or a candidate for its place; `id` is an addition of llama.cpp."""

    token: str = ""
    logprob: float | None = None
    bytes: list[int] | None = None
    id: int | None = None
    top_logprobs: list[WireToken] | None = None


class WireLogprobs(_Lenient):
    """Both formats: `content` is that of chats, the lists are those of completions."""

    content: list[WireToken] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float | None] | None] | None = None

    def listed(self) -> list[WireToken]:
        """The tokens, whichever the format."""
        if self.content is not None:
            return self.content
        tops = chain(self.top_logprobs or (), repeat(None))
        return [
            WireToken(
                token=token,
                logprob=logprob,
                top_logprobs=[WireToken(token=t, logprob=p) for t, p in (top or {}).items()],
            )
            for token, logprob, top in zip(
                self.tokens or (), self.token_logprobs or (), tops, strict=False
            )
        ]


class WireFunction(_Lenient):
    """What a tool call calls."""

    name: str = ""
    arguments: str | None = None


class WireToolCall(_Lenient):
    """A tool call."""

    id: str | None = None
    function: WireFunction = WireFunction()


class WireMessage(_Lenient):
    """A chat's message; servers name the reasoning either way."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[WireToolCall] | None = None
    refusal: str | None = None


class WireChoice(_Lenient):
    """One sample.

    `stop_reason` (vLLM) and `matched_stop` (SGLang) are the stop string that ended it, the id of
    the token that did, or null.
    """

    index: int | None = None
    text: str | None = None
    message: WireMessage | None = None
    finish_reason: str | None = None
    logprobs: WireLogprobs | None = None
    token_ids: list[int] | None = None
    stop_reason: str | int | None = None
    matched_stop: str | int | None = None


class WirePromptDetails(_Lenient):
    """What the prompt consisted of."""

    cached_tokens: int | None = None


class WireUsage(_Lenient):
    """The token counts of a call."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: WirePromptDetails | None = None


class WireVerbose(_Lenient):
    """What llama.cpp adds on request, for the first choice alone."""

    stop_type: str = ""
    stopping_word: str = ""


class Reply(_Lenient):
    """The body of a completion or a chat completion.

    Attributes:
        model: the model that answered, as the server names it.
        system_fingerprint: the configuration it ran with.
        error: what some gateways send with status 200 in place of choices.
    """

    model: str | None = None
    system_fingerprint: str | None = None
    choices: list[WireChoice] = []
    error: JsonValue = None
    usage: WireUsage | None = None
    verbose: WireVerbose | None = Field(default=None, alias="__verbose")


class MalformedReply(ValueError):
    """The body is no completion; the message says where."""


def parse(body: str | bytes) -> Reply:
    """Read a reply's body.

    Raises:
        MalformedReply: it is no JSON, lacks choices, or a field has the wrong type.

    Example:
        >>> parse('{"choices": [{"text": "4", "finish_reason": null}]}').choices[0].text
        '4'
    """
    try:
        reply = Reply.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise MalformedReply(f"{where}: {first['msg']}") from error
    if not reply.choices:
        raise MalformedReply(f"no choices, but {reply.error}" if reply.error else "no choices")
    for choice in reply.choices:
        if choice.message is None and choice.text is None:
            raise MalformedReply("a choice without text and without message")
        if choice.finish_reason in {"abort", "error"}:
            raise MalformedReply("the server broke the sample off")
    return reply
