"""How many siblings say the same."""

from collections.abc import Sequence
from typing import Literal

from branchwise.core.config import Config
from branchwise.core.node import Node
from branchwise.core.types import Verdict


class Agreement(Config):
    """The share of a node's siblings, itself included, that say the same: self-consistency, a step.

        s(v) = |{u ∈ siblings(v) : said(u) = said(v)}| / |siblings(v)|

    What a node says is its answer, where it has one, or else the text of its step without the white
    space around it. Siblings that failed are left out. Where copies are hidden from the search
    (`unique`), they still count here: the one that stays carries the weight of all.

    Source: SC of LATS (Zhou et al. 2024, §4.2); the confidence r_conf of RAP (Hao et al. 2023,
    §3.2), the share of the majority answer.

    Example:
        >>> from branchwise import Node, State, Step, Task, run_sync
        >>> root = Node(Task("?"), State())
        >>> said = [Node(root.task, State(), root, i, Step(text)) for i, text in enumerate("aab")]
        >>> root.adopt(said)
        >>> [round(verdict.score, 2) for verdict in run_sync(Agreement().score, said)]
        [0.67, 0.67, 0.33]
    """

    kind: Literal["agreement"] = "agreement"

    async def score(self, nodes: Sequence[Node]) -> Sequence[Verdict]:
        """One verdict for each node."""
        return [Verdict(_share(node)) for node in nodes]


def _share(node: Node) -> float:
    if node.parent is None:
        return 1.0
    siblings = [other for other in node.parent.children if other.failure is None]
    own = _said(node)
    same = sum(_said(other) == own for other in siblings)
    return same / len(siblings) if same else 1.0


def _said(node: Node) -> str:
    if node.state.answer is not None:
        return node.state.answer.strip()
    return node.step.text.strip() if node.step is not None else ""
