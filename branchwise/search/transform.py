"""Parallel sampling whose answers one more call turns into the answer."""

from typing import ClassVar, Literal

from pydantic import Field

from branchwise.core.node import Node
from branchwise.core.types import Expand
from branchwise.search.card import Card
from branchwise.search.rollout import follow
from branchwise.search.search import Search


class Transform(Search):
    """Draw N answers and let a policy turn them into one.

        y_1, ..., y_N ~ g(· | x);   ŷ = h(x, y_1, ..., y_N)

    h is the policy called `by`. It is asked once, at the root, with all answers below it, and
    proposes the final answer as one more child of the root. With `Chooser` that is universal
    self-consistency (Chen et al. 2023), with `Tournament` a ranking by comparisons; a policy that
    writes a new answer from the old ones fuses them.

    The answer is the child number N of a root with N + 1, where it has finished. Where it has not,
    or h was not asked or failed, the pick chooses among what has grown: with the default and no
    verifier, the first answer.

    Source: Welleck et al. 2024, §4.1 (transformations).

    Args:
        n: N, how many answers.
        by: the name of the policy h.

    Example:
        >>> Transform(n=4, by="chooser").pick.kind
        'best'
    """

    kind: Literal["transform"] = "transform"
    n: int = Field(default=8, ge=1)
    by: str = Field(default="transform", min_length=1)
    card: ClassVar[Card] = Card(
        structure="parallel",
        signals="samples, a policy that sees them all",
        paper="Welleck et al. 2024, §4.1",
        oracle="functions of the whole set of samples",
        test="search/test_transform.py::test_the_answer_is_a_function_of_all_samples",
    )

    async def grow(self, root: Node, expand: Expand) -> None:
        """Grow N branches side by side, then ask h where one has finished."""
        await follow(await expand([root], self.n), expand)
        if any(node.finished for node in root.walk() if node is not root):
            await expand([root], 1, by=self.by)

    def answer(self, root: Node) -> Node:
        """What h made of the answers; else what the pick chooses."""
        if root.promised == self.n + 1:
            for child in root.children[-1:]:
                if child.index == self.n and child.finished:
                    return child
        return self.pick(root)
