"""A* against networkx on enumerated trees."""

import math
import random

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import LETTERS, Enumerate, Judge, Spy, words, worth

from branchwise import Node, SpecError, State, Step, Task, Verdict, run_sync, solve
from branchwise.search.astar import AStar
from branchwise.testing import Word

GOAL = "the end"


class Toll(Word):
    """Each step costs what `price` says of the word that it leads to."""

    def __init__(self, price, length=4):
        super().__init__(length)
        self.price = price

    async def step(self, state, action):
        after = await super().step(state, action)
        reward = -self.price(after.snapshot)
        return State(after.snapshot, reward=reward, done=after.done, answer=after.answer)


class Prices:
    """A tree of words with a price for each step and a heuristic that never overrates the rest."""

    def __init__(self, seed, length=4):
        self.seed, self.length = seed, length
        self.graph = nx.DiGraph()
        for depth in range(1, length + 1):
            for word in words(depth):
                self.graph.add_edge(word[:-1], word, weight=self.price(word))
        for word in words(length):
            self.graph.add_edge(word, GOAL, weight=0)
        self.rest = nx.single_source_dijkstra_path_length(self.graph.reverse(copy=True), GOAL)
        self.least = self.rest[""]

    def price(self, word):
        return random.Random(f"{self.seed}/{word}").random()

    def cost(self, word):
        return sum(self.price(word[:n]) for n in range(1, len(word) + 1))

    def admissible(self, word):
        return 0.9 * random.Random(f"h/{self.seed}/{word}").random() * self.rest[word]


async def search(prices, heuristic, **fields):
    """What A* grows, in order, and its answer."""
    spy = Spy()
    answer = await solve(
        "?",
        policy=spy,
        controller=AStar(fanout=3, expansions=1000, **fields),
        environment=Toll(prices.price),
        verifier=Judge(lambda word: -heuristic(word)),
    )
    assert answer.stopped == "finished"
    return spy.grown, answer.text


def of_networkx(prices, heuristic):
    """What networkx's A* grows, in order, and the path it finds."""
    grown = []

    def weight(start, end, edge):
        if start not in grown:
            grown.append(start)
        return edge["weight"]

    path = nx.astar_path(prices.graph, "", GOAL, lambda word, _: heuristic(word), weight)
    return [word for word in grown if len(word) < prices.length], path[-2]


@pytest.mark.anyio
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 2.0])
async def test_it_expands_in_the_order_of_networkx(seed, weight):
    prices = Prices(seed)

    def weighted(word):
        return 0.0 if word == GOAL else weight * prices.admissible(word)

    ours = await search(prices, prices.admissible, weight=weight)
    assert ours == of_networkx(prices, weighted)


@given(st.integers(0, 10**6), st.floats(1, 10))
def test_a_heavier_heuristic_costs_at_most_so_many_times_more(seed, weight):
    prices = Prices(seed, length=4)
    _, best = run_sync(search, prices, prices.admissible)
    assert prices.cost(best) == pytest.approx(prices.least)
    grown, word = run_sync(lambda: search(prices, prices.admissible, weight=weight))
    assert prices.cost(word) <= weight * prices.least + 1e-9
    assert len(set(grown)) == len(grown)


@pytest.mark.anyio
async def test_a_perfect_heuristic_goes_straight_to_the_end():
    prices = Prices(3)
    grown, best = await search(prices, prices.rest.get)
    assert prices.cost(best) == pytest.approx(prices.least)
    assert grown == [best[:n] for n in range(4)]


@pytest.mark.anyio
async def test_without_a_heuristic_it_is_dijkstra():
    prices = Prices(4)
    grown, best = await search(prices, prices.admissible, weight=0)
    settled = list(nx.single_source_dijkstra_path_length(prices.graph, ""))
    first = next(word for word in settled if len(word) == 4)
    assert grown == [word for word in settled[: settled.index(first)] if len(word) < 4]
    assert best == first


class Two:
    """Verifiers by name: what a step earns and what is to come."""

    def __init__(self, salt):
        self.salt = salt

    async def score(self, nodes):
        return [Verdict(worth(self.salt + node.text)) for node in nodes]


def textbook(aggregate, weight):
    """A* once more, with a list for a queue and g computed from scratch."""
    whole = {
        "sum": sum,
        "min": lambda rewards: min(rewards, default=math.inf),
        "last": lambda rewards: rewards[-1] if rewards else 0.0,
    }[aggregate]

    def f(word):
        g = whole([worth("r" + word[:n]) for n in range(1, len(word) + 1)])
        return g + weight * worth("q" + word)

    queue, grown = [""], []
    while len(word := max(queue, key=f)) < 4:
        queue.remove(word)
        grown.append(word)
        queue += [word + letter for letter in LETTERS]
    return grown, word


@pytest.mark.anyio
@pytest.mark.parametrize("aggregate", ["sum", "min", "last"])
@pytest.mark.parametrize("weight", [0.0, 1.0, 3.0])
async def test_rewards_and_values_may_be_verdicts_by_name(aggregate, weight):
    spy = Spy()
    answer = await solve(
        "?",
        policy=spy,
        controller=AStar(
            fanout=3, expansions=99, aggregate=aggregate, weight=weight, reward="prm", value="q"
        ),
        environment=Word(4),
        verifier={"other": Two("o"), "prm": Two("r"), "q": Two("q")},
    )
    assert (spy.grown, answer.text) == textbook(aggregate, weight)


@pytest.mark.anyio
async def test_a_name_that_nobody_has_is_an_error():
    with pytest.raises(SpecError, match="no verifier is called 'prm'; there is verifier"):
        await search(Prices(0), lambda _: 0.0, reward="prm")


@pytest.mark.anyio
async def test_it_ends_after_so_many_expansions():
    spy = Spy()
    answer = await solve(
        "?", policy=spy, controller=AStar(expansions=3, weight=0), environment=Word(4)
    )
    assert len(spy.grown) == 3
    assert answer.stopped == "finished"


@pytest.mark.anyio
async def test_a_root_that_is_done_is_no_end():
    class Drafted(Word):
        async def reset(self, task):
            return State("", done=True)

    answer = await solve("?", policy=Enumerate(), controller=AStar(), environment=Drafted(2))
    assert {leaf.text for leaf in answer.root.leaves()} == set(words(2))


def test_the_answer_is_the_finished_path_that_earned_most():
    root = Node(Task("?"), State())
    tree = [("a", 3.0, 0.0), ("b", 1.0, 0.0)]
    for i, (text, reward, score) in enumerate(tree):
        mid = Node(root.task, State(reward=reward), root, i, Step(text))
        root.adopt([mid])
        end = Node(root.task, State(reward=1.0, done=True), mid, 0, Step("."))
        end.score = score + i  # the path that earned less ends higher
        mid.adopt([end])
    assert AStar(weight=0).answer(root).text == "a."
    assert AStar(weight=1).answer(root).text == "a."
    assert AStar(weight=3).answer(root).text == "b."
    assert AStar(aggregate="last").answer(root).text == "b."
    assert AStar(reward="nobody").answer(root).text == "a."  # the first one of equals
    assert AStar(aggregate="min").answer(Node(Task("?"), State())).path == ()


@pytest.mark.parametrize("aggregate", ["sum", "min", "last"])
def test_a_finished_root_is_not_compared_with_its_drafts(aggregate):
    root = Node(Task("?"), State(done=True))
    ends = [State(done=True, reward=reward) for reward in (-2.0, -1.0)]
    root.adopt([Node(root.task, end, root, i, Step("")) for i, end in enumerate(ends)])
    assert AStar(weight=0, aggregate=aggregate).answer(root) is root.children[1]
    root.children = ()
    assert AStar(weight=0, aggregate=aggregate).answer(root) is root
