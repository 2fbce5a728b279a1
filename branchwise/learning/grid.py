"""Which penalty and which hidden layer suit the data: cross-validation over problems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from statistics import fmean

from branchwise.core.errors import SpecError
from branchwise.learning.train import Data, Fit, Training, shuffled, split

L2 = (1e-3, 1e-2, 1e-1, 1.0)
HIDDEN = (0, 64)
FOLDS = 5


def searched(
    data: Data,
    how: Training,
    watch: Callable[[int, int], None] = lambda _done, _all: None,
    grid: Sequence[tuple[float, int]] = (*product(L2, HIDDEN),),
) -> Training:
    """The training with the penalty and the hidden layer that do best on problems left out.

    The held-out problems of the training to come have no say: the folds are made of the others.
    What counts is the mean loss over the folds; of equal ones, the first of the grid is taken.

    Args:
        data: the labelled answers with their states.
        how: everything else.
        watch: told how many trainings are done, and of how many.
        grid: pairs of `l2` and `hidden`.

    Raises:
        SpecError: there are too few problems.
    """
    train, _ = split(data, how.held_out, how.seed)
    problems = shuffled(train, f"folds {how.seed}")
    if len(problems) < FOLDS:
        raise SpecError(
            f"a search needs {FOLDS} problems to train on, and there are {len(problems)}"
        )
    folds = [set(problems[fold::FOLDS]) for fold in range(FOLDS)]
    parts = [(train.of(set(problems) - fold), train.of(fold)) for fold in folds]
    losses: dict[tuple[float, int], float] = {}
    watch(0, len(grid) * FOLDS)
    for l2, hidden in grid:
        one = how.model_copy(update={"l2": l2, "hidden": hidden})
        found: list[float] = []
        for inner, outer in parts:
            fit = Fit(inner, outer, one)
            fit.run()
            found.append(fit.history[-1].held_out)
            watch(len(losses) * FOLDS + len(found), len(grid) * FOLDS)
        losses[l2, hidden] = fmean(found)
    l2, hidden = min(losses, key=lambda pair: losses[pair])
    return how.model_copy(update={"l2": l2, "hidden": hidden})
