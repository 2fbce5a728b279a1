import json
import time

import pytest
from counting import ADD, DOUBLE, START, TOOLS, WANTED, Counting, agent, done
from hypothesis import given
from hypothesis import strategies as st

from branchwise.agents.chat import Chat
from branchwise.agents.tool_user import ToolUser
from branchwise.backends.scripted import Scripted
from branchwise.core.aio import run_sync
from branchwise.core.around import Budget
from branchwise.core.errors import BackendError
from branchwise.core.node import Node
from branchwise.core.tools import described, validated
from branchwise.core.types import Message, State, Step, Task, Tool, ToolCall, Usage
from branchwise.search import MCTS, Beam, BestFirst, ParticleFilter, Rebase, Rollout
from branchwise.solve import solve
from branchwise.testing import check_environment
from branchwise.verifiers.function import Function

pytestmark = pytest.mark.anyio
CONTROLLERS = {
    "rollout": Rollout(),
    "best-first": BestFirst(fanout=3, expansions=40, enough=1.0),
    "mcts": MCTS(simulations=40, fanout=3, enough=1.0),
    "beam": Beam(width=12, fanout=3),
}


# The same agents, whatever searches.


@pytest.mark.parametrize("how", CONTROLLERS)
@pytest.mark.parametrize("kind", ["native", "text", "react", "code"])
async def test_an_agent_is_the_same_under_every_controller(kind, how):
    policy, world = agent(kind)  # its model checks that each branch reads its own past
    answer = await solve("Ten?", policy=policy, controller=CONTROLLERS[how], environment=world)
    if how != "rollout":
        assert (answer.value, answer.node.state.reward) == (str(WANTED), 1)
    finished = [node for node in answer.root.walk() if node.finished]
    assert finished
    assert all(node.state.answer == str(node.state.snapshot) for node in finished)
    for node in answer.root.walk():
        number = START
        for step in node.steps if not world.code else ():
            for call in step.tool_calls:
                number = done(number, call.name, json.loads(call.arguments).get("amount", 0))
        assert world.code or number == node.state.snapshot


class Shaky:
    """A model that fails at one seed in five."""

    name = "shaky"

    def __init__(self, model):
        self.model = model

    async def complete(self, request):
        whole = await self.model.complete(request)
        steps = [
            None if seed % 5 == 0 else step for seed, step in zip(request.seeds, whole, strict=True)
        ]
        if None in steps:
            raise BackendError("no answer", arrived=steps, spent=Usage(calls=1))
        return whole


MORE = {"rebase": Rebase(n=12), "particles": ParticleFilter(n=12)}


@pytest.mark.parametrize("how", sorted((CONTROLLERS | MORE).keys() - {"rollout"}))
@pytest.mark.parametrize("kind", ["native", "text", "react", "code"])
async def test_calls_that_fail_cost_their_own_branch_only(kind, how):
    policy, world = agent(kind)
    policy = policy.model_copy(update={"backend": Shaky(policy.backend)})
    answer = await solve(
        "Ten?",
        policy=policy,
        controller=(CONTROLLERS | MORE)[how],
        environment=world,
        verifier=Function(lambda node: 1 / (1 + abs(WANTED - node.state.snapshot))),
    )
    assert (answer.value, answer.stopped) == (str(WANTED), "finished")
    assert {node.failure for node in answer.root.walk()} == {None, "no answer"}


@pytest.mark.parametrize("how", CONTROLLERS | MORE)
async def test_a_model_that_never_stops_calling_or_says_nothing_is_cut(how):
    endless = Step("", finish="tools", tool_calls=(ToolCall("x", "nothing", "{}"),) * 2)
    for said in (endless, ""):
        answer = await solve(
            "Ten?",
            policy=ToolUser(backend=Scripted(lambda request, seed, said=said: said)),
            controller=(CONTROLLERS | MORE)[how],
            environment=Counting(),
            verifier=Function(lambda node: 0.5),
            budget=Budget(nodes=150),
            horizon=4,
        )
        nodes = list(answer.root.walk())
        assert max(node.depth for node in nodes) == (4 if said else 1)
        assert answer.value == ("" if not said else None)
        assert all(node.state.cut for node in nodes if node.depth == 4)
        assert not any(node.failure for node in nodes)


async def test_the_world_of_these_tests_keeps_the_laws():
    calls = (ToolCall("1", "add", '{"amount": 2}'), ToolCall("2", "halve", "{}"))
    actions = [Step("", finish="tools", tool_calls=calls), Step("3")]
    await check_environment(Counting(), Task("?"), actions)


# Reading calls.


def root(tools=TOOLS):
    return Node(Task("Ten?"), State(tools=tools))


def read(text, finish="end", protocol="text", **fields):
    policy = ToolUser(backend=Scripted(lambda request, seed: ""), protocol=protocol, **fields)
    step = policy.read(Step(text, finish=finish), root())
    assert step.text == text
    return [(call.name, call.arguments) for call in step.tool_calls], step.finish


CALL = '{"name": "add", "arguments": {"amount": 2}}'
TWO = ("add", '{"amount": 2}')


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (f"<tool_call>\n{CALL}\n</tool_call>", [TWO]),
        (f"I add. <tool_call>{CALL}</tool_call> Let us see.", [TWO]),
        (f"<tool_call>\n{CALL}", [TWO]),
        (f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}\n</tool_call>", [TWO, TWO]),
        (f"<tool_call>{CALL}<tool_call>{CALL}", [TWO, TWO]),
        (f"<tool_call>\n```json\n{CALL}\n```\n</tool_call>", [TWO]),
        (f"<tool_call>{CALL}</tool_call><tool_response>3</tool_response><tool_call>{CALL}", [TWO]),
        ('<tool_call>{"name": "double"}</tool_call>', [("double", "{}")]),
        ('<tool_call>{"name": "add", "parameters": {"amount": 2}}', [TWO]),
        ('<tool_call>{"name": "add", "arguments": "{\\"amount\\": 2}"}', [TWO]),
        (
            '<tool_call>{"name": "say", "arguments": {"text": "</tool_call> é\n"}}</tool_call>',
            [("say", '{"text": "</tool_call> é\\n"}')],
        ),
        # Not a call that can be read: the world shall say what is wrong.
        (
            '<tool_call>{"name": "add", "arguments": {"amount": 2,}}</tool_call>',
            [("add", '{"name": "add", "arguments": {"amount": 2,}}')],
        ),
        ("<tool_call>add(2)</tool_call>", [("", "add(2)")]),
        ("<tool_call>", [("", "")]),
        ('<tool_call>{"tool": "add"}</tool_call>', [("", '{"tool": "add"}')]),
        ("<tool_call>[1]</tool_call>", [("", "[1]")]),
        # Without tags.
        (CALL, [TWO]),
        (f"{CALL}\n{CALL}", [TWO, TWO]),
        (f"I add.\n```json\n{CALL}\n```", [TWO]),
        (f"```\n{CALL}\n```\nand\n```json\n{CALL}\n```", [TWO, TWO]),
        ('{"name": "Ada", "arguments": {}}', []),
        ('{"name": "add"}', []),
        ("The number is 10.", []),
        ("", []),
    ],
)
def test_calls_in_replies(text, calls):
    found = (calls, "tools" if calls else "end")
    assert read(text) == found
    assert read(text, protocol="native") == found


def test_what_is_cut_short_is_no_call():
    whole = f"<tool_call>{CALL}"
    for size in range(len(whole)):
        assert read(whole[:size], finish="length") == ([], "length")
    assert read(f"{whole}</tool_call> and then <tool_call>{{", finish="length") == ([TWO], "tools")
    assert read(whole, finish="filter") == ([TWO], "tools")


def test_a_prefill_may_begin_the_call():
    text = f"{CALL[1:]}\n</tool_call>"
    assert read(text, prefill="<tool_call>\n{") == ([TWO], "tools")


@given(st.text(), st.sampled_from(["end", "stop", "length"]))
def test_any_text_can_be_read(text, finish):
    calls, said = read(f"<tool_call>{text}", finish)
    assert said == ("tools" if calls else finish)
    read(text, finish)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.tuples(st.text(), st.dictionaries(st.text(), _json, max_size=3)), max_size=3))
def test_what_is_written_as_calls_is_read_as_these(calls):
    text = "".join(
        f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>\n"
        for name, arguments in calls
    )
    found, _ = read(text)
    assert [(name, json.loads(arguments)) for name, arguments in found] == calls


def test_without_tools_text_is_text():
    policy = ToolUser(backend=Scripted(lambda request, seed: ""))
    assert policy.read(Step(CALL), root(())) == Step(CALL)


# Asking.


async def test_native_tools_go_with_the_request_and_calls_come_from_the_server():
    call = Step("", finish="tools", tool_calls=(ToolCall("x1", "double", "{}"),))
    model = Scripted(lambda request, seed: call)
    policy = ToolUser(backend=model, system="Be brief.")
    [step] = await policy.propose(root(), [1])
    assert (step.tool_calls, step.finish) == (call.tool_calls, "tools")
    assert model.requests[0].tools == TOOLS
    assert model.requests[0].messages[0] == Message("system", "Be brief.")


def test_in_text_the_system_message_tells_of_the_tools():
    policy = ToolUser(backend=Scripted(lambda request, seed: ""), protocol="text", system="Hm.")
    request = policy.request(root(), [1])
    system = request.messages[0].content
    assert system.startswith("Hm.\n\n")
    assert "- add(amount: integer): Adds to the number.\n- double(): Doubles the number." in system
    assert request.tools == ()
    assert policy.request(root(()), [1]).messages[0].content == "Hm."


def answered(protocol, said, results, observation=""):
    policy = ToolUser(backend=Scripted(lambda request, seed: ""), protocol=protocol)
    start = root()
    step = policy.read(Step(said), start)
    state = State(tools=TOOLS, results=results, observation=observation)
    return policy.request(Node(start.task, state, start, 0, step), [1]).messages


def test_results_in_text():
    said = f"Both.\n<tool_call>{CALL}</tool_call><tool_call>{CALL}</tool_call>"
    *_, assistant, user = answered("text", said, ("3", "5"), "Hurry.")
    assert assistant == Message("assistant", said)
    assert user.content == (
        "<tool_response>\n3\n</tool_response>\n<tool_response>\n5\n</tool_response>\nHurry."
    )


def test_results_in_the_protocol_of_servers():
    said = f"Both.\n<tool_call>{CALL}</tool_call><tool_call>{CALL}</tool_call>"
    *_, assistant, first, second, user = answered("native", said, ("3", "5"), "Hurry.")
    calls = (ToolCall("call-1-0", *TWO), ToolCall("call-1-1", *TWO))
    assert assistant == Message("assistant", "Both.", calls)  # the server writes the calls itself
    assert first == Message("tool", "3", tool_call_id="call-1-0")
    assert second == Message("tool", "5", tool_call_id="call-1-1")
    assert user == Message("user", "Hurry.")


def test_a_world_that_knows_no_calls_answers_each():
    *_, user = answered("text", f"<tool_call>{CALL}", (), "No tools here.")
    assert user.content == "<tool_response>\nNo tools here.\n</tool_response>"


def test_a_user_answers_plain_words():
    *_, assistant, user = answered("text", "Shall I?", (), "Yes.")
    assert (assistant, user) == (Message("assistant", "Shall I?"), Message("user", "Yes."))


async def test_ids_differ_along_a_branch():
    model = Scripted(lambda request, seed: f"<tool_call>{CALL}</tool_call>" * 2)
    policy = ToolUser(backend=model, protocol="text")
    answer = await solve(
        "?", policy=policy, controller=Rollout(), environment=Counting(), horizon=4
    )
    ids = [call.id for step in answer.node.steps for call in step.tool_calls]
    assert len(ids) == len(set(ids)) == 8


async def test_what_arrived_before_a_failure_is_read_as_well():
    def reply(request, seed):
        raise BackendError(
            "gone", arrived=[Step(f"<tool_call>{CALL}"), None], spent=Usage(completion=3)
        )

    with pytest.raises(BackendError, match="gone") as caught:
        await ToolUser(backend=Scripted(reply), protocol="text").propose(root(), [1, 2])
    step, missing = caught.value.arrived
    assert (step.tool_calls[0].name, missing) == ("add", None)
    assert caught.value.spent == Usage(completion=3)


def test_a_wrong_call_is_answered_and_the_branch_goes_on():
    replies = iter(
        [
            "<tool_call>add 2</tool_call>",
            '<tool_call>{"name": "add", "arguments": {"amount": "two"}}',
            f"<tool_call>{CALL}",
            "3",
        ]
    )
    model = Scripted(lambda request, seed: next(replies))
    policy = ToolUser(backend=model, protocol="text")

    async def main():
        return await solve("?", policy=policy, controller=Rollout(), environment=Counting())

    answer = run_sync(main)
    assert answer.value == "3"
    heard = [request.messages[-1].content for request in model.requests[1:]]
    assert [text.split("\n")[1] for text in heard] == [
        "Error: There is no tool ''.",
        "Error: amount: 'two' is not of type 'integer'",
        "3",
    ]


def test_the_configuration_survives_a_table():
    model = Scripted(lambda request, seed: "")
    policy = ToolUser(backend=model, protocol="text", system="Hm.", prefill="So")
    assert ToolUser(backend=model, **json.loads(policy.model_dump_json())) == policy
    assert isinstance(policy, Chat)
    assert policy.bound(3) == Usage(calls=1, completion=3 * 512)


# Schemas.


def test_a_tool_in_a_line():
    tool = Tool(
        "book",
        "Books.",
        {
            "properties": {
                "to": {"type": "string", "description": "Where to."},
                "class": {"enum": [1, 2]},
                "bags": {"type": "array", "items": {"type": "integer"}},
                "at": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
                "any": True,
            },
            "required": ["to"],
        },
    )
    assert described(tool) == (
        "- book(to: string, class?: 1 | 2, bags?: array of integer, "
        'at?: {"anyOf": [{"type": "integer"}, {"type": "null"}]}, any?: any): Books.\n'
        "  to: Where to."
    )
    assert described(DOUBLE) == "- double(): Doubles the number."


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ('{"amount": 1}', {"amount": 1}),
        ('{"amount": 1.0}', {"amount": 1.0}),
        ("", "'amount' is a required property"),
        ('{"amount": true}', "amount: True is not of type 'integer'"),
        ('{"amount": 1, "by": 2}', "Additional properties are not allowed ('by' was unexpected)"),
        ("[1]", "the arguments are no JSON object"),
        ('{"amount": NaN}', "the arguments are no JSON: NaN is no JSON"),
        ("{" * 20, "the arguments are no JSON"),
        ('{"amount":' + "[" * 100_000, "the arguments are no JSON"),
    ],
)
def test_arguments_are_checked(arguments, said):
    found = validated(ADD, arguments)
    assert found == said or (isinstance(said, str) and found.startswith(said))


def test_a_schema_may_refer_to_itself():
    tree = {"properties": {"left": {"$ref": "#"}, "size": {"type": "integer"}}}
    tool = Tool("plant", "", tree)
    assert isinstance(validated(tool, '{"left": {"left": {"size": 1}}}'), dict)
    assert validated(tool, '{"left": {"left": {"size": "big"}}}') == (
        "left.left.size: 'big' is not of type 'integer'"
    )


@pytest.mark.parametrize("schema", [{"$ref": "#"}, {"$ref": "#/nowhere"}, {"type": "numbre"}])
def test_a_schema_that_is_broken_says_so(schema):
    assert validated(Tool("loop", "", schema), "{}").startswith("the schema of loop is broken: ")


NODE = {"$ref": "#/$defs/node"}
WAY = {"type": "object", "properties": {"a": NODE}}
EITHER = {"anyOf": [WAY, WAY | {"required": ["b"]}]}


@pytest.mark.parametrize(
    ("schema", "arguments"),
    [
        ({"$defs": {"node": EITHER}, "properties": {"a": NODE}}, '{"a":' * 25 + "1" + "}" * 25),
        (
            {
                "$defs": {"30": {"type": "string"}}
                | {f"{i}": {"allOf": [{"$ref": f"#/$defs/{i + 1}"}] * 2} for i in range(30)},
                "$ref": "#/$defs/0",
            },
            "{}",
        ),
        (
            {"properties": {"x": {"uniqueItems": True}}},
            json.dumps({"x": [{"i": i} for i in range(3000)]}),
        ),
    ],
)
def test_a_schema_cannot_ask_for_endless_work(schema, arguments):
    began = time.process_time()
    assert validated(Tool("plant", "", schema), arguments).endswith("it takes too long")
    assert time.process_time() - began < 5


@pytest.mark.parametrize("names", ["pattern", "patternProperties"])
def test_patterns_that_may_take_for_ever_are_not_matched(names):
    text = "a" * 40 + "b"
    schema = {"properties": {"x": {"pattern": "^(a+)+$"}}}
    if names == "patternProperties":
        schema = {"patternProperties": {"^(a+)+$": {}}, "additionalProperties": False}
    given = {"x": text, text: 1}
    assert validated(Tool("match", "", schema), json.dumps(given)) == given
    dates = Tool("date", "", {"properties": {"day": {"pattern": "^[0-9]{4}-[0-9]{2}$"}}})
    assert validated(dates, '{"day": "2024-02"}') == {"day": "2024-02"}
    assert "does not match" in validated(dates, '{"day": "May"}')


@pytest.mark.parametrize(
    "arguments", ['{"amount": 1e400}', '{"amount": NaN}', '{"amount": "\\ud800"}']
)
def test_what_no_json_can_say_is_told(arguments):
    assert validated(ADD, arguments).startswith("the arguments are no JSON: ")


def test_numbers_that_no_float_holds_are_told():
    tool = Tool("halve", "", {"properties": {"x": {"multipleOf": 0.5}}})
    assert validated(tool, '{"x": 1' + "0" * 400 + "}").startswith(
        "the arguments cannot be checked"
    )


def test_a_reply_of_many_broken_tags_is_read_in_linear_time():
    policy = ToolUser(backend=Scripted(lambda request, seed: ""), protocol="text")
    node = Node(Task("?"), State(tools=TOOLS))
    began = time.process_time()
    step = policy.read(Step("<tool_call>" * 20_000), node)
    assert len(step.tool_calls) == 20_000
    assert time.process_time() - began < 3  # 10 seconds if each tag looked for the last one


def test_no_arguments_may_be_written_as_null():
    policy = ToolUser(backend=Scripted(lambda request, seed: ""))
    said = Step('<tool_call>{"name": "double", "arguments": null}</tool_call>')
    (call,) = policy.read(said, Node(Task("?"), State(tools=TOOLS))).tool_calls
    assert validated(DOUBLE, call.arguments) == {}
