"""The next token's probability: of a local model, and as servers tell it."""

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

sys.path.insert(0, str(Path(__file__).parent.parent / "backends"))  # its models and servers

from test_hf_backend import tiny_tokenizer  # noqa: E402  (after the check that torch is there)
from tiny import config  # noqa: E402
from tokenizers import normalizers  # noqa: E402

from branchwise.backends.hf import HF  # noqa: E402
from branchwise.core.node import Node  # noqa: E402
from branchwise.core.types import Scoring, State, Step, Task, Verdict  # noqa: E402
from branchwise.verifiers.generative import GenRM, GenRMCoT  # noqa: E402

pytestmark = pytest.mark.anyio
ROOT = Node(Task("2 + 2 = ?", target="secret"), State())
NODES = [Node(ROOT.task, State(), ROOT, i, Step(text)) for i, text in enumerate(["4", "5", "the"])]
# Single letters are tokens of every byte-level vocabulary.
LETTERS = {"yes": ("Y", "y"), "no": ("N", "n"), "least": 0, "template": "{prompt} {answer}"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("lm")
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    shape = config("qwen2", vocab_size=len(tokenizer), max_position_embeddings=256)
    transformers.AutoModelForCausalLM.from_config(shape).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


class Writes:
    """A model that does not read."""

    def __init__(self, backend):
        self.name, self.complete = backend.name, backend.complete


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("normalised", [True, False])
async def test_it_is_the_softmax_of_the_model_itself(folder, chat, normalised):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    fields = {**LETTERS, "chat": chat, "normalised": normalised, "candidates": len(tokenizer)}
    async with HF(model=folder, dtype="float32", device="cpu").open() as backend:
        assert isinstance(backend, Scoring)
        read = await GenRM(backend=backend, **fields).score(NODES)
        written = await GenRM(backend=Writes(backend), **fields).score(NODES)
    for node, one, other in zip(NODES, read, written, strict=True):
        question = f"2 + 2 = ? {node.text}"
        if chat:
            question = f"<user>{question}\n<assistant>"
        with torch.inference_mode():
            logits = model(torch.tensor([tokenizer.encode(question)])).logits[0, -1]
        law = logits.double().softmax(-1)
        yes, no = (
            sum(law[tokenizer.encode(word)[0]].item() for word in LETTERS[side])
            for side in ("yes", "no")
        )
        expected = yes / (yes + no) if normalised else yes
        assert one.score == pytest.approx(expected, abs=1e-4)
        assert other.score == pytest.approx(expected, abs=1e-4)


async def test_a_word_of_several_tokens_is_looked_for_among_candidates(folder):
    fields = {**LETTERS, "yes": ("Y", "YES"), "candidates": 300}
    async with HF(model=folder, dtype="float32", device="cpu").open() as backend:
        [one] = await GenRM(backend=backend, **fields).score(NODES[:1])
        [other] = await GenRM(backend=backend, **{**LETTERS, "yes": ("Y",)}).score(NODES[:1])
    assert (one.usage.completion, other.usage.completion) == (1, 0)
    assert one.score == pytest.approx(other.score, abs=1e-6)


async def test_two_spellings_of_one_token_count_once(tmp_path):
    """A tokenizer that writes small reads "Y" as "y": the engine says so, candidates tell both."""
    scores, written = [], []
    for normalizer in (None, normalizers.Lowercase()):
        tokenizer = tiny_tokenizer()
        if normalizer is not None:
            tokenizer.backend_tokenizer.normalizer = normalizer
        torch.manual_seed(0)
        shape = config("llama", vocab_size=len(tokenizer))
        transformers.AutoModelForCausalLM.from_config(shape).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        async with HF(model=str(tmp_path), dtype="float32", device="cpu").open() as backend:
            fields = {**LETTERS, "candidates": len(tokenizer)}
            [verdict] = await GenRM(backend=backend, **fields).score(NODES[:1])
        scores.append(verdict.score)
        written.append(verdict.usage.completion)
    assert written == [0, 1]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


@pytest.mark.parametrize("chat", [True, False])
async def test_rationales_of_a_local_model(folder, chat):
    verifier = {**LETTERS, "verdict": "2", "samples": 2, "chat": chat}
    verifier |= {"max_tokens": 16, "stop": ("e", "t", "a", "o", " ")}
    async with HF(model=folder, dtype="float32", device="cpu").open() as backend:
        first = await GenRMCoT(backend=backend, **verifier).score(NODES)
        again = await GenRMCoT(backend=backend, **verifier).score(NODES[::-1])
    for one, other in zip(first, again[::-1], strict=True):
        assert isinstance(one, Verdict)
        assert 0 < one.score < 1
        assert (one.feedback, one.score) == (other.feedback, pytest.approx(other.score, abs=1e-6))
