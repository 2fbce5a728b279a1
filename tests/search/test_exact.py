import math

import pytest
from toylm import ToyLM
from worlds import Judge, Random

from branchwise.core.around import Budget
from branchwise.search.beam_decoding import BeamDecoding
from branchwise.search.exact import ExactSearch
from branchwise.search.rollout import Rollout
from branchwise.solve import solve
from branchwise.testing import Word

pytestmark = pytest.mark.anyio


async def found(controller, model, horizon=6):
    return await solve("?", controller=controller, horizon=horizon, **model.parts())


class Worlds(ToyLM):
    """Another arbitrary law for each number."""

    def __init__(self, number, letters="abc"):
        super().__init__(letters)
        self.number = number

    def _arbitrary(self, prefix):
        law = super()._arbitrary(f"{self.number} {prefix}")
        # Texts that end early would make the search easy.
        law[-1] *= 0.3 if len(prefix) < 3 else 3
        return [p / sum(law) for p in law]


@pytest.mark.parametrize("fanout", [1, 2, 3, 8])
@pytest.mark.parametrize("number", range(5))
async def test_it_finds_the_most_probable_text_of_all(number, fanout):
    model = Worlds(number)
    texts = model.texts(6)
    answer = await found(ExactSearch(fanout=fanout), model)
    assert answer.stopped == "finished"
    assert answer.text == max(texts, key=texts.get)
    assert answer.node.score == pytest.approx(max(texts.values()))


@pytest.mark.parametrize("number", range(5))
async def test_it_grows_only_what_could_be_better(number):
    model = Worlds(number)
    texts = model.texts(6)
    answer = await found(ExactSearch(fanout=1), model)
    grown = [node for node in answer.root.walk() if node.children]
    assert len(grown) < sum(3**i for i in range(6)) / 4
    # What can still become the best must have been grown.
    could = [w for w in texts if len(w) < 6 and model.prefix(w) > max(texts.values())]
    assert {node.text for node in grown} >= {w for w in could if w}
    # And nothing below the first text that it finds, the greedy one.
    greedy = (await found(Rollout(), model)).node
    assert all(node.score > greedy.score for node in grown if greedy.finished)


async def test_the_mode_may_be_the_empty_text():
    # It is likely that a text goes on, but each way in which it may is unlikely.
    def law(prefix):
        end = 0.02 if len(prefix) < 3 else 0.9
        return [(1 - end) / 10] * 10 + [end]

    model = ToyLM("abcdefghij", law)
    empty = await found(ExactSearch(), model)
    assert (empty.text, empty.node.score) == ("", pytest.approx(math.log(0.02)))
    assert sum(math.exp(p) for text, p in model.texts(4).items() if len(text) == 3) > 0.8
    # A narrow beam misses the mode and finds what is wanted; a wide one finds the mode.
    narrow, wide = [
        await found(BeamDecoding(width=b, early_stopping="never", length_penalty=0), model)
        for b in (1, 11)
    ]
    assert (len(narrow.text), wide.text) == (3, "")


async def test_texts_that_are_cut_are_no_texts():
    model = ToyLM("a", lambda prefix: [0.9, 0.1])
    answer = await found(ExactSearch(), model, horizon=3)
    assert answer.node.finished
    assert answer.text == ""


@pytest.mark.parametrize("fanout", [1, 2, 5])
async def test_it_ends_with_a_policy_that_repeats_itself(fanout):
    async def grow(judge):
        controller, world = ExactSearch(fanout=fanout), Word(3)
        parts = {"policy": Random("ab"), "environment": world, "verifier": judge}
        return await solve("?", controller=controller, horizon=2, budget=Budget(nodes=500), **parts)

    answer = await grow(Judge(lambda word: -len(word)))  # nothing ever finishes: nothing is pruned
    assert answer.stopped == "finished"
    for node in answer.root.walk():
        fresh = [child.text for child in node.children]
        assert len(fresh) <= fanout * (len(set(fresh)) + 1)
