"""What the particle methods share: particles, and how a tree tells again what they were."""

import math
import random
from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Coroutine, Hashable, Sequence
from contextlib import suppress
from operator import attrgetter
from typing import Literal, NamedTuple, TypeAlias

from pydantic import Field

from branchwise.core.grow import spread
from branchwise.core.node import Node
from branchwise.core.types import Expand
from branchwise.search.resampling import log_mean
from branchwise.search.search import Search


class Particle(NamedTuple):
    """A node and its weight; a finished node may be several particles.

    Args:
        node: where the particle stands.
        log_weight: the logarithm of its weight.
    """

    node: Node
    log_weight: float

    @property
    def weight(self) -> float:
        """The weight itself."""
        return math.exp(self.log_weight)


Generation: TypeAlias = list[Particle]
"""The particles after one step of all of them; those of weight 0 are left out."""


class ParticleSearch(Search):
    """A search by n weighted particles.

    It keeps nothing but the tree: which particles there were is told again by running it once more
    over the tree that it grew, from the root's first child on. Children that failed, or that never
    came, are particles of weight 0; an order of which nothing came at all ends the search. Copies
    are particles like all others, also where `unique` hides them: they are a part of the sample.

    Args:
        n: how many particles.
        seed: of the resampling and of the final draw.
        final: which finished particle answers.
    """

    n: int = Field(default=16, ge=1)
    seed: int = 0
    final: Literal["draw", "heaviest", "vote", "pick"] = "draw"

    @abstractmethod
    async def run(self, root: Node, expand: Expand, trace: list[Generation]) -> None:
        """Grow the tree and append the particles to `trace`, generation by generation."""

    async def grow(self, root: Node, expand: Expand) -> None:
        """Run it and keep the tree."""
        with suppress(Ended):
            await self.run(root, heard(expand), [])

    def trace(self, root: Node) -> list[Generation]:
        """The generations that the tree holds in whole."""
        trace: list[Generation] = []
        replay(lambda expand: self.run(root, expand, trace))
        return trace

    def particles(self, root: Node) -> Generation:
        """The particles of the last generation, with weights that sum to 1."""
        last = (self.trace(root) or [[]])[-1]
        total = log_mean([particle.log_weight for particle in last], 1)
        return [Particle(node, log_weight - total) for node, log_weight in last]

    def answer(self, root: Node) -> Node:
        """The final particle; what the pick chooses where it shall, or where none has finished."""
        trace = self.trace(root) if self.final != "pick" else []
        ended = [particle for particle in (trace or [[]])[-1] if particle.node.finished]
        if not ended:
            return self.pick(root)
        if self.final == "draw":
            return self.drawn(ended, len(trace)).node
        if self.final == "vote":
            said = [particle for particle in ended if particle.node.state.answer is not None]
            ended = heaviest(said or ended, lambda node: node.state.answer)
        return heaviest(ended, lambda node: node)[0].node

    def drawn(self, generation: Generation, number: int) -> Particle:
        """One particle of the generation of this number, drawn by weight."""
        draws = random.Random(f"{self.seed}/{number}/final")  # noqa: S311  (no secret)
        return draws.choices(generation, weights(generation))[0]


def weights(generation: Generation) -> list[float]:
    """The weights, the largest being 1, so that none overflows."""
    top = max((particle.log_weight for particle in generation), default=0.0)
    return [math.exp(particle.log_weight - top) for particle in generation]


def heaviest(generation: Generation, key: Callable[[Node], Hashable]) -> Generation:
    """The particles with that key which together weigh the most; of equals, the first."""
    groups: dict[Hashable, Generation] = {}
    masses: dict[Hashable, float] = {}
    for particle, weight in zip(generation, weights(generation), strict=True):
        name = key(particle.node)
        groups.setdefault(name, []).append(particle)
        masses[name] = masses.get(name, 0.0) + weight
    return groups[max(masses, key=masses.__getitem__)]


async def move(
    generation: Generation, counts: Sequence[int], expand: Expand
) -> list[tuple[Particle, Node]]:
    """Let each particle go on, as often as it was drawn: to children of its own.

    Finished particles stay where they are.

    Returns:
        Each particle's ancestor and where it stands now, in the order of the ancestors.
    """
    drawn = list(zip(generation, counts, strict=True))
    open_ = [(u.node, count) for u, count in drawn if count and not u.node.done]
    families: dict[Node | None, list[Node]] = {}
    if open_:
        for child in await expand([node for node, _ in open_], [count for _, count in open_]):
            families.setdefault(child.parent, []).append(child)
    return [
        (u, v)
        for u, count in drawn
        for v in ([u.node] * count if u.node.done else families.get(u.node, []) if count else [])
    ]


def replay(search: Callable[[Expand], Coroutine[object, None, None]]) -> None:
    """Run a search over the tree that it grew: `expand` hands out the children that are there.

    It ends where the tree was cut: at the first order that was not carried out in whole, or of
    which nothing has arrived.

    Args:
        search: awaits nothing but the `expand` that it is given.

    Raises:
        RuntimeError: it awaited something else.
    """
    taken: dict[Node, int] = {}

    async def again(
        nodes: Sequence[Node], n: int | Sequence[int] = 1, *, by: str = "policy"
    ) -> list[Node]:
        del by  # the children are there, whoever proposed them
        children: list[Node] = []
        for node, width in zip(nodes, spread(nodes, n), strict=True):
            first = taken.get(node, 0)
            taken[node] = first + width
            if taken[node] > node.promised:
                raise Ended
            children += _new(node, first, taken[node])
        if not any(map(_arrived, children)):
            raise Ended
        return [child for child in children if child.failure is None]

    running = search(again)
    try:
        running.send(None)
    except (StopIteration, Ended):
        return
    running.close()
    raise RuntimeError("a search that is replayed awaits `expand` and nothing else")


class Ended(Exception):
    """Nothing came of an order."""


def heard(expand: Expand) -> Expand:
    """Hear of an order what its replay will: all that is in the tree; nothing ends the search."""

    async def hearing(
        nodes: Sequence[Node], n: int | Sequence[int] = 1, *, by: str = "policy"
    ) -> list[Node]:
        before = [node.promised for node in nodes]
        await expand(nodes, n, by=by)
        children = [
            child
            for node, first in zip(nodes, before, strict=True)
            for child in _new(node, first, node.promised)
        ]
        if not children:
            raise Ended
        return [child for child in children if child.failure is None]

    return hearing


def _new(node: Node, first: int, last: int) -> Sequence[Node]:
    """The children with these indices that are there."""
    begin, end = (bisect_left(node.children, i, key=attrgetter("index")) for i in (first, last))
    return node.children[begin:end]


def _arrived(child: Node) -> bool:
    """Whether a child failed or was judged; what a cut left unjudged has not arrived."""
    return child.failure is not None or child.score > -math.inf or bool(child.verdicts)
