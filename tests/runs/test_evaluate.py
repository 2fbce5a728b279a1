"""How good a verifier is: numbers made by hand from a run made by hand."""

import json
import math
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stepwise import SAID, SPEC, TWO, UNJUDGED, Replies, command, made, rows, steps

from branchwise.runs.evaluate import bootstrapped, pooled_auc, within_auc
from branchwise.verifiers.quality import auc


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        return made(tmp_path_factory.mktemp("kept"), SPEC + UNJUDGED + TWO)


@pytest.fixture
def run(kept, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(Replies, "open", None)  # whoever asks the model finds none
    shutil.copytree(kept, "run")
    return Path("run")


ASKED = ("--of", "prm", "--strategy", "best of 4")


def test_the_tables_are_those_made_by_hand(run, capsys):
    status, out, err = command(capsys, "eval-verifier", run, *ASKED)
    assert (status, err) == (0, "")
    page = run / "verifier-prm.md"
    tells = {row[0]: row for row in rows(page, "prm on best of 4: right from wrong")}
    assert list(tells) == ["as given", "min", "prod", "last", "mean", "max", "sum"]
    # Of 4 right and 12 wrong answers, 40.5 of 48 pairs stand in the right order by the least score,
    # 31 by the greatest. Within: 3, 4, 3 of 3, 4, 3 pairs, and 2, 2, 3.
    assert (tells["min"][1], tells["min"][3]) == ("0.844", "1.000")
    assert (tells["max"][1], tells["max"][3]) == ("0.646", "0.722")
    assert tells["as given"][1:] == tells["max"][1:]
    assert (
        tells["min"][5] == "0.168"
    )  # squares of 0.57 of the right ones and 2.12 of the wrong ones
    assert tells["sum"][5:] == ["-", "-"]  # no probabilities
    chosen = {row[0]: row[1:] for row in rows(page, "prm on best of 4: right of N samples")}
    assert chosen["any right"][:3] == ["25.0%", "45.8%", "75.0%"]
    assert chosen["majority"] == ["25.0%", "25.0%", "12.5%", chosen["majority"][3], "", ""]
    assert chosen["best, min"][:3] == ["25.0%", "45.8%", "75.0%"]
    assert chosen["best, as given"][2] == "25.0%"
    assert chosen["weighted vote, min"][2] == "50.0%"
    assert chosen["best, min"][4] == "+62.5"
    assert "16 answers, 25.0% of them right" in page.read_text()
    assert "0.844" in out
    assert (run / "verifier-prm.svg").read_text().startswith("<svg")
    table = json.loads((run / "verifier-prm.json").read_text())["strategies"][0]
    assert table["scores"]["min"]["auc"]["value"] == 40.5 / 48
    assert table["scores"]["min"]["brier"] == pytest.approx(2.69 / 16)
    assert table["choices"]["best, min"]["right"][-1] == pytest.approx(0.75)
    assert table["choices"]["majority"]["right"] == [0.25, 0.25, 0.125]


def test_one_way_of_aggregation_alone(run, capsys):
    assert command(capsys, "eval-verifier", run, *ASKED, "--aggregate", "min")[0] == 0
    assert [row[0] for row in rows(run / "verifier-prm.md")] == ["min"]
    assert "prm, min: best of 4" in (run / "verifier-prm.svg").read_text()


def test_each_strategy_that_it_has_judged_has_its_tables(run, capsys):
    assert command(capsys, "eval-verifier", run, "--of", "prm")[0] == 0
    text = (run / "verifier-prm.md").read_text()
    assert "prm on two judges: right from wrong" in text
    assert "prm on one" not in text
    assert (run / "verifier-prm-two-judges.svg").exists()


def test_a_strategy_without_answers_does_not_hide_the_others(run, capsys):
    for tree in (run / "trees" / "two_judges").iterdir():
        table = json.loads(tree.read_text())
        for node in table["nodes"]:
            node["state"]["done"] = False
        tree.write_text(json.dumps(table))
    status, out, _ = command(capsys, "eval-verifier", run, "--of", "prm")
    assert status == 0
    assert "two judges: no answer has a verdict and a grade." in out
    asked = ("--of", "prm", "--strategy", "two judges")
    status, _, err = command(capsys, "eval-verifier", run, *asked)
    assert status == 2
    assert "no answer of 'two judges' has a verdict and a grade" in err


def test_scores_that_are_no_probabilities_have_no_plot(run, capsys):
    assert command(capsys, "eval-verifier", run, "--of", "low")[0] == 0
    assert not (run / "verifier-low.svg").exists()
    text = (run / "verifier-low.md").read_text()
    assert "Votes are weighted by exp(score)" in text
    assert "Brier and ECE only where all scores lie in [0, 1]" in text


def test_answers_without_a_grade_do_not_count(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    run = made(tmp_path, SPEC.replace('"exact"', '"stepwise:Unsure"'))
    assert command(capsys, "eval-verifier", run, "--aggregate", "min")[0] == 0
    table = json.loads((run / "verifier-prm.json").read_text())["strategies"][0]
    assert (table["answers"], table["ungraded"]) == (7, 9)  # 1, 3, 1 | 1, 1 | 1 | none, 3
    # Right: .8, .6, .4, .9; wrong: .1, .2, .1.
    assert table["scores"]["min"]["auc"]["value"] == 1.0


# Labels of steps

LABELS = {
    (0, 0): (1, 1),
    (0, 1): (1, 0),
    (1, 1): (1, 1),
    (1, 0): (1, 0),
    (2, 0): (1, 1),
    (2, 1): (1, 0),
    (3, 0): (0, 0),  # of which the verifier knows nothing
    (3, 3): (0, 0),
}


def labelled(folder, **changes):
    folder.mkdir()
    lines = []
    for (place, number), hard in LABELS.items():
        line = {
            "problem": str(place),
            "prompt": f"Problem {place}?",
            "answer": SAID[place][number][0],
            "right": SAID[place][number][0] == "1",
            "steps": steps(place, number),
            "hard": hard,
            "soft": None,
            "rollouts": 8,
        }
        lines.append(json.dumps(line | changes))
    (folder / "labels.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("seed", range(6))
def test_steps_and_first_errors_against_labels(run, capsys, seed):
    asked = [*ASKED, "--labels", labelled(Path("labels")), "--seed", seed]
    status, out, _ = command(capsys, "eval-verifier", run, *asked)
    assert status == 0
    found = json.loads((run / "verifier-prm.json").read_text())["strategies"][0]["steps"]
    # 9 good and 7 bad steps: the five low bad ones lose all 45 pairs; .9 twice wins or draws 3 of 9.
    assert found["auc"]["value"] == pytest.approx(51 / 63)
    assert (found["answers"], found["unmatched"]) == (8, 0)
    # The half with the last problem cannot be wholly right: one of its three errors is not seen.
    told = [found[name] for name in ("wrong", "found", "right", "passed")]
    assert told in ([3, 2, 1, 1], [2, 2, 2, 2])
    assert found["f1"]["value"] == pytest.approx(0.8 if told[0] == 3 else 1.0)
    assert f"found of {told[0]} with an error" in out


def test_answers_that_are_not_labelled_are_counted(run, capsys):
    folder = labelled(Path("labels"))
    lines = (folder / "labels.jsonl").read_text().splitlines()
    other = json.loads(lines[0]) | {"steps": ["Another text."], "hard": [1]}
    last = '{"problem": "1", "pro'  # somebody is still writing
    (folder / "labels.jsonl").write_text("\n".join([*lines, json.dumps(other), last]))
    assert command(capsys, "eval-verifier", run, *ASKED, "--labels", folder)[0] == 0
    found = json.loads((run / "verifier-prm.json").read_text())["strategies"][0]["steps"]
    assert (found["answers"], found["unmatched"]) == (8, 1)


def test_without_errors_there_is_no_threshold(run, capsys):
    folder = labelled(Path("labels"), hard=[1, 1])
    status, _, err = command(capsys, "eval-verifier", run, *ASKED, "--labels", folder)
    assert (status, err) == (0, "")
    text = (run / "verifier-prm.md").read_text()
    assert "No threshold" in text
    assert "first error" not in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hard": None}, "labels.jsonl: no step has a label"),
        ({"hard": [1]}, "labels.jsonl, line 1: Value error, 2 steps have 1 hard labels"),
        ({"steps": "one"}, "labels.jsonl, line 1: steps: Input should be a valid array"),
        ({"problem": "99"}, "no answer that is labelled in labels was judged step by step"),
    ],
)
def test_labels_that_do_not_fit_are_one_line(run, capsys, changes, said):
    folder = labelled(Path("labels"), **changes)
    status, _, err = command(capsys, "eval-verifier", run, *ASKED, "--labels", folder)
    assert status == 2
    assert said in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("", "run: several verifiers have judged: prm, low; name one by --of"),
        ("--of pmr", "no verifier is called 'pmr' (did you mean 'prm'?)"),
        ("--of low --strategy best+of+4", "no verifier is called 'low' (there is prm)"),
        ("--of prm --strategy oen", "no results of a strategy 'oen' (did you mean 'one'?)"),
        ("--of prm --strategy one", "no verifier has judged anything there"),
        ("--of prm --aggregate mni", 'Did you mean "min"?'),
        ("--of prm --labels nowhere", "nowhere/labels.jsonl: cannot be read: No such file"),
    ],
)
def test_wrong_input_is_one_line(run, capsys, asked, said):
    words = [word.replace("+", " ") for word in asked.split()]
    status, _, err = command(capsys, "eval-verifier", run, *words)
    assert status == 2
    assert said in err
    assert len(err.splitlines()) == 1


# The statistics

judged = st.lists(
    st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=4),
    min_size=1,
    max_size=4,
)


@given(judged, st.data())
def test_problems_that_count_twice_are_there_twice(problems, data):
    counts = [data.draw(st.integers(0, 2)) for _ in problems]
    pairs = [([float(s) for s, _ in own], [right for _, right in own]) for own in problems]
    many = [pair for pair, n in zip(pairs, counts, strict=True) for _ in range(n)]
    scores = [score for own, _ in many for score in own]
    marks = [right for _, own in many for right in own]
    pooled = pooled_auc(pairs)(counts)
    if len(set(marks)) == 2:
        assert pooled == pytest.approx(auc(scores, marks))
    else:
        assert math.isnan(pooled)
    both = [auc(*pair) for pair in many if len(set(pair[1])) == 2]
    within = within_auc(pairs)(counts)
    assert within == pytest.approx(sum(both) / len(both)) if both else math.isnan(within)


def test_the_interval_of_a_mean_is_the_normal_one():
    draws = random.Random(5)
    values = [draws.random() for _ in range(400)]
    number = bootstrapped(
        400, lambda counts: sum(n * v for n, v in zip(counts, values, strict=True)) / 400
    )
    half = 1.96 * math.sqrt(1 / 12 / 400)
    assert number.value == pytest.approx(sum(values) / 400)
    assert number.high - number.low == pytest.approx(2 * half, rel=0.15)
    assert number.low < number.value < number.high


def test_one_problem_has_no_interval():
    alone = bootstrapped(1, lambda counts: counts[0] / 2)
    assert alone.value == 0.5
    assert math.isnan(alone.low)
