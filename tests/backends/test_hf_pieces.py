"""Steps as tokens: pieces of a text are those of the whole, whatever the tokenizer adds to it."""

import json

import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from hypothesis import given, settings  # noqa: E402  (after the check that torch is there)
from hypothesis import strategies as some  # noqa: E402
from test_hf_backend import tiny_tokenizer  # noqa: E402
from tokenizers import (  # noqa: E402
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from branchwise.backends.hf.text import Text  # noqa: E402
from branchwise.core.errors import SpecError  # noqa: E402
from branchwise.core.types import Message, Request, Step  # noqa: E402

CORPUS = (
    "Step 1: Janet sells 16 eggs a day. She eats three for breakfast, so 16 - 3 = 13 are left. ки",
    "Step 2: She sells the rest for $2 each, which makes 13 * 2 = $26. The answer is: 26 ки",
    "Yes No yes no [INST] How many eggs are left? [/INST] user assistant + -",
)
SPECIAL = ["<unk>", "<s>", "</s>"]
PLAIN = "{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}"
ADDED = (
    "<s>{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
BREAK = ADDED.replace("<|assistant|>{%", "<|assistant|>\n{%")
# Where a tokenizer puts its space: before each part between added tokens (Llama 2 in both of the
# ways that its file has been written), or before the first one only.
WAYS = ("normalizer", "always", "first")


def sentencepiece(way, template=PLAIN):
    """A tokenizer as Llama 2 and Mistral have it: spaces as letters, unknown characters as bytes."""
    splits = pre_tokenizers.Metaspace(prepend_scheme="always" if way == "normalizer" else way)
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = splits
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=180, show_progress=False))
    learnt = json.loads(trained.to_str())["model"]
    names = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *learnt["vocab"]]
    tokenizer = Tokenizer(
        models.BPE(
            {name: i for i, name in enumerate(dict.fromkeys(names))},
            [tuple(pair) for pair in learnt["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    if way == "normalizer":
        space = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(space)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=way, split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens([*SPECIAL, "<|user|>", "<|assistant|>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=template,
    )


TOKENIZERS = {way: sentencepiece(way) for way in WAYS}


def text_of(tokenizer):
    return Text(tokenizer, frozenset([tokenizer.eos_token_id]))


def pieces(tokenizer, request):
    question, steps = text_of(tokenizer).pieces(request)
    return [*question, *(token for step in steps for token in step)]


def names(tokenizer, tokens):
    return tokenizer.convert_ids_to_tokens(list(tokens))


@pytest.mark.parametrize("way", WAYS)
def test_math_shepherd_s_steps_are_those_of_its_whole_text(way):
    tokenizer = TOKENIZERS[way]
    steps = (
        " Step 1: 16 - 3 = 13 eggs are left. ки",
        "\nStep 2: 13 * 2 = $26. ки",
        "\nStep 3: The answer is: 26 ки",
    )
    request = Request(prompt="Janet sells 16 eggs?", said=tuple(map(Step, steps)))
    whole = tokenizer.encode("Janet sells 16 eggs?" + "".join(steps))
    assert names(tokenizer, whole)[:2] == ["<s>", "▁Janet"]
    assert pieces(tokenizer, request) == whole
    assert list(text_of(tokenizer).context(request)) == whole
    # The number is read after each step's last token.
    _, said = text_of(tokenizer).pieces(request)
    assert [names(tokenizer, piece)[-1] for piece in said] == ["▁ки"] * 3
    assert "".join(names(tokenizer, said[1])).startswith("<0x0A>Step▁2:")


def test_transformers_own_class_for_llama_is_no_exception(tmp_path):
    sentencepiece("first").save_pretrained(tmp_path)
    tokenizer = transformers.LlamaTokenizer.from_pretrained(tmp_path)
    said = (" are", "\nStep 1:", " 16", " ки")
    request = Request(prompt="eggs", said=tuple(map(Step, said)))
    assert pieces(tokenizer, request) == tokenizer.encode("eggs" + "".join(said))


@pytest.mark.parametrize("template", [PLAIN, ADDED, BREAK], ids=["text", "added", "break"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "said", [("26",), (" 26", " eggs"), ("\n", "\n\nThe", " answer"), ("Step", " 1:", " 13", "\n")]
)
def test_an_answer_after_a_chat_is_that_of_the_rendered_whole(way, template, said):
    tokenizer = sentencepiece(way, template)
    chat = [{"role": "user", "content": "How many eggs?"}]
    rendered = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    whole = tokenizer.encode(rendered + "".join(said), add_special_tokens=False)
    messages = (Message("user", "How many eggs?"),)
    request = Request(messages=messages, said=tuple(map(Step, said)))
    assert list(text_of(tokenizer).context(request)) == whole
    assert pieces(tokenizer, request) == whole


@pytest.mark.parametrize("way", WAYS)
def test_text_goes_on_with_tokens_without_a_space(way):
    tokenizer = TOKENIZERS[way]
    (eggs,) = tokenizer.convert_tokens_to_ids(["▁eggs"])
    said = (Step(" eggs", tokens=(eggs,)), Step("."), Step(" 26"))
    request = Request(prompt="How many", said=said)
    assert pieces(tokenizer, request) == tokenizer.encode("How many eggs. 26")
    end = (tokenizer.eos_token_id,)
    after = Request(tokens=(1,), said=(Step("", tokens=end, finish="stop"), Step("eggs")))
    expected = tokenizer.encode("<s></s>eggs", add_special_tokens=False)
    assert pieces(tokenizer, after) == expected
    assert names(tokenizer, expected)[2].startswith("▁") == (way != "first")


@pytest.mark.parametrize("way", WAYS)
def test_an_answer_before_which_nothing_stands_begins_a_text(way):
    tokenizer = TOKENIZERS[way]
    expected = tokenizer.encode("eggs are", add_special_tokens=False)
    assert pieces(tokenizer, Request(tokens=(), said=(Step("eggs"), Step(" are")))) == expected


@settings(max_examples=60, deadline=None)
@given(
    way=some.sampled_from(WAYS),
    said=some.lists(some.text("ab 1.\n漢ки🦊", min_size=1, max_size=6), min_size=1, max_size=5),
)
def test_no_piece_says_more_than_its_text(way, said):
    tokenizer = TOKENIZERS[way]
    request = Request(prompt="eggs", said=tuple(map(Step, said)))
    question, steps = text_of(tokenizer).pieces(request)
    begin = tokenizer.decode(question, skip_special_tokens=True)
    for text, tokens in zip(said, steps, strict=True):
        assert tokenizer.decode([*question, *tokens], skip_special_tokens=True) == begin + text


@pytest.mark.parametrize("way", WAYS)
def test_a_word_with_a_space_and_one_without_are_two_tokens(way):
    tokenizer = TOKENIZERS[way]
    text = text_of(tokenizer)
    for word in ("+", "-", "s"):
        assert names(tokenizer, [text.token(word)]) == [word]
    for word in (" Yes", " No", " yes", " no", " +", " -", " ки"):
        assert names(tokenizer, [text.token(word)]) == [word.replace(" ", "▁")]
    with pytest.raises(SpecError, match=r"'zzz' is 3 tokens"):
        text.token("zzz")


def test_byte_level_tokenizers_stay_as_they_are():
    tokenizer = tiny_tokenizer()
    text = text_of(tokenizer)
    said = (" sat", "on", "\n", "\nthe mat", "a")
    _, steps = text.pieces(Request(prompt="the cat", said=tuple(map(Step, said))))
    assert [list(step) for step in steps] == [tokenizer.encode(piece) for piece in said]
    assert text.token(" the") != text.token("t")
