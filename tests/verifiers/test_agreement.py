import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from branchwise import Node, State, Step, Task, Verdict, VerifierError, solve
from branchwise.search.mcts import MCTS
from branchwise.testing import Alphabet, Word
from branchwise.verifiers.agreement import Agreement
from branchwise.verifiers.blend import Blend
from branchwise.verifiers.geometric import Geometric


def family(said):
    root = Node(Task("?"), State())
    children = [
        Node(root.task, State(answer=answer), root, i, Step(text))
        for i, (text, answer) in enumerate(said)
    ]
    root.adopt(children)
    return children


@pytest.mark.anyio
async def test_agreement_is_the_share_of_siblings():
    nodes = family([("a", None), (" a\n", None), ("b", "7"), ("c", "7 "), ("d", "8")])
    scores = [verdict.score for verdict in await Agreement().score(nodes)]
    assert scores == [0.4, 0.4, 0.4, 0.4, 0.2]


@pytest.mark.anyio
async def test_siblings_that_failed_have_no_say():
    nodes = family([("a", None), ("a", None), ("b", None)])
    nodes[2].failed("gone")
    assert [v.score for v in await Agreement().score(nodes[:2])] == [1.0, 1.0]
    assert [v.score for v in await Agreement().score([nodes[0].parent])] == [1.0]


@pytest.mark.anyio
async def test_hidden_copies_count_in_a_search():
    """LATS in small: V = λ LM + (1 - λ) SC over five samples, three of which are the same."""

    class Length:
        async def score(self, nodes):
            return [Verdict(len(node.text) / 2) for node in nodes]

    answer = await solve(
        "?",
        policy=Alphabet("aabca"),
        controller=MCTS(simulations=1, fanout=5, exploration=1),
        environment=Word(2),
        verifier={"lm": Length(), "sc": Agreement()},
        rank=Blend(of={"lm": 0.5, "sc": 0.5}),
        unique="siblings",
    )
    scores = [node.score for node in answer.root.children]
    assert scores == pytest.approx([0.25 + 0.3, 0.25 + 0.3, 0.25 + 0.1, 0.25 + 0.1, 0.25 + 0.3])


def judged(**scores):
    node = Node(Task("?"), State())
    node.judged(tuple(scores), tuple(map(Verdict, scores.values())))
    return node


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_the_reward_of_rap(useful, conf, alpha):
    got = Geometric(of={"useful": alpha, "conf": 1 - alpha})(judged(useful=useful, conf=conf))
    assert got == pytest.approx(useful**alpha * conf ** (1 - alpha), rel=1e-9, abs=1e-300)


def test_a_geometric_mean_is_normalised():
    node = judged(a=2.0, b=8.0)
    assert Geometric(of={"a": 3, "b": 3})(node) == pytest.approx(4.0)
    assert Geometric(of={"a": 1, "b": 0})(judged(a=2.0, b=0.0)) == pytest.approx(2.0)
    assert Geometric(of={"a": 1, "b": 1})(judged(a=2.0, b=0.0)) == 0.0


def test_what_has_no_geometric_mean_is_said():
    with pytest.raises(VerifierError, match="'a' gave -1"):
        Geometric(of={"a": 1, "b": 1})(judged(a=-1.0, b=1.0))
    with pytest.raises(VerifierError, match="no verdict of 'c'"):
        Geometric(of={"c": 1})(judged(a=1.0))
    for wrong in [{}, {"a": -1}, {"a": 0}, {"a": math.inf}]:
        with pytest.raises(ValidationError):
            Geometric(of=wrong)
