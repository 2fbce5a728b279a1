"""Between text and tokens: what a request means in tokens, and what tokens say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import copy
from functools import lru_cache, partial
from typing import cast

from transformers import PreTrainedTokenizerBase

from branchwise.core.errors import BackendError, SpecError
from branchwise.core.types import Json, Message, Request, Step, Tool

_TAIL = 8  # tokens before a sample that decide how its first characters are written
_PARTS = 4  # tokens that one character may take
_BROKEN = 64  # tokens at an end that are looked at for one that completes a character


class Text:
    """Reads requests with a model's tokenizer.

    Args:
        tokenizer: the model's.
        ends: the tokens that end an answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._ends = ends
        self._added = {i: str(token) for i, token in tokenizer.added_tokens_decoder.items()}
        self._prefixes = self._after("\n", "a") not in (None, self._encode("a"))
        # A search asks the same question at every step, with the same stop strings.
        self._chat = lru_cache(256)(self._chatted)
        self._prompt = lru_cache(256)(lambda prompt: self._encode(prompt, special=True))
        self.stops = lru_cache(256)(partial(Stops, tokenizer))

    def context(self, request: Request) -> tuple[int, ...]:
        """The tokens that a request's samples continue.

        Raises:
            SpecError: the model has no chat template, or the template cannot say what is asked.
        """
        if request.schema is not None:
            raise SpecError(
                "the local engine cannot follow a schema", hint="a server can: backend kind openai"
            )
        asked = self._asked(request, finished=False)
        return (*asked, *self._said(request.said, asked))

    def pieces(self, request: Request) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
        """The tokens of a question and those of each step, by itself, so that each has a last one.

        A chat whose last message is the assistant's is a finished one: nobody is about to speak.

        Raises:
            SpecError: the model has no chat template, or the template cannot say what is asked.
        """
        finished = bool(request.messages) and request.messages[-1].role == "assistant"
        asked = tuple(self._asked(request, finished=finished))
        steps: list[tuple[int, ...]] = []
        before = asked
        for step in request.said:
            steps.append(tuple(self._said([step], before)))
            before = steps[-1] or before
        return asked, steps

    def token(self, word: str) -> int:
        """The token that a word is where it goes on with a text.

        Raises:
            SpecError: it is none, or several.
        """
        tokens = self._continued(word)
        if len(tokens) != 1:
            parts = ", ".join(repr(self._tokenizer.decode([token])) for token in tokens)
            raise SpecError(
                f"the word {word!r} is {len(tokens)} tokens of this model ({parts}), not one",
                hint="try it with or without a space before it, or give a token's id",
            )
        return tokens[0]

    def _asked(self, request: Request, *, finished: bool) -> Sequence[int]:
        if request.tools and not request.messages:
            raise SpecError("tools need messages", hint="a plain prompt describes them itself")
        if request.tokens is not None:
            return request.tokens
        if request.prompt is not None:
            return self._prompt(request.prompt)
        if request.tools:
            text = self._rendered(request.messages, request.tools, finished=finished)
            return self._encode(text)
        return self._chat(tuple(request.messages), finished)

    def _chatted(self, messages: tuple[Message, ...], finished: bool) -> list[int]:
        return self._encode(self._rendered(messages, (), finished=finished))

    def _said(self, steps: Sequence[Step], before: Sequence[int]) -> list[int]:
        """The answer so far: tokens where the steps carry them, else their text in one piece."""
        tokens: list[int] = []
        text = ""
        for step in steps:
            if step.tokens:
                tokens += self._continued(text, tokens or before)
                text = ""
                # A step that ended the answer is continued as if it had not.
                ended = step.finish == "end" and step.tokens[-1] in self._ends
                tokens += step.tokens[:-1] if ended else step.tokens
            else:
                text += step.text
        return tokens + self._continued(text, tokens or before)

    def _continued(self, text: str, before: Sequence[int] | None = None) -> list[int]:
        """The tokens of a text that goes on with another one.

        Tokenizers in SentencePiece's manner put a space before a text, which here would stand
        between every two steps. So they get it after another text, of which it is cut off: after
        the added token that it follows, where some put a space too, or after one that it shares no
        token with.

        Args:
            text: what goes on.
            before: the tokens that it follows, of which there may be none; None for any text.
        """
        if self._prefixes and (before or before is None):
            added = [self._added[t] for t in (before or ())[-1:] if t in self._added]
            for lead in (*added, "\n", "a"):
                tokens = self._after(lead, text)
                if tokens is not None:
                    return tokens
        return self._encode(text)

    def _after(self, lead: str, text: str) -> list[int] | None:
        """The tokens of a text after another one; None where the two share one."""
        first, both = self._encode(lead), self._encode(lead + text)
        return both[len(first) :] if both[: len(first)] == first else None

    def _encode(self, text: str, *, special: bool = False) -> list[int]:
        if not text:
            return []
        return self._tokenizer.encode(text, add_special_tokens=special)

    def _rendered(
        self, messages: Sequence[Message], tools: Sequence[Tool], *, finished: bool
    ) -> str:
        if not self._tokenizer.chat_template:
            raise SpecError("the model has no chat template", hint="ask with a prompt instead")
        chat = [_plain(message) for message in messages]
        offered = [_offered(tool) for tool in tools]
        text = self._render(chat, offered, finished=finished)
        if offered and text == self._render(chat, [], finished=finished):
            raise SpecError(
                "the model's chat template knows no tools", hint="describe them in the prompt"
            )
        return text

    def _render(self, chat: Sequence[Json], tools: Sequence[Json], *, finished: bool) -> str:
        try:
            return cast(
                "str",
                self._tokenizer.apply_chat_template(
                    chat,  # pyright: ignore[reportArgumentType]  (dictionaries, as it wants them)
                    tools=tools or None,  # pyright: ignore[reportArgumentType]  (so here)
                    add_generation_prompt=not finished,
                    tokenize=False,
                ),
            )
        except Exception as error:
            # Templates are programs of the model's makers; many raise where roles do not alternate.
            raise BackendError(f"the model's chat template refuses: {error}") from error


class Stops:
    """Which tokens can complete one of several strings: only after these is the text looked at.

    Args:
        tokenizer: the model's.
        strings: those that end a sample.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: tuple[str, ...]) -> None:
        self._tokenizer = tokenizer
        self._last = {string[-1:] for string in strings}
        # What a token says at the beginning of a text may lack its space; so it is put after this.
        self._before = tokenizer.encode("a", add_special_tokens=False)[-1:]
        self._known: dict[int, bool] = {}

    def completes(self, token: int) -> bool:
        """Whether one of the strings may end in this token; a part of a character always may."""
        known = self._known.get(token)
        if known is None:
            alone, both = (
                cast("str", self._tokenizer.decode(tokens, clean_up_tokenization_spaces=False))
                for tokens in (self._before, [*self._before, token])
            )
            piece = both[len(alone) :]
            known = "�" in piece or any(last in piece for last in self._last)
            self._known[token] = known
        return known


class Written:
    """The text of a sample as its tokens come, whole characters only.

    A token may hold a part of a character. Such a part is held back until the rest is there; so
    the texts of the steps of an answer join to its text, wherever they were cut.

    Args:
        tokenizer: the model's.
        context: the tokens before the sample.
        stops: the strings that end it.
        ends: the tokens that end an answer; they are not written.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        context: Sequence[int],
        stops: Sequence[str],
        ends: frozenset[int],
    ) -> None:
        self._tokenizer = tokenizer
        self._stops = stops
        self._ends = ends
        self._longest = max(map(len, stops), default=0)
        # Tokens are decoded after the last few that were written, since what stands before changes
        # how some are: `begin` is where these begin, `end` where they end.
        self._tokens = list(context[-_TAIL:])
        self._begin, self._end = self._start()
        self.text = ""

    def _start(self) -> tuple[int, int]:
        """Where whole characters begin in the context, and where they end."""
        count = len(self._tokens)
        for end in range(count, max(count - _PARTS, 0), -1):
            for begin in range(end):
                if "�" not in self._decode(self._tokens[begin:end]):
                    return begin, end
        return count, count

    def add(self, tokens: Sequence[int]) -> bool:
        """Write tokens down; whether a stop string is complete."""
        self._tokens += [token for token in tokens if token not in self._ends]
        count, before = len(self._tokens), len(self.text)
        for end in range(count, max(count - _BROKEN, self._end), -1):
            text = self._decode(self._tokens[self._begin : end])
            if not text.endswith("�"):
                self.text += text[len(self._decode(self._tokens[self._begin : self._end])) :]
                self._begin, self._end = self._end, end
                break
        fresh = self.text[max(0, before - self._longest + 1) :]
        return any(stop in fresh for stop in self._stops)

    def adds(self, token: int) -> str:
        """What a token would add, were it the next one.

        Returns:
            Nothing where it ends the answer. What ends in `�` is held back: a character of which a
            part is missing.
        """
        if token in self._ends:
            return ""
        after = copy(self)
        after._tokens, after.text = list(self._tokens), ""  # noqa: SLF001  (its own copy)
        after.add([token])
        return after.text or cast("str", self._tokenizer.decode([token]))

    def _decode(self, tokens: Sequence[int]) -> str:
        return cast(
            "str",
            self._tokenizer.decode(
                list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
            ),
        )


def _plain(message: Message) -> dict[str, Json]:
    """A message as chat templates want it."""
    plain: dict[str, Json] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        plain["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": _parsed(call.arguments)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    return plain


def _parsed(arguments: str) -> Json:
    """Templates write JSON themselves; arguments that are none stay the text that they are."""
    try:
        return cast("Json", json.loads(arguments))
    except ValueError:
        return arguments


def _offered(tool: Tool) -> dict[str, Json]:
    return {
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.description,
            "parameters": dict(tool.parameters),
        },
    }
