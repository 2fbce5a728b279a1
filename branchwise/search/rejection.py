"""Rejection sampling: draw until one is accepted."""

import math
import random
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field

from branchwise.core.node import Node
from branchwise.core.types import Expand
from branchwise.search.card import Card
from branchwise.search.rollout import follow
from branchwise.search.search import Search

Finite: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]


class Rejection(Search):
    """Draw answers until one is accepted; the first one accepted answers.

        repeat at most n times:
            y ~ g(· | x);  r ← v(x, y)
            accept y with probability exp(min(0, r - r*) / β);  β = 0: exactly if r ≥ r*

    With β = 0 and r* = 1 a verifier says yes or no: the answer has the law p(y | V = 1), and the
    tries are geometric. With β > 0 and r* no less than any score it is statistical rejection
    sampling: the law is p(y) · exp(v(x, y) / β) up to a factor, the optimum of reward under a KL
    penalty. Where no bound is known, r* is the largest of n scores (RSO), which makes this law an
    approximation and needs all n answers; with β = 0 it is then best-of-N.

    Where none is accepted the pick decides. Which answer is accepted does not depend on `batch`.

    Source: Welleck et al. 2024, §4.1 (sequence-level rejection); Liu et al. 2024 (RSO), algorithm
    1, of which this is one draw: there, accepted answers are taken out and more are drawn from the
    rest.

    Args:
        n: the most answers that are drawn.
        batch: how many are drawn at once: more waste at the end, less time.
        threshold: r*, or `largest`: the largest score among the n.
        beta: β; scores below the threshold still have a chance where it is not 0.
        seed: of the coins that accept.

    Example:
        >>> Rejection(n=32, batch=4).beta
        0.0
    """

    kind: Literal["rejection"] = "rejection"
    card: ClassVar[Card] = Card(
        structure="parallel",
        signals="a verdict or a score for each answer",
        paper="Welleck et al. 2024, §4.1; Liu et al. 2024 (RSO), algorithm 1",
        oracle="the exact laws of the answer and of the number of tries",
        test="search/test_rejection.py::test_the_accepted_answer_has_the_law_of_a_right_one",
    )
    n: int = Field(default=64, ge=1)
    batch: int = Field(default=8, ge=1)
    threshold: Finite | Literal["largest"] = 1.0
    beta: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    seed: int = 0

    async def grow(self, root: Node, expand: Expand) -> None:
        """Draw batch after batch until an answer is accepted."""
        top = self.threshold
        batch = self.n if top == "largest" else self.batch
        for drawn in range(0, self.n, batch):
            ends = await follow(await expand([root], min(batch, self.n - drawn)), expand)
            if top != "largest" and any(self.accepts(end, top) for end in ends):
                return

    def answer(self, root: Node) -> Node:
        """The first node accepted, in the order of drawing; where none is, what the pick chooses.

        A node that nobody has judged is not accepted.
        """
        nodes = [node for node in root.walk() if node.finished and node.score > -math.inf]
        top = self.threshold
        if top == "largest":
            top = max((node.score for node in nodes), default=0.0)
        accepted = (node for node in nodes if self.accepts(node, top))
        return next(accepted, None) or super().answer(root)

    def accepts(self, node: Node, top: float) -> bool:
        """Whether the node is accepted where r* is `top`: always the same for the same node."""
        if not node.finished or node.score == -math.inf or self.beta == 0:
            return node.finished and node.score >= top
        # The coin belongs to the node's place, so that it falls the same way whenever it is asked.
        coin = random.Random(f"{self.seed}/{node.path}").random()  # noqa: S311  (no secret)
        return coin < math.exp(min(0.0, node.score - top) / self.beta)
