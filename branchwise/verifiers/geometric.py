"""Several verifiers as one score, by their product."""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from branchwise.core.config import Config
from branchwise.core.errors import VerifierError, suggestion
from branchwise.core.node import Node


class Geometric(Config):
    """A score of a node as the weighted geometric mean of what several verifiers say of it.

        s = (Π_i s_i^w_i)^(1 / Σ_i w_i)

    One verifier that says 0 is enough for a score of 0, unlike in the arithmetic mean of `Blend`.
    RAP's reward r_useful^α · r_conf^(1-α) has the weights α and 1 - α.

    Source: Hao et al. 2023 (RAP), §3.2.

    Args:
        of: verifiers by name, with their weights.

    Raises:
        pydantic.ValidationError: a weight is negative, or all of them are 0.

    Example:
        >>> from branchwise import Node, State, Task, Verdict
        >>> node = Node(Task("?"), State())
        >>> node.judged(("useful", "confidence"), (Verdict(0.5), Verdict(0.125)))
        >>> Geometric(of={"useful": 0.5, "confidence": 0.5})(node)
        0.25
    """

    kind: Literal["geometric"] = "geometric"
    of: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(min_length=1)

    @model_validator(mode="after")
    def _weighs(self) -> Self:
        if not sum(self.of.values()):
            raise ValueError("one of the weights has to be above 0")
        return self

    def __call__(self, node: Node) -> float:
        """The mean at the node.

        Raises:
            VerifierError: one of the verifiers has not judged the node, or gave less than 0.
        """
        verdicts, logs = node.verdicts, 0.0
        for name, weight in self.of.items():
            if name not in verdicts:
                raise VerifierError(f"no verdict of {name!r}{suggestion(name, list(verdicts))}")
            score = verdicts[name].score
            if score < 0:
                raise VerifierError(
                    f"{name!r} gave {score}; a geometric mean is one of numbers of 0 or more",
                    hint="for log-probabilities take `blend`, which adds",
                )
            if weight:
                logs += weight * (math.log(score) if score else -math.inf)
        return math.exp(logs / sum(self.of.values()))
