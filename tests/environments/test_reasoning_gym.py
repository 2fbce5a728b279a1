import json

import pytest

from branchwise.core.errors import SpecError
from branchwise.environments.adapters.reasoning_gym import tasks

gym = pytest.importorskip("reasoning_gym")


def test_problems_are_those_of_the_family():
    made = tasks("chain_sum", 3, 5, min_terms=2, max_terms=2)
    family = gym.create_dataset("chain_sum", size=3, seed=5, min_terms=2, max_terms=2)
    assert [(task.prompt, task.target) for task in made] == [
        (entry["question"], entry["answer"]) for entry in family
    ]
    options = {"min_terms": 2, "max_terms": 2}
    assert [task.meta for task in made] == [
        {
            "id": f"chain_sum-5-{i}",
            "reasoning_gym": {
                "name": "chain_sum",
                "size": 3,
                "seed": 5,
                "options": options,
                "index": i,
            },
        }
        for i in range(3)
    ]
    assert json.loads(json.dumps([dict(task.meta) for task in made])) == [t.meta for t in made]


def test_problems_do_not_depend_on_the_hash_seed(monkeypatch):
    def made(seed):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        return tasks("ransom_note", 3)

    assert made("1") == made("2")


def test_a_family_without_answers_has_empty_targets():
    [task] = tasks("graph_color", 1)
    assert task.target == ""
    assert "answer" not in json.dumps(dict(task.meta))


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("no_family", {}, "'no_family' not registered"),
        ("chain_sum", {"no_option": 1}, "no_option"),
        ("../x", {}, "no name of a family"),
    ],
)
def test_what_cannot_be_made_says_why(name, options, why):
    with pytest.raises(SpecError, match=why):
        tasks(name, 1, **options)
