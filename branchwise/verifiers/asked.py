"""Asking a judge: the conversation, its replies, a number in them, an average over several."""

import math
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Self, TypeVar

from pydantic import Field, SkipValidation, model_validator

from branchwise.core.config import Config
from branchwise.core.errors import BackendError, VerifierError
from branchwise.core.judging import cost, settled, with_cost
from branchwise.core.node import Node
from branchwise.core.types import FREE, Backend, Message, Request, Step, Usage, Verdict

Item = TypeVar("Item")
Said = TypeVar("Said")

_NUMBER = re.compile(
    r"(?:[a-z ]{1,24}[:=])?\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(%|(?:/|out of)\s*[0-9]{1,9})?"
)
_AROUND = " \t\r\n*_`\"'"
_QUOTED = 80


class Asks(Config):
    """What verifiers that ask a model have in common.

    Args:
        backend: the model.
        system: the system's message; none where it is empty.
        chat: whether the model is asked in a chat, or reads plain text that goes on.

    Raises:
        pydantic.ValidationError: there is a system's message, but no chat.
    """

    backend: SkipValidation[Backend] = Field(exclude=True, repr=False)
    system: str = ""
    chat: bool = True

    @model_validator(mode="after")
    def _has_a_place_for_it(self) -> Self:
        if self.system and not self.chat:
            raise ValueError("plain text has no place for `system`: write it into the template")
        return self

    def _asked(self, question: str, *turns: str) -> Request:
        """A conversation: a question, the model's reply, a further question, ..."""
        if not self.chat:
            # Texts, not tokens: a reply's last token may be the one that ends a text.
            said = tuple(Step(f"\n\n{turn.strip()}") for turn in turns)
            return Request(prompt=question, said=said)
        messages = [Message("system", self.system)] if self.system else []
        messages.append(Message("user", question))
        for place, turn in enumerate(turns):
            messages.append(Message("user" if place % 2 else "assistant", turn.strip()))
        return Request(messages=tuple(messages))


def about(node: Node) -> dict[str, str]:
    """What a template may show of a node: what was asked, and the answer so far.

    Example:
        >>> from branchwise import State, Task
        >>> about(Node(Task(" 2 + 2? "), State()))
        {'prompt': '2 + 2?', 'answer': ''}
    """
    return {"prompt": node.task.prompt.strip(), "answer": node.text.strip()}


async def replies(backend: Backend, request: Request) -> list[Step | VerifierError]:
    """One reply for each seed, or in its place why there is none.

    Raises:
        BackendError: no later call can succeed either.
    """
    try:
        return [*await backend.complete(request)]
    except BackendError as error:
        spent = error.spent or FREE
        if error.fatal:
            raise with_cost(error, cost(error.arrived)) from error
        arrived = [*error.arrived] or [None] * len(request.seeds)
        first = arrived.index(None) if None in arrived else -1
        return [
            step or failure(error, spent if place == first else FREE)
            for place, step in enumerate(arrived)
        ]


def failure(error: BackendError, spent: Usage) -> VerifierError:
    """A call that failed, as the fault of one verdict."""
    return VerifierError(error.message, hint=error.hint, spent=spent)


def whole(reply: Step) -> str:
    """The text of a reply that came to its end.

    Raises:
        VerifierError: it is empty or was cut.
    """
    text = reply.text.strip()
    if reply.finish == "length":
        why = "was cut short"
    elif reply.finish == "filter":
        why = "was withheld by the server"
    elif not text:
        why = "is empty"
    else:
        return text
    raise VerifierError(
        f"the judge's reply {why}: it ends with {text[-_QUOTED:]!r}",
        hint="raise `max_tokens`" if reply.finish == "length" else "",
        spent=reply.usage,
    )


def number(reply: Step, lowest: float, highest: float) -> float:
    """The number that a reply consists of: `4`, `**4**`, `Score: 4`, `4/5`, `80%`.

    Args:
        reply: what the judge wrote.
        lowest: the least number that was allowed.
        highest: the greatest; what may stand after a slash, and 100 where a percent sign may.

    Raises:
        VerifierError: the reply was cut, is something else, or lies outside of the range.

    Example:
        >>> from branchwise import Step
        >>> number(Step("Score: 4/5"), 1, 5)
        4.0
    """
    text = whole(reply)
    match = _NUMBER.fullmatch(text.lstrip(_AROUND).rstrip(_AROUND + ".").lower())
    if match is not None:
        value, unit = float(match[1]), match[2] or ""
        over = float(unit.strip("/outf %") or highest)
        fits = highest == 100 if unit == "%" else over == highest  # noqa: PLR2004  (percent)
        if fits and lowest <= value <= highest:
            return value
    raise VerifierError(
        f"the judge's reply is no number from {lowest:g} to {highest:g}: {text[-_QUOTED:]!r}",
        hint="the template has to ask for the number alone",
        spent=reply.usage,
    )


async def averaged(
    backend: Backend, request: Request, judge: Callable[[Step], Awaitable[Verdict]]
) -> Verdict:
    """The mean of the verdicts that a judge comes to after each of several thoughts of its own.

    A thought that was cut, is empty or leads to no verdict is left out, and `detail` says so. The
    feedback is the thought with the lowest verdict, of equals the first: what was found wrong is
    what a refinement can use.

    Args:
        backend: the model.
        request: asks for the thoughts, one for each seed.
        judge: from a thought to its verdict.

    Raises:
        VerifierError: no thought led to a verdict.
        BackendError: no later call can succeed either.
    """
    thoughts = await replies(backend, request)
    paid = cost([thought for thought in thoughts if isinstance(thought, Step)])

    async def verdict(thought: Step | VerifierError) -> Verdict | VerifierError:
        if isinstance(thought, VerifierError):
            return thought
        try:
            text = whole(thought)
        except VerifierError as error:
            return VerifierError(error.message, hint=error.hint)  # what it cost is in `paid`
        try:
            return replace(finite(await judge(thought)), feedback=text)
        except VerifierError as error:
            return error

    try:
        outcomes = await settled(verdict, thoughts)
    except BackendError as error:
        raise with_cost(error, paid) from error
    good = [outcome for outcome in outcomes if isinstance(outcome, Verdict)]
    bad = [outcome for outcome in outcomes if isinstance(outcome, VerifierError)]
    usage = paid + cost(outcomes)
    if not good:
        count = f"none of {len(bad)} led to a verdict; the first: " if len(bad) > 1 else ""
        raise VerifierError(f"{count}{bad[0].message}", hint=bad[0].hint, spent=usage)
    scores = [one.score for one in good]
    left_out = f"; {len(bad)} left out, the first: {bad[0].message}" if bad else ""
    return Verdict(
        math.fsum(scores) / len(scores),
        feedback=min(good, key=lambda one: one.score).feedback,
        detail=f"mean of {len(good)}: {', '.join(f'{s:.4g}' for s in scores)}{left_out}",
        usage=usage,
    )


def finite(verdict: Verdict) -> Verdict:
    """The verdict itself.

    Raises:
        VerifierError: its score is no finite number.
    """
    if not math.isfinite(verdict.score):
        raise VerifierError(
            f"the model's score is {verdict.score}, which is no finite number", spent=verdict.usage
        )
    return verdict


async def each(
    judge: Callable[[Item], Awaitable[Said]], items: Sequence[Item]
) -> list[Said | VerifierError]:
    """What is said of each item, or in its place why nothing is.

    Raises:
        BackendError: no later call can succeed either; the other calls have arrived.
    """

    async def one(item: Item) -> Said | VerifierError:
        try:
            return await judge(item)
        except VerifierError as error:
            return error

    return await settled(one, items)
