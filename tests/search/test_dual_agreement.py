"""Dual agreement against its definition by pairs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchwise import Node, SpecError, State, Step, Task, Verdict
from branchwise.search.dual_agreement import DualAgreement


def tree(outcomes, scores=None):
    root = Node(Task("?"), State())
    for i, outcome in enumerate(outcomes):
        leaf = Node(root.task, State(done=True), root, i, Step(str(i)))
        if outcome is not None:
            leaf.judged(("tests",), (Verdict(0.0, detail=outcome),))
        leaf.score = scores[i] if scores else 0.0
        root.adopt([leaf])
    return root


def agree(outcomes, weigh):
    """For each solution the best f over the pairs (it, a test it passes), as in the paper's §2."""
    worth = []
    for mine in outcomes:
        best = 0
        for test in range(len(mine)):
            if mine[test] == "1":
                solutions = [o for o in outcomes if o == mine]
                tests = [t for t in range(len(mine)) if mine[t] == "1"]
                best = max(best, weigh(len(solutions)) * len(tests))
        worth.append(best)
    return worth


@pytest.mark.parametrize("form", ["product", "sqrt"])
@given(
    outcomes=st.integers(1, 5).flatmap(
        lambda n: st.lists(st.text("01", min_size=n, max_size=n), min_size=1, max_size=9)
    )
)
def test_it_is_the_best_consensus_of_all_pairs(form, outcomes):
    worth = agree(outcomes, lambda s: s if form == "product" else s**0.5)
    chosen = DualAgreement(tests="tests", form=form)(tree(outcomes))
    assert worth[int(chosen.text)] == max(worth)
    assert int(chosen.text) == worth.index(max(worth))  # of equals the first


def test_the_two_forms_differ():
    # Four solutions agree on one test, one passes three: 4 · 1 > 1 · 3, but 2 · 1 < 1 · 3.
    root = tree(["1110", "0001", "0001", "0001", "0001"])
    assert DualAgreement(tests="tests")(root).text == "1"
    assert DualAgreement(tests="tests", form="sqrt")(root).text == "0"


def test_it_is_neither_the_majority_nor_the_most_tests():
    root = tree(["0000", "0000", "0000", "1111", "1100", "1100", "1100"])
    assert DualAgreement(tests="tests")(root).text == "4"
    assert [s.text for s in DualAgreement(tests="tests").submissions(root)] == ["4", "3", "0"]
    assert [s.text for s in DualAgreement(tests="tests").submissions(root, 1)] == ["4"]


def test_of_a_set_it_takes_the_best():
    assert DualAgreement(tests="tests")(tree(["10", "10", "10"], [1, 3, 3])).text == "1"


def test_it_works_on_any_tree():
    root = Node(Task("?"), State())
    assert DualAgreement(tests="tests")(root) is root
    assert DualAgreement(tests="tests")(tree([None, None], [0, 1])).text == "1"
    assert DualAgreement(tests="tests")(tree([None, "00", "00"], [9, 0, 1])).text == "2"
    with pytest.raises(SpecError, match="did you mean 'tests'"):
        DualAgreement(tests="test")(tree(["1"]))
