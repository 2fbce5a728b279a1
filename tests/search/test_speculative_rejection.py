"""Speculative rejection against a simulation over words drawn by the same seeds."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from worlds import Judge, Random, worth

from branchwise import BestOfN, Node, State, Task, solve, to_json
from branchwise.core.grow import seed_of
from branchwise.search.speculative_rejection import SpeculativeRejection
from branchwise.testing import Word


async def found(controller, length=5):
    answer = await solve(
        "a word?",
        policy=Random(),
        controller=controller,
        environment=Word(length),
        verifier=Judge(),
    )
    assert answer.stopped == "finished"
    return answer


async def drawn(branch, length):
    """The whole word that a branch grows to where nobody drops it."""
    paths = [(branch, *[0] * depth) for depth in range(length)]
    return "".join([(await Random().propose(None, [seed_of(0, p)]))[0].text for p in paths])


@pytest.mark.anyio
@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("every", [1, 2, 3, 9])
async def test_the_worst_are_dropped_on_the_way(alpha, every):
    answer = await found(SpeculativeRejection(n=13, alpha=alpha, every=every))
    whole = {branch: await drawn(branch, 5) for branch in range(13)}
    open_, grown = list(range(13)), dict.fromkeys(range(13), 1)
    for length in range(1, 5):
        if length % every == 0:
            # A wrong order of equals shows, for branches often begin with the same letters.
            worst = sorted(open_, key=lambda b: (worth(whole[b][:length]), -b))
            open_ = sorted(worst[math.floor(alpha * len(worst) + 1e-9) :])
        grown |= dict.fromkeys(open_, length + 1)
    ends = {leaf.path[0]: leaf.text for leaf in answer.root.leaves()}
    assert ends == {branch: whole[branch][: grown[branch]] for branch in range(13)}
    assert answer.text == max((whole[branch] for branch in open_), key=worth)


@pytest.mark.anyio
async def test_without_rejection_it_is_best_of_n():
    tree = (await found(SpeculativeRejection(n=9, alpha=0))).root
    assert to_json(tree) == to_json((await found(BestOfN(n=9))).root)


@example([0.0] * 100, 29)  # 0.29 · 100 is less than 29 in floating point
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=40), st.integers(0, 99))
def test_the_share_is_exact_and_the_best_stay_in_order(scores, percent):
    root = Node(Task("?"), State())
    branches = [Node(root.task, State(), root, i) for i in range(len(scores))]
    for branch, score in zip(branches, scores, strict=True):
        branch.score = score
    kept = SpeculativeRejection(alpha=percent / 100).keep(branches)
    assert len(kept) == len(scores) - percent * len(scores) // 100
    assert [branch.index for branch in kept] == sorted(branch.index for branch in kept)
    gone = [branch.score for branch in branches if branch not in kept]
    assert max(gone, default=-math.inf) <= min(branch.score for branch in kept)
