import random

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny import FAMILIES, twins  # noqa: E402  (after the check that torch is there)

from branchwise.backends.hf import engine as engines  # noqa: E402
from branchwise.backends.hf.engine import Engine  # noqa: E402
from branchwise.backends.hf.model import Model  # noqa: E402
from branchwise.backends.hf.packed import pack  # noqa: E402
from branchwise.backends.hf.pool import Shape  # noqa: E402
from branchwise.backends.hf.row import Row  # noqa: E402
from branchwise.core.config import Sampling  # noqa: E402

GREEDY = Sampling(temperature=0)
ENDS = frozenset({2})


class Watched(Engine):
    """An engine that compares all logits that it draws from with a plain forward pass."""

    def __init__(self, plain, ours, slots=4096, max_rows=64):
        room = Shape.of(ours.config, ours.dtype).token_bytes * slots
        super().__init__(Model(ours, room), ENDS, max_rows)
        self.plain, self.known, self.forwarded, self.compared = plain, {}, 0, 0
        self.widest, self.put_off = 0, 0
        read = self._model.read

        def counted(spans, wanted):
            self.forwarded += sum(len(span.tokens) for span in spans)
            return read(spans, wanted)

        self._model.read = counted

    def _draw(self, turns, seen):
        self.widest = max(self.widest, len(turns))
        for turn in turns if self.plain else ():
            path = tuple(turn.row.path)
            if path not in self.known:
                self.known[path] = self.plain(torch.tensor([path])).logits[0, -1]
            difference = (seen.logits[turn.first] - self.known[path]).abs().max()
            assert difference < 1e-4
            self.compared += 1
        super()._draw(turns, seen)

    def _put_off(self, row):
        self.put_off += 1
        super()._put_off(row)

    def answer(self, rows, by=64):
        """Run rows, of which so many arrive before each pass."""
        left = list(rows)

        def more():
            arrived, left[:by] = left[:by], []
            return arrived

        while left:
            self.run(more)
        return [row.tokens for row in rows]


def greedy(plain, context, tokens):
    ids = torch.tensor([context])
    with torch.inference_mode():
        said = plain.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=tokens,
            eos_token_id=2,
        )
    return said[0, len(context) :].tolist()


def contexts(seed, count):
    """Texts of which many begin like another one, whole or cut anywhere."""
    rng = random.Random(seed)
    texts = [tuple(rng.randrange(3, 97) for _ in range(rng.randrange(1, 40)))]
    while len(texts) < count:
        text = rng.choice(texts)
        cut = text[: rng.randrange(len(text) + 1)]
        more = tuple(rng.randrange(3, 97) for _ in range(rng.randrange(20)))
        texts.append((cut + more or (5,))[:70])
    return texts


MIXES = {
    "at ease": {},
    "tight memory": {"slots": 100},
    "small pieces": {"pieces": (5, 3)},
    "few places": {"max_rows": 3, "by": 2},
    "all of it": {"slots": 130, "pieces": (30, 17), "max_rows": 9, "by": 1},
}


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_mix_is_the_plain_forward_pass(family, mix, monkeypatch):
    how = dict(MIXES[mix])
    if "pieces" in how:
        alone, beside = how.pop("pieces")
        monkeypatch.setattr(engines, "_ALONE", alone)
        monkeypatch.setattr(engines, "_BESIDE", beside)
    monkeypatch.setattr("branchwise.backends.hf.attention._SHARED", {torch.float32: 50})
    by = how.pop("by", 64)
    plain, ours = twins(family)
    pack(ours)
    engine = Watched(plain, ours, **how)
    texts = contexts(family + mix, 14)
    rows = [Row(context=text, limit=12, sampling=GREEDY) for text in texts]
    answers = engine.answer(rows, by)
    assert [row.error for row in rows] == [None] * len(rows)
    assert answers == [greedy(plain, text, 12) for text in texts]
    # Then forks of what was said, in the middle and at the end.
    forks = [
        (*text, *said[: len(said) // 2]) for text, said in zip(texts[:6], answers, strict=False)
    ]
    again = [Row(context=text, limit=5, sampling=GREEDY) for text in forks]
    assert engine.answer(again, by) == [greedy(plain, text, 5) for text in forks]
    assert engine.compared > 100


def test_what_is_shared_is_read_once():
    plain, ours = twins("llama")
    engine = Watched(plain, ours)
    texts = contexts(3, 30)
    rows = [
        Row(context=text, limit=9, seed=i, sampling=Sampling())
        for i, text in enumerate(texts)
        for _ in range(2)
    ]
    engine.answer(rows)
    # Rows that say the same by chance cannot know it beforehand.
    said = sum(len(row.tokens) - 1 for row in rows)
    distinct = {text[: i + 1] for text in texts for i in range(len(text))}
    assert engine.forwarded <= len(distinct) + len(texts) + said
    grown, forwarded = (
        [Row(context=tuple(r.path), limit=3, sampling=Sampling()) for r in rows],
        engine.forwarded,
    )
    engine.answer(grown)
    new = len({row.context for row in grown})
    assert engine.forwarded - forwarded <= new + sum(len(row.tokens) - 1 for row in grown)


def test_memory_that_runs_out_makes_rows_wait_and_changes_nothing():
    plain, ours = twins("llama")
    rows = [
        [Row(context=(7, 8, 9), limit=60, seed=i, sampling=Sampling()) for i in range(12)]
        for _ in range(2)
    ]
    wide, tight = Watched(plain, ours), Watched(plain, ours, slots=200)
    assert wide.answer(rows[0]) == tight.answer(rows[1])
    assert wide.put_off == 0
    assert tight.put_off > 0
    assert tight._space.free + sum(r.length for r in runs_of(tight)) == 200


def runs_of(engine):
    """All slots that the tree of an engine without rows holds."""
    left, runs = [engine._tree.top.segment], []
    while left:
        segment = left.pop()
        runs += segment.runs
        left += segment.children.values()
    return runs


def test_what_can_never_fit_fails_and_the_others_go_on():
    plain, ours = twins("llama")
    engine = Watched(plain, ours, slots=50)
    rows = [
        Row(context=(5,) * 60, limit=5, sampling=GREEDY),
        Row(context=(5, 6), limit=90, seed=3, sampling=Sampling()),
        Row(context=(5, 6, 7), limit=5, sampling=GREEDY),
    ]
    engine.answer(rows)
    assert "61 tokens do not fit the memory for keys and values, which holds 50" in str(
        rows[0].error
    )
    assert "which holds 50" in str(rows[1].error)
    assert rows[2].tokens == greedy(plain, (5, 6, 7), 5)


@pytest.mark.parametrize("step", range(1, 9))
def test_rows_cancelled_at_any_step_leave_nothing_behind(step):
    plain, ours = twins("llama")
    engine = Watched(plain, ours, slots=300)
    passes = []
    gone = [
        Row(
            context=(5, 6, 7, *range(20, 40 + i)),
            limit=50,
            seed=i,
            gone=lambda: len(passes) >= step,
        )
        for i in range(4)
    ]
    stays = Row(context=(5, 6, 9), limit=12, sampling=GREEDY)
    arrivals = [[*gone, stays]]
    unused = []

    def more():
        passes.append(len(engine._live))
        if len(passes) > step:
            unused.append(all(row.tail is None for row in gone))
        return arrivals.pop() if arrivals else []

    engine.run(more)
    assert stays.tokens == greedy(plain, (5, 6, 9), 12)
    assert len(unused) > 1
    assert all(unused[1:])  # from the next pass on
    assert engine._space.free + sum(r.length for r in runs_of(engine)) == 300
    assert engine._tree.room(300) is not None


@pytest.mark.parametrize(
    "how", [Sampling(), Sampling(top_p=0.9, top_k=30), Sampling(typical_p=0.8)]
)
def test_a_seed_and_a_position_give_the_same_token_alone_and_among_64(how):
    plain, ours = twins("qwen2")
    pack(ours)
    texts = contexts(5, 64)
    alone = [Row(context=t, limit=8, seed=i, sampling=how) for i, t in enumerate(texts)]
    engine = Watched(plain, ours)
    for row in alone:
        engine.answer([row])
    together = [Row(context=t, limit=8, seed=i, sampling=how) for i, t in enumerate(texts)]
    engine = Watched(plain, ours)
    engine.answer(together)
    assert engine.widest == 64
    assert [row.tokens for row in together] == [row.tokens for row in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.proposals == pytest.approx(other.proposals, abs=1e-4)


def test_logits_that_are_not_numbers_fail_their_row_and_spoil_nothing():
    plain, ours = twins("llama")
    engine = Watched(plain, ours)
    with torch.no_grad():
        ours.model.embed_tokens.weight[11] = torch.nan  # reading this token yields no number
    rows = [
        Row(context=(5, 6, 11, 7), limit=6, sampling=GREEDY),
        Row(context=(5, 6), limit=6, sampling=GREEDY),
        Row(context=(5, 6, 12), limit=6, sampling=GREEDY),
    ]
    engine.plain = None
    engine.answer(rows)
    assert "logits are not numbers" in str(rows[0].error)
    for row in rows[1:]:
        assert row.tokens == greedy(plain, row.context, 6)
    assert engine._tree.find((5, 6, 11, 7)).position <= 2


def test_only_what_is_needed_of_a_held_segment_counts():
    """A fork near the beginning of a long text does not keep the rest of it."""
    plain, ours = twins("llama")
    long = tuple(range(3, 83))
    engine = Watched(plain, ours, slots=100)
    engine.answer([Row(context=long, limit=2, sampling=GREEDY)])
    forks = [(*long[:10], *range(40, 90)), (*long[:10], 90)]
    for fork, limit in zip(forks, (5, 60), strict=True):
        row = Row(context=fork, limit=limit, seed=4, sampling=GREEDY)
        engine.answer([row])
        assert row.error is None
        assert row.tokens == greedy(plain, fork, limit)
    # The last slots are had one by one.
    engine = Watched(plain, ours, slots=50)
    row = Row(context=(5, 6, 7), limit=48, sampling=GREEDY)
    engine.answer([row])
    assert row.tokens == greedy(plain, (5, 6, 7), 48)


def test_a_long_text_that_nobody_waits_for_is_not_read_to_its_end(monkeypatch):
    monkeypatch.setattr(engines, "_ALONE", 4)
    plain, ours = twins("llama")
    engine = Watched(plain, ours, slots=120)
    long = tuple(range(3, 93))
    passes = []
    gone = Row(context=long, limit=5, gone=lambda: len(passes) >= 2)
    stays = Row(context=(*long[:2], 95), limit=30, sampling=GREEDY)
    arrivals = [[stays], [gone]]

    def more():
        passes.append(None)
        return arrivals.pop() if arrivals else []

    engine.run(more)
    assert stays.tokens == greedy(plain, stays.context, 30)
    assert engine.forwarded < 50


@pytest.mark.parametrize("step", range(1, 7))
def test_who_waits_in_the_middle_of_a_text_that_nobody_wants_any_more_is_answered(
    step, monkeypatch
):
    monkeypatch.setattr(engines, "_ALONE", 4)
    plain, ours = twins("llama")
    engine = Watched(plain, ours)
    long = tuple(range(3, 40))
    passes = []
    gone = Row(context=long, limit=5, gone=lambda: len(passes) > step)
    stays = Row(context=long[:20], limit=5, sampling=GREEDY)
    arrivals = {1: [gone], step: [stays]} if step > 1 else {1: [gone, stays]}

    def more():
        passes.append(None)
        assert len(passes) < 99, "it hangs"
        return arrivals.get(len(passes), [])

    engine.run(more)
    assert stays.tokens == greedy(plain, stays.context, 5)
