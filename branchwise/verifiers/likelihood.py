"""How probable the model itself finds what it said."""

import math
from collections.abc import Sequence
from typing import Literal

from branchwise.core.config import Config
from branchwise.core.errors import VerifierError
from branchwise.core.node import Node
from branchwise.core.types import Verdict


class Likelihood(Config):
    r"""The log-probability of all steps from the root to the node, over their length to a power.

        s(y) = Σ_t log p(y_t | x, y_<t) / lp(y),  |y| in tokens

        power:  lp(y) = |y|^α                  (`length_penalty` in the beam search of transformers)
        gnmt:   lp(y) = ((5 + |y|) / 6)^α                                    (Wu et al. 2016, §7)

    α = 0 is the sum, which favours short texts; with `power`, α = 1 is the mean of each token. With
    `worst` it is that of the least probable token, min_t log p(y_t | x, y_<t), whatever the
    length.

    Args:
        alpha: α, the length penalty's power.
        penalty: `power` or `gnmt`.
        worst: whether the least probable token counts instead of the sum.

    Example:
        >>> from branchwise import Node, State, Step, Task, run_sync
        >>> root = Node(Task("?"), State())
        >>> node = Node(root.task, State(), root, 0, Step("a b", tokens=(1, 2), logprob=-3.0))
        >>> run_sync(Likelihood().score, [node])[0].score
        -1.5
    """

    kind: Literal["likelihood"] = "likelihood"
    alpha: float = 1.0
    penalty: Literal["power", "gnmt"] = "power"
    worst: bool = False

    async def score(self, nodes: Sequence[Node]) -> Sequence[Verdict | VerifierError]:
        """One verdict for each node; an error where a step's log-probability is not known."""
        return [self._judge(node) for node in nodes]

    def _judge(self, node: Node) -> Verdict | VerifierError:
        total, length, least = 0.0, 0, 0.0
        for number, step in enumerate(node.steps, start=1):
            if step.logprob is None or not math.isfinite(step.logprob):
                return VerifierError(
                    f"step {number} has the log-probability {step.logprob}",
                    hint="ask for `logprobs` in the policy, of a backend that gives them",
                )
            tokens = len(step.tokens) or len(step.logprobs)
            if self.worst and step.text and not step.logprobs:
                return VerifierError(
                    f"step {number} does not say how probable each of its tokens was",
                    hint="ask for `logprobs` in the policy, of a backend that gives them",
                )
            if step.text and not tokens and self.alpha and not self.worst:
                return VerifierError(
                    f"step {number} does not say how many tokens it has",
                    hint="use alpha = 0, or a backend that gives tokens or their logprobs",
                )
            total += step.logprob
            length += tokens
            least = min((least, *step.logprobs))
        if self.worst:
            return Verdict(least)
        size = max(length, 1) if self.penalty == "power" else (5 + length) / 6
        return Verdict(total / size**self.alpha)
