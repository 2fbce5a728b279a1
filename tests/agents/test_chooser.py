import json

import pytest

from branchwise.agents.chooser import Chooser, repeated
from branchwise.backends.scripted import Scripted
from branchwise.core.errors import BackendError
from branchwise.core.node import Node
from branchwise.core.types import FREE, State, Step, Task, Usage

pytestmark = pytest.mark.anyio


def says(reply):
    return Scripted(lambda request, seed: reply)


def below(node, step, *, done=True, cut=False):
    child = Node(node.task, State(done=done, cut=cut), node, len(node.children), step)
    node.adopt([child])
    return child


def asked(*texts):
    root = Node(Task("How many {count}?", meta={"unit": "apples"}), State())
    for text in texts:
        below(root, Step(text, usage=Usage(completion=100)))
    return root


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ("2", "b"),
        ("Responses 1 and 3 say 4, so the most consistent is response 3.", "c"),
        ("Most of the 3 conclude 12. **1**", "a"),
        ("\\boxed{2}.\n", "b"),
        ("[[3]]", "c"),
        ("Number_2_", "b"),
    ],
)
async def test_it_repeats_the_answer_that_the_reply_ends_with(reply, text):
    (step,) = await Chooser(backend=says(reply)).propose(asked("a", "b", "c"), [0])
    assert step.text == text


@pytest.mark.parametrize(
    "reply",
    ["", "the second", "0", "4", "Response 2 is best", "it is 2.1", "17,2", "99999999999999999992"],
)
async def test_a_reply_without_a_choice_is_quoted(reply):
    with pytest.raises(BackendError, match="the choice among 3 answers could not be read") as said:
        await Chooser(backend=says(reply)).propose(asked("a", "b", "c"), [0])
    assert repr(reply) in str(said.value)


@pytest.mark.parametrize("finish", ["length", "filter"])
async def test_a_number_where_the_reply_was_cut_is_no_choice(finish):
    judge = says(Step("I compare response 2", finish=finish))
    with pytest.raises(BackendError, match="cut short"):
        await Chooser(backend=judge).propose(asked("a", "b"), [0])


async def test_the_model_sees_the_task_and_all_finished_answers_in_order():
    root = asked("{prompt}", " b ")
    below(root, Step("open"), done=False)
    below(root, Step("cut"), cut=True)
    below(root, Step("lost")).failed("lost")
    deep = below(root, Step("c1 "), done=False)
    below(deep, Step("c2"))
    judge = says("1")
    await Chooser(
        backend=judge,
        system="S",
        template="{prompt} {unit} {count} {nobody}: {responses}",
        entry="{number}<{text}>",
    ).propose(root, [5])
    (request,) = judge.requests
    assert [message.content for message in request.messages] == [
        "S",
        "How many {count}? apples 3 {nobody}: 1<{prompt}>\n\n2<b>\n\n3<c1 c2>",
    ]
    assert request.seeds == (5,)
    assert not request.logprobs


async def test_each_seed_is_a_choice_of_its_own():
    judge = Scripted(lambda request, seed: str(seed))
    steps = await Chooser(backend=judge).propose(asked("a", "b", "c"), [3, 1, 1])
    assert [step.text for step in steps] == ["c", "a", "a"]


async def test_what_can_be_read_survives_what_cannot():
    judge = Scripted(lambda request, seed: "2" if seed else "?")
    with pytest.raises(BackendError) as said:
        await Chooser(backend=judge).propose(asked("a", "b"), [1, 0, 1])
    assert [step and step.text for step in said.value.arrived] == ["b", None, "b"]


async def test_replies_that_arrived_in_a_failed_call_are_not_taken_for_answers():
    class Half(Scripted):
        async def complete(self, request):
            raise BackendError("gone", fatal=True, status=402, arrived=[Step("2"), None])

    with pytest.raises(BackendError, match="gone") as said:
        await Chooser(backend=Half(None)).propose(asked("a", "b"), [0, 1])
    assert [step and step.text for step in said.value.arrived] == ["b", None]
    assert (said.value.fatal, said.value.status) == (True, 402)


async def test_it_costs_what_the_choice_costs():
    judge = says(Step("2", usage=Usage(calls=1, prompt=50, completion=7)))
    (step,) = await Chooser(backend=judge).propose(asked("a", "b"), [0])
    assert step.usage.completion == 7
    assert Chooser(backend=judge, max_tokens=9).bound(2) == Usage(calls=1, completion=18)


async def test_where_there_is_no_choice_nobody_is_asked():
    judge = says("1")
    assert await Chooser(backend=judge).propose(asked(), [0, 1]) == []
    steps = await Chooser(backend=judge).propose(asked("a"), [0, 1])
    assert [(step.text, step.usage) for step in steps] == [("a", FREE)] * 2
    assert judge.requests == []


async def test_steps_are_joined_with_what_is_known_of_them():
    root = asked("x")
    first = below(root, Step("a\n", (1, 2), -1.0, (-0.25, -0.75), finish="stop"), done=False)
    last = below(first, Step("b", (3,), -2.0, (-2.0,)))
    assert repeated(root, last, FREE) == Step(
        "a\nb", tokens=(1, 2, 3), logprob=-3.0, logprobs=(-0.25, -0.75, -2.0)
    )


async def test_only_what_was_said_below_the_node_is_repeated():
    start = below(asked(), Step("so "), done=False)
    end = below(below(start, Step("it is "), done=False), Step("4"))
    assert repeated(start, end, FREE).text == "it is 4"
    again = below(end, Step("no, 5"))
    assert repeated(start, again, FREE).text == "no, 5"
    assert repeated(end, again, FREE).text == "no, 5"


def test_the_model_is_no_part_of_the_configuration():
    policy = Chooser(backend=says("1"), max_tokens=8)
    dumped = json.loads(policy.model_dump_json())
    assert "backend" not in dumped
    assert Chooser(backend=policy.backend, **dumped) == policy
