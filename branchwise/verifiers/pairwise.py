"""Which of two answers is the better one: a model's word, or a function's."""

import inspect
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, SupportsFloat

from pydantic import Field, SkipValidation

from branchwise.core.aio import gather
from branchwise.core.config import Config, Sampling
from branchwise.core.errors import BackendError, BranchError, BranchwiseError, VerifierError
from branchwise.core.node import Node
from branchwise.core.template import filled
from branchwise.core.types import FREE, Backend, Message, Request, Step, Verdict

_LETTER_AT_THE_END = re.compile(r"(?<![^\W_])([AB])[\W_]*\Z")
_TEMPLATE = """\
Two people were given the same task.

Task:
{prompt}

Response A:
{first}

Response B:
{second}

Check both responses and decide which one is better: a correct conclusion counts most, sound \
reasoning next, style nothing. The order in which they stand means nothing either. Explain \
briefly, then end your reply with the letter of the better one: A or B."""


class Pairwise(Config):
    """Asks a model which of two answers is better, in both orders.

        s(a, b) = (1[a wins as A] + 1[a wins as B]) / 2

    So s(a, b) = 1 - s(b, a) exactly, and a model that always prefers one place says 1/2. A reply
    has to end with the letter A or B; a vote of which one reply does not, or was cut short, is an
    error that quotes it.

    Source: pairwise ranking of LLM-Blender, Jiang et al. 2023, §3; both orders as in Zheng et al.
    2023 (MT-Bench), §3.4.

    Args:
        backend: the model.
        system: the system's message; none where it is empty.
        template: the user's message; `{prompt}`, `{first}` and `{second}` are filled in.
        sampling: how replies are drawn; at temperature 0 all votes on a pair are the same.
        max_tokens: the most tokens of a reply.
        stop: strings that end a reply.

    Example:
        >>> from branchwise import Node, Scripted, State, Step, Task, run_sync
        >>> root = Node(Task("2 + 2?"), State())
        >>> a, b = (Node(root.task, State(), root, i, Step(said)) for i, said in enumerate("45"))
        >>> first = Scripted(lambda request, seed: "The better one is A.")
        >>> run_sync(Pairwise(backend=first).prefer, [(a, b)], [0])[0].score
        0.5
    """

    backend: SkipValidation[Backend] = Field(exclude=True, repr=False)
    kind: Literal["pairwise"] = "pairwise"
    system: str = ""
    template: str = _TEMPLATE
    sampling: Sampling = Sampling()
    max_tokens: int = Field(default=512, ge=1)
    stop: tuple[str, ...] = ()

    def request(self, first: Node, second: Node, seeds: Sequence[int]) -> Request:
        """What the model is asked: a pure function of the two nodes and the seeds."""
        values = {"prompt": first.task.prompt, "first": first.text, "second": second.text}
        question = filled(self.template, {name: text.strip() for name, text in values.items()})
        messages = [Message("system", self.system)] if self.system else []
        return Request(
            messages=(*messages, Message("user", question)),
            seeds=tuple(seeds),
            sampling=self.sampling,
            stop=self.stop,
            max_tokens=self.max_tokens,
            logprobs=False,
        )

    async def prefer(
        self, pairs: Sequence[tuple[Node, Node]], seeds: Sequence[int]
    ) -> Sequence[Verdict | VerifierError]:
        """One verdict for each pair; all votes on the same pair are two requests, one an order.

        Raises:
            BackendError: no later call can succeed either.
        """
        votes: dict[tuple[Node, Node], list[int]] = {}
        for place, pair in enumerate(pairs):
            votes.setdefault(pair, []).append(place)
        requests: list[Request] = []
        for (first, second), places in votes.items():
            drawn = [seeds[place] for place in places]
            requests.append(self.request(first, second, drawn))
            requests.append(self.request(second, first, drawn))
        replies = await gather(self._replies, requests)
        verdicts: dict[int, Verdict | VerifierError] = {}
        for places, there, back in zip(votes.values(), replies[::2], replies[1::2], strict=True):
            for place, one, other in zip(places, there, back, strict=True):
                verdicts[place] = _verdict(one, other)
        return [verdicts[place] for place in range(len(pairs))]

    async def _replies(self, request: Request) -> Sequence[Step | VerifierError]:
        try:
            return await self.backend.complete(request)
        except BackendError as error:
            if error.fatal:
                # Without what has arrived: these are replies, not steps of a search.
                raise BackendError(
                    error.message, hint=error.hint, fatal=True, status=error.status
                ) from error
            lost = VerifierError(error.message, hint=error.hint)
            return [step or lost for step in error.arrived or [None] * len(request.seeds)]


class Comparison:
    """A function of two nodes as a preference; what goes wrong with one pair stays with it.

    An `async def` is called with all pairs at once, any other function with one after the other.

    Args:
        function: takes two nodes and gives a bool, or the probability in [0, 1] that the first one
            is better, or an awaitable of either.

    Example:
        >>> from branchwise import Node, State, Task, run_sync
        >>> long, short = (Node(Task("?"), State(answer=said)) for said in ("12", "3"))
        >>> shorter = Comparison(lambda a, b: len(a.state.answer) < len(b.state.answer))
        >>> run_sync(shorter.prefer, [(long, short)], [0])[0].score
        0.0
    """

    def __init__(
        self, function: Callable[[Node, Node], SupportsFloat | Awaitable[SupportsFloat]]
    ) -> None:
        self._function = function
        self._waits = any(map(inspect.iscoroutinefunction, (function, type(function).__call__)))

    async def prefer(
        self,
        pairs: Sequence[tuple[Node, Node]],
        seeds: Sequence[int],  # noqa: ARG002  (a function draws nothing)
    ) -> Sequence[Verdict | VerifierError]:
        """One verdict for each pair; an error where the function raised or gave no probability.

        Raises:
            BranchwiseError: a signal that is not one pair's business, such as a spent budget.
        """
        if self._waits:
            return await gather(self._compare, pairs)
        return [await self._compare(pair) for pair in pairs]

    async def _compare(self, pair: tuple[Node, Node]) -> Verdict | VerifierError:
        try:
            said = self._function(*pair)
            score = float(await said if inspect.isawaitable(said) else said)
        except VerifierError as error:
            return error
        except BranchwiseError as error:
            if not isinstance(error, BranchError) or getattr(error, "fatal", False):
                raise
            return VerifierError(error.message, hint=error.hint)
        except Exception as error:  # noqa: BLE001  (a user's function; its faults are data)
            return VerifierError(f"the comparison raised {type(error).__name__}: {error}")
        if not 0 <= score <= 1:
            return VerifierError(f"the comparison gave {score}, which is no probability")
        return Verdict(score)


def _verdict(there: Step | VerifierError, back: Step | VerifierError) -> Verdict | VerifierError:
    """From the replies about (a, b) and about (b, a)."""
    usage = sum((reply.usage for reply in (there, back) if isinstance(reply, Step)), FREE)
    letters: list[str] = []
    for reply in (there, back):
        letter = reply if isinstance(reply, VerifierError) else _letter(reply)
        if isinstance(letter, VerifierError):
            return VerifierError(letter.message, hint=letter.hint, spent=usage)
        letters.append(letter)
    wins = (letters[0] == "A") + (letters[1] == "B")
    return Verdict(wins / 2, detail="".join(letters), usage=usage)


def _letter(reply: Step) -> str | VerifierError:
    """The letter that a reply ends with; a reply that was cut short does not end at all."""
    cut = reply.finish in {"length", "filter"}
    if (match := _LETTER_AT_THE_END.search(reply.text)) and not cut:
        return match[1]
    return VerifierError(
        f"the comparison could not be read: the reply ends with {reply.text[-80:]!r}"
        f"{' and was cut short' if cut else ''}",
        hint="the template has to ask for A or B at the end, and `max_tokens` to leave room",
    )
