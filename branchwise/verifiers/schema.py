"""Whether an answer is JSON of the wanted shape."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, JsonValue, model_validator

from branchwise.core.config import Config
from branchwise.core.errors import BranchError, SpecError, VerifierError
from branchwise.core.node import Node
from branchwise.core.tools import faults, sound
from branchwise.core.types import Verdict

_LONGEST = 1_000_000


class Schema(Config):
    """1 where an answer is JSON that follows a JSON schema (draft 2020-12), else 0.

    A verdict's `detail` is `valid`, `invalid`, `no JSON` or `no answer`; its feedback says what is
    wrong and where, so that the next draft can mend it. Numbers that JSON does not know, such as
    NaN, are no JSON.

    The time is bounded as it is for the arguments of tools: what takes more than 10,000 checks is
    an error of the node, and `patternProperties`, `unevaluatedProperties` and patterns that may
    take long are not checked. An answer of more than a million characters is no JSON.

    Args:
        json_schema: the schema; references lead to places in itself.
        of: what is read, the `answer` or all of the `text` up to the node.
        fenced: whether the JSON may stand in a fenced block, of which the last one counts.

    Raises:
        pydantic.ValidationError: the schema is none.

    Example:
        >>> from branchwise import Node, State, Task, run_sync
        >>> schema = {"properties": {"age": {"type": "integer"}}, "required": ["age"]}
        >>> node = Node(Task("?"), State(answer='{"age": "four"}'))
        >>> run_sync(Schema(json_schema=schema).score, [node])[0].feedback
        "answer.age: 'four' is not of type 'integer'"
    """

    kind: Literal["schema"] = "schema"
    json_schema: dict[str, JsonValue]
    of: Literal["answer", "text"] = "answer"
    fenced: bool = Field(default=False)

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        try:
            sound(self.json_schema)
        except SpecError as error:
            raise ValueError(f"the schema of answer is broken: {error}") from error
        return self

    async def score(self, nodes: Sequence[Node]) -> Sequence[Verdict | VerifierError]:
        """One verdict for each node; an error where it cannot be checked."""
        return [
            self._judge(node.state.answer if self.of == "answer" else node.text) for node in nodes
        ]

    def _judge(self, text: str | None) -> Verdict | VerifierError:
        if text is None:
            return Verdict(0.0, "There is no answer.", "no answer")
        if len(text) > _LONGEST:
            return Verdict(0.0, f"It has more than {_LONGEST} characters.", "no JSON")
        if self.fenced:
            text = _last_block(text)
        try:
            value: JsonValue = json.loads(text)
            # Not everything that can be read is JSON: NaN, and halves of characters.
            json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            return Verdict(0.0, f"The answer is no JSON: {error}", "no JSON")
        try:
            found = "; ".join(faults(self.json_schema, value, at="answer"))
        except SpecError as error:
            return VerifierError(f"the schema of answer is broken: {error}")
        except BranchError as error:
            return VerifierError(f"the answer cannot be checked: {error}")
        return Verdict(float(not found), found, "invalid" if found else "valid")


def _last_block(text: str) -> str:
    """What stands in the last fenced block; the text itself where there is none."""
    block = text
    inside: list[str] | None = None
    for line in text.split("\n"):
        mark = line.strip()
        if inside is None:
            inside = [] if mark.startswith("```") else None
        elif mark.startswith("```") and not mark.strip("`"):
            block, inside = "\n".join(inside), None
        else:
            inside.append(line)
    return block
