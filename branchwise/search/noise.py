"""Random numbers that searches perturb scores with."""

import math
import random


def gumbel(rng: random.Random) -> float:
    """A number of the standard Gumbel distribution."""
    return -math.log(rng.expovariate(1) or math.ulp(0))
