"""A world of tools in which every state can be computed from what was done, and agents in it."""

import json
import random
import re

from branchwise.agents.code_act import CodeAct
from branchwise.agents.react import ReAct
from branchwise.agents.tool_user import ToolUser
from branchwise.backends.scripted import Scripted
from branchwise.core.tools import validated
from branchwise.core.types import State, Step, Tool, ToolCall

START, WANTED, MOST = 1, 10, 40
ADD = Tool(
    "add",
    "Adds to the number.",
    {
        "type": "object",
        "properties": {"amount": {"type": "integer"}},
        "required": ["amount"],
        "additionalProperties": False,
    },
)
DOUBLE = Tool("double", "Doubles the number.", {"type": "object", "properties": {}})
TOOLS = (ADD, DOUBLE)


class Counting:
    """A number that calls change; words end, and what they hold counts if it is the number.

    With `code`, calls stand in a block of Python instead.
    """

    instant = True

    def __init__(self, *, code=False):
        self.code = code
        self.tools = () if code else TOOLS

    async def reset(self, task):
        return State(snapshot=START, tools=self.tools)

    async def step(self, state, action):
        number = state.snapshot
        if action.finish in {"length", "filter"}:
            return State(number, cut=True, tools=self.tools)
        if self.code and (block := re.search(r"```python\n(\w+)\((\d*)\)\n```", action.text)):
            number = done(number, block[1], int(block[2] or 0))
            return State(number, observation=str(number))
        if not action.tool_calls:
            right = action.text.strip() == str(number) == str(WANTED)
            return State(
                number,
                reward=float(right),
                done=True,
                answer=action.text.strip(),
                tools=self.tools,
            )
        results = []
        for call in action.tool_calls:
            tool = next((tool for tool in self.tools if tool.name == call.name), None)
            read = f"There is no tool {call.name!r}." if tool is None else ""
            read = read or validated(tool, call.arguments)
            if isinstance(read, dict):
                number = done(number, call.name, read.get("amount", 0))
                results.append(str(number))
            else:
                results.append(f"Error: {read}")
        return State(number, results=tuple(results), cut=number > MOST, tools=self.tools)


def done(number, name, amount):
    return {"add": number + amount, "double": 2 * number}[name]


# Each agent: how a model calls in it, and what a model reads in a conversation: a list of
# (name, amount) and the results.


def native_call(name, amount, seed):
    arguments = json.dumps({"amount": amount} if name == "add" else {})
    return Step("", finish="tools", tool_calls=(ToolCall(f"id-{seed}", name, arguments),))


def native_read(messages):
    calls = [call for message in messages for call in message.tool_calls]
    ids = [message.tool_call_id for message in messages if message.role == "tool"]
    assert ids == [call.id for call in calls]
    results = [message.content for message in messages if message.role == "tool"]
    return [(c.name, json.loads(c.arguments).get("amount", 0)) for c in calls], results


def text_call(name, amount, seed):
    arguments = {"amount": amount} if name == "add" else {}
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def text_read(messages):
    said = "".join(m.content for m in messages[2:] if m.role == "assistant")
    heard = "".join(m.content for m in messages[2:] if m.role == "user")
    calls = [json.loads(c) for c in re.findall(r"<tool_call>\n(.*?)\n</tool_call>", said)]
    results = re.findall(r"<tool_response>\n(.*?)\n</tool_response>", heard)
    return [(call["name"], call["arguments"].get("amount", 0)) for call in calls], results


def react_call(name, amount, seed):
    return f"Thought: Why not.\nAction: {name}[{amount if name == 'add' else ''}]\nObservation: 99"


def react_read(messages):
    said = "".join(m.content for m in messages[2:] if m.role == "assistant")
    heard = "".join(m.content for m in messages[2:] if m.role == "user")
    calls = re.findall(r"Action: (\w+)\[(\d*)\]", said)
    assert "Observation" not in said
    return [(n, int(a or 0)) for n, a in calls], re.findall(r"Observation: (\d+)", heard)


def code_call(name, amount, seed):
    return f"Hm.\n```python\n{name}({amount if name == 'add' else ''})\n```\nOutput:\n99"


def code_read(messages):
    said = "".join(m.content for m in messages[2:] if m.role == "assistant")
    heard = "".join(m.content for m in messages[2:] if m.role == "user")
    assert "Output" not in said
    calls = re.findall(r"```python\n(\w+)\((\d*)\)\n```", said)
    return [(n, int(a or 0)) for n, a in calls], re.findall(r"Output:\n(\d+)", heard)


KINDS = {
    "native": (ToolUser, {"protocol": "native"}, native_call, native_read),
    "text": (ToolUser, {"protocol": "text"}, text_call, text_read),
    "react": (ReAct, {}, react_call, react_read),
    "code": (CodeAct, {}, code_call, code_read),
}


def agent(kind, **fields):
    """An agent whose model computes the number from the calls that it sees, and checks it."""
    policy, own, call, read = KINDS[kind]

    def reply(request, seed):
        calls, results = read(request.messages)
        number, told = START, []
        for name, amount in calls:
            number = done(number, name, amount)
            told.append(str(number))
        assert results == told, "what the model reads is not what it did"
        dice = random.Random(seed)
        if number >= WANTED:
            return f"Action: finish[{number}]" if kind == "react" else str(number)
        return call(*dice.choice([("double", 0), ("add", 1), ("add", 3)]), seed)

    return policy(backend=Scripted(reply), **{**own, **fields}), Counting(code=kind == "code")
