import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from branchwise.backends.hf import sampler  # noqa: E402  (after the check that torch is there)
from branchwise.backends.hf.sampler import Choice, sample, uniform  # noqa: E402
from branchwise.core.config import Sampling  # noqa: E402

CPU = torch.device("cpu")
TRUNCATIONS = [
    {"top_k": 5},
    {"top_p": 0.7},
    {"min_p": 0.1},
    {"top_k": 20, "top_p": 0.9},
    {"top_k": 30, "top_p": 0.95, "min_p": 0.05, "temperature": 0.6},
    {"top_p": 0.5, "min_p": 0.02, "temperature": 1.7},
    {"top_k": 1},
    {"top_p": 1e-6},
    {"min_p": 1.0},
    {"top_k": 10_000},
]


@pytest.fixture(autouse=True)
def _one_thread():
    """Small tensors, busy machines: threads that wait for each other would cost seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def warped(logits, how):
    """The distribution that transformers' own warpers leave."""
    scores = transformers.TemperatureLogitsWarper(how.temperature)(None, logits.clone())
    if how.top_k:
        scores = transformers.TopKLogitsWarper(how.top_k)(None, scores)
    if how.top_p < 1:
        scores = transformers.TopPLogitsWarper(how.top_p)(None, scores)
    if how.min_p:
        scores = transformers.MinPLogitsWarper(how.min_p)(None, scores)
    return scores.softmax(-1)


def left(logits, how, width):
    """The distribution that `truncate` leaves, and whether it is sure of it."""
    choice = Choice.of([how] * len(logits), CPU)
    scaled = (logits - logits.max(-1, keepdim=True).values) / how.temperature
    values, order = sampler._largest(scaled, width)
    mass = scaled.logsumexp(-1).exp()
    weights, sure = sampler.truncate(values, mass, choice, logits.shape[1])
    found = torch.zeros(logits.shape, dtype=torch.float64).scatter(-1, order, weights)
    return found / found.sum(-1, keepdim=True), sure


def normal(rows, size, seed=0, spread=2.0):
    return spread * torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("truncation", TRUNCATIONS)
def test_truncation_keeps_what_transformers_keeps(truncation):
    logits, how = normal(40, 600), Sampling(**truncation)
    expected = warped(logits, how)
    for width in (64, 600):
        found, sure = left(logits, how, width)
        assert ((found > 0) == (expected > 0))[sure].all()
        assert torch.allclose(found[sure].float(), expected[sure], atol=1e-5)
    assert sure.all()


@pytest.mark.parametrize("truncation", TRUNCATIONS[:6])
def test_as_many_ties_are_kept_as_transformers_keeps(truncation):
    logits, how = normal(40, 200, spread=1.0).round(), Sampling(**truncation)
    expected = warped(logits, how).sort(-1).values  # which of equal ones it keeps, it leaves open
    for width in (100, 200):
        found, sure = left(logits, how, width)
        found = found.sort(-1).values
        assert ((found > 0) == (expected > 0))[sure].all()
        assert torch.allclose(found[sure].float(), expected[sure], atol=1e-5)
    assert sure.all()


@pytest.mark.parametrize("truncation", TRUNCATIONS)
def test_looking_at_few_candidates_first_changes_nothing(truncation, monkeypatch):
    logits = torch.cat([normal(20, 700, spread=s).mul(4).round() / 4 for s in (0.1, 1, 4)])
    choice = Choice.of([Sampling(**truncation)] * 60, CPU)
    numbers = uniform(range(60), range(60))
    found = {}
    for widths in ((), (8, 64), (256,)):
        monkeypatch.setattr(sampler, "_WIDTHS", widths)
        found[widths] = sample(logits, choice, numbers)[0].tolist()
    assert found[()] == found[8, 64] == found[256,]


@pytest.mark.parametrize(
    "how", [Sampling(), Sampling(temperature=0.5), Sampling(top_p=0.9, top_k=30, temperature=1.3)]
)
def test_frequencies_are_those_of_the_distribution(how):
    logits, draws = normal(1, 700, seed=3, spread=2.5), 8_000
    choice = Choice.of([how] * draws, CPU)
    numbers = uniform(range(draws), [9] * draws)
    tokens, _ = sample(logits.expand(draws, -1), choice, numbers)
    expected = draws * warped(logits, how)[0].double()
    counts = tokens.bincount(minlength=700)
    assert counts[expected == 0].sum() == 0
    often = expected >= 5
    bins = torch.cat([expected[often], expected[~often].sum()[None].clamp(min=1e-9)])
    seen = torch.cat([counts[often], counts[~often].sum()[None]])
    statistic = ((seen - bins) ** 2 / bins).sum().item()
    freedom = len(bins) - 1
    assert statistic < freedom + 3.3 * (2 * freedom) ** 0.5  # about the 99.9th percentile


def test_the_numbers_are_uniform_and_unrelated():
    many, same = range(10_000), [5] * 10_000
    for numbers in (uniform(many, same), uniform(same, many)):
        counts = torch.histc(numbers, 100, 0, 1)
        assert ((counts - 100) ** 2 / 100).sum() < 148  # χ², 99 degrees of freedom, p = 0.001
        pairs = torch.stack([numbers[:-1], numbers[1:]])
        assert torch.corrcoef(pairs)[0, 1].abs() < 0.04
    assert uniform([2**48 - 1], [0]) != uniform([2**48 - 2], [0])


def test_zero_temperature_takes_the_most_probable_token():
    logits = normal(10, 90)
    tokens, logprobs = sample(
        logits,
        Choice.of([Sampling(temperature=0, top_k=3)] * 10, CPU),
        uniform(range(10), range(10)),
    )
    assert tokens.equal(logits.argmax(-1))
    assert torch.allclose(logprobs, logits.log_softmax(-1).max(-1).values)


def test_rows_draw_each_by_its_own_rules_whatever_stands_beside_them():
    hows = [Sampling(temperature=0), Sampling(), Sampling(top_p=0.5), Sampling(top_k=4, min_p=0.3)]
    hows = hows * 10
    logits, numbers = normal(40, 800), uniform(range(40), [1] * 40)
    together, logprobs = sample(logits, Choice.of(hows, CPU), numbers)
    alone = [
        sample(logits[i : i + 1], Choice.of([how], CPU), numbers[i : i + 1])[0].item()
        for i, how in enumerate(hows)
    ]
    assert together.tolist() == alone
    raw = logits.log_softmax(-1).gather(-1, together[:, None])[:, 0]
    assert torch.allclose(logprobs, raw, atol=1e-5)


def test_extreme_numbers_fall_on_tokens_that_can_be_drawn():
    logits = torch.full((2, 1030), -torch.inf)
    logits[:, [3, 700]] = 0.0
    numbers = torch.tensor([0.0, 1 - 2.0**-40], dtype=torch.float64)
    for how in (Sampling(), Sampling(top_p=0.99), Sampling(temperature=1e-9)):
        tokens, _ = sample(logits, Choice.of([how, how], CPU), numbers)
        assert set(tokens.tolist()) == {3, 700}


def test_logits_that_are_not_numbers_show():
    logits = torch.full((1, 10), torch.nan)
    _, logprobs = sample(logits, Choice.of([Sampling(temperature=0)], CPU), uniform([0], [0]))
    assert logprobs.isnan().all()
