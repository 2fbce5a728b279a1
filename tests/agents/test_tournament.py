import json
import math
import random
from functools import cache
from itertools import permutations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchwise.agents.tournament import Tournament, strengths
from branchwise.core.aio import run_sync
from branchwise.core.errors import BackendError, VerifierError
from branchwise.core.node import Node
from branchwise.core.types import FREE, State, Step, Task, Usage, Verdict

pytestmark = pytest.mark.anyio
FORMATS = ["knockout", "copeland", "bradley-terry"]
every = pytest.mark.parametrize("how", FORMATS)


class Prefers:
    """The probability that the first is better, from the two texts and a seed."""

    def __init__(self, function, usage=FREE):
        self.function, self.usage = function, usage
        self.rounds, self.seeds = [], []

    async def prefer(self, pairs, seeds):
        self.rounds.append([a.text + b.text for a, b in pairs])
        self.seeds += seeds
        said = [self.function(a.text, b.text, s) for (a, b), s in zip(pairs, seeds, strict=True)]
        return [
            Verdict(float(s), usage=self.usage) if isinstance(s, float | bool) else s for s in said
        ]


def larger(a, b, seed):
    return a > b


def field(texts):
    root = Node(Task("?"), State())
    for i, text in enumerate(texts):
        root.adopt([Node(root.task, State(done=True), root, i, Step(text))])
    return root


async def winner(judge, texts, seed=0, **rules):
    (step,) = await Tournament(prefer=judge, **rules).propose(field(texts), [seed])
    return step.text


@every
async def test_with_a_noiseless_judge_the_best_wins(how):
    for n in range(1, 10):
        for order in permutations("abcdefghi"[:n]) if n < 5 else range(6):
            texts = order if n < 5 else random.Random(order).sample("abcdefghi"[:n], n)
            assert await winner(Prefers(larger), texts, format=how) == max(texts)


# The knockout's failure, exactly: from who is right, by all ways in which the matches may end.


def match(k, p):
    """The probability that the right one wins against a wrong one, if it is the earlier, or not."""
    law = [math.comb(k, wins) * p**wins * (1 - p) ** (k - wins) for wins in range(k + 1)]
    more = sum(q for wins, q in enumerate(law) if 2 * wins > k)
    return more + (law[k // 2] if k % 2 == 0 else 0), more


def failure(n, p_gen, k, p_comp):
    early, late = match(k, p_comp)

    @cache
    def lost(alive):  # (number, right) of those that are left
        if len(alive) == 1:
            return float(not alive[0][1])
        odd = alive[-1:] if len(alive) % 2 else ()
        total = 0.0
        pairs = [sorted(pair) for pair in zip(alive[::2], alive[1::2], strict=False)]
        for ends in product((0, 1), repeat=len(pairs)):
            chance = 1.0
            for (a, b), end in zip(pairs, ends, strict=True):
                if a[1] == b[1]:
                    chance *= 0.5  # who of two equals wins makes no difference
                else:
                    right = early if a[1] else late
                    chance *= right if (a, b)[end][1] else 1 - right
            total += chance * lost(odd + tuple(p[end] for p, end in zip(pairs, ends, strict=True)))
        return total

    return sum(
        p_gen ** sum(rights) * (1 - p_gen) ** (n - sum(rights)) * lost(tuple(enumerate(rights)))
        for rights in product((0, 1), repeat=n)
    )


def bound(n, p_gen, k, p_comp):
    return (1 - p_gen) ** n + math.ceil(math.log2(n)) * math.exp(-2 * k * (p_comp - 0.5) ** 2)


@pytest.mark.parametrize(("n", "k", "p_comp"), [(1, 1, 0.7), (5, 2, 0.8), (8, 3, 0.75)])
async def test_a_knockout_fails_as_often_as_it_must_and_no_more_than_the_bound(n, k, p_comp):
    trials, p_gen = 800, 0.3
    exact = failure(n, p_gen, k, p_comp)
    assert exact <= bound(n, p_gen, k, p_comp)
    noise = random.Random(1)

    def vote(a, b, seed):
        return noise.random() < {0: 0.5, 1: p_comp, -1: 1 - p_comp}[int(a) - int(b)]

    lost = 0
    for _ in range(trials):
        texts = ["1" if noise.random() < p_gen else "0" for _ in range(n)]
        lost += await winner(Prefers(vote), texts, votes=k) == "0"
    assert abs(lost - trials * exact) < 4 * math.sqrt(trials * exact * (1 - exact))


@pytest.mark.parametrize("n", range(1, 8))
def test_the_bound_holds_with_byes_too(n):
    for k, p_gen, p_comp in product((1, 2, 5, 9), (0.1, 0.5), (0.6, 0.9)):
        assert failure(n, p_gen, k, p_comp) <= bound(n, p_gen, k, p_comp)


@pytest.mark.parametrize(
    ("n", "rounds"),
    [
        (2, [["ab"]]),
        (3, [["ab"], ["bc"]]),
        (5, [["ab", "cd"], ["be"], ["de"]]),
        (6, [["ab", "cd", "ef"], ["bd"], ["df"]]),
        (7, [["ab", "cd", "ef"], ["bg", "df"], ["fg"]]),
        (8, [["ab", "cd", "ef", "gh"], ["bd", "fh"], ["dh"]]),
    ],
)
async def test_rounds_and_byes_of_a_knockout(n, rounds):
    judge = Prefers(larger)
    await winner(judge, "abcdefgh"[:n])
    assert judge.rounds == rounds


async def test_in_a_league_all_pairs_meet_at_once_as_often_as_there_are_votes():
    judge = Prefers(larger)
    await winner(judge, "abcd", format="copeland", votes=2)
    pairs = ["ab", "ac", "ad", "bc", "bd", "cd"]
    assert judge.rounds == [[pair for pair in pairs for _ in range(2)]]


async def test_every_vote_has_a_seed_of_its_own_that_follows_from_the_tournaments():
    first, again, other = Prefers(larger), Prefers(larger), Prefers(larger)
    for judge, seed in ((first, 1), (again, 1), (other, 2)):
        await winner(judge, "abcdefg", seed, votes=4)
    assert len(set(first.seeds)) == 6 * 4
    assert first.seeds == again.seeds
    assert not set(first.seeds) & set(other.seeds)


@every
async def test_of_equals_the_earlier_wins(how):
    for judge in (lambda a, b, s: 0.5, lambda a, b, s: s % 2 == 0):
        texts = "abcdefg" if judge("a", "b", 1) else "aaaa"
        assert await winner(Prefers(judge), texts, format=how, votes=2) == "a"


@given(st.integers(2, 7), st.randoms(use_true_random=False))
def test_copeland_counts_won_pairs_and_half_the_ties(n, dice):
    texts = "abcdefg"[:n]
    said = {a + b: dice.choice([0.0, 0.5, 1.0]) for i, a in enumerate(texts) for b in texts[i:]}
    points = dict.fromkeys(texts, 0.0)
    for pair, score in said.items():
        if pair[0] != pair[1]:
            points[pair[0]] += score
            points[pair[1]] += 1 - score
    judge = Prefers(lambda a, b, seed: said[a + b])

    async def main():
        return await winner(judge, texts, format="copeland")

    assert run_sync(main) == max(points, key=points.get)


async def test_margins_count_for_bradley_and_terry_but_not_for_copeland():
    said = {"ab": 0.6, "ac": 0.6, "bc": 1.0}  # a wins twice, but b has 1.4 votes and a has 1.2
    judge = Prefers(lambda a, b, seed: said[a + b])
    assert await winner(judge, "abc", format="copeland") == "a"
    assert await winner(judge, "abc", format="bradley-terry") == "b"


@given(st.integers(2, 7), st.integers(1, 3), st.randoms(use_true_random=False))
def test_where_all_have_met_as_often_strengths_rank_as_votes_do(n, votes, dice):
    texts = "abcdefg"[:n]
    total = dict.fromkeys(texts, 0.0)

    def vote(a, b, seed):
        score = dice.randrange(5) / 4
        total[a] += score
        total[b] += 1 - score
        return score

    async def main():
        return await winner(Prefers(vote), texts, format="bradley-terry", votes=votes)

    assert run_sync(main) == max(total, key=total.get)


@given(st.integers(0, 50), st.integers(0, 50))
def test_two_strengths_have_a_closed_form(a, b):
    if a + b:
        assert strengths([[0, a], [b, 0]]) == pytest.approx([a / (a + b), b / (a + b)], abs=1e-9)


@given(st.lists(st.floats(0.2, 5), min_size=1, max_size=6), st.integers(1, 9))
def test_strengths_are_recovered_from_what_they_lead_one_to_expect(true, games):
    wins = [
        [games * p / (p + q) * (i != j) for j, q in enumerate(true)] for i, p in enumerate(true)
    ]
    assert strengths(wins) == pytest.approx([p / sum(true) for p in true], rel=1e-6)


@given(
    st.integers(2, 5).flatmap(
        lambda n: st.lists(
            st.lists(st.integers(1, 9), min_size=n, max_size=n), min_size=n, max_size=n
        )
    )
)
def test_at_the_strengths_the_likelihood_has_no_slope(table):
    wins = [[w * (i != j) for j, w in enumerate(row)] for i, row in enumerate(table)]
    p = strengths(wins)
    assert sum(p) == pytest.approx(1)
    for i, row in enumerate(wins):
        # The derivative of Σ w_ij log(p_i / (p_i + p_j)) in log p_i.
        expected = sum((w + wins[j][i]) * p[i] / (p[i] + p[j]) for j, w in enumerate(row) if j != i)
        assert sum(row) == pytest.approx(expected, abs=1e-6)


@every
async def test_a_fifth_of_the_votes_may_fail(how):
    def flaky(a, b, seed):
        return VerifierError("the line broke") if seed % 5 == 0 else a > b

    for seed in range(10):
        texts = random.Random(seed).sample("abcdefgh", 8)
        judge = Prefers(flaky)
        assert await winner(judge, texts, seed, format=how, votes=6) == "h"
        assert any(s % 5 == 0 for s in judge.seeds)


async def test_of_a_pair_without_votes_the_earlier_goes_on():
    judge = Prefers(lambda a, b, seed: VerifierError("?") if a + b == "cd" else a > b)
    assert await winner(judge, "abcd") == "c"
    assert judge.rounds == [["ab", "cd"], ["bc"]]
    assert await winner(judge, "abcd", format="copeland") == "c"  # 2½ pairs each


@every
@pytest.mark.parametrize(
    "wrong", [VerifierError("no idea", hint="ask"), Verdict(1.5), Verdict(math.nan), Verdict(-0.1)]
)
async def test_where_no_vote_counts_there_is_no_winner(how, wrong):
    with pytest.raises(BackendError, match=r"no vote arrived: (no idea|.* is no probability)"):
        await winner(Prefers(lambda a, b, seed: wrong), "abc", format=how)


async def test_a_judge_that_raises_loses_its_votes_and_a_fatal_one_the_search():
    class Down:
        fatal = False

        async def prefer(self, pairs, seeds):
            raise BackendError("wrong key", fatal=self.fatal, arrived=[Step("A")])

    judge = Down()
    for judge.fatal in (False, True):
        with pytest.raises(BackendError, match="wrong key") as said:
            await winner(judge, "abc")
        assert said.value.fatal == judge.fatal
        assert not said.value.arrived


async def test_it_costs_what_its_votes_cost():
    judge = Prefers(larger, Usage(calls=2, completion=3))
    (step,) = await Tournament(prefer=judge, votes=2).propose(field("abcde"), [0])
    assert step.usage == Usage(calls=2 * 8, completion=3 * 8)  # 4 matches of 2 votes


@every
async def test_without_rivals_nobody_is_asked(how):
    policy = Tournament(prefer=None, format=how)
    assert await policy.propose(field(""), [0, 1]) == []
    assert [step.text for step in await policy.propose(field("a"), [0, 1])] == ["a", "a"]


def test_the_judge_is_no_part_of_the_configuration():
    policy = Tournament(prefer=Prefers(larger), format="copeland", votes=3)
    dumped = json.loads(policy.model_dump_json())
    assert dumped == {"kind": "tournament", "format": "copeland", "votes": 3}
    assert Tournament(prefer=policy.prefer, **dumped) == policy
