from collections import Counter

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny import twins  # noqa: E402  (after the check that torch is there)

from branchwise.backends.hf.engine import Engine  # noqa: E402
from branchwise.backends.hf.model import Model  # noqa: E402
from branchwise.backends.hf.row import Row  # noqa: E402
from branchwise.backends.hf.sampler import Choice, Past, probabilities  # noqa: E402
from branchwise.backends.hf.speculation import Draft, Lookup, Smaller, verify  # noqa: E402
from branchwise.core.config import Sampling  # noqa: E402

CONTEXT = (5, 6, 7, 5, 6)
SAMPLINGS = [
    Sampling(temperature=0.6),
    Sampling(temperature=0.8, top_k=6, top_p=0.9),
    Sampling(temperature=0.5, repetition_penalty=1.5, frequency_penalty=0.5),
    Sampling(temperature=0.6, typical_p=0.7, logit_bias={9: 1.0}),
    Sampling(temperature=0.7, mirostat=2, mirostat_tau=2.0),
]


@pytest.fixture(scope="module")
def models():
    plain, ours = twins("llama", vocab_size=12, tie_word_embeddings=True)
    with torch.no_grad():  # a cousin that often agrees with it
        _, cousin = twins("llama", vocab_size=12, tie_word_embeddings=True)
        for weight in cousin.parameters():
            weight.add_(0.02 * torch.randn(weight.shape))
    return plain, ours, cousin


class Guessing(Engine):
    """An engine that counts the tokens which it draws in each pass."""

    def __init__(self, model, drafter):
        super().__init__(Model(model, 1 << 22), frozenset(), 64, drafter and (lambda: drafter))
        self.passes, self.kept = 0, 0

    def _draw(self, turns, seen):
        before = {turn.row: len(turn.row.tokens) for turn in turns if turn.draft}
        super()._draw(turns, seen)
        self.passes += len(before)
        self.kept += sum(len(row.tokens) - had - 1 for row, had in before.items())

    def answer(self, rows):
        arrivals = [rows]
        self.run(lambda: arrivals.pop() if arrivals else [])


class Fixed:
    """Always guesses the same, with or without a law that it was drawn from."""

    def __init__(self, tokens, law=None):
        self.tokens, self.law = tokens, law

    def drafts(self, rows):
        found = {}
        for row in rows:
            if self.law is None:
                found[row] = Draft(self.tokens)
            else:
                numbers = torch.Generator().manual_seed(row.seed)
                drawn = torch.multinomial(self.law, 1, generator=numbers).tolist()
                found[row] = Draft(drawn, [self.law])
        return found


def drafters(models):
    law = torch.arange(1, 13, dtype=torch.float64) / 78
    return {
        "lookup": Lookup(3, sizes=(1,)),
        "smaller": Smaller(Model(models[2], 1 << 22), 3, 12),
        "certain": Fixed((7, 5, 6)),
        "drawn": Fixed((), law),
    }


def joint(plain, how):
    """The law of the next two tokens, by enumeration."""
    found = {}
    with torch.inference_mode():
        first = law(plain, CONTEXT, how, None)
        for a, p in enumerate(first):
            if p > 0:
                mu = None
                if how.mirostat:
                    heated = plain(torch.tensor([CONTEXT])).logits[0, -1] / how.temperature
                    surprise = -heated.double().log_softmax(-1)[a].item() / 0.6931471805599453
                    mu = 2 * how.mirostat_tau - how.mirostat_eta * (surprise - how.mirostat_tau)
                for b, q in enumerate(law(plain, (*CONTEXT, a), how, mu)):
                    found[a, b] = p * q
    return found


def law(plain, path, how, mu):
    logits = plain(torch.tensor([path])).logits[:, -1]
    choice = Choice.of([how], [Past(path, len(CONTEXT), mu)], logits.device)
    return probabilities(logits, choice)[0].tolist()


@pytest.mark.parametrize("how", SAMPLINGS, ids=("heat", "cut", "penalties", "typical", "mirostat"))
@pytest.mark.parametrize("drafter", ["lookup", "smaller", "certain", "drawn"])
def test_two_tokens_have_the_joint_law_of_the_model(models, drafter, how):
    draws = 3000
    engine = Guessing(models[1], drafters(models)[drafter])
    # Three tokens, so that the second one is guessed, and kept or replaced, too.
    rows = [Row(context=CONTEXT, asked=5, limit=4, seed=i, sampling=how) for i in range(draws)]
    for start in range(0, draws, 500):
        engine.answer(rows[start : start + 500])
    seen = Counter(tuple(row.tokens[:2]) for row in rows)
    expected = {pair: draws * p for pair, p in joint(models[0], how).items()}
    assert all(expected.get(pair, 0) > 0 for pair in seen)
    often = {pair: count for pair, count in expected.items() if count >= 5}
    rare = sum(expected.values()) - sum(often.values())
    statistic = sum((seen[pair] - count) ** 2 / count for pair, count in often.items())
    if rare >= 1:
        statistic += (draws - sum(seen[pair] for pair in often) - rare) ** 2 / rare
    freedom = len(often) - (rare < 1)
    assert statistic < freedom + 3.3 * (2 * freedom) ** 0.5 + 4  # about the 99.9th percentile
    assert engine.kept > 0 or how.mirostat or how.typical_p < 1


@pytest.mark.parametrize("drafter", ["lookup", "smaller", "certain"])
def test_greedy_answers_stay_the_same_and_take_fewer_passes(models, drafter):
    greedy = Sampling(temperature=0)
    contexts = [CONTEXT, (3, 4, 5), tuple(range(3, 11)) * 2]
    answers = []
    for guess in (None, drafters(models)[drafter]):
        engine = Guessing(models[1], guess)
        rows = [Row(context=c, limit=40, sampling=greedy) for c in contexts]
        engine.answer(rows)
        answers.append([row.tokens for row in rows])
    assert answers[0] == answers[1]
    assert engine.kept > (0 if drafter == "certain" else 10)


def test_what_is_told_of_a_token_is_the_same_when_it_was_guessed(models):
    how = Sampling(temperature=0.7, top_k=4)
    context = tuple(range(3, 9)) * 3
    row = Row(context=context, limit=20, seed=1, sampling=how, top=3)
    engine = Guessing(models[1], Lookup(4, sizes=(1,)))
    engine.answer([row])
    assert engine.kept > 0
    for i, token in enumerate(row.tokens):
        logits = models[0](torch.tensor([(*context, *row.tokens[:i])])).logits[:, -1]
        raw = logits[0].double().log_softmax(-1)
        adapted = law(models[0], (*context, *row.tokens[:i]), how, None)
        assert row.logprobs[i] == pytest.approx(raw[token].item(), abs=1e-4)
        assert row.proposals[i] == pytest.approx(
            torch.tensor(adapted[token]).log().item(), abs=1e-4
        )
        assert [t for t, _, _ in row.tops[i]] == raw.topk(3).indices.tolist()


def test_a_verified_token_has_the_law_of_the_target():
    rows = 40_000
    target, guess = (
        torch.tensor(law, dtype=torch.float64) for law in ([0.5, 0.3, 0.2, 0], [0.1, 0.1, 0.5, 0.3])
    )
    numbers = torch.rand(3, rows, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = torch.searchsorted(guess.cumsum(0), numbers[2], right=True).clamp_(max=3)
    tokens, kept = verify(target.expand(rows, -1), guess.expand(rows, -1), drawn, numbers[:2])
    shares = tokens.bincount(minlength=4) / rows
    assert torch.allclose(shares.double(), target, atol=0.01)
    # Leviathan et al. 2023, corollary 3.6: one minus the total variation.
    assert kept.double().mean() == pytest.approx(
        torch.minimum(target, guess).sum().item(), abs=0.01
    )


def test_lookup_repeats_what_followed_last_time():
    row = Row(context=(1, 2, 3, 4, 9, 1, 2, 5, 6, 1, 2), limit=50)
    (draft,) = Lookup(4).drafts([row]).values()
    assert draft.tokens == [5, 6, 1, 2]
    row.write(3, 0, 0)
    (draft,) = Lookup(4).drafts([row]).values()
    assert draft.tokens == [4, 9, 1, 2]
    assert not Lookup(4).drafts([Row(context=(1, 2, 3), limit=50)])
    assert not Lookup(4).drafts([Row(context=(1, 2, 9, 1, 2), limit=1)])
