"""Twisted SMC against the enumeration of a small world and of all random choices."""

import itertools
import math
import random
from collections import Counter
from contextlib import suppress

import pytest
from test_resampling import RESAMPLERS, integrated, outcomes
from worlds import Judge, Random

from branchwise import (
    BackendError,
    Beam,
    Budget,
    Environment,
    Node,
    State,
    Step,
    Task,
    from_json,
    solve,
    to_json,
)
from branchwise.core.around import alive
from branchwise.core.grow import Grow
from branchwise.search import smc
from branchwise.search.replay import Ended, Particle, heard, replay
from branchwise.search.smc import SMC
from branchwise.testing import Word

pytestmark = pytest.mark.anyio


class Toy(Environment):
    """Words of at most so many letters, which a full stop ends earlier; with known p, q, φ and ψ."""

    instant = True

    def __init__(self, letters="ab.", length=2, impossible=()):
        self.letters, self.length, self.impossible = letters, length, impossible

    def ended(self, word):
        return word.endswith(".") or len(word) == self.length

    def law(self, name, word):
        rng = random.Random(f"{name}/{word}")
        shares = [rng.uniform(0.2, 1) for _ in self.letters]
        return [share / sum(shares) for share in shares]

    def p(self, word):
        return self.law("p", word)

    def q(self, word):
        return self.law("q", word)

    def phi(self, word):
        return 0.0 if word in self.impossible else random.Random(f"phi/{word}").uniform(0.1, 3)

    def psi(self, word):
        return self.phi(word) if self.ended(word) else random.Random(f"psi/{word}").uniform(0.1, 3)

    def words(self):
        """Every word that is finished, with its probability under p."""
        words, found = {"": 1.0}, {}
        while words:
            longer = {}
            for word, mass in words.items():
                for letter, share in zip(self.letters, self.p(word), strict=True):
                    new = found if self.ended(word + letter) else longer
                    new[word + letter] = mass * share
            words = longer
        return found

    def target(self):
        """p φ for each word; the sum is Z."""
        return {word: mass * self.phi(word) for word, mass in self.words().items()}

    def said(self, word, i):
        """The step that says the letter of this number after the word."""
        logs = math.log(self.p(word)[i]), math.log(self.q(word)[i])
        return Step(self.letters[i], logprob=logs[0], logprobs=logs[:1], proposals=logs[1:])

    def root(self):
        return Node(Task("a word?"), State(""))

    def child(self, parent, i):
        """Grow one child; it fails where its potential is 0."""
        word = parent.text + self.letters[i]
        state = State(word, done=self.ended(word), answer=word if self.ended(word) else None)
        child = Node(parent.task, state, parent, parent.promised, self.said(parent.text, i))
        parent.promised += 1
        if self.psi(word):
            child.score = math.log(self.psi(word))
        else:
            child.failed("its potential is 0")
        parent.adopt([child])
        return child

    def growing(self, choose):
        """An `expand` whose letters are drawn by `choose`."""

        async def expand(nodes, n=1, *, by="policy"):
            widths = [n] * len(nodes) if isinstance(n, int) else n
            grown = [
                self.child(node, choose(self.q(node.text)))
                for node, width in zip(nodes, widths, strict=True)
                for _ in range(width)
            ]
            return [child for child in grown if child.failure is None]

        return expand

    # As an environment, a policy and a verifier of `solve`:

    async def reset(self, task):
        return State("")

    async def step(self, state, action):
        word = state.snapshot + action.text
        return State(word, done=self.ended(word), answer=word if self.ended(word) else None)

    async def propose(self, node, seeds):
        steps = []
        for seed in seeds:
            i = random.Random(seed).choices(range(len(self.letters)), self.q(node.text))[0]
            steps.append(self.said(node.text, i))
        return steps

    def value(self, word):
        return math.log(self.psi(word)) if self.psi(word) else -math.inf

    async def solved(self, controller, **more):
        parts = {"policy": self, "environment": self, "verifier": Judge(self.value), **more}
        return await solve("a word?", controller=controller, **parts)


def finished(coroutine):
    """Run a coroutine that never waits."""
    with pytest.raises(StopIteration) as done:
        coroutine.send(None)
    return done.value.value


def enumerated(monkeypatch, toy, controller):
    """The exact expectation of Ẑ, and of what each word's particles weigh: mean_i w_i 1[y_i = word]."""
    masses, evidence = Counter(), 0.0

    def program(choose):
        monkeypatch.setattr(smc, "offspring", integrated(choose))
        root, trace = toy.root(), []
        finished(controller.run(root, toy.growing(choose), trace))
        return trace[-1]

    total = 0.0
    for mass, particles in outcomes(program):
        total += mass
        evidence += mass * sum(particle.weight for particle in particles) / controller.n
        for node, log_weight in particles:
            masses[node.text] += mass * math.exp(log_weight) / controller.n
    assert total == pytest.approx(1)
    return evidence, masses


@pytest.mark.parametrize("resampler", RESAMPLERS)
@pytest.mark.parametrize("threshold", [None, 0.8, 0])
def test_the_evidence_is_unbiased_over_all_random_choices(monkeypatch, resampler, threshold):
    for toy, n in [
        (Toy(), 2),
        (Toy("ab", 2), 2),
        (Toy("ab.", 2, impossible={"ab", "."}), 2),
    ]:
        controller = SMC(n=n, resampler=resampler, threshold=threshold)
        evidence, masses = enumerated(monkeypatch, toy, controller)
        assert evidence == pytest.approx(sum(toy.target().values()), rel=1e-9)
        for word, mass in toy.target().items():
            assert masses[word] == pytest.approx(mass, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("toy", "controller"),
    [
        (Toy("ab", 2, impossible={"ab"}), SMC(n=3, resampler="stratified", threshold=0.7)),
        (Toy("ab", 3), SMC(n=2, resampler="systematic", threshold=None)),
        (Toy("ab", 3), SMC(n=2, resampler="systematic", threshold=0.8)),
    ],
    ids=["three particles", "three steps", "three steps, resampled at times"],
)
def test_it_is_unbiased_with_more_particles_and_steps(monkeypatch, toy, controller):
    evidence, _ = enumerated(monkeypatch, toy, controller)
    assert evidence == pytest.approx(sum(toy.target().values()), rel=1e-9)


def test_the_policy_itself_may_be_the_target(monkeypatch):
    class Adapted(Toy):
        p = Toy.q

    toy = Toy()
    evidence, _ = enumerated(monkeypatch, toy, SMC(n=2, target="policy"))
    assert evidence == pytest.approx(sum(Adapted().target().values()), rel=1e-9)


async def test_the_evidence_of_a_search_is_unbiased():
    toy, runs = Toy(length=4), 150
    controllers = [SMC(n=4, seed=seed) for seed in range(runs)]
    found = [await toy.solved(c, seed=seed) for seed, c in enumerate(controllers)]
    estimates = [
        math.exp(c.evidence(answer.root)) for c, answer in zip(controllers, found, strict=True)
    ]
    mean = sum(estimates) / runs
    variance = sum((estimate - mean) ** 2 for estimate in estimates) / (runs - 1)
    z = sum(toy.target().values())
    assert math.sqrt(variance) > 0.05 * z
    assert abs(mean - z) < 3 * math.sqrt(variance / runs)
    saved = from_json(to_json(found[0].root))
    assert controllers[0].evidence(saved) == controllers[0].evidence(found[0].root)


class Optimal(Toy):
    """The best twists ψ*_t = E[φ | y_≤t], and the proposal q ∝ p ψ* that goes with them."""

    def psi(self, word):
        if self.ended(word):
            return self.phi(word)
        steps = zip(self.letters, self.p(word), strict=True)
        return sum(share * self.psi(word + letter) for letter, share in steps)

    def q(self, word):
        steps = zip(self.letters, self.p(word), strict=True)
        return [share * self.psi(word + letter) / self.psi(word) for letter, share in steps]


async def test_optimal_twists_leave_nothing_to_chance():
    toy, tally, runs = Optimal(length=3, impossible={"ab."}), Counter(), 20
    z = sum(toy.target().values())
    for seed in range(runs):
        controller = SMC(n=4, threshold=0.999, seed=seed)
        answer = await toy.solved(controller, seed=seed)
        assert math.exp(controller.evidence(answer.root)) == pytest.approx(z)
        assert [p.weight for p in controller.particles(answer.root)] == pytest.approx([0.25] * 4)
        assert all(
            len(node.children) <= 1 for node in answer.root.walk() if node is not answer.root
        )
        tally.update(p.node.text for p in controller.particles(answer.root))
    wanted = {word: 4 * runs * mass / z for word, mass in toy.target().items() if mass}
    assert set(tally) <= set(wanted)
    chi2 = sum((tally[word] - mean) ** 2 / mean for word, mean in wanted.items())
    assert chi2 < len(wanted) - 1 + 4 * math.sqrt(2 * len(wanted))


@pytest.mark.parametrize("threshold", [0, 1, None])
async def test_one_particle_is_importance_sampling(threshold):
    toy, controller = Toy(length=4), SMC(n=1, threshold=threshold)
    for seed in range(5):
        answer = await toy.solved(controller, seed=seed)
        word, weight = answer.text, toy.phi(answer.text)
        for i, letter in enumerate(word):
            k = toy.letters.index(letter)
            weight *= toy.p(word[:i])[k] / toy.q(word[:i])[k]
        assert math.exp(controller.evidence(answer.root)) == pytest.approx(weight)


async def test_equal_weights_are_plain_sampling():
    answer = await solve(
        "a word?",
        policy=Random(),
        controller=(controller := SMC(n=9, threshold=1)),
        environment=Word(4),
        verifier=Judge(lambda word: 0.0),
    )
    assert len(answer.root.children) == 9
    assert all(len(node.children) == 1 for node in answer.root.walk() if 0 < node.depth < 4)
    assert controller.evidence(answer.root) == 0.0
    assert [p.weight for p in controller.particles(answer.root)] == pytest.approx([1 / 9] * 9)


async def test_many_particles_have_the_law_of_the_target():
    toy, n, runs = Toy(length=3), 800, 4
    masses, z = Counter(), sum(toy.target().values())
    for seed in range(runs):
        controller = SMC(n=n, threshold=0.9, seed=seed)
        answer = await toy.solved(controller, seed=seed)
        assert len(answer.root.children) == n
        assert controller.evidence(answer.root) == pytest.approx(math.log(z), abs=0.15)
        for particle in controller.particles(answer.root):
            masses[particle.node.text] += particle.weight / runs
    assert sum(abs(masses[word] - mass / z) for word, mass in toy.target().items()) / 2 < 0.06


class Flaky(Toy):
    """Fails at times, and at times gives less than was asked."""

    async def propose(self, node, seeds):
        if seeds[0] % 4 == 0 and node.text:
            raise BackendError("the line broke")
        steps = await super().propose(node, seeds)
        return steps[: len(steps) - (seeds[0] % 5 == 0)]


async def test_the_tree_tells_again_what_the_particles_were():
    toy = Flaky(length=5, impossible={"a.", "bbb."})
    for seed, threshold in itertools.product(range(8), [None, 0.5]):
        controller, root = SMC(n=7, threshold=threshold, seed=seed), toy.root()
        grow = Grow({"policy": toy}, toy, {"v": Judge(toy.value)}, seed=seed)
        trace = []
        with suppress(Ended):
            await controller.run(root, heard(alive(grow)), trace)
        assert len(trace) > 1
        assert controller.trace(root) == trace
        assert (
            controller.trace(from_json(to_json(root)))[-1][0].log_weight == trace[-1][0].log_weight
        )


async def test_what_a_budget_cuts_is_a_part_of_the_whole():
    toy, controller = Toy("ab", 5), SMC(n=6, threshold=None)
    whole = controller.trace((await toy.solved(controller)).root)
    lengths = set()
    for nodes in range(31):
        answer = await toy.solved(controller, budget=Budget(nodes=nodes))
        trace = controller.trace(answer.root)
        lengths.add(len(trace))
        for generation, other in zip(trace, whole, strict=False):
            assert [(p.node.path, p.log_weight) for p in generation] == [
                (p.node.path, p.log_weight) for p in other
            ]
        assert controller.evidence(answer.root) == (
            pytest.approx(smc.log_mean([p.log_weight for p in trace[-1]], 6)) if trace else 0.0
        )
    assert lengths == {0, 1, 2, 3, 4, 5}


def test_children_that_failed_or_never_came_are_particles_of_weight_0():
    toy = Toy("ab", 1)
    root = toy.root()
    toy.child(root, 0)
    toy.child(root, 1).failed("the line broke")
    root.promised = 4
    step = toy.p("")[0] / toy.q("")[0] * toy.phi("a")
    assert math.exp(SMC(n=4).evidence(root)) == pytest.approx(step / 4)
    assert [p.weight for p in SMC(n=4).particles(root)] == [1.0]
    for child in root.children:
        child.failed("all of them")
    assert SMC(n=4).evidence(root) == -math.inf
    assert SMC(n=4).particles(root) == []
    assert SMC(n=4).answer(root) is root


def test_an_order_of_which_nothing_arrived_is_none():
    toy = Toy("ab", 3)
    root = toy.root()
    for i in (0, 1):
        toy.child(root, i)
    before = SMC(n=2, threshold=0).evidence(root)
    for child in root.children:
        child.promised = 1
    assert SMC(n=2, threshold=0).evidence(root) == before != -math.inf


async def test_any_tree_has_an_answer():
    assert SMC().answer(root := Toy().root()) is root
    grown = await Toy("abc", 4).solved(Beam(width=3, fanout=2))
    for n, threshold in itertools.product([1, 2, 6, 50], [None, 0, 0.5]):
        assert SMC(n=n, threshold=threshold).answer(grown.root).state.answer is not None


def ballots():
    """Finished children with these answers and weights."""
    root = Node(Task("?"), State(), None)
    for i, (answer, weight) in enumerate([("x", 4), ("y", 3), ("y", 2), (None, 1)]):
        child = Node(root.task, State(done=True, answer=answer), root, i, Step(str(i)))
        child.score = math.log(weight) + 2000
        root.adopt([child])
    root.promised = 4
    return root


def test_the_final_particle_is_drawn_by_weight_or_weighs_the_most():
    root = ballots()
    assert SMC(n=4, final="heaviest").answer(root).index == 0
    assert SMC(n=4, final="vote").answer(root).index == 1
    root.children[0].failed("gone")
    assert SMC(n=4, final="pick").answer(root).index == 1
    root = ballots()
    tally = Counter(SMC(n=4, threshold=0, seed=seed).answer(root).index for seed in range(2000))
    wanted = [800, 600, 400, 200]
    assert sum((tally[i] - mean) ** 2 / mean for i, mean in enumerate(wanted)) < 16.3


def test_only_expand_may_be_awaited_in_a_replay():
    class Turn:
        def __await__(self):
            yield

    async def waits(expand):
        await Turn()

    with pytest.raises(RuntimeError, match="nothing else"):
        replay(waits)


def test_a_particle_knows_its_weight():
    assert Particle(Toy().root(), math.log(3)).weight == pytest.approx(3)


async def test_copies_are_particles_also_where_they_are_hidden_from_others():
    async def found(unique):
        return await solve(
            "a word?",
            policy=Random("ab"),
            controller=SMC(n=6, final="heaviest"),
            environment=Word(3),
            verifier=Judge(lambda word: -len(word) - word.count("a") / 9),
            unique=unique,
        )

    plain, hidden = await found(None), await found("siblings")
    assert to_json(hidden.root) == to_json(plain.root)
    assert hidden.node.path == plain.node.path
    assert SMC(n=6).particles(hidden.root)[0].node.finished
