import json
import random
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402  (after the check that torch is there)
from test_hf_backend import tiny_tokenizer  # noqa: E402
from tiny import config  # noqa: E402

from branchwise.backends.hf import HF  # noqa: E402
from branchwise.core.aio import gather  # noqa: E402
from branchwise.core.errors import BackendError, SpecError  # noqa: E402
from branchwise.core.types import Request, Step  # noqa: E402

pytestmark = pytest.mark.anyio

SIZE, PAD = 48, 0
LINEAR = {"weight": (1, SIZE), "bias": (1,)}
RELU = {
    f"score.{at}.{kind}": (SIZE, SIZE)[: 1 + (kind == "weight")] for at in (0,) for kind in LINEAR
}
MLP = RELU | {"score.2.weight": (2, SIZE), "score.2.bias": (2,)}
# How each format is told: its architecture, the tensors of its head, and whether it keeps the
# language head. Names and shapes are those that vLLM's and TRL's loaders expect.
FORMATS = {
    "qwen-prm": ("Qwen2ForProcessRewardModel", MLP, False),
    "qwen-rm": (
        "Qwen2ForRewardModel",
        MLP | {"score.2.weight": (1, SIZE), "score.2.bias": (1,)},
        True,
    ),
    "skywork": ("Qwen2ForPrmModel", {f"v_head.summary.{k}": s for k, s in LINEAR.items()}, True),
    "skywork-mute": (
        "Qwen2ForRewardModel",
        {f"v_head.summary.{k}": s for k, s in LINEAR.items()},
        True,
    ),
    "trl": ("Qwen2ForCausalLM", {f"v_head.summary.{k}": s for k, s in LINEAR.items()}, True),
    "openrlhf": ("Qwen2ForCausalLM", {"value_head.weight": (1, SIZE)}, False),
    "regression": (
        "Qwen2ForRegressionModel",
        {f"regression_head.{k}": s for k, s in LINEAR.items()},
        False,
    ),
    "biased": (
        "Qwen2ForSequenceClassification",
        {f"score.{k}": s for k, s in LINEAR.items()},
        False,
    ),
    "tied": ("Qwen2ForSequenceClassification", {"score.weight": (1, SIZE)}, False),
}
SPEAK = {"skywork", "trl"}
REMOTE = "import pathlib\npathlib.Path({!r}).touch()\nclass Config: ...\nclass Model: ...\n"


def saved(path, kind, change=lambda tensors: None, dtype=torch.float32):
    """A checkpoint in some public format; its body, and its head as a function."""
    architecture, shapes, language = FORMATS[kind]
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    shape = config(
        "qwen2", vocab_size=len(tokenizer), num_labels=1, tie_word_embeddings=kind == "tied"
    )
    model = transformers.AutoModelForCausalLM.from_config(shape).to(dtype).eval()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    head = {name: torch.randn(size).to(dtype) for name, size in shapes.items()}
    tensors = load_file(path / "model.safetensors")
    tensors = {name: t for name, t in tensors.items() if language or not name.startswith("lm_")}
    tensors |= head
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    told = json.loads((path / "config.json").read_text())
    told["architectures"] = [architecture]
    if "Reward" in architecture or "Prm" in architecture:
        told["auto_map"] = {
            "AutoConfig": "theirs.Config",
            "AutoModel": "theirs.Model",
            "AutoModelForCausalLM": "theirs.Model",
        }
        (path / "theirs.py").write_text(REMOTE.format(str(path / "was run")))
    (path / "config.json").write_text(json.dumps(told))

    def value(states):
        layers = sorted({name.rpartition(".")[0] for name in head})
        for i, layer in enumerate(layers):
            states = states.relu() if i else states
            bias = head.get(f"{layer}.bias")
            states = states @ head[f"{layer}.weight"].T + (0 if bias is None else bias)
        return states

    return model, value


def opened(folder, **how):
    return HF(model=str(folder), dtype="float32", device="cpu", **how).open()


def drawn(seed, count, longest):
    rng = random.Random(seed)
    sizes = [1, longest, *(rng.randrange(1, longest) for _ in range(count - 2))]
    return [tuple(rng.randrange(3, 90) for _ in range(size)) for size in sizes]


def cut(tokens, seed):
    """A question and some steps, cut anywhere."""
    rng = random.Random(seed)
    at = sorted(rng.sample(range(1, len(tokens)), min(len(tokens) - 1, rng.randrange(5))))
    first, *rest = zip([0, *at], [*at, len(tokens)], strict=True)
    said = tuple(Step("", tokens=tokens[begin:end]) for begin, end in rest)
    return Request(tokens=tokens[slice(*first)], said=said)


def ends(request):
    """Where each reading of a request looks: how many tokens stand before it."""
    at, places = len(request.tokens), []
    for step in request.said:
        at += len(step.tokens)
        places.append(at)
    return places or [at]


@pytest.mark.parametrize("kind", FORMATS)
async def test_every_public_format_says_what_its_head_says_of_a_plain_pass(kind, tmp_path):
    model, value = saved(tmp_path, kind)
    tokens = drawn(1, 2, 60)[1]
    request = Request(
        tokens=tokens[:20], said=(Step("", tokens=tokens[20:33]), Step("", tokens=tokens[33:]))
    )
    with torch.inference_mode():
        seen = model(torch.tensor([tokens]), output_hidden_states=True)
        expected = value(seen.hidden_states[-1][0])
    async with opened(tmp_path) as backend:
        readings = await backend.read(request, state=True)
        for reading, end in zip(readings, (33, 60), strict=True):
            assert reading.values == pytest.approx(expected[end - 1].tolist(), abs=1e-4)
            assert reading.logprobs == ()
        if kind in SPEAK:
            (step,) = await backend.complete(Request(tokens=tokens, max_tokens=1))
            law = seen.logits[0, -1].log_softmax(-1)
            assert step.logprob == pytest.approx(law[step.tokens[0]].item(), abs=1e-4)
            (reading,) = await backend.read(Request(tokens=tokens), words=(7,))
            assert reading.words == pytest.approx(law[7:8].tolist(), abs=1e-4)
            assert reading.values == pytest.approx(expected[-1].tolist(), abs=1e-4)
        else:
            with pytest.raises(SpecError, match="no language head"):
                await backend.complete(Request(tokens=tokens, max_tokens=1))
    assert not (tmp_path / "was run").exists()


async def test_a_head_in_a_file_of_its_own_is_found_and_names_the_model(tmp_path):
    """As LLaMA-Factory writes it, beside the language model that it was trained on."""
    model, value = saved(tmp_path, "trl")
    body = load_file(tmp_path / "model.safetensors")
    head = {name: body.pop(name) for name in list(body) if name.startswith("v_head")}
    save_file(body, tmp_path / "model.safetensors", metadata={"format": "pt"})
    names = []
    for scale in (1, 2):
        file = tmp_path / "value_head.safetensors"
        save_file({name: scale * tensor for name, tensor in head.items()}, file)
        async with opened(tmp_path) as backend:
            names.append(backend.name)
            (reading,) = await backend.read(Request(tokens=(5, 6, 7)))
        with torch.inference_mode():
            states = model.model(torch.tensor([[5, 6, 7]])).last_hidden_state[0, -1]
            assert reading.values == pytest.approx((scale * value(states)).tolist(), abs=1e-4)
    assert names[0] != names[1]


PEERS = {
    "sequence": transformers.AutoModelForSequenceClassification,
    "token": transformers.AutoModelForTokenClassification,
}


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize(
    ("family", "kind"),
    [("qwen2", "token"), ("llama", "sequence"), ("gemma2", "sequence"), ("gpt2", "token")],
)
async def test_alone_in_company_short_of_memory_and_padded_by_a_peer_it_is_one_value(
    family, kind, tmp_path
):
    """RewardBench 137, LLaMA-Factory 689: values moved with the batch and with its padding."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    shape = config(family, vocab_size=len(tokenizer), num_labels=2)
    peer = PEERS[kind].from_config(shape, attn_implementation="eager").eval()
    for part in ("score", "classifier"):
        if hasattr(peer, part):
            torch.nn.init.normal_(getattr(peer, part).weight)
    peer.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    texts = drawn(family, 12, 110)
    requests = [cut(tokens, seed) for seed, tokens in enumerate(texts)]

    def plain(tokens):
        logits = peer(torch.tensor([tokens])).logits[0]
        return (logits if kind == "sequence" else logits[-1]).tolist()

    with torch.inference_mode():
        expected = [
            [plain(tokens[:end]) for end in ends(request)]
            for tokens, request in zip(texts, requests, strict=True)
        ]
        for left in (False, True):
            for logits, values in zip(padded(peer, texts, left=left), expected, strict=True):
                assert logits == pytest.approx(values[-1], abs=1e-4)
    token = 2 * 3 * peer.config.hidden_size * 4  # bytes of keys and values, at the most
    tight = {"memory": 150 * token / 2**30, "max_rows": 3}
    for how in ({}, tight):
        async with opened(tmp_path, **how) as backend:
            alone = [await backend.read(request) for request in requests]
            together = await gather(backend.read, requests)
        for answers in (alone, together):
            for readings, values in zip(answers, expected, strict=True):
                for reading, value in zip(readings, values, strict=True):
                    assert reading.values == pytest.approx(value, abs=1e-4)
        cost = sum(reading.usage.prompt for readings in together for reading in readings)
        places = sum(map(len, together))
        assert cost > 2 * places if how else cost == places  # what was forgotten is read again


def padded(peer, texts, *, left):
    """What a peer says after each text's last token, in one batch with padding."""
    longest = max(map(len, texts))
    ids, mask, at = [], [], []
    for text in texts:
        gap = [PAD] * (longest - len(text))
        ids.append([*gap, *text] if left else [*text, *gap])
        mask.append([0] * len(gap) + [1] * len(text) if left else [1] * len(text) + [0] * len(gap))
        at.append(longest - 1 if left else len(text) - 1)
    mask = torch.tensor(mask)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = peer(torch.tensor(ids), attention_mask=mask, position_ids=positions).logits
    if logits.ndim == 2:
        return logits.tolist()
    return logits[torch.arange(len(texts)), at].tolist()


async def test_a_text_that_ends_in_the_padding_token_is_read_to_its_end(tmp_path):
    """Transformers' own pooling takes the last token that is not padding: an earlier one."""
    model, value = saved(tmp_path, "tied")
    async with opened(tmp_path) as backend:
        for tokens in ((5, 6, 7), (5, 6, 7, PAD), (5, 6, 7, PAD, PAD)):
            (reading,) = await backend.read(Request(tokens=tokens))
            with torch.inference_mode():
                states = model.model(torch.tensor([tokens])).last_hidden_state[0, -1]
                assert reading.values == pytest.approx(value(states).tolist(), abs=1e-4)


async def test_values_are_not_rounded_to_the_precision_of_the_model(tmp_path):
    saved(tmp_path, "trl", dtype=torch.bfloat16)
    spec = HF(model=str(tmp_path), dtype="bfloat16", device="cpu")
    async with spec.open() as backend:
        answers = await gather(backend.read, [Request(tokens=(5, 6, n)) for n in range(7, 30)])
    values = torch.tensor([reading.values[0] for (reading,) in answers])
    assert (values.bfloat16().float() != values).float().mean() > 0.9


async def test_a_search_that_is_judged_at_each_step_by_the_model_that_writes_pays_one_token(
    tmp_path,
):
    model, value = saved(tmp_path, "trl")
    question, said = (5, 6, 7, 8), ()
    async with opened(tmp_path) as backend:
        for depth in range(6):
            ask = Request(tokens=question, said=said, max_tokens=7, seeds=(depth,))
            (step,) = await backend.complete(ask)
            assert depth == 0 or step.usage.prompt == 1
            said += (step,)
            read = Request(tokens=question, said=said)
            (reading,) = await backend.read(read, since=depth)
            whole = (*question, *(token for step in said for token in step.tokens))
            assert (reading.usage.prompt, reading.usage.cached) == (1, len(whole) - 1)
            with torch.inference_mode():
                states = model.model(torch.tensor([whole])).last_hidden_state[0, -1]
                assert reading.values == pytest.approx(value(states).tolist(), abs=1e-4)
    assert all(step.finish == "length" for step in said)


def without(name):
    return lambda tensors: tensors.pop(name)


def with_(name, *size):
    return lambda tensors: tensors.update({name: torch.zeros(size)})


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("qwen-prm", without("score.2.weight"), r"lacks score\.2\.weight"),
        ("qwen-prm", without("score.0.bias"), r"lacks score\.0\.bias"),
        ("qwen-prm", with_("score.2.weight", 2, 40), r"does not fit 48 numbers: score\.2"),
        ("qwen-prm", with_("score.2.bias", 3), r"does not fit 48 numbers: score\.2"),
        ("qwen-prm", with_("score.4.weight", 2, 2), r"not understood: .*score\.4\.weight \(2, 2\)"),
        ("trl", without("v_head.summary.bias"), r"lacks v_head\.summary\.bias"),
        ("trl", without("v_head.summary.weight"), r"lacks v_head\.summary\.weight"),
        ("trl", with_("v_head.summary.weight", SIZE), r"does not fit"),
        ("trl", with_("score.weight", 1, SIZE), r"not understood: score\.weight .*v_head"),
        ("trl", with_("v_head.norm.weight", SIZE), r"not understood: .*v_head\.norm\.weight"),
        ("openrlhf", with_("value_head.weight", 1, 1, SIZE), r"does not fit"),
        ("tied", with_("score.weight", 3, SIZE), r"has 3 labels, its config 1"),
        ("tied", without("score.weight"), r"no value head that is known \(its own: none\)"),
        ("qwen-rm", without("model.norm.weight"), r"lacks model\.norm\.weight"),
    ],
)
async def test_a_head_that_is_damaged_or_unknown_is_one_clear_error(
    kind, change, message, tmp_path
):
    saved(tmp_path, kind, change)
    with pytest.raises(SpecError, match=message) as raised:
        async with opened(tmp_path):
            pass
    assert "\n" not in str(raised.value)


async def test_layers_joined_by_something_unknown_are_not_guessed_at(tmp_path):
    saved(tmp_path, "qwen-rm")
    path = Path(tmp_path, "config.json")
    path.write_text(path.read_text().replace("Qwen2ForRewardModel", "Qwen2ForCausalLM"))
    with pytest.raises(SpecError, match=r"not understood: score\.0\.bias \(48,\)"):
        async with opened(tmp_path):
            pass


async def test_a_model_that_attends_in_both_directions_is_refused(tmp_path):
    tokenizer = tiny_tokenizer()
    sizes = {"hidden_size": SIZE, "num_hidden_layers": 1, "num_attention_heads": 4}
    shape = transformers.BertConfig(vocab_size=len(tokenizer), **sizes)
    transformers.BertForSequenceClassification(shape).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(SpecError, match="attends in both directions"):
        async with opened(tmp_path):
            pass


async def test_what_is_not_a_number_fails_its_own_request_only(tmp_path):
    def spoil(tensors):
        tensors["model.embed_tokens.weight"][11] = torch.nan

    model, value = saved(tmp_path, "trl", spoil)
    requests = [Request(tokens=(5, 6, 7, token, 9)) for token in (8, 11, 12)]

    async def outcome(request):
        try:
            return await backend.read(request)
        except BackendError as error:
            return error

    async with opened(tmp_path) as backend:
        for _ in range(2):
            good, bad, other = await gather(outcome, requests)
            assert "values are not numbers" in str(bad)
            for (reading,), request in ((good, requests[0]), (other, requests[2])):
                with torch.inference_mode():
                    states = model.model(torch.tensor([request.tokens])).last_hidden_state[0, -1]
                    assert reading.values == pytest.approx(value(states).tolist(), abs=1e-4)


async def test_a_head_that_gives_no_numbers_leaves_the_language_model_alone(tmp_path):
    saved(tmp_path, "trl", lambda tensors: tensors["v_head.summary.weight"].fill_(torch.nan))
    async with opened(tmp_path) as backend:
        with pytest.raises(BackendError, match="values are not numbers"):
            await backend.read(Request(tokens=(5, 6, 7)))
        (step,) = await backend.complete(Request(tokens=(5, 6, 7), max_tokens=3))
    assert len(step.logprobs) == len(step.tokens) > 0
