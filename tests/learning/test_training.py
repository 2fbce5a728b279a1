"""Losses, training and what is said of a head, against other ways to the same numbers."""

import json
import math
import random

import pytest

np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")

from pydantic import ValidationError  # noqa: E402  (after the check that torch is there)

from branchwise.core.errors import SpecError  # noqa: E402  (after the check that torch is there)
from branchwise.learning.grid import searched  # noqa: E402
from branchwise.learning.job import learn, summary  # noqa: E402
from branchwise.learning.labels import Labelled, read, together  # noqa: E402
from branchwise.learning.losses import Answer, Objective, batched, pairwise, pointwise  # noqa: E402
from branchwise.learning.report import examined, numbers, page  # noqa: E402
from branchwise.learning.train import Fit, Training, joined, split  # noqa: E402
from branchwise.verifiers.head import Reads, load  # noqa: E402

READS = Reads(template="{prompt}!")


def row(problem, right, targets, n=1, **more):
    soft = tuple(map(float, targets))
    hard = tuple(int(target > 0) for target in targets)
    steps = tuple(f"step {i}" for i in range(len(targets)))
    whole = {"hard": hard, "soft": soft, "rollouts": n} | more
    return Labelled(problem=problem, prompt=problem, right=right, steps=steps, **whole)


def drawn(problems, *, width=4, answers=4, steps=3, seed=0, value=lambda x: 2 * x[0] - x[1]):
    """Data of which the chance that a step is good is known: σ of a function of its state."""
    rng = np.random.default_rng(seed)
    rows, states = [], []
    for problem in range(problems):
        for _ in range(answers):
            own = rng.normal(size=(steps, width)).astype("float32")
            good = [int(rng.random() < 1 / (1 + math.exp(-value(x)))) for x in own]
            rows.append(row(f"p{problem}", bool(good[-1]), good))
            states.append(own)
    return rows, states


def data(problems=30, label="hard", **more):
    return joined(*drawn(problems, **more), label)


EXACT = Training(l2=0.03)


def test_the_pointwise_loss_is_the_weighted_mean_of_cross_entropies():
    logits, targets = torch.tensor([0.0, math.log(3)]), torch.tensor([1.0, 0.25])
    each = [math.log(2), -0.25 * math.log(3 / 4) - 0.75 * math.log(1 / 4)]
    for weights in ([1.0, 1.0], [3.0, 1.0], [0.0, 2.0]):
        expected = sum(w * e for w, e in zip(weights, each, strict=True)) / sum(weights)
        found = pointwise(logits, targets, torch.tensor(weights))
        assert found.item() == pytest.approx(expected, abs=1e-6)


def test_the_pairwise_loss_is_that_of_bradley_and_terry():
    logits = torch.tensor([1.0, -1.0, 0.5])
    pairs = torch.tensor([[0, 1], [2, 1]])
    expected = [math.log(1 + math.exp(-2.0)), math.log(1 + math.exp(-1.5))]
    found = pairwise(logits, pairs, torch.tensor([1.0, 3.0]))
    assert found.item() == pytest.approx((expected[0] + 3 * expected[1]) / 4, abs=1e-6)
    assert pairwise(logits, pairs[:0], torch.zeros(0)).item() == 0


ANSWERS = [
    Answer("a", True, (1.0, 1.0)),
    Answer("b", False, (0.0,)),
    Answer("a", False, (1.0, 0.5, 0.0)),
    Answer("a", True, (1.0,)),
]


def test_pairs_are_of_the_same_problem_and_problems_count_alike():
    batch = batched([*ANSWERS, Answer("b", True, (1.0,))])
    assert sorted(map(tuple, batch.pairs.tolist())) == [(0, 2), (3, 2), (4, 1)]
    assert sorted(batch.shares.tolist()) == [0.5, 0.5, 1.0]
    assert batch.last.tolist() == [1, 2, 5, 6, 7]
    assert batch.answers.tolist() == [0, 0, 1, 2, 2, 2, 3, 4]


def test_weights_choose_steps_and_balance_them():
    assert batched(ANSWERS, "last").weights.tolist() == [0, 1, 1, 0, 0, 1, 1]
    balanced = batched(ANSWERS, balance=4.5 / 7)
    good = (balanced.weights * balanced.targets).sum().item()
    half = [
        w * t for w, t in zip(balanced.weights.tolist(), balanced.targets.tolist(), strict=True)
    ]
    assert sum(half) == pytest.approx(good)
    # The half-good step counts for both kinds in part.
    good = sum(t / (2 * 4.5 / 7) for t in balanced.targets.tolist())
    bad = sum((1 - t) / (2 * 2.5 / 7) for t in balanced.targets.tolist())
    assert good == pytest.approx(bad)
    assert balanced.weights.sum().item() == pytest.approx(good + bad)


def test_what_stands_for_an_answer_in_a_pair_is_its_last_step_or_the_mean():
    logits = torch.tensor([3.0, 1.0, 9.0, 5.0, 0.0, -2.0, 0.5])
    batch = batched([*ANSWERS])
    for how, scores in (("last", (1.0, -2.0, 0.5)), ("mean", (2.0, 1.0, 0.5))):
        first, wrong, second = scores
        expected = (math.log1p(math.exp(wrong - first)) + math.log1p(math.exp(wrong - second))) / 2
        loss = Objective(pointwise=0, pairwise=2, pairs_on=how)(logits, batch)
        assert loss.item() == pytest.approx(2 * expected, abs=1e-6)


def reference(rows, states, how, label):
    """The optimum of the objective by SciPy, in double precision, from the formula alone."""
    optimize = pytest.importorskip("scipy.optimize")
    x = np.concatenate(states).astype("float64")
    x = (x - x.mean(0)) / x.std(0)
    t = np.concatenate([getattr(one, label) for one in rows]).astype("float64")
    weights = np.ones(len(t))
    ends = np.cumsum([len(one.steps) for one in rows]) - 1
    counts = np.isin(np.arange(len(t)), ends) if how.on == "last" else weights > 0
    if how.balance:
        good = t[counts].mean()
        weights = t / good + (1 - t) / (1 - good)
    weights = weights * counts
    pairs = [
        [
            (i, j)
            for i, a in enumerate(rows)
            for j, b in enumerate(rows)
            if a.prompt == b.prompt == problem and a.right and not b.right
        ]
        for problem in sorted({one.prompt for one in rows})
    ]

    def loss(parameters):
        z = x @ parameters[:-1] + parameters[-1]
        total = how.l2 / 2 * parameters[:-1] @ parameters[:-1]
        cross = np.logaddexp(0, z) - t * z
        total += how.pointwise * (weights * cross).sum() / weights.sum()
        if how.pairwise:
            lost = [
                np.mean([np.logaddexp(0, z[ends[j]] - z[ends[i]]) for i, j in own])
                for own in pairs
                if own
            ]
            total += how.pairwise * np.mean(lost)
        return total

    found = optimize.minimize(loss, np.zeros(x.shape[1] + 1), method="BFGS", tol=1e-9)
    return found.x, found.fun


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"balance": True},
        {"on": "last"},
        {"on": "last", "balance": True},
        {"pointwise": 0.5, "pairwise": 1.0},
        {"label": "soft"},
    ],
    ids=str,
)
def test_a_linear_head_is_the_optimum_that_scipy_finds(more):
    how = EXACT.model_copy(update=more)
    rows, states = drawn(12, answers=3)
    if how.label == "soft":
        rng = random.Random(1)
        rows = [
            one.model_copy(update={"soft": tuple(rng.random() for _ in one.steps)}) for one in rows
        ]
    expected, _ = reference(rows, states, how, how.label)
    own = joined(rows, states, how.label)
    (layer,) = Fit(own, own, how).run().linear
    assert layer.weight[0].tolist() == pytest.approx(expected[:-1], abs=1e-4)
    assert layer.bias.item() == pytest.approx(expected[-1], abs=1e-4)


def test_scores_of_bradley_and_terry_are_found_again():
    scores = (-1.0, 0.0, 0.5, 2.0)
    rows, states = [], []
    eye = np.eye(4, dtype="float32")
    for i in range(4):
        for j in range(i):
            wins = round(400 / (1 + math.exp(scores[j] - scores[i])))
            for game in range(400):
                better, worse = (i, j) if game < wins else (j, i)
                name = f"{i} {j} {game}"
                rows += [row(name, True, (1,)), row(name, False, (0,))]
                states += [eye[[better]], eye[[worse]]]
    own = joined(rows, states, "hard")
    how = EXACT.model_copy(update={"pointwise": 0.0, "pairwise": 1.0, "l2": 0.0, "epochs": 30})
    model = Fit(own, own, how).run()
    with torch.no_grad():
        found = model(torch.eye(4))
    assert (found - found[1]).tolist() == pytest.approx(scores, abs=0.03)


def test_what_is_the_same_everywhere_but_for_rounding_says_nothing():
    rows, states = drawn(12)
    noise = np.random.default_rng(0)
    apart = [
        np.concatenate([x, 1000 + 1e-4 * noise.integers(0, 2, (3, 1))], axis=1).astype("float32")
        for x in states
    ]
    own = joined(rows, apart, "hard")
    model = Fit(own, own, EXACT).run()
    there = own.states.clone()
    there[:, -1] += 0.01  # a hundred times as far as any that was seen
    with torch.no_grad():
        assert model(there).tolist() == pytest.approx(model(own.states).tolist(), abs=0.01)


def test_a_soft_label_is_given_as_a_probability():
    rows = [row(f"p{i}", i % 2 == 0, (0.25, 0.75)) for i in range(6)]
    own = joined(rows, [np.array([[0.0], [1.0]], dtype="float32")] * 6, "soft")
    model = Fit(own, own, EXACT.model_copy(update={"l2": 0.0})).run()
    with torch.no_grad():
        assert torch.sigmoid(model(torch.tensor([[0.0], [1.0]]))).tolist() == pytest.approx(
            [0.25, 0.75], abs=1e-3
        )


def test_a_hidden_layer_learns_what_no_linear_head_can():
    rows, states = [], []
    rng = np.random.default_rng(0)
    for problem in range(60):
        own = rng.normal(size=(4, 2)).astype("float32")
        rows.append(row(f"p{problem}", True, [int(x[0] * x[1] > 0) for x in own]))
        states.append(own)
    own = joined(rows, states, "hard")
    how = Training(l2=0.01, epochs=60)
    chosen = searched(own, how, grid=[(0.01, 0), (0.01, 16)])
    assert (chosen.l2, chosen.hidden) == (0.01, 16)
    train, held_out = split(own, 0.3, 0)
    areas = {}
    for hidden in (0, 16):
        fit = Fit(train, held_out, how.model_copy(update={"hidden": hidden}))
        areas[hidden] = examined(fit.run(), held_out, how).auc
    assert areas[16] > 0.9
    assert areas[0] < 0.7


def test_no_problem_is_in_training_and_held_out_at_once():
    rows, states = drawn(20)
    renamed = [one.model_copy(update={"problem": str(i)}) for i, one in enumerate(rows)]
    own = joined(renamed, states, "hard")
    parts = {seed: split(own, 0.25, seed) for seed in range(3)}
    for train, held_out in parts.values():
        assert not set(train.problems) & set(held_out.problems)
        assert (len(train.problems), len(held_out.problems)) == (15, 5)
        assert len(train) + len(held_out) == len(own)
    assert len({frozenset(held_out.problems) for _, held_out in parts.values()}) > 1
    with pytest.raises(SpecError, match="1 problems cannot be split"):
        split(own.of({"p0"}), 0.25, 0)


WAYS = {
    "linear": Training(epochs=12, keep=0),
    "hidden": Training(epochs=12, keep=0, hidden=5),
}


def same(one, other):
    return all(
        (a == b).all()
        for a, b in zip(one.tensors().values(), other.tensors().values(), strict=True)
    )


@pytest.mark.parametrize("way", WAYS)
def test_a_training_that_was_killed_goes_on_to_the_same_head(tmp_path, way):
    train, held_out = split(data(), 0.3, 0)
    how = WAYS[way]
    whole = Fit(train, held_out, how).run()

    class Killed(BaseException):
        pass

    def kill(epoch):
        if epoch.number == 5:
            raise Killed

    file = tmp_path / "checkpoint.pt"
    with pytest.raises(Killed):
        Fit(train, held_out, how, file, kill).run()
    told = []
    again = Fit(train, held_out, how, file, told.append)
    assert same(again.run(), whole)
    assert told[0].number == 6
    # Of other data or another way nothing is taken up, nor of a damaged file.
    seeded = Fit(train, held_out, how.model_copy(update={"l2": 0.5}), file, told.append)
    other = Fit(held_out, train, how, file, told.append)
    file.write_bytes(file.read_bytes()[:-9])
    for fit in (seeded, other):
        told.clear()
        fit.run()
        assert told[0].number == 1


def test_the_same_seed_gives_the_same_head():
    train, held_out = split(data(), 0.3, 0)
    first, second = (Fit(train, held_out, WAYS["hidden"]).run() for _ in range(2))
    other = Fit(train, held_out, WAYS["hidden"].model_copy(update={"seed": 1})).run()
    assert same(first, second)
    assert not same(first, other)


def test_calibration_undoes_what_overconfidence_has_done():
    rows, states = drawn(200, width=1, value=lambda x: x[0])
    own = joined(rows, states, "hard")
    found = examined(lambda states: 4 * states[:, 0], own, Training())
    assert found.calibration.slope == pytest.approx(0.25, abs=0.05)
    assert found.calibration.bias == pytest.approx(0.0, abs=0.1)
    assert found.ece[0] > 0.1
    assert found.ece[1] < 0.04
    cooled = examined(lambda states: 4 * states[:, 0], own, Training(calibration="temperature"))
    assert cooled.calibration.bias == 0
    assert cooled.calibration.slope == pytest.approx(0.25, abs=0.05)
    assert examined(lambda states: states[:, 0], own, Training(calibration="none")).ece[0] < 0.04
    # A head that holds for the contrary is not turned round.
    assert examined(lambda states: -states[:, 0], own, Training()).calibration.slope == 1


def test_what_is_said_of_answers_is_counted_by_hand():
    rows = [
        row("a", True, (1, 1)),
        row("a", False, (1, 0)),
        row("b", True, (1,)),
        row("b", False, (0,)),
        row("b", False, (0,)),
        row("c", False, (0, 0)),
    ]
    scores = [(0.0, 2.0), (1.0, 1.0), (1.5,), (-1.0,), (3.0,), (-2.0, -2.0)]
    own = joined(rows, [np.array(each, "float32")[:, None] for each in scores], "hard")
    found = examined(lambda states: states[:, 0], own, Training(calibration="none"))
    assert found.chance == pytest.approx((1 / 2 + 1 / 3 + 0) / 3)
    assert found.oracle == pytest.approx(2 / 3)
    last, least = found.answers["last"], found.answers["min"]
    # By the last step: right 2.0, 1.5; wrong 1.0, -1.0, 3.0, -2.0.
    assert last.pairs.value == pytest.approx((1 + 1 / 2) / 2)
    assert last.picked.value == pytest.approx(1 / 3)
    # By the worst step: right 0.0, 1.5; wrong 1.0, -1.0, 3.0, -2.0.
    assert least.pairs.value == pytest.approx((0 + 1 / 2) / 2)
    assert least.picked.value == 0
    # All steps: good 0, 2, 1, 1.5; bad 1, -1, 3, -2, -2.
    assert found.auc == pytest.approx((3 + 4 + 3.5 + 4) / 20)


def blind(problems, seed, digits=None):
    """Answers of which nothing is known, the right ones first, with a state that says nothing."""
    rng, rows, states = np.random.default_rng(seed), [], []
    for problem in range(problems):
        right = int((rng.random(6) < rng.random()).sum())
        rows += [row(str(problem), i < right, (i < right,) * 2) for i in range(6)]
        states += [rng.normal(size=(2, 1)).astype("float32") for _ in range(6)]
    if digits is not None:
        states = [own.round(digits) for own in states]
    return joined(rows, states, "outcome")


def test_equally_good_answers_are_picked_blindly():
    own = blind(8, seed=0)
    found = examined(lambda states: 0 * states[:, 0], own, Training(calibration="none"))
    for ranking in found.answers.values():
        assert ranking.picked.value == pytest.approx(found.chance)
        assert ranking.pairs.value == ranking.auc == 0.5


def test_a_head_that_knows_nothing_looks_so():
    gains, areas, choices = [], [], []
    for seed in range(60):
        own = blind(20, seed, digits=0)  # with many ties
        found = examined(lambda states: states[:, 0], own, Training(label="outcome"))
        ranking = found.answers[Training().how]
        gains.append(ranking.picked.value - found.chance)
        areas.append(ranking.auc)
        choices.append(ranking.pairs.value)
    for seen, expected in ((gains, 0), (areas, 0.5), (choices, 0.5)):
        assert abs(np.mean(seen) - expected) < 2.6 * np.std(seen) / len(seen) ** 0.5


def test_intervals_are_of_problems_and_are_not_where_there_is_nothing():
    one = blind(12, seed=1)
    found = examined(lambda states: states[:, 0], one, Training(label="outcome"))
    places = list(one.problems.values())
    shares = [np.mean([one.answers[i].right for i in group]) for group in places]
    picked = found.answers["last"].picked
    assert picked.interval.low <= picked.value <= picked.interval.high
    assert found.chance == pytest.approx(np.mean(shares))
    # The same answers twice are no news: not twice as many problems.
    twice = joined([*one.rows, *one.rows], [*one.states.reshape(-1, 2, 1).numpy()] * 2, "outcome")
    again = examined(lambda states: states[:, 0], twice, Training(label="outcome"))
    assert again.answers["last"].picked.interval == pytest.approx(picked.interval)
    alike = joined(
        [row(str(i), True, (1,)) for i in range(4)], [np.ones((1, 1), "float32")] * 4, "hard"
    )
    nothing = examined(lambda states: states[:, 0], alike, Training())
    assert (nothing.auc, nothing.answers["last"].pairs, nothing.answers["last"].auc) == (None,) * 3


def test_what_is_said_after_calibration_needs_two_held_out_problems():
    with pytest.raises(SpecError, match="6 problems cannot be split") as caught:
        split(data(6), 0.2, 0)
    assert "two have to be held out" in str(caught.value)


def test_the_report_does_not_show_what_is_not_there():
    rows, states = drawn(12)
    alike = [one.model_copy(update={"right": True}) for one in rows]
    own = joined(alike, states, "hard")
    train, held_out = split(own, 0.3, 0)
    fit = Fit(train, held_out, EXACT)
    found = examined(fit.run(), held_out, EXACT)
    text = page("A head", found, EXACT, fit.history, (train, held_out))
    assert "| last | not defined | not defined | 1.000 (1.000 to 1.000) |" in text
    told = numbers(found, EXACT, fit.history, train, held_out)
    assert told["answers"]["last"]["pairs"] is None
    assert json.loads(json.dumps(told)) == told


def test_a_soft_label_counts_as_its_continuations():
    rows = [row("a", True, (0.25, 1.0), n=4), row("b", False, (0.5, 0.0), n=4)]
    own = joined(rows, [np.array([[0.0], [2.0]], "float32")] * 2, "soft")
    found = examined(lambda states: states[:, 0], own, Training(label="soft", calibration="none"))
    # Of the score 0: 3 of 8 good; of the score 2: 4 of 8.
    assert found.auc == pytest.approx((4 * 5 + (3 * 5 + 4 * 4) / 2) / (7 * 9))
    # Where nobody has counted them, a share is a share all the same.
    rows = [row(name, True, (0.3, 0.5), n=0) for name in "ab"]
    own = joined(rows, [np.array([[math.log(3 / 7)], [0.0]], "float32")] * 2, "soft")
    found = examined(lambda states: states[:, 0], own, Training(label="soft", calibration="none"))
    assert found.ece[0] == pytest.approx(0, abs=1e-6)


def test_what_is_learnt_is_written_and_read_again(tmp_path):
    own = data(40)
    how = Training(l2=0.01)
    learnt = learn(own, ("some/model", READS), how, tmp_path / "head")
    assert sorted(file.name for file in (tmp_path / "head").iterdir()) == [
        "calibration.svg",
        "head.json",
        "head.safetensors",
        "report.md",
    ]
    head = load(tmp_path / "head")
    about = head.about
    assert (about.model, about.template, about.sizes) == ("some/model", "{prompt}!", (4, 1))
    assert about.how == "last"
    assert about.report["held_out"] == {"problems": 8, "answers": 32, "steps": 96}
    train, held_out = split(own, how.held_out, how.seed)
    model = Fit(train, held_out, how).run()
    with torch.no_grad():
        logits = model(own.states)
    assert head.logits(own.states.tolist()) == pytest.approx(logits.numpy(), abs=1e-5)
    calibrated = [about.calibration(logit) for logit in logits.tolist()]
    assert head.probabilities(own.states.tolist()) == pytest.approx(calibrated, abs=1e-5)
    page = (tmp_path / "head" / "report.md").read_text()
    assert f"{learnt.found.auc:.4f}" in page
    assert f"{learnt.found.auc:.3f}" in "".join(summary(learnt))
    other = learn(own, ("some/model", READS), how.model_copy(update={"how": "min"}), tmp_path)
    assert other.head.about.how == "min"


def write(folder, lines, **about):
    folder.mkdir(exist_ok=True)
    told = {"model": "tiny", "template": "{prompt}", "separator": "\n\n", "rollouts": 4} | about
    (folder / "labels.json").write_text(json.dumps(told))
    (folder / "labels.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


LINE = {"problem": "1", "prompt": "?", "answer": "4", "right": True, "steps": ["a", "b"]}


def test_labels_are_read(tmp_path):
    lines = [{**LINE, "hard": [1, 0], "soft": [0.5, 0], "rollouts": 2, "usage": {}}, LINE]
    labels = read(write(tmp_path / "l", lines, shots=[{"prompt": "p", "reply": "r"}], seed=3))
    assert labels.model == {"kind": "hf", "model": "tiny"}
    assert labels.reads.shots[0].reply == "r"
    first, second = labels.rows
    assert first.targets("hard") == (1, 0)
    assert first.targets("soft") == (0.5, 0)
    assert first.targets("outcome") == second.targets("hard") == second.targets("soft") == (1, 1)
    assert len(together([labels, labels]).rows) == 4


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({**LINE, "hard": [1]}, r"labels.jsonl, line 2: .*2 steps have 1 hard labels"),
        ({**LINE, "soft": [0.5, 1.5]}, r"line 2: soft.1: .*less than or equal to 1"),
        ({**LINE, "hard": [1, 2]}, r"line 2: hard.1: "),
        ({**LINE, "steps": []}, r"line 2: steps: .*at least 1"),
        ({**LINE, "steps": ["a", ""]}, r"line 2: steps.1: .*at least 1"),
        ({"problem": "1"}, r"line 2: prompt: Field required"),
        ("no object", r"line 2: .*"),
    ],
)
def test_wrong_labels_are_named_by_their_line(tmp_path, line, words):
    with pytest.raises(SpecError, match=words) as caught:
        read(write(tmp_path / "l", [LINE, line]))
    assert "\n" not in str(caught.value)


def test_how_fast_a_model_is_makes_no_other_labels(tmp_path):
    model = {"kind": "hf", "model": "tiny", "dtype": "float32"}
    one = read(write(tmp_path / "one", [LINE], model=model | {"threads": 1, "max_rows": 96}))
    other = read(write(tmp_path / "other", [LINE], model=model | {"memory": 4.0}))
    third = read(write(tmp_path / "third", [LINE], model=model | {"dtype": "bfloat16"}))
    assert len(together([one, other]).rows) == 2
    with pytest.raises(SpecError, match="labels of other models"):
        together([one, third])


def test_labels_that_do_not_go_together_are_refused(tmp_path):
    one = read(write(tmp_path / "one", [LINE]))
    other = read(write(tmp_path / "other", [LINE], template="{prompt}?"))
    third = read(write(tmp_path / "third", [LINE], model="small"))
    with pytest.raises(SpecError, match=r"other: labels of other prompts .* than those in .*one"):
        together([one, other])
    with pytest.raises(SpecError, match="third: labels of other models"):
        together([one, third])
    with pytest.raises(SpecError, match=r"nowhere.*labels.json: cannot read the labels: No such"):
        read(tmp_path / "nowhere")
    (tmp_path / "one" / "labels.jsonl").write_text("")
    with pytest.raises(SpecError, match="there are no labels in it"):
        read(tmp_path / "one")
    (tmp_path / "one" / "labels.json").write_text("{")
    with pytest.raises(SpecError, match=r"labels.json: Invalid JSON"):
        read(tmp_path / "one")


def test_data_that_teach_nothing_are_refused():
    rows, states = drawn(5)
    only = [one.model_copy(update={"soft": None}) for one in rows]
    with pytest.raises(
        SpecError, match=r"label = soft: problem 'p0': the labels are hard ones only"
    ):
        joined(only, states, "soft")
    with pytest.raises(SpecError, match="of several sizes"):
        joined(rows, [*states[:-1], states[-1][:, :2]], "hard")
    with pytest.raises(ValidationError, match="pairwise"):
        Training(pairwise=-1)
    with pytest.raises(SpecError, match="no finite number"):
        joined(rows, [own * np.inf for own in states], "hard")
    good = joined(
        [row("a", True, (1, 1)), row("b", True, (1, 1))],
        states[0:1] * 0 + [np.zeros((2, 1), "float32"), np.ones((2, 1), "float32")],
        "hard",
    )
    with pytest.raises(SpecError, match="the share of good steps is 1: there is nothing to tell"):
        Fit(good, good, Training())
    with pytest.raises(SpecError, match="no problem with right and wrong answers to train on"):
        Fit(good, good, Training(pointwise=0, pairwise=1))
    with pytest.raises(SpecError, match="a search needs 5 problems"):
        searched(data(6), Training(held_out=0.4))
