import os
import subprocess
import sys
from pathlib import Path

import pytest

from branchwise.cli import main
from branchwise.core.errors import SpecError
from branchwise.runs.lock import locked

SPEC = """
data = { path = "sums.jsonl" }
model = { kind = "echo:Echo" }
strategies = [{ name = "one", search = { kind = "rollout" } }]
"""
HOLD = """
import sys
from pathlib import Path
from branchwise.runs.lock import locked
with locked(Path(sys.argv[1])):
    print("in", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_kept_out_until_the_first_has_gone(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(SpecError, match=rf"another process \({other.pid}\) is writing to"):
            locked(tmp_path).__enter__()
        other.kill()  # it never gets to tidy up
        other.wait()
    with locked(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
    with locked(tmp_path):
        pass


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SpecError, match="cannot write to"):
        locked(tmp_path / "file" / "run").__enter__()


def test_a_run_is_kept_out_of_a_directory_where_another_works(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    Path("sums.jsonl").write_text('{"question": "What is 1 + 2?", "answer": "3"}')
    Path("spec.toml").write_text(SPEC)
    with locked(tmp_path / "run"), pytest.raises(SystemExit) as exit_:
        main(["run", "spec.toml", "--out", "run"])
    out, err = capsys.readouterr()
    assert (exit_.value.code, out) == (2, "")
    assert "is writing to run (wait for it, or give another directory with --out)" in err
    assert [file.name for file in Path("run").iterdir()] == ["lock"]
