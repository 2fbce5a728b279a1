"""The pick behind best-of-N."""

from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

from branchwise.core.node import Node
from branchwise.search.card import Card
from branchwise.search.pick import Pick


class Best(Pick):
    """Pick the finished node with the highest score; the first one of equals.

        ŷ = argmax_i v(x, y_i)

    Where nothing has finished, the best leaf that did not fail; the root where nothing has grown.

    Source: best-of-N of Stiennon et al. 2020, §4; Welleck et al. 2024, §4.1 (reranking).

    Example:
        >>> from branchwise import Node, State, Task
        >>> root = Node(Task("?"), State())
        >>> Best()(root) is root
        True
    """

    kind: Literal["best"] = "best"
    card: ClassVar[Card] = Card(
        structure="pick",
        signals="a score for each answer",
        paper="Stiennon et al. 2020, §4",
        oracle="the exact law of best-of-N by enumeration; the bound on its divergence",
        test="search/test_votes.py::test_best_of_n_has_the_law_of_the_largest_of_n",
    )

    def __call__(self, root: Node) -> Node:
        """The chosen node."""
        return best(candidates(root))


def candidates(root: Node) -> Sequence[Node]:
    """The nodes that may answer: the finished ones, or all leaves that did not fail; never none.

    A finished node has children only where it was revised; then its drafts compete with it.
    """
    finished: list[Node] = []
    leaves: list[Node] = []
    for node in root.walk():
        if node.state.done and node.finished:
            finished.append(node)
        elif not finished and node.is_leaf:
            leaves.append(node)
    return finished or leaves or [root]


def best(nodes: Sequence[Node]) -> Node:
    """The node with the highest score, the first of equals."""
    return max(nodes, key=lambda node: node.score)


def suffice(nodes: Iterable[Node], enough: float | None) -> bool:
    """Whether one of the nodes has finished and scores at least `enough`; None is never enough."""
    return enough is not None and any(v.finished and v.score >= enough for v in nodes)
