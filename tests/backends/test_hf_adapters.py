import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from drawing import CPU, choose, normal, warped, warpers  # noqa: E402  (after the check that torch is there)
from hypothesis import assume, given, settings  # noqa: E402  (as above)
from hypothesis import strategies as st  # noqa: E402  (as above)
from transformers import GenerationConfig  # noqa: E402  (as above)

from branchwise.backends.hf import scores  # noqa: E402  (as above)
from branchwise.backends.hf.sampler import (  # noqa: E402  (as above)
    Choice,
    Past,
    probabilities,
    sample,
    uniform,
)
from branchwise.core.config import ADAPTERS, Sampling  # noqa: E402  (as above)

PAST = Past((1, 2, 2, 3, 3, 3, 5), 2)
# What transformers has too, with what to try.
SHARED = {
    "logit_bias": st.just({3: 4.0, 9: -100.0}),
    "repetition_penalty": st.floats(0.5, 2),
    "frequency_penalty": st.floats(-2, 2),
    "presence_penalty": st.floats(-2, 2),
    "temperature": st.floats(0.3, 2),
    "top_k": st.integers(1, 80),
    "top_p": st.floats(0.05, 0.99),
    "min_p": st.floats(0.001, 0.9),
    "typical_p": st.floats(0.05, 0.99),
    "epsilon_cutoff": st.floats(1e-4, 0.3),
    "eta_cutoff": st.floats(1e-4, 0.3),
}
ONES = [
    {"logit_bias": {3: 4.0, 9: -100.0}},
    {"repetition_penalty": 1.7},
    {"repetition_penalty": 0.6},
    {"frequency_penalty": 0.7},
    {"presence_penalty": -1.3},
    {"temperature": 0.4},
    {"top_k": 7},
    {"top_p": 0.71},
    {"min_p": 0.07},
    {"typical_p": 0.2},
    {"typical_p": 0.93},
    {"epsilon_cutoff": 0.01},
    {"epsilon_cutoff": 0.9},
    {"eta_cutoff": 0.02},
    {"eta_cutoff": 0.9},
]


def left(logits, how, past=PAST):
    return probabilities(logits, choose(*[how] * len(logits), past=past))


def same(found, expected):
    return torch.allclose(found, expected, atol=1e-9) and torch.equal(found > 0, expected > 0)


@pytest.mark.parametrize("one", ONES)
@pytest.mark.parametrize("widths", [(256, 8192), (8, 64)])
def test_an_adapter_leaves_what_that_of_transformers_leaves(one, widths, monkeypatch):
    monkeypatch.setattr(scores, "_WIDTHS", widths)
    how = Sampling(**one)
    for spread in (0.1, 1.0, 4.0):
        logits = normal(20, 300, spread=spread).double()
        assert same(left(logits, how), warped(logits, warpers(how, PAST.asked), PAST))


@pytest.mark.parametrize("one", [o for o in ONES if "top_p" not in o])
def test_an_adapter_keeps_all_of_equal_tokens(one):
    logits, how = normal(20, 300, spread=1.0).round().double(), Sampling(**one)
    found = left(logits, how)
    assert same(found, warped(logits, warpers(how, PAST.asked), PAST))


@settings(max_examples=60)
@given(st.fixed_dictionaries({}, optional=SHARED), st.integers(0, 2**20))
def test_in_their_own_order_they_are_what_generate_composes(fields, seed):
    # It has no penalties on the answer alone.
    fields = {k: v for k, v in fields.items() if k not in {"frequency_penalty", "presence_penalty"}}
    how, logits = Sampling(**fields), normal(4, 120, seed).double()
    names = {k: v for k, v in fields.items() if k != "logit_bias"}
    bias = {(token,): value for token, value in how.logit_bias.items()} or None
    config = GenerationConfig(do_sample=True, sequence_bias=bias, **({"top_k": 0} | names))
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=2, n_layer=0, n_head=1, vocab_size=120)
    )
    processors = model._get_logits_processor(config, input_ids_seq_length=len(PAST.tokens))
    assume(same_edges(fields, logits))
    assert same(left(logits, how), warped(logits, processors, PAST))


def same_edges(fields, logits):
    """Whether rounding decides nothing: a little more or less of everything cuts as much."""
    wide, narrow = (
        Sampling(**{k: v * by if isinstance(v, float) and v < 1 else v for k, v in fields.items()})
        for by in (1 - 1e-9, 1 + 1e-9)
    )
    return torch.equal(left(logits, wide) > 0, left(logits, narrow) > 0)


@settings(max_examples=60)
@given(st.fixed_dictionaries({}, optional=SHARED), st.permutations(ADAPTERS), st.integers(0, 2**20))
def test_in_any_order_they_are_the_warpers_in_that_order(fields, order, seed):
    how, logits = Sampling(**fields, order=tuple(order)), normal(4, 120, seed).double()
    assume(same_edges(fields | {"order": tuple(order)}, logits))
    assert same(left(logits, how), warped(logits, warpers(how, PAST.asked), PAST))


def test_top_n_sigma_keeps_what_is_within_n_deviations_of_the_largest_logit():
    logits = normal(20, 300).double()
    for n in (0.3, 1.0, 2.5):
        edge = logits.max(-1, keepdim=True).values - n * logits.std(-1, keepdim=True)
        expected = logits.masked_fill(logits < edge, -torch.inf).softmax(-1)
        assert same(left(logits, Sampling(top_n_sigma=n)), expected)
        hot = Sampling(top_n_sigma=n, temperature=3.0)
        assert torch.equal(left(logits, hot) > 0, expected > 0)  # as the paper claims
    of_few = logits.topk(5).values
    edge = of_few[:, 0] - of_few.std(-1)
    kept = (left(logits, Sampling(top_n_sigma=1.0, top_k=5)) > 0).sum(-1)
    assert kept.equal((of_few >= edge[:, None]).sum(-1))
    assert (left(logits, Sampling(top_n_sigma=1.0, top_k=1)) > 0).sum(-1).eq(1).all()


def zipf_k(p, mu):
    """Basu et al. 2021, algorithm 1, line by line."""
    p = np.sort(p)[::-1]
    m, n = min(100, len(p) - 1), len(p)
    t = [math.log((i + 2) / (i + 1)) for i in range(m)]
    b = [math.log(p[i] / p[i + 1]) for i in range(m)]
    s = sum(x * y for x, y in zip(t, b, strict=True)) / sum(x * x for x in t)
    epsilon = s - 1
    k = (epsilon * 2**mu / (1 - n ** (-epsilon))) ** (1 / s)
    return min(max(round(k), 1), n)


@pytest.mark.parametrize("size", [40, 500])
@pytest.mark.parametrize("mu", [1.0, 4.0, 7.5])
def test_mirostat_1_keeps_as_many_tokens_as_zipfs_law_says(size, mu):
    logits = normal(20, size).double()
    how = Sampling(mirostat=1, mirostat_tau=3.0, mirostat_eta=0.7)
    past = Past((), 0, mu)
    found = left(logits, how, past)
    for row, p in zip(found, logits.softmax(-1), strict=True):
        k = zipf_k(p.numpy(), mu)
        expected = torch.zeros(size).double().scatter(0, p.topk(k).indices, p.topk(k).values)
        assert same(row, expected / expected.sum())


def test_mirostat_2_keeps_what_surprises_less_than_mu():
    logits = normal(20, 300).double()
    p = logits.softmax(-1)
    for mu in (0.5, 3.0, 9.0):
        kept = (-p.log2() <= mu) | (p == p.max(-1, keepdim=True).values)
        expected = p * kept
        found = left(logits, Sampling(mirostat=2), Past((), 0, mu))
        assert same(found, expected / expected.sum(-1, keepdim=True))


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_learns_from_the_surprise_before_it_cuts(version):
    logits, numbers = normal(20, 300), uniform(range(20), range(20))
    how = Sampling(mirostat=version, mirostat_tau=3.0, mirostat_eta=0.7, temperature=0.8)
    start = sample(logits, choose(*[how] * 20), numbers)
    given_start = sample(logits, choose(*[how] * 20, past=Past((), 0, 6.0)), numbers)
    assert start.mus.equal(given_start.mus)
    p = (logits.double() / 0.8).softmax(-1).gather(-1, start.tokens[:, None])[:, 0]
    assert torch.allclose(start.mus, 6.0 - 0.7 * (-p.log2() - 3.0), atol=1e-4)
    off = sample(logits, choose(*[Sampling(top_k=3)] * 20), numbers)
    assert off.mus.isnan().all()


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_brings_the_mean_surprise_to_its_target(version):
    steps, rows, tau = 300, 16, 5.0
    how = Sampling(mirostat=version, mirostat_tau=tau, mirostat_eta=0.1)
    mus, surprises = [None] * rows, []
    for step in range(steps):
        choice = Choice.of([how] * rows, [Past((), 0, mu) for mu in mus], CPU)
        logits = normal(rows, 400, seed=step, spread=1.5)
        drawn = sample(logits, choice, uniform(range(rows), [step] * rows))
        mus = drawn.mus.tolist()
        surprises.append(-drawn.logprobs / math.log(2))
    settled = torch.stack(surprises)[steps // 3 :]
    assert abs(settled.mean() - tau) < 0.05
    free = sample(logits, choose(*[Sampling()] * rows), uniform(range(rows), [0] * rows))
    assert -free.logprobs.mean() / math.log(2) > tau + 1


def test_penalties_leave_tokens_beyond_the_vocabulary_alone():
    logits = normal(1, 10)
    past = Past((3, 99, 4), 1)
    how = Sampling(repetition_penalty=1.5, presence_penalty=1.0, logit_bias={50: 9.0})
    assert left(logits, how, past).isfinite().all()


def test_temperature_that_comes_last_heats_what_was_kept():
    logits = normal(3, 50).double()
    order = ("top_p", "temperature")
    found = left(logits, Sampling(top_p=0.5, temperature=100.0, order=order))
    kept = warped(logits, [transformers.TopPLogitsWarper(0.5)]) > 0
    assert torch.equal(found > 0, kept)
    assert torch.allclose(
        found[kept], (1 / kept.sum(-1, keepdim=True)).expand_as(kept)[kept].double(), atol=0.05
    )
