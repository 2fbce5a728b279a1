"""No search: one step after the other."""

from typing import ClassVar, Literal

from branchwise.core.node import Node
from branchwise.core.types import Expand
from branchwise.search.card import Card
from branchwise.search.search import Search


class Rollout(Search):
    """Follow one branch to its end.

        v ← root
        while v is not done:  v ← the child of v

    The loop of an agent without search; with a temperature of 0, greedy decoding. Swap the
    controller and the same agent searches.

    Source: the primitive generator of Welleck et al. 2024, §3.

    Example:
        >>> Rollout().kind
        'rollout'
    """

    kind: Literal["rollout"] = "rollout"
    card: ClassVar[Card] = Card(
        structure="primitive",
        signals="samples",
        paper="Welleck et al. 2024, §3",
        oracle="known trees",
        test="search/test_algorithms.py::test_rollout_takes_one_step_after_the_other",
    )

    async def grow(self, root: Node, expand: Expand) -> None:
        """Grow one branch."""
        await follow(await expand([root]), expand)


async def follow(
    nodes: list[Node], expand: Expand, steps: int | None = None, *, by: str = "policy"
) -> list[Node]:
    """Follow each branch by one child at a time to its end, or for so many steps.

    Args:
        nodes: where the branches begin.
        expand: the verb.
        steps: how many steps at most.
        by: the name of the policy that goes on.

    Returns:
        Where the branches that did not fail have arrived, in order.
    """
    ends: dict[Node, Node] = {node: node for node in nodes}
    taken = 0
    while (steps is None or taken < steps) and (
        open_ := [start for start, end in ends.items() if not end.done]
    ):
        children = await expand([ends[start] for start in open_], by=by)
        reached = {child.parent: child for child in children}
        for start in open_:
            child = reached.get(ends[start])
            if child is None:
                del ends[start]
            else:
                ends[start] = child
        taken += 1
    return list(ends.values())
