"""Minimum Bayes risk."""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

from branchwise.core.node import Node
from branchwise.search.best import best, candidates
from branchwise.search.card import Card
from branchwise.search.pick import Pick
from branchwise.search.utility import AnyUtility, Match
from branchwise.search.vote import Weight, weights


class MBR(Pick):
    """Pick the answer that is worth most if any of the others may be the right one.

        ŷ = argmax_{y'} Σ_{y ∈ evidence} w(y) · u(y', y)

    Every finished node is hypothesis and evidence, copies as often as they were drawn: that makes
    the sum an estimate of the expected utility under the model. Of equal sums the older node wins.
    Nodes that have nothing to compare (no answer, no behaviour) are neither.

    Source: Kumar and Byrne 2004; Eikema and Aziz 2022 (evidence by sampling); Bertsch et al. 2023
    (what else is a minimum Bayes risk); Jinnai et al. 2024 (`exp`: the model's own probabilities).

    Args:
        utility: u; `match` of answers is majority voting.
        weight: w: `equal` counts, `score` weighs the evidence by its score, `exp` by exp(score).
        own: whether an answer is evidence for itself, as in all the papers above. Without it, it
            has to find support among the others. For equal weights it makes a difference only
            where u(y, y) is not the same for all y.

    Example:
        >>> from branchwise import Node, State, Step, Task
        >>> from branchwise.search.utility import Edit
        >>> root = Node(Task("?"), State())
        >>> said = ["it rains", "a cat sat", "a cat sits"]
        >>> ends = [Node(root.task, State(done=True), root, i, Step(s)) for i, s in enumerate(said)]
        >>> root.adopt(ends)
        >>> MBR(utility=Edit())(root).text
        'a cat sits'
    """

    kind: Literal["mbr"] = "mbr"
    card: ClassVar[Card] = Card(
        structure="pick",
        signals="answers, texts or behaviours, and a utility",
        paper="Kumar and Byrne 2004; Bertsch et al. 2023",
        oracle="the Bayes action of a small model by enumeration; sacrebleu; majority voting",
        test="search/test_mbr.py::test_it_takes_the_bayes_action_of_a_model_that_can_be_enumerated",
    )
    utility: AnyUtility = Match()
    weight: Weight = "equal"
    own: bool = True

    def __call__(self, root: Node) -> Node:
        """The chosen node."""
        nodes = [node for node in candidates(root) if self.utility.sees(node)]
        if not nodes:
            return best(candidates(root))
        expected = self.expected(nodes)
        return nodes[max(range(len(nodes)), key=expected.__getitem__)]

    def expected(self, nodes: Sequence[Node]) -> list[float]:
        """The sum for each node, all of them being the evidence."""
        weight = weights(nodes, self.weight)
        sums: list[float] = []
        for i, row in enumerate(self.utility.table(nodes)):
            terms = [w * u for w, u in zip(weight, row, strict=True)]
            if not self.own:
                del terms[i]
            sums.append(math.fsum(terms))  # rounded once: equal terms tie in whatever order
        return sums
