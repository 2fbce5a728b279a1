"""Thought, action, observation: tools called in a text protocol that any chat model can follow."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Literal, cast

from branchwise.agents.chat import Chat, results_of
from branchwise.agents.tool_user import Found, calling, prefaced
from branchwise.core.node import Node
from branchwise.core.tools import parameters_of
from branchwise.core.types import Json, Message, State, Step, Tool, ToolCall

_ACTION = re.compile(r"^[ \t]*Action(?:[ \t]*\d+)?[ \t]*:[ \t]*", re.MULTILINE)
_OBSERVATION = re.compile(r"\n[ \t]*Observation\b.*\Z", re.DOTALL)
_NEXT = re.compile(r"\n[ \t]*(?:Thought|Action|Observation)\b")
_FINISH = Tool(
    "finish",
    "Ends with the answer.",
    {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]},
)
_INSTRUCTIONS = """\
Solve the task in turns of Thought, Action and Observation. A Thought reasons about the task. \
An Action is one of these, with the argument in brackets:
{tools}

Write a single argument as it is, and several as a JSON object. Stop after the Action:
Thought: ...
Action: NAME[ARGUMENT]
The Observation will then tell what came of it."""


class ReAct(Chat):
    r"""Reasons and acts in turns: `Thought: ...`, `Action: tool[argument]`, `Observation: ...`.

    The tools are those that the world offers at a node (`State.tools`). The first action of a reply
    is the step's one tool call; what a model writes after it, it writes without having seen what
    came of it, so the conversation goes on as if it had not. The step keeps its whole text.

    - `Action: add[{"a": 1, "b": 2}]`: a JSON object is the arguments.
    - `Action: search[Marie Curie]`: anything else is the tool's only parameter, or its only
      required one: text where a string is wanted, else read as JSON. Where there is no such
      parameter, the text is passed on as the arguments, and the world says what is wrong with it.
    - `Action: finish[42]`: the step's text is `42` and it ends, as if the model had said just that;
      tokens and log-probability stay those of the whole reply. Where the world has a tool `finish`,
      it is called like any other.
    - No action at all: a reply that the model ended is its final answer, in plain words; one that
      ends where it would make up an observation calls a tool without a name.

    Source: Yao et al. 2022 (ReAct), who continue one text with a completion model; here each
    observation is a message of the user.

    Args:
        backend: the model.
        system: the system's message; the `instructions` follow it.
        template: the user's message; `{prompt}` and the keys of the task's `meta` in braces are
            filled in, other braces stay as they are.
        shots: worked examples, as earlier turns.
        sampling: how tokens are drawn.
        max_tokens: the most tokens of one step.
        stop: strings that end a step; by default where the model would make up an observation.
        logprobs: whether to ask for the log-probabilities of the tokens.
        prefill: how each reply of the model begins: it goes on from these words, which are no part
            of its step.
        history: what is left out of long conversations; None asks with all of it.
        instructions: how tools are called; `{tools}` is filled in.

    Example:
        >>> from branchwise import Node, Scripted, State, Task, Tool, run_sync
        >>> policy = ReAct(backend=Scripted(lambda request, seed: "Thought: Hm.\nAction: roll[6]"))
        >>> dice = Tool("roll", "Rolls a die.", {"properties": {"sides": {"type": "integer"}}})
        >>> [step] = run_sync(policy.propose, Node(Task("Roll."), State(tools=(dice,))), [1])
        >>> step.tool_calls[0].name, step.tool_calls[0].arguments
        ('roll', '{"sides": 6}')
    """

    kind: Literal["react"] = "react"  # pyright: ignore[reportIncompatibleVariableOverride]  (the tag of another kind)
    stop: tuple[str, ...] = ("\nObservation",)
    instructions: str = _INSTRUCTIONS

    def preface(self, node: Node) -> str:
        """The system's message: how to reason and act, and with what."""
        tools = node.state.tools
        return prefaced(
            self.system, self.instructions, tools if _ends(tools) else (*tools, _FINISH)
        )

    def read(self, step: Step, node: Node) -> Step:
        """The step that a reply means: a call, or the final answer."""
        if step.tool_calls:
            return step
        text = self.prefill + step.text
        action = _action(text)
        if action is None:
            invents = step.finish == "stop" and _OBSERVATION.search(text)
            return calling(step, [Found(len(text), "", "")], node) if invents else step
        if step.finish in {"length", "filter"} and not action.whole:
            return step
        if action.name == _FINISH.name and not _ends(node.state.tools):
            return dataclasses.replace(step, text=_plain(action.argument), finish="end")
        tools = {tool.name: tool for tool in node.state.tools}
        arguments = _arguments(action.argument, tools.get(action.name))
        return calling(step, [Found(action.end, action.name, arguments)], node)

    def turn(self, said: Sequence[Step], state: State) -> list[Message]:
        """The model's turn up to its action, and what came of it."""
        calls: list[ToolCall] = [call for step in said for call in step.tool_calls]
        text = self.prefill + "".join(step.text for step in said)
        action = _action(text)
        text = text[: action.end] if action else _OBSERVATION.sub("", text)
        told = [f"Observation: {result}" for result in results_of(calls, state)]
        if state.observation and (state.results or not calls):
            told.append(state.observation if told else f"Observation: {state.observation}")
        said_so_far = [Message("assistant", text.strip())] if text.strip() else []
        return [*said_so_far, Message("user", "\n".join(told))]


def _ends(tools: Sequence[Tool]) -> bool:
    """Whether the world has a tool of its own that ends."""
    return any(tool.name == _FINISH.name for tool in tools)


@dataclasses.dataclass(frozen=True, slots=True)
class _Action:
    """What a reply does.

    Args:
        name: of the tool.
        argument: what stands in the brackets.
        end: where it ends in the reply.
        whole: whether its bracket is closed, or something follows it.
    """

    name: str
    argument: str
    end: int
    whole: bool


def _action(text: str) -> _Action | None:
    """The first action of a reply.

    Brackets may stand in the argument: it ends at the last `]` before the next Thought, Action or
    Observation; where the bracket is not closed, there.
    """
    begin = _ACTION.search(text)
    if begin is None:
        return None
    following = _NEXT.search(text, begin.end())
    body = text[begin.end() : following.start() if following else len(text)]
    name, bracket, rest = body.partition("[")
    if not bracket:
        stripped = body.strip()
        return _Action(stripped, "", begin.end() + len(body.rstrip()), following is not None)
    argument, closed, _ = rest.rpartition("]")
    argument = argument if closed else rest
    end = begin.end() + len(name) + 1 + len(argument) + len(closed)
    return _Action(name.strip(), argument.strip(), end, bool(closed) or following is not None)


def _arguments(argument: str, tool: Tool | None) -> str:
    """The arguments as JSON text, where the brackets hold the value of the only parameter."""
    try:
        value = cast("Json", json.loads(argument, strict=False))
    except (ValueError, RecursionError):
        value = argument
    if isinstance(value, dict) or tool is None:
        return argument
    parameters = parameters_of(tool)
    if not argument and not parameters:
        return "{}"
    required = tool.parameters.get("required")
    names = list(parameters) if len(parameters) == 1 else required
    if not isinstance(names, list) or len(names) != 1:
        return argument
    schema = parameters.get(str(names[0]))
    is_text = isinstance(schema, dict) and schema.get("type") == "string"
    if is_text:
        value = value if isinstance(value, str) else argument
    return json.dumps({str(names[0]): value}, ensure_ascii=False)


def _plain(argument: str) -> str:
    """An answer without the quotes or the braces that some models put around it."""
    try:
        value = cast("Json", json.loads(argument, strict=False))
    except (ValueError, RecursionError):
        return argument
    if isinstance(value, dict) and len(value) == 1:
        (value,) = value.values()
        argument = json.dumps(value, ensure_ascii=False)
    return value if isinstance(value, str) else argument
