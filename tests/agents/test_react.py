import json

import pytest
from counting import TOOLS, Counting
from hypothesis import given
from hypothesis import strategies as st

from branchwise.agents.react import ReAct
from branchwise.backends.scripted import Scripted
from branchwise.core.node import Node
from branchwise.core.types import Message, State, Step, Task, Tool
from branchwise.search import Rollout
from branchwise.solve import solve

pytestmark = pytest.mark.anyio
SEARCH = Tool("search", "", {"properties": {"query": {"type": "string"}, "top": {}}})
SEARCH = Tool("search", "", {**SEARCH.parameters, "required": ["query"]})
PAY = Tool("pay", "", {"properties": {"to": {}, "sum": {}}, "required": ["to", "sum"]})
ROOT = Node(Task("Ten?"), State(tools=(*TOOLS, SEARCH, PAY)))
SILENT = Scripted(lambda request, seed: "")


def read(text, finish="end", root=ROOT):
    return ReAct(backend=SILENT).read(Step(text, finish=finish), root)


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        ("Thought: Hm.\nAction: add[2]", "add", '{"amount": 2}'),
        ('Action: add[{"amount": 2}]', "add", '{"amount": 2}'),
        ("Action 3 :  double[]", "double", "{}"),
        ("Action: add[2]\nObservation", "add", '{"amount": 2}'),
        ("Action: add[2] and then some\nThought: ...", "add", '{"amount": 2}'),
        ("Action: add[two]", "add", '{"amount": "two"}'),
        ("Action: search[Marie Curie]", "search", '{"query": "Marie Curie"}'),
        ("Action: search[1867]", "search", '{"query": "1867"}'),
        ('Action: search["1867"]', "search", '{"query": "1867"}'),
        ("Action: search[a [b] ]c]", "search", '{"query": "a [b] ]c"}'),
        ("Action: search[a\nb]", "search", '{"query": "a\\nb"}'),
        ("Action: search[open", "search", '{"query": "open"}'),
        ("Action: pay[Ada, 3]", "pay", "Ada, 3"),
        ("Action: pay[1]", "pay", "1"),
        ("Action: fly[high]", "fly", "high"),
        ("Action: fly high", "fly high", ""),
        ("Action: ", "", ""),
        # Of several actions the first counts: the others were written without its observation.
        ("Action: add[2]\nThought: So it is 3.\nAction: finish[3]", "add", '{"amount": 2}'),
    ],
)
def test_an_action_is_a_call(text, name, arguments):
    step = read(text)
    [call] = step.tool_calls
    assert (call.name, call.arguments, step.finish, step.text) == (name, arguments, "tools", text)


@pytest.mark.parametrize(
    ("argument", "answer"),
    [("42", "42"), ('"forty two"', "forty two"), ('{"answer": 42}', "42"), ("a] b", "a] b")],
)
def test_finish_ends_with_the_answer_alone(argument, answer):
    step = ReAct(backend=SILENT).read(
        Step(f"Thought: I know.\nAction: finish[{argument}]", (1, 2), -1.5, (-1, -0.5), "stop"),
        ROOT,
    )
    assert (step.text, step.finish, step.tool_calls) == (answer, "end", ())
    assert (step.tokens, step.logprob) == ((1, 2), -1.5)


def test_a_world_may_have_a_tool_of_that_name():
    finish = Tool("finish", "", {"properties": {"answer": {"type": "string"}}})
    step = read("Action: finish[42]", root=Node(ROOT.task, State(tools=(finish,))))
    assert step.tool_calls[0].arguments == '{"answer": "42"}'
    for tools in ((finish,), TOOLS):
        root = Node(ROOT.task, State(tools=tools))
        system = ReAct(backend=SILENT).request(root, [1]).messages[0].content
        assert system.count("- finish(") == 1


def test_words_end_and_a_made_up_observation_does_not():
    assert read("It is 10.") == Step("It is 10.")
    step = read("Thought: Let me see.\nObservation", "stop")
    assert [call.name for call in step.tool_calls] == [""]


def test_what_is_cut_short_does_nothing():
    for text in ("Action: search[Marie Cu", "Thought: Hm", "Action: sea", "Action: finish[4"):
        assert read(text, "length") == Step(text, finish="length")
    assert read("Action: add[2] and th", "length").tool_calls


@given(st.text(alphabet="ab]}[{\"' 1,\n"))
def test_an_argument_comes_through_as_it_is(argument):
    [call] = read(f"Thought: Hm.\nAction: search[{argument}]").tool_calls
    said = json.loads(call.arguments)
    if "query" in said and said != json.loads(json.dumps({"query": argument.strip()})):
        assert said == {"query": json.loads(argument, strict=False)}  # a string in quotes


async def test_the_conversation_has_observations_after_actions_and_nothing_made_up():
    said = [
        "Thought: Two more.\nAction: add[2]\nObservation: 100\nThought: Too much.",
        "Action: halve[]",
        "Thought: Done.\nAction: finish[3]",
    ]
    replies = iter(said)
    model = Scripted(lambda request, seed: next(replies))
    policy = ReAct(backend=model, system="Be brief.", stop=())
    answer = await solve("?", policy=policy, controller=Rollout(), environment=Counting())
    assert answer.value == "3"
    assert [step.text for step in answer.node.steps] == [*said[:2], "3"]
    system, *rest = model.requests[-1].messages
    assert rest == [
        Message("user", "?"),
        Message("assistant", "Thought: Two more.\nAction: add[2]"),
        Message("user", "Observation: 3"),
        Message("assistant", "Action: halve[]"),
        Message("user", "Observation: Error: There is no tool 'halve'."),
    ]
    assert system.content.startswith("Be brief.\n\n")
    assert "- add(amount: integer): Adds to the number.\n- double()" in system.content
    assert "- finish(answer: string)" in system.content


def test_what_else_the_world_says_is_an_observation_too():
    policy = ReAct(backend=SILENT)
    plain = Node(ROOT.task, State(observation="Really?"), ROOT, 0, Step("It is 9."))
    assert policy.request(plain, [1]).messages[-1] == Message("user", "Observation: Really?")
    both = State(results=("3",), observation="Hurry.")
    call = Node(ROOT.task, both, ROOT, 0, read("Action: add[2]"))
    assert policy.request(call, [1]).messages[-1] == Message("user", "Observation: 3\nHurry.")


def test_it_stops_before_it_makes_up_an_observation():
    policy = ReAct(backend=SILENT)
    assert policy.request(ROOT, [1]).stop == ("\nObservation",)
    assert ReAct(backend=SILENT, **policy.model_dump()) == policy
