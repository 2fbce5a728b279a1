"""Tree of thoughts, depth first."""

from typing import ClassVar, Literal

from pydantic import Field

from branchwise.core.node import Node
from branchwise.core.types import Expand
from branchwise.search.best import suffice
from branchwise.search.card import Card
from branchwise.search.search import Search


class TreeOfThoughtsDFS(Search):
    """Follow the best thought first; give up worthless states; backtrack.

        DFS(s):  for s' in k thoughts of s, the most valuable one first:
                     if V(s') > v_th:  DFS(s')

    What is finished ends a branch and the search goes on with the next best sibling of its
    lineage, until the steps are spent.

    Source: Yao et al. 2023, Algorithm 2. Its crosswords stop after 100 steps.

    Args:
        fanout: k, how many thoughts a state gets.
        threshold: v_th: states of this value or less are not entered; None enters all.
        expansions: the step limit: how many states are entered at most.
        enough: a score at which a finished node ends the search; None goes on.

    Example:
        >>> TreeOfThoughtsDFS(threshold=0.1).expansions
        100
    """

    kind: Literal["tot-dfs"] = "tot-dfs"
    card: ClassVar[Card] = Card(
        structure="step",
        signals="a score for each step",
        paper="Yao et al. 2023, Algorithm 2",
        oracle="networkx's depth-first preorder of the pruned tree",
        test="search/test_tot.py::test_dfs_enters_states_in_the_order_of_networkx",
    )
    fanout: int = Field(default=5, ge=1)
    threshold: float | None = None
    expansions: int = Field(default=100, ge=1)
    enough: float | None = None

    async def grow(self, root: Node, expand: Expand) -> None:
        """Go down, and back up."""
        stack = [root]
        for _ in range(self.expansions):
            if not stack:
                return
            children = await expand([stack.pop()], self.fanout)
            if suffice(children, self.enough):
                return
            best_first = sorted((c for c in children if self._enters(c)), key=lambda c: -c.score)
            stack.extend(reversed(best_first))

    def _enters(self, state: Node) -> bool:
        return not state.done and (self.threshold is None or state.score > self.threshold)
