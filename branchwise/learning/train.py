"""Training a value head on the kept states of a frozen model."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Self, TypeAlias, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from branchwise.core.errors import SpecError
from branchwise.learning.labels import Label, Labelled, On
from branchwise.learning.losses import Answer, Batch, Objective, batched
from branchwise.verifiers.aggregate import How
from branchwise.verifiers.head import put

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[np.floating]

_STILL = 1e-6
"""A parameter that an iteration has changed by less has arrived."""
_SAME = 1e-6
"""Numbers whose deviation is a smaller part of their mean are the same but for rounding."""
Watch: TypeAlias = Callable[["Epoch"], None]
_Told: TypeAlias = tuple[int, float, float, bool]


class Recipe(Objective):
    """What holds for all ways of training a verifier.

    Args:
        pointwise: the weight of the cross-entropy of steps.
        pairwise: the weight of the comparison of right with wrong answers of the same problem.
        pairs_on: what stands for an answer in a pair: its last step, or the mean of its steps.
        label: what steps are given: `hard` or `soft` labels, or the `outcome` of their answer.
        on: whether all steps of an answer count, or its last one alone.
        balance: whether good and bad steps count the same in all, however many there are of each.
        epochs: the most passes through the data.
        held_out: the share of problems that are held out: they calibrate what was trained and are
            what the report is about.
        calibration: `platt` fits a slope and a bias on the held-out steps, `temperature` a slope.
        how: how the scores of several steps become one.
        seed: of the split, of the order and of what begins with random numbers.
        keep: seconds between two checkpoints.
    """

    label: Label = "hard"
    on: On = "steps"
    balance: bool = False
    epochs: int = Field(default=200, ge=1)
    held_out: float = Field(default=0.2, gt=0, lt=1)
    calibration: Literal["platt", "temperature", "none"] = "platt"
    how: How = "last"
    seed: int = 0
    keep: float = Field(default=10.0, ge=0)

    @model_validator(mode="after")
    def _learns(self) -> Self:
        if not self.pointwise and not self.pairwise:
            raise ValueError("one of `pointwise` and `pairwise` has to be above 0")
        return self


class Training(Recipe):
    """How a head is trained; `Recipe` has the other fields.

        minimise  pointwise · CE + pairwise · BT + l2/2 · |W|²

    W are the weights of all layers, on standardised states; biases are free. L-BFGS on all the data
    at once goes on to the optimum, so the held-out problems have no say in it: `l2` alone decides
    how closely a head follows the data. For a linear head there is one optimum; with a hidden
    layer, the one that is reached from where the seed begins. An epoch is an iteration.

    Args:
        hidden: units of the hidden layer; 0 is a linear head.
        l2: the weight of the penalty.
    """

    hidden: int = Field(default=0, ge=0)
    l2: float = Field(default=0.1, ge=0)


class Epoch(NamedTuple):
    """What a pass through the data came to.

    Args:
        number: from 1.
        train: the loss on the training problems, without the penalty.
        held_out: the loss on the held-out problems.
        best: whether it is the best so far: the last one that is was kept.
    """

    number: int
    train: float
    held_out: float
    best: bool


@dataclass(frozen=True)
class Data:
    """Answers with the states after their steps.

    Args:
        rows: as they were labelled.
        answers: as losses see them.
        states: of all steps, those of an answer one after the other.
    """

    rows: Sequence[Labelled]
    answers: Sequence[Answer]
    states: Tensor

    def __len__(self) -> int:
        return len(self.answers)

    @property
    def starts(self) -> list[int]:
        """Where the steps of each answer begin; and the end of the last."""
        starts = [0]
        for answer in self.answers:
            starts.append(starts[-1] + len(answer.targets))
        return starts

    @property
    def problems(self) -> dict[str, list[int]]:
        """The places of the answers to each problem."""
        places: dict[str, list[int]] = {}
        for place, answer in enumerate(self.answers):
            places.setdefault(answer.problem, []).append(place)
        return places

    def of(self, problems: set[str]) -> Data:
        """The answers to these problems."""
        starts = self.starts
        kept = [i for i, answer in enumerate(self.answers) if answer.problem in problems]
        places = [place for i in kept for place in range(starts[i], starts[i + 1])]
        return Data(
            [self.rows[i] for i in kept],
            [self.answers[i] for i in kept],
            self.states[torch.tensor(places, dtype=torch.long)],
        )


def joined(rows: Sequence[Labelled], states: Sequence[Array], label: Label) -> Data:
    """The data that labelled answers and the states of their steps are.

    Two answers are to the same problem where their prompts are the same, whatever their problems
    are called: so no problem is in training and held out at once.

    Raises:
        SpecError: an answer lacks these labels, or the states are of several sizes or no finite
            numbers.
    """
    answers: list[Answer] = []
    for row, own in zip(rows, states, strict=True):
        try:
            targets = row.targets(label)
        except ValueError as error:
            raise SpecError(f"label = {label}: problem {row.problem!r}: {error}") from error
        if len(own) != len(row.steps):
            raise SpecError(f"problem {row.problem!r}: {len(row.steps)} steps, {len(own)} states")
        answers.append(Answer(row.prompt, row.right, targets))
    if len({own.shape[1] for own in states}) > 1:
        raise SpecError("the states are of several sizes, so not of one model")
    flat = torch.cat([torch.from_numpy(own) for own in states]).float()
    if not flat.isfinite().all():
        raise SpecError("the model's states hold what is no finite number", hint="try float32")
    return Data(rows, answers, flat)


def shuffled(data: Data, seed: str) -> list[str]:
    """The problems, in an order that only the seed decides."""
    problems = sorted(data.problems)
    random.Random(seed).shuffle(problems)  # noqa: S311  (nothing secret)
    return problems


def split(data: Data, share: float, seed: int) -> tuple[Data, Data]:
    """The training part and the held-out part: no problem is in both.

    Raises:
        SpecError: there are too few problems for two parts.
    """
    problems = shuffled(data, f"split {seed}")
    out = round(share * len(problems))
    if not 2 <= out < len(problems):  # noqa: PLR2004  (each half calibrates the other)
        raise SpecError(
            f"{len(problems)} problems cannot be split with held_out = {share}",
            hint="two have to be held out, and one to train on; label more problems",
        )
    return data.of(set(problems[out:])), data.of(set(problems[:out]))


class Model(nn.Module):
    """The head while it is trained: standardises, then one layer or two.

    Args:
        states: that it standardises by.
        hidden: units of the hidden layer; 0 for none.
        seed: of the hidden layer.
    """

    def __init__(self, states: Tensor, hidden: int, seed: int) -> None:
        super().__init__()
        scale, mean = torch.std_mean(states, dim=0, correction=0)
        # What differs by rounding alone is the same everywhere.
        self.mean = mean
        self.scale = torch.where(scale > _SAME * mean.abs(), scale, torch.ones_like(scale))
        sizes = [states.shape[1], *([hidden] if hidden else []), 1]
        self.sizes = tuple(sizes)
        self.layers = nn.ModuleList(
            nn.Linear(inner, outer, dtype=states.dtype) for inner, outer in pairwise(sizes)
        )
        chance = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in self.linear:
                layer.weight.zero_()
                layer.bias.zero_()
            if hidden:
                nn.init.kaiming_uniform_(
                    self.linear[0].weight, nonlinearity="relu", generator=chance
                )
                nn.init.normal_(self.linear[1].weight, std=hidden**-0.5, generator=chance)

    @property
    def linear(self) -> list[nn.Linear]:
        """The layers."""
        return cast("list[nn.Linear]", list(self.layers))

    def standardised(self, states: Tensor) -> Tensor:
        """The states as the layers take them."""
        return (states.to(self.mean.dtype) - self.mean) / self.scale

    def forward(self, states: Tensor) -> Tensor:
        """A logit for each state."""
        return self.of(self.standardised(states))

    def of(self, standardised: Tensor) -> Tensor:
        """A logit for each state that is standardised already."""
        here = standardised
        for number, layer in enumerate(self.layers):
            here = layer(torch.relu(here) if number else here)
        return here[:, 0]

    def penalty(self) -> Tensor:
        """Half the sum of the squares of the weights."""
        return torch.stack([layer.weight.square().sum() for layer in self.linear]).sum() / 2

    def tensors(self) -> dict[str, Array]:
        """What a `Head` holds."""
        named = {"mean": self.mean, "scale": self.scale}
        for number, layer in enumerate(self.linear):
            named |= {f"weight.{number}": layer.weight, f"bias.{number}": layer.bias}
        return {name: tensor.detach().numpy().copy() for name, tensor in named.items()}


class Fit:
    """One training, which can be left and taken up again.

    Args:
        train: the training part.
        held_out: what the loss is also told of.
        how: how it is trained.
        checkpoint: where it is kept while it goes on; None keeps nothing.
        watch: told each epoch.

    Raises:
        SpecError: there is nothing to learn from.
    """

    def __init__(
        self,
        train: Data,
        held_out: Data,
        how: Training,
        checkpoint: Path | None = None,
        watch: Watch = lambda _epoch: None,
    ) -> None:
        self.how, self.train, self.held_out = how, train, held_out
        self.checkpoint, self.watch = checkpoint, watch
        teaches(train.answers, how)
        balance = share(train.answers, how.on) if how.balance else None
        self.model = Model(train.states.double(), how.hidden, how.seed)
        self.history: list[Epoch] = []
        # Standardised once: this takes longer than a linear head does.
        self._parts = [
            (self.model.standardised(part.states), batched(part.answers, how.on, balance))
            for part in (train, held_out)
        ]
        self._optimiser = torch.optim.LBFGS(
            self.model.parameters(),
            max_iter=1,
            max_eval=50,  # of the line search, which else gives up where it has not begun
            tolerance_grad=1e-9,
            tolerance_change=0,
            line_search_fn="strong_wolfe",
        )

    def run(self) -> Model:
        """Train until nothing moves any more.

        Raises:
            SpecError: the training came to what is no number, or cannot be kept.
        """
        moved = math.inf
        key = self._key() if self.checkpoint else ""
        if self.checkpoint and (earlier := taken_up(self.checkpoint, key)):
            self.model.load_state_dict(cast("dict[str, Tensor]", earlier["model"]))
            self._optimiser.load_state_dict(cast("dict[str, object]", earlier["optimiser"]))
            self.history = [Epoch(*epoch) for epoch in cast("list[_Told]", earlier["history"])]
            moved = cast("float", earlier["moved"])
        kept = time.monotonic()
        while len(self.history) < self.how.epochs and moved >= _STILL:
            before = self._parameters()
            self._step(*self._parts[0])
            moved = (self._parameters() - before).abs().max().item()
            train, held_out = (self._loss(states, batch) for states, batch in self._parts)
            if not (math.isfinite(train) and math.isfinite(held_out) and math.isfinite(moved)):
                raise SpecError("the training came to what is no number", hint="raise `l2`")
            self.history.append(Epoch(len(self.history) + 1, train, held_out, best=True))
            if self.checkpoint and time.monotonic() - kept >= self.how.keep:
                state = {
                    "model": self.model.state_dict(),
                    "optimiser": self._optimiser.state_dict(),
                    "history": [tuple(epoch) for epoch in self.history],
                    "moved": moved,
                }
                keep(self.checkpoint, key, state)
                kept = time.monotonic()
            self.watch(self.history[-1])
        return self.model

    def _parameters(self) -> Tensor:
        return nn.utils.parameters_to_vector(self.model.parameters()).detach()

    @torch.no_grad()
    def _loss(self, states: Tensor, batch: Batch) -> float:
        return float(self.how(self.model.of(states), batch))

    def _step(self, states: Tensor, batch: Batch) -> None:
        def closure() -> Tensor:
            self._optimiser.zero_grad()
            loss = self.how(self.model.of(states), batch) + self.how.l2 * self.model.penalty()
            loss.backward()
            return loss

        self._optimiser.step(cast("Callable[[], float]", closure))  # its type knows no tensors

    def _key(self) -> str:
        """A digest of all that decides what comes out."""
        told = self.how.model_dump(mode="json", exclude={"keep", "how", "calibration"})
        digest = blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=16)
        for data in (self.train, self.held_out):
            digest.update(repr([dataclasses.astuple(answer) for answer in data.answers]).encode())
            digest.update(data.states.numpy().data)
        return digest.hexdigest()


def keep(checkpoint: Path, key: str, state: Mapping[str, object]) -> None:
    """Write down how far a training is.

    Args:
        checkpoint: where.
        key: of all that decides what comes out.
        state: what it goes on from.

    Raises:
        SpecError: it cannot be written.
    """
    buffer = BytesIO()
    torch.save({"key": key, **state}, buffer)
    put(checkpoint, buffer.getvalue())


def taken_up(checkpoint: Path, key: str) -> Mapping[str, object] | None:
    """What an earlier training of the same key has kept; None where there is no such thing."""
    try:
        kept = torch.load(checkpoint, weights_only=True, map_location="cpu")
    except Exception:  # noqa: BLE001  (missing, or damaged in any way: it begins anew)
        return None
    return kept if isinstance(kept, dict) and kept.get("key") == key else None


def teaches(answers: Sequence[Answer], how: Recipe) -> None:
    """Check that there is something to learn.

    Raises:
        SpecError: all steps that count are good, or none is; or there are no pairs.
    """
    if how.pointwise:
        share(answers, how.on)
    elif not len(batched(answers).pairs):
        raise SpecError("there is no problem with right and wrong answers to train on")


def share(answers: Sequence[Answer], on: On) -> float:
    """The share of good steps among those that count.

    Raises:
        SpecError: all of them are good, or none.
    """
    counted = [answer.targets if on == "steps" else answer.targets[-1:] for answer in answers]
    targets = [target for own in counted for target in own]
    share = sum(targets) / len(targets)
    if not 0 < share < 1:
        raise SpecError(f"the share of good steps is {share:g}: there is nothing to tell apart")
    return share
