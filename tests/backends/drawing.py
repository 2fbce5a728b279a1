"""What the tests of the sampler share: its inputs, and transformers' own adapters."""

import torch
import transformers

from branchwise.backends.hf.sampler import Choice, Past, sample, uniform

CPU = torch.device("cpu")
NOTHING = Past((), 0)


def choose(*samplings, past=NOTHING, embedding=None):
    return Choice.of(samplings, [past] * len(samplings), CPU, embedding)


def normal(rows, size, seed=0, spread=2.0):
    return spread * torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))


def frequencies(logits, sampling, draws=8_000, past=NOTHING, embedding=None):
    """How often each token of one row is drawn."""
    choice = choose(*[sampling] * draws, past=past, embedding=embedding)
    drawn = sample(logits.expand(draws, -1), choice, uniform(range(draws), [9] * draws))
    return drawn.tokens.bincount(minlength=logits.shape[-1])


def misfit(counts, probabilities):
    """Pearson's statistic, less what 999 in 1000 samples of the distribution stay under."""
    expected = counts.sum() * probabilities.double()
    assert counts[expected == 0].sum() == 0
    often = expected >= 5
    bins, seen = expected[often], counts[often]
    if (rest := expected[~often].sum()) > 0:
        bins, seen = torch.cat([bins, rest[None]]), torch.cat([seen, counts[~often].sum()[None]])
    freedom = max(len(bins) - 1, 1)
    return ((seen - bins) ** 2 / bins).sum() - freedom - 3.3 * (2 * freedom) ** 0.5 - 3


class Penalties(transformers.LogitsProcessor):
    """OpenAI's two, which transformers lacks."""

    def __init__(self, asked, frequency, presence):
        self.asked, self.frequency, self.presence = asked, frequency, presence

    def __call__(self, tokens, scores):
        counts = torch.stack([r[self.asked :].bincount(minlength=scores.shape[1]) for r in tokens])
        return scores - self.frequency * counts - self.presence * (counts > 0)


def warpers(how, asked=0):
    """What transformers has for each adapter that is on, in the order that the sampling says."""
    t = transformers
    make = {
        "logit_bias": lambda bias: t.SequenceBiasLogitsProcessor(
            {(k,): v for k, v in bias.items()}
        ),
        "repetition_penalty": t.RepetitionPenaltyLogitsProcessor,
        "frequency_penalty": lambda x: Penalties(asked, x, 0),
        "presence_penalty": lambda x: Penalties(asked, 0, x),
        "temperature": t.TemperatureLogitsWarper,
        "top_k": t.TopKLogitsWarper,
        "top_p": t.TopPLogitsWarper,
        "min_p": t.MinPLogitsWarper,
        "typical_p": t.TypicalLogitsWarper,
        "epsilon_cutoff": t.EpsilonLogitsWarper,
        "eta_cutoff": t.EtaLogitsWarper,
    }
    return [make[name](getattr(how, name)) for name in how.applied]


def warped(logits, processors, past=NOTHING):
    """The distribution that transformers' processors leave."""
    scores = logits.clone()
    tokens = torch.tensor([list(past.tokens) or [0]] * len(logits))
    for processor in processors:
        scores = processor(tokens, scores)
    return scores.softmax(-1)
