import math
from collections import Counter

import pytest
from scipy.stats import chisquare
from toylm import ToyLM

from branchwise import Node, State, Step, Task
from branchwise.core.aio import run_sync
from branchwise.search.stochastic_beam import StochasticBeam, conditioned
from branchwise.solve import solve

MODEL = ToyLM("ab")
LENGTH = 3  # texts that are cut at the horizon are texts of their own here


def texts():
    """Every text of at most so many tokens, ended or cut, with its probability."""
    whole = {word + "$": math.exp(logprob) for word, logprob in MODEL.texts(LENGTH).items()}
    cut = [a + b + c for a in "ab" for b in "ab" for c in "ab"]
    return whole | {word: math.exp(MODEL.prefix(word)) for word in cut}


LAW = texts()


def name(node):
    return node.text + "$" * node.finished


async def grow(beam):
    return (await solve("?", controller=beam, horizon=LENGTH, **MODEL.parts())).root


@pytest.fixture(scope="module")
def whole():
    """The tree of all texts: each beam would grow a part of it."""
    return run_sync(grow, StochasticBeam(width=50, fanout=3))


def beams(runs, **fields):
    return [StochasticBeam(fanout=3, seed=seed, **fields) for seed in range(runs)]


@pytest.mark.parametrize("beam", beams(8, width=3), ids=lambda beam: f"seed-{beam.seed}")
def test_what_it_grows_is_what_the_tree_of_all_texts_tells(beam, whole):
    grown = run_sync(grow, beam)
    assert [(name(d.node), d.perturbed) for d in beam.sample(grown)] == [
        (name(d.node), d.perturbed) for d in beam.sample(whole)
    ]
    assert sum(1 for _ in grown.walk()) <= 1 + 3 + 9 + 9


def test_the_toy_is_a_law():
    assert math.fsum(LAW.values()) == pytest.approx(1)


def test_pairs_follow_the_law_of_sampling_without_replacement(whole):
    runs = 3000
    seen = Counter()
    for beam in beams(runs, width=2):
        seen[tuple(name(draw.node) for draw in beam.sample(whole))] += 1
    expected = {(x, y): runs * LAW[x] * LAW[y] / (1 - LAW[x]) for x in LAW for y in LAW if x != y}
    assert seen.keys() <= expected.keys()
    rare = [pair for pair in expected if expected[pair] < 5]
    common = [pair for pair in expected if expected[pair] >= 5]
    observed = [seen[p] for p in common] + [sum(seen[p] for p in rare)]
    wanted = [expected[p] for p in common] + [sum(expected[p] for p in rare)]
    assert len(common) > 30
    assert chisquare(observed, wanted).pvalue > 0.01


def test_a_sample_as_wide_as_the_world_is_all_of_it_and_its_probabilities_are_the_models(whole):
    [beam] = beams(1, width=50)
    sample = beam.sample(whole)
    assert {name(d.node): d.logprob for d in sample} == pytest.approx(
        {text: math.log(p) for text, p in LAW.items()}
    )
    assert [d.perturbed for d in sample] == sorted((d.perturbed for d in sample), reverse=True)
    assert beam.estimate(whole, lambda node: len(node.text)) == pytest.approx(
        sum(p * len(text.strip("$")) for text, p in LAW.items())
    )


def test_the_perturbed_scores_are_the_greatest_of_their_subtrees(whole):
    wide, narrow = (StochasticBeam(width=width, fanout=3) for width in (50, 1))
    best = wide.sample(whole)[0]
    # The one way that a beam of 1 takes ends at the same text.
    assert narrow.sample(whole) == [best]


def test_estimates_are_unbiased(whole):
    exact = sum(p * len(text.strip("$")) for text, p in LAW.items())
    estimates = [beam.estimate(whole, lambda node: len(node.text)) for beam in beams(2000, width=4)]
    mean = sum(estimates) / len(estimates)
    variance = sum((x - mean) ** 2 for x in estimates) / (len(estimates) - 1)
    assert 0 < variance / len(estimates) < 0.03**2
    assert abs(mean - exact) < 3 * math.sqrt(variance / len(estimates))


def test_temperature_changes_the_law_of_each_step(whole):
    runs = 1500
    seen = Counter(
        beam.sample(whole)[0].node.lineage[1].step.tokens[0]
        for beam in beams(runs, width=1, temperature=2.0)
    )
    weights = [math.sqrt(p) for p in MODEL.law("")]
    expected = [runs * weight / sum(weights) for weight in weights]
    assert chisquare([seen[token] for token in range(3)], expected).pvalue > 0.01


def test_conditioning_is_the_formula_and_stays_finite():
    for gumbel, largest, wanted in [(0.3, 1.2, 0.5), (-2.0, 0.0, 3.0), (1.0, 1.1, -4.0)]:
        plain = -math.log(math.exp(-wanted) - math.exp(-largest) + math.exp(-gumbel))
        assert conditioned(gumbel, largest, wanted) == pytest.approx(plain)
    assert conditioned(-800.0, 50.0, 0.0) == pytest.approx(-800.0)
    assert conditioned(0.0, 0.0, -900.0) == -900.0
    assert conditioned(0.0, 800.0, 800.0) == pytest.approx(0.0)
    assert conditioned(1.0, 1.0 + 1e-15, -5.0) <= -5.0


def test_an_estimate_needs_two(whole):
    with pytest.raises(ValueError, match="at least 2"):
        StochasticBeam(width=1).estimate(whole, lambda node: 1.0)


def test_an_estimate_may_have_texts_that_are_hardly_possible():
    """All but one text have less than e^-1000: that one is in every sample, and is the estimate."""
    root = Node(Task("?"), State())
    said = zip("abc", (0.0, -1000.0, -3000.0), strict=True)
    steps = [Step(letter, logprob=logprob) for letter, logprob in said]
    root.adopt([Node(root.task, State(done=True), root, i, s) for i, s in enumerate(steps)])
    beam = StochasticBeam(width=2, fanout=3)
    assert [draw.node.text for draw in beam.sample(root)] == ["a", "b"]
    assert beam.estimate(root, lambda node: 7.0 if node.text == "a" else 1.0) == 7.0
