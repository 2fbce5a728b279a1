"""The commands as a user meets them."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from branchwise import Journal, from_json
from branchwise.cli import main

SPEC = """
name = "sums"
concurrency = 4

[model]
kind = "echo:Echo"

[policy]
sampling = { temperature = 1.0 }

[grader]
kind = "exact"

[data]
path = "sums.jsonl"

[[strategies]]
name = "one"
search = { kind = "rollout" }

[[strategies]]
name = "vote of 9"
search = { kind = "best-of-n", n = 9, pick = { kind = "vote" } }

[[strategies]]
name = "lines"
search = { kind = "beam", width = 2, fanout = 2 }
policy = { stop = ["\\n"] }
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    rows = [{"question": f"What is {i} + {i + 1}?", "answer": str(2 * i + 1)} for i in range(12)]
    Path("sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("spec.toml").write_text(SPEC)
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    Path("broken.jsonl.gz").write_bytes(
        gzip.compress(random.Random(0).randbytes(99))[:-9] + b"?" * 9
    )
    Path("plain.csv.gz").write_text("question,answer\n")
    return tmp_path


def command(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    out, err = capsys.readouterr()
    return exit_.value.code, out, err


def test_a_run_leaves_a_table_results_trees_and_a_journal(folder, capsys):
    status, out, err = command(capsys, "run", "spec.toml")
    assert (status, err) == (0, "")
    assert "vote of 9" in out
    results = [
        json.loads(line) for line in Path("runs/spec/results.jsonl").read_text().splitlines()
    ]
    assert len(results) == 36
    right = [r for r in results if r["strategy"] == "vote of 9" and r["grade"] == "right"]
    report = Path("runs/spec/report.md").read_text()
    assert f"| vote of 9 | {len(right) / 12:.1%} |" in report
    assert "12 problems; gain over one in points" in report
    for result in results:
        tree = from_json((Path("runs/spec") / result["tree"]).read_text())
        assert tree.task.target is None
        assert any(leaf.state.answer == result["answer"] for leaf in tree.leaves())
    model = Journal("runs/spec/journal.jsonl")
    assert model.name == "echo"


def test_the_same_command_goes_on_where_the_last_one_stopped(folder, capsys):
    assert command(capsys, "run", "spec.toml", "--set", "data.limit=5")[0] == 0
    kept = Path("runs/spec/results.jsonl").read_text()
    status, out, _ = command(capsys, "run", "spec.toml")
    assert status == 0
    assert "15 results are there already" in out
    assert Path("runs/spec/results.jsonl").read_text().startswith(kept)
    straight = command(capsys, "run", "spec.toml", "--out", "straight")
    assert straight[0] == 0
    for result in Path("straight/trees").rglob("*.json"):
        twin = Path("runs/spec/trees") / result.relative_to("straight/trees")
        assert twin.read_bytes() == result.read_bytes()
    assert Path("straight/report.md").read_text() == Path("runs/spec/report.md").read_text()


def test_a_run_is_not_mixed_with_one_of_another_spec(folder, capsys):
    command(capsys, "run", "spec.toml", "--set", "data.limit=2")
    status, _, err = command(capsys, "run", "spec.toml", "--set", "seed=1")
    assert status == 2
    assert "holds a run of another spec: seed changed (give another directory with --out)" in err


def test_an_outage_keeps_what_is_done(folder, capsys):
    command(capsys, "run", "spec.toml", "--set", "data.limit=2", "--out", "r")
    Path("r/spec.json").unlink()  # the model changes from `Echo` to a broken one
    status, _, err = command(capsys, "run", "spec.toml", "--out", "r", "--set", "model.broken=true")
    assert status == 1
    assert "error: the run stopped: nothing has grown: the line is dead" in err
    assert "6 results are kept in r; the same command goes on" in err


def test_a_wrong_key_stops_the_run_at_once(folder, capsys):
    changes = ["--set", "model.broken=true", "--set", "model.fatal=true", "--set", "concurrency=1"]
    status, _, err = command(capsys, "run", "spec.toml", *changes)
    assert status == 1
    assert "error: the run stopped: the line is dead" in err


def test_targets_are_shown_only_to_an_oracle(folder, capsys):
    changes = ["--set", 'verifier.kind="exact"', "--set", "strategies.lines.search.width=1"]
    status, _, err = command(capsys, "run", "spec.toml", *changes)
    assert status == 1
    assert "oracle = true" in err
    status, out, _ = command(
        capsys, "run", "spec.toml", *changes, "--set", "oracle=true", "--out", "oracle"
    )
    assert status == 0
    assert "(oracle)" in out


BEAM = '{ kind = "beam", width = 2, fanout = 2 }'

RISK = '[sandbox]\nkind = "none-i-accept-the-risk"\n\n'
GRADER = '[grader]\nkind = "exact"'

BAD = {
    "modle": (
        '[model]\nkind = "echo:Echo"',
        '[modle]\nkind = "hf"',
        "spec.toml: modle: there is no such field (did you mean 'model'?)",
    ),
    "kind": (
        'kind = "beam"',
        'kind = "baem"',
        "spec.toml: strategies.2.search: unknown kind 'baem' (did you mean 'beam'?)",
    ),
    "field": (
        "width = 2",
        "widht = 2",
        "spec.toml: strategies.2.search.widht: there is no such field (did you mean 'width'?)",
    ),
    "pick": (
        '{ kind = "vote" }',
        '{ kind = "vote", wieght = "exp" }',
        "spec.toml: strategies.1.search.pick.wieght: there is no such field (did you mean 'weight'?)",
    ),
    "range": (
        "n = 9",
        "n = 0",
        "spec.toml: strategies.1.search.n: Input should be greater than or equal to 1, not 0",
    ),
    "law": (
        "width = 2",
        "width = 2, trees = 3",
        "spec.toml: strategies.2.search: trees = 3 has to divide width = 2",
    ),
    "policy": (
        "temperature = 1.0",
        "temprature = 1.0",
        "spec.toml: policy.sampling.temprature: there is no such field (did you mean 'temperature'?)",
    ),
    "own policy": (
        "policy = { stop",
        "policy = { stopp",
        "spec.toml: strategies.2.policy.stopp: there is no such field (did you mean 'stop'?)",
    ),
    "missing": ('name = "one"\n', "", "spec.toml: strategies.0.name: the field is missing"),
    "twice": (
        'name = "one"',
        'name = "lines"',
        "spec.toml: strategies: two strategies are called 'lines'; names have to differ",
    ),
    "toml": (
        "concurrency = 4",
        "concurrency = ",
        "spec.toml: not a TOML file: Invalid value (at line 3, column 15)",
    ),
    "outsider": (
        "echo:Echo",
        "echo:Ecco",
        "spec.toml: model: cannot load 'echo:Ecco': module 'echo' has no attribute 'Ecco'",
    ),
    "data": ('"sums.jsonl"', '"summs.jsonl"', "data.path: there is no file summs.jsonl"),
    "suffix": (
        '"sums.jsonl"',
        '"spec.toml"',
        "data.path: spec.toml ends in '.toml', not .jsonl, .csv (also .gz) or .parquet",
    ),
    "prompt": (
        'path = "sums.jsonl"',
        'path = "sums.jsonl"\nprompt = "questoin"',
        "sums.jsonl, line 1: no field 'questoin' for data.prompt (did you mean 'question'?)",
    ),
    "made": (
        '"sums.jsonl"',
        '"reasoning-gym:leg-counting"',
        "data.path: 'reasoning-gym:leg-counting' is not of the form reasoning-gym:FAMILY",
    ),
    "how many": (
        '"sums.jsonl"',
        '"reasoning-gym:leg_counting"',
        "data.limit: say how many problems shall be made",
    ),
    "packed": ('"sums.jsonl"', '"broken.jsonl.gz"', "broken.jsonl.gz: cannot be read: "),
    "unpacked": ('"sums.jsonl"', '"plain.csv.gz"', "plain.csv.gz: cannot be read: Not a gzipped"),
    "hub": (
        '"sums.jsonl"',
        '"hf:sums"',
        "data.path: 'hf:sums' is not of the form hf:OWNER/NAME/FILE",
    ),
    "inner kind": (
        BEAM,
        '{ kind = "until", search = { kind = "baem" }, stop = { kind = "enough" } }',
        "spec.toml: strategies.2.search.search: unknown kind 'baem' (did you mean 'beam'?)",
    ),
    "inner field": (
        BEAM,
        '{ kind = "until", search = { kind = "beam", widht = 2 }, stop = { kind = "enough" } }',
        "spec.toml: strategies.2.search.search.widht: there is no such field (did you mean 'width'?)",
    ),
    "rule": (
        BEAM,
        '{ kind = "until", search = { kind = "beam" }, stop = { kind = "enuogh" } }',
        "spec.toml: strategies.2.search.stop: unknown kind 'enuogh' (did you mean 'enough'?)",
    ),
    "inner rule": (
        BEAM,
        '{ kind = "until", search = { kind = "until", search = { kind = "beam" }, stop = { kind = "patience", look = 2 } }, stop = { kind = "enough" } }',
        "spec.toml: strategies.2.search.search.stop.look: there is no such field (did you mean 'looks'?)",
    ),
    "inner outsider": (
        BEAM,
        '{ kind = "until", search = { kind = "echo:Gredy" }, stop = { kind = "enough" } }',
        "spec.toml: strategies.2.search: cannot load 'echo:Gredy': module 'echo' has no attribute 'Gredy'",
    ),
    "utility": (
        BEAM,
        '{ kind = "beam", pick = { kind = "mbr", utility = { kind = "blue" } } }',
        "spec.toml: strategies.2.search.pick.utility: unknown kind 'blue' (did you mean 'bleu'?)",
    ),
    "types": (
        BEAM,
        '{ kind = "rejection", threshold = "large" }',
        "spec.toml: strategies.2.search.threshold: Input should be a valid number, unable to parse string as a number or Input should be 'largest', not 'large'",
    ),
    "no reviser": (
        BEAM,
        '{ kind = "refine" }',
        "spec.toml: strategies.2.search.by: no policy is called 'revise' (there is policy); policies.revise = { kind = ... } makes one",
    ),
    "no inner reviser": (
        BEAM,
        '{ kind = "until", search = { kind = "refine" }, stop = { kind = "enough" } }',
        "spec.toml: strategies.2.search.search.by: no policy is called 'revise' (there is policy)",
    ),
    "several policies": (
        BEAM,
        '{ kind = "ab-mcts", policies = ["policy", "polcy"] }',
        "spec.toml: strategies.2.search.policies: no policy is called 'polcy' (did you mean 'policy'?)",
    ),
    "no verifier": (
        BEAM,
        '{ kind = "a-star", reward = "steps" }',
        "spec.toml: strategies.2.search.reward: no verifier is called 'steps' (there is none)",
    ),
    "no tests": (
        BEAM,
        '{ kind = "best-of-n", pick = { kind = "cluster", tests = "public" } }',
        "spec.toml: strategies.2.search.pick.tests: no verifier is called 'public' (there is none)",
    ),
    "not a controller": (
        BEAM,
        '{ kind = "echo:Flat" }',
        "spec.toml: strategies.2.search: 'echo:Flat' does not fit here: it has no `grow`",
    ),
    "not a class": (
        BEAM,
        '{ kind = "os:getcwd", n = 1 }',
        "spec.toml: strategies.2.search: cannot make 'os:getcwd'",
    ),
    "verifier": (
        BEAM,
        '{ kind = "beam" }\nverifier = { kind = "likelyhood" }',
        "spec.toml: strategies.2.verifier: unknown kind 'likelyhood' (did you mean 'likelihood'?)",
    ),
    "token field": (
        BEAM,
        '{ kind = "beam" }\npolicies.next = { kind = "next-token", systm = "" }',
        "spec.toml: strategies.2.policies.next.systm: there is no such field (did you mean 'system'?)",
    ),
    "tournament": (
        BEAM,
        '{ kind = "transform" }\npolicies.transform = { kind = "tournament", prefer = { max_tokns = 9 } }',
        "spec.toml: strategies.2.policies.transform.prefer.max_tokns: there is no such field (did you mean 'max_tokens'?)",
    ),
    "world of tokens": (
        BEAM,
        '{ kind = "beam" }\npolicies.next = { kind = "next-token" }',
        "spec.toml: strategies.2.policies.next: next-token says one token at a time, which this world takes for an answer cut short: set environment.continue_at_length = true",
    ),
    **{
        name: (GRADER, f"{table}\n{GRADER}", said)
        for name, table, said in (
            (
                "world",
                '[environment]\nkind = "python-test"\n',
                "spec.toml: environment: unknown kind 'python-test' (did you mean 'python-tests'?)",
            ),
            (
                "field of a world",
                '[environment]\nkind = "python-tests"\natempts = 2\n',
                "spec.toml: environment.atempts: there is no such field (did you mean 'attempts'?)",
            ),
            (
                "sandbox",
                '[sandbox]\nkind = "bubblewarp"\n',
                "spec.toml: sandbox: unknown kind 'bubblewarp' (did you mean 'bubblewrap'?)",
            ),
            (
                "tool",
                '[environment]\nkind = "tools"\nfunctions = ["nowhere:f"]\n',
                "spec.toml: environment.functions.0: cannot load 'nowhere:f': No module named 'nowhere'",
            ),
            (
                "problem",
                '[environment]\nkind = "countdown"\n',
                "problem 0: Countdown has positive whole numbers only: 'What is 0 + 1?'",
            ),
            (
                "folder",
                '[environment]\nkind = "workspace"\nfolder = "/nowhere"\n',
                "problem 0: there is no folder /nowhere",
            ),
            (
                "prover",
                f'{RISK}[environment]\nkind = "command-line"\ncommand = ["nosuch"]\nfile = "a"\n',
                "command: there is no 'nosuch' in the sandbox (install it",
            ),
            (
                "package",
                '[environment]\nkind = "gymnasium"\nid = "FrozenLake-v1"\n',
                "gymnasium needs its package (pip install gymnasium)",
            ),
            (
                "server",
                '[environment]\nkind = "openenv"\nurl = "nonsense"\n',
                "spec.toml: environment.url: the URL of a server begins with http, https, ws or wss",
            ),
        )
    },
    "no tools": (
        "temperature = 1.0 }",
        'temperature = 1.0 }\nkind = "react"',
        "spec.toml: policy: react calls tools, and the world math has none: environment.kind =",
    ),
    "grader": (
        GRADER,
        '[grader]\nkind = "reasoning-gym"',
        "spec.toml: grader: reasoning-gym grades problems that it has made: data.path = ",
    ),
    "router": (
        "sampling = { temperature = 1.0 }",
        'kind = "router"\npolicies.a = { kind = "chaat" }',
        "spec.toml: policy.policies.a: unknown kind 'chaat' (did you mean 'chat'?)",
    ),
    "nobody routed": (
        "sampling = { temperature = 1.0 }",
        'kind = "router"',
        "spec.toml: policy.policies: the field is missing",
    ),
    "history": (
        "temperature = 1.0 }",
        'temperature = 1.0 }\nhistory = { kind = "truncated", token = 9 }',
        "spec.toml: policy.history.token: there is no such field (did you mean 'tokens'?)",
    ),
    "no model": (
        'kind = "echo:Echo"',
        'kind = "hf"\nmodel = "qwen2.5-coder-0.5b-instrct"',
        "did you mean 'qwen2.5-coder-0.5b-instruct'?",
    ),
    "endpoint": (
        'kind = "echo:Echo"',
        'kind = "openai"\nmodel = "m"\nbase_url = "http://127.0.0.1:9/v1"\nconnect = 1\ndeadline = 1',
        "http://127.0.0.1:9",
    ),
}


@pytest.mark.parametrize(("old", "new", "said"), BAD.values(), ids=BAD)
def test_wrong_input_is_one_line_that_says_how_to_mend_it(folder, capsys, old, new, said):
    assert old in SPEC
    Path("spec.toml").write_text(SPEC.replace(old, new, 1))
    status, _, err = command(capsys, "run", "spec.toml")
    assert said in err
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert status == 2


def test_a_fault_that_shows_late_is_one_line_and_keeps_what_is_done(folder, capsys):
    late = """
[[strategies]]
name = "tokens"
search = { kind = "beam" }
policy = { kind = "next-token" }
"""
    world = "[environment]\ncontinue_at_length = true\nkind = 'math'\n\n[grader]"
    Path("spec.toml").write_text(SPEC.replace("[grader]", world) + late)
    status, _, err = command(capsys, "run", "spec.toml")
    assert status == 2
    assert err == (
        "error: the backend gives no candidates that can be drawn (the local engine does: backend kind hf)\n"
    )
    assert Path("runs/spec/results.jsonl").read_text()


def test_a_run_that_could_not_begin_binds_nobody(folder, capsys, monkeypatch):
    """Without a sandbox nothing is spent, and the mended spec may use the same directory."""
    world = '[environment]\nkind = "python-tests"\n\n[grader]'
    Path("spec.toml").write_text(SPEC.replace("[grader]", world, 1))
    monkeypatch.setenv("PATH", str(folder))
    status, _, err = command(capsys, "run", "spec.toml")
    assert (status, len(err.splitlines())) == (2, 1)
    assert "error: there is no `bwrap` on the path (install bubblewrap" in err
    assert not Path("runs/spec/journal.jsonl").exists()
    accepted = ["--set", "sandbox=none-i-accept-the-risk", "--set", "strategies.lines.horizon=9"]
    assert command(capsys, "run", "spec.toml", *accepted)[0] == 0
    status, _, err = command(capsys, "run", "spec.toml", "--set", "seed=1")
    assert "holds a run of another spec: sandbox, seed, strategies changed" in err


def test_a_world_out_of_reach_is_an_outage_and_keeps_what_is_done(folder, capsys):
    pytest.importorskip("websockets")
    world = '[environment]\nkind = "openenv"\nurl = "http://127.0.0.1:9"\n\n[grader]'
    Path("spec.toml").write_text(SPEC.replace("[grader]", world, 1))
    status, _, err = command(capsys, "run", "spec.toml")
    assert status == 1
    assert "error: the run stopped: no connection to the OpenEnv server ws://127.0.0.1:9" in err
    assert "0 results are kept in runs/spec; the same command goes on" in err


WON = """
[model]
kind = "parrot:Parrot"
says = "Answer: (10 - 4) * (13 - 9)"

[environment]
kind = "game24"

[grader]
kind = "reward"

[data]
path = "games.jsonl"
target = ""

[[strategies]]
name = "one"
search = { kind = "rollout" }
"""


def test_a_world_that_knows_what_is_right_needs_no_targets(folder, capsys):
    Path("spec.toml").write_text(WON)
    games = [{"question": "4 9 10 13"}, {"question": "1 1 1 1"}]
    Path("games.jsonl").write_text("\n".join(map(json.dumps, games)))
    assert command(capsys, "run", "spec.toml")[0] == 0
    rows = [json.loads(line) for line in Path("runs/spec/results.jsonl").read_text().splitlines()]
    assert {row["problem"]: row["grade"] for row in rows} == {"0": "right", "1": "wrong"}
    assert command(capsys, "run", "spec.toml", "--out", "r", "--set", "grader.kind=exact")[0] == 0
    rows = [json.loads(line) for line in Path("r/results.jsonl").read_text().splitlines()]
    assert ("ungraded", "no target") in {(row["grade"], row["why"]) for row in rows}


def test_programs_are_shown_as_they_are_and_listed_in_brief(folder, capsys):
    program = "def double(x):\n    return 2 * x"
    parts = ["model.kind=parrot:Parrot", f"model.says=```python\n{program}\n```"]
    parts += ["environment.kind=python-tests", "sandbox=none-i-accept-the-risk"]
    parts += ['verifier={ kind = "echo:Flat" }']
    changes = [word for part in parts for word in ("--set", part)]
    status, out, err = command(capsys, "solve", "Double x.", *changes)
    assert (status, err) == (0, "")
    assert f"\nanswer:\n{program}\n\nthe program loads\n" in out
    assert "finished branches: def double(x): ... (8);" in out


def test_reading_needs_a_model_that_reads(folder, capsys):
    strategy = SPEC + 'verifier = { kind = "noisy-channel" }\n'
    Path("spec.toml").write_text(strategy)
    status, _, err = command(capsys, "run", "spec.toml")
    assert status == 2
    assert "noisy-channel needs a model that reads, and 'echo' only writes" in err


def test_a_missing_package_of_a_pick_comes_with_its_install_line(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    pick = 'pick = { kind = "mbr", utility = { kind = "bleu" } }'
    Path("spec.toml").write_text(SPEC.replace('pick = { kind = "vote" }', pick))
    status, _, err = command(capsys, "run", "spec.toml")
    assert status == 2
    assert err == "error: BLEU needs sacrebleu (pip install 'branchwise[mbr]')\n"
    assert not Path("runs").exists()


OWN = """
[[strategies]]
name = "own"
search = { kind = "until", search = { kind = "echo:Widest", n = 3 }, stop = { kind = "enough" } }
policy = { kind = "echo:Constant", text = "The answer is 7." }
verifier = { kind = "echo:Asking" }
rank = { kind = "echo:Length" }
"""


def test_a_user_s_own_parts_stand_wherever_a_kind_does(folder, capsys):
    start = SPEC[: SPEC.index("[[strategies]]")].replace("sampling = { temperature = 1.0 }", "")
    Path("spec.toml").write_text(start.replace("echo:Echo", "echo:Nameless") + OWN)
    status, out, _ = command(capsys, "run", "spec.toml", "--set", "data.limit=1")
    assert (status, "sums: Nameless" in out) == (0, True)
    tree = from_json(next(Path("runs/spec/trees").rglob("*.json")).read_text())
    assert [leaf.state.answer for leaf in tree.leaves()] == ["7"] * 3
    assert {leaf.score for leaf in tree.leaves()} == {float(len("The answer is 7."))}
    # What the verifier asked the model is in the journal, like everything that is paid for.
    said = Path("runs/spec/journal.jsonl").read_text().splitlines()
    assert len(said) == 1


def test_a_broken_line_of_data_is_named_by_its_number(folder, capsys):
    with Path("sums.jsonl").open("a") as file:
        file.write('{"question": "what"\n')
    status, _, err = command(capsys, "run", "spec.toml")
    assert status == 2
    assert err.startswith("error: sums.jsonl, line 13: not JSON: ")
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("module", "model", "extra"),
    [
        ("openai", 'kind = "openai"\nmodel = "m"', "branchwise[openai]"),
        ("torch", 'kind = "hf"\nmodel = "smollm2-135m-instruct"', "branchwise[hf]"),
    ],
)
def test_a_missing_extra_comes_with_its_install_line(folder, module, model, extra):
    Path("spec.toml").write_text(SPEC.replace('kind = "echo:Echo"', model))
    code = f"import sys; sys.modules[{module!r}] = None; from branchwise.cli import main; main()"
    ran = subprocess.run(
        [sys.executable, "-c", code, "run", "spec.toml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2
    assert f"pip install '{extra}'" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(folder):
    """The model stops for ever after some answers; the interrupt comes when they are written."""
    Path("spec.toml").write_text(SPEC.replace("echo:Echo", "echo:Stalling"))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    job = subprocess.Popen(
        [sys.executable, "-m", "branchwise.cli", "run", "spec.toml"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # A shell's background job ignores interrupts, and so would whatever it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  (no threads)
    )
    assert "stalled" in job.stdout.readline()
    job.send_signal(signal.SIGINT)
    _, err = job.communicate(timeout=20)
    assert job.returncode == 130
    kept = len(Path("runs/spec/results.jsonl").read_text().splitlines())
    assert kept > 0
    assert f"stopped; {kept} results are kept in runs/spec" in err
    assert "go on with: branchwise run spec.toml" in err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("seed", "--set seed: not of the form a.b=c"),
        ("strategies.nine.horizon=1", "the list has no entry 'nine'"),
        ("name.first=1", "there is no table 'name' in the spec"),
    ],
)
def test_a_wrong_change_is_refused(folder, capsys, change, said):
    status, _, err = command(capsys, "run", "spec.toml", "--set", change)
    assert (status, said in err) == (2, True)


def test_a_question_is_solved(folder, capsys):
    parts = ["--set", 'model.kind="echo:Echo"', "--set", 'verifier.kind="echo:Flat"']
    status, out, err = command(capsys, "solve", "What is 2 + 3?", "--tree", "t.json", *parts)
    assert (status, err) == (0, "")
    tree = from_json(Path("t.json").read_text())
    votes = Counter(leaf.state.answer for leaf in tree.leaves())
    ((answer, count),) = votes.most_common(1)
    assert f"answer: {answer}\n" in out
    assert f"{answer} ({count})" in out


def test_a_question_that_cannot_be_judged_says_why(folder, capsys):
    status, _, err = command(capsys, "solve", "What is 2 + 3?", "--set", 'model.kind="echo:Echo"')
    assert status == 1
    assert "verifier 'likelihood'" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rnu"], 'Did you mean "run"?'),
        (["run"], "--spec requires an argument"),
        (["run", "spec.toml", "--ste", "a=b"], "Did you mean --set?"),
        (["run", "nope.toml"], "nope.toml: cannot read the spec: No such file or directory"),
        (["solve", "?", "--search", "baem"], "(did you mean 'beam'?)"),
    ],
)
def test_wrong_arguments_are_one_line(folder, capsys, arguments, said):
    status, _, err = command(capsys, *arguments)
    assert status == 2
    assert said in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("kind", ["a-star", "refine", "transform", "ab-mcts", "beam-decoding"])
def test_a_question_may_be_searched_in_other_ways(folder, capsys, kind):
    parts = ["--set", "model.kind=parrot:Parrot"]
    status, out, err = command(capsys, "solve", "What is 1 + 2?", "--search", kind, *parts)
    assert (status, err) == (0, "")
    assert any(f"answer: {number}\n" in out for number in (3, 4))


def test_models_are_listed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    status, out, _ = command(capsys, "models")
    assert status == 0
    assert "smollm2-135m-instruct" in out


def test_several_verifiers_can_judge_together(folder, capsys):
    strategy = """
[[strategies]]
name = "blended"
search = { kind = "best-of-n", n = 3 }
verifier = [{ kind = "arithmetic" }, { kind = "echo:Flat" }]
rank = { kind = "blend", of = { arithmetic = 1.0, verifier = 2.0 } }
"""
    Path("spec.toml").write_text(SPEC + strategy)
    assert command(capsys, "run", "spec.toml")[0] == 0
    tree = from_json(Path("runs/spec/trees/blended/0.json").read_text())
    assert all(set(leaf.verdicts) == {"arithmetic", "verifier"} for leaf in tree.leaves())
    misnamed = strategy.replace("arithmetic = 1.0", "aritmetic = 1.0")
    Path("spec.toml").write_text(SPEC + misnamed)
    status, _, err = command(capsys, "run", "spec.toml", "--out", "other")
    assert status == 2
    assert "strategies.3.rank.of: no verifier is called 'aritmetic' (did you mean" in err


REFINED = """
[[strategies]]
name = "refined"
search = { kind = "refine", rounds = 2, take = "last" }
policies.revise = { kind = "reviser", revision = "{prompt} Again!", sampling = { temperature = 0.0 } }

[[strategies]]
name = "chosen"
search = { kind = "transform", n = 3 }
policies.transform = { kind = "chooser", template = "Which of {count}?" }
"""


def test_searches_ask_further_policies_by_name(folder, capsys):
    Path("spec.toml").write_text(SPEC[: SPEC.index("[[strategies]]")] + REFINED)
    status, out, _ = command(capsys, "run", "spec.toml")
    assert status == 0
    rows = [json.loads(line) for line in Path("runs/spec/results.jsonl").read_text().splitlines()]
    # At temperature 0 the model adds rightly, so that every first draft is mended.
    assert all(row["grade"] == "right" for row in rows if row["strategy"] == "refined"), out


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ('kind = "reviser", revison = "x"', "strategies.0.policies.revise.revison: there is no such field (did you mean 'revision'?)"),
        ('kind = "revisor"', "strategies.0.policies.revise: unknown kind 'revisor' (did you mean 'reviser'?)"),
    ],
)  # fmt: skip
def test_a_wrong_policy_is_named_with_its_place(folder, capsys, wrong, said):
    spec = SPEC[: SPEC.index("[[strategies]]")] + REFINED.replace('kind = "reviser"', wrong)
    Path("spec.toml").write_text(spec)
    status, _, err = command(capsys, "run", "spec.toml")
    assert status == 2
    assert said in err


def test_verifiers_of_one_kind_are_told_apart_by_names(folder, capsys):
    strategies = SPEC[SPEC.index("[[strategies]]") :].split("[[strategies]]")[1]
    start = SPEC[: SPEC.index("[[strategies]]")]
    two = 'verifier = { whole = { kind = "echo:Flat" }, mean = { kind = "echo:Flat" } }\n'
    Path("spec.toml").write_text(two + start + "[[strategies]]" + strategies)
    assert command(capsys, "run", "spec.toml")[0] == 0
    tree = from_json(next(Path("runs/spec/trees").rglob("*.json")).read_text())
    assert all(
        list(leaf.verdicts) == ["whole", "mean"] for leaf in tree.children if not leaf.failure
    )
    listed = 'verifier = [{ kind = "likelihood" }, { kind = "likelihood" }]\n'
    Path("spec.toml").write_text(listed + start + "[[strategies]]" + strategies)
    status, _, err = command(capsys, "run", "spec.toml", "--out", "other")
    assert status == 2
    assert "verifier: two verifiers would be called 'likelihood': name them" in err
