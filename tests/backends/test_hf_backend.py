import os
import re
import threading
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio import from_thread

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402  (as below)

from branchwise.backends.hf import HF, engine  # noqa: E402  (after the check that torch is there)
from branchwise.backends.hf.engine import Engine  # noqa: E402
from branchwise.backends.hf.text import Stops, Written  # noqa: E402
from branchwise.core.aio import gather  # noqa: E402
from branchwise.core.config import Sampling  # noqa: E402
from branchwise.core.errors import BackendError, SpecError  # noqa: E402
from branchwise.core.types import Backend, Message, Request, Step, Tool  # noqa: E402

pytestmark = pytest.mark.anyio

GREEDY = Sampling(temperature=0)
SHORT = {"sampling": GREEDY, "max_tokens": 12}
TEXT = "the cat sat on the mat, the dog saw the cat. 2 + 2 = 4! héllo wörld 漢字 🦊🦊"
PROMPTS = ("the cat", "2 + 2 = ", "the dog saw the mat, the cat sat", "h", TEXT)
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tiny_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT.encode("ascii", "ignore").decode()], trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", chat_template=TEMPLATE
    )


@pytest.fixture(scope="module")
def folder(request, tmp_path_factory):
    """A model of random weights, sharp enough that rounding never decides."""
    architecture = getattr(request, "param", "qwen2")
    path = tmp_path_factory.mktemp(architecture)
    tokenizer = tiny_tokenizer()
    kind = {"qwen2": transformers.Qwen2Config, "llama": transformers.LlamaConfig}[architecture]
    heads = {"qwen2": (4, 2), "llama": (6, 2)}[architecture]
    config = kind(
        vocab_size=len(tokenizer),
        hidden_size=16 * heads[0],
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        max_position_embeddings=256,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def peer(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


@pytest.fixture
def spec(folder):
    return HF(model=folder, dtype="float32", device="cpu")


def encode(folder, text):
    return tuple(transformers.AutoTokenizer.from_pretrained(folder).encode(text))


@pytest.mark.parametrize("folder", ["qwen2", "llama"], indirect=True)
async def test_greedy_samples_are_those_of_transformers(spec, folder, peer):
    requests = [Request(prompt=p, sampling=GREEDY, max_tokens=30) for p in PROMPTS]
    async with spec.open() as backend:
        assert isinstance(backend, Backend)
        answers = await gather(backend.complete, requests)
    for prompt, (step,) in zip(PROMPTS, answers, strict=True):
        context = torch.tensor([encode(folder, prompt)])
        with torch.inference_mode():
            expected = peer.generate(
                context,
                attention_mask=torch.ones_like(context),
                do_sample=False,
                max_new_tokens=30,
            )
        assert list(step.tokens) == expected[0, context.shape[1] :].tolist()
        assert step.finish == ("end" if step.tokens[-1] == peer.config.eos_token_id else "length")


@pytest.mark.parametrize(
    ("dtype", "error"), [("float32", (1e-4, 1e-5)), ("bfloat16", (2, 0.1))], ids=("fp32", "bf16")
)
async def test_log_probabilities_are_those_of_a_plain_forward_pass(
    spec, folder, peer, dtype, error
):
    drawn = Sampling(temperature=0.7, top_p=0.9)
    request = Request(prompt="the cat", seeds=tuple(range(5)), sampling=drawn, max_tokens=60)
    async with spec.model_copy(update={"dtype": dtype}).open() as backend:
        steps = await backend.complete(request)
    context = encode(folder, "the cat")
    errors = []
    for step in steps:
        with torch.inference_mode():
            logits = peer(torch.tensor([context + step.tokens])).logits[0, len(context) - 1 : -1]
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(step.tokens)[:, None])[:, 0]
        errors.append((torch.tensor(step.logprobs) - expected).abs())
        assert step.logprob == pytest.approx(sum(step.logprobs))
    assert torch.cat(errors).max() < error[0]
    assert torch.cat(errors).mean() < error[1]


async def test_a_seed_draws_the_same_alone_and_in_company(spec, monkeypatch):
    monkeypatch.setattr(engine, "_ALONE", 40)  # several passes to read the prompts
    monkeypatch.setattr(engine, "_BESIDE", 7)
    requests = [
        Request(prompt=p, seeds=(i, 99), sampling=Sampling(temperature=t), max_tokens=5 + 9 * i)
        for i, (p, t) in enumerate(zip(PROMPTS, (1, 0.5, 0, 1.2, 0.9), strict=True))
    ]
    seen = []
    for max_rows in (64, 3):
        async with spec.model_copy(update={"max_rows": max_rows}).open() as backend:
            seen.append([await backend.complete(request) for request in requests])
            seen.append(await gather(backend.complete, requests))
    tokens = [[[step.tokens for step in steps] for steps in answers] for answers in seen]
    assert tokens[0] == tokens[1] == tokens[2] == tokens[3]
    assert len({step.tokens for steps in seen[0] for step in steps}) >= 8


async def test_shared_prompts_are_read_once(spec, folder):
    request = Request(prompt=TEXT, seeds=(1, 2, 3), max_tokens=3)
    async with spec.open() as backend:
        first, second = await gather(backend.complete, [request, request])
    length = len(encode(folder, TEXT))
    usage = [(s.usage.calls, s.usage.prompt, s.usage.cached) for s in (*first, *second)]
    assert sorted(usage) == [(0, 0, 0)] * 4 + [(1, 0, length), (1, length, 0)]
    assert all(s.usage.completion == len(s.tokens) for s in first)
    assert all(s.usage.seconds > 0 for s in first)


async def test_a_stop_string_ends_a_sample_at_the_end_of_its_token(spec, folder):
    request = Request(prompt="the dog", sampling=GREEDY, max_tokens=40)
    async with spec.open() as backend:
        (whole,) = await backend.complete(request)
        stop = re.findall("[!-~]{2}", whole.text)[1]
        (step,) = await backend.complete(
            Request(prompt="the dog", sampling=GREEDY, max_tokens=40, stop=("never", stop))
        )
    assert step.finish == "stop"
    assert step.tokens == whole.tokens[: len(step.tokens)]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert stop in step.text
    assert stop not in tokenizer.decode(step.tokens[:-1])
    assert step.text == tokenizer.decode(step.tokens)


async def test_a_continued_answer_is_the_uninterrupted_one(spec, folder):
    request = Request(prompt="the cat", sampling=GREEDY, max_tokens=24)
    async with spec.open() as backend:
        (whole,) = await backend.complete(request)
    said, read = (), []
    async with spec.open() as backend:
        for length in (1, 5, 2, 16):
            (step,) = await backend.complete(
                Request(prompt="the cat", said=said, sampling=GREEDY, max_tokens=length)
            )
            said = (*said, step)
            read.append((step.usage.prompt, step.usage.cached))
    async with spec.open() as backend:
        again = Request(prompt="the cat", said=said[:-1], sampling=GREEDY, max_tokens=16)
        (last,) = await backend.complete(again)
    start = len(encode(folder, "the cat"))
    # What was drawn last has not been read yet.
    assert read == [(start, 0), (1, start), (1, start + 5), (1, start + 7)]
    assert (last.usage.prompt, last.usage.cached) == (start + 8, 0)
    assert last.tokens == said[-1].tokens
    assert sum((step.tokens for step in said), ()) == whole.tokens
    assert "".join(step.text for step in said) == whole.text
    assert sum((step.logprobs for step in said), ()) == pytest.approx(whole.logprobs, abs=1e-4)


async def test_what_was_said_without_tokens_is_read_as_text(spec, folder):
    said = (Step("at on"), Step(" the mat"))
    async with spec.open() as backend:
        (a,) = await backend.complete(Request(prompt="the cat s", said=said, **SHORT))
        tokens = encode(folder, "the cat s") + encode(folder, "at on the mat")
        (b,) = await backend.complete(Request(tokens=tokens, **SHORT))
    assert a.tokens == b.tokens


async def test_messages_go_through_the_chat_template(spec, folder):
    chat = (Message("system", "be brief"), Message("user", "2 + 2"))
    async with spec.open() as backend:
        (a,) = await backend.complete(Request(messages=chat, **SHORT))
        rendered = "<system>be brief\n<user>2 + 2\n<assistant>"
        (b,) = await backend.complete(Request(prompt=rendered, **SHORT))
    assert a.tokens == b.tokens


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        (Request(prompt="a", schema={}), SpecError, "cannot follow a schema"),
        (Request(prompt=""), BackendError, "the prompt is empty"),
        (
            Request(tokens=(5,) * 300),
            BackendError,
            "300 tokens and one more do not fit the model, which holds 256",
        ),
        (Request(prompt="a", max_tokens=0), BackendError, "max_tokens is 0"),
        (Request(prompt="a", seeds=(-1,)), SpecError, "seeds lie between"),
        (Request(prompt="a", candidates=-1), SpecError, "candidates are not negative"),
        (Request(tokens=(5, 9999)), BackendError, "vocabulary has no token 9999"),
        (Request(tokens=(-1,)), BackendError, "vocabulary has no token -1"),
        (
            Request(messages=(Message("user", "a"),), tools=(Tool("f", "does f", {}),)),
            SpecError,
            "template knows no tools",
        ),
    ],
)
async def test_what_cannot_be_served_is_the_error_of_its_caller_only(spec, request_, error, words):
    answers = []

    async def good():
        answers.extend(await backend.complete(Request(prompt="a", max_tokens=2)))

    async with spec.open() as backend, anyio.create_task_group() as group:
        group.start_soon(good)
        with pytest.raises(error, match=words):
            await backend.complete(request_)
    assert len(answers) == 1


async def test_an_answer_ends_where_the_model_has_no_more_room(spec, folder):
    prompt = "zq" * 120
    async with spec.open() as backend:
        (step,) = await backend.complete(Request(prompt=prompt, seeds=(4,), max_tokens=9999))
    assert len(step.tokens) <= 256 - len(encode(folder, prompt))


async def once_blocked(call):
    await anyio.wait_all_tasks_blocked()
    call()


@asynccontextmanager
async def stepped(monkeypatch, pause_at):
    """Count the engine's steps and hold it at one of them until told to go on."""
    steps, paused, go = [], anyio.Event(), threading.Event()
    draw = Engine._draw

    def counted(engine, turns, seen):
        steps.append(len(turns))
        if len(steps) == pause_at:
            from_thread.run_sync(paused.set)
            assert go.wait(10)
        draw(engine, turns, seen)

    monkeypatch.setattr(Engine, "_draw", counted)
    try:
        yield steps, paused, go
    finally:
        go.set()


async def test_rows_of_a_cancelled_caller_are_dropped_at_the_next_step(spec, monkeypatch):
    kept = []

    async def keep():
        kept.extend(await backend.complete(Request(prompt="the cat", max_tokens=12, seeds=(1,))))

    async with (
        spec.open() as backend,
        stepped(monkeypatch, 3) as (steps, paused, go),
        anyio.create_task_group() as group,
    ):
        async with anyio.create_task_group() as short:
            long = Request(prompt="the dog", max_tokens=200, seeds=(1, 2))
            short.start_soon(backend.complete, long)
            group.start_soon(keep)
            await paused.wait()
            short.cancel_scope.cancel()
        go.set()
    assert steps[:3] == [3, 3, 3]
    assert set(steps[3:]) == {1}
    assert len(kept[0].tokens) == len(steps) <= 12


async def test_a_short_request_joins_a_long_one_and_finishes_first(spec, monkeypatch):
    long = Request(prompt="the dog", seeds=(1, 2), max_tokens=30)
    short = Request(prompt="2 + 2 = ", seeds=(3,), max_tokens=4)
    async with spec.open() as backend:
        alone = [(r, [s.tokens for s in await backend.complete(r)]) for r in (short, long)]
    together = []

    async def complete(request):
        together.append((request, [s.tokens for s in await backend.complete(request)]))

    async with (
        spec.open() as backend,
        stepped(monkeypatch, 3) as (steps, paused, go),
        anyio.create_task_group() as group,
    ):
        group.start_soon(complete, long)
        await paused.wait()
        group.start_soon(complete, short)
        await anyio.wait_all_tasks_blocked()
        go.set()
    assert together == alone
    assert steps[:7] == [2, 2, 2, 3, 3, 3, 3]
    assert len(steps) == max(len(tokens) for tokens in alone[1][1])


async def test_rows_beyond_the_limit_wait_for_places_in_their_order(spec, monkeypatch):
    order = []

    async def complete(seed):
        request = Request(prompt="the cat" * seed, seeds=(seed,), max_tokens=2)
        await backend.complete(request)
        order.append(seed)

    async with (
        spec.model_copy(update={"max_rows": 2}).open() as backend,
        stepped(monkeypatch, 1) as (steps, paused, go),
        anyio.create_task_group() as group,
    ):
        for seed in (1, 2, 3, 4, 5):
            group.start_soon(complete, seed)
            await anyio.wait_all_tasks_blocked()
        await paused.wait()
        go.set()
    # Two places: the callers of one step may wake in either order.
    assert [sorted(order[:2]), sorted(order[2:4]), order[4:]] == [[1, 2], [3, 4], [5]]
    assert max(steps) == 2


async def test_a_step_waits_for_one_pass_of_reading_only(spec, monkeypatch):
    monkeypatch.setattr(engine, "_ALONE", 2)
    monkeypatch.setattr(engine, "_BESIDE", 3)
    requests = [Request(prompt=p, max_tokens=9, sampling=GREEDY) for p in ("zq", "qz", "bz")]
    async with spec.open() as backend, stepped(monkeypatch, 0) as (steps, _, _):
        await gather(backend.complete, requests)
    # Two tokens are one prompt; then three of the next two, then the last one.
    assert steps[:3] == [1, 2, 3]


async def test_leaving_the_backend_ends_what_is_under_way_within_a_step(spec, monkeypatch):
    errors = []

    async def complete():
        try:
            await backend.complete(Request(prompt="the dog", max_tokens=200))
        except BackendError as error:
            errors.append(error.message)

    async with (
        anyio.create_task_group() as group,
        stepped(monkeypatch, 6) as (steps, paused, go),  # the first four draws are the warm-up's
        spec.open() as backend,
    ):
        group.start_soon(complete)
        await paused.wait()
        group.start_soon(once_blocked, go.set)
    assert errors == ["the backend is closed"]
    assert len(steps) == 6


async def test_a_cancelled_scope_around_the_backend_ends_it_within_a_step(spec, monkeypatch):
    with anyio.CancelScope() as scope:
        async with (
            spec.open() as backend,
            stepped(monkeypatch, 2) as (steps, paused, _),
            anyio.create_task_group() as group,
        ):
            group.start_soon(backend.complete, Request(prompt="the dog", max_tokens=200))
            await paused.wait()
            scope.cancel()
    assert len(steps) == 2


async def test_a_model_that_fails_fails_who_is_there_and_serves_who_comes(spec, monkeypatch):
    request = Request(prompt="the cat", **SHORT)
    async with spec.open() as backend:
        (expected,) = await backend.complete(request)
        with monkeypatch.context() as broken:
            broken.setattr(engine, "sample", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                await backend.complete(request)
        (again,) = await backend.complete(request)
    assert again.tokens == expected.tokens


async def test_the_name_tells_models_and_dtypes_apart(spec, folder):
    async with spec.open() as backend:
        name = backend.name
    async with spec.model_copy(update={"dtype": "bfloat16"}).open() as backend:
        other = backend.name
    stem = os.path.basename(folder)  # noqa: PTH119  (no path is touched)
    assert name.startswith(f"hf/{stem}@")
    assert name.endswith("/float32")
    assert other == name.removesuffix("float32") + "bfloat16"


@pytest.mark.parametrize(
    ("change", "words"),
    [({"device": "abacus"}, "no device 'abacus'"), ({"model": "{empty}"}, "does not load")],
)
async def test_a_spec_that_cannot_be_opened_says_why(spec, tmp_path, change, words):
    change = {key: value.format(empty=tmp_path) for key, value in change.items()}
    with pytest.raises(SpecError, match=words):
        async with spec.model_copy(update=change).open():
            pass


@pytest.mark.parametrize(
    ("architecture", "why"),
    [
        ({"model_type": "gpt_oss", "head_dim": 8, "intermediate_size": 8}, "hidden arguments"),
        ({"model_type": "bloom"}, "attention of its own"),
    ],
)
async def test_a_model_that_needs_another_attention_is_refused(spec, tmp_path, architecture, why):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 300, "n_head": 4}
    config = transformers.AutoConfig.for_model(**sizes, **architecture)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(SpecError, match=f"cannot run a .*{why}"):
        async with spec.model_copy(update={"model": str(tmp_path)}).open():
            pass


def test_texts_of_steps_join_wherever_they_are_cut(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = encode(folder, TEXT)
    assert any("�" in tokenizer.decode([token]) for token in tokens)
    for cut in range(len(tokens)):
        first = Written(tokenizer, (), (), frozenset())
        for token in tokens[:cut]:
            first.add([token])
        second = Written(tokenizer, tokens[:cut], (), frozenset())
        second.add(tokens[cut:])
        assert "�" not in first.text
        assert first.text + second.text == TEXT


def test_characters_in_pieces_of_bytes_are_written_once():
    """The tokenizers of Llama 2 and Mistral: a run of bytes is read as a whole, or not at all."""
    characters = sorted(set(TEXT))
    vocabulary = {f"<0x{i:02X}>": i for i in range(256)} | {"▁": 256, "a": 257, "<unk>": 258}
    model = models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    text = "a漢字🦊🦊aé" + "".join(characters)
    tokens = [
        257 if c == "a" else byte for c in text for byte in ([257] if c == "a" else c.encode())
    ]
    assert fast.decode(tokens) == text
    for cut in range(len(tokens)):
        first, second = (Written(fast, tokens[:n], (), frozenset()) for n in (0, cut))
        for token in tokens[:cut]:
            first.add([token])
        second.add(tokens[cut:])
        assert "�" not in first.text
        assert first.text + second.text == text


def test_a_stop_string_is_seen_across_tokens_and_characters(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    written = Written(tokenizer, (), ("字 🦊",), frozenset())
    stopped = [written.add([token]) for token in encode(folder, TEXT)]
    assert written.text == TEXT
    assert tokenizer.decode(encode(folder, TEXT)[: stopped.index(True) + 1]).endswith("字 🦊")


def test_no_token_that_completes_a_stop_string_is_passed_over(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = encode(folder, TEXT)
    completed = 0
    for begin in range(len(TEXT)):
        for length in (1, 2, 5):
            stop = (TEXT[begin : begin + length],)
            stops, written = Stops(tokenizer, stop), Written(tokenizer, (), stop, frozenset())
            for token in tokens:
                if written.add([token]):
                    completed += 1
                    assert stops.completes(token)
    assert completed > 300
    assert not Stops(tokenizer, ("\n",)).completes(tokens[0])


@pytest.mark.real
async def test_a_real_model_answers():
    async with HF(model="smollm2-135m-instruct").open() as backend:
        request = Request(
            messages=(Message("user", "What is the capital of France?"),),
            seeds=tuple(range(8)),
            sampling=Sampling(temperature=0.7),
            max_tokens=24,
        )
        steps = await backend.complete(request)
    assert sum("Paris" in step.text for step in steps) >= 4
