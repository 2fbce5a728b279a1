"""Several verifiers as one, and how much they disagree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Literal, Self

from pydantic import Field, SkipValidation, model_validator

from branchwise.core.config import Config
from branchwise.core.errors import VerifierError, suggestion
from branchwise.core.judging import cost, judged, settled
from branchwise.core.node import Node
from branchwise.core.types import Verdict, Verifier


class Ensemble(Config):
    r"""Asks several verifiers about each node and makes one score of what they say.

        mean:      m - penalty · spread,  m = Σ_i w_i s_i / Σ_i w_i
        min:       min_i s_i
        median:    the middle score; the mean of both where there are two
        sum:       Σ_i w_i s_i
        majority:  1 where members with more than half of the weight say more than `above`, 1/2
                   where it is just half, else 0

    The spread is the standard deviation √(Σ w_i (s_i - m)² / Σ w_i) or its square. Of the three
    ways of Coste et al., `min` is worst-case optimisation; `mean` with a penalty on the variance is
    uncertainty-weighted optimisation, and without one it is the mean. With the standard deviation
    it is a lower confidence bound.

    The verdict's `detail` says what each member gave, after the standard deviation; with `majority`
    after the entropy of the vote in bits. Members are asked side by side. Their scores have to be
    on one scale: see `Calibrated`.

    Source: Coste et al. 2024, §3.

    Args:
        members: verifiers by name.
        how: how their scores become one.
        weights: w, by name, with `mean`, `sum` and `majority`; 1 for those that are not named. Only
            a `sum` takes negative ones.
        penalty: how much disagreement costs, with `mean`.
        spread: what measures it: `std` or `variance`.
        above: what a member has to exceed to vote yes, with `majority`.
        failed: what comes of a node that a member cannot judge: `strict` makes it an error that
            quotes the member, `skip` leaves the member out, unless all fail. A `sum` is strict.

    Raises:
        pydantic.ValidationError: there is no member, or a field does not fit `how`.

    Example:
        >>> from branchwise import Function, Node, State, Task, run_sync
        >>> members = {"a": Function(lambda _: 0.4), "b": Function(lambda _: 0.8)}
        >>> [verdict] = run_sync(Ensemble(members=members).score, [Node(Task("?"), State())])
        >>> round(verdict.score, 9), verdict.detail
        (0.6, 'std 0.2: a 0.4, b 0.8')
    """

    kind: Literal["ensemble"] = "ensemble"
    members: SkipValidation[Mapping[str, Verifier]] = Field(exclude=True, repr=False)
    how: Literal["mean", "min", "median", "majority", "sum"] = "mean"
    weights: dict[str, float] = Field(default_factory=dict)
    penalty: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    spread: Literal["std", "variance"] = "std"
    above: float = Field(default=0.5, allow_inf_nan=False)
    failed: Literal["strict", "skip"] = "strict"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.members:
            raise ValueError("an ensemble needs a member")
        for name, weight in self.weights.items():
            if name not in self.members:
                known = suggestion(name, list(self.members))
                raise ValueError(f"there is no member {name!r} for the weight{known}")
            if not math.isfinite(weight) or (weight < 0 and self.how != "sum"):
                raise ValueError(f"{weight} is no weight for {name!r} in a {self.how}")
        if self.weights and self.how in {"min", "median"}:
            raise ValueError(f"a {self.how} knows no weights")
        if self.how != "sum" and not any(map(self._weight, self.members)):
            raise ValueError("one of the weights has to be above 0")
        if self.penalty and self.how != "mean":
            raise ValueError(f"the penalty belongs to `mean`, not to `{self.how}`")
        if self.how == "sum" and self.failed == "skip":
            raise ValueError("a sum without one of its members is on another scale: use `mean`")
        return self

    @property
    def inner(self) -> tuple[Verifier, ...]:
        """The members, in order."""
        return tuple(self.members.values())

    def around(self, inner: Sequence[Verifier]) -> Self:
        """The same ensemble of other members, such as the opened ones.

        Args:
            inner: one for each of `inner`, in order.
        """
        return self.model_copy(update={"members": dict(zip(self.members, inner, strict=True))})

    async def score(self, nodes: Sequence[Node]) -> Sequence[Verdict | VerifierError]:
        """One verdict for each node; an error where a member has none and is not skipped.

        Raises:
            BackendError: no later call can succeed either.
        """
        columns = await settled(lambda member: judged(member, nodes), self.inner)
        return [self._combined(row) for row in zip(*columns, strict=True)]

    def _combined(self, row: Sequence[Verdict | VerifierError]) -> Verdict | VerifierError:
        usage = cost(row)
        scores: dict[str, float] = {}
        faults: dict[str, VerifierError] = {}
        for name, verdict in zip(self.members, row, strict=True):
            if isinstance(verdict, VerifierError):
                faults[name] = verdict
            else:
                scores[name] = verdict.score
        weight = sum(map(self._weight, scores))
        if faults and (self.failed == "strict" or not weight):
            told = "; ".join(f"{name}: {fault}" for name, fault in faults.items())
            return VerifierError(told, spent=usage)
        try:
            score, detail = self._vote(scores) if self.how == "majority" else self._joined(scores)
        except OverflowError:
            score, detail = math.inf, ""
        if not math.isfinite(score):
            return VerifierError(f"the {self.how} of {_shown(scores)} is too large", spent=usage)
        feedback = [v.feedback for v in row if isinstance(v, Verdict) and v.feedback]
        lost = "".join(f", {name} failed" for name in faults)
        return Verdict(score, "\n".join(feedback), f"{detail}{lost}", usage)

    def _joined(self, scores: Mapping[str, float]) -> tuple[float, str]:
        weights = {name: abs(self._weight(name)) for name in scores}
        total = math.fsum(weights.values()) or 1.0
        shares = {name: weight / total for name, weight in weights.items()}
        mean = math.fsum(share * scores[name] for name, share in shares.items())
        mean = min(max(mean, min(scores.values())), max(scores.values()))  # rounding: no 1 + 2e-16
        std = math.hypot(*(math.sqrt(s) * (scores[name] - mean) for name, s in shares.items()))
        match self.how:
            case "min":
                score = min(scores.values())
            case "median":
                score = median(scores.values())
            case "sum":
                score = math.fsum(self._weight(name) * s for name, s in scores.items())
            case _:
                score = mean - self.penalty * (std if self.spread == "std" else std * std)
        return score, f"std {std:.6g}: {_shown(scores)}"

    def _vote(self, scores: Mapping[str, float]) -> tuple[float, str]:
        yes = math.fsum(self._weight(name) for name, s in scores.items() if s > self.above)
        no = math.fsum(self._weight(name) for name, s in scores.items() if s <= self.above)
        shares = [votes / (yes + no) for votes in (yes, no) if votes]
        entropy = math.fsum(-share * math.log2(share) for share in shares)
        score = 0.5 if yes == no else float(yes > no)
        return score, f"entropy {abs(entropy):.6g}: {_shown(scores)}"

    def _weight(self, name: str) -> float:
        return self.weights.get(name, 1.0)


def _shown(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {score:.6g}" for name, score in scores.items())
