"""Cheap verifiers first, expensive ones for what they let pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, Literal, Self

from pydantic import Field, SkipValidation, model_validator

from branchwise.core.config import Config
from branchwise.core.errors import BackendError, VerifierError
from branchwise.core.judging import judged, with_cost
from branchwise.core.node import Node
from branchwise.core.types import FREE, Usage, Verdict, Verifier


class Stage(Config):
    """A verifier, and which of the nodes it judges go on to the next stage.

    Args:
        verifier: what judges.
        at_least: nodes with this score or more go on.
        top: so many of the nodes go on, the best ones.
        share: this share of the nodes goes on, the best ones, rounded up.

    Raises:
        pydantic.ValidationError: several rules are given.
    """

    verifier: SkipValidation[Verifier] = Field(exclude=True, repr=False)
    at_least: float | None = Field(default=None, allow_inf_nan=False)
    top: int | None = Field(default=None, ge=1)
    share: float | None = Field(default=None, gt=0, le=1)

    @property
    def rules(self) -> int:
        """How many rules it has."""
        return sum(rule is not None for rule in (self.at_least, self.top, self.share))

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.rules > 1:
            raise ValueError("give one of `at_least`, `top` and `share`")
        return self

    def passed(self, scores: Sequence[float]) -> list[int]:
        """The places of the scores that go on, in order; of equal ones the first.

        Example:
            >>> Stage(verifier=None, share=0.5).passed([0.2, 0.9, 0.9])
            [1, 2]
        """
        if self.at_least is not None:
            return [place for place, score in enumerate(scores) if score >= self.at_least]
        count = self.top
        if self.share is not None:  # as it is written: 0.07 of 100 are 7, not 8
            count = math.ceil(Fraction(str(self.share)) * len(scores))
        best = sorted(range(len(scores)), key=lambda place: -scores[place])
        return sorted(best[:count])


class Cascade(Config):
    """Judges with one verifier after the other; each one sees only what those before it let pass.

    A node that comes to the last stage has that stage's score, as it is. One that the k-th of K
    stages stops has a score below all of these, and below those that got farther:

        s = floor - (K - k) + 1/2 + s_k / (4 (1 + |s_k|))

    It rises with s_k, the stage's own score, and stages share no score. The verdict's `detail`
    begins with the stage that decided (`2 of 3`). An error of any stage is an error of the node:
    what could not be judged neither passes nor takes a place from others.

    `top` and `share` compare the nodes that are judged together. In a search these are the children
    that one expansion gives one node: a single child always passes. `at_least` knows no others.

    Source: the attentional cascade of Viola and Jones 2001, §4.

    Args:
        stages: at least two; all but the last with a rule.
        floor: the least score that the last stage gives. A lower one is an error.

    Raises:
        pydantic.ValidationError: a stage lacks its rule, or the last one has any.

    Example:
        >>> from branchwise import Function, Node, State, Task, run_sync
        >>> short = Stage(verifier=Function(lambda node: -len(node.state.answer)), at_least=-2)
        >>> right = Stage(verifier=Function(lambda node: node.state.answer == "42"))
        >>> nodes = [Node(Task("?"), State(answer=said)) for said in ("42", "24", "forty-two")]
        >>> [v.score for v in run_sync(Cascade(stages=(short, right)).score, nodes)]
        [1.0, 0.0, -0.725]
    """

    kind: Literal["cascade"] = "cascade"
    stages: Annotated[tuple[Stage, ...], Field(min_length=2)]
    floor: float = Field(default=0.0, ge=-1e9, le=1e9)

    @model_validator(mode="after")
    def _ruled(self) -> Self:
        if any(stage.rules == 0 for stage in self.stages[:-1]):
            raise ValueError("each stage but the last needs `at_least`, `top` or `share`")
        if self.stages[-1].rules:
            raise ValueError("after the last stage nothing follows: it takes no rule")
        return self

    @property
    def inner(self) -> tuple[Verifier, ...]:
        """The verifiers of the stages, in order."""
        return tuple(stage.verifier for stage in self.stages)

    def around(self, inner: Sequence[Verifier]) -> Self:
        """The same cascade of other verifiers, such as the opened ones.

        Args:
            inner: one for each of `inner`, in order.
        """
        stages = tuple(
            stage.model_copy(update={"verifier": verifier})
            for stage, verifier in zip(self.stages, inner, strict=True)
        )
        return self.model_copy(update={"stages": stages})

    async def score(self, nodes: Sequence[Node]) -> Sequence[Verdict | VerifierError]:
        """One verdict for each node; an error where a stage that it came to has none.

        Raises:
            BackendError: no later call can succeed either.
        """
        done: dict[int, Verdict | VerifierError] = {}
        paid: list[Usage] = [FREE] * len(nodes)
        left = list(range(len(nodes)))
        for number, stage in enumerate(self.stages, start=1):
            try:
                verdicts = await judged(stage.verifier, [nodes[place] for place in left])
            except BackendError as error:
                raise with_cost(error, sum(paid, FREE)) from error
            held: list[tuple[int, Verdict]] = []
            for place, verdict in zip(left, verdicts, strict=True):
                if isinstance(verdict, VerifierError):
                    paid[place] += verdict.spent or FREE
                    done[place] = self._error(number, str(verdict), paid[place])
                else:
                    paid[place] += verdict.usage
                    held.append((place, verdict))
            last = number == len(self.stages)
            goes = set() if last else set(stage.passed([verdict.score for _, verdict in held]))
            for rank, (place, verdict) in enumerate(held):
                if rank not in goes:
                    done[place] = self._verdict(number, verdict, paid[place])
            left = [place for rank, (place, _) in enumerate(held) if rank in goes]
        return [done[place] for place in range(len(nodes))]

    def _verdict(self, number: int, said: Verdict, paid: Usage) -> Verdict | VerifierError:
        below = len(self.stages) - number
        score, steps = said.score, said.steps
        if below:
            score, steps = self.floor - below + 0.5 + _squashed(score) / 4, ()
        elif score < self.floor:
            fault = f"the score {score:g} is below the floor, {self.floor:g}"
            return self._error(number, f"{fault} (set `floor` to the least that it gives)", paid)
        detail = f"{number} of {len(self.stages)}{': ' if said.detail else ''}{said.detail}"
        return Verdict(score, said.feedback, detail, paid, steps)

    def _error(self, number: int, fault: str, paid: Usage) -> VerifierError:
        return VerifierError(f"stage {number} of {len(self.stages)}: {fault}", spent=paid)


def _squashed(score: float) -> float:
    """A number in [-1, 1] that rises with the score."""
    return score / (1 + abs(score))
