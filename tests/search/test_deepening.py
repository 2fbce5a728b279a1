"""Iterative deepening against networkx's depth-limited searches."""

import networkx as nx
import pytest
from worlds import Judge, Spy, found, words, worth

from branchwise import State
from branchwise.search.deepening import IterativeDeepening
from branchwise.testing import Word

pytestmark = pytest.mark.anyio


def tree():
    """The open words, best siblings first."""
    graph = nx.DiGraph()
    for length in range(1, 4):
        for word in sorted(words(length), key=worth, reverse=True):
            graph.add_edge(word[:-1], word)
    return graph


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 9])
async def test_it_grows_in_the_order_of_networkx(stride):
    order = {}
    for limit in range(stride, 5 + stride, stride):
        order |= dict.fromkeys(nx.dfs_preorder_nodes(tree(), "", depth_limit=limit - 1))
    spy = Spy()
    await found(IterativeDeepening(fanout=3, stride=stride, expansions=100), spy)
    assert spy.grown == list(order)
    spy = Spy()
    await found(IterativeDeepening(fanout=3, stride=stride, expansions=9), spy)
    assert spy.grown == list(order)[:9]


async def test_unbounded_it_sees_the_whole_tree_once():
    answer = await found(IterativeDeepening(fanout=3, expansions=100))
    assert {leaf.text for leaf in answer.root.leaves()} == set(words(4))
    assert sum(1 for _ in answer.root.walk()) == sum(3**depth for depth in range(5))
    assert answer.text == max(words(4), key=worth)


async def test_a_stride_of_one_finds_the_shallowest_end():
    class Uneven(Word):
        async def step(self, state, action):
            after = await super().step(state, action)
            if after.snapshot in {"cc", "aaa", "b" * 4}:
                return State(after.snapshot, done=True, answer=after.snapshot)
            return after

    judge = Judge(lambda word: -sum(map(ord, word)))  # a before b before c
    shallow = await found(
        IterativeDeepening(fanout=3, enough=-1e9), judge=judge, environment=Uneven(9)
    )
    assert shallow.value == "cc"
    deep = await found(
        IterativeDeepening(fanout=3, enough=-1e9, stride=9), judge=judge, environment=Uneven(9)
    )
    assert deep.value == "aaa"


async def test_a_good_end_ends_it():
    spy = Spy()
    good = Judge(lambda word: 2.0 if word == "acaa" else 1.0)
    answer = await found(IterativeDeepening(fanout=3, enough=2.0, expansions=100), spy, good)
    assert answer.text == "acaa"
    assert spy.grown[-1] == "aca"
