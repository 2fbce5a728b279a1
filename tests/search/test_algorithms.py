"""Each algorithm against an oracle: enumeration, a textbook loop, or a known value."""

import math
from collections import Counter

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import LETTERS, Enumerate, Judge, Random, words, worth

from branchwise import (
    MCTS,
    Beam,
    BestFirst,
    BestOfN,
    Node,
    Rebase,
    Rollout,
    State,
    Step,
    Task,
    Vote,
    solve,
)
from branchwise.core.grow import seed_of
from branchwise.testing import Word

pytestmark = pytest.mark.anyio
THE_BEST = max(words(4), key=worth)


async def found(controller, policy=None, length=4, judge=None):
    answer = await solve(
        "a word?",
        policy=policy or Enumerate(),
        controller=controller,
        environment=Word(length),
        verifier=judge or Judge(),
    )
    assert answer.stopped == "finished"
    return answer


async def test_rollout_takes_one_step_after_the_other():
    answer = await found(Rollout())
    assert answer.text == "aaaa"
    assert sum(1 for _ in answer.root.walk()) == 5


async def test_best_of_n_is_the_argmax_of_independent_samples():
    answer = await found(BestOfN(n=9), policy=Random())
    paths = [[(i, *[0] * depth) for depth in range(4)] for i in range(9)]
    draws = [
        [(await Random().propose(None, [seed_of(0, p)]))[0].text for p in path] for path in paths
    ]
    assert answer.text == max(("".join(draw) for draw in draws), key=worth)


async def test_a_beam_as_wide_as_the_tree_finds_the_best_word():
    assert (await found(Beam(width=81, fanout=3))).text == THE_BEST


async def test_a_beam_keeps_the_best_of_each_level():
    kept, finished = [""], []
    while kept:
        level = sorted((w + letter for w in kept for letter in LETTERS), key=worth, reverse=True)[
            :2
        ]
        kept, finished = [w for w in level if len(w) < 4], level
    answer = await found(Beam(width=2, fanout=3), judge=Judge(worth))
    assert answer.text == max(finished, key=worth)


async def test_the_trees_of_dvts_do_not_compete():
    answer = await found(Beam(width=3, fanout=1, trees=3))
    assert {leaf.text for leaf in answer.root.leaves()} == {"aaaa", "baaa", "caaa"}
    ends = set()
    for first in LETTERS:
        word = first
        while len(word) < 4:
            word = max((word + letter for letter in LETTERS), key=worth)
        ends.add(word)
    # Dealt "abcabcabc", each tree keeps one first letter and then follows its own best child.
    answer = await found(Beam(width=3, fanout=3, trees=3), policy=Enumerate(LETTERS * 3))
    deep = {leaf.text for leaf in answer.root.leaves() if leaf.done}
    assert ends <= deep
    assert len(deep) == 9
    assert answer.text == max(deep, key=worth)


async def test_best_first_expands_in_the_order_of_dijkstra():
    cost = {"": 0.0}
    graph = nx.DiGraph()
    for length in range(1, 5):
        for word in words(length):
            step = 0.1 + worth(word)
            cost[word] = cost[word[:-1]] + step
            graph.add_edge(word[:-1], word, weight=step)
    settled = nx.single_source_dijkstra_path_length(graph, "")
    order = [word for word in settled if len(word) < 4][:20]
    grown = []

    class Spy(Enumerate):
        async def propose(self, node, seeds):
            grown.append(node.text)
            return await super().propose(node, seeds)

    await found(BestFirst(fanout=3, expansions=20), Spy(), judge=Judge(lambda w: -cost[w]))
    assert grown == order


async def test_best_first_stops_when_it_is_good_enough():
    judge = Judge(lambda word: len(word) / 4)
    answer = await found(BestFirst(fanout=1, enough=1.0), judge=judge)
    assert answer.text == "aaaa"


def textbook(simulations, urgency):
    """UCT and PUCT once more, with dictionaries and recursion; the words in the order of growth."""
    n, w, children, values = Counter(), Counter(), {}, []

    def whole(word):
        return len(word) == 4 or (word in children and all(map(whole, children[word])))

    def simulate(word):
        if word not in children:
            children[word] = [word + letter for letter in LETTERS]
            got = [worth(child) for child in children[word]]
            values.extend(got)
            for child, value in zip(children[word], got, strict=True):
                n[child], w[child] = 1, value
            grown.append(word)
        else:
            low, high = min(values), max(values)
            open_ = [c for c in children[word] if not whole(c)]
            q = {c: (w[c] / n[c] - low) / (high - low) for c in open_}
            got = simulate(max(open_, key=lambda c: q[c] + urgency(n[word], n[c])))
        n[word] += len(got)
        w[word] += sum(got)
        return got

    grown = []
    for _ in range(simulations):
        simulate("")
    return grown


@pytest.mark.parametrize(
    ("select", "urgency"),
    [
        ("uct", lambda parent, child: math.sqrt(2 * math.log(parent) / child)),
        (
            "puct",
            lambda parent, child: (
                (1 / 3)
                * (1.25 + math.log((parent + 19653) / 19652))
                * math.sqrt(parent)
                / (1 + child)
            ),
        ),
    ],
)
async def test_mcts_selects_as_the_textbook_does(select, urgency):
    grown = []

    class Spy(Enumerate):
        async def propose(self, node, seeds):
            grown.append(node.text)
            return await super().propose(node, seeds)

    await found(MCTS(simulations=30, fanout=3, select=select), Spy())
    assert grown == textbook(30, urgency)


async def test_mcts_with_time_enough_sees_the_whole_tree():
    answer = await found(MCTS(simulations=1000, fanout=3))
    assert answer.text == THE_BEST
    assert sum(1 for _ in answer.root.walk()) == sum(3**depth for depth in range(5))


async def test_a_rollout_values_a_child_by_where_it_leads():
    judge = Judge(lambda word: 1.0 if word.startswith("ba") and len(word) == 4 else 0.0)
    answer = await found(MCTS(simulations=1, fanout=3, rollout=3), judge=judge)
    assert answer.text == "baaa"


async def test_rebase_follows_the_rewards():
    answer = await found(
        Rebase(n=3, temperature=1e-3), judge=Judge(lambda word: -len(word.strip("b")))
    )
    assert answer.text == "bbbb"


@given(
    st.lists(st.floats(-50, 50), min_size=1, max_size=20),
    st.integers(1, 64),
    st.floats(0.05, 10),
)
def test_rebase_ceilings_spend_the_whole_budget(rewards, budget, temperature):
    widths = Rebase(temperature=temperature).widths(rewards, budget)
    weights = [math.exp((reward - max(rewards)) / temperature) for reward in rewards]
    assert sum(widths) == budget
    for width, weight in zip(widths, weights, strict=True):
        assert 0 <= width <= math.ceil(budget * weight / sum(weights))


def test_rebase_shares_by_each_definition():
    rewards = [math.log(3), 0.0]  # a softmax of 3 : 1
    assert Rebase(temperature=1, share="round").widths(rewards, 4) == [3, 1]
    assert Rebase(temperature=1, share="round").widths([0.0, 0.0], 3) == [
        2,
        2,
    ]  # 1.5 rounds up twice
    assert Rebase(temperature=1, share="ceil").widths([0.0, 0.0], 3) == [2, 1]
    drawn = Rebase(temperature=1, share="multinomial").widths(rewards, 4000)
    assert sum(drawn) == 4000
    assert abs(drawn[0] - 3000) < 5 * math.sqrt(4000 * 3 / 16)


def ballot(answers):
    root = Node(Task("?"), State())
    for i, (answer, score) in enumerate(answers):
        leaf = Node(root.task, State(answer=answer, done=True), root, i, Step("."))
        leaf.score = score
        root.adopt([leaf])
    return root


@given(st.lists(st.sampled_from("abc"), min_size=1))
def test_a_vote_counts(answers):
    counts = Counter(answers)  # keeps the order of first sight
    assert Vote()(ballot([(a, 0.0) for a in answers])).state.answer == max(counts, key=counts.get)


def test_votes_are_weighted_as_asked():
    root = ballot([("a", 0.9), ("b", 0.5), ("b", 0.3), (None, 9.0)])
    assert Vote()(root).score == 0.5
    assert Vote(weight="score")(root).state.answer == "a"
    assert Vote(weight="exp")(root).state.answer == "b"


def test_a_vote_without_answers_takes_the_best():
    assert Vote()(ballot([(None, 1.0), (None, 2.0)])).score == 2.0
