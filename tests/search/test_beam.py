import pytest
from worlds import LETTERS, Enumerate, found, words, worth

from branchwise.search.beam import Beam

pytestmark = pytest.mark.anyio


async def test_a_beam_as_wide_as_the_tree_finds_the_best_word():
    assert (await found(Beam(width=81, fanout=3))).text == max(words(4), key=worth)


@pytest.mark.parametrize("width", [1, 2, 5])
async def test_a_beam_keeps_the_best_of_each_level(width):
    kept, finished, grown = [""], [], set()
    while kept:
        level = [word + letter for word in kept for letter in LETTERS]
        grown.update(level)
        best = sorted(level, key=worth, reverse=True)[:width]
        kept, finished = [word for word in best if len(word) < 4], best
    answer = await found(Beam(width=width, fanout=3))
    assert {node.text for node in answer.root.walk()} == grown | {""}
    assert max(finished, key=worth) in {leaf.text for leaf in answer.root.leaves()}
    assert answer.text == max((word for word in grown if len(word) == 4), key=worth)


async def test_the_trees_of_dvts_do_not_compete():
    answer = await found(Beam(width=3, fanout=1, trees=3))
    assert {leaf.text for leaf in answer.root.leaves()} == {"aaaa", "baaa", "caaa"}
    ends = set()
    for first in LETTERS:
        word = first
        while len(word) < 4:
            word = max((word + letter for letter in LETTERS), key=worth)
        ends.add(word)
    # Dealt "abcabcabc", each tree keeps one first letter and then follows its own best child.
    answer = await found(Beam(width=3, fanout=3, trees=3), policy=Enumerate(LETTERS * 3))
    deep = {leaf.text for leaf in answer.root.leaves() if leaf.done}
    assert ends <= deep
    assert len(deep) == 9
    assert answer.text == max(deep, key=worth)
