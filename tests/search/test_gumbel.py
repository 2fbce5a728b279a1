"""Gumbel MCTS against mctx, the paper's numbers, and the policy improvement that it promises."""

import math
import random
from collections import Counter
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import Enumerate, Judge, words, worth

from branchwise import Node, State, Step, Task, run_sync, solve
from branchwise.search.gumbel import GumbelMCTS
from branchwise.testing import Word

pytestmark = pytest.mark.anyio


class Told(GumbelMCTS):
    """With noise that the test knows."""

    g: tuple[float, ...]

    def gumbels(self, root, k):
        return list(self.g)


class Table:
    """A world whose logits and values are looked up: `expand` for words of so many letters."""

    def __init__(self, letters, length, logits, values):
        self.letters, self.length, self.logits, self.values = letters, length, logits, values
        self.grown = []

    def root(self):
        return Node(Task("?"), State(""))

    async def __call__(self, nodes, n=1, *, by="policy"):
        children = []
        for node in nodes:
            word = node.state.snapshot
            self.grown.append(word)
            family = [
                Node(
                    node.task,
                    State(
                        word + letter,
                        reward=self.values[word + letter],
                        done=len(word) + 1 == self.length,
                    ),
                    node,
                    i,
                    Step(letter, logprob=self.logits[word][i]),
                )
                for i, letter in enumerate(self.letters[:n])
            ]
            node.adopt(family)
            children += family
        return children


def bandit(logits, values):
    letters = "abcdefghijklmnop"[: len(logits)]
    return Table(letters, 1, {"": logits}, dict(zip(letters, values, strict=True)))


def softmax(logits):
    weights = [math.exp(logit - max(logits)) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def phases(turns):
    """How many children have their turn at each count."""
    return [size for _, size in sorted(Counter(turns).items())]


@pytest.mark.parametrize(
    ("m", "n", "expected"),
    [
        # ⌊n / (⌈log₂ m⌉ · m')⌋ visits for each of m' = m, m/2, …, 2; then the last two go on.
        (16, 200, [16] * 3 + [8] * 6 + [4] * 12 + [2] * 28),
        (16, 64, [16] + [8] * 2 + [4] * 4 + [2] * 8),
        (16, 32, [16, 8, 4, 4]),
        (16, 16, [16]),
        (16, 5, [5]),
        (8, 24, [8, 4, 4, 2, 2, 2, 2]),
        (6, 24, [6, 3, 3, 2, 2, 2, 2, 2, 2]),
        (5, 20, [5, 2, 2, 2, 2, 2, 2, 2, 1]),
        (3, 7, [3, 2, 2]),
        (2, 9, [2, 2, 2, 2, 1]),
        (1, 4, [1, 1, 1, 1]),
        (0, 4, []),
    ],
)
def test_children_have_the_turns_of_sequential_halving(m, n, expected):
    search = GumbelMCTS(simulations=n, considered=max(m, 1))
    assert phases(search.turns(m)) == expected
    assert search.turns(m) == sorted(search.turns(m))


def test_turns_with_more_children_than_are_considered():
    assert GumbelMCTS(simulations=6, considered=2).turns(50) == [0, 0, 1, 1, 2, 2]


def plans_of_mctx(logits, values, after, n, m, *, stretch):
    """Two moves of mctx in many worlds: where each starts, its noise, its visits, and the move."""
    mctx, jax = pytest.importorskip("mctx"), pytest.importorskip("jax")
    jnp = jax.numpy
    with jax.enable_x64(True):
        logits, values, after = jnp.array(logits), jnp.array(values), jnp.array(after)
        every, none = jnp.arange(len(logits)), jnp.zeros(len(logits))

        def step(_params, _key, action, state):
            state = after[state, action]
            return mctx.RecurrentFnOutput(
                reward=none,
                discount=none + 1,
                prior_logits=logits[every, state],
                value=values[every, state],
            ), state

        @jax.jit
        def plan(key, state):
            prior = jax.nn.softmax(logits[every, state])
            mean = (prior * values[every[:, None], after[state]]).sum(-1)
            value = jnp.where(state == 0, mean, values[every, state])  # nobody judges the root
            found = mctx.gumbel_muzero_policy(
                (),
                key,
                mctx.RootFnOutput(prior_logits=logits[every, state], value=value, embedding=state),
                step,
                n,
                max_num_considered_actions=m,
                qtransform=partial(mctx.qtransform_completed_by_mix_value, rescale_values=stretch),
            )
            tree = found.search_tree
            return tree.extra_data.root_gumbel, tree.summary().visit_counts, found.action

        state = jnp.zeros(len(logits), dtype=int)
        for key in jax.random.split(jax.random.PRNGKey(n), 2):
            noise, visits, move = plan(key, state)
            yield state.tolist(), noise.tolist(), visits.tolist(), move.tolist()
            state = after[state, move]


def test_visits_and_moves_are_those_of_mctx():
    letters, length, worlds = "abc", 4, 24
    names = ["", *[word for depth in range(1, length + 1) for word in words(depth, letters)]]
    place = {name: i for i, name in enumerate(names)}
    draws = random.Random(0)
    logits = [[[draws.gauss(0, 1) for _ in letters] for _ in names] for _ in range(worlds)]
    values = [[draws.gauss(-3, 5) for _ in names] for _ in range(worlds)]
    after = [
        [place.get(name + letter, place[name]) for letter in letters]
        for name in names  # a word that is whole stays as it is, and keeps its value
    ]
    for n, m, stretch in [(24, 3, True), (17, 2, False)]:
        theirs = list(plans_of_mctx(logits, values, after, n, m, stretch=stretch))
        for i in range(worlds):
            table = Table(
                letters,
                length,
                dict(zip(names, logits[i], strict=True)),
                dict(zip(names, values[i], strict=True)),
            )
            node, grown = table.root(), {}
            for states, noise, visits, moves in theirs:
                assert node.state.snapshot == names[states[i]]
                search = Told(
                    g=tuple(noise[i]),
                    simulations=n,
                    considered=m,
                    fanout=3,
                    prior="sum",
                    stretch=stretch,
                )
                ours = run_sync(search.plan, node, table, grown)
                assert ours.visits == visits[i]
                assert ours.move is node.children[moves[i]]
                node = ours.move
            assert len(table.grown) == len(set(table.grown))


arms = st.integers(1, 9).flatmap(
    lambda k: st.tuples(
        *[
            st.lists(numbers, min_size=k, max_size=k)
            for numbers in (st.floats(-9, 0), st.floats(-1e3, 1e3), st.floats(-2, 7))
        ]
    )
)


options = st.fixed_dictionaries(
    {
        "considered": st.integers(1, 9),
        "simulations": st.integers(1, 30),
        "parallel": st.booleans(),
        "stretch": st.booleans(),
        "unvisited": st.sampled_from(["mixed", "score"]),
    }
)


@given(arms, options)
def test_the_move_is_never_worse_than_the_policy_s_own(arms, options):
    # The policy draws argmax g + logit (the Gumbel-max trick), so this is policy improvement for
    # each noise and therefore in expectation.
    logits, values, g = arms
    search = Told(g=tuple(g), fanout=len(g), prior="sum", **options)
    table = bandit(logits, values)
    plan = run_sync(search.plan, table.root(), table, {})
    drawn = max(range(len(g)), key=lambda a: g[a] + logits[a])
    assert plan.move.score >= values[drawn] - 1e-6
    assert sum(plan.visits) == search.simulations
    assert sum(n > 0 for n in plan.visits) <= search.considered


def chi_square(counts, expected):
    return sum((c - e) ** 2 / e for c, e in zip(counts, expected, strict=True))


def moves(search, logits, values, n=4000):
    """How often each child is the move, over so many seeds."""

    async def play():
        counts = Counter()
        for seed in range(n):
            table = bandit(logits, values)
            plan = await search.model_copy(update={"seed": seed}).plan(table.root(), table, {})
            counts[plan.move.index] += 1
        return [counts[i] for i in range(len(logits))]

    return run_sync(play)


def test_with_one_visit_for_each_child_moves_follow_the_improved_policy():
    logits, values, scale = [-0.3, -1.5, -2.0, -3.0], [0.1, 0.9, 0.4, 1.1], 0.04
    search = GumbelMCTS(simulations=4, prior="sum", stretch=False, value_scale=scale)
    improved = softmax([x + 51 * scale * q for x, q in zip(logits, values, strict=True)])
    counts = moves(search, logits, values)
    assert chi_square(counts, [4000 * p for p in improved]) < 11.34  # 1 %
    before, after = (
        sum(p * q for p, q in zip(policy, values, strict=True))
        for policy in (softmax(logits), improved)
    )
    assert before < after


def test_without_values_the_moves_are_the_policy_s():
    logits = [-0.3, -1.5, -2.0, -3.0]
    search = GumbelMCTS(simulations=9, considered=2, prior="sum")
    expected = [4000 * p for p in softmax(logits)]
    assert chi_square(moves(search, logits, [0.5] * 4), expected) < 11.34


def test_without_noise_the_moves_are_the_best_that_the_policy_considers():
    logits, values = [-0.3, -1.5, -2.0, -3.0], [0.1, 0.3, 0.9, 1.0]
    search = GumbelMCTS(simulations=9, considered=3, prior="sum", noise=0, value_scale=10)
    assert moves(search, logits, values, n=3) == [0, 0, 3, 0]


def halving(g, logits, values, n, sigma):
    """Algorithm 2 of the paper, on arms whose values do not change."""
    visits = [0] * len(g)
    left = sorted(range(len(g)), key=lambda a: -(g[a] + logits[a]))
    phases = math.ceil(math.log2(len(g)))
    while sum(visits) < n:
        for _ in range(max(1, n // (phases * len(left)))):
            for a in left[: n - sum(visits)]:
                visits[a] += 1
        rank = {a: g[a] + logits[a] + sigma(max(visits)) * values[a] for a in left}
        left = sorted(left, key=lambda a: -rank[a])[: max(2, len(left) // 2)]
    return visits


async def test_turns_side_by_side_are_the_paper_s_algorithm():
    draws = random.Random(5)
    for _ in range(200):
        n = draws.choice([16, 32, 48])
        logits, values, g = ([draws.gauss(0, 1) for _ in range(8)] for _ in range(3))
        table = bandit(logits, values)
        search = Told(
            g=tuple(g),
            simulations=n,
            fanout=8,
            prior="sum",
            parallel=True,
            stretch=False,
            value_scale=0.02,
        )
        plan = await search.plan(table.root(), table, {})
        assert plan.visits == halving(g, logits, values, n, lambda top: (50 + top) * 0.02)


async def test_side_by_side_a_turn_is_one_order():
    orders = []

    class Spy(Enumerate):
        async def propose(self, node, seeds):
            orders.append(node.text)
            return await super().propose(node, seeds)

    sizes = []
    search = GumbelMCTS(simulations=6, fanout=3, moves=1, parallel=True)
    await solve(
        "a word?",
        policy=Spy(),
        controller=search,
        environment=Word(6),
        verifier=Judge(),
        watch=lambda children: sizes.append(len({child.parent for child in children})),
    )
    assert sizes[:2] == [1, 3]
    assert sorted(orders[1:4]) == ["a", "b", "c"]
    assert sum(sizes) == len(orders) == 7


async def test_it_plays_to_the_end_and_expands_nothing_twice():
    grown = []

    class Spy(Enumerate):
        async def propose(self, node, seeds):
            grown.append(node.text)
            return await super().propose(node, seeds)

    answer = await solve(
        "a word?",
        policy=Spy(),
        controller=GumbelMCTS(simulations=12, fanout=3),
        environment=Word(4),
        verifier=Judge(),
    )
    assert len(answer.text) == 4
    assert len(grown) == len(set(grown)) <= 1 + 4 * 12
    finished = [leaf.text for leaf in answer.root.leaves() if leaf.done]
    assert answer.text == max(finished, key=worth)


@pytest.mark.parametrize(
    ("prior", "expected"),
    [("mean", [-1.0, -3.0]), ("sum", [-2.0, -3.0]), ("uniform", [0.0, 0.0])],
)
async def test_priors_come_from_log_probabilities(prior, expected):
    seen = []

    class Spy(GumbelMCTS):
        def _ranked(self, top, g, count):
            seen.append([a.logit for a in top.children])
            return super()._ranked(top, g, count)

    class Says:
        async def propose(self, node, seeds):
            return [
                Step("ab", logprob=-2.0, logprobs=(-0.5, -1.5)),
                Step("c", logprob=-3.0, logprobs=(-3.0,)),
            ]

    search = Spy(simulations=1, fanout=2, prior=prior, moves=1)
    await solve("?", policy=Says(), controller=search, environment=Word(1), verifier=Judge())
    assert seen[0] == expected


async def test_a_known_score_may_stand_for_the_value_of_an_unvisited_child():
    # The noise likes "b". Below it v_mix is the same for both children and the prior decides.
    values = {word: worth(word) for depth in (1, 2, 3) for word in words(depth, "ab")}
    values |= {"ba": 0.1, "bb": 0.9}
    logits = {"": [-1.0, -1.0], "b": [-0.5, -2.0], "ba": [0.0, 0.0], "bb": [0.0, 0.0]}
    for unvisited, then in [("mixed", "ba"), ("score", "bb")]:
        table = Table("ab", 3, logits, values)
        search = Told(
            g=(0.0, 5.0), simulations=2, considered=1, fanout=2, prior="sum", unvisited=unvisited
        )
        await search.plan(table.root(), table, {})
        assert table.grown == ["", "b", then]


async def test_visits_to_barren_nodes_count_and_cost_nothing():
    class Barren(Table):
        async def __call__(self, nodes, n=1, *, by="policy"):
            children = await super().__call__(nodes, n)
            return [child for child in children if child.parent.parent is None]

    table = Barren(
        "ab",
        2,
        {word: [0.0, 0.0] for word in ("", "a", "b")},
        dict.fromkeys(["a", "b", *words(2, "ab")], 0.5),
    )
    plan = await GumbelMCTS(simulations=50, fanout=2).plan(table.root(), table, {})
    assert sum(plan.visits) == 50
    assert sorted(table.grown) == ["", "a", "b"]
