"""Best-first search: its order, its priorities and its lanes."""

import anyio
import networkx as nx
import pytest
from anyio.lowlevel import checkpoint
from worlds import Enumerate, Jittered, Judge, Random, Spy, found, words, worth

from branchwise import BackendError, SearchFailed, solve, to_json
from branchwise.search.best_first import BestFirst
from branchwise.testing import Word

pytestmark = pytest.mark.anyio


async def test_it_expands_in_the_order_of_dijkstra():
    cost = {"": 0.0}
    graph = nx.DiGraph()
    for length in range(1, 5):
        for word in words(length):
            step = 0.1 + worth(word)
            cost[word] = cost[word[:-1]] + step
            graph.add_edge(word[:-1], word, weight=step)
    settled = nx.single_source_dijkstra_path_length(graph, "")
    order = [word for word in settled if len(word) < 4][:20]
    spy = Spy()
    await found(BestFirst(fanout=3, expansions=20), spy, Judge(lambda w: -cost[w]))
    assert spy.grown == order


async def test_it_stops_when_it_is_good_enough():
    spy = Spy()
    judge = Judge(lambda word: 1.0 if word in {"c", "cb", "cbb", "cbba"} else worth(word) / 2)
    answer = await found(BestFirst(fanout=3, enough=1.0), spy, judge)
    assert answer.text == "cbba"
    assert spy.grown == ["", "c", "cb", "cbb"]


def browse(priority, start, expansions):
    """The search of Koh et al., with a list for a queue: states are judged when they are visited."""
    queue = [(start, letter) for letter in "abc"]
    visited = [""]
    while queue and len(visited) < expansions:
        best = max(queue, key=lambda entry: entry[0])  # the first, which is the oldest, of equals
        queue.remove(best)
        word = best[1]
        visited.append(word)
        if len(word) < 3:
            queue += [(priority(word), word + letter) for letter in "abc"]
    return visited


@pytest.mark.parametrize("start", [0.5, 0.0, 1.0])
async def test_with_the_priority_of_the_parent_it_visits_as_koh_do(start):
    spy = Spy()
    search = BestFirst(fanout=3, expansions=25, priority="parent", start=start)
    await found(search, spy)
    assert spy.grown == browse(worth, start, 25)
    own = Spy()
    await found(BestFirst(fanout=3, expansions=25), own)
    assert own.grown != spy.grown


class Together(Enumerate):
    """Answers the root at once and all others in groups: none goes on until so many have come."""

    def __init__(self, group):
        super().__init__()
        self.group, self.waiting, self.gate = group, 0, anyio.Event()
        self.out = self.most = 0

    async def propose(self, node, seeds):
        self.out += 1
        self.most = max(self.most, self.out)
        if node.text:
            self.waiting += 1
            gate = self.gate
            if self.waiting == self.group:
                gate.set()
                self.waiting, self.gate = 0, anyio.Event()
            await gate.wait()
        self.out -= 1
        return await super().propose(node, seeds)


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("lanes", [1, 2, 3])
async def test_so_many_lanes_keep_so_many_expansions_in_flight(lanes, in_order):
    policy = Together(lanes)
    # The root has three children, so from then on there is work for all. Were a lane to quit while
    # the root is out, or fewer to be in flight, the others would wait for ever.
    with anyio.fail_after(5):
        search = BestFirst(fanout=3, expansions=1 + 5 * lanes, lanes=lanes, in_order=in_order)
        answer = await found(search, policy)
    assert sum(1 for node in answer.root.walk() if node.children) == 1 + 5 * lanes
    assert policy.most == lanes


@pytest.mark.parametrize("lanes", [1, 2, 7, 50])
async def test_lanes_grow_what_is_there_and_no_more(lanes):
    whole = await found(BestFirst(fanout=3, expansions=1000, lanes=lanes))
    assert {leaf.text for leaf in whole.root.leaves()} == set(words(4))
    part = await found(BestFirst(fanout=3, expansions=12, lanes=lanes))
    assert sum(1 for node in part.root.walk() if node.children) == 12
    narrow = await found(BestFirst(fanout=1, expansions=1000, lanes=lanes))
    assert narrow.text == "aaaa"


async def test_a_lane_without_work_waits_and_does_not_spin(monkeypatch):
    class Slow(Random):
        async def propose(self, node, seeds):
            for _ in range(50):
                await checkpoint()
            return await super().propose(node, seeds)

    real, waits = anyio.Event, []

    class Watched:
        """An event that counts who waits for it; what anyio makes cannot be derived from."""

        def __init__(self):
            self.event = real()

        def set(self):
            self.event.set()

        async def wait(self):
            waits.append(1)
            await self.event.wait()

    monkeypatch.setattr("branchwise.search.pipeline.anyio.Event", Watched)
    await found(BestFirst(fanout=1, lanes=3), Slow())
    assert len(waits) == 2 * 4  # two idle lanes, once for each of four expansions


@pytest.mark.parametrize("lanes", [1, 4])
async def test_in_order_timing_does_not_matter(lanes):
    search = BestFirst(fanout=3, expansions=12, priority="parent", lanes=lanes)
    straight = to_json((await found(search, Random())).root)
    for seed in range(3):
        jittered = await found(search, Jittered(Random(), 4, seed))
        assert to_json(jittered.root) == straight


async def test_an_error_in_one_lane_ends_them_all():
    class Down(Enumerate):
        async def propose(self, node, seeds):
            if node.text:
                raise BackendError("gone", fatal=True)
            return await super().propose(node, seeds)

    answer = await solve(
        "?", policy=Down(), controller=BestFirst(fanout=2, lanes=8), environment=Word(4)
    )
    assert answer.stopped == "failing"
    assert isinstance(answer.error, SearchFailed)
