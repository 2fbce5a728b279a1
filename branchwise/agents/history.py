"""Long conversations: what is left out of a request, so that it stays below a number of tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import Field, SkipValidation

from branchwise.agents.retold import retold
from branchwise.core.config import Config, Sampling
from branchwise.core.errors import BackendError
from branchwise.core.grow import seed_of
from branchwise.core.node import Node
from branchwise.core.template import filled
from branchwise.core.types import Backend, Message, Request, Step, Tool, ToolCall

_SUMMARISE = """\
Below is the beginning of the work of an assistant on a task.

Task:
{prompt}

The beginning:
{turns}

Sum up in at most {words} words what has been tried, what came of it, and what has to be \
remembered. Write nothing else."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What the model said and what the world answered: it is kept or left out as one.

    Args:
        place: the node at which it ended.
        messages: what was said and answered.
    """

    place: Node
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a request is made of.

    Args:
        opening: the system's message, the worked examples and the question.
        turns: finished turns, the oldest first.
        said: what the model has begun to say.
        tools: what it may call.
    """

    opening: tuple[Message, ...]
    turns: tuple[Turn, ...] = ()
    said: tuple[Step, ...] = ()
    tools: tuple[Tool, ...] = ()

    @property
    def messages(self) -> tuple[Message, ...]:
        """All of it but what the model has begun to say."""
        return (*self.opening, *(message for turn in self.turns for message in turn.messages))


class History(Config):
    """What all kinds of histories share: how a request is measured, and which turns are left out.

    Args:
        tokens: the most that a request may measure.
        count: how many tokens a text has; by default its bytes in UTF-8.
        overhead: what is added for each message, each tool call and each tool.
        preamble: what is added once, for what the model's chat template says by itself.
        note: stands below the question where turns are left out; `{count}` is their number.
    """

    tokens: int = Field(ge=1)
    count: SkipValidation[Callable[[str], int]] | None = Field(
        default=None, exclude=True, repr=False
    )
    overhead: int = Field(default=32, ge=0)
    preamble: int = Field(default=256, ge=0)
    note: str = "[{count} earlier turns are left out.]"

    @property
    def share(self) -> int:
        """What is kept free for telling of turns that are left out, beside the note."""
        return 0

    def size(self, talk: Conversation) -> int:
        """What a request measures: a bound from above on its tokens where `count` is one."""
        return (
            self.preamble
            + sum(map(self._message, talk.messages))
            + sum(max(self._text(step.text), len(step.tokens)) for step in talk.said)
            + sum(self.overhead + self._text(_offered(tool)) for tool in talk.tools)
        )

    def left_out(self, talk: Conversation) -> int:
        """How many of the oldest turns have to go.

        Raises:
            BackendError: the question and the latest turn alone are too long.
        """
        if self.size(talk) <= self.tokens:
            return 0
        rest = [sum(map(self._message, turn.messages)) for turn in talk.turns]
        size = self.size(replace(talk, turns=())) + sum(rest)
        for count in range(1, len(rest)):
            size -= rest[count - 1]
            told = self._told(talk.opening, count, "")
            more = self._message(told) - self._message(talk.opening[-1])
            if size + more + self.share <= self.tokens:
                return count
        raise BackendError(
            f"the history does not fit into {self.tokens} tokens, not even the latest turn alone",
            hint="raise `tokens` of the history, or let the world say less at a time",
        )

    def fitted(self, talk: Conversation, summary: str = "") -> tuple[Message, ...]:
        """The messages of the request, with the oldest turns left out where they are too many.

        Args:
            talk: the whole conversation.
            summary: what tells of those that are left out.

        Raises:
            BackendError: the question and the latest turn alone are too long.
        """
        count = self.left_out(talk)
        if not count:
            return talk.messages
        kept = replace(talk, turns=talk.turns[count:])
        while True:
            told = self._told(talk.opening, count, summary)
            kept = replace(kept, opening=(*talk.opening[:-1], told))
            if not summary or self.size(kept) <= self.tokens:
                return kept.messages
            summary = _shortened(summary, self._text(summary), self.share)

    def _told(self, opening: Sequence[Message], count: int, summary: str) -> Message:
        note = summary or filled(self.note, {"count": count})
        return replace(opening[-1], content=f"{opening[-1].content}\n\n{note}")

    def _message(self, message: Message) -> int:
        calls = sum(self.overhead + self._text(_called(call)) for call in message.tool_calls)
        names = self._text(message.tool_call_id or "")
        return self.overhead + self._text(message.content) + calls + names

    def _text(self, text: str) -> int:
        return len(text.encode()) if self.count is None else self.count(text)


class Truncated(History):
    """Leaves the oldest turns out of requests that would be too long.

    The system's message, the worked examples, the question and the latest turn always stay, and a
    tool call stays with its result. A request that fits is left as it is. Where not even the latest
    turn fits, the branch fails.

    The bound is on prompt and begun reply together; the model's context needs room for `max_tokens`
    besides. Without `count` bytes are counted. A token of a byte-level vocabulary covers at least
    one, so the bound holds for such models, and leaves three quarters of the room unused on English
    text. With the model's own tokenizer as `count` nothing is left unused.

    Args:
        tokens: the most that a request may measure.
        count: how many tokens a text has; by default its bytes in UTF-8.
        overhead: what is added for each message, each tool call and each tool.
        preamble: what is added once, for what the model's chat template says by itself.
        note: stands below the question where turns are left out; `{count}` is their number.

    Example:
        >>> Truncated(tokens=8192).overhead
        32
    """

    kind: Literal["truncated"] = "truncated"


class Summarised(History):
    """Leaves the oldest turns out, and lets a model write in short what they held.

    What is left out is as with `Truncated`, with room for the summary. It is written anew for each
    node where turns are left out: one more call, with a seed that follows from the path of the last
    turn that is left out. So a node always asks the same, nodes below one another ask the same as
    long as nothing more is left out, and a journal answers what was asked before. What does not fit
    into the request for the summary is left out of it, the oldest first; where nothing fits, the
    `note` stands in the summary's place.

    Only `propose` asks for a summary: `NextToken`, which asks by itself, gets the `note` instead.

    Args:
        tokens: the most that a request may measure, with the summary.
        count: how many tokens a text has; by default its bytes in UTF-8.
        overhead: what is added for each message, each tool call and each tool.
        preamble: what is added once, for what the model's chat template says by itself.
        note: stands below the question where turns are left out and nobody summed them up.
        backend: the model that writes summaries; in a policy by default the policy's own.
        summary: the most that a summary may measure, and its most tokens; longer ones are cut.
        heading: stands above the summary, below the question.
        template: asks for the summary; `{prompt}` (the question), `{turns}` and `{words}` are
            filled in.
        sampling: how a summary is drawn; the most probable one by default.

    Example:
        >>> from branchwise import Scripted
        >>> Summarised(tokens=8192, backend=Scripted(lambda request, seed: "")).summary
        1024
    """

    kind: Literal["summarised"] = "summarised"
    backend: SkipValidation[Backend] = Field(exclude=True, repr=False)
    summary: int = Field(default=1024, ge=1)
    heading: str = "What was done so far, in short:\n"
    template: str = _SUMMARISE
    sampling: Sampling = Sampling(temperature=0)

    @property
    def share(self) -> int:
        """What is kept free for the summary."""
        return self.summary + self._text(self.heading)

    def request(self, talk: Conversation) -> Request | None:
        """What asks for the summary; None where no turn is left out, or no room to ask.

        Raises:
            BackendError: the question and the latest turn alone are too long.
        """
        count = self.left_out(talk)
        if not count:
            return None
        told = "\n\n".join(map(_spoken, talk.turns[:count]))
        words = max(8, self.summary // 8)
        values = {"prompt": talk.opening[-1].content, "words": words}
        while True:
            asked = Message("user", filled(self.template, {**values, "turns": told}))
            excess = self.size(Conversation((asked,))) - self.tokens
            if excess <= 0:
                break
            if not told:
                return None
            told = told[max(1, len(told) * excess // max(1, self._text(told))) :]
        seed = seed_of(0, talk.turns[count - 1].place.path)
        return Request(
            messages=(asked,),
            seeds=(seed,),
            sampling=self.sampling,
            max_tokens=self.summary,
            logprobs=False,
        )

    async def summarise(self, talk: Conversation) -> Step | None:
        """The summary of the turns that are left out; None where there is none.

        Raises:
            BackendError: the question and the latest turn alone are too long, or the call failed.
        """
        request = self.request(talk)
        if request is None:
            return None
        try:
            (said,) = await self.backend.complete(request)
        except BackendError as error:
            # What has arrived is no step of the search.
            raise retold(error, (), error.spent) from error
        text = said.text.strip()
        while text and (size := self._text(text)) > self.summary:
            text = _shortened(text, size, self.summary)
        return replace(said, text=f"{self.heading}{text}" if text else "")


def _shortened(text: str, size: int, limit: int) -> str:
    """The beginning of a text that measures too much: closer to the limit, and shorter for sure."""
    return text[: min(len(text) - 1, len(text) * limit // size)]


def _called(call: ToolCall) -> str:
    """A call as it may stand in a prompt at its longest: templates write its JSON anew."""
    try:
        arguments = json.dumps(json.loads(call.arguments))
    except (ValueError, RecursionError):
        arguments = json.dumps(call.arguments)
    return call.id + call.name + arguments


def _offered(tool: Tool) -> str:
    """A tool as it may stand in a prompt at its longest: some templates indent it."""
    return json.dumps([tool.name, tool.description, dict(tool.parameters)], indent=4)


def _spoken(turn: Turn) -> str:
    lines: list[str] = []
    for message in turn.messages:
        calls = [f"calls {call.name}({call.arguments})" for call in message.tool_calls]
        lines.append(f"{message.role}: {' '.join([message.content, *calls]).strip()}")
    return "\n".join(lines)
