"""Several verifiers as one score."""

from typing import Literal

from pydantic import Field

from branchwise.core.config import Config
from branchwise.core.errors import VerifierError, suggestion
from branchwise.core.node import Node


class Blend(Config):
    """A score of a node as the weighted sum of what several verifiers say of it.

    With log-probabilities and penalties it is a log-linear model of the answer, as the noisy
    channel's: a vote weighted by `exp` then adds up their product.

    Args:
        of: verifiers by name, with their weights.

    Example:
        >>> from branchwise import Node, State, Task, Verdict
        >>> node = Node(Task("?"), State())
        >>> node.judged(("likelihood", "arithmetic"), (Verdict(-0.5), Verdict(-1.0)))
        >>> Blend(of={"likelihood": 1.0, "arithmetic": 2.0})(node)
        -2.5
    """

    kind: Literal["blend"] = "blend"
    of: dict[str, float] = Field(min_length=1)

    def __call__(self, node: Node) -> float:
        """The weighted sum at the node.

        Raises:
            VerifierError: one of the verifiers has not judged the node.
        """
        verdicts = node.verdicts
        for name in self.of:
            if name not in verdicts:
                raise VerifierError(f"no verdict of {name!r}{suggestion(name, list(verdicts))}")
        return sum(weight * verdicts[name].score for name, weight in self.of.items())
