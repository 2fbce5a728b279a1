"""Lookahead search against a loop over enumerated words."""

from collections.abc import Sequence

import pytest
from worlds import LETTERS, Enumerate, Judge, Random, words, worth

from branchwise import BackendError, Beam, Step, solve, to_json
from branchwise.search.lookahead import Lookahead
from branchwise.testing import Word

pytestmark = pytest.mark.anyio
LENGTH = 5


class Cycle:
    """Proposes the letters in turn, whatever its node's children say already."""

    async def propose(self, node, seeds) -> Sequence[Step]:
        return [Step(LETTERS[i % 3]) for i in range(len(seeds))]


class Greedy:
    """Says the letter that `worth` likes best in another place: a model at temperature 0."""

    async def propose(self, node, seeds):
        return [Step(favourite(node.text))] * len(seeds)


def favourite(word):
    return max(LETTERS, key=lambda letter: worth(f"greedy/{word}{letter}"))


def end(word, k):
    """Where k greedy steps lead."""
    for _ in range(k):
        word += favourite(word) if len(word) < LENGTH else ""
    return word


def simulate(width, fanout, k):
    """The words that a beam keeps at each level; each is worth what its rollout's end is worth."""
    kept, levels, new = [""], [], width * fanout
    while any(len(word) < LENGTH for word in kept):
        candidates = [word + LETTERS[i % 3] for word in kept for i in range(new)]
        kept = sorted(candidates, key=lambda word: -worth(end(word, k)))[:width]
        levels.append(kept)
        new = fanout
    return levels


async def found(controller, policy=None, **more):
    answer = await solve(
        "a word?",
        policy=policy or {"policy": Cycle(), "greedy": Greedy()},
        controller=controller,
        environment=Word(LENGTH),
        verifier=Judge(),
        **more,
    )
    assert answer.stopped == "finished"
    return answer


def proposed(root, k):
    """The words under which candidates were drawn: what was grown by more than a rollout's step."""
    return sorted(n.text for n in root.walk() if n.promised > (1 if k and n is not root else 0))


@pytest.mark.parametrize("k", [0, 1, 2, 3, 9])
@pytest.mark.parametrize(("width", "fanout"), [(1, 3), (2, 3), (3, 2)])
async def test_steps_are_ranked_by_where_they_lead(width, fanout, k):
    answer = await found(Lookahead(width=width, fanout=fanout, steps=k, by="greedy"))
    levels = simulate(width, fanout, k)
    kept = sorted([""] + [word for level in levels[:-1] for word in level])
    assert proposed(answer.root, k) == kept
    # Every candidate has its rollout below it: its first child, and that one's, and so on.
    for node in answer.root.walk():
        if node.depth == 1 or node.index:
            last = node
            for _ in range(k):
                last = last if last.done else last.children[0]
            assert last.text == end(node.text, k)


async def test_looking_ahead_costs_k_further_calls_for_each_candidate():
    answer = await found(Lookahead(width=1, fanout=3, steps=2, by="greedy"))
    grown = sum(1 for _ in answer.root.walk()) - 1
    assert grown == 3 * 3 + 3 * 3 + 3 * 3 + 3 * 2 + 3  # the last two levels meet the end


async def test_only_who_looks_far_enough_sees_what_is_at_the_end():
    # All worth is at the end: only who looks that far finds it.
    trap = Judge(lambda word: 1.0 if word.startswith("ca") and len(word) == LENGTH else 0.0)
    for steps, wins in [(4, True), (0, False)]:
        answer = await solve(
            "?",
            policy={"policy": Cycle(), "greedy": Says("a")},
            controller=Lookahead(width=1, fanout=3, steps=steps, by="greedy"),
            environment=Word(LENGTH),
            verifier=trap,
        )
        assert (answer.node.score == 1.0) is wins


class Says:
    def __init__(self, letter):
        self.letter = letter

    async def propose(self, node, seeds):
        return [Step(self.letter)] * len(seeds)


async def test_as_wide_as_the_tree_it_finds_the_best_word():
    answer = await found(Lookahead(width=81, fanout=3, steps=0), Enumerate())
    assert answer.text == max(words(LENGTH), key=worth)


@pytest.mark.parametrize("policy", [Random(), Enumerate(), Cycle()])
async def test_without_steps_its_tree_is_a_beams(policy):
    ours = await found(Lookahead(width=3, fanout=2, steps=0), policy)
    beam = await found(Beam(width=3, fanout=2), policy)
    assert to_json(ours.root) == to_json(beam.root)
    assert ours.node.path == beam.node.path


async def test_where_copies_of_a_rollout_are_hidden_its_first_step_stands_in():
    answer = await found(Lookahead(width=2, fanout=2, steps=1), policy=Says("a"), unique="siblings")
    assert answer.text == "a" * LENGTH
    assert answer.node.finished


async def test_a_rollout_that_fails_counts_as_far_as_it_came():
    class Breaks(Greedy):
        async def propose(self, node, seeds):
            if len(node.text) == 2:
                raise BackendError("the line broke")
            return await super().propose(node, seeds)

    search = Lookahead(width=1, fanout=3, steps=3, by="greedy")
    answer = await found(search, policy={"policy": Cycle(), "greedy": Breaks()})
    first = max(LETTERS, key=lambda letter: worth(end(letter, 1)))
    assert [node.text for node in answer.root.children if len(node.children) > 1] == [first]
