import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from test_hf_backend import PROMPTS, tiny_tokenizer  # noqa: E402  (after the check that torch is there)
from tiny import config  # noqa: E402

from branchwise.backends.hf import HF  # noqa: E402
from branchwise.core.aio import gather  # noqa: E402
from branchwise.core.config import Sampling  # noqa: E402
from branchwise.core.errors import BackendError, SpecError  # noqa: E402
from branchwise.core.types import Message, Request, Scoring, Step  # noqa: E402

pytestmark = pytest.mark.anyio

KINDS = {
    "lm": transformers.AutoModelForCausalLM,
    "sequence": transformers.AutoModelForSequenceClassification,
    "token": transformers.AutoModelForTokenClassification,
}
SAID = tuple(map(Step, (" sat on", " the mat", ", the dog saw", " the cat.")))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A language model and two reward models, of random weights."""
    tokenizer = tiny_tokenizer()
    made = {}
    for kind, auto in KINDS.items():
        path = tmp_path_factory.mktemp(kind)
        torch.manual_seed(0)
        shape = config("qwen2", vocab_size=len(tokenizer), num_labels=2, max_position_embeddings=99)
        model = auto.from_config(shape)
        if kind != "lm":
            torch.nn.init.normal_(model.score.weight)
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
        made[kind] = str(path)
    return made


@pytest.fixture
def peers(folders):
    return {kind: auto.from_pretrained(folders[kind]).eval() for kind, auto in KINDS.items()}


def opened(folder):
    return HF(model=folder, dtype="float32", device="cpu").open()


def ids(folder, *texts):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return [tuple(tokenizer.encode(text)) for text in texts]


@pytest.mark.parametrize("since", [0, 2, 3])
async def test_what_is_read_is_that_of_a_plain_pass(folders, peers, since):
    context, *pieces = ids(folders["lm"], "the cat", *(step.text for step in SAID))
    yes, no = ids(folders["lm"], "t", " the")
    asks = [{}, {"state": True, "words": ("t", " the", 7)}]
    async with opened(folders["lm"]) as backend:
        assert isinstance(backend, Scoring)
        request = Request(prompt="the cat", said=SAID)
        judged, looked, *again = [
            await backend.read(request, since=since, **ask) for ask in (*asks, *asks)
        ]
    whole = [*context, *(token for piece in pieces for token in piece)]
    with torch.inference_mode():
        seen = peers["lm"](torch.tensor([whole]), output_hidden_states=True)
    laws = seen.logits[0].log_softmax(-1)
    end = len(context) + sum(map(len, pieces[:since]))
    for i, piece in enumerate(pieces[since:]):
        begin, end = end, end + len(piece)
        expected = [laws[i - 1, whole[i]].item() for i in range(begin, end)]
        for readings in (judged, again[0]):
            assert readings[i].tokens == piece
            assert readings[i].logprobs == pytest.approx(expected, abs=1e-4)
            assert readings[i].logprob == pytest.approx(sum(expected), abs=1e-3)
            assert readings[i].values == readings[i].state == readings[i].words == ()
        state = seen.hidden_states[-1][0, end - 1].tolist()
        words = laws[end - 1, [*yes, *no, 7]].tolist()
        for readings in (looked, again[1]):
            assert readings[i].tokens == piece
            assert readings[i].logprobs == readings[i].values == ()
            assert readings[i].state == pytest.approx(state, abs=1e-4)
            assert readings[i].words == pytest.approx(words, abs=1e-4)
    before = len(context) + sum(map(len, pieces[:since]))
    usage = judged[0].usage
    assert (usage.calls, usage.prompt) == (1, before + len(pieces[since]))
    # The second time the context is there; its last token is read again for what follows it.
    assert again[0][0].usage.cached == before - 1


async def test_each_step_costs_its_own_tokens_the_first_time_and_one_token_afterwards(folders):
    context, *pieces = ids(folders["lm"], "the cat", *(step.text for step in SAID))
    request = Request(prompt="the cat", said=SAID)
    async with opened(folders["lm"]) as backend:
        first, again = [await backend.read(request, words=(5,)) for _ in range(2)]
    sizes = [len(context) + len(pieces[0]), *map(len, pieces[1:])]
    assert [(r.usage.prompt, r.usage.cached) for r in first] == [(size, 0) for size in sizes]
    assert [(r.usage.prompt, r.usage.cached) for r in again] == [(1, size - 1) for size in sizes]
    assert [r.usage.calls for r in first] == [1, 0, 0, 0]


async def test_what_the_same_engine_wrote_is_read_for_one_token_a_step(folders):
    ask = Request(prompt="the cat", sampling=Sampling(), max_tokens=40, seeds=(1, 2, 3))
    async with opened(folders["lm"]) as backend:
        for step in await backend.complete(ask):
            size = len(step.tokens) - (step.finish == "end")
            cuts = [step.tokens[at : min(at + 5, size)] for at in range(0, size, 5)]
            said = tuple(Step("", tokens=tokens) for tokens in cuts)
            readings = await backend.read(Request(prompt="the cat", said=said), state=True)
            assert sum(reading.usage.prompt for reading in readings) == len(said)
            assert sum(reading.usage.cached for reading in readings) == (
                len(ids(folders["lm"], "the cat")[0]) + size - len(said)
            )


async def test_since_changes_nothing_but_what_is_told(folders):
    """Whatever a step's text joins with before it: each is tokenised by itself."""
    request = Request(prompt="the cat", said=tuple(map(Step, ("s", "at", " on", " t", "he mat"))))
    async with opened(folders["lm"]) as backend:
        whole = await backend.read(request, words=(5, 6), state=True)
        for since in range(5):
            part = await backend.read(request, since=since, words=(5, 6), state=True)
            assert [reading.tokens for reading in part] == [r.tokens for r in whole[since:]]
            for one, other in zip(part, whole[since:], strict=True):
                assert one.words == pytest.approx(other.words, abs=1e-4)


@pytest.mark.parametrize("since", [0, 4, 9])
async def test_where_nothing_is_left_to_judge_the_question_is_looked_at(folders, peers, since):
    said = SAID if since else ()
    texts = ["the cat", *(step.text for step in said)]
    tokens = torch.tensor([[t for piece in ids(folders["lm"], *texts) for t in piece]])
    request = Request(prompt="the cat", said=said)
    async with opened(folders["lm"]) as backend:
        (reading,) = await backend.read(request, since=since, words=(5,), state=True)
        assert await backend.read(request, since=since) == []
    async with opened(folders["sequence"]) as backend:
        (judged,) = await backend.read(request, since=since)
    with torch.inference_mode():
        seen = peers["lm"](tokens, output_hidden_states=True)
        values = peers["sequence"](tokens).logits[0]
    assert reading.tokens == judged.tokens == ()
    assert reading.words == pytest.approx(
        seen.logits[0, -1].log_softmax(-1)[5:6].tolist(), abs=1e-4
    )
    assert reading.state == pytest.approx(seen.hidden_states[-1][0, -1].tolist(), abs=1e-4)
    assert judged.values == pytest.approx(values.tolist(), abs=1e-4)


async def test_an_empty_step_is_looked_at_where_it_stands(folders):
    """An answer whose last step is nothing but its end has a value there all the same."""
    said = (*SAID, Step("", tokens=(), finish="end"))
    async with opened(folders["token"]) as backend:
        readings = await backend.read(Request(prompt="the cat", said=said))
    assert readings[-1].tokens == ()
    assert readings[-1].values == pytest.approx(readings[-2].values, abs=1e-6)


async def test_a_chat_that_the_assistant_ended_is_read_as_finished(folders, peers):
    chat = (Message("user", "the cat"), Message("assistant", "sat on the mat"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders["sequence"])
    plain = [{"role": message.role, "content": message.content} for message in chat]
    for messages, opens in ((chat, False), (chat[:1], True)):
        tokens = tokenizer.apply_chat_template(
            plain[: len(messages)], add_generation_prompt=opens, return_tensors="pt"
        )["input_ids"]
        async with opened(folders["sequence"]) as backend:
            (reading,) = await backend.read(Request(messages=messages))
        with torch.inference_mode():
            expected = peers["sequence"](tokens).logits[0].tolist()
        assert reading.values == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("kind", "word", "message"),
    [
        ("lm", "the dog saw", r"the word 'the dog saw' is \d tokens of this model \('t.* not one"),
        ("lm", "", r"the word '' is 0 tokens"),
        ("lm", 5000, r"no token 5000"),
        ("lm", -1, r"no token -1"),
        ("token", "t", r"no language head"),
    ],
)
async def test_a_word_that_is_no_single_token_is_named(folders, kind, word, message):
    async with opened(folders[kind]) as backend:
        with pytest.raises(SpecError, match=message):
            await backend.read(Request(prompt="the cat"), words=("t", word))


async def test_two_names_of_one_token_are_refused_and_one_name_twice_is_not(folders):
    """Whoever adds words up would count that token twice."""
    (token,) = ids(folders["lm"], "t")[0]
    request = Request(prompt="the cat")
    async with opened(folders["lm"]) as backend:
        with pytest.raises(SpecError, match=rf"the words 't' and {token} are one token"):
            await backend.read(request, words=("t", token))
        (reading,) = await backend.read(request, words=(token, token))
        with pytest.raises(SpecError, match="since is -1"):
            await backend.read(request, since=-1)
    assert reading.words[0] == reading.words[1]


@pytest.mark.parametrize("kind", ["sequence", "token"])
async def test_values_are_those_of_the_models_own_head(folders, peers, kind):
    context, *pieces = ids(folders[kind], "the cat", *(step.text for step in SAID))
    async with opened(folders[kind]) as backend:
        requests = [Request(prompt="the cat", said=SAID[:n]) for n in (1, 2, 4, 4)]
        answers = await gather(backend.read, requests)
        with pytest.raises(SpecError, match="no language head"):
            await backend.complete(requests[0])
    end = len(context)
    for i, piece in enumerate(pieces):
        end += len(piece)
        tokens = torch.tensor([(context + sum(map(tuple, pieces), ()))[:end]])
        with torch.inference_mode():
            logits = peers[kind](tokens).logits[0]
        expected = (logits if kind == "sequence" else logits[-1]).tolist()
        for readings in answers:
            if i < len(readings):
                assert readings[i].values == pytest.approx(expected, abs=1e-4)
                assert readings[i].logprobs == ()


async def test_a_model_that_judges_cannot_draft(folders):
    spec = HF(model=folders["lm"], dtype="float32", device="cpu", draft=folders["token"])
    with pytest.raises(SpecError, match=r"has no language head .*cannot draft"):
        async with spec.open():
            pass


async def test_what_is_judged_step_by_step_is_read_once(folders):
    context, *pieces = ids(folders["token"], "the cat", *(step.text for step in SAID))
    read = 0
    async with opened(folders["token"]) as backend:
        for n in range(len(SAID)):
            request = Request(prompt="the cat", said=SAID[: n + 1])
            readings = await backend.read(request, since=n)
            read += sum(reading.usage.prompt for reading in readings)
    assert read == len(context) + sum(map(len, pieces))


async def test_judging_and_drawing_share_passes_and_change_nothing(folders):
    requests = [
        Request(prompt=p, seeds=(1, 2), sampling=Sampling(), max_tokens=9, said=SAID[:1])
        for p in PROMPTS[:3]
    ]
    async with opened(folders["lm"]) as backend:
        drawn = [await backend.complete(request) for request in requests]
        judged = [await backend.read(request) for request in requests]
    async with opened(folders["lm"]) as backend:
        both = await gather(
            lambda job: job[0](job[1]),
            [(call, r) for r in requests for call in (backend.complete, backend.read)],
        )
    assert [[s.tokens for s in steps] for steps in both[::2]] == [
        [s.tokens for s in steps] for steps in drawn
    ]
    for one, other in zip(both[1::2], judged, strict=True):
        assert one[0].logprobs == pytest.approx(other[0].logprobs, abs=1e-4)


async def test_what_was_drawn_is_judged_as_it_was_drawn(folders):
    request = Request(prompt="the cat", seeds=(3,), sampling=Sampling(top_p=0.8), max_tokens=12)
    async with opened(folders["lm"]) as backend:
        (step,) = await backend.complete(request)
        (reading,) = await backend.read(Request(prompt="the cat", said=(step,)))
    ended = step.finish == "end"
    assert reading.tokens == step.tokens[: len(step.tokens) - ended]
    assert reading.logprobs == pytest.approx(step.logprobs[: len(reading.tokens)], abs=1e-4)


@pytest.mark.parametrize(
    ("said", "words"),
    [((Step(""),), "is empty"), ((Step("a" * 200),), "do not fit the model, which holds 99")],
)
async def test_what_cannot_be_judged_is_said(folders, said, words):
    async with opened(folders["lm"]) as backend:
        assert await backend.read(Request(prompt="the cat")) == []
        with pytest.raises(BackendError, match=words):
            await backend.read(Request(prompt="the cat", said=said))
        with pytest.raises(BackendError, match="nothing to read"):
            await backend.read(Request(tokens=()), words=(5,))
        assert len(await backend.complete(Request(prompt="a", max_tokens=1))) == 1


async def test_candidates_are_the_most_probable_tokens_before_and_after_adapters(folders, peers):
    how = Sampling(temperature=0.5, top_k=2)
    request = Request(prompt="the cat", sampling=how, max_tokens=4, candidates=5)
    async with opened(folders["lm"]) as backend:
        (step,) = await backend.complete(request)
    path = list(ids(folders["lm"], "the cat")[0])
    for token, logprob, proposal, candidates in zip(
        step.tokens, step.logprobs, step.proposals, step.candidates, strict=True
    ):
        with torch.inference_mode():
            logits = peers["lm"](torch.tensor([path])).logits[0, -1].double()
        laws = logits.log_softmax(-1), (logits / 0.5).topk(2).values.log_softmax(-1)
        assert [c.token for c in candidates] == logits.topk(5).indices.tolist()
        assert [c.logprob for c in candidates] == pytest.approx(
            laws[0].topk(5).values.tolist(), abs=1e-4
        )
        assert [c.proposal for c in candidates[:2]] == pytest.approx(laws[1].tolist(), abs=1e-4)
        assert [c.proposal for c in candidates[2:]] == [None] * 3
        (chosen,) = [c for c in candidates if c.token == token]
        assert (chosen.logprob, chosen.proposal) == pytest.approx((logprob, proposal), abs=1e-6)
        path.append(token)
