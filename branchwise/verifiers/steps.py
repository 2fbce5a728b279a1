"""Which steps a text consists of, for verifiers that look at each."""

from __future__ import annotations

from typing import NamedTuple

from branchwise.core.node import Node


class Parts(NamedTuple):
    """The steps of the text that ends at a node.

    Args:
        before: those that were said above the node.
        own: those of the node itself.
    """

    before: tuple[str, ...]
    own: tuple[str, ...]


def split(text: str, separator: str) -> tuple[str, ...]:
    r"""A text in steps, each with the separators that end it; together they are the text.

    What is blank is no step: it belongs to the step before it, or at the beginning to the first.

    Args:
        text: any.
        separator: what ends a step, such as a blank line; where it is empty the text is one step.

    Example:
        >>> split("a\n\nb\n\n\nc", "\n\n")
        ('a\n\n', 'b\n\n\n', 'c')
    """
    steps: list[str] = []
    pieces = text.split(separator) if separator else [text]
    ended = [*(piece + separator for piece in pieces[:-1]), pieces[-1]]
    for piece in ended:
        # White space at the beginning of a piece is the rest of a longer gap between steps.
        gap = len(piece) - len(piece.lstrip())
        if steps:
            steps[-1] += piece[:gap]
            piece = piece[gap:]  # noqa: PLW2901  (what is left of it)
        if not piece:
            continue
        if steps and not steps[-1].strip():
            steps[-1] += piece
        else:
            steps.append(piece)
    return tuple(steps)


def parts(node: Node, separator: str) -> Parts:
    """The steps of the draft that ends at a node: those above it, and its own.

    Each node's text is divided by itself, so that a step search and whole answers are judged alike.

    Args:
        node: whose text.
        separator: what ends a step.
    """
    said = [split(step.text, separator) for step in node.steps]
    return Parts(tuple(piece for pieces in said[:-1] for piece in pieces), said[-1] if said else ())
