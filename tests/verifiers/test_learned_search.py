"""Value heads at work in searches: each number is the head's formula on a plain forward pass."""

import sys
from pathlib import Path

import pytest

np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

sys.path.insert(0, str(Path(__file__).parent.parent / "backends"))  # its models

from test_hf_backend import tiny_tokenizer  # noqa: E402  (after the check that torch is there)
from tiny import config  # noqa: E402

from branchwise import Beam, BestOfN, Chat, solve  # noqa: E402
from branchwise.backends.hf import HF  # noqa: E402
from branchwise.core.errors import SpecError  # noqa: E402
from branchwise.environments.writing import Writing  # noqa: E402
from branchwise.verifiers.head import About, Head  # noqa: E402
from branchwise.verifiers.learned import Learned  # noqa: E402
from branchwise.verifiers.steps import split  # noqa: E402

pytestmark = pytest.mark.anyio
SIZE = 48
SEPARATOR = "e"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("lm")
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    shape = config("qwen2", vocab_size=len(tokenizer), max_position_embeddings=512)
    transformers.AutoModelForCausalLM.from_config(shape).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def head(seed, model):
    numbers = np.random.default_rng(seed)
    about = About(model=model, sizes=(SIZE, 1), how="min", separator=SEPARATOR)
    weight = numbers.normal(size=(1, SIZE)) / 10
    return Head(about, np.zeros(SIZE), np.ones(SIZE), ((weight, np.array([0.1 * seed])),))


def truth(folder, weight, bias):
    """What a head says after each step of some texts: by transformers alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()

    def after(prompt, texts):
        tokens = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True
        )["input_ids"]
        scores = []
        for text in texts:
            tokens = [*tokens, *tokenizer.encode(text)]
            with torch.inference_mode():
                seen = model(torch.tensor([tokens]), output_hidden_states=True)
            state = seen.hidden_states[-1][0, -1].double()
            logit = (state @ torch.tensor(weight[0])).item() + bias[0]
            scores.append(1 / (1 + np.exp(-logit)))
        return scores

    return after


@pytest.mark.parametrize(
    "controller", [Beam(width=2, fanout=2), BestOfN(n=4)], ids=["beam", "best of n"]
)
async def test_in_a_search_each_number_is_that_of_a_plain_pass(controller, folder, tmp_path):
    async with HF(model=folder, dtype="float32", device="cpu").open() as backend:
        heads = [head(seed, backend.name) for seed in (1, 2)]
        for number, one in enumerate(heads):
            one.save(tmp_path / str(number))
        first, second = (Learned(backend=backend, path=tmp_path / n) for n in "01")
        stop, limit = ((SEPARATOR,), 12) if isinstance(controller, Beam) else ((), 30)
        answer = await solve(
            "the cat?",
            policy=Chat(backend=backend, stop=stop, max_tokens=limit),
            controller=controller,
            environment=Writing(delimiter=SEPARATOR, continue_at_length=True),
            horizon=3 if stop else 1,
            verifier={"first": first, "second": second},
            rank=lambda node: node.verdicts["first"].score,
        )
        nodes = [node for node in answer.root.walk() if node.step is not None]
    assert len(nodes) >= 4
    seen, says = 0, [truth(folder, *one.layers[0]) for one in heads]
    for node in nodes:
        own = split(node.step.text, SEPARATOR)
        texts = [piece for step in node.steps for piece in split(step.text, SEPARATOR)]
        for name, after in zip(("first", "second"), says, strict=True):
            verdict = node.verdicts[name]
            expected = after("the cat?", texts)
            judged = expected[len(texts) - len(own) :]
            assert verdict.steps == pytest.approx(judged, abs=1e-4)
            assert verdict.score == pytest.approx(min(judged or expected[-1:]), abs=1e-4)
            seen += len(judged)
    assert seen > len(nodes) * (1 if stop else 2)


async def test_a_head_of_another_model_is_refused_before_anything_is_spent(folder, tmp_path):
    head(1, "hf/other@0/float32").save(tmp_path)
    asked = []

    class Counted:
        def __init__(self, backend):
            self.name, self.backend = backend.name, backend

        async def complete(self, request):
            asked.append(request)
            return await self.backend.complete(request)

        async def read(self, request, **more):
            asked.append(request)
            return await self.backend.read(request, **more)

    async with HF(model=folder, dtype="float32", device="cpu").open() as backend:
        counted = Counted(backend)
        with pytest.raises(SpecError, match=r"trained on 'hf/other@0/float32', and the model is"):
            async with Learned(backend=counted, path=tmp_path).open() as verifier:
                await solve(
                    "the cat?",
                    policy=Chat(backend=counted, max_tokens=4),
                    controller=BestOfN(n=2),
                    environment=Writing(),
                    verifier=verifier,
                )
    assert asked == []
