"""Each algorithm against an oracle: enumeration, a textbook loop, or a known value."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import found

from branchwise import (
    Node,
    Rollout,
    State,
    Step,
    Task,
    Vote,
)

pytestmark = pytest.mark.anyio


async def test_rollout_takes_one_step_after_the_other():
    answer = await found(Rollout())
    assert answer.text == "aaaa"
    assert sum(1 for _ in answer.root.walk()) == 5


def ballot(answers):
    root = Node(Task("?"), State())
    for i, (answer, score) in enumerate(answers):
        leaf = Node(root.task, State(answer=answer, done=True), root, i, Step("."))
        leaf.score = score
        root.adopt([leaf])
    return root


@given(st.lists(st.sampled_from("abc"), min_size=1))
def test_a_vote_counts(answers):
    counts = Counter(answers)  # keeps the order of first sight
    assert Vote()(ballot([(a, 0.0) for a in answers])).state.answer == max(counts, key=counts.get)


def test_votes_are_weighted_as_asked():
    root = ballot([("a", 0.9), ("b", 0.5), ("b", 0.3), (None, 9.0)])
    assert Vote()(root).score == 0.5
    assert Vote(weight="score")(root).state.answer == "a"
    assert Vote(weight="exp")(root).state.answer == "b"


def test_a_vote_without_answers_takes_the_best():
    assert Vote()(ballot([(None, 1.0), (None, 2.0)])).score == 2.0
