"""Fewer than a whole beam, where the best candidates are far ahead."""

import math

from pydantic import Field

from branchwise.core.config import Config
from branchwise.core.node import Node


class Pruning(Config):
    """Drop candidates of a beam that are far worse than the best one.

    With s(c) the score of a candidate, a log-probability, and w(c) that of its last step alone,
    c is dropped where

        relative:        exp s(c) ≤ relative · max exp s
        absolute:        s(c) ≤ max s - absolute
        relative_local:  exp w(c) ≤ relative_local · max exp w
        per_parent:      so many candidates of the same parent are better than c

    On log-probabilities `relative` = ρ is `absolute` = -ln ρ. The best candidate always stays.

    Source: Freitag and Al-Onaizan 2017, §3.

    Args:
        relative: a share of the best candidate's probability; 0 is off.
        absolute: a distance from the best score; None is off.
        relative_local: a share of the most probable last step; 0 is off.
        per_parent: how many candidates of one parent may stay; None is off.

    Example:
        >>> Pruning(relative=0.6, per_parent=3).absolute is None
        True
    """

    relative: float = Field(default=0.0, ge=0, lt=1)
    absolute: float | None = Field(default=None, gt=0)
    relative_local: float = Field(default=0.0, ge=0, lt=1)
    per_parent: int | None = Field(default=None, ge=1)

    def __call__(self, candidates: list[Node]) -> list[Node]:
        """The candidates that stay, in their order, which is from the best one down."""
        if not candidates:
            return []
        best = max(c.score for c in candidates)
        last = max(map(_last, candidates))
        kept: list[Node] = []
        siblings: dict[Node | None, int] = {}
        for c in candidates:
            rank = siblings[c.parent] = siblings.get(c.parent, 0) + 1
            far = (
                c.score - best <= _log(self.relative)
                or (self.absolute is not None and c.score <= best - self.absolute)
                or _last(c) - last <= _log(self.relative_local)
                or (self.per_parent is not None and rank > self.per_parent)
            )
            if not far or c is candidates[0]:
                kept.append(c)
        return kept


def _last(node: Node) -> float:
    """w: what the last step adds to the score."""
    parent = node.parent
    return node.score - (0.0 if parent is None or parent.parent is None else parent.score)


def _log(share: float) -> float:
    return math.log(share) if share else -math.inf
