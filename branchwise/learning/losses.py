"""What a verifier is trained to do: say of each step whether it is good, and of two answers which.

Each loss takes logits, one for each step, from whatever has made them: a head on states that are
kept, or a model that is tuned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from branchwise.core.config import Config
from branchwise.learning.labels import On

Whole: TypeAlias = Literal["last", "mean"]
_Weight: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, as losses see it.

    Args:
        problem: what names its problem.
        right: whether it is the target.
        targets: what each of its steps should be given, in [0, 1].
    """

    problem: str
    right: bool
    targets: tuple[float, ...]


@dataclass(frozen=True)
class Batch:
    """Some answers as tensors; their steps stand one after the other.

    Args:
        targets: of the steps.
        weights: of the steps in the pointwise loss; 0 where a step counts for nothing.
        answers: for each step the number of its answer.
        last: for each answer the place of its last step.
        pairs: a right and a wrong answer of the same problem, of shape (pairs, 2).
        shares: what each pair counts; all pairs of a problem together count 1.
    """

    targets: Tensor
    weights: Tensor
    answers: Tensor
    last: Tensor
    pairs: Tensor
    shares: Tensor


def batched(answers: Sequence[Answer], on: On = "steps", balance: float | None = None) -> Batch:
    """The tensors of some answers.

    Args:
        answers: which; pairs are made of those that are here.
        on: whether all steps have a target, or the last one alone.
        balance: the share of good steps in all the data, where good and bad steps together shall
            count the same; None counts each step once.
    """
    counts = torch.tensor([len(answer.targets) for answer in answers])
    targets = torch.tensor([t for answer in answers for t in answer.targets], dtype=torch.float32)
    last = counts.cumsum(0) - 1
    weights = torch.ones_like(targets)
    if balance is not None:
        weights = targets / (2 * balance) + (1 - targets) / (2 * (1 - balance))
    if on == "last":
        kept = torch.zeros_like(weights)
        kept[last] = 1
        weights = weights * kept
    kinds: dict[str, tuple[list[int], list[int]]] = {}
    for place, answer in enumerate(answers):
        kinds.setdefault(answer.problem, ([], []))[not answer.right].append(place)
    pairs: list[tuple[int, int]] = []
    shares: list[float] = []
    for right, wrong in kinds.values():
        own = [(one, other) for one in right for other in wrong]
        pairs += own
        shares += [1 / len(own) for _ in own]
    return Batch(
        targets,
        weights,
        torch.arange(len(answers)).repeat_interleave(counts),
        last,
        torch.tensor(pairs, dtype=torch.long).reshape(-1, 2),
        torch.tensor(shares, dtype=torch.float32),
    )


def pointwise(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """The cross-entropy of the targets, hard or soft, under σ(logits): the weighted mean.

    Args:
        logits: of steps.
        targets: in [0, 1].
        weights: what each step counts.
    """
    targets, weights = targets.to(logits.dtype), weights.to(logits.dtype)
    each = binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (weights * each).sum() / weights.sum().clamp_min(1e-12)


def pairwise(logits: Tensor, pairs: Tensor, shares: Tensor) -> Tensor:
    """How surprising it is, in the model of Bradley and Terry, that the first of each pair wins.

        -Σ share · log σ(logit of the first - logit of the second) / Σ share

    Args:
        logits: of answers.
        pairs: the better and the worse answer, of shape (pairs, 2).
        shares: what each pair counts.
    """
    if not len(pairs):
        return logits.new_zeros(())
    ahead = logits[pairs[:, 0]] - logits[pairs[:, 1]]
    return (shares * softplus(-ahead)).sum() / shares.sum()


def whole(logits: Tensor, batch: Batch, how: Whole) -> Tensor:
    """One logit for each answer: that of its last step, or the mean of all."""
    if how == "last":
        return logits[batch.last]
    sums = logits.new_zeros(len(batch.last)).index_add(0, batch.answers, logits)
    return sums / torch.bincount(batch.answers, minlength=len(batch.last))


class Objective(Config):
    """A weighted sum of the two losses.

    Args:
        pointwise: the weight of the cross-entropy of steps.
        pairwise: the weight of the comparison of right with wrong answers of the same problem.
        pairs_on: what stands for an answer in a pair: its last step, or the mean of its steps.
    """

    pointwise: _Weight = 1.0
    pairwise: _Weight = 0.0
    pairs_on: Whole = "last"

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """The loss of these logits of a batch's steps."""
        loss = logits.new_zeros(())
        if self.pointwise:
            loss = loss + self.pointwise * pointwise(logits, batch.targets, batch.weights)
        if self.pairwise:
            answers = whole(logits, batch, self.pairs_on)
            loss = loss + self.pairwise * pairwise(answers, batch.pairs, batch.shares)
        return loss
