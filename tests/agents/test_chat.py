import json

import pytest

from branchwise.agents.chat import Chat, Shot
from branchwise.backends.scripted import Scripted
from branchwise.core.config import Sampling
from branchwise.core.node import Node
from branchwise.core.types import Message, State, Step, Task, ToolCall, Usage

MODEL = Scripted(lambda request, seed: f"{request.asked}{request.so_far}{seed}")


def chat(**fields):
    return Chat(backend=MODEL, **fields)


def below(node, step, observation=""):
    return Node(node.task, State(observation=observation), node, 0, step)


ROOT = Node(Task("2 + 2?", meta={"level": 3, "unit": "apples"}), State())


def test_the_bare_question_is_the_default():
    assert chat().request(ROOT, [7]).messages == (Message("user", "2 + 2?"),)


def test_system_examples_and_question_in_this_order():
    policy = chat(system="Be brief.", template="Q: {prompt}", shots=(Shot(prompt="1?", reply="1"),))
    assert policy.request(ROOT, [7]).messages == (
        Message("system", "Be brief."),
        Message("user", "Q: 1?"),
        Message("assistant", "1"),
        Message("user", "Q: 2 + 2?"),
    )


def test_known_placeholders_are_filled_and_other_braces_stay():
    policy = chat(
        template="{prompt} in {unit}, level {level}; {nobody} {} {{prompt}} {a:b} \\boxed{x}"
    )
    [message] = policy.request(ROOT, [7]).messages
    assert message.content == ("2 + 2? in apples, level 3; {nobody} {} {2 + 2?} {a:b} \\boxed{x}")


def test_what_is_filled_in_is_not_filled_again():
    root = Node(Task("a {unit} {prompt} \\1", meta={"unit": "{prompt}", "prompt": "no"}), State())
    [message] = chat(template="{unit}: {prompt}").request(root, [7]).messages
    assert message.content == "{prompt}: a {unit} {prompt} \\1"


def test_what_was_said_is_continued():
    first, second = Step("a\n", tokens=(1, 2)), Step("b\n")
    request = chat().request(below(below(ROOT, first), second), [7])
    assert request.said == (first, second)
    assert request.messages == (Message("user", "2 + 2?"),)


def test_an_observation_closes_the_turn():
    node = below(below(ROOT, Step("a ")), Step("b"), "no: try again")
    messages = (
        Message("user", "2 + 2?"),
        Message("assistant", "a b"),
        Message("user", "no: try again"),
    )
    assert chat().request(node, [7]).messages == messages
    assert chat().request(node, [7]).said == ()
    later = chat().request(below(node, Step("c")), [7])
    assert later.messages == messages
    assert later.so_far == "c"


def test_a_tools_answer_goes_to_its_call():
    calls = (ToolCall("1", "add", "{}"), ToolCall("2", "add", "{}"))
    node = below(ROOT, Step("", finish="tools", tool_calls=calls), "none here")
    assert chat().request(node, [7]).messages[1:] == (
        Message("assistant", "", calls),
        Message("tool", "none here", tool_call_id="1"),
        Message("tool", "none here", tool_call_id="2"),
    )


def test_what_the_world_shows_first_stands_below_the_question():
    root = Node(Task("Play."), State(observation="A door."))
    assert chat().request(root, [7]).messages == (Message("user", "Play.\n\nA door."),)


def test_the_rest_of_the_request_is_the_configuration():
    policy = chat(sampling=Sampling(temperature=0.7), max_tokens=9, stop=("\n",), logprobs=False)
    request = policy.request(ROOT, [3, 4])
    assert (
        request.seeds,
        request.sampling,
        request.max_tokens,
        request.stop,
        request.logprobs,
    ) == (*((3, 4), Sampling(temperature=0.7), 9, ("\n",), False),)


@pytest.mark.anyio
async def test_it_proposes_what_the_model_says():
    steps = await chat(template="{prompt} ").propose(below(ROOT, Step("so ")), [1, 2])
    assert [step.text for step in steps] == ["2 + 2? so 1", "2 + 2? so 2"]


def test_its_bound_is_what_budgets_reserve():
    assert chat(max_tokens=10).bound(4) == Usage(calls=1, completion=40)


def test_the_model_is_no_part_of_the_configuration():
    policy = chat(system="Be brief.", shots=(Shot(prompt="1?", reply="1"),))
    dumped = json.loads(policy.model_dump_json())
    assert "backend" not in dumped
    assert Chat(backend=MODEL, **dumped) == policy
    assert "Scripted" not in repr(policy)
