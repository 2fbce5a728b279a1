"""Best and vote against the laws of what they choose, enumerated."""

import math
import random
from collections import Counter
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchwise import Node, State, Step, Task
from branchwise.search.best import Best
from branchwise.search.vote import Vote

laws = st.lists(st.integers(1, 9), min_size=2, max_size=4).map(lambda w: [x / sum(w) for x in w])


def ballot(leaves):
    """A tree of finished answers with these scores."""
    root = Node(Task("?"), State())
    for i, (answer, score) in enumerate(leaves):
        leaf = Node(root.task, State(answer=answer, done=True), root, i, Step("."))
        leaf.score = score
        root.adopt([leaf])
    return root


def law(pick, p, values, n):
    """How likely each answer is picked among n independent ones: all p^n samples are tried."""
    chosen = Counter()
    for sample in product(range(len(p)), repeat=n):
        root = ballot([(str(y), values[y]) for y in sample])
        chosen[int(pick(root).state.answer)] += math.prod(p[y] for y in sample)
    return [chosen[y] for y in range(len(p))]


@pytest.mark.parametrize("values", [[0.3, 0.1, 0.7, 0.2], [0.5, 0.1, 0.5, 0.5], [-1, -1, -1, -1]])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_best_of_n_has_the_law_of_the_largest_of_n(values, n):
    p = [0.1, 0.2, 0.3, 0.4]
    up_to = [sum(q for q, v in zip(p, values, strict=True) if v <= value) for value in values]
    below = [sum(q for q, v in zip(p, values, strict=True) if v < value) for value in values]
    exact = [q / (hi - lo) * (hi**n - lo**n) for q, hi, lo in zip(p, up_to, below, strict=True)]
    assert law(Best(), p, values, n) == pytest.approx(exact)


@given(laws, st.integers(1, 4), st.data())
def test_best_of_n_stays_within_its_divergence(p, n, data):
    values = data.draw(st.lists(st.integers(0, 3), min_size=len(p), max_size=len(p)))
    chosen = law(Best(), p, values, n)
    divergence = sum(q * math.log(q / before) for q, before in zip(chosen, p, strict=True) if q)
    assert divergence <= math.log(n) - (n - 1) / n + 1e-12


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_the_majority_of_n_has_its_exact_law(n):
    p = [0.5, 0.3, 0.2]
    exact = [0.0, 0.0, 0.0]
    for counts in product(range(n + 1), repeat=3):
        if sum(counts) == n:
            ways = math.factorial(n) / math.prod(map(math.factorial, counts))
            tied = [y for y in range(3) if counts[y] == max(counts)]
            for y in tied:  # by symmetry each of the tied came first as often
                exact[y] += (
                    ways * math.prod(q**c for q, c in zip(p, counts, strict=True)) / len(tied)
                )
    assert law(Vote(), p, [0, 0, 0], n) == pytest.approx(exact)


@pytest.mark.parametrize(("weight", "limit"), [("equal", "0"), ("score", "1"), ("exp", "2")])
def test_the_limit_is_the_largest_mass_times_weight(weight, limit):
    p, values = [0.5, 0.3, 0.2], [0.2, 1.0, 1.45]
    mean = {"equal": [1, 1, 1], "score": values, "exp": [math.exp(v) for v in values]}[weight]
    masses = [q * m for q, m in zip(p, mean, strict=True)]
    assert masses.index(max(masses)) == int(limit)
    drawn = random.Random(1).choices(range(3), p, k=20_000)
    root = Node(Task("?"), State())
    leaves = [
        Node(root.task, State(answer=str(y), done=True, reward=values[y]), root, i)
        for i, y in enumerate(drawn)
    ]
    root.adopt(leaves)
    assert Vote(weight=weight)(root).state.answer == limit


@given(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=12))
def test_equal_scores_weigh_nothing(answers):
    root = ballot([(answer, 1.0) for answer in answers])
    plain = Vote()(root)
    assert Vote(weight="score")(root) is plain
    assert Vote(weight="exp")(root) is plain


def test_of_equal_scores_the_older_node_wins():
    assert Best()(ballot([("a", 0), ("b", 1), ("c", 1)])).path == (1,)


def test_of_equal_sums_the_answer_that_came_first_wins():
    assert Vote()(ballot([("a", 0), ("b", 9), ("b", 9), ("a", 1)])).path == (3,)


def test_log_probabilities_of_long_texts_still_count():
    root = ballot([("a", -2000.0), ("b", -2000.5), ("b", -2000.4)])
    assert Vote(weight="exp")(root).state.answer == "b"  # exp(-2000) is 0 in floats
    root = ballot([("a", 2001.0), ("b", 2000.0), ("b", 2000.0)])
    assert Vote(weight="exp")(root).state.answer == "a"


def test_who_has_not_been_judged_does_not_weigh():
    root = ballot([("a", 0.5), ("a", -math.inf), ("b", 0.4)])
    assert Vote(weight="score")(root).path == (0,)
    assert Vote(weight="exp")(root).path == (0,)
    unjudged = ballot([("a", -math.inf), ("b", -math.inf)])
    assert {Vote(weight=w)(unjudged).path for w in ("equal", "score", "exp")} == {(0,)}
