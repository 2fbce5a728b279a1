"""The most probable text of all: depth-first branch and bound."""

from collections.abc import Hashable
from typing import ClassVar, Literal

from pydantic import Field

from branchwise.core.node import Node
from branchwise.core.types import Expand
from branchwise.search.card import Card
from branchwise.search.search import Search


class ExactSearch(Search):
    """Find the finished text with the highest score, and prove that there is no better one.

        best ← -∞
        search(v):  for each child c of v, from the highest score down, with s(c) > best:
                        if c is finished:  best ← s(c)
                        else:              search(c)

    Scores must not rise from a node to its children, and children must come in the order of their
    scores: then nothing below or after a node whose score is not above `best` can be better. That
    holds for `NextToken` with `Likelihood(alpha=0)`, not where scores are divided by the length.
    Children are asked for `fanout` at a time, while the last one was still above `best`; what it
    finds does not depend on `fanout`. With policies that draw their children it is a search that
    prunes, without the proof.

    The text that is found is often bad, and often empty: the mode of a model of language is not
    where its mass is. Texts that are cut at the horizon do not count as finished.

    Source: Stahlberg and Byrne 2019, algorithm 1 (without its bound from a beam).

    Args:
        fanout: how many children a node gets at a time.

    Example:
        >>> ExactSearch().kind
        'exact'
    """

    kind: Literal["exact"] = "exact"
    card: ClassVar[Card] = Card(
        structure="token",
        signals="log-probabilities of the next tokens",
        paper="Stahlberg and Byrne 2019, algorithm 1",
        oracle="enumeration of all texts",
        test="search/test_exact.py::test_it_finds_the_most_probable_text_of_all",
    )
    fanout: int = Field(default=8, ge=1)

    async def grow(self, root: Node, expand: Expand) -> None:
        """Grow depth first, until nothing is left that could be better."""
        best = float("-inf")
        stack = [(float("inf"), root)]  # with a bound of what children may still come
        said: dict[Node, set[Hashable]] = {}
        while stack:
            bound, v = stack.pop()
            if bound <= best:
                continue
            children = await expand([v], self.fanout)
            known = said.setdefault(v, set())
            new = {_step(c): c for c in reversed(children) if _step(c) not in known}
            known.update(new)
            best = max([best, *(c.score for c in children if c.finished)])
            if new and len(children) == self.fanout:
                stack.append((min(c.score for c in children), v))
            open_ = sorted((c for c in new.values() if not c.done), key=lambda c: c.score)
            stack += [(c.score, c) for c in open_]


def _step(node: Node) -> Hashable:
    """What was said, by its tokens where they are known: several tokens may have the same text."""
    step = node.step
    return None if step is None else step.tokens or step.text
