"""Tree of thoughts against loops over enumerated words and networkx."""

from collections import Counter

import networkx as nx
import pytest
from worlds import LETTERS, Enumerate, Judge, Random, Spy, found, words, worth

from branchwise import Node, State, Step, Task, solve, to_json
from branchwise.search.rollout import Rollout
from branchwise.search.tot_bfs import TreeOfThoughtsBFS
from branchwise.search.tot_dfs import TreeOfThoughtsDFS
from branchwise.testing import Word


def entered(root):
    """The texts of the nodes that were grown, in the order of the tree."""
    return [node.text for node in root.walk() if node.promised]


def family(scores, texts=LETTERS):
    """Siblings with these scores."""
    root = Node(Task("?"), State())
    children = [Node(root.task, State(), root, i, Step(text)) for i, text in enumerate(texts)]
    for child, score in zip(children, scores, strict=True):
        child.score = score
    root.adopt(children)
    return children


@pytest.mark.anyio
@pytest.mark.parametrize("width", [1, 2, 5])
async def test_bfs_keeps_the_best_states_of_each_level(width):
    spy, kept, grown = Spy(), [""], []
    for _ in range(4):
        grown += kept
        level = [word + letter for word in kept for letter in LETTERS]
        kept = sorted(level, key=worth, reverse=True)[:width]
    answer = await found(TreeOfThoughtsBFS(width=width, fanout=3), spy)
    assert sorted(spy.grown) == sorted(grown)  # a level grows side by side
    assert answer.text == max(level, key=worth)


@pytest.mark.anyio
async def test_bfs_with_room_for_all_is_exhaustive():
    answer = await found(TreeOfThoughtsBFS(width=81, fanout=3))
    assert answer.text == max(words(4), key=worth)
    assert sum(1 for _ in answer.root.walk()) == sum(3**depth for depth in range(5))


@pytest.mark.anyio
async def test_one_thought_and_one_state_is_a_rollout():
    one = await found(TreeOfThoughtsBFS(width=1, fanout=1), Random())
    assert to_json(one.root) == to_json((await found(Rollout(), Random())).root)


@pytest.mark.anyio
async def test_finished_states_compete_for_their_places():
    class Uneven(Word):
        async def step(self, state, action):
            after = await super().step(state, action)
            return State(after.snapshot, done=True, answer="c") if after.snapshot == "c" else after

    value = {"c": 3.0, "b": 2.0, "a": 1.0, "ba": 2.5, "bb": 2.4, "bc": 0.0, "baa": 9.0}
    answer = await solve(
        "?",
        policy=Enumerate(),
        controller=TreeOfThoughtsBFS(width=2, fanout=3),
        environment=Uneven(3),
        verifier=Judge(lambda word: value.get(word, -1.0)),
    )
    assert entered(answer.root) == ["", "b", "ba"]  # c keeps its place, so bb has none
    assert answer.text == "baa"


def test_of_states_with_the_same_text_the_first_is_kept():
    # Copies of value 0, as in the authors' code, would be kept before the worse original state b.
    states = family([-1.0, -1.0, -2.0], texts="aab")
    assert list(TreeOfThoughtsBFS(width=2).keep(states, 1)) == [states[0], states[2]]
    both = TreeOfThoughtsBFS(width=2, distinct=False).keep(states, 1)
    assert list(both) == states[:2]


@pytest.mark.parametrize(
    ("weight", "scores", "shares"),
    [
        ("score", [1.0, 3.0, 6.0], [0.1, 0.3, 0.6]),
        ("score", [-5.0, 1.0, 3.0], [0, 0.25, 0.75]),
        ("score", [0.0, -1.0, -2.0], [1 / 3, 1 / 3, 1 / 3]),
        ("exp", [-1000.0, -1000.6931471805599, -1001.3862943611199], [4 / 7, 2 / 7, 1 / 7]),
    ],
)
def test_states_are_drawn_by_their_value(weight, scores, shares):
    drawn = Counter()
    children = family(scores)
    for level in range(400):
        search = TreeOfThoughtsBFS(width=5, select="sample", weight=weight, seed=7)
        kept = search.keep(children, level)
        assert sum(kept.values()) == 5
        drawn += Counter({state.text: times for state, times in kept.items()})
    expected = {letter: 2000 * share for letter, share in zip(LETTERS, shares, strict=True)}
    assert all(drawn[letter] == 0 for letter in LETTERS if not expected[letter])
    possible = [letter for letter in LETTERS if expected[letter]]
    distance = sum((drawn[x] - expected[x]) ** 2 / expected[x] for x in possible)
    assert distance < {1: 6.63, 2: 9.21}[len(possible) - 1]  # chi-square at 1 %


@pytest.mark.anyio
async def test_a_state_drawn_twice_gets_twice_the_thoughts():
    class Cycle(Enumerate):
        async def propose(self, node, seeds):
            return [Step(LETTERS[i % 3]) for i in range(len(seeds))]

    only_a = Judge(lambda word: 1.0 if set(word) == {"a"} else 0.0)
    search = TreeOfThoughtsBFS(width=4, fanout=3, select="sample")
    answer = await found(search, Cycle(), judge=only_a, length=2)
    assert [len(node.children) for node in answer.root.walk() if node.children] == [3, 12]


class Drafted(Word):
    """A world that begins where a draft is done: what grows there are new drafts."""

    async def reset(self, task):
        return State("", done=True)


@pytest.mark.anyio
@pytest.mark.parametrize("search", [TreeOfThoughtsBFS(width=9), TreeOfThoughtsDFS()])
async def test_drafts_grow_under_a_root_that_is_done(search):
    answer = await solve("?", policy=Enumerate(), controller=search, environment=Drafted(2))
    assert {leaf.text for leaf in answer.root.leaves()} == set(words(2))


@pytest.mark.anyio
@pytest.mark.parametrize("threshold", [None, 0.2, 0.5, 1.0])
async def test_dfs_enters_states_in_the_order_of_networkx(threshold):
    graph = nx.DiGraph()
    graph.add_node("")
    for length in range(1, 4):
        for word in sorted(words(length), key=worth, reverse=True):
            if threshold is None or worth(word) > threshold:
                graph.add_edge(word[:-1], word)
    order = list(nx.dfs_preorder_nodes(graph, ""))
    spy = Spy()
    await found(TreeOfThoughtsDFS(fanout=3, threshold=threshold), spy)
    assert spy.grown == order
    spy = Spy()
    await found(TreeOfThoughtsDFS(fanout=3, threshold=threshold, expansions=7), spy)
    assert spy.grown == order[:7]


@pytest.mark.anyio
async def test_a_threshold_that_is_met_exactly_prunes():
    answer = await found(TreeOfThoughtsDFS(fanout=3, threshold=1.0), judge=Judge(lambda _: 1.0))
    assert entered(answer.root) == [""]


@pytest.mark.anyio
async def test_dfs_backtracks_and_stops_when_it_is_good_enough():
    spy = Spy()
    good = Judge(lambda word: 2.0 if word == "bacc" else 1.0)
    answer = await found(TreeOfThoughtsDFS(fanout=3, enough=2.0), spy, good)
    assert answer.text == "bacc"
    in_order = sorted(["", *words(1), *words(2), *words(3)])
    assert spy.grown == in_order[: in_order.index("bac") + 1]


def test_what_is_finished_is_no_copy_of_what_is_open():
    first, *others = family([0.5, 0.4, 0.3, 0.2], ["a", "a", "", ""])
    first.state = State(done=True)
    for child, token in zip(others[1:], (7, 8), strict=True):
        child.step = Step("", (token,))  # parts of two characters, neither of which is whole
    bfs = TreeOfThoughtsBFS(width=4)
    assert list(bfs.keep([first, *others], 1)) == [first, *others]


def test_values_of_any_size_can_be_drawn_by():
    children = family([1.7e308, 1.7e308, -1.7e308])
    drawn = TreeOfThoughtsBFS(width=64, select="sample").keep(children, 1)
    assert sum(drawn.values()) == 64
    assert set(drawn) == set(children[:2])
