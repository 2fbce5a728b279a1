"""Finding out how a server continues an answer that has begun."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

from branchwise.backends.remote.call import Caller, Template
from branchwise.core.aio import gather
from branchwise.core.config import Sampling
from branchwise.core.errors import BackendError
from branchwise.core.types import Message, Request, Step

Ask: TypeAlias = Callable[[Caller, Request], Awaitable[Sequence[Step]]]

_GREETING = (Message("system", "Be brief."), Message("user", "Say hello."))
# Cut inside a word or a number, and unrelated to what was asked: a server that opens a new turn
# says hello, or takes up the whole word again.
_BEGUN = (("Blue. Monday, Tuesday, Wednes", "day"), ("Blue. 1, 2, 3, 4, 5, 6, 7, 8, 9, 1", "0"))


async def find(ask: Ask, caller: Caller, template: Template | None) -> Caller:
    """The caller for the best way of continuing that this server really offers.

    A few tokens are asked for. Continuing through the chat is best, for the server renders the
    model's own template. A plain completion comes next, if a template was given, or if ChatML fills
    exactly as many tokens as the chat does. Else the model is asked for the next part in words.

    Args:
        ask: sends a request and returns its steps.
        caller: writes the calls; its continuation is replaced.
        template: the template that the user gave.

    Raises:
        BackendError: the server answers nothing at all.
    """
    chat = replace(caller, continuation="continue_final_message")
    if (found := await continuing(ask, chat)) is not None:
        return found
    plain = replace(caller, continuation="completions")
    if template is not None or await _same_size(ask, plain):
        found = await continuing(ask, plain)
    return found or replace(caller, continuation="prompt")


async def continuing(ask: Ask, caller: Caller) -> Caller | None:
    """The caller as it is to be, if answers cut inside a word are taken up exactly there."""

    async def one(case: tuple[str, str]) -> str:
        begun, rest = case
        request = Request(
            messages=_GREETING,
            said=(Step(begun),),
            sampling=Sampling(temperature=0),
            max_tokens=4,
            logprobs=False,
        )
        step = await _tried(ask, caller, request)
        text = "" if step is None else step.text
        if text.startswith(begun + rest):
            return "repeats"
        return "goes on" if text.startswith(rest) else "no"

    found = set(await gather(one, _BEGUN))
    if found == {"goes on"}:
        return caller
    return replace(caller, repeats=True) if found == {"repeats"} else None


async def _same_size(ask: Ask, caller: Caller) -> bool:
    """Whether the template fills as many tokens as the server's own, with a system or without."""

    async def sizes(messages: tuple[Message, ...]) -> bool:
        prompt = caller.template.render(messages)
        both = (
            Request(messages=messages, max_tokens=1, logprobs=False),
            Request(prompt=prompt, max_tokens=1, logprobs=False),
        )
        chat, plain = [await _tried(ask, caller, request) for request in both]
        return chat is not None and plain is not None and _read(chat) == _read(plain)

    return all(await gather(sizes, (_GREETING, _GREETING[1:])))


async def _tried(ask: Ask, caller: Caller, request: Request) -> Step | None:
    try:
        return (await ask(caller, request))[0]
    except BackendError as error:
        # A refusal of this kind of call is an answer to the question; anything else is a failure.
        if error.fatal or error.status not in {400, 404, 405, 422, 501}:
            raise
        return None


def _read(step: Step) -> int:
    return step.usage.prompt + step.usage.cached
