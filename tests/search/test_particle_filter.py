"""Particle filtering against the enumeration of its target and of all random choices."""

import math
from collections import Counter

import pytest
from test_resampling import RESAMPLERS
from test_smc import Toy, enumerated
from worlds import Judge, Random, worth

from branchwise import Node, State, Step, Task, solve
from branchwise.search.particle_filter import ParticleFilter
from branchwise.search.smc import SMC
from branchwise.testing import Word

pytestmark = pytest.mark.anyio

WEIGHTS = {
    "odds": lambda score: score / (1 - score),
    "score": lambda score: score,
    "exp": math.exp,
}


class Rewarded(Toy):
    """Words of one length; a node's score is its reward in (0, 1), and samples come from p."""

    q = Toy.p

    def child(self, parent, i):
        child = super().child(parent, i)
        child.score = worth(child.text)
        return child


@pytest.mark.parametrize("resampler", RESAMPLERS)
@pytest.mark.parametrize("weight", ["odds", "score", "exp"])
def test_the_particles_follow_the_target(monkeypatch, weight, resampler):
    for temperature, threshold in [(1.0, None), (0.5, 0.7), (2.0, 0)]:
        toy = Rewarded("ab", 2)
        controller = ParticleFilter(
            n=2, weight=weight, temperature=temperature, resampler=resampler, threshold=threshold
        )
        _, masses = enumerated(monkeypatch, toy, controller)
        for word, mass in toy.words().items():
            rewards = [worth(word[: i + 1]) for i in range(len(word))]
            potential = math.prod(WEIGHTS[weight](r) for r in rewards) ** (1 / temperature)
            assert masses[word] == pytest.approx(mass * potential, rel=1e-9)


async def test_many_particles_have_the_law_of_the_target():
    wanted = {a + b: worth(a) * worth(a + b) for a in "abc" for b in "abc"}
    found, runs = Counter(), 4
    for seed in range(runs):
        controller = ParticleFilter(n=1000, weight="score", seed=seed)
        answer = await solve(
            "a word?",
            policy=Random(),
            controller=controller,
            environment=Word(2),
            verifier=Judge(),
            seed=seed,
        )
        for particle in controller.particles(answer.root):
            found[particle.node.text] += particle.weight / runs
    z = sum(wanted.values())
    assert sum(abs(1 / 9 - mass / z) for mass in wanted.values()) / 2 > 0.2
    assert sum(abs(found[word] - mass / z) for word, mass in wanted.items()) / 2 < 0.05


def tree(*words):
    """A tree of letters, grown in this order; each word ends in its last letter."""
    root = Node(Task("?"), State(""))
    for word, *scores in words:
        node = root
        for i, letter in enumerate(word):
            known = [child for child in node.children if child.step.text == letter]
            if known and i < len(word) - 1:
                node = known[0]
                continue
            child = Node(
                root.task, State(done=i == len(word) - 1), node, node.promised, Step(letter)
            )
            child.score = scores[i]
            node.adopt([child])
            node.promised += 1
            node = child
    return root


def test_a_finished_particle_is_weighed_again_at_each_step_of_the_others():
    root = tree(("a", 0.75), ("bcd", 0.6, 0.2, 0.5))
    trace = ParticleFilter(n=2, threshold=0).trace(root)
    odds = [[math.exp(p.log_weight) for p in generation] for generation in trace]
    assert odds == [pytest.approx(o) for o in ([3, 1.5], [9, 1.5 / 4], [27, 1.5 / 4])]


def test_a_finished_particle_takes_part_in_the_resampling():
    root = tree(("a", 1.0), ("bc", 0.0, 1.0))  # the odds of "a" leave "b" no chance
    for resampler in RESAMPLERS:
        controller = ParticleFilter(n=2, resampler=resampler)
        assert [p.node.text for p in controller.particles(root)] == ["a", "a"]
        assert [p.weight for p in controller.particles(root)] == pytest.approx([0.5, 0.5])
    assert ParticleFilter(n=2).answer(root).text == "a"


def test_rewards_beyond_what_has_odds_are_taken_for_the_nearest():
    root = tree(("a", 7.0), ("b", 1.0), ("c", -3.0), ("d", 0.5))
    weights = [p.log_weight for p in ParticleFilter(n=4).trace(root)[0]]
    edge = math.log(1e-7 / (1 - 1e-7))
    assert weights == pytest.approx([-edge, -edge, edge, 0])
    alive = ParticleFilter(n=4, weight="score").trace(root)[0]
    assert [p.node.text for p in alive] == ["a", "b", "d"]


def test_with_the_reward_as_weight_it_is_smc_whose_twists_are_their_products():
    words = [("ab", 0.9, 0.2), ("ca", 0.4, 0.8), ("bc", 0.7, 0.5)]
    products = [(word, math.log(a), math.log(a * b)) for word, a, b in words]
    for threshold in (0, 0.5):
        found = ParticleFilter(n=3, weight="score", threshold=threshold).trace(tree(*words))
        twisted = SMC(n=3, threshold=threshold).trace(tree(*products))
        assert len(found) == 2
        for particles, others in zip(found, twisted, strict=True):
            assert [p.log_weight for p in particles] == pytest.approx(
                [p.log_weight for p in others]
            )


async def test_it_finds_what_its_rewards_point_to():
    async def share(weight, temperature):
        hits = 0
        for seed in range(30):
            answer = await solve(
                "a word?",
                policy=Random(),
                controller=ParticleFilter(
                    n=8, weight=weight, temperature=temperature, final="draw", seed=seed
                ),
                environment=Word(3),
                verifier=Judge(lambda word: 0.95 if set(word) == {"a"} else 0.05),
                seed=seed,
            )
            hits += answer.text == "aaa"
        return hits

    assert await share("odds", 1) > 24
    assert await share("odds", 1e9) < 8
