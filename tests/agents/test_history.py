import dataclasses
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from branchwise.agents.chat import Chat
from branchwise.agents.history import Summarised, Truncated
from branchwise.agents.next_token import NextToken
from branchwise.agents.tool_user import ToolUser
from branchwise.backends.journal import Journal
from branchwise.backends.scripted import Scripted
from branchwise.core.aio import run_sync
from branchwise.core.around import Budget
from branchwise.core.errors import BackendError
from branchwise.core.node import Node
from branchwise.core.types import Message, State, Step, Task, Tool, ToolCall, Usage
from branchwise.search import BestOfN
from branchwise.solve import solve
from branchwise.testing import Word

pytestmark = pytest.mark.anyio
SILENT = Scripted(lambda request, seed: "")
TOOL = Tool("look", "Looks – everywhere.", {"properties": {"at": {"type": "string"}}})


def branch(turns, said="", tools=()):
    """The end of a branch: each turn is what was said, the calls in it, and what came of them."""
    node = Node(Task("Quid?"), State(tools=tools))
    for depth, (text, calls, results, observation) in enumerate(turns):
        made = tuple(
            ToolCall(f"call-{depth}-{i}", "look", arguments) for i, arguments in enumerate(calls)
        )
        step = Step(text, finish="tools" if made else "end", tool_calls=made)
        state = State(
            observation=observation or "…", results=tuple(results[: len(made)]), tools=tools
        )
        node = Node(node.task, state, node, 0, step)
    return Node(node.task, State(tools=tools), node, 0, Step(said)) if said else node


_texts = st.text(max_size=60)
_arguments = st.dictionaries(_texts, _texts | st.integers(), max_size=2).map(json.dumps) | _texts
_turns = st.lists(
    st.tuples(
        _texts,
        st.lists(_arguments, max_size=3),
        st.lists(_texts, min_size=3, max_size=3),
        _texts,
    ),
    max_size=8,
)


def rendered(request):
    """The length in tokens under ChatML, each byte and each special token being one.

    As the templates of the Qwen and Hermes families: a system's message of their own, tools and
    calls as JSON, here with an indent as some have it.
    """
    special, text = 0, ""
    if request.messages[0].role != "system":
        special, text = 2, "system\nYou are Qwen, created by Alibaba Cloud. You are helpful.\n"
    if request.tools:
        offered = [(tool.name, tool.description, tool.parameters) for tool in request.tools]
        text += "\n# Tools\n" + "".join(
            json.dumps(
                {"type": "function", "function": {"name": n, "description": d, "parameters": p}},
                indent=4,
            )
            for n, d, p in offered
        )
    for message in request.messages:
        special += 2
        text += f"{message.role}\n{message.content}\n"
        if message.role == "tool":
            special += 2
        for call in message.tool_calls:
            special += 2
            try:
                arguments = json.loads(call.arguments)
            except ValueError:
                arguments = call.arguments
            text += f'\n{{"name": "{call.name}", "arguments": {json.dumps(arguments)}}}\n'
    return special + 1 + len(f"{text}assistant\n{request.so_far}".encode())


def pairs_hold(messages):
    """Every call is answered right after it, and every answer has its call."""
    asked = []
    for message in messages:
        if message.role == "tool":
            assert asked.pop(0) == message.tool_call_id
        else:
            assert not asked
            asked = [call.id for call in message.tool_calls]
    assert not asked


@given(_turns, st.integers(300, 3000), _texts, st.booleans(), st.text(max_size=9))
def test_a_bound_is_never_exceeded_and_pairs_are_never_split(turns, tokens, said, offered, begun):
    tools = (TOOL,) if offered else ()
    node = branch(turns, said, tools)
    fields = {"backend": SILENT, "system": "Be brief.", "prefill": begun}
    whole = ToolUser(**fields).request(node, [1])
    policy = ToolUser(**fields, history=Truncated(tokens=tokens))
    talk = policy.conversation(node)
    try:
        request = policy.request(node, [1])
    except BackendError:
        latest = dataclasses.replace(talk, turns=talk.turns[-1:])
        note = len("\n\n[0 earlier turns are left out.]")
        assert policy.history.size(latest) + note * (len(turns) > 1) > tokens
        return
    assert rendered(request) <= policy.history.size(
        dataclasses.replace(talk, opening=request.messages, turns=())
    )
    assert rendered(request) <= tokens
    pairs_hold(request.messages)
    assert (request.said, request.tools) == (whole.said, whole.tools)
    assert request.messages[0] == whole.messages[0]
    if policy.history.size(talk) <= tokens:
        assert request == whole
        return
    told = int(re.search(r"\n\n\[(\d+) earlier turns", request.messages[1].content)[1])
    kept = [message for turn in talk.turns[told:] for message in turn.messages]
    assert list(request.messages[2:]) == kept
    assert 0 < told < len(turns)
    if told > 1:  # one turn more would not have fitted
        more = dataclasses.replace(talk, turns=talk.turns[told - 1 :])
        assert policy.history.size(more) + len("\n\n[1 earlier turns are left out.]") > tokens


def test_with_a_tokenizer_of_ones_own_nothing_is_left_unused():
    words = {"count": lambda text: len(text.split()), "overhead": 1, "preamble": 0}
    node = branch([("one two three", [], [], f"four {i}") for i in range(4)])
    ask = {"backend": SILENT, "template": "{prompt} now"}
    whole = Chat(**ask).request(node, [1]).messages  # 3 of the question, 7 of each turn
    assert Chat(**ask, history=Truncated(tokens=31, **words)).request(node, [1]).messages == whole
    kept = Chat(**ask, history=Truncated(tokens=30, note="{count} gone", **words))
    messages = kept.request(node, [1]).messages
    assert messages == (Message("user", "Quid? now\n\n1 gone"), *whole[3:])
    with pytest.raises(ValidationError):
        Truncated(tokens=0)


async def test_a_turn_that_is_too_long_fails_its_branch_alone():
    class Loud(Word):
        async def step(self, state, action):
            after = await super().step(state, action)
            return dataclasses.replace(after, observation=action.text * 500)

    model = Scripted(lambda request, seed: "ab"[seed % 2])
    policy = Chat(backend=model, history=Truncated(tokens=700, overhead=9, preamble=9))
    parts = {"policy": policy, "environment": Loud(2)}
    answer = await solve("?", controller=BestOfN(n=4), **parts)
    assert len(answer.value) == 2
    policy = policy.model_copy(update={"history": Truncated(tokens=200, overhead=9, preamble=9)})
    answer = await solve("?", controller=BestOfN(n=4), **{**parts, "policy": policy})
    failures = [child.children[0].failure for child in answer.root.children]
    assert all("does not fit into 200 tokens" in why for why in failures)


# Summaries.


def summarised(reply, tokens=1200, **fields):
    model = Scripted(reply)
    history = Summarised(tokens=tokens, backend=model, summary=100, **fields)
    return ToolUser(backend=SILENT, history=history), model


LONG = [(f"said {i} " * 20, ['{"at": "x"}'], ["seen", "", ""], "") for i in range(6)]


def test_a_summary_stands_where_turns_were():
    policy, model = summarised(lambda request, seed: " Nothing was found. ")
    silent = policy.backend
    silent.requests.clear()
    run_sync(policy.propose, branch(LONG), [1, 2])
    [asked], [request] = model.requests, silent.requests
    told = request.messages[0].content
    assert told == "Quid?\n\nWhat was done so far, in short:\nNothing was found."
    turns = (len(request.messages) - 1) // 3
    assert 0 < turns < 6
    pairs_hold(request.messages)
    assert asked.asked.count("calls look(") == 6 - turns
    assert "Task:\nQuid?\n" in asked.asked
    assert (asked.max_tokens, asked.tools, len(asked.seeds)) == (100, (), 1)


def test_a_short_history_asks_for_no_summary():
    policy, model = summarised(lambda request, seed: "", tokens=9999)
    run_sync(policy.propose, branch(LONG), [1])
    assert model.requests == []
    assert policy.backend.requests[-1] == ToolUser(backend=SILENT).request(branch(LONG), [1])


@given(_turns, st.integers(600, 2500), st.text(max_size=400))
def test_the_bound_holds_with_a_summary_and_for_its_own_request(turns, tokens, said):
    policy, model = summarised(lambda request, seed: Step(said), tokens)
    policy.backend.requests.clear()
    try:
        run_sync(policy.propose, branch(turns, tools=(TOOL,)), [1])
    except BackendError:
        assert model.requests == policy.backend.requests == []
        return
    for request in (*model.requests, *policy.backend.requests):
        assert rendered(request) <= tokens
    if model.requests and said.strip():
        summary = policy.backend.requests[-1].messages[0].content.split("in short:\n")[1]
        assert said.strip().startswith(summary)
        assert len(summary.encode()) <= 100
        assert len(summary.encode()) == len(said.strip().encode()) or len(summary) > 10


def test_what_does_not_fit_into_its_request_is_left_out_from_the_oldest():
    policy, model = summarised(lambda request, seed: "s", tokens=1000)
    run_sync(policy.propose, branch([("x" * 300 + f" {i}.", [], [], "…") for i in range(9)]), [1])
    told = model.requests[0].asked
    assert "assistant" in told
    assert " 0." not in told
    assert " 6." in told


def test_the_same_node_asks_the_same_and_a_journal_answers(tmp_path):
    model = Scripted(lambda request, seed: f"summary {seed}")

    async def main(node):
        journal = Journal(tmp_path / "journal.jsonl", model)
        history = Summarised(tokens=1200, backend=journal, summary=100)
        await ToolUser(backend=SILENT, history=history).propose(node, [1, 2])
        return SILENT.requests[-1].messages

    first = run_sync(main, branch(LONG))
    assert run_sync(main, branch(LONG)) == first
    assert len(model.requests) == 1
    below = branch(LONG, "and")  # nothing more is left out there
    assert run_sync(main, below) == first
    assert len(model.requests) == 1
    other = branch(LONG)
    other.parent.parent.parent.index = 1
    run_sync(main, other)
    assert len(model.requests) == 2


async def test_a_summary_is_paid_and_its_failure_is_the_branch_s():
    paid = Usage(calls=1, prompt=40, completion=7)
    policy, _ = summarised(lambda request, seed: Step("short", usage=paid))
    spoken = policy.model_copy(
        update={"backend": Scripted(lambda request, seed: Step("x", usage=Usage(completion=2)))}
    )
    first, second = await spoken.propose(branch(LONG), [1, 2])
    assert (first.usage.completion, first.usage.calls) == (9, 3)  # and `Scripted` counts one
    assert second.usage.completion == 2
    assert policy.bound(3) == Usage(calls=2, completion=3 * 512 + 100)

    def gone(request, seed):
        raise BackendError("gone", arrived=[Step("a summary")], spent=paid)

    with pytest.raises(BackendError, match="gone") as caught:
        await summarised(gone)[0].propose(branch(LONG), [1, 2])
    assert (caught.value.arrived, caught.value.spent) == ((), paid)
    late = policy.model_copy(update={"backend": Scripted(gone)})
    with pytest.raises(BackendError) as caught:
        await late.propose(branch(LONG), [1])
    assert caught.value.spent.completion == 2 * paid.completion


async def test_no_search_spends_more_than_its_budget():
    class Echo(Word):
        async def step(self, state, action):
            after = await super().step(state, action)
            return dataclasses.replace(after, observation="y" * 300)

    def reply(request, seed):
        return "w " * request.max_tokens

    model = Scripted(reply)
    history = Summarised(tokens=1100, backend=model, summary=20, preamble=0)
    policy = Chat(backend=model, history=history, max_tokens=30)
    answer = await solve(
        "?",
        policy=policy,
        controller=BestOfN(n=3),
        environment=Echo(2000),
        budget=Budget(tokens=900),
    )
    assert any("in short" in request.messages[0].content for request in model.requests)
    assert answer.stopped == "exhausted"
    assert answer.usage.completion <= 900


def test_in_a_table_the_policy_s_model_sums_up():
    table = {"history": {"kind": "summarised", "tokens": 900}}
    policy = Chat(backend=SILENT, **table)
    assert policy.history.backend is SILENT
    dumped = json.loads(policy.model_dump_json())
    assert "backend" not in dumped["history"]
    assert Chat(backend=SILENT, **dumped) == policy
    other = Scripted(lambda request, seed: "")
    own = {"kind": "summarised", "tokens": 900, "backend": other}
    assert Chat(backend=SILENT, history=own).history.backend is other
    assert Chat(backend=SILENT, history={"kind": "truncated", "tokens": 9}).history.tokens == 9


async def test_a_count_that_is_never_small_ends_all_the_same():
    policy, model = summarised(
        lambda request, seed: "short", tokens=3000, count=lambda text: len(text) + 101
    )
    (step,) = await policy.propose(branch(LONG), [1])
    assert model.requests
    assert step.usage.calls >= 2


def test_who_asks_by_itself_gets_the_note():
    policy, _ = summarised(lambda request, seed: "s")
    request = NextToken(policy=policy).policy.request(branch(LONG), [1])
    assert re.search(r"\[\d earlier turns are left out\.\]$", request.messages[0].content)
