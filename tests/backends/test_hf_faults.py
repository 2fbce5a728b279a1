import shutil

import anyio
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")

from test_hf_backend import TEXT, tiny_tokenizer  # noqa: E402  (after the check that torch is there)
from tiny import config  # noqa: E402

from branchwise.backends.hf import HF  # noqa: E402
from branchwise.backends.hf.engine import Engine  # noqa: E402
from branchwise.core.aio import gather  # noqa: E402
from branchwise.core.config import Sampling  # noqa: E402
from branchwise.core.errors import BackendError, SpecError  # noqa: E402
from branchwise.core.types import Message, Request  # noqa: E402

pytestmark = pytest.mark.anyio

GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    shape = config("llama", vocab_size=len(tokenizer), max_position_embeddings=99)
    transformers.AutoModelForCausalLM.from_config(shape).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "model")


def spec(folder, **more):
    return HF(model=str(folder), dtype="float32", device="cpu", **more)


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-500])


def scramble(folder):
    file = folder / "model.safetensors"
    file.write_bytes(b"\xff" * 64 + file.read_bytes()[64:])


def remove(folder):
    (folder / "model.safetensors").unlink()


def reshape(folder):
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"hidden_size": 48', '"hidden_size": 64'))


def lose(folder):
    weights = safetensors.load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    safetensors.save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("damage", [cut, scramble, remove, reshape, lose])
async def test_weights_that_are_damaged_do_not_load(folder, damage):
    damage(folder)
    with pytest.raises(SpecError, match=r"model '.*' does not load: "):
        async with spec(folder).open():
            pass


async def test_a_model_without_a_chat_template_answers_prompts_only(folder):
    (folder / "chat_template.jinja").unlink()
    async with spec(folder).open() as backend:
        with pytest.raises(SpecError, match=r"no chat template .*prompt"):
            await backend.complete(Request(messages=(Message("user", "hello"),)))
        assert len(await backend.complete(Request(prompt="hello", max_tokens=2))) == 1


async def test_one_request_that_fails_leaves_the_others_alone(whole, monkeypatch):
    """Logits that are no numbers, in the rows of one request, at a step in the middle."""
    good = [Request(prompt=p, seeds=(1, 2), max_tokens=12) for p in ("the cat", "2 + 2")]
    bad = Request(prompt="the dog", seeds=(3, 4), max_tokens=12, sampling=GREEDY)
    async with spec(whole).open() as backend:
        expected = await gather(backend.complete, good)
        (twin, _) = await backend.complete(bad)
        draw = Engine._draw

        def broken(engine, turns, seen):
            for turn in turns:
                if turn.row.seed in bad.seeds and len(turn.row.tokens) == 4:
                    seen.logits[turn.first] = torch.nan
            draw(engine, turns, seen)

        monkeypatch.setattr(Engine, "_draw", broken)
        outcomes = {}

        async def one(request):
            try:
                steps = await backend.complete(request)
                outcomes[request.prompt] = [step.tokens for step in steps]
            except BackendError as error:
                outcomes[request.prompt] = error.message

        await gather(one, [*good, bad])
        monkeypatch.undo()
        again = await backend.complete(bad)
    assert outcomes.pop("the dog") == "the model's logits are not numbers"
    assert outcomes == {
        request.prompt: [step.tokens for step in steps]
        for request, steps in zip(good, expected, strict=True)
    }
    assert again[0].tokens == twin.tokens


async def test_the_samples_that_arrived_come_with_the_error(whole):
    """Memory for one short row, not for a long one: what can be had is had."""
    bytes_ = 2 * 3 * 2 * 12 * 4
    tight = spec(whole, memory=40 * bytes_ / 2**30)
    async with tight.open() as backend:
        with pytest.raises(
            BackendError, match="do not fit the memory for keys and values, which holds 40"
        ):
            await backend.complete(Request(prompt=TEXT, max_tokens=2))
        (step,) = await backend.complete(Request(prompt="a", max_tokens=3))
        with pytest.raises(BackendError, match="which holds 40"):
            await backend.complete(Request(prompt="a", seeds=(9,), max_tokens=90, sampling=GREEDY))
        (again,) = await backend.complete(Request(prompt="a", max_tokens=3))
    assert again.tokens == step.tokens


async def test_a_bias_for_a_token_that_is_not_there_is_refused_by_name(whole):
    async with spec(whole).open() as backend:
        biased = Request(prompt="a", sampling=Sampling(logit_bias={9999: 1.0}))
        with pytest.raises(SpecError, match="names the token 9999"):
            await backend.complete(biased)


async def test_a_drafting_model_needs_the_same_vocabulary(whole, tmp_path):
    other = shutil.copytree(whole, tmp_path / "other")
    tokenizer = transformers.AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["unheard-of"])
    tokenizer.save_pretrained(other)
    with pytest.raises(SpecError, match="another vocabulary"):
        async with spec(whole, draft=str(other)).open():
            pass


@pytest.mark.parametrize("draft", [None, "lookup", "itself"])
async def test_drafts_change_no_greedy_answer(whole, draft):
    draft = str(whole) if draft == "itself" else draft
    requests = [Request(prompt=p, max_tokens=25, sampling=GREEDY) for p in ("the cat", TEXT[:30])]
    async with spec(whole).open() as backend:
        expected = await gather(backend.complete, requests)
        name = backend.name
    async with spec(whole, draft=draft).open() as backend:
        answers = await gather(backend.complete, requests)
        assert (backend.name == name) == (draft is None)
    assert [[s.tokens for s in steps] for steps in answers] == [
        [s.tokens for s in steps] for steps in expected
    ]


async def test_a_thousand_live_branches_stay_under_their_limit(whole):
    """They share the prompt; what they add does not fit at once, so that some wait."""
    bytes_ = 2 * 3 * 2 * 12 * 4
    slots = 3000
    tight = spec(whole, memory=slots * bytes_ / 2**30, max_rows=1000)
    request = Request(prompt=TEXT, seeds=tuple(range(1000)), max_tokens=6, sampling=Sampling())
    async with tight.open() as backend:
        with anyio.fail_after(60):
            steps = await backend.complete(request)
    async with spec(whole, max_rows=1000).open() as backend:
        expected = await backend.complete(request)
    same = sum(a.tokens == b.tokens for a, b in zip(steps, expected, strict=True))
    assert same >= 995  # what is read again is rounded in another way


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("phi3", {"rope_type": "longrope", "short_factor": [1.0] * 6, "long_factor": [3.0] * 6}),
        ("llama", {"rope_type": "dynamic", "factor": 2.0}),
    ],
)
async def test_rows_do_not_change_the_positions_of_others(tmp_path, kind, more):
    """Some models turn to other frequencies beyond a length: no row gets that far."""
    tokenizer = tiny_tokenizer()
    rope = more | {"rope_theta": 1e4, "original_max_position_embeddings": 40}
    shape = config(
        kind,
        vocab_size=len(tokenizer),
        rope_parameters=rope,
        original_max_position_embeddings=40,
    )
    transformers.AutoModelForCausalLM.from_config(shape).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    async with spec(tmp_path).open() as backend:
        with pytest.raises(BackendError, match="and one more do not fit the model, which holds 40"):
            await backend.complete(Request(tokens=(5,) * 41))
        (step,) = await backend.complete(Request(tokens=(5,) * 30, max_tokens=99))
    assert len(step.tokens) <= 10
