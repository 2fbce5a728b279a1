import pytest

from branchwise import BestFirst, Budget, Function, Step, solve
from branchwise.core.around import metered
from branchwise.core.errors import Exhausted
from branchwise.core.grow import Grow
from branchwise.core.node import Node
from branchwise.core.types import State, Task, Verdict
from branchwise.testing import Word

pytestmark = pytest.mark.anyio


class Few:
    """Gives two steps at a node, each once, however many are asked for."""

    async def propose(self, node, seeds):
        return [Step(letter) for letter in "ab"[node.promised - len(seeds) : node.promised]]


def paid(nodes):
    return metered(Grow({"policy": Few()}, Word(5), {}), Budget(nodes=nodes), {})


async def test_children_that_never_came_are_not_paid_for():
    search = BestFirst(fanout=10, expansions=100)
    judge = Function(lambda node: Verdict(-len(node.path)))
    parts = {"policy": Few(), "environment": Word(5), "verifier": judge}
    for limit in (1, 7, 40, 62):
        answer = await solve("?", controller=search, budget=Budget(nodes=limit), **parts)
        assert (sum(1 for _ in answer.root.walk()) - 1, answer.stopped) == (limit, "exhausted")
    answer = await solve("?", controller=search, budget=Budget(nodes=63), **parts)
    assert (sum(1 for _ in answer.root.walk()) - 1, answer.stopped) == (62, "finished")


@pytest.mark.parametrize(
    ("limit", "widths", "ends"),
    [(5, [9], False), (2, [9], True), (1, [9], True), (9, [4, 9], False), (4, [4, 1], True)],
)
async def test_an_order_cut_short_ends_the_search_where_somebody_missed_the_rest(
    limit, widths, ends
):
    expand = paid(limit)
    level = [Node(Task("?"), State("")) for _ in widths]
    came = []
    try:
        came = await expand(level, widths)
        ended = False
    except Exhausted:
        ended = True
    assert ended == ends
    if not ends:
        assert len(came) == 2 * len(widths) == expand.nodes
