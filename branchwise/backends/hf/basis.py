"""Which tokens a model's output matrix certifies (Finlayson et al. 2024).

A model with fewer hidden units than tokens cannot say every distribution, so it may give a token
probability because it has to and not because the truth does. Its loss is smallest where W'p = W'q,
q being what it says and p the truth. If the truth is nowhere more than σ times as probable as the
model says, σ = 1 / (1 - cutoff), a token may be left out only if a p with these properties has no
probability there: a linear program tells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.weak import WeakTensorKeyDictionary

from branchwise.core.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

    from scipy.optimize import OptimizeResult

# Below this the solver cannot tell a probability from none, so such tokens are never certified.
_TOLERANCE = 1e-9
# The program is about the most probable tokens. Of the others it only knows what they could do
# together at most, which certifies fewer tokens, and never a wrong one.
_HEAD = 4096
_INFEASIBLE = 2

# They are as large as the vocabulary is long, so they go with the model.
_bases: MutableMapping[torch.Tensor, dict[int, np.ndarray]] = WeakTensorKeyDictionary()


def certified(
    probs: torch.Tensor, asked: torch.Tensor, cutoff: float, embedding: torch.Tensor, size: int
) -> torch.Tensor:
    """Which of the tokens have probability under every truth that the model's output allows.

    Only `size` directions of the output matrix are looked at. Fewer directions certify fewer
    tokens, never a wrong one. A token with at least the probability `cutoff` is always certified.

    Args:
        probs: what the model says, shape (vocabulary,), double precision.
        asked: of which tokens to tell, shape (vocabulary,).
        cutoff: how far the model may be off, between 0 and 1.
        embedding: the output matrix, shape (vocabulary, hidden size).
        size: directions to look at.

    Raises:
        SpecError: scipy is not there.
    """
    p = probs.cpu().numpy()
    kept = (p >= cutoff) & asked.cpu().numpy()
    undecided = asked.cpu().numpy() & ~kept & (p > _TOLERANCE)
    undecided[np.argsort(-p, kind="stable")[_HEAD:]] = False
    if undecided.any():
        feasible = _truths(p, _basis(embedding, size), 1 / (1 - cutoff))
        while undecided.any():
            token = int(np.argmax(np.where(undecided, p, 0)))
            undecided[token] = False
            truth = feasible(token, undecided)
            if truth is None:
                kept[token] = True
            else:  # It does without all of these at once.
                undecided &= truth > 0
    return torch.from_numpy(kept).to(asked.device)


def solver() -> Callable[..., OptimizeResult]:
    """What solves the linear programs.

    Raises:
        SpecError: scipy is not there.
    """
    try:
        from scipy.optimize import linprog  # noqa: PLC0415  (only this adapter needs it)
    except ImportError as error:
        raise SpecError(
            "`basis_cutoff` needs scipy", hint="pip install 'branchwise[basis]'"
        ) from error
    return linprog


def _truths(
    p: np.ndarray, basis: np.ndarray, most: float
) -> Callable[[int, np.ndarray], np.ndarray | None]:
    """Gives a possible truth without a token, as multiples of `p`; None where there is none."""
    linprog = solver()
    head, tail = np.split(np.argsort(-p, kind="stable"), [_HEAD])
    centred = basis - p @ basis
    scale = np.abs(centred).max(0)
    rows = np.vstack([p, (centred / np.where(scale > 0, scale, 1)).T * p])
    # What the truth may take from the tail, or add to it, is anything between these.
    rest = rows[:, tail]
    least = np.minimum(-rest, (most - 1) * rest).sum(1)
    largest = np.maximum(-rest, (most - 1) * rest).sum(1)
    constraints = np.hstack([rows[:, head], np.eye(len(rows))])
    target = rows[:, head].sum(1)
    slack = np.column_stack([least, largest])

    def without(token: int, others: np.ndarray) -> np.ndarray | None:
        limits = np.column_stack([np.zeros(len(head)), np.full(len(head), most)])
        limits[head == token] = 0
        found = linprog(
            np.append(others[head].astype(float), np.zeros(len(rows))),
            A_eq=constraints,
            b_eq=target,
            bounds=np.vstack([limits, slack]),
            method="highs-ds",
            # Its look at the program before it begins takes longer than all that follows.
            options={"primal_feasibility_tolerance": _TOLERANCE, "presolve": False},
        )
        if found.status == _INFEASIBLE:
            return None
        truth = np.ones(len(p))
        truth[token] = 0
        if found.status == 0:  # Otherwise the solver gave up, and nothing is known of others.
            truth[head] = found.x[: len(head)]
        return truth

    return without


def _basis(embedding: torch.Tensor, size: int) -> np.ndarray:
    """The output matrix along its first right singular vectors, shape (vocabulary, size)."""
    known = _bases.get(embedding)
    if known is None:
        known = _bases[embedding] = {}
    if size not in known:
        matrix = embedding.detach().double()
        _, vectors = torch.linalg.eigh(matrix.T @ matrix)
        known[size] = (matrix @ vectors.flip(-1)[:, :size]).cpu().numpy()
    return known[size]
