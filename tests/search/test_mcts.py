"""Monte Carlo tree search against textbooks, enumeration, mctx and numbers worked out by hand."""

import functools
import math
import random
from collections import Counter

import anyio
import pytest
from worlds import LETTERS, Enumerate, Judge, Spy, found, words, worth

from branchwise import Node, SearchFailed, State, Step, Task, solve
from branchwise.core.errors import BackendError
from branchwise.search.mcts import MCTS
from branchwise.search.visit import Grown, Visit, Visits, priors
from branchwise.testing import Word

pytestmark = pytest.mark.anyio
THE_BEST = max(words(4), key=worth)


def size(node):
    return sum(1 for _ in node.walk())


def textbook(simulations, urgency, backup="mean", scale="seen"):
    """MCTS once more, with dictionaries and recursion; the words in the order of growth."""
    seen, children, returns = [], {}, {"": []}
    pool = {"mean": lambda x: sum(x) / len(x), "max": max}[backup]

    def whole(word):
        return len(word) == 4 or (word in children and all(map(whole, children[word])))

    def simulate(word):
        if word not in children:
            children[word] = [word + letter for letter in LETTERS]
            got = [worth(child) for child in children[word]]
            seen.extend(got)
            returns.update({c: [value] for c, value in zip(children[word], got, strict=True)})
            grown.append(word)
        else:
            low, high = (min(seen), max(seen)) if scale == "seen" else (0, 1)
            open_ = [c for c in children[word] if not whole(c)]
            q = {c: (pool(returns[c]) - low) / (high - low) for c in open_}
            n = {c: len(returns[c]) for c in (word, *open_)}
            got = simulate(max(open_, key=lambda c: q[c] + urgency(n[word], n[c])))
        returns[word] += got
        return got

    grown = []
    for _ in range(simulations):
        simulate("")
    return grown


URGENCIES = {
    "uct": lambda parent, child: math.sqrt(2 * math.log(parent) / child),
    "puct": lambda parent, child: (
        (1 / 3) * (1.25 + math.log((parent + 19653) / 19652)) * math.sqrt(parent) / (1 + child)
    ),
    "p-ucb": lambda parent, child: (
        (1 / 3) * (4 + math.log((parent + 11) / 10)) * math.sqrt(math.log(parent)) / (1 + child)
    ),
}


@pytest.mark.parametrize("select", URGENCIES)
@pytest.mark.parametrize("backup", ["mean", "max"])
@pytest.mark.parametrize("scale", ["seen", "none"])
async def test_it_selects_as_the_textbook_does(select, backup, scale):
    spy = Spy()
    await found(MCTS(simulations=30, fanout=3, select=select, backup=backup, scale=scale), spy)
    assert spy.grown == textbook(30, URGENCIES[select], backup, scale)


@pytest.mark.parametrize(
    ("select", "explored"),
    [
        ("uct", 1.0729830131446736),  # √2 · √(ln 10 / 4)
        ("puct", 0.395461623),  # ½ · (1.25 + ln(19663 / 19652)) · √10 / 5
        ("p-ucb", 0.719554436),  # ½ · (4 + ln(21 / 10)) · √(ln 10) / 5
    ],
)
def test_one_step_of_each_formula_by_hand(select, explored):
    visits = Visits(MCTS(select=select, scale="none"), Node(Task("?"), State()))
    visits.top.n = 10
    one, other = Visit(visits.top.node, 4, 2.0), Visit(visits.top.node, 4, 2.0)
    one.prior = other.prior = 0.5
    visits.weigh(one)
    assert one.q == 0.5
    assert visits.weight(10) * one.share == pytest.approx(explored, rel=1e-6)
    for edge, chosen in [(1e-9, other), (-1e-9, one)]:
        other.w = 4 * (0.5 + edge)
        visits.weigh(other)
        assert visits.choose(visits.top, [one, other]) is chosen


def test_priors_are_a_softmax_of_what_a_token_says():
    root = Node(Task("?"), State())
    steps = [Step("a", logprob=-2.0, logprobs=(-1.0, -1.0)), Step("b", logprob=-3.0)]
    known = [Node(root.task, State(), root, i, step) for i, step in enumerate(steps)]
    share = math.exp(-1) / (math.exp(-1) + math.exp(-3))
    assert priors(known) == pytest.approx([share, 1 - share])
    unknown = Node(root.task, State(), root, 2, Step("c"))
    assert priors([*known, unknown]) == [1 / 3] * 3


def test_it_visits_as_mctx_does():
    mctx = pytest.importorskip("mctx")
    jax = pytest.importorskip("jax")
    jnp = jax.numpy
    depth, simulations = 9, 50
    inner = sum(3**level for level in range(depth + 1))  # the children of i: 3 i + 1, + 2, + 3
    draws = random.Random(0)
    values = [0.0] + [draws.random() for _ in range(3 * inner)]
    logits = [[draws.gauss(0, 1) for _ in LETTERS] for _ in range(3 * inner + 1)]

    def place(word):
        return functools.reduce(lambda i, letter: 3 * i + 1 + LETTERS.index(letter), word, 0)

    class Prior(Spy):
        async def propose(self, node, seeds):
            steps = await super().propose(node, seeds)
            return [
                Step(step.text, logprob=logit)
                for step, logit in zip(steps, logits[place(node.text)], strict=True)
            ]

    spy = Prior()
    rules = {"select": "puct", "scale": "none", "visit": "one", "unvisited": "zero"}
    controller = MCTS(simulations=simulations + 1, fanout=3, **rules)
    judge = Judge(lambda word: values[place(word)])
    anyio.run(functools.partial(found, controller, spy, length=depth, judge=judge))

    table, prior = jnp.array(values), jnp.array(logits)

    def step(params, key, action, at):
        after = 3 * at + 1 + action
        output = mctx.RecurrentFnOutput(
            reward=jnp.zeros(1),
            discount=jnp.ones(1),
            prior_logits=prior[after],
            value=table[after],
        )
        return output, after

    tree = mctx.muzero_policy(
        None,
        jax.random.PRNGKey(0),
        mctx.RootFnOutput(prior_logits=prior[:1], value=table[:1], embedding=jnp.array([0])),
        step,
        simulations,
        qtransform=functools.partial(mctx.qtransform_by_min_max, min_value=0, max_value=1),
        dirichlet_fraction=0.0,
    ).search_tree
    visited = [""]
    for parent, action in zip(
        tree.parents[0, 1:].tolist(), tree.action_from_parent[0, 1:].tolist(), strict=True
    ):
        visited.append(visited[parent] + LETTERS[action])
    assert spy.grown == visited
    assert max(map(len, visited)) < depth


async def test_with_time_enough_it_sees_the_whole_tree():
    for controller in [
        MCTS(simulations=1000, fanout=3),
        MCTS(simulations=1000, fanout=3, select="p-ucb", visit="one", unvisited="first"),
        MCTS(simulations=1000, fanout=3, lanes=5),
        MCTS(simulations=1000, fanout=1, widen_k=10, widen_alpha=1),
    ]:
        answer = await found(controller)
        assert answer.text == THE_BEST
        assert size(answer.root) == sum(3**depth for depth in range(5))


async def test_visits_balance_the_urgencies():
    """Where Q is fixed, UCT spreads its visits so that all children are equally urgent."""
    q = {"a": 0.8, "b": 0.7, "c": 0.6}
    controller = MCTS(simulations=1000, fanout=3, scale="none", exploration=1)
    answer = await found(controller, length=99, judge=Judge(lambda word: q[word[0]]))
    n = {child.text: size(child) for child in answer.root.children}
    total = sum(n.values())
    urgency = [q[c] + math.sqrt(math.log(total) / n[c]) for c in q]
    assert max(urgency) - min(urgency) < 0.01
    assert n["a"] > 0.8 * total


async def test_a_single_visit_counts_only_what_is_grown():
    """UCT tries all children first, then the formula: one visit for each simulation."""
    spy = Spy()
    rules = {"scale": "none", "visit": "one", "unvisited": "first"}
    await found(MCTS(simulations=40, fanout=3, **rules), spy, length=9)
    n, w = Counter({"": 1}), Counter()
    for grown in spy.grown[1:]:
        at = ""
        while at != grown:
            below = [at + letter for letter in LETTERS]
            new = [c for c in below if not n[c]]
            at = (
                max(new, key=worth)
                if new
                else max(
                    below,
                    key=lambda c: w[c] / n[c] + math.sqrt(2 * math.log(n[c[:-1]]) / n[c]),
                )
            )
            if not n[at]:
                break
        assert at == grown
        for length in range(len(grown) + 1):
            n[grown[:length]] += 1
            w[grown[:length]] += worth(grown)


async def test_the_score_of_a_child_may_stand_for_its_value():
    """RAP's fast reward: what was not visited is worth its score."""
    spy = Spy()
    rules = {"scale": "none", "visit": "one", "unvisited": "score", "exploration": 0}
    judge = Judge(lambda word: {"a": 0.5, "b": 0.6, "c": 0.2}.get(word, 0.0))
    await found(MCTS(simulations=6, fanout=3, **rules), spy, judge=judge)
    # Q(b) falls from 0.6 to 0.6 / 2 when ba, worth nothing, is visited; then Q(a) to 0.5 / 2.
    assert spy.grown == ["", "b", "ba", "a", "aa", "baa"]


async def test_a_finished_child_is_visited_once():
    answer = await found(MCTS(simulations=50, fanout=3, visit="one"), length=2)
    assert size(answer.root) == 13


async def test_a_rollout_values_a_child_by_where_it_leads():
    judge = Judge(lambda word: 1.0 if word.startswith("ba") and len(word) == 4 else 0.0)
    answer = await found(MCTS(simulations=1, fanout=3, rollout=3), judge=judge)
    assert answer.text == "baaa"


async def test_another_policy_may_make_the_rollouts():
    policies = {"policy": Enumerate(), "finisher": Enumerate("c")}
    controller = MCTS(simulations=2, fanout=3, rollout=9, rollout_by="finisher")
    answer = await found(controller, policies, judge=Judge(lambda word: float(word == "bccc")))
    assert {"accc", "bccc", "cccc", "bbcc"} <= {n.text for n in answer.root.walk()}


@pytest.mark.parametrize(("returns", "below"), [("leaf", 3.0), ("sum", 6.0), ("mean", 2.0)])
def test_what_a_path_brings(returns, below):
    """The steps of a path of three earn 1, 2 and 3: what do they bring its first node?"""
    root = Node(Task("?"), State())
    path = [root]
    for reward in (1.0, 2.0, 3.0):
        path.append(Node(root.task, State(), path[-1], 0, Step(".")))
        path[-1].score = reward
        path[-2].adopt([path[-1]])
    visits = Visits(MCTS(returns=returns, fanout=1), root)
    for _ in range(3):
        selected = visits.select()
        child = selected.visits[-1].node.children[0]
        visits.backup(selected, Grown([child], [child]))
    first = visits.top.open[0]
    own = {"leaf": [1, 2, 3], "sum": [1, 3, 6], "mean": [1, 1.5, 2]}[returns]
    assert (first.n, first.w) == (3, sum(own))
    assert own[-1] == below


@pytest.mark.parametrize("visit", ["all", "one"])
async def test_a_node_widens_as_it_is_visited(visit):
    controller = MCTS(simulations=60, fanout=1, visit=visit, widen_k=1, widen_alpha=0.5)
    answer = await found(controller, Enumerate("abcdefgh"), length=9)
    for node in answer.root.walk():
        n = size(node) - (node is answer.root)
        assert len(node.children) <= max(1, math.ceil(math.sqrt(n)))
    assert len(answer.root.children) >= 7


async def test_a_silent_policy_is_not_asked_to_widen_for_ever():
    class Silent:
        asked = 0

        async def propose(self, node, seeds):
            self.asked += 1
            return []

    policy = Silent()
    await found(MCTS(simulations=50, fanout=2, widen_k=4, widen_alpha=0.5), policy)
    assert policy.asked == 1


async def test_it_stops_at_what_is_good_enough():
    judge = Judge(lambda word: float(word == "abca"))
    for lanes in (1, 3):
        spy = Spy()
        controller = MCTS(simulations=500, fanout=3, enough=1.0, lanes=lanes)
        answer = await found(controller, spy, judge=judge)
        assert answer.text == "abca"
        assert "abc" in spy.grown[1 - 2 * lanes :]


class Gate(Spy):
    """Holds all calls until so many are in flight, or nothing else can start."""

    def __init__(self, lanes):
        super().__init__()
        self.lanes, self.flying, self.most = lanes, set(), 0
        self.open = anyio.Event()

    async def propose(self, node, seeds):
        assert node.text not in self.flying
        self.flying.add(node.text)
        self.most = max(self.most, len(self.flying))
        if len(self.flying) == min(self.lanes, 3 ** len(node.text)):
            self.open.set()
            self.open = anyio.Event()
        else:
            await self.open.wait()
        self.flying.remove(node.text)
        return await super().propose(node, seeds)


async def test_as_many_calls_as_lanes_are_in_flight():
    with anyio.fail_after(2):
        gate = Gate(3)
        await found(MCTS(simulations=4, fanout=3, lanes=3), gate)
    assert gate.most == 3
    assert set(gate.grown) == {"", "a", "b", "c"}


class Late(Spy):
    """Answers in an order of its own."""

    def __init__(self, seed):
        super().__init__()
        self.random = random.Random(seed)
        self.flying = set()

    async def propose(self, node, seeds):
        assert node.text not in self.flying
        self.flying.add(node.text)
        for _ in range(self.random.randrange(9)):
            await anyio.lowlevel.checkpoint()
        self.flying.remove(node.text)
        return await super().propose(node, seeds)


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("in_flight", ["wu", "virtual-loss"])
async def test_statistics_add_up_whatever_the_order(monkeypatch, in_order, in_flight):
    kept = []
    made = Visits.__init__

    def keep(self, rules, root):
        made(self, rules, root)
        kept.append(self)

    monkeypatch.setattr(Visits, "__init__", keep)
    rules = {"in_order": in_order, "in_flight": in_flight, "lanes": 4, "fanout": 3}
    for seed in range(5):
        policy = Late(seed)
        answer = await found(MCTS(simulations=30, **rules), policy, length=5)
        visits = kept.pop()
        assert len(policy.grown) == len(set(policy.grown)) == 30
        assert not visits.growing
        assert visits.top.n == size(answer.root) - 1
        assert visits.top.w == pytest.approx(
            sum(node.score for node in answer.root.walk() if node is not answer.root)
        )
        below = [visits.top]
        while below:
            v = below.pop()
            assert v.o == 0
            assert v.n == size(v.node) - (v is visits.top)
            below += v.open or []


async def test_what_is_in_flight_is_less_urgent():
    """With a call under `a` in flight, the next goes to `b`, if it counts as enough visits."""
    judge = Judge({"a": 0.9, "b": 0.5, "aa": 0.9, "ab": 0.0}.get)  # Q(a) = 0.6 after 3 visits
    for in_flight, exploration, second in [
        ("wu", 0.19, "b"),  # 0.5 + 0.19 √(ln 6 / 1) > 0.6 + 0.19 √(ln 6 / 5)
        ("wu", 0, "a"),
        ("virtual-loss", 0, "b"),  # 0.5 > 1.8 / 5
    ]:
        controller = MCTS(fanout=2, scale="none", in_flight=in_flight, exploration=exploration)
        visits = Visits(controller.model_copy(update={"lanes": 2}), Node(Task("?"), State()))
        root = visits.top.node

        def grow(path, judge=judge, visits=visits):
            node = path.visits[-1].node
            born = [
                Node(node.task, State(), node, i, Step(letter)) for i, letter in enumerate("ab")
            ]
            for child in born:
                child.score = judge.value(child.text)
            node.adopt(born)
            visits.backup(path, Grown(born, born))

        grow(visits.select())
        grow(visits.select())  # under a
        assert root.children[0].children
        flying = visits.select()
        assert flying.visits[1].node.text == "a"
        assert visits.select().visits[1].node.text == second


async def test_an_outage_in_one_lane_ends_all():
    class Dies(Late):
        async def propose(self, node, seeds):
            if len(self.grown) >= 6:
                raise BackendError("gone", fatal=True)
            return await super().propose(node, seeds)

    answer = await solve(
        "a word?",
        policy=Dies(0),
        controller=MCTS(simulations=100, fanout=3, lanes=3),
        environment=Word(5),
        verifier=Judge(),
    )
    assert answer.stopped == "failing"
    assert isinstance(answer.error, SearchFailed)
