"""Several probabilities as one, as if each were evidence of its own."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from branchwise.core.config import Config
from branchwise.core.errors import VerifierError, suggestion
from branchwise.core.node import Node
from branchwise.verifiers.calibration import sigmoid


class Product(Config):
    """A score of a node as the product of experts: of the probabilities that verifiers give it.

        s = Π_i p_i^w_i / (Π_i p_i^w_i + Π_i (1 - p_i)^w_i) = σ(Σ_i w_i logit p_i)

    The second form, a sum of log-odds, is how it is worked out. With weights of 1 it is Bayes' rule
    for experts whose errors are independent: agreement makes surer than each is alone. With weights
    that add up to 1 it is the logarithmic opinion pool, as sure as its members. Where the base rate
    is not 1/2, each p_i holds it already, and it must count once:

        s = σ(logit π + Σ_i w_i (logit p_i - logit π))

    A probability of 0 or 1 settles the score; of both at once nothing follows, which is an error.
    The bare product Π p_i^w_i ranks as `Geometric` does, and log-probabilities add up in `Blend`.

    Source: Hinton 2002, for two outcomes; Genest and Zidek 1986, §3.

    Args:
        of: verifiers by name, with their weights.
        prior: π, the base rate of what is right.

    Raises:
        pydantic.ValidationError: a weight is negative or not finite, or the prior is not in (0, 1).

    Example:
        >>> from branchwise import Node, State, Task, Verdict
        >>> node = Node(Task("?"), State())
        >>> node.judged(("judge", "head"), (Verdict(0.75), Verdict(0.75)))
        >>> round(Product(of={"judge": 1.0, "head": 1.0})(node), 9)
        0.9
    """

    kind: Literal["product"] = "product"
    of: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(min_length=1)
    prior: float = Field(default=0.5, gt=0, lt=1)

    def __call__(self, node: Node) -> float:
        """The probability of the node.

        Raises:
            VerifierError: one of the verifiers has not judged the node, or gave no probability, or
                they contradict each other with certainty.
        """
        verdicts = node.verdicts
        base = _log_odds(self.prior)
        terms = [base]
        for name, weight in self.of.items():
            if name not in verdicts:
                raise VerifierError(f"no verdict of {name!r}{suggestion(name, list(verdicts))}")
            score = verdicts[name].score
            if not 0 <= score <= 1:
                raise VerifierError(
                    f"{name!r} gave {score}, which is no probability",
                    hint="a verifier of kind `calibrated` makes one of it",
                )
            if weight:
                terms.append(weight * (_log_odds(score) - base))
        if math.inf in terms and -math.inf in terms:
            raise VerifierError("one verifier is certain of what another one holds impossible")
        certain = [term for term in terms if math.isinf(term)]
        return sigmoid(certain[0] if certain else math.fsum(terms))


def _log_odds(p: float) -> float:
    if p in {0.0, 1.0}:
        return math.inf if p else -math.inf
    return math.log(p) - math.log1p(-p)
