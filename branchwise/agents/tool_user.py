"""A chat model that calls tools: by its server's protocol, or in text."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, cast

from branchwise.agents.chat import Chat, results_of
from branchwise.core.node import Node
from branchwise.core.template import filled
from branchwise.core.tools import described
from branchwise.core.types import Json, Message, State, Step, Tool, ToolCall

_OPEN, _RESULT = "<tool_call>", "<tool_response>"
_TAG = re.compile("</?tool_call>")
_FENCE = re.compile(r"```(?:json)?\s*(?=\{)")
_BEGIN = re.compile(r"\s*(?:```(?:json)?\s*)?")
_NAME = re.compile(r'"name"\s*:\s*"([^"\\]*)"')
_DECODER = json.JSONDecoder(strict=False)  # line breaks within strings are clear enough
_INSTRUCTIONS = """\
You can use these tools:
{tools}

To call a tool, write its name and its arguments as one JSON object between tags:
<tool_call>
{"name": "...", "arguments": {...}}
</tool_call>
Several calls may follow one another. Stop after the last one; the results come back between \
<tool_response> tags. When you need no tool any more, answer in words."""


class ToolUser(Chat):
    r"""Calls the tools that the world offers at a node (`State.tools`).

    With `native`, the backend is told of the tools (`Request.tools`) and says what is called, as
    OpenAI-compatible servers do. With `text`, the system's message describes them, a call is

        <tool_call>
        {"name": "add", "arguments": {"a": 1, "b": 2}}
        </tool_call>

    as models of the Hermes and Qwen families write it, and results go back between
    `<tool_response>` tags in the user's next message.

    Replies are read the same way with both, for the local engine and some servers hand a call back
    as text. A closing tag may be missing. Where there is no tag at all, JSON objects that call a
    tool that is offered count, alone or in a fence. What is wrong with a call is the world's to
    say: text that is no JSON goes there as the call's arguments, under the name that it seems to
    have. In a reply cut short by `max_tokens` only calls that are complete count.

    A step that calls tools has the finish `tools`; its text stays what the model wrote.

    Args:
        backend: the model.
        system: the system's message; with `text`, the `instructions` follow it.
        template: the user's message; `{prompt}` and the keys of the task's `meta` in braces are
            filled in, other braces stay as they are.
        shots: worked examples, as earlier turns.
        sampling: how tokens are drawn.
        max_tokens: the most tokens of one step.
        stop: strings that end a step; by default where a model begins to make up results. With
            `</tool_call>`, a step has one call.
        logprobs: whether to ask for the log-probabilities of the tokens.
        prefill: how each reply of the model begins: it goes on from these words, which are no part
            of its step.
        history: what is left out of long conversations; None asks with all of it.
        protocol: `native` or `text`.
        instructions: with `text`, how tools are called; `{tools}` is filled in.

    Example:
        >>> from branchwise import Node, Scripted, State, Task, Tool, run_sync
        >>> said = '<tool_call>\n{"name": "roll", "arguments": {"sides": 6}}\n</tool_call>'
        >>> policy = ToolUser(backend=Scripted(lambda request, seed: said), protocol="text")
        >>> dice = Tool("roll", "Rolls a die.", {"properties": {"sides": {"type": "integer"}}})
        >>> [step] = run_sync(policy.propose, Node(Task("Roll."), State(tools=(dice,))), [1])
        >>> step.finish, step.tool_calls[0].name, step.tool_calls[0].arguments
        ('tools', 'roll', '{"sides": 6}')
    """

    kind: Literal["tool-user"] = "tool-user"  # pyright: ignore[reportIncompatibleVariableOverride]  (the tag of another kind)
    stop: tuple[str, ...] = (_RESULT,)
    protocol: Literal["native", "text"] = "native"
    instructions: str = _INSTRUCTIONS

    def preface(self, node: Node) -> str:
        """The system's message: with `text`, it says how tools are called."""
        tools = node.state.tools if self.protocol == "text" else ()
        return prefaced(self.system, self.instructions, tools)

    def offers(self, node: Node) -> tuple[Tool, ...]:
        """With `native`, what the world offers."""
        return node.state.tools if self.protocol == "native" else ()

    def read(self, step: Step, node: Node) -> Step:
        """The reply with the calls that its text holds, where the backend has found none."""
        if step.tool_calls or not node.state.tools:
            return step
        names = {tool.name for tool in node.state.tools}
        cut = step.finish in {"length", "filter"}
        return calling(step, list(_calls(self.prefill + step.text, names, cut=cut)), node)

    def turn(self, said: Sequence[Step], state: State) -> list[Message]:
        """The model's finished turn and the results of its calls."""
        calls = tuple(call for step in said for call in step.tool_calls)
        text = self.prefill + "".join(step.text for step in said)
        results = results_of(calls, state)
        heard = [state.observation] if state.observation and (state.results or not calls) else []
        if self.protocol == "native":
            # The server writes the calls itself, so they must not stand in the text as well.
            first = next(_calls(text, {call.name for call in calls}, cut=False), None)
            spoken = text if first is None or not calls else text[: first.start]
            replies = [
                Message("tool", result, tool_call_id=call.id)
                for call, result in zip(calls, results, strict=False)
            ] + [Message("user", told) for told in heard]
        else:
            calls, spoken = (), text.partition(_RESULT)[0]
            told = [f"{_RESULT}\n{result}\n</tool_response>" for result in results]
            replies = [Message("user", "\n".join([*told, *heard]))]
        spoken = spoken.strip()
        return [*([Message("assistant", spoken, calls)] if spoken or calls else []), *replies]


def calling(step: Step, found: Sequence[Found], node: Node) -> Step:
    """A reply to the request at a node as a step that makes these calls, where there are any."""
    depth = len(node.path) + 1  # so that no two calls of a conversation have the same id
    calls = [ToolCall(f"call-{depth}-{i}", f.name, f.arguments) for i, f in enumerate(found)]
    return dataclasses.replace(step, tool_calls=tuple(calls), finish="tools") if calls else step


def prefaced(system: str, instructions: str, tools: Sequence[Tool]) -> str:
    """The system's message with instructions for these tools below it; without tools, as it is."""
    told = filled(instructions, {"tools": "\n".join(map(described, tools))}) if tools else ""
    return "\n\n".join(part for part in (system, told) if part)


class Found(NamedTuple):
    """A call as it stands in a reply.

    Args:
        start: where it begins.
        name: the tool's.
        arguments: as they stand there.
    """

    start: int
    name: str
    arguments: str


def _calls(text: str, names: Collection[str], *, cut: bool) -> Iterator[Found]:
    """The calls in a reply, in order.

    Args:
        text: the reply.
        names: the tools that may be called without a tag.
        cut: whether the reply was cut short, so that what is incomplete at its end is no call.
    """
    text = text.partition(_RESULT)[0]
    start = text.find(_OPEN)
    if start < 0:
        yield from _untagged(text, names)
    while start >= 0:
        begin = start + len(_OPEN)
        found, end = _object(text, begin)
        if found is not None:
            yield Found(start, *_read(found, text[begin:end]))
        else:
            tag = _TAG.search(text, begin)
            end = tag.start() if tag else len(text)
            if end < len(text) or not cut:
                raw = text[begin:end].strip()
                named = _NAME.search(raw)
                yield Found(start, named[1] if named else "", raw)
        start = text.find(_OPEN, end)


def _untagged(text: str, names: Collection[str]) -> Iterator[Found]:
    """JSON objects that call a tool of these names: in fences, or where the reply begins."""
    starts = [(fence.start(), fence.end()) for fence in _FENCE.finditer(text)]
    bare = len(text) - len(text.lstrip())
    for start, begin in starts or [(bare, bare)]:
        found, end = _object(text, begin)
        while found is not None:
            name, arguments = _read(found, "")
            if name not in names or not found.keys() & {"arguments", "parameters"}:
                break
            yield Found(start, name, arguments)
            start = end  # noqa: PLW2901  (several calls may follow one another)
            found, end = _object(text, end)


def _object(text: str, begin: int) -> tuple[dict[str, Json] | None, int]:
    """The JSON object that begins there, after space or a fence, and where it ends."""
    opening = _BEGIN.match(text, begin)
    first = opening.end() if opening else begin
    if not text.startswith("{", first):
        return None, begin
    try:
        value, end = _DECODER.raw_decode(text, first)
    except (ValueError, RecursionError):
        return None, begin
    return cast("dict[str, Json]", value), end


def _read(call: Mapping[str, Json], raw: str) -> tuple[str, str]:
    """Name and arguments of a call; all of it as arguments where it has no name."""
    name = call.get("name")
    if not isinstance(name, str):
        return "", raw.strip()
    arguments = call.get("arguments", call.get("parameters"))
    if arguments is None:
        return name, "{}"
    if isinstance(arguments, str):  # some models write the text of an object, as OpenAI does
        return name, arguments
    return name, json.dumps(arguments, ensure_ascii=False)
