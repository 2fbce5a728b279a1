"""Twisted sequential Monte Carlo."""

import math
import random
from abc import abstractmethod
from typing import ClassVar, Literal

from pydantic import Field

from branchwise.core.node import Node
from branchwise.core.types import Expand
from branchwise.search.card import Card
from branchwise.search.replay import Generation, Particle, ParticleSearch, move, weights
from branchwise.search.resampling import Resampler, ess, log_mean, offspring


class Sequential(ParticleSearch):
    """Move all particles, weigh them, resample them where they have become unequal.

    Args:
        resampler: how offspring are drawn.
        threshold: the share of n below which an effective sample size is too small; None: always.
    """

    resampler: Resampler = "stratified"
    threshold: float | None = Field(default=0.5, ge=0, le=1)

    @abstractmethod
    def log_increment(self, root: Node, u: Node, v: Node) -> float:
        """What the weight of a particle that has come from u to v is multiplied by; v may be u."""

    async def run(self, root: Node, expand: Expand, trace: list[Generation]) -> None:
        """Move, weigh, resample, until all particles are done."""
        start = Particle(root, 0.0)
        moved = [(start, v) for v in await expand([root], self.n)]
        while True:
            weighed = [
                Particle(v, u.log_weight + self.log_increment(root, u.node, v)) for u, v in moved
            ]
            particles = [particle for particle in weighed if particle.log_weight > -math.inf]
            trace.append(particles)
            if all(particle.node.done for particle in particles):
                return
            counts = [1] * len(particles)
            if self.threshold is None or ess(weights(particles)) < self.threshold * self.n:
                draws = random.Random(f"{self.seed}/{len(trace)}")  # noqa: S311  (no secret)
                counts = offspring(weights(particles), self.n, draws, self.resampler)
                mean = log_mean([particle.log_weight for particle in particles], self.n)
                particles = [Particle(particle.node, mean) for particle in particles]
            moved = await move(particles, counts, expand)


class SMC(Sequential):
    """Sample from the policy's distribution times a potential, by particles and twists.

        σ(y) = p(y) φ(y) / Z,   ψ_t(y_≤t) ≈ E_p[φ(y) | y_≤t],   ψ_0 = 1,  ψ_T = φ

        y_1^i ~ q,   i = 1..n
        repeat:
            w^i ← w^i · p(y_t^i | y_<t^i) ψ_t(y_≤t^i) / (q(y_t^i | y_<t^i) ψ_{t-1}(y_<t^i))
            if (Σ w)² / Σ w² < threshold · n:  resample by w;  w^i ← mean(w)
            y_{t+1}^i ~ q for each i that is not finished
        Ẑ = mean(w)

    A node's score is log ψ_t: a twist where the answer is partial, log φ where it is finished.
    Ẑ is an unbiased estimate of Z for any scores; the better the twists, the less it varies. A
    score of -inf fails the branch, which is what φ = 0 asks for: a branch that failed, for whatever
    reason, counts as one of weight 0, so that Ẑ estimates the share that does not fail.

    Source: Zhao et al. 2024, §2-3 (twisted SMC); Lew et al. 2023 (SMC steering of language models);
    Naesseth et al. 2019 (a tutorial).

    Args:
        n: how many particles.
        target: p: the `model` at temperature 1, so that p/q corrects for the sampling by the
            log-probabilities of the steps (1 where a step has none), or the `policy` itself, so
            that p/q = 1.
        threshold: resample where the effective sample size is below this share of n: 0 never does,
            None does at each step.
        resampler: how offspring are drawn; see `offspring`.
        final: which finished particle answers: one drawn by weight (`draw`), the `heaviest`, the
            heaviest of those whose answer has the most weight (`vote`), or what the `pick` chooses
            from the whole tree. Where no particle has finished, the pick decides.
        seed: of the resampling and of the final draw. Runs are independent where both this seed
            and that of `solve` differ.

    Example:
        >>> from branchwise import Node, State, Task
        >>> SMC(n=4).evidence(Node(Task("?"), State()))  # log Ẑ before the first step
        0.0
    """

    kind: Literal["smc"] = "smc"
    card: ClassVar[Card] = Card(
        structure="step",
        signals="log-potentials of partial and finished answers; log-probabilities",
        paper="Zhao et al. 2024, §2-3; Lew et al. 2023",
        oracle="enumeration: E[Ẑ] = Z over all random choices",
        test="search/test_smc.py::test_the_evidence_is_unbiased_over_all_random_choices",
    )
    target: Literal["model", "policy"] = "model"

    def log_increment(self, root: Node, u: Node, v: Node) -> float:
        """The logarithm of p ψ_t / (q ψ_{t-1})."""
        return twisted(root, u, v, self.target)

    def evidence(self, root: Node) -> float:
        """The logarithm of Ẑ; of a search that was cut, of the last generation that is whole."""
        trace = self.trace(root)
        return log_mean([p.log_weight for p in trace[-1]], self.n) if trace else 0.0


def twisted(root: Node, u: Node, v: Node, target: Literal["model", "policy"]) -> float:
    """The logarithm of p(v|u) ψ(v) / (q(v|u) ψ(u)); 0 where the particle stays, being finished."""
    if v is u:
        return 0.0
    ratio, step = 0.0, v.step
    if target == "model" and step is not None and step.logprob is not None and step.proposals:
        ratio = step.logprob - math.fsum(step.proposals)
    return ratio + v.score - (0.0 if u is root else u.score)
