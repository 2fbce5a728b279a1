"""Which of two answers is the better one: a model's word, or a function's."""

import inspect
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Literal, NamedTuple, SupportsFloat

from pydantic import Field, SkipValidation

from branchwise.core.config import Config, Sampling
from branchwise.core.errors import BranchError, BranchwiseError, SpecError, VerifierError
from branchwise.core.judging import cost, settled
from branchwise.core.node import Node
from branchwise.core.template import filled
from branchwise.core.types import Backend, Message, Request, Step, Verdict
from branchwise.verifiers.asked import replies
from branchwise.verifiers.prompts import template

_LETTER = {
    "letter": re.compile(r"(?<![^\W_])([AB])[\W_]*\Z"),
    "result": re.compile(
        # No second mark before it: one that says something else would be passed over.
        r"\A(?:(?!\[RESULT\]).)*\[RESULT\][\s*_:`(\[]{0,8}(?:Response )?([AB])[\W_]*\Z",
        re.DOTALL,
    ),
}
_TEMPLATES = {"letter": "pairwise", "result": "prometheus-relative"}
_RUBRIC = "a correct conclusion counts most, sound reasoning next, style nothing"


class Pairwise(Config):
    """Asks a model which of two answers is better, in both orders.

        s(a, b) = (1[a wins as A] + 1[a wins as B]) / 2

    So s(a, b) = 1 - s(b, a) exactly, and a model that always prefers one place says 1/2. A reply
    has to end with the letter A or B; a vote of which one reply does not, or was cut short, is an
    error that quotes it. The verdict's `detail` is the letters of both replies: `position_bias`
    counts in how many votes a place has won, not an answer.

    Source: pairwise ranking of LLM-Blender, Jiang et al. 2023, §3; both orders as in Zheng et al.
    2023 (MT-Bench), §3.4; the form `result` is that of Prometheus 2, Kim et al. 2024 (relative
    grading).

    Args:
        backend: the model.
        system: the system's message; none where it is empty.
        rubric: what makes an answer the better one.
        form: how a reply ends: with the `letter`, or with `[RESULT] A` (`result`).
        template: the user's message, instead of the packaged one of the form; `{prompt}`,
            `{first}`, `{second}` and `{rubric}` are filled in.
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
    rubric: str = _RUBRIC
    form: Literal["letter", "result"] = "letter"
    template: str | None = None
    sampling: Sampling = Sampling()
    max_tokens: int = Field(default=512, ge=1)
    stop: tuple[str, ...] = ()

    def request(self, first: Node, second: Node, seeds: Sequence[int]) -> Request:
        """What the model is asked: a pure function of the two nodes and the seeds."""
        values = {
            "prompt": first.task.prompt.strip(),
            "first": first.text.strip(),
            "second": second.text.strip(),
            "rubric": self.rubric,
        }
        question = filled(self.template or template(_TEMPLATES[self.form]), values)
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
        rows = await settled(lambda request: replies(self.backend, request), requests)
        verdicts: dict[int, Verdict | VerifierError] = {}
        for places, there, back in zip(votes.values(), rows[::2], rows[1::2], strict=True):
            for place, one, other in zip(places, there, back, strict=True):
                verdicts[place] = _verdict(one, other, _LETTER[self.form])
        return [verdicts[place] for place in range(len(pairs))]


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
            return await settled(self._compare, pairs)
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
            return VerifierError(error.message, hint=error.hint, spent=error.spent)
        except Exception as error:  # noqa: BLE001  (a user's function; its faults are data)
            return VerifierError(f"the comparison raised {type(error).__name__}: {error}")
        if not 0 <= score <= 1:
            return VerifierError(f"the comparison gave {score}, which is no probability")
        return Verdict(score)


class PositionBias(NamedTuple):
    """How often a judge's two orders agree.

    Args:
        votes: that could be read.
        first: of these, in how many the answer in the first place won in both orders.
        second: the same for the second place.
    """

    votes: int
    first: int
    second: int

    @property
    def share(self) -> float:
        """In which share of the votes the place has decided; 0 where there is no vote."""
        return (self.first + self.second) / self.votes if self.votes else 0.0


def position_bias(verdicts: Iterable[Verdict | VerifierError]) -> PositionBias:
    """How often the place has decided in the votes of a `Pairwise`, not the answer.

    Errors are left out.

    Source: the consistency and the two biases in table 2 of MT-Bench, Zheng et al. 2023.

    Raises:
        SpecError: a verdict is of another preference.

    Example:
        >>> told = [Verdict(1.0, detail="AB"), Verdict(0.5, detail="AA")]
        >>> position_bias(told), position_bias(told).share
        (PositionBias(votes=2, first=1, second=0), 0.5)
    """
    counts = dict.fromkeys(("AA", "AB", "BA", "BB"), 0)
    for verdict in verdicts:
        if isinstance(verdict, VerifierError):
            continue
        if verdict.detail not in counts:
            raise SpecError(f"{verdict.detail!r} does not tell how two orders were judged")
        counts[verdict.detail] += 1
    return PositionBias(sum(counts.values()), counts["AA"], counts["BB"])


def _verdict(
    there: Step | VerifierError, back: Step | VerifierError, form: re.Pattern[str]
) -> Verdict | VerifierError:
    """From the replies about (a, b) and about (b, a)."""
    usage = cost((there, back))
    letters: list[str] = []
    for reply in (there, back):
        letter = reply if isinstance(reply, VerifierError) else _letter(reply, form)
        if isinstance(letter, VerifierError):
            return VerifierError(letter.message, hint=letter.hint, spent=usage)
        letters.append(letter)
    wins = (letters[0] == "A") + (letters[1] == "B")
    return Verdict(wins / 2, detail="".join(letters), usage=usage)


def _letter(reply: Step, form: re.Pattern[str]) -> str | VerifierError:
    """The letter that a reply ends with; a reply that was cut short does not end at all."""
    cut = reply.finish in {"length", "filter"}
    if (match := form.search(reply.text)) and not cut:
        return match[1]
    return VerifierError(
        f"the comparison could not be read: the reply ends with {reply.text[-80:]!r}"
        f"{' and was cut short' if cut else ''}",
        hint="the template has to ask for A or B at the end, and `max_tokens` to leave room",
    )
