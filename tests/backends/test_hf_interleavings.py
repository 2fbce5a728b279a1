"""Rows of every kind that arrive, share, wait, are forgotten and cancelled: each has its own truth.

The oracle is a plain forward pass of transformers for each text.
"""

from dataclasses import dataclass
from functools import cache, partial

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from hypothesis import HealthCheck, given, settings  # noqa: E402  (after the check for torch)
from hypothesis import strategies as some  # noqa: E402
from tiny import twins  # noqa: E402

from branchwise.backends.hf import engine as engines  # noqa: E402
from branchwise.backends.hf.engine import Engine  # noqa: E402
from branchwise.backends.hf.model import Model  # noqa: E402
from branchwise.backends.hf.pool import Shape  # noqa: E402
from branchwise.backends.hf.row import Look, Row  # noqa: E402
from branchwise.backends.hf.speculation import Lookup, Smaller  # noqa: E402
from branchwise.core.config import Sampling  # noqa: E402

END = 2
WORDS = (5, 7, 60)
MANY = 4000  # passes that no example needs: it hangs


@cache
def peers():
    plain, ours = twins("llama")
    torch.manual_seed(3)
    return plain, ours, torch.nn.Linear(48, 2)


@cache
def truth(path):
    """What a plain pass says after a text: log-probabilities, state and values."""
    plain, _, head = peers()
    with torch.inference_mode():
        seen = plain(torch.tensor([path]), output_hidden_states=True)
        state = seen.hidden_states[-1][0, -1]
        return seen.logits[0, -1].log_softmax(-1), state.tolist(), head(state).tolist()


@dataclass(frozen=True)
class Plan:
    """A row: what it does, when it arrives, and when nobody waits for it any more."""

    kind: str
    context: tuple[int, ...]
    given: tuple[int, ...]
    limit: int
    arrives: int
    goes: int | None


def checked(row):
    assert row.error is None, row.error
    if row.look is not None:
        law, state, values = truth(row.context)
        assert row.words == pytest.approx(law[list(row.look.words)].tolist(), abs=1e-4)
        assert row.state == pytest.approx(state if row.look.state else (), abs=1e-4)
        assert row.values == pytest.approx(values, abs=1e-4)
        return
    path = row.context
    for token, logprob in zip(row.given or row.tokens, row.logprobs, strict=True):
        law = truth(path)[0]
        assert logprob == pytest.approx(law[token].item(), abs=1e-4)
        if not row.given:
            assert law[token] > law.max() - 1e-4
        path = (*path, token)
    if not row.given:
        assert row.tokens[-1] == END or len(row.tokens) == row.limit


tokens = partial(some.lists, some.sampled_from([5, 6, 7]))
rows = some.builds(
    Plan,
    some.sampled_from(["look", "words", "judge", "draw"]),
    # Few tokens, and runs of one: rows share, and begin in the middle of what others read.
    some.one_of(tokens(min_size=1, max_size=24), some.integers(1, 24).map(lambda n: [5] * n)).map(
        tuple
    ),
    tokens(min_size=1, max_size=8).map(tuple),
    some.integers(1, 8),
    some.integers(0, 3),
    some.none() | some.integers(0, 5),
)
DRAFTS = ("none", "lookup", "smaller")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rounds=some.lists(some.lists(rows, min_size=1, max_size=8), min_size=1, max_size=3),
    slots=some.sampled_from([34, 50, 400]),
    max_rows=some.sampled_from([1, 3, 64]),
    pieces=some.tuples(*[some.integers(1, 4)] * 3),
    draft=some.sampled_from(DRAFTS),
)
def test_every_row_that_stays_has_its_own_truth(rounds, slots, max_rows, pieces, draft):
    _, ours, head = peers()
    ours.lm_head._forward_pre_hooks.clear()
    drafter = {
        "none": None,
        "lookup": partial(Lookup, 3),
        "smaller": partial(Smaller, Model(ours, 2**20), 3, 97),
    }[draft]
    model = Model(ours, Shape.of(ours.config, ours.dtype).token_bytes * slots, head)
    engine = Engine(model, frozenset([END]), max_rows, drafter)
    with pytest.MonkeyPatch.context() as patch:
        for name, size in zip(("_ALONE", "_BESIDE", "_JUDGED"), pieces, strict=True):
            patch.setattr(engines, name, size)
        for plans in rounds:
            run(engine, plans)
    assert engine._tree.room(slots) is not None  # nothing is held or lost


def run(engine, plans):
    passes = 0

    def gone(goes):
        return goes is not None and passes > goes

    made = [
        Row(
            context=plan.context,
            given=plan.given if plan.kind == "judge" else (),
            look={"look": Look(state=True), "words": Look(words=WORDS)}.get(plan.kind),
            limit=plan.limit,
            sampling=Sampling(temperature=0),
            gone=partial(gone, plan.goes),
        )
        for plan in plans
    ]

    def more():
        nonlocal passes
        passes += 1
        assert passes < MANY, "it hangs"
        return [row for row, plan in zip(made, plans, strict=True) if plan.arrives == passes - 1]

    # An engine that has nothing to do is woken by the next arrival.
    while passes <= max(plan.arrives for plan in plans):
        engine.run(more)
    for row, plan in zip(made, plans, strict=True):
        if plan.goes is None or row.done:
            checked(row)
