import dataclasses
import json
import math
import random
import sys
import tomllib
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

sys.path.insert(0, str(Path(__file__).parent.parent / "backends"))  # its models

from test_hf_backend import tiny_tokenizer  # noqa: E402  (after the check that torch is there)
from tiny import config  # noqa: E402

from branchwise.backends.hf import HF  # noqa: E402
from branchwise.cli import main  # noqa: E402
from branchwise.core.errors import SpecError  # noqa: E402
from branchwise.core.node import Node  # noqa: E402
from branchwise.core.types import Message, Request, State, Step, Task  # noqa: E402
from branchwise.learning.labels import read  # noqa: E402
from branchwise.learning.lora import (  # noqa: E402
    Adapted,
    Example,
    LoRA,
    Tuner,
    Valued,
    loaded,
    passes,
    save,
    tune,
)
from branchwise.learning.losses import Answer  # noqa: E402
from branchwise.verifiers.calibration import Platt  # noqa: E402
from branchwise.verifiers.process import ProcessReward  # noqa: E402

HOW = LoRA(rank=4, alpha=8.0, batch=4, keep=0.0)


def model(family="qwen2", **more):
    torch.manual_seed(1)
    shape = config(family, num_labels=1, num_hidden_layers=2, **more)
    made = transformers.AutoModelForTokenClassification.from_config(shape).eval()
    torch.nn.init.normal_(made.score.weight, std=0.2)
    torch.nn.init.normal_(made.score.bias)
    return made


def answers(n, seed=0, problems=None):
    """Random answers of one to three steps, several to a problem."""
    chance = random.Random(seed)
    made = []
    for number in range(n):
        ends = sorted(chance.sample(range(3, 20), chance.randint(1, 3)))
        right = chance.random() < 0.5
        targets = tuple(chance.choice((0.0, 0.25, 1.0)) for _ in ends)
        tokens = tuple(chance.randrange(3, 97) for _ in range(ends[-1] + 1))
        problem = f"{seed}/{number % (problems or n)}"
        made.append(Example(Answer(problem, right, targets), tokens, tuple(ends)))
    return made


def stirred(valued):
    """Matrices B as training might leave them."""
    chance = torch.Generator().manual_seed(3)
    for name, parameter in valued.learns.items():
        if name.endswith(".b"):
            torch.nn.init.normal_(parameter, std=0.1, generator=chance)
    return valued


def said(valued, examples):
    with torch.no_grad():
        return [values.tolist() for values in valued(examples)]


@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma2", "phi3", "mistral-windowed"])
def test_it_begins_as_the_model_was_and_padding_counts_for_nothing(family):
    plain, some = model(family), answers(5)
    expected = []
    for example in some:
        with torch.inference_mode():
            logits = plain(torch.tensor([example.tokens])).logits[0, :, 0]
        expected.append(logits[list(example.ends)].tolist())
    for values, wanted in zip(said(Valued(model(family), HOW), some), expected, strict=True):
        assert values == pytest.approx(wanted, abs=1e-5)


def test_gradients_reach_the_small_matrices_and_the_head_alone():
    valued = Valued(model(), HOW)
    sizes = {name: tuple(each.shape) for name, each in valued.learns.items()}
    per_layer = [name for name in sizes if ".layers.0." in name]
    assert len(per_layer) == 2 * len(["q", "k", "v", "o", "gate", "up", "down"])
    assert len(sizes) == 2 * len(per_layer) + 2
    assert sizes["model.model.layers.1.mlp.down_proj.a"] == (4, 80)
    assert sizes["model.model.layers.1.mlp.down_proj.b"] == (48, 4)
    sum(values.sum() for values in valued(answers(3))).backward()
    moved = {name for name, each in valued.named_parameters() if each.grad is not None}
    assert moved == set(sizes)
    # While B is zero, A has no say.
    assert all(
        bool(each.grad.any()) is not name.endswith(".a") for name, each in valued.learns.items()
    )


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "phi3"])
def test_merged_it_says_the_same(family):
    valued, some = stirred(Valued(model(family), HOW)), answers(6)
    before, begun = said(valued, some), said(Valued(model(family), HOW), some)
    valued.merge()
    assert not valued.learns
    assert not any(isinstance(module, Adapted) for module in valued.modules())
    for one, other, first in zip(said(valued, some), before, begun, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
        assert one != pytest.approx(first, abs=1e-2)


def test_what_is_added_is_the_papers_product():
    valued = stirred(Valued(model(), HOW))
    adapted = valued.model.model.layers[0].self_attn.q_proj
    x = torch.randn(48, generator=torch.Generator().manual_seed(0))
    w, b, a = (
        each.detach().double().numpy() for each in (adapted.base.weight, adapted.b, adapted.a)
    )
    expected = w @ x.numpy() + 8.0 / 4 * b @ (a @ x.numpy()) + adapted.base.bias.detach().numpy()
    assert adapted(x).tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_the_loss_of_pairs_is_that_of_bradley_and_terry():
    some = answers(8, seed=2, problems=2)
    kinds = [(example.answer.problem, example.answer.right) for example in some]
    assert len(set(kinds)) == 4  # right and wrong answers to both problems
    valued = Valued(model(), HOW)
    ends = [values[-1] for values in said(valued, some)]
    problems = []
    for problem in ("2/0", "2/1"):
        right = [end for end, kind in zip(ends, kinds, strict=True) if kind == (problem, True)]
        wrong = [end for end, kind in zip(ends, kinds, strict=True) if kind == (problem, False)]
        pairs = [math.log1p(math.exp(w - r)) for r in right for w in wrong]
        problems.append(sum(pairs) / len(pairs))
    how = HOW.model_copy(update={"pointwise": 0.0, "pairwise": 1.0, "tokens": 1})
    assert Tuner(valued, some, some, how).loss(some) == pytest.approx(sum(problems) / 2, abs=1e-5)


def test_the_loss_of_steps_is_their_cross_entropy():
    some, valued = answers(5), Valued(model(), HOW)
    chances = [1 / (1 + math.exp(-v)) for values in said(valued, some) for v in values]
    targets = [target for example in some for target in example.answer.targets]
    each = [
        -t * math.log(p) - (1 - t) * math.log(1 - p) for t, p in zip(targets, chances, strict=True)
    ]
    expected = sum(each) / len(each)
    assert Tuner(valued, some, some, HOW).loss(some) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)])
def test_how_answers_are_cut_into_passes_changes_no_update(weights, recompute):
    some, shares = (
        answers(9, problems=3),
        dict(zip(("pointwise", "pairwise"), weights, strict=True)),
    )
    ends = []
    for tokens in (10_000, 30, 1):
        told = {**shares, "tokens": tokens, "batch": 3, "epochs": 1, "recompute": recompute}
        how = HOW.model_copy(update=told)
        tuner = Tuner(Valued(model(), how), some, some, how, balance=0.4)
        tuner.run()
        (loss,) = tuner.losses
        ends.append([loss, *tuner.history, *tuner.values(some).tolist()])
    assert ends[1] == pytest.approx(ends[0], abs=1e-4)
    assert ends[2] == pytest.approx(ends[0], abs=1e-4)


def test_passes_hold_all_answers_and_not_too_many_tokens():
    some = answers(40, problems=10)
    for whole in (False, True):
        parts = list(passes(some, 60, whole=whole))
        assert sorted(map(id, (e for part in parts for e in part))) == sorted(map(id, some))
        for part in parts:
            problems = [example.answer.problem for example in part]
            padded = len(part) * max(len(example.tokens) for example in part)
            assert padded <= 60 or len(set(problems)) == 1
            together = sum(example.answer.problem in problems for example in some)
            assert not whole or together == len(part)


def toy(n, seed):
    """A step is good if token 5 stands anywhere in it; its last token says nothing of that."""
    chance = random.Random(seed)
    made = []
    for number in range(n):
        tokens, targets = [chance.randrange(10, 97) for _ in range(10)], []
        for begin, end in ((0, 4), (5, 9)):
            good = chance.random() < 0.5
            targets.append(float(good))
            if good:
                tokens[chance.randrange(begin, end)] = 5
        answer = Answer(f"{seed}/{number}", bool(targets[-1]), tuple(targets))
        made.append(Example(answer, tuple(tokens), (4, 9)))
    return made


def test_it_learns_what_a_head_on_the_frozen_model_cannot():
    shares = []
    for frozen in (True, False):
        how = HOW.model_copy(
            update={"rank": 8, "alpha": 16.0, "rate": 0.01, "batch": 16, "epochs": 4, "patience": 4}
        )
        plain = model(initializer_range=0.1)
        torch.nn.init.zeros_(plain.score.weight)
        valued = Valued(plain, how)
        for name, parameter in valued.learns.items():
            if frozen and not name.startswith("model.score"):
                parameter.requires_grad_(requires_grad=False)
        tuner = Tuner(valued, toy(240, 10), toy(40, 11), how)
        tuner.run()
        fresh = toy(150, 12)
        targets = [bool(target) for example in fresh for target in example.answer.targets]
        hits = [(v > 0) is t for v, t in zip(tuner.values(fresh).tolist(), targets, strict=True)]
        shares.append(sum(hits) / len(hits))
    assert shares[0] < 0.8
    assert shares[1] > 0.9


def test_it_ends_when_held_out_problems_get_worse_and_keeps_the_best():
    how = HOW.model_copy(update={"rate": 0.05, "epochs": 30, "patience": 2})
    train, held_out = answers(12, problems=6), answers(8, seed=5)  # of noise alone
    tuner = Tuner(Valued(model(), how), train, held_out, how)
    tuner.run()
    best = tuner.history.index(min(tuner.history))
    assert len(tuner.history) == best + 1 + 2 < 30
    assert tuner.loss(held_out) == pytest.approx(min(tuner.history), abs=1e-5)
    assert [epoch.number for epoch in tuner.epochs if epoch.best][-1] == best + 1


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", [1, 3])
def test_taken_up_from_its_checkpoint_it_goes_on_as_if_nothing_had_happened(tmp_path, after):
    how = HOW.model_copy(update={"epochs": 2, "batch": 2, "rate": 0.01, "patience": 2})
    train, held_out = answers(12, problems=6), answers(4, seed=5)

    def killed(progress):
        if progress.update == after:
            raise Killed

    def tuner(path, watch=lambda _: None, how=how):
        return Tuner(Valued(model(), how), train, held_out, how, checkpoint=path, watch=watch)

    whole = tuner(None)
    whole.run()
    file = tmp_path / "checkpoint.pt"
    first = tuner(file, killed)
    with pytest.raises(Killed):
        first.run()
    assert first.losses == whole.losses[:after]
    seen = []
    second = tuner(file, seen.append)
    second.run()
    assert (second.losses, second.history) == (whole.losses, whole.history)
    assert [progress.update for progress in seen] == list(range(after + 1, 7))
    assert second.values(held_out).tolist() == whole.values(held_out).tolist()
    file.write_bytes(b"torn")
    begun = tuner(file, killed)
    with pytest.raises(Killed):
        begun.run()
    assert begun.losses == whole.losses[:after]
    other = tuner(file, killed, how.model_copy(update={"seed": 1}))
    with pytest.raises(Killed):
        other.run()  # of other settings: it begins anew


TEXTS = (" sat on", " the mat.\n\n", "The dog", " saw 4", " = 2 + 2", "! héllo")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A language model's folder."""
    path, tokenizer = tmp_path_factory.mktemp("base"), tiny_tokenizer()
    torch.manual_seed(0)
    shape = config("qwen2", vocab_size=len(tokenizer), num_hidden_layers=2, initializer_range=0.1)
    transformers.AutoModelForCausalLM.from_config(shape).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def spec(folder):
    return HF(model=str(folder), dtype="float32", device="cpu")


@pytest.fixture
def labels(base, tmp_path):
    """Labels of 12 problems; a step with a dog is good."""
    chance, rows = random.Random(0), []
    for number in range(48):
        steps = [chance.choice(TEXTS) for _ in range(chance.randint(1, 3))]
        hard = [int("dog" in step) for step in steps]
        prompt = f"the cat {number % 12}"
        row = {"problem": prompt, "prompt": prompt, "right": bool(hard[-1]), "steps": steps}
        rows.append({**row, "hard": hard, "soft": None})
    about = {"model": base, "system": "", "template": "Q: {prompt}", "separator": "\n\n"}
    (tmp_path / "labels.json").write_text(json.dumps(about))
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read(tmp_path)


@pytest.mark.anyio
async def test_what_is_saved_says_in_the_engine_and_in_transformers_what_was_trained(
    base, labels, tmp_path
):
    how = HOW.model_copy(update={"epochs": 2, "rate": 0.01})
    out = tmp_path / "out"
    tuned = tune(labels, spec(base), how, out)
    assert not (out / "checkpoint.pt").exists()
    assert (out / "report.md").read_text().startswith("# ")
    steps = ("The dog", " saw 4", " the mat.\n\n")
    request = Request(messages=(Message("user", "Q: the cat 3"),), said=tuple(map(Step, steps)))
    async with spec(out).open() as backend:
        readings = await backend.read(request)
        verifier = ProcessReward(
            backend=backend, format=tomllib.loads((out / "format.toml").read_text())
        )
        root = Node(Task("the cat 3"), State())
        node = root
        for text in steps:
            node = Node(root.task, State(), node, 0, Step(text))
        (verdict,) = await verifier.score([node])
    # The same by transformers alone.
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    tokens, ends = tokenizer.encode("<user>Q: the cat 3\n<assistant>"), []
    for step in steps:
        tokens += tokenizer.encode(step)
        ends.append(len(tokens) - 1)
    plain = transformers.AutoModelForTokenClassification.from_pretrained(out).eval()
    with torch.inference_mode():
        logits = plain(torch.tensor([tokens])).logits[0, :, 0][ends].tolist()
    assert [reading.values[0] for reading in readings] == pytest.approx(logits, abs=1e-4)
    assert verdict.steps == pytest.approx([1 / (1 + math.exp(-logits[-1]))], abs=1e-4)
    assert tuned.format.read.scale == "sigmoid"
    with pytest.raises(SpecError, match="holds a model already"):
        tune(labels, spec(base), how, out)


def test_what_is_saved_says_what_the_tuned_model_said_but_calibrated(base, tmp_path):
    fresh, tokenizer = loaded(spec(base))
    assert not any(parameter.any() for parameter in fresh.score.parameters())
    torch.nn.init.normal_(fresh.score.weight, std=0.2, generator=torch.Generator().manual_seed(0))
    valued, some = stirred(Valued(fresh, HOW)), answers(4)
    before = said(valued, some)
    valued.merge()
    valued.calibrate(Platt(slope=2.0, bias=-0.5))
    save(valued, tokenizer, tmp_path / "model")
    again = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "model").eval()
    for example, values in zip(some, before, strict=True):
        with torch.inference_mode():
            logits = again(torch.tensor([example.tokens])).logits[0, :, 0]
        expected = [2 * value - 0.5 for value in values]
        assert logits[list(example.ends)].tolist() == pytest.approx(expected, abs=1e-4)
    continued, _ = loaded(spec(tmp_path / "model"))
    assert continued.score.weight.any()  # a head that is there is not begun anew


def test_the_command_tunes(base, labels, tmp_path, capsys):
    told = ["--set", "model.dtype=float32", "--set", "epochs=1", "--set", "rank=2"]
    command = [
        "train-verifier",
        str(labels.folder),
        "--out",
        str(tmp_path / "out"),
        "--tune",
        "lora",
    ]
    with pytest.raises(SystemExit) as ended:
        main([*command, *told])
    assert (ended.value.code, (tmp_path / "out" / "format.toml").exists()) == (0, True)
    assert "1 epochs; on the held-out problems" in capsys.readouterr().out
    for wrong, words in (("rang=2", "rang"), ("model.kind=openai", "on this machine")):
        with pytest.raises(SystemExit) as ended:
            main([*command, "--set", wrong])
        assert ended.value.code == 2
        assert words in capsys.readouterr().err


def test_from_pairs_alone_only_problems_with_both_kinds_are_of_use():
    how = HOW.model_copy(update={"pointwise": 0.0, "pairwise": 1.0})
    some = [
        dataclasses.replace(
            e, answer=dataclasses.replace(e.answer, right=e.answer.problem == "0/1")
        )
        for e in answers(6, problems=3)
    ]
    with pytest.raises(SpecError, match="no problem with right and wrong answers to hold out"):
        Tuner(Valued(model(), how), answers(8, problems=2), some, how)


def test_a_model_without_a_value_head_is_refused(tmp_path):
    with pytest.raises(SpecError, match="takes no value head"):
        loaded(spec(saved("gpt2", tmp_path)))


def saved(family, path):
    transformers.AutoModelForCausalLM.from_config(config(family)).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def test_answers_that_are_too_long_are_left_out(base, labels, tmp_path):
    with pytest.raises(SpecError, match="an answer of 3 tokens"):
        tune(labels, spec(base), HOW.model_copy(update={"longest": 3}), tmp_path / "out")
    questions = dataclasses.replace(labels, reads=labels.reads.model_copy(update={"template": "?"}))
    with pytest.raises(SpecError, match=r"`template` with \{prompt\}"):
        tune(questions, spec(base), HOW, tmp_path / "out")
