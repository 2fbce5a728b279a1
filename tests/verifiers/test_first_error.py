"""First errors against numbers made by hand, and the sweep against every threshold there is."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchwise import SpecError
from branchwise.verifiers.first_error import (
    Marked,
    best_threshold,
    compared,
    first_error,
    measured,
    read_marked,
)


def test_numbers_made_by_hand():
    # Four answers with an error, one found; two without, one passed: 1/4, 1/2, 2·(1/8)/(3/4) = 1/3.
    said = compared([1, 0, -1, 2, -1, 0], [1, 2, 0, 3, -1, -1])
    assert (said.wrong, said.found, said.right, said.passed) == (4, 1, 2, 1)
    assert (said.on_wrong, said.on_right) == (0.25, 0.5)
    assert said.f1 == pytest.approx(1 / 3)


def test_a_judge_that_finds_nothing_or_only_errors_is_worth_nothing():
    assert compared([-1, -1], [0, -1]).f1 == 0.0
    assert compared([0, 0], [0, -1]).f1 == 0.0
    assert compared([0, 1], [1, -1]).f1 == 0.0  # a sum of 0


def test_a_kind_that_is_missing_has_no_number():
    alone = compared([-1], [-1])
    assert alone.on_right == 1.0
    assert math.isnan(alone.on_wrong)
    assert math.isnan(alone.f1)


def test_the_threshold_itself_is_no_error():
    assert first_error([0.5, 0.4], 0.5) == 1
    assert first_error([0.5, 0.5], 0.5) == -1
    assert first_error([], 0.5) == -1


marked = st.lists(
    st.lists(st.integers(0, 4), min_size=1, max_size=4).flatmap(
        lambda steps: st.tuples(st.just(steps), st.integers(-1, len(steps) - 1))
    ),
    min_size=2,
    max_size=6,
).filter(lambda rows: len({label == -1 for _, label in rows}) == 2)


@given(marked)
def test_the_sweep_finds_the_best_of_all_thresholds(rows):
    scores, labels = zip(*rows, strict=True)
    every = [measured(scores, labels, t / 4).f1 for t in range(-2, 22)]
    threshold = best_threshold(scores, labels)
    assert measured(scores, labels, threshold).f1 == pytest.approx(max(every))
    below = max((one for steps in scores for one in steps if one < threshold), default=-1)
    lower = [measured(scores, labels, t / 4).f1 for t in range(-2, 4 * below + 1)]
    assert all(f1 < max(every) for f1 in lower)


@pytest.mark.parametrize("high", [0.5, 1.7e308, 5e-324])
def test_neighbouring_and_huge_scores_are_told_apart(high):
    low = math.nextafter(high, -math.inf)
    scores, labels = [[high, low], [high, high]], [1, -1]
    threshold = best_threshold(scores, labels)
    assert math.isfinite(threshold)
    assert measured(scores, labels, threshold).f1 == 1


def test_labels_of_no_step_are_refused():
    with pytest.raises(SpecError, match="a label is 1, and the answer has 1 steps"):
        best_threshold([[0.1], [0.2]], [1, -1])
    with pytest.raises(SpecError, match="2 answers have scores, but 1 labels"):
        best_threshold([[0.1], [0.2]], [0])


def test_a_threshold_needs_both_kinds():
    with pytest.raises(SpecError, match="none is without"):
        best_threshold([[0.1]], [0])
    with pytest.raises(SpecError, match=r"none is with$"):
        best_threshold([[0.1]], [-1])


def test_files_of_processbench_are_read(tmp_path):
    row = {"id": "gsm8k-0", "problem": "1 + 1?", "steps": ["1 + 1 = 3.", "So 3."], "label": 0}
    right = row | {"label": -1}
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(row)}\n\n{json.dumps(right)}\n")
    (tmp_path / "a.json").write_text(json.dumps([row, right]))
    steps = ("1 + 1 = 3.", "So 3.")
    for name in ("a.jsonl", "a.json"):
        both = read_marked(tmp_path / name)
        assert both == [Marked("1 + 1?", steps, 0), Marked("1 + 1?", steps, -1)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "a.jsonl: not JSON"),
        ("[]", "a.jsonl, entry 1: not a JSON object"),
        ('{"steps": ["a"], "label": 0}', "entry 1: `problem` has to be a text"),
        ('{"problem": "?", "steps": [1], "label": 0}', "`steps` has to be a list of texts"),
        ('{"problem": "?", "steps": ["a"], "label": 1}', "the index of a step, or -1"),
        ('{"problem": "?", "steps": ["a"]}', "the index of a step, or -1"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, said):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(SpecError) as error:
        read_marked(tmp_path / "a.jsonl")
    assert said in str(error.value)


def test_what_is_no_list_or_not_there_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(SpecError, match="not a list of answers"):
        read_marked(tmp_path / "a.json")
    with pytest.raises(SpecError, match="cannot be read"):
        read_marked(tmp_path / "none.jsonl")
