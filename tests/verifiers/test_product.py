import math
from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from branchwise import Geometric
from branchwise.core.errors import VerifierError
from branchwise.core.node import Node
from branchwise.core.types import State, Task, Verdict
from branchwise.verifiers.product import Product


def node(**scores):
    one = Node(Task("?"), State())
    one.judged(tuple(scores), tuple(map(Verdict, scores.values())))
    return one


P = st.floats(1e-6, 1 - 1e-6)
WEIGHT = st.floats(0, 3)


@given(st.lists(st.tuples(P, WEIGHT), min_size=1, max_size=4))
def test_it_is_the_normalised_product(experts):
    scores = {str(i): p for i, (p, _) in enumerate(experts)}
    weights = {str(i): w for i, (_, w) in enumerate(experts)}
    right = math.prod(p**w for p, w in experts)
    wrong = math.prod((1 - p) ** w for p, w in experts)
    assert Product(of=weights)(node(**scores)) == pytest.approx(right / (right + wrong), rel=1e-9)


def test_it_is_bayes_rule_for_independent_witnesses_by_enumeration():
    """A world of a truth and three witnesses, each right with its own chance, all combinations."""
    prior, hit, false = Fraction(1, 5), (0.9, 0.7, 0.6), (0.2, 0.5, 0.3)
    for said in product([True, False], repeat=3):
        chances = []
        for true in (True, False):
            rates = hit if true else false
            chance = prior if true else 1 - prior
            for rate, yes in zip(rates, said, strict=True):
                chance *= Fraction(rate if yes else 1 - rate)
            chances.append(chance)
        posterior = chances[0] / sum(chances)
        each = {}
        for i, yes in enumerate(said):
            a = prior * Fraction(hit[i] if yes else 1 - hit[i])
            b = (1 - prior) * Fraction(false[i] if yes else 1 - false[i])
            each[f"w{i}"] = float(a / (a + b))
        combined = Product(of=dict.fromkeys(each, 1.0), prior=float(prior))(node(**each))
        assert combined == pytest.approx(float(posterior), rel=1e-9)


@given(P, P, WEIGHT)
def test_laws(p, q, w):
    both = Product(of={"a": 1.0, "b": 1.0})
    assert Product(of={"a": 1.0})(node(a=p)) == pytest.approx(p, rel=1e-9)
    assert both(node(a=p, b=1 - p)) == pytest.approx(0.5)
    assert both(node(a=p, b=0.5)) == pytest.approx(p, rel=1e-9)
    assert both(node(a=1 - p, b=1 - q)) == pytest.approx(1 - both(node(a=p, b=q)), rel=1e-6)
    pool = Product(of={"a": 0.3, "b": 0.7})(node(a=p, b=q))
    assert min(p, q) - 1e-12 <= pool <= max(p, q) + 1e-12
    assert Product(of={"a": 0.0}, prior=0.2)(node(a=p)) == pytest.approx(0.2)
    assert Product(of={"a": 1.0, "b": w}, prior=0.2)(node(a=p, b=0.2)) == pytest.approx(p, rel=1e-9)


@given(st.lists(st.tuples(P, P), min_size=2, max_size=5))
def test_the_bare_product_ranks_as_the_geometric_mean(pairs):
    rank = Geometric(of={"a": 1.0, "b": 2.0})
    bare = [p * q * q for p, q in pairs]
    means = [rank(node(a=p, b=q)) for p, q in pairs]
    for (x, m), (y, n) in product(zip(bare, means, strict=True), repeat=2):
        assert not (x < y * (1 - 1e-9) and m >= n)


@pytest.mark.parametrize(
    ("scores", "s"), [((1.0, 0.3), 1.0), ((0.3, 0.0), 0.0), ((1.0, 1.0), 1.0), ((0.0, 0.0), 0.0)]
)
def test_certainty_settles_it(scores, s):
    a, b = scores
    assert Product(of={"a": 1.0, "b": 1.0})(node(a=a, b=b)) == s


def test_opposite_certainties_are_an_error_unless_one_has_no_weight():
    with pytest.raises(VerifierError, match="certain of what another one holds impossible"):
        Product(of={"a": 1.0, "b": 1.0})(node(a=1.0, b=0.0))
    assert Product(of={"a": 1.0, "b": 0.0})(node(a=1.0, b=0.0)) == 1.0


def test_many_small_probabilities_do_not_vanish():
    names = [f"v{i}" for i in range(500)]
    scores = {name: 1e-3 if i % 2 else 1 - 1e-3 for i, name in enumerate(names)}
    assert Product(of=dict.fromkeys(names, 1.0))(node(**scores)) == pytest.approx(0.5)


@pytest.mark.parametrize("score", [-0.1, 1.1, 2.0])
def test_no_probability_is_an_error_that_quotes_it(score):
    with pytest.raises(VerifierError, match=f"'a' gave {score}, which is no probability"):
        Product(of={"a": 1.0})(node(a=score))


def test_a_verifier_that_did_not_judge_is_named():
    with pytest.raises(VerifierError, match=r"no verdict of 'hed' \(did you mean 'head'\?\)"):
        Product(of={"hed": 1.0})(node(head=0.5))


@pytest.mark.parametrize(
    "fields",
    [{"of": {}}, {"of": {"a": -1}}, {"of": {"a": math.inf}}, {"of": {"a": 1}, "prior": 1.0}],
)
def test_fields_that_make_no_sense_are_refused(fields):
    with pytest.raises(ValidationError):
        Product(**fields)
