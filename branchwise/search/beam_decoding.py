"""Beam search over tokens as decoders do it: finished texts leave the beam for a pool."""

import random
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from branchwise.core.node import Node
from branchwise.core.types import Expand
from branchwise.search.card import Card
from branchwise.search.noise import gumbel
from branchwise.search.pruning import Pruning
from branchwise.search.search import Search


class Level(NamedTuple):
    """The beam after a level: the texts that go on, and the best finished ones so far."""

    running: list[Node]
    pool: list[Node]


class BeamDecoding(Search):
    """The beam search of decoders: keep the b best texts that go on, and the b best finished ones.

        B ← {root};  F ← {}
        while B is not empty and may still improve F:
            C ← the children of B, ordered by their scores s
            F ← the b best of F and those among the b best of C that are done, by s(y) / lp(y)
            B ← the b best of C that are not done

        power:  lp(y) = |y|^α            gnmt:  lp(y) = ((5 + |y|) / 6)^α        (|y| in tokens)

    s is meant to be a sum of log-probabilities: the scores of `Likelihood(alpha=0)`. With
    `NextToken` as the policy, it is `generate` of transformers, token for token. What is cut at the
    horizon counts as done, as there. The canonical beam search is `early_stopping="never"` with
    `length_penalty=0`; transformers' defaults are the ones here.

    The search ends when the pool holds b texts and

        early_stopping = true:     at once
        early_stopping = false:    max_B s(y) / lp(y) is not above the worst of the pool
        early_stopping = "never":  the same, and with α > 0 not before all beams are done

    With `temperature` τ > 0 it is beam sampling: 2b candidates are drawn without replacement from
    softmax(s / τ) of all children instead of taken from the best one down; then `fanout` should be
    the size of the vocabulary.

    Copies of a child are one text: only the oldest is a candidate.

    Source: Graves 2012; Wu et al. 2016, §7 (gnmt); `generate` of transformers 5 (pool, stopping
    rules, beam sampling). It does not backtrack: what has left the beam never comes back.

    Args:
        width: b.
        fanout: children of each text; None takes b + 1, which misses nothing where one token ends
            the text. One more is needed for each further such token.
        length_penalty: α. Above 0 favours long texts.
        penalty: `power` or `gnmt`.
        early_stopping: true, false or "never".
        temperature: τ; 0 takes the best.
        pruning: what drops candidates that are far behind; None drops none.
        seed: of beam sampling.
        pick: chooses the answer where no text was done before the search was cut short.

    Example:
        >>> BeamDecoding(width=4, early_stopping="never", length_penalty=0).children
        5
    """

    kind: Literal["beam-decoding"] = "beam-decoding"
    card: ClassVar[Card] = Card(
        structure="token",
        signals="log-probabilities of the next tokens",
        paper="Graves 2012; Wu et al. 2016, §7",
        oracle="`generate` of transformers, token for token; enumeration",
        test="search/test_token_level.py::test_beam_decoding_is_that_of_transformers",
    )
    width: int = Field(default=4, ge=1)
    fanout: int | None = Field(default=None, ge=1)
    length_penalty: float = 1.0
    penalty: Literal["power", "gnmt"] = "power"
    early_stopping: bool | Literal["never"] = False
    temperature: float = Field(default=0.0, ge=0)
    pruning: Pruning | None = None
    seed: int = 0

    @property
    def children(self) -> int:
        """How many children each text gets."""
        return self.width + 1 if self.fanout is None else self.fanout

    async def grow(self, root: Node, expand: Expand) -> None:
        """Grow level by level."""
        level, depth = Level([root], []), 0
        while level.running:
            level = self._next(level, await expand(level.running, self.children), depth)
            depth += 1

    def answer(self, root: Node) -> Node:
        """The best of the pool; what the pick chooses where nothing is done yet."""
        pool = self.pool(root)
        return pool[0] if pool else self.pick(root)

    def pool(self, root: Node) -> list[Node]:
        """The finished texts that the search kept, the best one first: it is repeated on its tree.

        Args:
            root: a tree that `grow` has grown, cut anywhere.
        """
        level, depth = Level([root], []), 0
        while level.running:
            children = [c for v in level.running for c in v.children if c.failure is None]
            level = self._next(level, children, depth)
            depth += 1
        return level.pool

    def normalised(self, node: Node) -> float:
        """s(y) / lp(y)."""
        tokens = sum(len(step.tokens) or 1 for step in node.steps)
        size = tokens if self.penalty == "power" else (5 + tokens) / 6
        return node.score / size**self.length_penalty

    def _next(self, level: Level, children: list[Node], depth: int) -> Level:
        candidates = self._chosen(_ordered(_texts(children), _score), depth)
        pool = level.pool + [v for v in candidates[: self.width] if v.done]
        pool = _ordered(pool, self.normalised)[: self.width]
        running = _ordered((v for v in candidates if not v.done), _score)[: self.width]
        return Level(running if self._may_improve(running, pool) else [], pool)

    def _chosen(self, candidates: list[Node], depth: int) -> list[Node]:
        if self.pruning is not None:
            candidates = self.pruning(candidates)
        if not self.temperature:
            return candidates
        # The largest of scores with Gumbel noise on them are a sample without replacement.
        rng = random.Random(f"{self.seed}/{depth}")  # noqa: S311  (a sample, not a secret)
        noisy = {v: v.score / self.temperature + gumbel(rng) for v in candidates}
        return _ordered(candidates, noisy.__getitem__)[: 2 * self.width]

    def _may_improve(self, running: list[Node], pool: list[Node]) -> bool:
        if len(pool) < self.width or not running:
            return True
        if self.early_stopping is True:
            return False
        if self.early_stopping == "never" and self.length_penalty > 0:
            return True
        return self.normalised(running[0]) > self.normalised(pool[-1])


def _texts(children: Sequence[Node]) -> Iterable[Node]:
    """The children without copies of their siblings."""
    texts: dict[Hashable, Node] = {}
    for c in children:
        said = None if c.step is None else c.step.tokens or c.step.text
        texts.setdefault((c.parent, said), c)
    return texts.values()


def _ordered(nodes: Iterable[Node], key: Callable[[Node], float]) -> list[Node]:
    """From the largest down; the first of equals first."""
    return sorted(nodes, key=lambda v: -key(v))


def _score(node: Node) -> float:
    return node.score
