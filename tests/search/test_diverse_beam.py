import math
from collections import Counter

import pytest
from toylm import WORLD, ToyLM
from worlds import Enumerate, Judge, worth

from branchwise.search.beam import Beam
from branchwise.search.diverse_beam import DiverseBeam
from branchwise.solve import solve
from branchwise.testing import Word

pytestmark = pytest.mark.anyio


async def grown(controller, score=worth, letters="abc", length=4):
    answer = await solve(
        "a word?",
        policy=Enumerate(letters),
        controller=controller,
        environment=Word(length),
        verifier=Judge(score),
    )
    return {node.text for node in answer.root.walk()}


def textbook(score, *, letters, size, groups, strength, memory):
    """Which words are grown, by the algorithm over strings and lists."""
    beams = [[("", 0.0)] for _ in range(groups)]
    seen = {""}
    for _ in range(4):
        chosen = []
        for g in range(groups):
            offers = []
            for word, theta in beams[g]:
                for letter in letters:
                    seen.add(word + letter)
                    before = theta if memory else (score(word) if word else 0.0)
                    gain = score(word + letter) - (score(word) if word else 0.0)
                    offers.append((word + letter, before + gain - strength * chosen.count(letter)))
            beams[g] = sorted(offers, key=lambda offer: -offer[1])[:size]
            chosen += [word[-1] for word, _ in beams[g]]
    return seen


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize(("width", "groups"), [(2, 2), (3, 3), (4, 2), (6, 3), (3, 1)])
@pytest.mark.parametrize("strength", [0.0, 0.2, 1.0, 7.0])
async def test_it_is_the_algorithm_over_strings(width, groups, strength, memory):
    beam = DiverseBeam(width=width, groups=groups, strength=strength, fanout=4, memory=memory)
    words = await grown(beam, letters="abcd")
    assert words == textbook(
        worth,
        letters="abcd",
        size=width // groups,
        groups=groups,
        strength=strength,
        memory=memory,
    )


async def test_an_example_by_hand():
    law = {"": [0.6, 0.3, 0.1], "a": [0.5, 0.4, 0.1], "b": [0.7, 0.2, 0.1]}

    def score(word):
        probs = [law.get(word[:i][-1:], law[""])["abc".index(x)] for i, x in enumerate(word)]
        return sum(map(math.log, probs))

    # Greedy says aa. The second group pays λ for a: at λ = 0.6 it still takes it, for
    # log 0.6 - 0.6 > log 0.3; then it pays again and takes b, for log 0.5 - 0.6 < log 0.4.
    # At λ = 0.8 it takes b at once, and then a would cost 0.8: log 0.7 - 0.8 > log 0.2.
    low, high = [
        await grown(DiverseBeam(width=2, groups=2, strength=s, fanout=3), score, length=3)
        for s in (0.6, 0.8)
    ]
    assert {"aaa", "aba"} <= low
    assert not any(word.startswith("b") and len(word) > 1 for word in low)
    assert {"aaa", "baa"} <= high


@pytest.mark.parametrize("groups", [1, 2, 4])
async def test_without_a_penalty_each_group_is_the_same_beam(groups):
    diverse = await grown(DiverseBeam(width=4, groups=groups, strength=0, fanout=3))
    # An ordinary beam asks the root for width · fanout first steps; there are three.
    assert diverse == await grown(Beam(width=4 // groups, fanout=3))


async def test_groups_of_tokens_say_different_first_tokens_where_that_is_worth_it():
    model = ToyLM("abcd")
    beam = DiverseBeam(width=4, groups=4, strength=50)
    answer = await solve("?", controller=beam, horizon=5, **model.parts())
    assert len(answer.root.children) == 4
    started = Counter(len(child.children) > 0 or child.done for child in answer.root.children)
    assert started == {True: 4}
    assert answer.node.finished
    assert answer.root.state == await WORLD.reset(answer.root.task)


def test_groups_divide_the_width():
    with pytest.raises(ValueError, match="divide"):
        DiverseBeam(width=4, groups=3)
