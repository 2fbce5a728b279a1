"""The labels and the vote of DiVeRSe, by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchwise.agents.chat import Chat
from branchwise.agents.router import Router
from branchwise.backends.scripted import Scripted
from branchwise.core.types import Verdict
from branchwise.environments.math import Math
from branchwise.search.best_of_n import BestOfN
from branchwise.search.vote import Vote
from branchwise.solve import solve
from branchwise.verifiers.aggregate import Aggregate
from branchwise.verifiers.step_aware import intermediate_result, matched_steps

T, F = True, False


def path(*results):
    return [f"This gives 1 + 1 = {result}." for result in results]


def labels(*paths, **more):
    """The labels of paths of which those that begin with True are right."""
    return matched_steps([p[1:] for p in paths], [p[0] for p in paths], **more)


def test_a_wrong_path_is_right_up_to_a_result_that_no_right_path_has():
    assert labels(
        [T, *path(7, 9, 18)],
        [T, *path(9, 18)],
        [F, *path(7, 9, 11)],
        [F, *path(7, 9, 8, 18)],
        [F, *path(8, 7, 9)],
    ) == [(T, T, T), (T, T), (T, T, F), (T, T, F, F), (F, F, F)]


def test_results_of_several_right_paths_count_together():
    assert labels([T, *path(1, 2)], [T, *path(3, 2)], [F, *path(3, 1, 5)])[-1] == (T, T, F)


def test_steps_without_a_result_go_with_their_neighbours():
    good = [T, *path(7, 18)]
    talk = "Let us see."
    assert labels(good, [F, talk, *path(7), talk, *path(8), talk])[1] == (T, T, T, F, F)
    assert labels(good, [F, talk, *path(8, 7)])[1] == (F, F, F)
    assert labels(good, [F, talk, talk])[1] == (F, F)
    assert labels([T, talk], [F, talk]) == [(T,), (F,)]


def test_without_a_right_path_nothing_is_right():
    assert labels([F, *path(7, 9)], [F, *path(7)]) == [(F, F), (F,)]
    assert labels() == []
    assert labels([T], [F]) == [(), ()]


def test_other_ways_to_compare_steps():
    first = str.split
    assert labels([T, "red a"], [F, "red b", "blue a"], result=lambda s: first(s)[0]) == [
        (T,),
        (T, F),
    ]


def test_each_path_needs_a_word_on_whether_it_is_right():
    with pytest.raises(ValueError, match="shorter"):
        matched_steps([path(1), path(2)], [T])


@given(st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 3), max_size=5)), max_size=6))
def test_labels_are_a_beginning_and_right_paths_are_right(drawn):
    known = {r for right, results in drawn if right for r in results}
    for (right, results), marks in zip(
        drawn, labels(*([right, *path(*results)] for right, results in drawn)), strict=True
    ):
        # How many steps are right, counted without looking at the labels before.
        lost = [i for i, r in enumerate(results) if r not in known and not right]
        count = min(lost, default=len(results))
        assert marks == (T,) * count + (F,) * (len(results) - count)


@pytest.mark.parametrize(
    ("step", "result"),
    [
        ("5 * 2 = <<5*2=10>>10 eggs.", "10"),
        ("So 12 - 3 = 9 - and 9 * 2 = $18.00 a day", "18"),
        ("It costs 1,000 + 234.50 = 1,234.50 dollars", "1234.5"),
        ("x = -4", "-4"),
        ("#### 18", "18"),
        ("3 * 4 = 12, so the answer is 13.", "13"),
        ("\\boxed{\\frac{6}{8}}", "3/4"),
        ("20 of 40 = 50%", "50%"),
        ("x = 3 * 4", None),
        ("x = 12 + 1 apples", None),
        ("12 = 4 + 8", None),
        ("There are 12 of them", None),
        ("x = y", None),
        ("a == b", None),
        ("", None),
        ("=" * 100_000, None),
    ],
)
def test_what_a_step_comes_to(step, result):
    assert intermediate_result(step) == result


PATHS = {
    # For each of two prompts three answers, and what a verifier says of their steps.
    "Short.": [("5", (0.9, 0.8)), ("6", (0.6, 0.9)), ("6", (0.5, 0.5))],
    "Long.": [("5", (0.7,)), ("6", (0.4, 1.0)), ("7", (1.0, 0.2))],
}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("how", "sums"),
    [
        # Vote by prod: 5 has 0.72 + 0.7, 6 has 0.54 + 0.25 + 0.4, 7 has 0.2.
        ("prod", {"5": 1.42, "6": 1.19, "7": 0.2}),
        # By last: 5 has 0.8 + 0.7, 6 has 0.9 + 0.5 + 1.
        ("last", {"5": 1.5, "6": 2.4, "7": 0.2}),
        ("min", {"5": 1.5, "6": 1.5, "7": 0.2}),
        ("mean", {"5": 0.85 + 0.7, "6": 0.75 + 0.5 + 0.7, "7": 0.6}),
    ],
)
async def test_the_vote_of_two_prompts_and_three_samples_is_the_formula(how, sums):
    told = {name: iter(answers) for name, answers in PATHS.items()}
    steps = {}

    def reply(request, seed):
        answer, scores = next(told[request.asked.splitlines()[-1]])
        text = f"Path {len(steps)}. The answer is {answer}."
        steps[text] = scores
        return text

    class StepScores:
        async def score(self, nodes):
            return [Verdict(scores[-1], steps=scores) for scores in (steps[v.text] for v in nodes)]

    model = Scripted(reply)
    prompts = {name: Chat(backend=model, template="{prompt}\n" + name) for name in PATHS}
    answer = await solve(
        "?",
        policy=Router(policies=prompts),
        controller=BestOfN(n=6, pick=Vote(weight="score")),
        environment=Math(),
        verifier={"prm": StepScores()},
        rank=Aggregate(of="prm", how=how),
    )
    found = {}
    for leaf in answer.root.leaves():
        found[leaf.state.answer] = found.get(leaf.state.answer, 0) + leaf.score
    assert found == pytest.approx(sums)
    best = max(sums.values())
    assert answer.value in {said for said, total in sums.items() if total == pytest.approx(best)}
    assert sorted(request.asked for request in model.requests) == ["?\nLong.", "?\nShort."]
