"""Particle Gibbs against the exact transition matrix of a sweep in a small world."""

import math
from collections import Counter
from contextlib import suppress

import pytest
from test_resampling import integrated, outcomes
from test_smc import Flaky, Toy, finished
from worlds import Judge

from branchwise import Budget, from_json, to_json
from branchwise.core.around import alive
from branchwise.core.grow import Grow
from branchwise.search import particle_gibbs
from branchwise.search.particle_gibbs import ParticleGibbs
from branchwise.search.replay import Ended, heard

pytestmark = pytest.mark.anyio


def law(monkeypatch, toy, n, retained=None):
    """Exactly: what one sweep beside the retained word draws in the end."""
    drawn = Counter()

    def program(choose):
        monkeypatch.setattr(particle_gibbs, "offspring", integrated(choose))
        root = node = toy.root()
        path = []
        for letter in retained or "":
            node = toy.child(node, toy.letters.index(letter))
            path.append(node)
        return finished(ParticleGibbs(n=n).sweep(root, toy.growing(choose), path, 1))

    for mass, particles in outcomes(program):
        total = sum(particle.weight for particle in particles)
        for particle in particles:
            drawn[particle.node.text] += mass * particle.weight / total
    assert drawn.total() == pytest.approx(1)
    return drawn


@pytest.mark.parametrize(
    ("toy", "n"),
    [
        (Toy("ab", 2), 2),
        (Toy("ab", 2), 3),
        (Toy("ab.", 2), 2),
        (Toy("ab", 3), 2),
        (Toy("ab.", 2, impossible={".", "ba"}), 2),
    ],
)
def test_a_sweep_leaves_the_target_invariant(monkeypatch, toy, n):
    z = sum(toy.target().values())
    target = {word: mass / z for word, mass in toy.target().items() if mass}
    after = Counter()
    for word, mass in target.items():
        for drawn, share in law(monkeypatch, toy, n, word).items():
            after[drawn] += mass * share
    assert dict(after) == pytest.approx(target, rel=1e-9)


def test_sweeps_mend_what_few_particles_get_wrong(monkeypatch):
    toy = Toy("ab.", 2)
    z = sum(toy.target().values())
    kernel = {word: law(monkeypatch, toy, 2, word) for word in toy.words()}
    now, distances = law(monkeypatch, toy, 2), []
    for _ in range(80):
        distances.append(sum(abs(now[w] - mass / z) for w, mass in toy.target().items()) / 2)
        now = Counter({w: sum(now[v] * kernel[v][w] for v in kernel) for w in kernel})
    assert distances == pytest.approx(sorted(distances, reverse=True))
    assert distances[0] > 0.1
    assert distances[-1] < 0.01 * distances[0]


async def test_the_chain_of_a_search_has_the_law_of_the_target():
    toy, runs, tally = Toy(length=2), 120, Counter()
    z = sum(toy.target().values())
    for seed in range(runs):
        controller = ParticleGibbs(n=3, iterations=4, seed=seed)
        answer = await toy.solved(controller, seed=seed)
        chain = controller.chain(answer.root)
        assert len(chain) == 4
        assert answer.node is chain[-1]
        tally[answer.text] += 1
    rare = [word for word, mass in toy.target().items() if runs * mass / z < 5]
    wanted = {word: runs * mass / z for word, mass in toy.target().items() if word not in rare}
    tallies = [(tally[word], mean) for word, mean in wanted.items()]
    tallies.append((sum(tally[word] for word in rare), runs - sum(wanted.values())))
    chi2 = sum((count - mean) ** 2 / mean for count, mean in tallies)
    free = len(tallies) - 1
    assert chi2 < free + 3.1 * math.sqrt(2 * free)


async def test_the_retained_particle_is_not_grown_again():
    toy = Toy("ab", 4)
    answer = await toy.solved(ParticleGibbs(n=5, iterations=4))
    # Four sweeps of which three grow one particle less; no particle finishes early here.
    assert sum(1 for _ in answer.root.walk()) - 1 == (5 + 4 + 4 + 4) * 4
    assert len(answer.root.children) == 17


async def test_the_tree_tells_again_what_the_particles_were():
    toy = Flaky(length=5, impossible={"a.", "bbb."})
    for seed in range(12):
        controller, root = ParticleGibbs(n=4, iterations=4, seed=seed), toy.root()
        grow = Grow({"policy": toy}, toy, {"v": Judge(toy.value)}, seed=seed)
        trace = []
        with suppress(Ended):
            await controller.run(root, heard(alive(grow)), trace)
        assert controller.trace(root) == trace
        saved = from_json(to_json(root))
        assert [node.path for node in controller.chain(saved)] == [
            node.path for node in controller.chain(root)
        ]


async def test_what_a_budget_cuts_keeps_the_sweeps_that_are_whole():
    toy, controller = Toy("ab", 3), ParticleGibbs(n=3, iterations=3)
    whole = [node.path for node in controller.chain((await toy.solved(controller)).root)]
    for nodes in range(22):
        answer = await toy.solved(controller, budget=Budget(nodes=nodes))
        sweeps = (nodes >= 9) + (nodes >= 15) + (nodes >= 21)
        assert [node.path for node in controller.chain(answer.root)] == whole[:sweeps]


async def test_sweeps_that_come_to_nothing_are_left_out_of_the_chain():
    toy = Toy("ab", 2, impossible={"aa", "ab", "ba", "bb"})
    controller = ParticleGibbs(n=2, iterations=2)
    answer = await toy.solved(controller)
    assert controller.chain(answer.root) == []
    assert controller.trace(answer.root) == [[], []]
    assert len(answer.root.children) == 4
    assert answer.node.failure is None
