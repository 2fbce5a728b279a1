import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from drawing import CPU, choose, frequencies, misfit, normal, warped, warpers  # noqa: E402  (late)

from branchwise.backends.hf import plain  # noqa: E402  (as above)
from branchwise.backends.hf.sampler import (  # noqa: E402  (as above)
    Choice,
    Past,
    check,
    probabilities,
    sample,
    top,
    uniform,
)
from branchwise.core.config import Sampling  # noqa: E402  (as above)
from branchwise.core.errors import SpecError  # noqa: E402  (as above)

TRUNCATIONS = [
    {"top_k": 5},
    {"top_p": 0.713},
    {"min_p": 0.1},
    {"top_k": 20, "top_p": 0.913},
    {"top_k": 30, "top_p": 0.95, "min_p": 0.05, "temperature": 0.6},
    {"top_p": 0.5, "min_p": 0.02, "temperature": 1.7},
    {"top_k": 1},
    {"top_k": 550, "top_p": 0.999},
    {"top_p": 1e-6},
    {"min_p": 1.0},
    {"top_k": 10_000},
]
OTHERS = [
    {"typical_p": 0.6},
    {"epsilon_cutoff": 0.004},
    {"eta_cutoff": 0.01},
    {"top_n_sigma": 1.5},
    {"mirostat": 1, "mirostat_tau": 3.0},
    {"mirostat": 2, "mirostat_tau": 3.0},
    {"repetition_penalty": 1.5, "frequency_penalty": 0.5, "presence_penalty": -0.3},
    {"logit_bias": {3: 4.0, 9: -100.0}},
    {"top_p": 0.6, "temperature": 2.0, "order": ("top_p", "temperature")},
]
NUMBERS = [717374697293, 219446269114, 317570381356]  # times 2**40
PAST = Past((1, 2, 2, 3, 3, 3, 5), 2)


@pytest.fixture(params=["kernel", "torch"])
def path(request, monkeypatch):
    """Both ways of drawing: the kernel, where this machine can compile it, and torch."""
    if request.param == "torch":
        monkeypatch.setattr(plain, "runs_on", lambda _: False)
    elif not plain.runs_on(torch.zeros(1, 1)):
        pytest.skip("there is no compiler here")


def inverse(distribution, numbers):
    """The first token of each row at which the summed probabilities exceed its number."""
    return torch.searchsorted(distribution.cumsum(-1), numbers[:, None], right=True)[:, 0]


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("truncation", [*TRUNCATIONS, {}, {"temperature": 0.5}])
@pytest.mark.parametrize("size", [1, 40, 512, 600, 1300])
def test_draws_from_what_transformers_leaves(truncation, size):
    logits, how = normal(40, size), Sampling(**truncation)
    numbers = uniform(range(40), [3] * 40)
    drawn = sample(logits, choose(*[how] * 40), numbers)
    expected = warped(logits.double(), warpers(how))
    expected /= expected.sum(-1, keepdim=True)
    # Where a number falls on an edge between two tokens, rounding decides.
    agree = drawn.tokens == inverse(expected, numbers)
    assert agree.sum() >= 39
    proposals = expected.gather(-1, drawn.tokens[:, None])[:, 0].log()
    assert torch.allclose(drawn.proposals, proposals, atol=1e-5)
    raw = logits.double().log_softmax(-1).gather(-1, drawn.tokens[:, None])[:, 0]
    assert torch.allclose(drawn.logprobs, raw, atol=1e-5)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("truncation", TRUNCATIONS)
def test_of_equal_tokens_top_p_keeps_the_first_and_the_others_keep_all(truncation):
    logits, how = normal(40, 600, spread=1.0).round(), Sampling(**truncation)
    expected = warped(logits.double(), warpers(how))
    kept = (expected > 0).sum(-1, keepdim=True)
    # transformers keeps as many of equal tokens, and leaves open which ones top-p keeps.
    order = logits.argsort(dim=-1, descending=True, stable=True)
    first = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, torch.arange(600) < kept)
    found = probabilities(logits, choose(*[how] * 40))
    assert torch.equal(found > 0, first)
    assert torch.allclose(found.sort(-1).values, expected.sort(-1).values, atol=1e-5)
    numbers = uniform(range(40), [4] * 40)
    drawn = sample(logits, choose(*[how] * 40), numbers)
    assert (drawn.tokens == inverse(found, numbers)).sum() >= 39


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"temperature": 0.5},
        {"top_p": 0.9, "top_k": 30, "temperature": 1.3},
        {"top_p": 0.95},
        *OTHERS,
    ],
)
def test_frequencies_are_those_of_the_distribution(how):
    logits, how = normal(1, 60, seed=3, spread=2.5), Sampling(**how)
    expected = probabilities(logits, choose(how, past=PAST))[0]
    assert misfit(frequencies(logits, how, past=PAST), expected) < 0


@pytest.mark.usefixtures("path")
def test_rows_draw_each_by_its_own_rules_whatever_stands_beside_them():
    hows = [Sampling(**how) for how in [*TRUNCATIONS, *OTHERS, {}, {"temperature": 0}]] * 3
    hows = hows[:64]
    logits, numbers = normal(64, 800), uniform(range(64), [1] * 64)
    together = sample(logits, choose(*hows, past=PAST), numbers)
    for i, how in enumerate(hows):
        alone = sample(logits[i : i + 1], choose(how, past=PAST), numbers[i : i + 1])
        assert alone.tokens == together.tokens[i]
        assert torch.allclose(alone.proposals, together.proposals[i], atol=1e-5)
        assert torch.allclose(alone.mus, together.mus[i], atol=1e-5, equal_nan=True)


@pytest.mark.usefixtures("path")
def test_sample_probabilities_and_top_agree():
    hows = [Sampling(**how) for how in [*TRUNCATIONS, *OTHERS, {}, {"temperature": 0}]]
    logits, numbers = normal(len(hows), 300, seed=5), uniform(range(len(hows)), range(len(hows)))
    choice = choose(*hows, past=PAST)
    distribution, drawn = probabilities(logits, choice), sample(logits, choice, numbers)
    assert torch.allclose(distribution.sum(-1), torch.ones(len(hows), dtype=torch.float64))
    assert drawn.tokens.equal(inverse(distribution, numbers))
    chosen = distribution.gather(-1, drawn.tokens[:, None])[:, 0].log()
    assert torch.allclose(drawn.proposals, chosen, atol=1e-5)
    tokens, logprobs, proposals = top(logits, choice, 4)
    assert tokens.equal(logits.topk(4).indices)
    assert torch.allclose(logprobs, logits.double().log_softmax(-1).gather(-1, tokens))
    assert proposals.equal(distribution.gather(-1, tokens).log())
    assert proposals[TRUNCATIONS.index({"top_k": 1})].tolist() == [0, *[-torch.inf] * 3]


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("truncation", TRUNCATIONS)
def test_large_and_small_logits_are_cut_like_others(truncation):
    how, numbers = Sampling(**truncation), uniform(range(12), range(12))
    for logits in (normal(12, 700) + 1e3, normal(12, 700) * 1e-3, normal(12, 700) * 1e20):
        distribution = probabilities(logits, choose(*[how] * 12))
        drawn = sample(logits, choose(*[how] * 12), numbers)
        assert (drawn.tokens == inverse(distribution, numbers)).sum() >= 11


def test_half_precision_is_read_as_it_is():
    logits, how = normal(6, 700).bfloat16(), Sampling(top_p=0.9, temperature=0.8)
    numbers = uniform(range(6), range(6))
    half, full = (sample(x, choose(*[how] * 6), numbers) for x in (logits, logits.float()))
    assert half.tokens.equal(full.tokens)
    assert half.proposals.equal(full.proposals)


@pytest.mark.usefixtures("path")
def test_logits_are_left_as_they_are():
    hows = [Sampling(**how) for how in [*TRUNCATIONS, *OTHERS, {}, {"temperature": 0}]]
    logits = normal(len(hows), 300)
    before, choice = logits.clone(), choose(*hows, past=PAST)
    sample(logits, choice, uniform(range(len(hows)), range(len(hows))))
    probabilities(logits, choice)
    assert logits.equal(before)


@pytest.mark.usefixtures("path")
def test_zero_temperature_takes_the_first_of_the_most_probable_tokens():
    logits = normal(10, 900)
    logits[:, [700, 650]] = 20.0
    how = Sampling(temperature=0, top_k=3, typical_p=0.2)
    drawn = sample(logits, choose(*[how] * 10), uniform(range(10), range(10)))
    assert drawn.tokens.tolist() == [650] * 10
    assert torch.allclose(drawn.logprobs, logits.double().log_softmax(-1)[:, 650], atol=1e-5)
    assert drawn.proposals.tolist() == [0.0] * 10


def test_zero_temperature_comes_after_bias_and_penalties():
    logits = torch.tensor([[3.0, 2.9, 2.8, 0.0]])
    past = Past((0, 1), 1)
    for how, token in [
        ({}, 0),
        ({"repetition_penalty": 2.0}, 2),
        ({"presence_penalty": 1.0}, 0),
        ({"logit_bias": {3: 9}}, 3),
    ]:
        choice = choose(Sampling(temperature=0, **how), past=past)
        assert sample(logits, choice, uniform([0], [0])).tokens == token


@pytest.mark.usefixtures("path")
def test_extreme_numbers_fall_on_tokens_that_can_be_drawn():
    logits = torch.full((2, 1030), -torch.inf)
    logits[:, [3, 700]] = 0.0
    numbers = torch.tensor([0.0, 1 - 2.0**-40], dtype=torch.float64)
    for how in (
        Sampling(),
        Sampling(top_p=0.99),
        Sampling(temperature=1e-9),
        Sampling(temperature=1e9, top_k=7),
        Sampling(typical_p=0.9),
    ):
        assert sample(logits, choose(how, how), numbers).tokens.tolist() == [3, 700]


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("how", [{}, {"temperature": 0}, *TRUNCATIONS[:2], *OTHERS])
def test_a_row_without_numbers_shows_and_disturbs_no_other(how):
    logits = normal(5, 600)
    good = logits.clone()
    logits[0, 5] = torch.nan
    logits[2] = -torch.inf
    logits[4, 7] = torch.inf
    choice, numbers = choose(*[Sampling(**how)] * 5, past=PAST), uniform(range(5), range(5))
    found, expected = sample(logits, choice, numbers), sample(good, choice, numbers)
    for row in (1, 3):
        assert found.tokens[row] == expected.tokens[row]
        assert found.logprobs[row] == expected.logprobs[row]
    for row in (0, 2, 4):
        assert found.logprobs[row].isnan()
        assert found.proposals[row].isnan()
        assert 0 <= found.tokens[row] < 600
    bad = probabilities(logits, choice).isnan()
    assert bad.all(-1).tolist() == [True, False, True, False, True]
    assert not bad[1].any()


def test_the_numbers_are_uniform_and_unrelated():
    many, same = range(10_000), [5] * 10_000
    streams = [uniform(many, same, stream) for stream in (0, 1, 2)]
    for numbers in (*streams, uniform(same, many)):
        counts = torch.histc(numbers, 100, 0, 1)
        assert ((counts - 100) ** 2 / 100).sum() < 148  # χ², 99 degrees of freedom, p = 0.001
        pairs = torch.stack([numbers[:-1], numbers[1:]])
        assert torch.corrcoef(pairs)[0, 1].abs() < 0.04
    assert torch.corrcoef(torch.stack(streams)).triu(1).abs().max() < 0.04
    assert uniform([2**48 - 1], [0]) != uniform([2**48 - 2], [0])


def test_the_numbers_stay_what_they_are():
    numbers = uniform([0, 1, 2**48 - 1], [0, 7, 4095]) * 2**40
    assert numbers.long().tolist() == NUMBERS


def test_pasts_are_not_looked_at_without_penalties():
    class Shut:
        def __getattr__(self, name):
            raise AssertionError(name)

    how = Sampling(top_p=0.9, typical_p=0.8, logit_bias={1: 1})
    choice = Choice.of([how], [Shut()], CPU)
    assert 0 <= sample(normal(1, 20), choice, uniform([0], [0])).tokens < 20


def test_a_bias_names_tokens_that_there_are():
    check(Sampling(logit_bias={9: 1.0}), 10)
    with pytest.raises(SpecError, match="names the token 10, and the last one is 9"):
        check(Sampling(logit_bias={2: 1.0, 10: 1.0}), 10)


def test_nothing_is_drawn_for_no_rows():
    drawn = sample(torch.empty(0, 9), Choice.of([], [], CPU), uniform([], []))
    assert [len(x) for x in (drawn.tokens, drawn.logprobs, drawn.proposals, drawn.mus)] == [0] * 4
