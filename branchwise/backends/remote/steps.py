"""From a server's reply to steps."""

from __future__ import annotations

import math
from collections.abc import Callable

from pydantic import Field

from branchwise.backends.remote.ending import Sample, ended
from branchwise.backends.remote.reply import Reply, WireChoice, WireToken
from branchwise.core.config import Config
from branchwise.core.types import Candidate, Finish, Request, Step, ToolCall, Usage


class Prices(Config):
    """What tokens cost, in US dollars per million.

    Args:
        prompt: tokens read.
        cached: tokens read that the server's cache held; the same as `prompt` where not given.
        completion: tokens written.
    """

    prompt: float = Field(default=0.0, ge=0)
    cached: float | None = Field(default=None, ge=0)
    completion: float = Field(default=0.0, ge=0)

    def of(self, prompt: int, cached: int, completion: int) -> float:
        """The price of so many tokens in dollars."""
        rate = self.prompt if self.cached is None else self.cached
        return (prompt * self.prompt + cached * rate + completion * self.completion) / 1e6


def read(
    reply: Reply,
    request: Request,
    *,
    said: str,
    seconds: float,
    prices: Prices,
    note: Callable[[str], None],
) -> list[Step]:
    """The steps of a reply, in the order of its choices' indices.

    Args:
        reply: what the server answered.
        request: what it was asked.
        said: the answer so far, which is taken off where the server repeats it.
        seconds: how long the call took.
        prices: what its tokens cost.
        note: is told what the server does differently.
    """
    choices = sorted(reply.choices, key=lambda choice: choice.index or 0)
    samples = [_sample(reply, choice, request, said, note) for choice in choices]
    counts = _counts(reply, samples, note)
    if (request.logprobs or request.candidates) and not any(sample.logprobs for sample in samples):
        note("the server gives no log-probabilities")
    steps: list[Step] = []
    for index, (choice, sample) in enumerate(zip(choices, samples, strict=True)):
        prompt, cached = _prompt_counts(reply, request, note) if index == 0 else (0, 0)
        usage = Usage(
            calls=1 if index == 0 else 0,
            prompt=prompt,
            cached=cached,
            completion=counts[index],
            seconds=seconds if index == 0 else 0.0,
            dollars=prices.of(prompt, cached, counts[index]),
        )
        steps.append(
            Step(
                sample.text,
                sample.tokens,
                math.fsum(sample.logprobs) if sample.logprobs else None,
                sample.logprobs,
                sample.finish,
                usage,
                _tool_calls(choice, index),
                candidates=_candidates(choice, request, len(sample.pieces)),
            )
        )
    return steps


def _sample(
    reply: Reply, choice: WireChoice, request: Request, said: str, note: Callable[[str], None]
) -> Sample:
    message = choice.message
    text = choice.text if message is None else message.content
    if message is not None and (message.reasoning or message.reasoning_content):
        note("the server keeps the model's reasoning apart: it is not part of the text")
    if text is None and message is not None and message.refusal:
        text = message.refusal
    text = (text or "").removeprefix(said) if said else text or ""
    listed = choice.logprobs.listed() if choice.logprobs is not None else []
    known = [
        token for token in listed if token.logprob is not None and token.logprob == token.logprob
    ]
    complete = len(known) == len(listed)
    tokens = choice.token_ids or [token.id for token in listed if token.id is not None]
    return ended(
        Sample(
            text=text,
            pieces=tuple(_bytes(token) for token in listed),
            tokens=tuple(tokens),
            logprobs=tuple(token.logprob or 0.0 for token in known) if complete else (),
            finish=_finish(choice, note),
        ),
        request.stop,
        matched=_matched(reply, choice),
        note=note,
    )


def _candidates(
    choice: WireChoice, request: Request, places: int
) -> tuple[tuple[Candidate, ...], ...]:
    """The most probable tokens in each place; what adapters did to them servers do not tell."""
    if not request.candidates or choice.logprobs is None:
        return ()
    return tuple(
        tuple(
            Candidate(
                -1 if one.id is None else one.id,
                _bytes(one).decode(errors="replace"),
                one.logprob,
                None,
            )
            for one in (token.top_logprobs or ())[: request.candidates]
            if one.logprob is not None
        )
        for token in choice.logprobs.listed()[:places]
    )


def _bytes(token: WireToken) -> bytes:
    return bytes(token.bytes) if token.bytes is not None else token.token.encode()


def _finish(choice: WireChoice, note: Callable[[str], None]) -> Finish:
    if choice.message is not None and choice.message.tool_calls:
        return "tools"
    match choice.finish_reason:
        case "length" | "max_tokens":
            return "length"
        case "content_filter":
            return "filter"
        case "eos" | "eos_token" | "end_turn":
            return "end"
        case "stop" | "stop_sequence" | "tool_calls" | "function_call":
            return "stop"
        case reason:
            note(f"the server ends samples for a reason unknown here: {reason!r}")
            return "stop"


def _matched(reply: Reply, choice: WireChoice) -> str | bool | None:
    """The stop string that ended a sample, False where none did, None where nobody says."""
    for name in ("stop_reason", "matched_stop"):
        if name in choice.model_fields_set:
            reason: str | int | None = getattr(choice, name)
            return reason if isinstance(reason, str) else False
    if reply.verbose is not None and len(reply.choices) == 1 and reply.verbose.stop_type:
        return reply.verbose.stopping_word or False
    return None


def _tool_calls(choice: WireChoice, index: int) -> tuple[ToolCall, ...]:
    if choice.message is None:
        return ()
    return tuple(
        ToolCall(call.id or f"call-{index}-{i}", call.function.name, call.function.arguments or "")
        for i, call in enumerate(choice.message.tool_calls or ())
    )


def _counts(reply: Reply, samples: list[Sample], note: Callable[[str], None]) -> list[int]:
    """The completion tokens of each sample."""
    total = reply.usage.completion_tokens if reply.usage is not None else None
    if len(samples) == 1 and total is not None:
        return [total]
    counts = [len(sample.logprobs) or len(sample.tokens) for sample in samples]
    if all(counts):
        return counts
    sizes = [max(1, len(sample.text)) for sample in samples]
    if total is None:
        note("the server does not report usage: token counts are estimates")
        return [_estimate(sample.text) for sample in samples]
    # By the length of the texts, so that the shares add up to what the server reports.
    ends = [round(total * sum(sizes[: i + 1]) / sum(sizes)) for i in range(len(sizes))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def _prompt_counts(reply: Reply, request: Request, note: Callable[[str], None]) -> tuple[int, int]:
    usage = reply.usage
    if usage is None or usage.prompt_tokens is None:
        note("the server does not report usage: token counts are estimates")
        if request.tokens is not None:
            return len(request.tokens), 0
        text = request.prompt or "".join(message.content for message in request.messages)
        return _estimate(text + request.so_far), 0
    details = usage.prompt_tokens_details
    cached = min(usage.prompt_tokens, (details.cached_tokens if details is not None else 0) or 0)
    return usage.prompt_tokens - cached, cached


def _estimate(text: str) -> int:
    return max(1, len(text) // 4)
