"""Estimates at k against all choices of k samples, and against the law they estimate."""

import math
import random
from fractions import Fraction
from itertools import permutations
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchwise import Best, Node, SpecError, State, Task, Vote
from branchwise.runs.at_k import (
    best_of_n_at_k,
    coverage,
    majority_at_k,
    pass_at_k,
    weighted_vote_at_k,
)


def mean_over_choices(pick, samples, k):
    """The share of right picks over all ordered choices of k samples, by the pick itself."""
    right = total = 0
    for chosen in permutations(samples, k):
        root = Node(Task("?"), State())
        leaves = []
        for i, (answer, score, correct) in enumerate(chosen):
            end = State(answer=answer, done=True, reward=score, snapshot=correct)
            leaves.append(Node(root.task, end, root, i))
        root.adopt(leaves)
        node = pick(root)
        # Where nobody has an answer there is no majority.
        right += bool(node.state.snapshot) and (pick == Best() or node.state.answer is not None)
        total += 1
    return right / total


@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_pass_at_k_is_unbiased(n):
    p = Fraction(2, 7)
    for k in range(1, n + 1):
        mean = sum(
            comb(n, c) * p**c * (1 - p) ** (n - c) * Fraction(pass_at_k(n, c, k))
            for c in range(n + 1)
        )
        assert float(mean) == pytest.approx(float(1 - (1 - p) ** k), abs=1e-14)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(*[st.just(n)] + [st.integers(0, n)] * 2)))
def test_pass_at_k_is_the_ratio_of_binomials(numbers):
    n, c, k = numbers
    k = max(k, 1)
    exact = 1 - Fraction(comb(n - c, k), comb(n, k))
    assert pass_at_k(n, c, k) == pytest.approx(float(exact), abs=1e-12)


def test_coverage_is_the_mean_over_problems():
    problems = [(4, 0), (10, 1), (6, 6)]
    assert coverage(problems, 2) == pytest.approx((0 + 1 - 36 / 45 + 1) / 3)
    assert coverage(problems, 1) == pytest.approx((0 + 0.1 + 1) / 3)


scored = st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=6)
voted = st.lists(st.sampled_from(["a", "b", "c", "d", None]), min_size=1, max_size=6)


@given(scored, st.data())
def test_best_of_n_is_the_mean_over_all_choices(samples, data):
    k = data.draw(st.integers(1, len(samples)))
    estimate = best_of_n_at_k([s for s, _ in samples], [c for _, c in samples], k)
    exact = mean_over_choices(Best(), [("x", s, c) for s, c in samples], k)
    assert estimate == pytest.approx(exact)


@given(voted, st.sets(st.sampled_from("abcd")), st.data())
def test_the_majority_is_the_mean_over_all_choices(answers, right, data):
    k = data.draw(st.integers(1, len(answers)))
    correct = [answer in right for answer in answers]
    exact = mean_over_choices(
        Vote(), [(a, 0.0, c) for a, c in zip(answers, correct, strict=True)], k
    )
    assert majority_at_k(answers, correct, k) == pytest.approx(exact)


ballots = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c", None]),
        st.sampled_from([-math.inf, -900.0, 0.0, 0.25, 0.5, 1.0]),
    ),
    min_size=1,
    max_size=6,
)


def test_equal_sums_are_equal_in_any_order():
    answers, scores = ["4", "4", "4", "5", "5", "5"], [0.1, 0.2, 0.3, 0.3, 0.2, 0.1]
    right = [answer == "4" for answer in answers]
    assert weighted_vote_at_k(answers, scores, right, 6) == 0.5
    assert weighted_vote_at_k(answers, scores[::-1], right, 6) == 0.5


@given(
    ballots, st.sets(st.sampled_from("abc")), st.sampled_from(["equal", "score", "exp"]), st.data()
)
def test_the_weighted_vote_is_the_mean_over_all_choices(samples, right, weight, data):
    k = data.draw(st.integers(1, len(samples)))
    correct = [answer in right for answer, _ in samples]
    answers, scores = zip(*samples, strict=True)
    exact = mean_over_choices(Vote(weight=weight), [(a, s, a in right) for a, s in samples], k)
    estimate = weighted_vote_at_k(answers, scores, correct, k, weight=weight)
    assert estimate == pytest.approx(exact)


def test_choices_that_are_drawn_come_near_to_all_of_them():
    draws = random.Random(3)
    answers = [draws.choice("aabc") for _ in range(14)]
    scores = [draws.random() for _ in answers]
    correct = [answer == "b" for answer in answers]
    every = weighted_vote_at_k(answers, scores, correct, 5, draws=2002)  # C(14, 5)
    some = [weighted_vote_at_k(answers, scores, correct, 5, draws=500, seed=s) for s in range(20)]
    deviation = math.sqrt(every * (1 - every) / 500)
    assert 0.05 < every < 0.95
    assert max(abs(one - every) for one in some) < 4 * deviation
    assert abs(sum(some) / 20 - every) < 4 * deviation / math.sqrt(20)
    assert len(set(some)) > 10
    equal = weighted_vote_at_k(answers, scores, correct, 5, weight="equal", draws=2002)
    assert equal == pytest.approx(majority_at_k(answers, correct, 5))


def test_at_all_and_at_one_they_are_what_one_expects():
    answers = ["a"] * 30 + ["b"] * 25 + [str(i) for i in range(45)]
    correct = [answer == "b" for answer in answers]
    assert majority_at_k(answers, correct, 100) == 0.0
    assert majority_at_k(answers, correct, 1) == pytest.approx(0.25)
    assert majority_at_k(answers, [not right for right in correct], 100) == 1.0
    everyone = [answer != "?" for answer in answers]
    for k in (1, 2, 7, 40):  # somebody always wins
        assert majority_at_k(answers, everyone, k) == pytest.approx(1.0)


def test_the_majority_of_many_tends_to_the_mode():
    answers = ["a"] * 45 + ["b"] * 35 + ["c"] * 20
    correct = [answer == "a" for answer in answers]
    curve = [majority_at_k(answers, correct, k) for k in (1, 3, 9, 27, 81)]
    assert curve == sorted(curve)
    assert curve[0] == pytest.approx(0.45)
    assert curve[-1] > 0.99


def test_many_samples_do_not_overflow():
    answers = ["a", "b"] * 600  # of 1200, 601 are too many for floats: C(1200, 601) > 1e308
    correct = [answer == "a" for answer in answers]
    assert majority_at_k(answers, correct, 601) == pytest.approx(0.5)
    assert best_of_n_at_k([0.0] * 1200, correct, 601) == pytest.approx(0.5)
    assert pass_at_k(1200, 1, 600) == pytest.approx(0.5)


def test_a_pick_that_knows_reaches_the_coverage():
    correct = [i % 7 == 0 for i in range(40)]
    for k in (1, 5, 20):
        best = best_of_n_at_k([float(c) for c in correct], correct, k)
        assert best == pytest.approx(pass_at_k(40, sum(correct), k))


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (lambda: pass_at_k(3, 1, 4), "look at 4 of 3"),
        (lambda: pass_at_k(3, 1, 0), "look at 0 of 3"),
        (lambda: pass_at_k(3, 4, 1), "4 of 3 samples cannot be right"),
        (lambda: best_of_n_at_k([1.0], [True, False], 1), "1 samples, but 2"),
        (lambda: majority_at_k(["a"], [], 1), "1 samples, but 0"),
        (lambda: weighted_vote_at_k(["a"], [1.0, 2.0], [True], 1), "1 samples, but 2"),
        (lambda: weighted_vote_at_k(["a"], [1.0], [True], 2), "look at 2 of 1"),
        (lambda: coverage([], 1), "at least one problem"),
    ],
)
def test_what_cannot_be_estimated_is_refused(wrong, why):
    with pytest.raises(SpecError, match=why):
        wrong()
