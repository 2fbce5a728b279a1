"""Resampling, integrated over its random numbers; and the tools for integrating."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchwise import SpecError
from branchwise.search.resampling import ess, log_mean, offspring

RESAMPLERS = ["multinomial", "residual", "stratified", "systematic"]
WEIGHTS = [0.31, 0.0, 0.07, 1.1, 0.52]


class Choices:
    """Choices that follow a prefix and then take the first way that is possible."""

    def __init__(self, prefix):
        self.prefix, self.taken, self.others, self.mass = prefix, (), [], 1.0

    def __call__(self, probabilities):
        if len(self.taken) < len(self.prefix):
            i = self.prefix[len(self.taken)]
        else:
            i, *others = (i for i, p in enumerate(probabilities) if p > 0)
            self.others += [(*self.taken, other) for other in others]
        self.taken += (i,)
        self.mass *= probabilities[i]
        return i


def outcomes(program):
    """Every outcome of a program that draws by `choose(probabilities)`, with its probability."""
    prefixes = [()]
    while prefixes:
        choose = Choices(prefixes.pop())
        result = program(choose)
        prefixes += choose.others
        yield choose.mass, result


class Cells(random.Random):
    """Random numbers for `offspring`: one out of each interval in which it does not change."""

    def __init__(self, choose, weights, n, resampler):
        super().__init__()
        self.choose, self.drawn, self.n, self.resampler = choose, 0, n, resampler
        self.shares = [n * weight / sum(weights) for weight in weights]

    def random(self):
        match self.resampler:
            case "multinomial":
                edges = [upto / self.n for upto in itertools.accumulate(self.shares)]
            case "stratified":
                edges = [upto - self.drawn for upto in itertools.accumulate(self.shares)]
            case "systematic":
                edges = [upto % 1 for upto in itertools.accumulate(self.shares)]
            case "residual":
                rest = [share % 1 for share in self.shares]
                edges = [upto / sum(rest) for upto in itertools.accumulate(rest)]
        self.drawn += 1
        edges = sorted({0.0, 1.0, *(edge for edge in edges if 1e-12 < edge < 1 - 1e-12)})
        i = self.choose([high - low for low, high in itertools.pairwise(edges)])
        return (edges[i] + edges[i + 1]) / 2


def integrated(choose):
    """`offspring` with its random numbers drawn by `choose`."""

    def resample(weights, n, _draws, resampler="stratified"):
        return offspring(weights, n, Cells(choose, weights, n, resampler), resampler)

    return resample


def moments(resampler, n, value):
    """The exact mean and variance of Σ N_i · value_i."""
    first = second = 0.0
    for mass, counts in outcomes(lambda choose: integrated(choose)(WEIGHTS, n, None, resampler)):
        total = sum(count * f for count, f in zip(counts, value, strict=True))
        first += mass * total
        second += mass * total * total
    return first, second - first * first


def one(i):
    return [float(i == j) for j in range(len(WEIGHTS))]


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("resampler", RESAMPLERS)
def test_offspring_are_unbiased(resampler, n):
    for i, weight in enumerate(WEIGHTS):
        assert moments(resampler, n, one(i))[0] == pytest.approx(
            n * weight / sum(WEIGHTS), abs=1e-12
        )


@pytest.mark.parametrize("resampler", RESAMPLERS)
def test_the_variances_are_ordered(resampler):
    shares = [weight / sum(WEIGHTS) for weight in WEIGHTS]
    for value in [one(0), one(4), [3.0, 1.0, -4.0, 1.0, 5.0], [-2.0, 7.0, 1.0, 8.0, 2.0]]:
        mean = sum(p * f for p, f in zip(shares, value, strict=True))
        most = 5 * sum(p * (f - mean) ** 2 for p, f in zip(shares, value, strict=True))
        variance = moments(resampler, 5, value)[1]
        if resampler == "multinomial":
            assert variance == pytest.approx(most)
        elif resampler != "systematic":
            assert variance <= most + 1e-9
    for i, share in enumerate(shares):  # the least variance that a whole number of this mean has
        rest = 5 * share % 1
        assert resampler != "systematic" or moments(resampler, 5, one(i))[1] == pytest.approx(
            rest * (1 - rest)
        )


def test_multinomial_offspring_have_the_multinomial_law():
    draws, weights, tallies = random.Random(5), [1.0, 2.0, 3.0], {}
    for _ in range(6000):
        counts = tuple(offspring(weights, 3, draws, "multinomial"))
        tallies[counts] = tallies.get(counts, 0) + 1
    chi2 = 0.0
    for counts in itertools.product(range(4), repeat=3):
        if sum(counts) == 3:
            ways = math.factorial(3) / math.prod(map(math.factorial, counts))
            wanted = (
                6000 * ways * math.prod((w / 6) ** c for w, c in zip(weights, counts, strict=True))
            )
            chi2 += (tallies.get(counts, 0) - wanted) ** 2 / wanted
    assert chi2 < 27.9  # 99.9 % of chi-square with 9 degrees of freedom


@given(
    weights=st.lists(st.floats(0, 1e6), min_size=1, max_size=12).filter(lambda w: sum(w) > 1e-3),
    n=st.integers(1, 40),
    seed=st.integers(0, 2**32),
    resampler=st.sampled_from(RESAMPLERS),
)
def test_offspring_are_n_and_none_without_weight(weights, n, seed, resampler):
    counts = offspring(weights, n, random.Random(seed), resampler)
    assert len(counts) == len(weights)
    assert sum(counts) == n
    for count, weight in zip(counts, weights, strict=True):
        share = n * weight / sum(weights)
        assert count >= 0
        assert weight > 0 or not count
        if resampler == "systematic":
            assert math.floor(share - 1e-9) <= count <= math.ceil(share + 1e-9)
        if resampler == "residual":
            assert count >= math.floor(share - 1e-9)
        if resampler == "stratified":
            assert abs(count - share) < 2


@pytest.mark.parametrize("weights", [[], [0.0, 0.0], [1.0, -1.0], [math.nan], [math.inf, 1.0]])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(SpecError, match="cannot resample"):
        offspring(weights, 2, random.Random(0))


def test_the_effective_sample_size_is_n_for_equals_and_1_for_one():
    assert ess([0.3] * 7) == pytest.approx(7)
    assert ess([0.0, 5.0, 0.0]) == 1
    assert ess([1.0, 3.0]) == pytest.approx(16 / 10)


def test_the_mean_weight_counts_particles_without_weight():
    assert log_mean([math.log(2), math.log(4)], 4) == pytest.approx(math.log(1.5))
    assert log_mean([-4000.0, -4000.0], 2) == -4000
    assert log_mean([], 3) == -math.inf
