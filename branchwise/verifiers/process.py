"""What a process reward model makes of each step of an answer."""

import dataclasses
import math
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Annotated, ClassVar, Literal, NamedTuple, Self, cast

from pydantic import (
    BeforeValidator,
    Field,
    SkipValidation,
    TypeAdapter,
    ValidationInfo,
    model_validator,
)

from branchwise.core.config import Beside, Config
from branchwise.core.errors import VerifierError, suggestion
from branchwise.core.judging import cost, settled
from branchwise.core.node import Node
from branchwise.core.template import filled
from branchwise.core.types import Message, Reading, Request, Scoring, Step, Verdict
from branchwise.verifiers.aggregate import How, aggregated
from branchwise.verifiers.outcome import Number, readings_of
from branchwise.verifiers.steps import Parts, parts

_SUFFIX = ".toml"
_path = TypeAdapter(Beside)


class Asked(NamedTuple):
    """One reading that a model is asked for.

    Args:
        request: the question and the steps.
        since: the first of its steps to judge.
        every: every how manieth of the readings is that of a step.
    """

    request: Request
    since: int = 0
    every: int = 1


class Format(Config):
    r"""How a process reward model wants to see a question and its steps, and where its number is.

    Steps are pieces of one answer, with a number after each; or, with a `reply`, turns of a chat:
    the user says a step, the assistant says `reply`, and the number is what the assistant would
    say at the end of a user's turn.

    Args:
        chat: whether the model reads a chat; else a plain text.
        system: the system's message; none where it is empty.
        question: the user's message, or the beginning of the text; `{prompt}` is filled in.
        separator: what ends a step in the policy's text; where it is empty, a node is a step.
        strip: whether the separator and white space around a step are left out.
        step: how a step is written; `{step}`, its `{number}` from 1, and `{prompt}` are filled in.
        first: the same for the first step, where that differs.
        mark: what is written after each step, tokenised by itself, not with the step; the number
            then stands after it.
        reply: what the assistant says to each step, where steps are turns.
        read: where the number is read: `words` or `value`.
        how: how the scores of the steps inside one node become its score.

    Raises:
        pydantic.ValidationError: the model would not see the question or the steps.

    Example:
        >>> Format(chat=False, question="Q: {prompt}", step="\n{step} ки",
        ...        read={"kind": "words", "good": ["+"], "bad": ["-"]}).how
        'min'
    """

    chat: bool = True
    system: str = ""
    question: str = "{prompt}"
    separator: str = "\n\n"
    strip: bool = True
    step: str = "{step}"
    first: str | None = None
    mark: str = ""
    reply: str = ""
    read: Number
    how: How = "min"

    @model_validator(mode="after")
    def _shown(self) -> Self:
        first = self.step if self.first is None else self.first
        if not all("{step}" in template for template in (self.step, first)):
            raise ValueError("`{step}` has to stand in `step` and in `first`")
        if self.reply and (self.mark or not self.chat):
            raise ValueError("with a `reply` steps are turns of a chat, without a `mark`")
        asked = first if self.reply else self.question
        if "{prompt}" not in asked:
            where = "`first`, for steps are turns" if self.reply else "`question`"
            raise ValueError(f"`{{prompt}}` has to stand in {where}")
        return self

    def parts(self, node: Node) -> Parts:
        """The steps that end at a node, as they are written; what is blank is none."""
        before, own = (
            tuple(text for text in map(self._stripped, steps) if text.strip())
            for steps in parts(node, self.separator)
        )
        return Parts(before, own)

    def asked(self, prompt: str, steps: Parts) -> list[Asked]:
        """What the model reads to judge `steps.own`: a pure function.

        Args:
            prompt: the question.
            steps: from `parts`.
        """
        written = [
            self._written(prompt, number, step)
            for number, step in enumerate((*steps.before, *steps.own), start=1)
        ]
        system = [Message("system", self.system)] if self.system else []
        if self.reply:
            chat: list[Message] = list(system)
            prefixes: list[Asked] = []
            for step in written:
                chat.append(Message("user", step))
                prefixes.append(Asked(Request(messages=tuple(chat))))
                chat.append(Message("assistant", self.reply))
            return prefixes[len(steps.before) :]
        pieces = [piece for step in written for piece in (step, self.mark) if piece]
        said, every = tuple(map(Step, pieces)), 2 if self.mark else 1
        question, since = filled(self.question, {"prompt": prompt}), every * len(steps.before)
        if not self.chat:
            return [Asked(Request(prompt=question, said=said), since, every)]
        messages = (*system, Message("user", question))
        return [Asked(Request(messages=messages, said=said), since, every)]

    def _written(self, prompt: str, number: int, step: str) -> str:
        template = self.step if self.first is None or number > 1 else self.first
        return filled(template, {"prompt": prompt, "number": number, "step": step})

    def _stripped(self, step: str) -> str:
        if not self.strip:
            return step
        text, end = step.strip(), self.separator.strip()
        while end and text.endswith(end):
            text = text.removesuffix(end).rstrip()
        return text


def formats() -> list[str]:
    """The names of the formats that the package has.

    Example:
        >>> "math-shepherd" in formats()
        True
    """
    return sorted(_tables())


@cache
def _tables() -> dict[str, dict[str, object]]:
    folder = files("branchwise.verifiers").joinpath("formats")
    return {
        entry.name.removesuffix(_SUFFIX): tomllib.loads(entry.read_text(encoding="utf-8"))
        for entry in folder.iterdir()
        if entry.name.endswith(_SUFFIX)
    }


def _read(value: str, info: ValidationInfo) -> dict[str, object]:
    """A format in a file."""
    path = _path.validate_python(value, context=info.context)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # also what is no UTF-8
        raise ValueError(f"{path}: not a TOML file: {error}") from error


def _loaded(value: object, info: ValidationInfo) -> object:
    """A format by its name or its file, and one that is `like` another but for some fields."""
    if isinstance(value, str):
        value = _read(value, info) if value.endswith(_SUFFIX) else {"like": value}
    if not isinstance(value, Mapping) or "like" not in value:
        return cast("object", value)
    own = dict(cast("Mapping[str, object]", value))
    name = own.pop("like")
    tables = _tables()
    if not isinstance(name, str) or name not in tables:
        raise ValueError(f"no format {name!r}{suggestion(str(name), sorted(tables))}")
    other = tables[name]
    was, read = other["read"], own.get("read")
    if isinstance(was, Mapping) and isinstance(read, Mapping):
        old, new = cast("Mapping[str, object]", was), cast("Mapping[str, object]", read)
        # Another kind of number has nothing in common with the old one.
        same = new.get("kind", old["kind"]) == old["kind"]
        own["read"] = {**old, **new} if same else new
    return {**other, **own}


class ProcessReward(Config):
    r"""What a process reward model makes of each step that a node says.

    The steps said above the node are read before its own, but judged on their own nodes. So a node
    of a step search has one score, and one of best-of-N as many as its text has steps; the
    verdict's `steps` are these, its score is made of them. An empty step, with which some servers
    end an answer, has the score of the step before it, which is read again.

    Source: Uesato et al. 2022; Lightman et al. 2024; the formats name their own.

    Args:
        backend: the model.
        format: how the model wants to see the steps: a name (`formats()`), a table, a table that
            is `like` a name but for some fields, or the path of a .toml file with such a table; a
            relative one in a spec is relative to the spec's folder.
        how: how the scores of the steps inside one node become its score; by default as the
            format says.

    Example:
        >>> from branchwise import Node, State, Step, Task, run_sync
        >>> class Model:
        ...     async def read(self, request, *, since=0, state=False, words=()):
        ...         return [Reading((1,), values=(0.0, 0.0)) for _ in request.said[since:]]
        >>> root = Node(Task("1 + 2 + 3?"), State())
        >>> node = Node(root.task, State(), root, 0, Step("1 + 2 = 3\n\n3 + 3 = 6"))
        >>> judge = ProcessReward(backend=Model(), format="qwen2.5-math-prm")
        >>> [verdict] = run_sync(judge.score, [node])
        >>> verdict.steps, verdict.score
        ((0.5, 0.5), 0.25)
    """

    reads: ClassVar[bool] = True

    backend: SkipValidation[Scoring] = Field(exclude=True, repr=False)
    kind: Literal["prm"] = "prm"
    format: Annotated[Format, BeforeValidator(_loaded)]
    how: How | None = None

    async def score(self, nodes: Sequence[Node]) -> Sequence[Verdict | VerifierError]:
        """One verdict for each node; an error where it says nothing or the model gave no number.

        Raises:
            SpecError: the model cannot do what is asked.
            BackendError: no later call can succeed either.
        """
        return await settled(self._judge, nodes)

    async def _judge(self, node: Node) -> Verdict | VerifierError:
        before, own = self.format.parts(node)
        judged = Parts(before, own) if own else Parts(before[:-1], before[-1:])
        if not judged.own:
            return VerifierError("there is no text to judge")
        asked = self.format.asked(node.task.prompt, judged)
        replies = await settled(self._read, asked)
        usage = cost(replies)
        scores: list[float] = []
        for reply in replies:
            if isinstance(reply, VerifierError):
                return VerifierError(reply.message, hint=reply.hint, spent=usage)
            scores += map(self.format.read.number, reply)
        for step, score in zip(judged.own, scores, strict=True):
            if not math.isfinite(score):
                return VerifierError(
                    f"the model's number after the step {step.strip()[-80:]!r} is {score}",
                    spent=usage,
                )
        score = aggregated(scores, self.how or self.format.how)
        return Verdict(score, usage=usage, steps=tuple(scores) if own else ())

    async def _read(self, asked: Asked) -> Sequence[Reading] | VerifierError:
        reply = await readings_of(self.backend, asked.request, self.format.read, asked.since)
        if isinstance(reply, VerifierError) or asked.every == 1:
            return reply
        # What reading a step has cost is on the step, and its number on the mark after it.
        return [
            dataclasses.replace(mark, usage=text.usage + mark.usage)
            for text, mark in zip(reply[::2], reply[1::2], strict=True)
        ]
