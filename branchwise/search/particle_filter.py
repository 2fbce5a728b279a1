"""Particle filtering by a process reward model."""

import math
from typing import ClassVar, Literal

from pydantic import Field

from branchwise.core.node import Node
from branchwise.search.card import Card
from branchwise.search.resampling import Resampler
from branchwise.search.smc import Sequential

_EDGE = 1e-7  # what keeps the odds of a reward of 0 or 1 finite, as in the released code


class ParticleFilter(Sequential):
    """Resample n partial answers at each step by what a process reward model says of them.

        v^i ~ g(· | x),   i = 1..n
        while some v^i is not done:
            W^i ∝ w(r(v^i))^(1/τ)
            draw n ancestors by W;  each that is not done goes on to a child of its own

    With the weight r the target is p(y) ∏_t r(y_≤t): each reward is the likelihood of "right so
    far" in a state-space model. With the odds it is p(y) ∏_t r/(1-r). Both multiply what the model
    said at every step, where twisted SMC (`smc`) divides by what it said before and so has the
    target p(y) φ(y), whatever it said on the way. Finished particles are weighed again by their
    last reward at each step that others still take.

    Source: Puri et al. 2025, §3 ("A Probabilistic Inference Approach to Inference-Time Scaling of
    LLMs using Particle-Based Monte Carlo Methods").

    Args:
        n: how many particles.
        weight: w: the `odds` r/(1-r), a softmax of the logit (the authors' code, its_hub), the
            `score` r itself (the likelihood), for scores in [0, 1]; or `exp`, a softmax of scores
            of any size. Odds take scores beyond 1e-7 and 1 - 1e-7 for these.
        temperature: τ; high values make the particles more equal.
        threshold: resample only where the effective sample size is below this share of n; weights
            multiply up until then. None resamples at each step, as published.
        resampler: how offspring are drawn; see `offspring`.
        final: what answers: the `pick` from the whole tree, or of the finished particles one drawn
            by weight (`draw`), the `heaviest`, or the heaviest of the answer with the most weight
            (`vote`).
        seed: of the resampling and of the final draw.

    Example:
        >>> ParticleFilter(n=8).resampler
        'multinomial'
    """

    kind: Literal["particle-filter"] = "particle-filter"
    card: ClassVar[Card] = Card(
        structure="step",
        signals="a score for each step, in [0, 1]",
        paper="Puri et al. 2025, §3",
        oracle="enumeration of the target",
        test="search/test_particle_filter.py::test_the_particles_follow_the_target",
    )
    resampler: Resampler = "multinomial"
    threshold: float | None = Field(default=None, ge=0, le=1)
    final: Literal["draw", "heaviest", "vote", "pick"] = "pick"
    weight: Literal["odds", "score", "exp"] = "odds"
    temperature: float = Field(default=1.0, gt=0)

    def log_increment(self, root: Node, u: Node, v: Node) -> float:  # noqa: ARG002  (of v alone)
        """The logarithm of w(r)^(1/τ)."""
        if v.score == -math.inf:
            return -math.inf
        match self.weight:
            case "odds":
                reward = min(max(v.score, _EDGE), 1 - _EDGE)
                log_weight = math.log(reward) - math.log1p(-reward)
            case "score":
                log_weight = math.log(v.score) if v.score > 0 else -math.inf
            case "exp":
                log_weight = v.score
        return log_weight / self.temperature
