"""Choosing again in saved trees: tables made by hand, and all choices of N one by one."""

import json
import shutil
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stepwise import SPEC, TWO, UNJUDGED, Replies, command, made, rows

from branchwise import Best, Node, State, Task, Vote
from branchwise.runs.samples import End, Samples, ends


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


# Of 4 problems: what the run chose by the highest score of a step is right in one. The least score
# mends the first two; two gained and none lost is p = 2 / 4.
MIN = [
    ["best of 4", "as run", "25.0%", "5 to 70", "", "", "", ""],
    ["", "again", "75.0%", "30 to 95", "+50.0", "+1 to +99", "0.5", "2"],
]


def test_another_aggregation_chooses_again(run, capsys):
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    asked = ["--of", "prm", "--aggregate", "min", "--strategy", "best of 4"]
    status, out, err = command(capsys, "rescore", run, *asked)
    assert (status, err) == (0, "")
    page = run / "rescored-min-of-prm.md"
    assert rows(page) == MIN
    assert "75.0%" in out
    assert str(page) in out
    assert {file: file.read_bytes() for file in before} == before
    assert "p: McNemar, exact" in page.read_text()


# The votes of each answer by hand, with the least score of the steps as weight in the last.
PICKS = {
    ("best",): "25.0%",
    ("vote",): "0.0%",  # 2, then a tie where 2 came first, then 2
    ("weighted-vote",): "0.0%",  # .9 to 1.55 | 1.2 to 1.2, where 2 came first | .9 to 1.9
    ("weighted-vote", "--aggregate", "min"): "50.0%",  # .8 to .9 | 1.0 to .5 | .9 to .3
    ("vote", "--aggregate", "min", "--set", "weight=score"): "50.0%",
    ("vote", "--aggregate", "prod", "--set", "weight=score"): "75.0%",  # .72 to .645 | ... | ...
    ("mbr", "--set", "weight=exp"): "0.0%",  # e^.9 to e^.95 + e^.6 | a near tie | e^.9 to 3 of 2
    ("cluster",): "0.0%",
}


@pytest.mark.parametrize("pick", PICKS)
def test_another_pick_chooses_again(run, capsys, pick):
    status, _, err = command(capsys, "rescore", run, "--strategy", "best of 4", "--pick", *pick)
    assert (status, err) == (0, "")
    (page,) = run.glob("rescored-*.md")
    assert rows(page)[1][2] == PICKS[pick]


def test_at_other_n_it_is_the_expectation(run, capsys):
    asked = ["--of", "prm", "--aggregate", "min", "--strategy", "best of 4", "--at", "1,2,4,9"]
    assert command(capsys, "rescore", run, *asked)[0] == 0
    at = rows(run / "rescored-min-of-prm.md", "best of 4: of N samples")
    assert at == [
        ["1", "4", "25.0%", "25.0%", "25.0%", "25.0%"],
        # One of two is right in 3, 5, 3 and 0 of 6 choices, and then it is always the best; by
        # votes of two, which are one each, a choice of equal weight is a draw.
        ["2", "4", "45.8%", "25.0%", "45.8%", "45.8%"],
        ["4", "4", "75.0%", "12.5%", "75.0%", "50.0%"],
    ]


def test_what_cannot_be_graded_does_not_count(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    run = made(tmp_path, SPEC.replace('"exact"', '"stepwise:Unsure"'))
    assert command(capsys, "rescore", run, "--aggregate", "min", "--at", "4")[0] == 0
    page = run / "rescored-min-of-prm.md"
    old, new = rows(page)
    assert (old[2], new[2]) == ("100.0%", "100.0%")
    assert (old[3], new[3]) == ("21 to 100", "44 to 100")
    assert new[4] == "+0.0"  # of the one problem that both have a grade of
    text = page.read_text()
    assert "best of 4, as run: 3 could not be graded" in text
    assert "best of 4, again: 1 could not be graded" in text
    # Any right: 3 of the 3 that have a right answer; the fourth has only what nobody can grade,
    # so it counts neither way. The majority is 2 but for the draw, half of which has a grade.
    assert rows(page, "best of 4: of N")[0][2:5] == ["100.0%", "100.0%", "100.0%"]


def test_votes_are_weighted_by_exp_where_scores_are_negative(run, capsys):
    asked = ["--strategy", "two judges", "--of", "low", "--pick", "weighted-vote"]
    assert command(capsys, "rescore", run, *asked)[0] == 0
    page = (run / "rescored-score-of-low-weighted-vote.md").read_text()
    assert "two judges: votes are weighted by exp(score)." in page


def test_strategies_without_the_verifier_are_left_out(run, capsys):
    assert command(capsys, "rescore", run, "--of", "prm", "--aggregate", "last")[0] == 0
    found = rows(run / "rescored-last-of-prm.md")
    assert [row[0] for row in found] == ["best of 4", "", "two judges", ""]


def test_a_vote_needs_no_verifier(run, capsys):
    status, _, err = command(capsys, "rescore", run, "--strategy", "one", "--pick", "vote")
    assert (status, err) == (0, "")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("", "nothing would change: give --aggregate, --of or --pick"),
        ("--aggregate min", "run: several verifiers have judged: prm, low; name one by --of"),
        ("--of pmr", "run: no verifier is called 'pmr' (did you mean 'prm'?)"),
        ("--of prm --aggregate mni", 'Did you mean "min"?'),
        ("--pick vot", "--pick: unknown kind 'vot' (did you mean 'vote'?)"),
        ("--pick vote --set wieght=exp", "--set wieght: there is no such field (did you mean 'weight'?)"),
        ("--set weight=exp", "--set weight: these are fields of a pick: name one by --pick"),
        ("--pick vote --strategy oen", "no results of a strategy 'oen' (did you mean 'one'?)"),
        ("--pick best --strategy one", "no verifier has judged anything of 'one', so there are no"),
        ("--aggregate min --strategy one", "run: no verifier has judged anything there"),
        ("--of prm --strategy one --strategy two+judges", "'prm' has judged nothing of 'one'"),
        ("--pick vote --at 1,x", "--at 1,x: 'x' is no number of samples"),
        ("--pick vote --at 9", "--at 9: no problem has so many samples"),
        ("--pick cluster --set tests=prn", "no verifier is called 'prn'"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line(run, capsys, asked, said):
    words = [word.replace("+", " ") for word in asked.split()]
    status, _, err = command(capsys, "rescore", run, *words)
    assert status == 2
    assert said in err
    assert len(err.splitlines()) == 1


def spoiled(run, change):
    tree = run / "trees" / "best_of_4" / "1.json"
    table = json.loads(tree.read_text())
    change(table)
    tree.write_text(json.dumps(table))


FAULTS = {
    "no verdict": (
        lambda run: spoiled(run, lambda t: t["nodes"][2]["verdicts"].update(old=t["nodes"][2]["verdicts"].pop("prm"))),
        "trees/best_of_4/1.json: node (1,) has no verdict of 'prm'",
    ),
    "no number": (
        lambda run: spoiled(run, lambda t: t["nodes"][2]["verdicts"]["prm"].update(steps=[1e999])),
        "trees/best_of_4/1.json: what 'prm' says of node (1,) comes to inf",
    ),
    "no nodes": (
        lambda run: spoiled(run, lambda t: t.pop("nodes")),
        "trees/best_of_4/1.json: cannot be read: not a saved tree: KeyError",
    ),
    "half a tree": (
        lambda run: (run / "trees/best_of_4/1.json").write_text('{"format": "bran'),
        "trees/best_of_4/1.json: cannot be read: not a saved tree",
    ),
    "no tree": (
        lambda run: (run / "trees/best_of_4/1.json").unlink(),
        "trees/best_of_4/1.json: cannot be read",
    ),
    "no spec": (lambda run: (run / "spec.json").unlink(), "run holds no run: there is no spec.json"),
    "no results": (lambda run: (run / "results.jsonl").unlink(), "run has no results yet"),
    "half a spec": (lambda run: (run / "spec.json").write_text("{"), "spec.json: cannot be read"),
    "no spec but a list": (
        lambda run: (run / "spec.json").write_text("[]"),
        "spec.json: cannot be read: not an object",
    ),
    "a wrong result": (
        lambda run: (run / "results.jsonl").write_text("{}\n"),
        "results.jsonl, line 1: not a result",
    ),
    "a grader that asks": (
        lambda run: (run / "spec.json").write_text(
            (run / "spec.json").read_text().replace('"exact"', '"stepwise:Asker"')
        ),
        "the grader of this run asks a model",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_run_is_named(run, capsys, fault):
    change, said = FAULTS[fault]
    change(run)
    asked = ["--strategy", "best of 4", "--aggregate", "min"]
    status, _, err = command(capsys, "rescore", run, *asked)
    assert status == 2
    assert said in err
    assert len(err.splitlines()) == 1


def test_a_run_that_still_goes_on_is_only_read(run, capsys):
    results = run / "results.jsonl"
    results.write_bytes(results.read_bytes() + b'{"strategy": "best of')
    asked = ["--strategy", "best of 4", "--aggregate", "min"]
    assert command(capsys, "rescore", run, *asked)[0] == 0
    assert results.read_bytes().endswith(b'"best of')


def test_nodes_that_a_cut_search_left_unjudged_stay_last(run, capsys):
    def unjudge(table):
        table["nodes"][2] |= {"verdicts": {}, "score": None}  # the answer of the least steps

    spoiled(run, unjudge)
    assert command(capsys, "rescore", run, "--strategy", "best of 4", "--aggregate", "min")[0] == 0
    # The third answer of that problem is right, too, and now the best.
    assert rows(run / "rescored-min-of-prm.md") == MIN


# At other N: the picks themselves in trees of all choices.

sample = st.one_of(
    st.tuples(st.sampled_from(["a", "b", "c", None]), st.sampled_from([0.0, 0.25, 0.5])),
    st.just("cut"),
    st.just("failed"),
)


def tree(chosen, grades):
    root = Node(Task("?"), State())
    children = []
    for i, one in enumerate(chosen):
        if isinstance(one, str):
            child = Node(root.task, State(cut=one == "cut"), root, i)
            child.score = -1.0
            if one == "failed":
                child.failed("an outage")
        else:
            answer, score = one
            child = Node(root.task, State(answer=answer, done=True, reward=score), root, i)
        children.append(child)
    root.adopt(children)
    right = [End(node, grades.get(node.state.answer, False)) for node in ends(root)]
    return root, right


@given(
    st.lists(sample, min_size=1, max_size=5),
    st.fixed_dictionaries({name: st.sampled_from([True, False, None]) for name in "abc"}),
    st.data(),
)
def test_estimates_are_what_the_picks_do(samples, grades, data):
    k = data.draw(st.integers(1, len(samples)))
    if all(one == "failed" for one in samples):
        return  # nothing has grown: no run has such a tree
    _, own = tree(samples, grades)
    assert len(own) == len(samples)
    known = Samples.of(own)
    for pick, share in (
        (Best(), known.best(k)),
        (Vote(), known.majority(k)),
        (Vote(weight="score"), known.weighted(k, "score")),
        (Vote(weight="exp"), known.weighted(k, "exp")),
    ):
        words = []
        for chosen in permutations(samples, k):
            root, _ = tree(chosen, grades)
            node = pick(root)
            words.append(grades.get(node.state.answer, False) if node.finished else False)
        assert share.right == pytest.approx(sum(word is True for word in words) / len(words))
        assert share.graded == pytest.approx(1 - sum(word is None for word in words) / len(words))
    marks = [grades.get(one[0], False) if not isinstance(one, str) else False for one in samples]
    choices = list(permutations(marks, k))
    right = sum(any(mark is True for mark in own) for own in choices) / len(choices)
    lost = sum(None in own and True not in own for own in choices) / len(choices)
    assert known.any(k).right == pytest.approx(right)
    assert known.any(k).graded == pytest.approx(1 - lost)
