"""Stopping rules against integrals, brute force and exact laws; the controller around them."""

import itertools
import math
import random
from collections import Counter
from fractions import Fraction
from functools import cache

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field
from worlds import Jittered, Judge, Random

from branchwise import (
    BackendError,
    BestFirst,
    BestOfN,
    Budget,
    Controller,
    Exhausted,
    Node,
    Rollout,
    State,
    Step,
    Task,
    Vote,
    solve,
    to_json,
)
from branchwise.core.aio import gather, lanes
from branchwise.search.stopping import (
    AdaptiveConsistency,
    Curtailment,
    EarlyStopping,
    Enough,
    Patience,
)
from branchwise.search.until import Until
from branchwise.testing import Word

pytestmark = pytest.mark.anyio


class Says:
    """A policy that says these letters, one for each child of the root."""

    def __init__(self, said):
        self.said = said

    async def propose(self, node, seeds):
        return [Step(letter) for letter in self.said[node.promised - len(seeds) : node.promised]]


async def until(rule, said, *, batch=1, judge=None, **more):
    return await solve(
        "?",
        policy=Says(said),
        controller=Until(search=BestOfN(n=len(said), batch=batch, pick=Vote()), stop=rule),
        environment=Word(1),
        verifier=judge,
        **more,
    )


def tree(said):
    root = Node(Task("?"), State())
    ends = [State(answer=a if a != "?" else None, done=True) for a in said]
    if ends:
        root.adopt([Node(root.task, end, root, i, Step("")) for i, end in enumerate(ends)])
    return root


def integral(f, steps=20_000):
    return sum(f((i + 0.5) / steps) for i in range(steps)) / steps


@pytest.mark.parametrize(("a", "b"), [(1, 0), (4, 0), (3, 1), (7, 2), (5, 5), (20, 11)])
def test_the_beta_posterior_is_the_integral_over_the_two_leaders(a, b):
    def density(p):
        return p**a * (1 - p) ** b

    above = integral(lambda p: density((1 + p) / 2)) / 2  # from 1/2 to 1
    probability = AdaptiveConsistency().probability([a, b])
    assert probability == pytest.approx(above / integral(density), rel=1e-6)


@pytest.mark.parametrize("counts", [(3, 1, 1), (6, 2, 1), (5, 4, 3, 1), (9, 1, 1, 1, 1), (2, 2, 2)])
def test_the_dirichlet_posterior_is_the_share_of_draws_that_the_leader_wins(counts):
    dice, draws = random.Random(0), 20_000
    wins = 0
    for _ in range(draws):
        first, *others = [dice.gammavariate(count + 1, 1) for count in counts]
        wins += first > max(others)
    share = wins / draws
    probability = AdaptiveConsistency(posterior="dirichlet").probability(counts)
    assert abs(probability - share) < 4 * math.sqrt(share * (1 - share) / draws)
    if len(set(counts)) == 1:
        assert probability == pytest.approx(1 / len(counts), abs=1e-9)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_more_answers_never_make_the_leader_surer(counts):
    counts = sorted(counts, reverse=True)
    beta, whole = [
        AdaptiveConsistency(posterior=p).probability(counts) for p in ("beta", "dirichlet")
    ]
    assert whole <= beta + 1e-8
    assert 1 / (len(counts) + (len(counts) == 1)) - 1e-8 <= whole


def leads(counts):
    """P(leader beats runner-up) as a walk: the chance that a fair coin falls so."""
    first, second = counts
    n = first + second + 1
    return sum(1 for flips in itertools.product([0, 1], repeat=n) if sum(flips) > second) / 2**n


def certain(said):
    ranked = sorted(Counter(said.replace("?", "")).values(), reverse=True)
    return bool(ranked) and leads([*ranked, 0][:2]) >= 0.95


@cache
def urn(balls, lead, more):
    """P(lead >= 0 at the end) of a Pólya urn with balls for two leaders and for the rest."""
    if not more:
        return Fraction(lead >= 0)
    return sum(
        Fraction(count, sum(balls))
        * urn(tuple(b + (i == drawn) for i, b in enumerate(balls)), lead + change, more - 1)
        for drawn, (count, change) in enumerate(zip(balls, (1, -1, 0), strict=True))
    )


@pytest.mark.parametrize(
    ("a", "b", "rest"), [(2, 0, 0), (3, 1, 1), (4, 4, 0), (1, 0, 6), (5, 3, 1)]
)
@pytest.mark.parametrize("ties", [True, False])
def test_the_predictive_probability_is_that_of_the_urn(a, b, rest, ties):
    exact = urn((a + 1, b + 1, rest + 1), a - b - (not ties), 9 - a - b - rest)
    assert Curtailment(n=9).probability(a, b, rest, ties=ties) == pytest.approx(float(exact))


def test_certainty_never_changes_the_vote_and_nothing_less_will_do():
    vote, n = Vote(), 5
    for said in itertools.product("abc", repeat=n):
        word = "".join(said)
        stop = next((k for k in range(1, n) if Curtailment(n=n, confidence=1)(tree(word[:k]))), n)
        winner = vote(tree(word[:stop])).state.answer
        assert winner == vote(tree(word)).state.answer
        ends = [
            word[: stop - 1] + "".join(rest)
            for rest in itertools.product("abc", repeat=n - stop + 1)
        ]
        assert len({vote(tree(end)).state.answer for end in ends}) > 1  # one look earlier


def unanimous(said, step, w=3):
    windows = [said[i : i + w] for i in range(0, len(said), step)]
    return any(len(x) == w and x in {"aaa", "bbb", "ccc"} for x in windows)


ORACLES = [
    (AdaptiveConsistency(), certain),
    (AdaptiveConsistency(posterior="dirichlet", confidence=0.8), None),
    (Curtailment(n=9), None),
    (EarlyStopping(window=3), lambda said: unanimous(said, 3)),
    (EarlyStopping(window=3, windows="sliding"), lambda said: unanimous(said, 1)),
]


@pytest.mark.parametrize(("rule", "oracle"), ORACLES)
async def test_it_stops_where_the_rule_first_holds(rule, oracle):
    oracle = oracle or (lambda said: rule(tree(said)))
    dice = random.Random(1)
    for trial in range(40):
        said = "".join(dice.choices("abc", [6, 2, 1], k=9))
        batch = 1 + trial % 4
        looks = [min(k, len(said)) for k in range(batch, len(said) + batch, batch)]
        first = next((k for k in looks if oracle(said[:k])), len(said))
        answer = await until(rule, said, batch=batch)
        assert len(answer.root.children) == first
        assert answer.stopped == "finished"
        assert answer.value == Vote()(tree(said[:first])).state.answer


async def test_the_law_of_the_adaptive_vote_is_exact():
    """Every sequence of seven samples through the search, against the chain of the counts."""
    p, n, rule = {"a": 0.7, "b": 0.3}, 7, AdaptiveConsistency(confidence=0.9)

    def winner(said):
        counts = Counter(said)
        return max(counts, key=counts.get)

    right = drawn = agree = 0.0
    for said in itertools.product(p, repeat=n):
        mass = math.prod(p[letter] for letter in said)
        answer = await until(rule, said)
        right += mass * (answer.value == "a")
        drawn += mass * len(answer.root.children)
        agree += mass * (answer.value == winner(said))
    chain, stopped, samples = {(): 1.0}, Counter(), 0.0
    for k in range(1, n + 1):
        after = Counter()
        for said, mass in chain.items():
            for letter, chance in p.items():
                now = (*said, letter)
                top = [*sorted(Counter(now).values(), reverse=True), 0]
                over = k == n or leads(top[:2]) >= 0.9
                samples += k * mass * chance if over else 0
                (stopped if over else after)[now] += mass * chance
        chain = after
    assert right == pytest.approx(sum(m for said, m in stopped.items() if winner(said) == "a"))
    assert drawn == pytest.approx(samples)
    # Three equal ones stop it; all seven would vote otherwise only where the four others are equal.
    assert agree == pytest.approx(1 - 0.7**3 * 0.3**4 - 0.3**3 * 0.7**4)


async def test_a_rule_that_never_holds_changes_nothing():
    plain = await solve("?", policy=Random(), controller=BestOfN(n=6), environment=Word(3))
    search = Until(search=BestOfN(n=6), stop=Enough(score=9))
    assert to_json(plain.root) == to_json(
        (await solve("?", policy=Random(), controller=search, environment=Word(3))).root
    )


async def test_patience_counts_the_expansions_without_a_gain():
    scores = dict(zip("abcdefgh", [1, 3, 2, 3, 2.5, 4, 0, 0], strict=True))
    for looks, gain, drawn in [(1, 0, 3), (2, 0, 4), (3, 0, 5), (4, 0, 8), (2, 1.5, 4), (3, 3, 4)]:
        answer = await until(
            Patience(looks=looks, gain=gain), "abcdefgh", judge=Judge(scores.__getitem__)
        )
        assert len(answer.root.children) == drawn


async def test_patience_waits_for_the_first_to_finish():
    search = Until(search=Rollout(), stop=Patience(looks=1))
    answer = await solve("?", policy=Random(), controller=search, environment=Word(5))
    assert len(answer.text) == 5


async def test_enough_draws_until_the_first_success():
    for said in itertools.product("ab", repeat=5):
        answer = await until(Enough(), "".join(said), judge=Judge(lambda w: float(w == "b")))
        assert len(answer.root.children) == (said.index("b") + 1 if "b" in said else 5)


def test_a_sample_without_an_answer_has_no_vote_and_breaks_a_window():
    assert AdaptiveConsistency()(tree("?a?aaa"))
    assert not AdaptiveConsistency()(tree("????"))
    assert not EarlyStopping(window=3, windows="sliding")(tree("aa?aa???"))
    assert EarlyStopping(window=1)(tree("?a"))


async def test_a_budget_is_not_a_rule():
    assert (await until(Enough(score=9), "abc", budget=Budget(nodes=2))).stopped == "exhausted"
    done = await until(AdaptiveConsistency(), "aaaaaa", budget=Budget(nodes=4))
    assert done.stopped == "finished"


class Then(Controller):
    """Runs one controller after the other."""

    searches: tuple[Until, ...] = Field()

    async def grow(self, root, expand):
        for search in self.searches:
            await search.grow(root, expand)

    def answer(self, root):
        return self.searches[0].answer(root)


@pytest.mark.parametrize(("outer", "drawn"), [(9, 6), (4, 5), (2, 3)])
async def test_each_rule_ends_its_own_search(outer, drawn):
    draw = BestOfN(n=9, batch=1)
    inner = Until(search=draw, stop=EarlyStopping(window=3)), Until(search=draw, stop=Enough())
    controller = Until(search=Then(searches=inner), stop=Patience(looks=outer))
    # The first ends after three equal answers, the second one at the next `b`; nothing improves.
    answer = await solve(
        "?",
        policy=Says("aaaccbccc"),
        controller=controller,
        environment=Word(1),
        verifier=Judge(lambda word: float(word == "b")),
    )
    assert len(answer.root.children) == drawn


class Lanes(Controller):
    """Grows children of the root in lanes, each as fast as it can."""

    n: int = 12
    lanes: int = 4

    async def grow(self, root, expand):
        left = iter(range(self.n))

        async def lane():
            if next(left, None) is None:
                return False
            await expand([root])
            return True

        await lanes(lane, self.lanes)

    def answer(self, root):
        return Vote()(root)


@pytest.mark.parametrize("stop", [EarlyStopping(window=3, windows="sliding"), Patience(looks=2)])
async def test_what_is_in_flight_is_awaited_and_nothing_more_begins(stop):
    for seed in range(20):
        answer = await solve(
            "?",
            policy=Jittered(Random("a"), 64, seed),
            controller=Until(search=Lanes(), stop=stop),
            environment=Word(1),
        )
        assert answer.stopped == "finished"
        assert answer.root.promised == len(answer.root.children)  # nothing was thrown away
        assert 3 <= len(answer.root.children) <= 3 + 3


async def test_a_budget_that_ends_while_others_land_does_not_hide_the_rule():
    landing = anyio.Event()

    class Two(Lanes):
        async def grow(self, root, expand):
            await gather(lambda by: expand([root], by=by), ["first", "second"])

    async def expand(nodes, n=1, *, by):
        if by == "second":
            await landing.wait()
            raise Exhausted("the budget is spent")
        nodes[0].adopt(tree("a").children)
        landing.set()
        return nodes[0].children

    root = tree("")
    await Until(search=Two(), stop=EarlyStopping(window=1)).grow(root, expand)
    assert [node.state.answer for node in root.children] == ["a"]


def test_it_is_a_spec():
    vote = BestOfN(n=32, batch=1, pick=Vote())
    search = Until(search=vote, stop=AdaptiveConsistency(posterior="dirichlet"))
    assert Until.model_validate_json(search.model_dump_json()) == search
    assert Until(search=search, stop=Enough()).search is search
    assert Until(search=Lanes(n=5), stop=Enough()).model_dump()["search"] == {"n": 5, "lanes": 4}
    with pytest.raises(ValueError, match=r"search.best-of-n.m\n"):
        Until.model_validate({"search": {"kind": "best-of-n", "m": 1}, "stop": {"kind": "enough"}})


@pytest.mark.parametrize("in_order", [True, False])
async def test_an_outage_while_others_land_does_not_hold_the_end_up(in_order):
    """One lane has seen enough and waits for another one, whose call never comes back well."""

    class Down(Random):
        async def propose(self, node, seeds):
            if node.text and node.index:
                for _ in range(5 * node.index):
                    await checkpoint()
                raise BackendError("the quota is spent", fatal=True)
            return await super().propose(node, seeds)

    search = BestFirst(fanout=3, lanes=3, in_order=in_order)
    with anyio.fail_after(5):
        answer = await solve(
            "?",
            policy=Down(),
            controller=Until(search=search, stop=Enough(score=0)),
            environment=Word(2),
            verifier=Judge(),
        )
    assert answer.stopped == "finished"
    assert answer.node.finished


async def test_the_controller_in_the_middle_may_be_one_that_stops_itself():
    """An outer rule ends lanes that an inner rule watches; what they know is not mixed up."""
    lanes = BestFirst(fanout=3, lanes=4, expansions=40)
    inner = Until(search=lanes, stop=Patience(looks=3))
    for rule, most in [(Enough(score=-1), 1 + 4 + 3), (Enough(score=2), 40)]:
        for seed in range(10):
            answer = await solve(
                "?",
                policy=Jittered(Random(), 64, seed),
                controller=Until(search=inner, stop=rule),
                environment=Word(2),
                verifier=Judge(),
            )
            assert answer.stopped == "finished"
            grown = [node for node in answer.root.walk() if node.promised]
            assert all(len(node.children) == node.promised for node in grown)
            assert len(grown) <= most
