"""Particle Gibbs: sweeps of conditional SMC."""

import math
import random
from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from branchwise.core.node import Node
from branchwise.core.types import Expand
from branchwise.search.card import Card
from branchwise.search.replay import Generation, Particle, ParticleSearch, move, weights
from branchwise.search.resampling import offspring
from branchwise.search.smc import twisted


class ParticleGibbs(ParticleSearch):
    """Sample again and again from the target of twisted SMC, each time beside the last sample.

        y' ~ SMC with n particles
        repeat:
            particle 1 is y', step by step; particles 2..n are grown afresh:
                w^i as in SMC, the retained particle's too
                A^i ~ W for i = 2..n: the retained particle may have offspring besides itself
            y' ~ W of the last step

    A Markov chain whose samples have the target σ(y) = p(y) φ(y) / Z for any n ≥ 2, once they have
    it: more sweeps remove what n particles alone get wrong. Multinomial resampling at each step,
    as published; no ancestor sampling, which would need the model's probability of the rest of y'
    after every other particle.

    Source: Andrieu, Doucet and Holenstein 2010, §2.4.3 and §4.5; for language models Puri et al.
    2025.

    Args:
        n: how many particles, the retained one included.
        iterations: how many sweeps, the first of which is SMC.
        target: p, as in `SMC`.
        final: which finished particle of the last sweep answers, as in `SMC`; `draw` is the last
            sample of the chain.
        seed: of the resampling and of the draws.

    Example:
        >>> from branchwise import Node, State, Task
        >>> ParticleGibbs(n=4, iterations=8).chain(Node(Task("?"), State()))
        []
    """

    kind: Literal["particle-gibbs"] = "particle-gibbs"
    card: ClassVar[Card] = Card(
        structure="step",
        signals="log-potentials of partial and finished answers; log-probabilities",
        paper="Andrieu et al. 2010, §4.5; Puri et al. 2025",
        oracle="enumeration: the target is invariant under a sweep",
        test="search/test_particle_gibbs.py::test_a_sweep_leaves_the_target_invariant",
    )
    n: int = Field(default=8, ge=2)
    iterations: int = Field(default=4, ge=1)
    target: Literal["model", "policy"] = "model"

    async def run(self, root: Node, expand: Expand, trace: list[Generation]) -> None:
        """One sweep after the other; each appends its last particles."""
        retained: Sequence[Node] = ()
        for _ in range(self.iterations):
            particles = await self.sweep(root, expand, retained, len(trace))
            trace.append(particles)
            if particles:
                last = self.drawn(particles, len(trace)).node
                retained = last.lineage[len(root.lineage) :]

    async def sweep(
        self, root: Node, expand: Expand, retained: Sequence[Node], number: int
    ) -> Generation:
        """SMC given that one particle goes along the retained nodes; without any, plain SMC."""
        free = self.n - bool(retained)
        line = [root, *retained]
        moved = [(Particle(root, 0.0), v) for v in await expand([root], free)]
        t = 0
        while True:
            if retained:  # once it is finished, it stays where it is
                u, v = (line[min(step, len(retained))] for step in (t, t + 1))
                moved = [(Particle(u, 0.0), v), *moved]
            weighed = [Particle(v, twisted(root, u.node, v, self.target)) for u, v in moved]
            particles = [particle for particle in weighed if particle.log_weight > -math.inf]
            if all(particle.node.done for particle in particles):
                return particles
            draws = random.Random(f"{self.seed}/{number}/{t}")  # noqa: S311  (no secret)
            counts = offspring(weights(particles), free, draws, "multinomial")
            moved = await move(particles, counts, expand)
            t += 1

    def chain(self, root: Node) -> list[Node]:
        """The sample of each sweep, in order."""
        trace = enumerate(self.trace(root), 1)
        return [self.drawn(particles, number).node for number, particles in trace if particles]
