from decimal import Decimal

import anyio
import pytest
from worlds import Enumerate, Judge

from branchwise import (
    BackendError,
    Node,
    SearchFailed,
    SpecError,
    State,
    Step,
    Task,
    Usage,
    Verdict,
    VerifierError,
    WorldError,
    from_json,
    to_json,
)
from branchwise.core.aio import gather, run_sync
from branchwise.core.grow import Grow, seed_of
from branchwise.testing import Alphabet, Word

pytestmark = pytest.mark.anyio


def root():
    return Node(Task("a word?"), State(""))


def grow(policy=None, world=None, verifier=None, **more):
    verifiers = {} if verifier is None else {"judge": verifier}
    return Grow({"policy": policy or Enumerate()}, world or Word(3), verifiers, **more)


async def test_children_come_in_the_order_of_their_parents():
    start = root()
    first = await grow()([start], 3)
    second = await grow()(first, [2, 0, 1])
    assert [child.path for child in second] == [(0, 0), (0, 1), (2, 0)]
    assert [child.text for child in second] == ["aa", "ab", "ca"]


async def test_a_further_expansion_goes_on_where_the_last_one_stopped():
    start = root()
    verb = grow()
    await verb([start], 2)
    more = await verb([start], 2)  # one letter is left: fewer steps than were asked for
    assert [child.path for child in more] == [(2,)]
    assert [child.text for child in start.children] == ["a", "b", "c"]
    assert start.promised == 4


async def test_seeds_follow_from_the_run_and_the_path_alone():
    seen = {}

    class Notes(Enumerate):
        async def propose(self, node, seeds):
            seen[node.path] = list(seeds)
            return await super().propose(node, seeds)

    start = root()
    children = await grow(Notes(), seed=7)([start], 2)
    await grow(Notes(), seed=7)(children, 2)
    assert seen[1,] == [seed_of(7, (1, 0)), seed_of(7, (1, 1))]
    everything = [seed for seeds in seen.values() for seed in seeds]
    assert len(set(everything)) == len(everything)
    assert all(0 <= seed < 2**48 for seed in everything)


async def test_the_horizon_cuts():
    start = root()
    (child,) = await grow(world=Word(9), horizon=1)([start])
    assert child.state.cut
    assert child.done
    assert not child.finished


async def test_what_grows_under_a_node_that_is_done_is_a_new_draft():
    verb = grow(Enumerate("ab"), world=Word(2))
    (b,) = [v for v in await verb([root()], 2) if v.text == "b"]
    (draft, _) = await verb([b], 2)
    (first, _) = await verb([draft], 2)
    assert (draft.text, draft.done, first.text, first.start) == ("ba", True, "a", draft)
    (again, _) = await verb([first], 2)
    assert (again.text, again.state.answer, again.finished) == ("aa", "aa", True)
    assert [step.text for step in again.steps] == ["a", "a"]


async def test_another_policy_is_asked_by_name():
    verb = Grow({"policy": Enumerate("a"), "revise": Enumerate("z")}, Word(3), {})
    (child,) = await verb([root()], by="revise")
    assert child.text == "z"
    with pytest.raises(SpecError, match="no policy is called 'critic'; there is policy, revise"):
        await verb([root()], by="critic")


@pytest.mark.parametrize("widths", [[1], [1, 1, 1], [1, -1], -1])
async def test_widths_that_do_not_fit_are_refused(widths):
    with pytest.raises(SpecError, match="widths"):
        await grow()([root(), root()], widths)


async def test_a_parser_that_raises_names_itself_and_its_text():
    class Parser:
        async def propose(self, node, seeds):
            return [Step({"b": "x"}[node.task.prompt])]

    start = root()
    (child,) = await grow(Parser())([start])
    assert child.failure == "policy 'policy' raised KeyError: 'a word?'"


async def test_too_many_steps_are_an_error():
    class Chatty:
        async def propose(self, node, seeds):
            return [Step("a")] * 3

    (child,) = await grow(Chatty())([root()])
    assert child.failure == "policy 'policy' gave 3 steps for 1 seeds"


class Rough(Word):
    """A world in which `b` is an accident and `c` a bug; its steps run side by side."""

    instant = False

    async def step(self, state, action):
        await anyio.lowlevel.checkpoint()
        if action.text == "b":
            raise WorldError("an accident")
        if action.text == "c":
            raise ZeroDivisionError("oops")
        return await super().step(state, action)


async def test_a_world_s_fault_fails_one_branch():
    a, b, c = await grow(world=Rough(3))([root()], 3)
    assert a.failure is None
    assert b.failure == "an accident"
    assert c.failure == "the environment raised ZeroDivisionError: oops"
    assert b.step is not None


@pytest.mark.parametrize(
    ("said", "failure"),
    [
        (float("nan"), "gave the score nan, which is no finite number"),
        (float("inf"), "gave the score inf, which is no finite number"),
        (None, "gave the score None, which is no finite number"),
        ("1", "gave the score '1', which is no finite number"),
    ],
)
async def test_a_score_that_is_no_number_fails_its_node_only(said, failure):
    a, b = await grow(verifier=Judge(lambda text: said if text == "a" else 1.0))([root()], 2)
    assert a.failure == f"verifier 'judge' {failure}"
    assert b.failure is None
    assert b.score == 1.0


async def test_scores_of_other_number_types_are_taken():
    numpy = pytest.importorskip("numpy")
    values = {"a": Decimal("0.5"), "b": numpy.float32(0.25), "c": 1}
    children = await grow(verifier=Judge(values.get))([root()], 3)
    assert [child.score for child in children] == [0.5, 0.25, 1.0]
    assert all(type(child.score) is float for child in children)


async def test_a_verifier_that_raises_fails_the_culprit_only():
    class Touchy(Judge):
        async def score(self, nodes):
            return [Verdict({"a": 1.0, "c": 2.0}[node.text]) for node in nodes]

    a, b, c = await grow(verifier=Touchy())([root()], 3)
    assert (a.score, c.score) == (1.0, 2.0)
    assert b.failure == "verifier 'judge' raised KeyError: 'b'"


async def test_a_verifier_whose_model_is_out_of_reach_ends_the_search_when_all_is_paid():
    class Refused:
        async def score(self, nodes):
            raise BackendError("wrong key", fatal=True, spent=Usage(calls=1))

    start = root()
    with pytest.raises(SearchFailed, match="wrong key"):
        await grow(verifier=Refused())([start, *(await grow()([start], 2))], 1)
    judged = [node for node in start.walk() if node.failure]
    assert len(judged) == 3
    assert all("verifier 'judge': wrong key" in node.failure for node in judged)
    assert start.usage.calls == 3


async def test_what_a_failure_has_cost_is_counted_once_and_saved():
    paid = Usage(calls=1, completion=3)

    class Garbled:
        async def propose(self, node, seeds):
            raise BackendError("could not be read", arrived=[Step("a"), None, None], spent=paid)

    class Wordy(Judge):
        async def score(self, nodes):
            return [VerifierError("no number in it", spent=paid) for _ in nodes]

    start = root()
    await grow(Garbled(), verifier=Wordy())([start], 3)
    assert [v.cost.completion for v in start.children] == [3, 3, 0]
    assert from_json(to_json(start)).usage == start.usage == paid + paid


async def test_a_failed_verdict_does_not_make_the_others_free():
    paid = Usage(calls=1, completion=5)

    class Paid(Judge):
        async def score(self, nodes):
            return [Verdict(1.0, usage=paid) for _ in nodes]

    class Broken(Judge):
        async def score(self, nodes):
            return [VerifierError("no number in it", spent=paid) for _ in nodes]

    judges = {"first": Paid(), "second": Broken(), "third": Paid()}
    (child,) = await Grow({"policy": Enumerate()}, Word(3), judges)([root()])
    assert child.failure == "verifier 'second': no number in it"
    assert child.cost == paid + paid + paid


async def test_verdicts_and_errors_may_come_mixed():
    class Mixed(Judge):
        async def score(self, nodes):
            return [
                Verdict(1.0) if node.text == "a" else VerifierError("timeout after 5 s")
                for node in nodes
            ]

    a, b = await grow(verifier=Mixed())([root()], 2)
    assert a.score == 1.0
    assert b.failure == "verifier 'judge': timeout after 5 s"


async def test_a_wrong_number_of_verdicts_fails_them_all():
    class Short(Judge):
        async def score(self, nodes):
            return [Verdict(1.0)]

    children = await grow(verifier=Short())([root()], 2)
    assert {c.failure for c in children} == {"verifier 'judge' gave 1 verdicts for 2 nodes"}


async def test_every_verdict_stays_under_its_name_and_the_first_ranks():
    verifiers = {"value": Judge(len), "other": Judge(lambda text: -1.0)}
    (child,) = await Grow({"policy": Enumerate()}, Word(3), verifiers)([root()])
    assert {name: verdict.score for name, verdict in child.verdicts.items()} == {
        "value": 1.0,
        "other": -1.0,
    }
    assert child.score == 1.0
    by_rank = Grow(
        {"policy": Enumerate()}, Word(3), verifiers, rank=lambda node: node.verdicts["other"].score
    )
    (child,) = await by_rank([root()])
    assert child.score == -1.0


async def test_without_a_verifier_rewards_are_the_scores():
    class Paying(Word):
        async def step(self, state, action):
            return State(action.text, reward=3.0)

    (child,) = await grow(world=Paying(3))([root()])
    assert child.score == 3.0


async def test_what_has_arrived_stays_when_the_rest_is_cancelled():
    arrived = anyio.Event()

    class Halting(Alphabet):
        async def propose(self, node, seeds):
            if node.text == "b":
                await anyio.sleep_forever()
            return await super().propose(node, seeds)

    class Telling(Judge):
        async def score(self, nodes):
            arrived.set()
            await anyio.sleep_forever()

    start = root()
    first = await grow()([start], 2)
    async with anyio.create_task_group() as group:
        group.start_soon(grow(Halting("abc"), verifier=Telling()), first, 1)
        await arrived.wait()
        group.cancel_scope.cancel()
    assert [node.text for node in start.walk()] == ["", "a", "aa", "b"]
    assert next(node for node in start.walk() if node.text == "aa").score == float("-inf")


async def test_gather_raises_the_error_as_it_is_and_ends_the_others():
    ended = []

    async def one(i):
        if i == 1:
            raise BackendError("no")
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(i)

    with pytest.raises(BackendError, match="no"):
        await gather(one, [0, 1, 2])
    assert set(ended) == {0, 2}


async def test_run_sync_works_inside_a_running_loop():
    async def inner(x):
        await anyio.lowlevel.checkpoint()
        return x + 1

    async def broken():
        raise KeyError("inside")

    assert run_sync(inner, 1) == 2
    with pytest.raises(KeyError, match="inside"):
        run_sync(broken)
