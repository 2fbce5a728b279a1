import gzip
import json

import pytest

from branchwise import SpecError
from branchwise.runs.dataset import Data

ROW = {
    "id": "a/1",
    "text": "Add.",
    "tests": ["assert f(1) == 2", "assert f(2) == 3"],
    "name": "f",
    "braces": "{text}",
}


def task(tmp_path, **fields):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROW))
    return Data(path=str(path), **{"prompt": "text", "target": None, **fields}).tasks()[0]


def test_texts_are_filled_in_from_fields_entries_and_lists(tmp_path):
    asked = task(tmp_path, prompt="{text}\n{tests.0}", target="{tests}\ncheck({name})")
    assert asked.prompt == "Add.\nassert f(1) == 2"
    assert asked.target == "assert f(1) == 2\nassert f(2) == 3\ncheck(f)"
    assert task(tmp_path, prompt="{braces} {tests.1}").prompt == "{text} assert f(2) == 3"


def test_policies_see_what_is_named_and_no_more(tmp_path):
    assert task(tmp_path, meta=["name"]).meta == {"name": "f", "id": "0"}
    shown = task(tmp_path, meta={"tests": "tests.0"}, id="id").meta
    assert shown == {"tests": "assert f(1) == 2", "id": "a/1"}


@pytest.mark.parametrize("name", ["tests.2", "tests.-1", "text.0", "nothing"])
def test_what_is_not_there_is_named(tmp_path, name):
    with pytest.raises(SpecError, match=f"line 1: no field '{name}' for data.target"):
        task(tmp_path, target=name)


def test_a_packed_file_is_read_as_it_is(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(ROW).encode()))
    assert Data(path=str(path), prompt="text", target="name").tasks()[0].target == "f"
    path.write_bytes(b"not packed")
    with pytest.raises(SpecError, match="cannot be read: Not a gzipped file"):
        Data(path=str(path)).tasks()
