"""What is believed of an arm whose scores have been seen: conjugate priors, and draws from them."""

import math
import random
import sys
from typing import Literal

from pydantic import Field

from branchwise.core.config import Config


class Belief:
    """What an arm has brought: how many scores, their mean, and the sum of squares about it."""

    __slots__ = ("mean", "n", "squares")

    def __init__(self) -> None:
        self.n, self.mean, self.squares = 0, 0.0, 0.0

    def see(self, score: float) -> None:
        """Take in one more score (Welford 1962)."""
        self.n += 1
        gap = score - self.mean
        self.mean += gap / self.n
        self.squares += gap * (score - self.mean)


class GaussianPrior(Config):
    """Scores are normal; a priori their mean and variance are normal-inverse-χ².

    Source: Murphy 2023 ("Probabilistic Machine Learning: Advanced Topics"), §3.4.3.3; the numbers
    of TreeQuest 0.3.3.

    Args:
        m: the mean that is expected.
        kappa: how many scores that expectation is worth.
        tau2: the variance that is expected.
        nu: how many scores that expectation is worth.

    Example:
        >>> GaussianPrior().posterior(Belief())
        (0.0, 1.0, 1.0, 0.1)
    """

    kind: Literal["gaussian"] = "gaussian"
    m: float = 0.0
    kappa: float = Field(default=1.0, gt=0)
    nu: float = Field(default=1.0, gt=0)
    tau2: float = Field(default=0.1, gt=0)

    def posterior(self, seen: Belief) -> tuple[float, float, float, float]:
        """`m`, `kappa`, `nu` and `tau2` after what has been seen."""
        kappa, nu, gap = self.kappa + seen.n, self.nu + seen.n, seen.mean - self.m
        squares = self.nu * self.tau2 + seen.squares + self.kappa * seen.n / kappa * gap * gap
        return self.m + seen.n / kappa * gap, kappa, nu, squares / nu

    def draw(self, seen: Belief, draws: random.Random) -> float:
        """A mean from the posterior."""
        m, kappa, nu, tau2 = self.posterior(seen)
        chi2 = max(draws.gammavariate(nu / 2, 2.0), sys.float_info.min)
        return draws.normalvariate(m, math.sqrt(nu * tau2 / chi2 / kappa))


class BetaPrior(Config):
    """A score in [0, 1] is a share of a success; a priori the chance of success is Beta.

    Args:
        a: how many successes the prior is worth; a half and a half are Jeffreys' prior.
        b: how many failures it is worth.

    Example:
        >>> BetaPrior().posterior(Belief())
        (0.5, 0.5)
    """

    kind: Literal["beta"] = "beta"
    a: float = Field(default=0.5, gt=0)
    b: float = Field(default=0.5, gt=0)

    def posterior(self, seen: Belief) -> tuple[float, float]:
        """`a` and `b` after what has been seen."""
        return self.a + seen.n * seen.mean, self.b + seen.n * (1 - seen.mean)

    def draw(self, seen: Belief, draws: random.Random) -> float:
        """A chance of success from the posterior."""
        return draws.betavariate(*self.posterior(seen))
