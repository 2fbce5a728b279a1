"""How probable a model finds some words as the next token."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from pydantic import Field, model_validator

from branchwise.core.config import Sampling
from branchwise.core.errors import BackendError, SpecError, VerifierError
from branchwise.core.judging import cost, with_cost
from branchwise.core.types import FREE, Backend, Candidate, Request, Scoring, Step, Usage, Verdict
from branchwise.verifiers.asked import Asks, failure, replies

_ROUNDING = 1e-3  # by so much a log-probability may lie above 0
_SHOWN = 3

Words = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Chances:
    """The probabilities of some answers as the next token.

    Args:
        of: one for each answer, summed over its spellings.
        usage: what asking has cost.

    Example:
        >>> Chances((0.375, 0.125)).shares
        (0.75, 0.25)
    """

    of: tuple[float, ...]
    usage: Usage = FREE

    @property
    def shares(self) -> tuple[float, ...]:
        """The same, as shares of what all the answers have together."""
        total = math.fsum(self.of)
        return tuple(chance / total for chance in self.of)


async def chances(
    backend: Backend,
    request: Request,
    answers: Sequence[Words],
    *,
    candidates: int = 20,
    least: float = 0.0,
) -> Chances:
    """How probable each answer is as the next token, at temperature 1.

    A model that reads is asked for the words themselves. Any other writes one token and names the
    most probable ones in its place: a word that is not among them counts with a probability of 0,
    while it has at most that of the last of them. It draws that token at temperature 1 with nothing
    cut, since servers differ in whether they tell probabilities before or after the adapters.
    In a run a local model, too, is asked so: it stands behind the journal, which does not read, and
    records what it says.

    Args:
        backend: the model.
        request: the conversation so far.
        answers: the spellings of each answer, each a token.
        candidates: how many of the most probable tokens are asked for.
        least: the least probability of all answers together; below, the model says something else.

    Raises:
        VerifierError: the model says something else, or tells no probabilities.
        SpecError: neither the model nor its server can do what is asked.
        BackendError: no later call can succeed either.
    """
    read = await _read(backend, request, answers) if isinstance(backend, Scoring) else None
    if read is not None and _enough(read.of, least):
        return read
    # What is said instead only candidates can tell.
    before = FREE if read is None else read.usage
    token = replace(
        request,
        seeds=(0,),
        sampling=Sampling(),
        stop=(),
        max_tokens=1,
        logprobs=True,
        candidates=candidates,
    )
    try:
        (reply,) = await replies(backend, token)
    except BackendError as error:
        raise with_cost(error, before) from error
    if isinstance(reply, VerifierError):
        raise VerifierError(reply.message, hint=reply.hint, spent=before + (reply.spent or FREE))
    usage = before + reply.usage
    top = _top(reply, usage)
    of = tuple(
        math.fsum(_chance(one.text, one.logprob, usage) for one in top if one.text in spellings)
        for spellings in answers
    )
    if not _enough(of, least):
        said = ", ".join(
            f"{one.text!r} ({_chance(one.text, one.logprob, usage):.3g})" for one in top[:_SHOWN]
        )
        raise VerifierError(
            f"the model was to say {' or '.join(repr(words[0]) for words in answers)}, which has "
            f"the probability {math.fsum(of):.3g}; most probable are {said}",
            hint="the template has to ask for that word alone, in the model's own spelling",
            spent=usage,
        )
    return Chances(of, usage)


def _enough(of: Sequence[float], least: float) -> bool:
    total = math.fsum(of)
    return total > 0 and total >= least


async def _read(backend: Scoring, request: Request, answers: Sequence[Words]) -> Chances | None:
    """What a model that reads says; None where it cannot say it of these words."""
    words = [word for spellings in answers for word in spellings]
    try:
        readings = await backend.read(request, since=max(0, len(request.said) - 1), words=words)
    except SpecError:
        # A word is not one token of this model, or not one of its own; candidates tell as texts.
        return None
    except BackendError as error:
        if error.fatal:
            raise
        raise failure(error, error.spent or FREE) from error
    usage = cost(readings)
    if not readings or len(readings[-1].words) != len(words):
        return None
    logprobs = dict(zip(words, readings[-1].words, strict=True))
    of = tuple(
        math.fsum(_chance(word, logprobs[word], usage) for word in dict.fromkeys(spellings))
        for spellings in answers
    )
    return Chances(of, usage)


def _top(reply: Step, usage: Usage) -> Sequence[Candidate]:
    """The candidates in the place of the next token, the most probable first."""
    if reply.finish == "filter":
        raise VerifierError("the server withheld the judge's reply", spent=usage)
    if not reply.candidates or not reply.candidates[0]:
        raise VerifierError(
            f"the model names no candidates for the next token; it said {reply.text[:80]!r}",
            hint="probabilities need a server that gives `top_logprobs`, or the local engine; "
            "judges that write a number need neither",
            spent=usage,
        )
    return sorted(reply.candidates[0], key=lambda one: -one.logprob)


def _chance(word: str, logprob: float, usage: Usage) -> float:
    """From a log-probability that somebody else has computed."""
    if not logprob <= _ROUNDING:
        raise VerifierError(f"the model gives {word!r} the log-probability {logprob}", spent=usage)
    return min(1.0, math.exp(logprob))


class Decides(Asks):
    """What verifiers that read a verdict off the next token have in common.

    Args:
        backend: the model.
        system: the system's message; none where it is empty.
        chat: whether the model is asked in a chat, or reads plain text that goes on.
        yes: the spellings of the word for a right answer, each a token; they are summed.
        no: those of the word for a wrong one.
        normalised: whether the score is p(yes) / (p(yes) + p(no)) instead of p(yes).
        least: the least probability of all these words together; where they have less, the model
            does not answer the question, and the node has no verdict.
        candidates: how many of the most probable tokens a model is asked for that does not read.

    Raises:
        pydantic.ValidationError: a word stands for both, or there is a system's message, but no
            chat.
    """

    yes: Words = Field(default=("Yes", " Yes", "yes", " yes", "YES", " YES"), min_length=1)
    no: Words = Field(default=("No", " No", "no", " no", "NO", " NO"), min_length=1)
    normalised: bool = False
    least: float = Field(default=0.01, ge=0, lt=1)
    candidates: int = Field(default=20, ge=1)

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if both := set(self.yes) & set(self.no):
            raise ValueError(f"{min(both)!r} stands for yes and for no")
        return self

    async def _decision(self, request: Request) -> Verdict:
        """What the model says next, as a verdict.

        Raises:
            VerifierError: it is none of the words, or its probability is not told.
            BackendError: no later call can succeed either.
        """
        found = await chances(
            self.backend,
            request,
            (self.yes, self.no),
            candidates=self.candidates,
            least=self.least,
        )
        yes, no = found.of
        return Verdict(
            found.shares[0] if self.normalised else min(1.0, yes),
            detail=f"p({self.yes[0]}) = {yes:.6g}, p({self.no[0]}) = {no:.6g}",
            usage=found.usage,
        )
