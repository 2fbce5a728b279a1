"""From labels to a head: the whole way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from anyio import to_thread

from branchwise.core.errors import SpecError
from branchwise.core.types import Backend, Scoring
from branchwise.learning.labels import Labels, together
from branchwise.learning.report import Findings, examined, numbers, page, shown
from branchwise.learning.states import Cache, embed
from branchwise.learning.train import Data, Epoch, Fit, Training, Watch, joined, split
from branchwise.verifiers.aggregate import How
from branchwise.verifiers.head import About, Head, Reads, head_of, put

if TYPE_CHECKING:
    from branchwise.learning.states import Array

STATES = "states"
CHECKPOINT = "checkpoint.pt"
Count: TypeAlias = Callable[[int, int], None]


class Opens(Protocol):
    """The spec of a model."""

    def open(self) -> AbstractAsyncContextManager[Backend]:
        """The live model."""
        ...


async def data_of(
    several: Sequence[Labels],
    spec: Opens,
    how: Training,
    watch: Count = lambda _done, _all: None,
) -> tuple[Data, tuple[str, Reads]]:
    """The labelled answers with their states; the name of the model, and how it was asked.

    The states are kept in `states/` beside the labels.

    Args:
        several: what to learn from.
        spec: of the model.
        how: which labels.
        watch: told how many answers are done, and of how many.

    Raises:
        SpecError: labels of different kinds, a model that does not read, an answer that does not
            fit it, or states that cannot be kept.
    """
    whole = together(several)
    rows = whole.rows
    states: list[Array] = []
    async with spec.open() as model:
        if not isinstance(model, Scoring):
            raise SpecError(
                f"{model.name!r} has no states to show", hint="the local engine reads: kind = hf"
            )
        for labels in several:
            cache = await to_thread.run_sync(Cache, labels.folder / STATES)
            count = partial(_count, watch, len(states), len(rows))
            states += await embed(labels.rows, labels.reads, model, cache, count)
        return joined(rows, states, how.label), (model.name, whole.reads)


def _count(watch: Count, before: int, everything: int, done: int, _: int) -> None:
    watch(before + done, everything)


@dataclass(frozen=True)
class Learnt:
    """What a training has come to.

    Args:
        head: the head.
        found: what the held-out problems say of it.
        history: its epochs.
    """

    head: Head
    found: Findings
    history: Sequence[Epoch]

    @property
    def how(self) -> How:
        """How the scores of several steps become one."""
        return self.head.about.how


def learn(
    data: Data,
    about: tuple[str, Reads],
    how: Training,
    out: Path,
    watch: Watch = lambda _epoch: None,
) -> Learnt:
    """Train a head, find out what it is worth, and write both down.

    `out` then holds `head.json`, `head.safetensors`, `report.md` and `calibration.svg`. A training
    that was ended half-way goes on from its `checkpoint.pt`.

    Args:
        data: the labelled answers with their states.
        about: the name of the model that the states are from, and how it was asked.
        how: how to train.
        out: where to.
        watch: told each epoch.

    Raises:
        SpecError: there is too little to learn from, or it cannot be written.
    """
    name, reads = about
    train, held_out = split(data, how.held_out, how.seed)
    fit = Fit(train, held_out, how, out / CHECKPOINT, watch)
    model = fit.run()
    found = examined(model, held_out, how)
    card = About(
        **reads.model_dump(),
        model=name,
        sizes=model.sizes,
        calibration=found.calibration,
        how=how.how,
        report=numbers(found, how, fit.history, train, held_out),
    )
    head = head_of(card, model.tensors())
    head.save(out)
    text = page(f"A value head of {name}", found, how, fit.history, (train, held_out))
    put(out / "report.md", text.encode())
    put(out / "calibration.svg", found.svg.encode())
    (out / CHECKPOINT).unlink(missing_ok=True)
    return Learnt(head, found, fit.history)


class Finished(Protocol):
    """A training that is over."""

    @property
    def found(self) -> Findings:
        """What the held-out problems say."""
        ...

    @property
    def history(self) -> Sequence[Epoch]:
        """Its epochs."""
        ...

    @property
    def how(self) -> How:
        """How the scores of several steps become one."""
        ...


def summary(learnt: Finished) -> list[str]:
    """What a training has come to, in a few lines."""
    found, how = learnt.found, learnt.how
    ranking = found.answers[how]
    steps = "not defined" if found.auc is None else f"{found.auc:.3f}"
    picks = (
        f"the best answer is right in {shown(ranking.picked)}, a blind pick in {found.chance:.3f}, "
        f"one of them in {found.oracle:.3f}"
    )
    lines = [
        f"{len(learnt.history)} epochs; on the held-out problems:",
        f"AUC of steps {steps}; of answers to the same problem, by {how}, {shown(ranking.pairs)}",
        f"ECE {found.ece[0]:.3f}, {found.ece[1]:.3f} after calibration",
        picks,
    ]
    if found.auc is not None and found.auc <= 0.5:  # noqa: PLR2004  (a coin's)
        lines.append("that is no better than chance: more problems, or a larger `l2`, may help")
    return lines
