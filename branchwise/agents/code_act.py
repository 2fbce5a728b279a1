"""Code as action: the model writes Python, the world shows what it prints."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal

from branchwise.agents.chat import Chat
from branchwise.core.node import Node
from branchwise.core.template import filled
from branchwise.core.types import Message, State, Step

_BLOCK = re.compile(
    r"^[ \t]*(?P<fence>`{3,}|~{3,})[ \t]*(?:python3?|py)[ \t]*\n.*?(?:^[ \t]*(?P=fence)|\Z)",
    re.DOTALL | re.MULTILINE | re.IGNORECASE,
)
_FENCE = re.compile(r"^[ \t]*```", re.MULTILINE)
_INSTRUCTIONS = """\
Solve the task with Python, a piece at a time. In each turn, say in a sentence what you want to \
know, write one block of code, and stop:
```python
print(6 * 7)
```
You are then shown what it has printed. Variables and functions stay for later blocks. When you \
know the answer, give it in words, without any code."""


class CodeAct(Chat):
    r"""Acts by writing Python: each turn is a fenced block of code, and its output is the answer.

    The step is the reply as it is; an environment such as `PythonREPL` carries out the block in it,
    and takes a reply without one for the final answer. A reply ends with the block, so that the
    model does not make up the output. Where it ended at the opening fence of a block that does not
    say `python`, it counts as cut short (`length`): half a reply is no final answer. The world sees
    no `prefill`, so that must not open a block.

    Source: Wang et al. 2024 (CodeAct).

    Args:
        backend: the model.
        system: the system's message; the `instructions` follow it.
        template: the user's message; `{prompt}` and the keys of the task's `meta` in braces are
            filled in, other braces stay as they are.
        shots: worked examples, as earlier turns.
        sampling: how tokens are drawn.
        max_tokens: the most tokens of one step.
        stop: strings that end a step; by default the end of a block.
        logprobs: whether to ask for the log-probabilities of the tokens.
        prefill: how each reply of the model begins: it goes on from these words, which are no part
            of its step.
        history: what is left out of long conversations; None asks with all of it.
        instructions: how code is written.
        output: how output is shown to the model; `{output}` is filled in.

    Example:
        >>> from branchwise import Node, Scripted, State, Step, Task
        >>> policy = CodeAct(backend=Scripted(lambda request, seed: ""))
        >>> root = Node(Task("What is 6 * 7?"), State())
        >>> code = Step("Let me see.\n```python\nprint(6 * 7)\n```\n")
        >>> node = Node(root.task, State(observation="42"), root, 0, code)
        >>> policy.request(node, [1]).messages[-1].content
        'Output:\n42'
    """

    kind: Literal["code-act"] = "code-act"  # pyright: ignore[reportIncompatibleVariableOverride]  (the tag of another kind)
    stop: tuple[str, ...] = ("\n```\n",)
    instructions: str = _INSTRUCTIONS
    output: str = "Output:\n{output}"

    def preface(self, node: Node) -> str:  # noqa: ARG002  (code is written the same anywhere)
        """The system's message: how code is written."""
        return "\n\n".join(part for part in (self.system, self.instructions) if part)

    def read(self, step: Step, node: Node) -> Step:  # noqa: ARG002  (code reads the same anywhere)
        """The reply; cut short where a stop string ended it within a block."""
        text = self.prefill + step.text
        opened = len(_FENCE.findall(text)) % 2 == 1
        if opened and step.finish == "stop":
            return dataclasses.replace(step, finish="length")
        return step

    def turn(self, said: Sequence[Step], state: State) -> list[Message]:
        """The model's turn up to the end of its last block, and the output."""
        text = self.prefill + "".join(step.text for step in said)
        ends = [block.end() for block in _BLOCK.finditer(text)]
        text = text[: ends[-1]] if ends else text
        heard = "\n".join(part for part in (*state.results, state.observation) if part)
        told = Message("user", filled(self.output, {"output": heard}))
        return [*([Message("assistant", text.strip())] if text.strip() else []), told]
