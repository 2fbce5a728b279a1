"""Limited discrepancy search against the orders of its papers."""

import pytest
from worlds import Enumerate, Judge, words, worth

from branchwise import Step, solve
from branchwise.search.discrepancy import LimitedDiscrepancy
from branchwise.testing import Word

pytestmark = pytest.mark.anyio


class Spy:
    """Proposes each letter once and remembers what was grown, in order."""

    def __init__(self, letters):
        self.letters = letters
        self.grown = []

    async def propose(self, node, seeds):
        self.grown.append(node.text)
        return [Step(letter) for letter in self.letters[: len(seeds)]]


LEFT = Judge(lambda word: -int(word[-1]))  # 0 is the left child, 1 the right one


async def visited(search, depth, letters="01", judge=LEFT):
    """The leaves of a tree of this depth, in the order in which they are visited."""
    spy = Spy(letters)
    answer = await solve(
        "?", policy=spy, controller=search, environment=Word(depth + 1), verifier=judge
    )
    assert answer.stopped == "finished"
    assert len(set(spy.grown)) == len(spy.grown)  # nothing is grown twice
    return [word for word in spy.grown if len(word) == depth]


def harvey_ginsberg(depth, k, path=""):
    """LDS-PROBE for a binary tree: the right child first while discrepancies are left."""
    if len(path) == depth:
        return [path]
    left = harvey_ginsberg(depth, k, path + "0")
    return (harvey_ginsberg(depth, k - 1, path + "1") if k else []) + left


def korf(depth, k, path=""):
    """ILDS: exactly k discrepancies, the left child first where enough depth remains."""
    left = depth - len(path)
    if not left:
        return [path]
    deep = korf(depth, k, path + "0") if left > k else []
    return deep + (korf(depth, k - 1, path + "1") if k else [])


async def test_leaves_are_visited_in_the_order_of_the_papers():
    top = await visited(LimitedDiscrepancy(fanout=2), 3)
    assert top == ["000", "100", "010", "001", "110", "101", "011", "111"]
    bottom = await visited(LimitedDiscrepancy(fanout=2, order="bottom"), 3)
    assert bottom == ["000", "001", "010", "100", "011", "101", "110", "111"]


@pytest.mark.parametrize("depth", [1, 2, 4, 6])
async def test_the_orders_are_those_of_the_recursions(depth):
    top = await visited(LimitedDiscrepancy(fanout=2, expansions=1000), depth)
    waves = [leaf for k in range(depth + 1) for leaf in harvey_ginsberg(depth, k)]
    assert top == list(dict.fromkeys(waves))
    bottom = await visited(LimitedDiscrepancy(fanout=2, expansions=1000, order="bottom"), depth)
    assert bottom == [leaf for k in range(depth + 1) for leaf in korf(depth, k)]


@pytest.mark.parametrize("order", ["top", "bottom"])
@pytest.mark.parametrize(
    ("count", "cost"),
    [
        ("one", lambda word: sum(letter != "0" for letter in word)),
        ("rank", lambda w: sum(map(int, w))),
    ],
)
async def test_a_limit_leaves_out_paths_with_more_discrepancies(order, count, cost):
    everything = words(3, "012")
    for limit in range(4):
        search = LimitedDiscrepancy(
            fanout=3, discrepancies=limit, order=order, count=count, expansions=1000
        )
        leaves = await visited(search, 3, "012")
        assert sorted(leaves) == [word for word in everything if cost(word) <= limit]
        assert [cost(word) for word in leaves] == sorted(map(cost, leaves))


@pytest.mark.parametrize("order", ["top", "bottom"])
@pytest.mark.parametrize("count", ["one", "rank"])
async def test_unbounded_it_sees_what_exhaustive_search_sees(order, count):
    search = LimitedDiscrepancy(fanout=3, order=order, count=count, expansions=1000)
    answer = await solve(
        "?", policy=Enumerate(), controller=search, environment=Word(4), verifier=Judge()
    )
    assert {leaf.text for leaf in answer.root.leaves()} == set(words(4))
    assert answer.text == max(words(4), key=worth)


async def test_it_stops_when_it_is_good_enough_or_has_grown_enough():
    assert len(await visited(LimitedDiscrepancy(fanout=2, expansions=7), 3)) == 2
    good = Judge(lambda word: 9 if word == "1000" else -int(word[-1]))
    assert await visited(LimitedDiscrepancy(fanout=2, enough=9.0), 3, judge=good) == ["000", "100"]
