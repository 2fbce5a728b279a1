"""A recorded search: the same tree of widths and lengths for everyone who grows it."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

TEMPERATURE = 0.2  # of the shares: REBASE's own (Wu et al. 2024)


@dataclass(frozen=True, slots=True)
class Grown:
    """Children of one node.

    Args:
        parent: the index of the node among the rows of the step before; 0 at the first step.
        width: how many children.
        new: tokens of each child.
    """

    parent: int
    width: int
    new: int


def plan(problem: int, rows: int, steps: int, longest: int) -> list[list[Grown]]:
    """The steps of a REBASE search whose scores and lengths were drawn beforehand.

    Every step has the same number of rows; each node gets its share of them by the softmax of the
    scores (Wu et al. 2024, §3), and its children have a length of their own.

    Args:
        problem: whose scores.
        rows: of each step.
        steps: how many.
        longest: the most tokens of a child; the shortest has a quarter.
    """
    draw = random.Random(problem)
    grown = [[Grown(0, rows, longest)]]
    for _ in range(steps - 1):
        widths = shares([draw.random() for _ in range(rows)], rows)
        grown.append(
            [
                Grown(parent, width, draw.randint(longest // 4, longest))
                for parent, width in enumerate(widths)
                if width
            ]
        )
    return grown


def shares(scores: Sequence[float], total: int) -> list[int]:
    """Divide rows among nodes in proportion to the softmax of their scores.

    Args:
        scores: of the nodes.
        total: how many rows there are.
    """
    weights = [math.exp(score / TEMPERATURE) for score in scores]
    exact = [weight / sum(weights) * total for weight in weights]
    widths = [math.floor(share) for share in exact]
    left = sorted(range(len(exact)), key=lambda i: widths[i] - exact[i])
    for i in left[: total - sum(widths)]:
        widths[i] += 1
    return widths


def needed(steps: Sequence[Sequence[Grown]], prompt: int) -> int:
    """Tokens that must go through a model once each to grow a tree.

    They are the tokens of the trie of all texts: the prompt, and each child's own. The last token
    of a child counts only where the child has children: nobody asks what follows it otherwise.

    Args:
        steps: of the tree.
        prompt: tokens of the question.
    """
    written = sum(one.width * (one.new - 1) for step in steps for one in step)
    continued = sum(len(step) for step in steps[1:])
    return prompt + written + continued


def sampled(steps: Sequence[Sequence[Grown]]) -> int:
    """Tokens that are drawn to grow a tree."""
    return sum(one.width * one.new for step in steps for one in step)


def chain(steps: Sequence[Sequence[Grown]]) -> int:
    """Tokens that must be drawn one after the other at the least: the longest path's."""
    lengths = [0]
    for step in steps:
        lengths = [lengths[one.parent] + one.new for one in step for _ in range(one.width)]
    return max(lengths)
