"""A critique first, then a score that is read after it."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, Self

from pydantic import Field, SkipValidation, model_validator

from branchwise.core.config import Sampling
from branchwise.core.errors import BackendError, SpecError, VerifierError
from branchwise.core.grow import seeds_of
from branchwise.core.judging import cost
from branchwise.core.node import Node
from branchwise.core.template import filled
from branchwise.core.types import FREE, Request, Scoring, Step, Verdict
from branchwise.verifiers import prompts
from branchwise.verifiers.asked import Asks, about, averaged, each, failure, number, replies
from branchwise.verifiers.chance import chances

_DIGITS = 9


class Critic(Asks):
    r"""Lets a model write critiques of an answer, and reads a score after each.

        s(x, y) = 1/K Σ_k r(x, y, c_k),    c_k ~ g(c | x, y)

        expected:  r = Σ_i i p(i) / Σ_i p(i), over the digits from `low` to `high` as the next
                   token after the question for a score
        written:   r is the number that the model then writes
        values:    r is what the value head of a model says after the critique, as published

    `feedback` is the critique with the lowest score, of equals the first, so that a refinement can
    read it. A critique that is cut, empty or followed by no score is left out, and `detail` says
    so: the mean is then that over the others. Where none is left the node has no verdict, and the
    error quotes the first. The seeds of the critiques follow from the node's path.

    Source: Ankner et al. 2024 (critique-out-loud reward models).

    Args:
        backend: the model that writes.
        system: the system's message; none where it is empty.
        chat: whether the models are asked in a chat, or read plain text that goes on.
        by: where the score comes from.
        samples: K, how many critiques.
        template: asks for a critique; `{prompt}` and `{answer}` are filled in.
        question: asks for the score; the same are filled in, with `{low}` and `{high}`.
        low: the lowest score.
        high: the highest; with `expected` at most 9.
        scale: whether scores are mapped to [0, 1] (`unit`) or stay as they are (`raw`); those of a
            value head always stay.
        least: with `expected`, the least probability of all these digits together; where they have
            less, the model says no score, and the critique is left out.
        candidates: with `expected`, how many of the most probable tokens a model is asked for that
            does not read.
        sampling: how critiques are drawn; at temperature 0 they are all the same.
        max_tokens: the most tokens of a critique.
        stop: strings that end a critique.
        head: with `values`, the model that reads, where it is not the one that writes.
        label: with `values`, which of the head's numbers counts.

    Raises:
        pydantic.ValidationError: the scale has no two scores, or with `expected` is not of digits.

    Example:
        >>> from branchwise import Node, Scripted, State, Task, run_sync
        >>> def judge(request, seed):
        ...     return "2" if "number alone" in request.asked else "It does not say why."
        >>> root = Node(Task("2 + 2?"), State())
        >>> node = Node(root.task, State(), root, 0, Step("4"))
        >>> critic = Critic(backend=Scripted(judge), by="written")
        >>> [verdict] = run_sync(critic.score, [node])
        >>> verdict.score, verdict.feedback
        (0.25, 'It does not say why.')
    """

    kind: Literal["critique-then-score"] = "critique-then-score"
    by: Literal["expected", "written", "values"] = "expected"
    samples: int = Field(default=1, ge=1)
    template: str = Field(default_factory=partial(prompts.template, "critique"))
    question: str = Field(default_factory=partial(prompts.template, "critique-score"))
    low: int = Field(default=1, ge=0)
    high: int = 5
    scale: Literal["unit", "raw"] = "unit"
    least: float = Field(default=0.01, ge=0, lt=1)
    candidates: int = Field(default=20, ge=1)
    sampling: Sampling = Sampling()
    max_tokens: int = Field(default=1024, ge=1)
    stop: tuple[str, ...] = ()
    head: SkipValidation[Scoring] | None = Field(default=None, exclude=True, repr=False)
    label: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _has_a_scale(self) -> Self:
        if self.low >= self.high:
            raise ValueError("`low` has to be below `high`")
        if self.by == "expected" and self.high > _DIGITS:
            raise ValueError('by = "expected" reads one digit: `high` is at most 9')
        return self

    def request(self, node: Node) -> Request:
        """What asks for the critiques: a pure function of the node."""
        return replace(
            self._asked(filled(self.template, about(node))),
            seeds=tuple(seeds_of(0, node.path, range(self.samples))),
            sampling=self.sampling,
            max_tokens=self.max_tokens,
            stop=self.stop,
            logprobs=False,
        )

    async def score(self, nodes: Sequence[Node]) -> Sequence[Verdict | VerifierError]:
        """One verdict for each node; an error where no critique led to a score.

        Raises:
            SpecError: a score is to be read from a value head, and the model has none.
            BackendError: no later call can succeed either.
        """
        return await each(self._judge, nodes)

    async def _judge(self, node: Node) -> Verdict:
        values = {**about(node), "low": self.low, "high": self.high}
        question, last = filled(self.template, values), filled(self.question, values)

        async def scored(critique: Step) -> Verdict:
            if self.by == "values":
                return await self._valued(self._asked(question, critique.text))
            request = self._asked(question, critique.text, last)
            return await (self._expected if self.by == "expected" else self._written)(request)

        return await averaged(self.backend, self.request(node), scored)

    async def _expected(self, request: Request) -> Verdict:
        grades = range(self.low, self.high + 1)
        found = await chances(
            self.backend,
            request,
            [(str(grade), f" {grade}") for grade in grades],
            candidates=self.candidates,
            least=self.least,
        )
        mean = math.fsum(grade * share for grade, share in zip(grades, found.shares, strict=True))
        return Verdict(self._scaled(mean), usage=found.usage)

    async def _written(self, request: Request) -> Verdict:
        # The most probable number: a drawn one would only add noise to that of the critiques.
        how = Sampling(temperature=0)
        short = replace(request, sampling=how, max_tokens=16, stop=("\n",), logprobs=False)
        (reply,) = await replies(self.backend, short)
        if isinstance(reply, VerifierError):
            raise reply
        return Verdict(self._scaled(number(reply, self.low, self.high)), usage=reply.usage)

    async def _valued(self, request: Request) -> Verdict:
        head = self.backend if self.head is None else self.head
        if not isinstance(head, Scoring):
            raise SpecError(
                'by = "values" needs a model with a value head, which the local engine reads',
                hint='by = "expected" or "written" asks the model that writes',
            )
        try:
            readings = await head.read(request, since=max(0, len(request.said) - 1))
        except BackendError as error:
            if error.fatal:
                raise
            raise failure(error, error.spent or FREE) from error
        values = readings[-1].values if readings else ()
        if len(values) <= self.label:
            raise SpecError(
                f"no label {self.label}: the model's value head says {len(values)} numbers",
                hint="`head` is the model that reads, where it is not the one that writes",
            )
        return Verdict(values[self.label], usage=cost(readings))

    def _scaled(self, score: float) -> float:
        return score if self.scale == "raw" else (score - self.low) / (self.high - self.low)
