import pytest

from branchwise import Blend, Node, State, Task, Verdict, VerifierError


def test_a_blend_is_a_weighted_sum():
    node = Node(Task("?"), State())
    node.judged(("a", "b", "c"), (Verdict(2.0), Verdict(-3.0), Verdict(100.0)))
    assert Blend(of={"a": 0.5, "b": 2.0})(node) == -5.0


def test_a_verifier_that_did_not_judge_is_named():
    node = Node(Task("?"), State())
    node.judged(("likelihood",), (Verdict(2.0),))
    with pytest.raises(
        VerifierError, match=r"no verdict of 'likelyhood' \(did you mean 'likelihood'\?\)"
    ):
        Blend(of={"likelyhood": 1.0})(node)
