"""From a request to the HTTP call that asks for it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from branchwise.backends.remote.dialect import Dialect
from branchwise.core.config import Config
from branchwise.core.errors import BackendError, SpecError
from branchwise.core.types import Json, Message, Request, Tool

Continuation = Literal["continue_final_message", "completions", "prompt"]

CHAT, COMPLETIONS = "/chat/completions", "/completions"

_NEXT = (
    "Continue your answer exactly where it stops. Write only what comes next; repeat nothing of "
    "what is already there, and add no introduction."
)
_TELLING = 16
# Servers keep seeds in fields of 32 bits, and some read larger ones as "draw one at random".
_SEEDS = 2**31


class Template(Config):
    r"""How a chat becomes a prompt: each message between two strings. The default is ChatML.

    Args:
        before: opens a message; `{role}` stands for who speaks.
        after: closes it.

    Example:
        >>> Template().render((Message("user", "2 + 2?"),), "It is")
        '<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\nIt is'
    """

    before: str = "<|im_start|>{role}\n"
    after: str = "<|im_end|>\n"

    @property
    def digest(self) -> str:
        """Tells one template from another in a journal."""
        return hashlib.blake2b(self.model_dump_json().encode(), digest_size=4).hexdigest()

    def render(self, messages: tuple[Message, ...], so_far: str = "") -> str:
        """The prompt that the model continues with the assistant's next message."""
        parts = [
            part
            for message in messages
            for part in (self._open(message.role), message.content, self.after)
        ]
        return "".join((*parts, self._open("assistant"), so_far))

    def _open(self, role: str) -> str:
        return self.before.replace("{role}", role)


CHATML = Template()


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP call.

    Args:
        path: below the base URL.
        body: what is sent, before the dialect's changes.
        said: what the reply may begin with because it was said before; taken off.
    """

    path: str
    body: dict[str, Json]
    said: str = ""


@dataclass(frozen=True, slots=True)
class Caller:
    """Writes calls for one model.

    Args:
        model: its name at the server.
        dialect: how the server is spoken to.
        continuation: how an answer is continued.
        template: for `completions`.
        repeats: whether the server repeats what it continues, as llama.cpp does in a chat.
    """

    model: str
    dialect: Dialect
    continuation: Continuation = "prompt"
    template: Template = CHATML
    repeats: bool = False

    def write(self, request: Request, seeds: tuple[int, ...]) -> Call:
        """The call that asks for one sample for each of these seeds.

        Raises:
            SpecError: the request asks for what no server can do.
            BackendError: this server cannot continue this answer.
        """
        so_far = request.so_far
        if so_far and request.schema is not None:
            raise SpecError(
                "an answer under a schema cannot be continued: a server applies the schema anew",
                hint="leave out `said` or `schema`",
            )
        if not request.messages:
            return self._plain(request, seeds, _prompt(request))
        if so_far and self.continuation == "completions":
            prompt = self.template.render(request.messages, so_far)
            return self._plain(request, seeds, prompt)
        return self._chat(request, seeds, so_far)

    def _chat(self, request: Request, seeds: tuple[int, ...], so_far: str) -> Call:
        messages: list[Json] = [_message(message) for message in request.messages]
        body = self._body(request, seeds)
        repeated = ""
        if so_far:
            messages.append({"role": "assistant", "content": so_far})
            if self.continuation == "prompt":
                messages.append({"role": "user", "content": _NEXT})
                # The model may begin anew all the same; a few letters may be the same by chance.
                repeated = so_far if len(so_far) >= _TELLING else ""
            else:
                repeated = so_far if self.repeats else ""
                body |= {"continue_final_message": True, "add_generation_prompt": False}
        body["messages"] = messages
        if request.logprobs or request.candidates:
            body |= {"logprobs": True, "top_logprobs": max(1, request.candidates)}
        if request.tools:
            body["tools"] = [_tool(tool) for tool in request.tools]
        if request.schema is not None:
            body["response_format"] = _response_format(request.schema)
        return Call(CHAT, body, repeated)

    def _plain(self, request: Request, seeds: tuple[int, ...], prompt: Json) -> Call:
        if request.tools:
            raise BackendError(
                "tools cannot be called in a plain completion",
                hint="ask with `messages`, and continue with another mode than `completions`",
            )
        body = self._body(request, seeds) | {"prompt": prompt}
        if request.logprobs or request.candidates:
            body["logprobs"] = max(1, request.candidates)
        if request.schema is not None:
            # vLLM reads the first, llama.cpp and SGLang the second.
            body["response_format"] = _response_format(request.schema)
            body["json_schema"] = dict(request.schema)
        return Call(COMPLETIONS, body)

    def _body(self, request: Request, seeds: tuple[int, ...]) -> dict[str, Json]:
        body: dict[str, Json] = {
            "model": self.model,
            "max_tokens": request.max_tokens,
            "temperature": request.sampling.temperature,
            "top_p": request.sampling.top_p,
            "seed": seeds[0] % _SEEDS,
        }
        if len(seeds) > 1:
            body["n"] = len(seeds)
        if request.stop:
            body["stop"] = list(request.stop)
        return body | self.dialect.extras(request)


def _prompt(request: Request) -> Json:
    if request.prompt is not None:
        return request.prompt + request.so_far
    tokens: list[Json] = list(request.tokens or ())
    for step in request.said:
        if step.text and not step.tokens:
            raise BackendError(
                "a prompt of tokens is continued by steps that carry tokens, and this one does not",
                hint="ask with `prompt`, or with `logprobs` from a server that tells token ids",
            )
        tokens.extend(step.tokens)
    return tokens


def _message(message: Message) -> dict[str, Json]:
    body: dict[str, Json] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        body["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        body["tool_call_id"] = message.tool_call_id
    return body


def _tool(tool: Tool) -> Json:
    return {
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.description,
            "parameters": dict(tool.parameters),
        },
    }


def _response_format(schema: Mapping[str, Json]) -> Json:
    return {
        "type": "json_schema",
        "json_schema": {"name": "answer", "strict": True, "schema": dict(schema)},
    }
