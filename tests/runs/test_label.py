"""Labels of steps, from runs of a model whose chances are known."""

import json
from pathlib import Path

import pytest
import walker

from branchwise.cli import main

SPEC = """
name = "sums"
concurrency = 4

[model]
kind = "walker:Walker"

[policy]
template = "Add: {prompt}"
sampling = { temperature = 1.0 }

[grader]
kind = "exact"

[data]
path = "sums.jsonl"

[[strategies]]
name = "four"
search = { kind = "best-of-n", n = 4, pick = { kind = "vote" } }

[[strategies]]
name = "lines"
search = { kind = "beam", width = 2, fanout = 2 }
policy = { stop = ["\\n"] }
"""
PROBLEMS = 150


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run over many sums."""
    folder = tmp_path_factory.mktemp("run")
    rows = [
        {"question": f"{i} + {i + 1}?", "answer": str(2 * i + 1)}
        for i in range(100, 100 + PROBLEMS)
    ]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "spec.toml").write_text(SPEC)
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(Path(__file__).parent))
    patch.chdir(folder)
    with pytest.raises(SystemExit) as exit_:
        main(["run", "spec.toml", "--out", "run"])
    assert exit_.value.code == 0
    yield folder
    patch.undo()


def label(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_:
        main(["label", "run", "--separator", r"\n", *arguments])
    out, err = capsys.readouterr()
    return exit_.value.code, out, err


def rows(folder):
    return [json.loads(line) for line in (folder / "labels.jsonl").read_text().splitlines()]


def test_monte_carlo_labels_estimate_the_chance_to_get_to_the_target(made, capsys, monkeypatch):
    monkeypatch.chdir(made)
    status, out, err = label(capsys, "--out", "mc", "--rollouts", "2", "--answers", "2")
    assert (status, err) == (0, "")
    labelled = rows(made / "mc")
    first, hard = [], []
    for row in labelled:
        assert len(row["steps"]) == 3
        slipped = row["steps"][1] == "A slip.\n"
        assert row["right"] is not slipped
        assert row["soft"][1:] == ([0, 0] if slipped else [1, 1])
        assert row["hard"][1:] == ([0, 0] if slipped else [1, 1])
        assert row["hard"][0] == (row["soft"][0] > 0)
    for row in {row["problem"]: row for row in labelled}.values():
        first.append(row["soft"][0])
        hard.append(row["hard"][0])
    # Of N = 2 continuations with V = 1/2: the share is unbiased, one of them is right in 3 of 4.
    assert len(first) == PROBLEMS
    assert sum(first) / PROBLEMS == pytest.approx(0.5, abs=0.1)
    assert sum(hard) / PROBLEMS == pytest.approx(0.75, abs=0.1)
    assert "its mean is 1 - (1 - V)^N" in out
    about = json.loads((made / "mc" / "labels.json").read_text())
    assert (about["template"], about["separator"]) == ("Add: {prompt}", "\n")


def test_the_target_is_not_asked_about(made, capsys, monkeypatch):
    monkeypatch.chdir(made)
    label(capsys, "--out", "hidden", "--limit", "5")
    assert walker.CALLS
    for request in walker.CALLS:
        assert "target" not in repr(request)
        numbers = request.asked.removeprefix("Add: ").removesuffix("?").split(" + ")
        assert str(sum(map(int, numbers))) not in request.asked


def test_right_and_wrong_answers_are_taken_in_turn(made, capsys, monkeypatch):
    monkeypatch.chdir(made)
    label(capsys, "--out", "all", "--how", "outcome")
    label(capsys, "--out", "two", "--how", "outcome", "--answers", "2")
    both = {row["problem"]: set() for row in rows(made / "all")}
    for row in rows(made / "all"):
        assert (row["hard"], row["soft"], row["rollouts"]) == (None, None, 0)
        both[row["problem"]].add(row["right"])
    taken = {}
    for row in rows(made / "two"):
        taken.setdefault(row["problem"], []).append(row["right"])
    for problem, kinds in both.items():
        assert sorted(taken[problem]) == sorted(kinds)


def test_a_labelling_that_was_cut_off_goes_on_and_pays_nothing_twice(made, capsys, monkeypatch):
    monkeypatch.chdir(made)
    arguments = ("--out", "torn", "--limit", "12", "--rollouts", "2")
    label(capsys, *arguments)
    file = made / "torn" / "labels.jsonl"
    whole = sorted(file.read_text().splitlines())
    asked = len(walker.CALLS)
    assert asked > 0
    file.write_bytes(file.read_bytes()[: len(file.read_bytes()) * 2 // 3])
    status, _, _ = label(capsys, *arguments)
    assert status == 0
    assert sorted(file.read_text().splitlines()) == whole
    assert walker.CALLS == []


def test_other_labels_are_not_mixed_in(made, capsys, monkeypatch):
    monkeypatch.chdir(made)
    label(capsys, "--out", "one", "--limit", "3", "--how", "outcome")
    status, _, err = label(capsys, "--out", "one", "--limit", "3", "--how", "match")
    assert status == 2
    assert "made in another way" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--strategy", "fore"), "'fore' (did you mean 'four'?)"),
        (("--rollouts", "0"), "Must be >= 1"),
        (("--how", "magic"), "magic"),
    ],
)
def test_wrong_input_is_one_line(made, capsys, monkeypatch, arguments, said):
    monkeypatch.chdir(made)
    status, _, err = label(capsys, "--out", "wrong", *arguments)
    assert status == 2
    assert said in err
    assert err.count("\n") == 1


def test_a_directory_without_a_run_is_one_line(made, capsys, monkeypatch):
    monkeypatch.chdir(made)
    with pytest.raises(SystemExit) as exit_:
        main(["label", "nowhere", "--out", "wrong"])
    assert exit_.value.code == 2
    assert "nowhere holds no run" in capsys.readouterr().err


def test_labels_do_not_come_among_the_files_of_a_run(made, capsys, monkeypatch):
    monkeypatch.chdir(made)
    before = sorted(path.name for path in Path("run").iterdir())
    (made / "file").write_text("")
    for out, said in (("run", "run holds a run (give another"), ("file", "file is no directory")):
        for command in (["label", "run"], ["train-verifier", "nowhere"]):
            with pytest.raises(SystemExit) as exit_:
                main([*command, "--out", out])
            assert exit_.value.code == 2
            assert said in capsys.readouterr().err
    assert sorted(path.name for path in Path("run").iterdir()) == before
