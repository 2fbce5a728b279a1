import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchwise.core.errors import VerifierError
from branchwise.core.node import Node
from branchwise.core.types import State, Step, Task, Verdict
from branchwise.verifiers.aggregate import Aggregate, rescore

SCORES = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def path(scores):
    node = Node(Task("?"), State())
    for score in scores:
        node = Node(node.task, State(), node, 0, Step("."))
        node.judged(("prm", "other"), (Verdict(score), Verdict(-1.0)))
    return node


def score(how, scores):
    return Aggregate(of="prm", how=how)(path(scores))


@pytest.mark.parametrize(
    ("how", "expected"),
    [("min", 0.2), ("prod", 0.05), ("last", 0.5), ("mean", 0.4), ("max", 0.5), ("sum", 1.2)],
)
def test_each_way(how, expected):
    assert score(how, [0.5, 0.2, 0.5]) == pytest.approx(expected)


@given(SCORES)
def test_on_probabilities_they_are_ordered(scores):
    prod, least, mean, most = (score(how, scores) for how in ("prod", "min", "mean", "max"))
    assert prod <= least <= mean + 1e-12
    assert mean <= most + 1e-12


@given(SCORES.flatmap(lambda scores: st.tuples(st.just(scores), st.permutations(scores))))
def test_all_but_last_forget_the_order(pair):
    for how in ("min", "prod", "mean", "max", "sum"):
        assert score(how, pair[0]) == pytest.approx(score(how, pair[1]))
    assert score("last", pair[1]) == pair[1][-1]


def test_a_tree_is_rescored_without_a_model():
    leaf = path([0.9, 0.5])
    root, middle = leaf.lineage[:2]
    root.adopt([middle])
    middle.adopt([leaf])
    lost = Node(root.task, State(), middle, 1)
    lost.failed("lost")
    middle.adopt([lost])
    rescore(root, Aggregate(of="prm", how="prod"))
    assert [node.score for node in root.walk()] == [0.0, 0.9, 0.45, -math.inf]
    rescore(root, Aggregate(of="other", how="sum"))
    assert [node.score for node in root.walk()] == [0.0, -1.0, -2.0, -math.inf]


def test_an_unknown_verifier_is_named():
    with pytest.raises(VerifierError, match=r"no score of 'orm' .*prm, other"):
        Aggregate(of="orm")(path([0.5]))


def test_the_steps_that_one_node_holds_each_count():
    node = path([0.9])
    whole = Node(node.task, State(), node, 0, Step("two steps"))
    whole.judged(("prm", "other"), (Verdict(0.1, steps=(0.8, 0.5)), Verdict(0.0)))
    scores = {"min": 0.5, "prod": 0.36, "last": 0.5, "mean": 2.2 / 3, "max": 0.9, "sum": 2.2}
    for how, expected in scores.items():
        assert Aggregate(of="prm", how=how)(whole) == pytest.approx(expected)


def test_an_earlier_draft_does_not_count():
    draft = path([0.1])
    done = Node(draft.task, State(done=True), draft, 0, Step("end"))
    done.judged(("prm", "other"), (Verdict(0.2), Verdict(0.0)))
    new = Node(draft.task, State(), done, 0, Step("anew"))
    new.judged(("prm", "other"), (Verdict(0.7), Verdict(0.0)))
    assert Aggregate(of="prm", how="prod")(new) == 0.7


def test_an_end_without_text_is_no_step():
    node = path([0.9, 0.5])
    end = Node(node.task, State(done=True), node, 0, Step(""))
    end.judged(("prm", "other"), (Verdict(0.5), Verdict(0.0)))
    assert Aggregate(of="prm", how="prod")(end) == 0.45
