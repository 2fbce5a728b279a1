"""From labels to a verifier at work: a model's states, a head on them, a search."""

import json
from functools import cache

import anyio
import pytest

np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: E402  (as below)

from branchwise import Beam, Chat, Rebase, solve  # noqa: E402  (after the check for torch)
from branchwise.backends.hf import HF  # noqa: E402
from branchwise.cli import main  # noqa: E402
from branchwise.core.aio import checkpoint  # noqa: E402
from branchwise.core.errors import BackendError, SpecError  # noqa: E402
from branchwise.core.types import Reading  # noqa: E402
from branchwise.environments.writing import Writing  # noqa: E402
from branchwise.learning.labels import Labelled  # noqa: E402
from branchwise.learning.states import IN_FLIGHT, Cache, embed  # noqa: E402
from branchwise.verifiers.aggregate import aggregated  # noqa: E402
from branchwise.verifiers.head import Reads, load  # noqa: E402
from branchwise.verifiers.learned import Learned  # noqa: E402
from branchwise.verifiers.steps import split  # noqa: E402

READS = Reads(system="Be brief.", template="{prompt}?")
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
STEPS = ("one and\n\n", "two makes\n\n", "three: 3.")


class Reader:
    """A model whose state is the length of what was said, and who remembers what it read."""

    name = "reader"

    def __init__(self, dies=None, waits=None):
        self.asked, self.dies, self.waits, self.told = [], dies, waits, 0

    async def read(self, request, *, since=0, state=False, words=()):
        self.asked.append(request)
        if self.dies is not None and len(self.asked) == 100:
            self.dies()
        if self.waits is not None:
            if len(self.asked) == IN_FLIGHT:
                self.waits.set()
            await self.waits.wait()
        await checkpoint()
        self.told += 1
        lengths = [
            len("".join(s.text for s in request.said[: i + 1])) for i in range(len(request.said))
        ]
        return [Reading((1,), state=(float(n), 0.5) if state else ()) for n in lengths[since:]]


def rows(n, **more):
    return [
        Labelled(problem=str(i), prompt=f"p{i}", right=True, steps=("a" * (i + 1), "bc"), **more)
        for i in range(n)
    ]


@pytest.mark.anyio
async def test_states_are_read_once_and_come_in_order(tmp_path):
    first, told = Reader(), []
    answers = rows(40)
    again = [answers[3], *answers]
    states = await embed(again, READS, first, Cache(tmp_path), lambda *at: told.append(at))
    assert [own[:, 0].tolist() for own in states[1:]] == [[i + 1, i + 3] for i in range(40)]
    assert (states[0] == states[4]).all()
    assert len(first.asked) == 40
    assert told[-1] == (41, 41)
    assert [m.content for m in first.asked[0].messages] == ["Be brief.", "p3?"]
    assert [step.tokens for step in first.asked[0].said] == [(), ()]
    second = Reader()
    assert (await embed(again, READS, second, Cache(tmp_path)))[1].tolist() == states[1].tolist()
    assert second.asked == []
    # What decides what the model makes of a text decides what is read anew.
    for reads in (Reads(), READS.model_copy(update={"separator": "\n"})):
        await embed(answers[:2], reads, second, Cache(tmp_path))
    second.name = "another"
    await embed(answers[:1], READS, second, Cache(tmp_path))
    await embed(
        [answers[0].model_copy(update={"steps": ("ab", "c")})], READS, second, Cache(tmp_path)
    )
    assert len(second.asked) == 6


@pytest.mark.anyio
async def test_many_answers_are_read_at_once(tmp_path):
    reader = Reader(waits=anyio.Event())
    with anyio.fail_after(5):
        await embed(rows(IN_FLIGHT + 9), READS, reader, Cache(tmp_path))
    assert len(reader.asked) == IN_FLIGHT + 9


def fails():
    raise BackendError("the server is gone")


@pytest.mark.anyio
@pytest.mark.parametrize("end", ["error", "cancelled"])
async def test_what_was_read_before_the_end_is_kept(tmp_path, end):
    with anyio.CancelScope() as scope:
        broken = Reader(dies=fails if end == "error" else scope.cancel)
        try:
            await embed(rows(150), READS, broken, Cache(tmp_path))
        except SpecError as error:
            assert "an answer to problem '99': the server is gone" in str(error)  # noqa: PT017  (or it is cancelled)
    assert 30 < broken.told < 100
    rest = Reader()
    states = await embed(rows(150), READS, rest, Cache(tmp_path))
    assert [own[:, 0].tolist() for own in states] == [[i + 1, i + 3] for i in range(150)]
    assert len(rest.asked) == 150 - broken.told


def test_a_damaged_file_of_states_is_named(tmp_path):
    anyio.run(embed, rows(3), READS, Reader(), Cache(tmp_path))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(SpecError, match=rf"{file.name}: damaged: .*remove it"):
        Cache(tmp_path)


def test_an_answer_that_does_not_fit_is_named(tmp_path):
    class Small(Reader):
        async def read(self, request, **_):
            raise BackendError("300 tokens do not fit the model, which holds 99")

    with pytest.raises(SpecError, match="an answer to problem '0': 300 tokens do not fit"):
        anyio.run(embed, rows(1), READS, Small(), Cache(tmp_path))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A language model of random weights, and its tokenizer of bytes."""
    path = tmp_path_factory.mktemp("tiny")
    letters = [*pre_tokenizers.ByteLevel.alphabet()]
    vocabulary = {letter: i for i, letter in enumerate(["<|end|>", *sorted(letters)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", chat_template=TEMPLATE
    ).save_pretrained(path)
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=len(vocabulary),
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
    )
    transformers.Qwen2ForCausalLM(config).save_pretrained(path)
    return path


@cache
def peer(folder):
    """The model as transformers has it."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return tokenizer, transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def plain_states(folder, prompt, steps):
    """The states of the last layer after each step, by transformers' own pass."""
    tokenizer, model = peer(folder)
    question = tokenizer.apply_chat_template(
        [{"role": "user", "content": f"{prompt}?"}], add_generation_prompt=True, tokenize=False
    )
    tokens, ends = tokenizer.encode(question), []
    for step in steps:
        tokens += tokenizer.encode(step)
        ends.append(len(tokens) - 1)
    with torch.inference_mode():
        seen = model(torch.tensor([tokens]), output_hidden_states=True)
    return seen.hidden_states[-1][0, ends].double().numpy()


def labelled(folder, where, n=120):
    """Labels that are a linear function of the model's state."""
    rng = np.random.default_rng(0)
    direction = rng.normal(size=24)
    texts = []
    for i in range(n):
        chosen = rng.choice(["a fox", "two 2", "so = 7", "thus", "no", "9 * 9"], size=4)
        texts.append((f"p{i // 3}", [f"{word} {i}\n\n" for word in chosen]))
    states = [plain_states(folder, prompt, steps) for prompt, steps in texts]
    cut = float(np.median(np.concatenate(states) @ direction))
    lines = []
    for (prompt, steps), own in zip(texts, states, strict=True):
        hard = [int(value > cut) for value in own @ direction]
        line = {"problem": prompt, "prompt": prompt, "answer": "1", "right": bool(hard[-1])}
        lines.append(
            json.dumps({**line, "steps": steps, "hard": hard, "soft": None, "rollouts": 1})
        )
    where.mkdir()
    model = {"kind": "hf", "model": str(folder), "dtype": "float32", "device": "cpu"}
    told = {"model": model, "system": "", "template": "{prompt}?", "separator": "\n\n"}
    (where / "labels.json").write_text(json.dumps(told))
    (where / "labels.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """The folder of a head, trained on the command line."""
    where = tmp_path_factory.mktemp("trained")
    labelled(folder, where / "labels")
    arguments = ["train-verifier", str(where / "labels"), "--out", str(where / "head")]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--set", "l2=0.001"])
    assert ended.value.code == 0
    return where / "head"


def test_what_is_linear_in_the_state_is_learnt(trained):
    report = load(trained).about.report
    assert report["auc"] > 0.95
    assert report["answers"]["last"]["pairs"]["value"] > 0.9


@pytest.mark.anyio
@pytest.mark.parametrize(
    "controller", [Rebase(n=4), Beam(width=2, fanout=2)], ids=["rebase", "beam"]
)
async def test_a_search_gets_the_numbers_of_a_plain_pass(folder, trained, controller):
    head = load(trained)
    async with HF(model=str(folder), dtype="float32", device="cpu").open() as model:
        answer = await solve(
            "p3",
            policy=Chat(backend=model, template="{prompt}?", max_tokens=5),
            controller=controller,
            environment=Writing(continue_at_length=True),
            verifier={"head": Learned(backend=model, path=trained, how="min")},
            horizon=3,
        )
    judged = [node for node in answer.root.walk() if node.parent and node.step.text]
    assert max(node.depth for node in judged) > 1
    for node in judged[:6]:
        steps = [piece for step in node.steps for piece in split(step.text, "\n\n")]
        states = plain_states(folder, "p3", steps)
        (weight, bias), about = head.layers[0], head.about
        logits = ((states - head.mean) / head.scale) @ weight[0] + bias[0]
        chances = 1 / (1 + np.exp(-(about.calibration.slope * logits + about.calibration.bias)))
        own = len(split(node.step.text, "\n\n"))
        verdict = node.verdicts["head"]
        assert verdict.steps == pytest.approx(chances[-own:], abs=1e-4)
        assert verdict.score == pytest.approx(aggregated(verdict.steps, "min"))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--set", "hiden=3"], "hiden: there is no such field (did you mean 'hidden'?)"),
        (["--set", "l2=-1"], "l2: Input should be greater than or equal to 0"),
        (["--set", "model.kind=openai"], "model.dtype: there is no such field"),
        (["--set", "label=soft"], "label = soft: problem 'p0': the labels are hard ones only"),
        (["--set", "pointwise=0"], "one of `pointwise` and `pairwise` has to be above 0"),
    ],
)
def test_wrong_input_is_one_line(trained, capsys, more, words):
    labels = trained.parent / "labels"
    with pytest.raises(SystemExit) as ended:
        main(["train-verifier", str(labels), "--out", str(trained.parent / "other"), *more])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (trained.parent / "other").exists()
