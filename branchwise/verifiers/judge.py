"""A language model as judge: a grade by a rubric, with reasons."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Literal, NamedTuple, Self, cast

from pydantic import Field, model_validator

from branchwise.core.config import Config, Sampling
from branchwise.core.errors import VerifierError
from branchwise.core.grow import seeds_of
from branchwise.core.judging import cost, settled
from branchwise.core.node import Node
from branchwise.core.template import filled
from branchwise.core.types import Json, Request, Step, Verdict
from branchwise.verifiers.asked import Asks, replies, whole
from branchwise.verifiers.prompts import template

Form = Literal["score", "result", "json"]

_MARK = {
    "score": re.compile(r"(?<![^\W_])score[\s*_]{0,8}:", re.IGNORECASE),
    "result": re.compile(r"\[result\][\s*_]{0,8}:?", re.IGNORECASE),
}
_GRADE = re.compile(
    r"[\s*_`(\[]{0,8}(?P<grade>-?(?:0|[1-9][0-9]{0,8}))(?![0-9]|[.,][0-9])(?:\s?/\s?(?P<of>[0-9]{1,9}))?"
)
_NUMBER = re.compile(r"[\s*_`(\[]{0,8}(-?[0-9]+(?:[.,][0-9]+)*)")
_DIGIT = re.compile(r"[\s*_`(\[:]*([0-9])[\s*_`)\].!/]*")
_END = re.compile(r"[\s*_`)\].!]*\Z")
_OPENING = {"score": "Reasons:", "result": "Feedback:"}
_TEMPLATES: dict[Form, tuple[str, str]] = {
    "score": ("judge", "judge-reference"),
    "json": ("judge-json", "judge-reference"),
    "result": ("prometheus-absolute", "prometheus-reference"),
}
_DIGITS = 9
"""The highest grade that is one token."""
_CANDIDATES = 20
"""Of a place: what G-Eval's servers told at most; what is rarer counts for nothing in a mean."""
_QUOTED = 80
"""Characters of a reply that an error shows."""


class Criterion(Config):
    """One thing that an answer is judged by.

    Args:
        text: what to look at, for the model to read.
        grades: what each grade of the scale means, from the lowest on; without them the lowest and
            the highest are explained in general words.
        weight: how much it counts beside other criteria.
    """

    text: str
    grades: tuple[str, ...] = ()
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)


_CRITERIA = {
    "correctness": Criterion(text="Is what it concludes right, and does each step to it follow?")
}


class Judge(Asks):
    r"""A grade for a node's text from a model, by one criterion or several.

        s = Σ_c w_c mean_k g_ck / Σ_c w_c,   g_ck ∈ {low, ..., high}: grade k by criterion c

    Each criterion is a conversation of its own, with `samples` replies. A grade is a whole number
    of the scale, in the one place where `form` has it:

        score:   the reply ends with `Score: 4`, or `Score: 4/5` where 5 is the highest grade
        result:  the reply ends with `[RESULT] 4`                (Prometheus 2, Kim et al. 2024)
        json:    the reply is `{"reasons": "...", "score": 4}`, asked for as a JSON schema

    Whatever else comes (no grade or two different ones, one that is no number of the scale, a reply
    that was cut) is no grade. Such a reply is left out of the mean, and the verdict's `detail`
    quotes it; where a criterion has no other reply, the node has no verdict but an error.

    With `expected` a reply's grade is the mean over the model's own probabilities in the place
    where the grade stands, g = Σ_g g p(g) / Σ_g p(g) over the scale (G-Eval, Liu et al. 2023, §2,
    which does not divide). It needs a backend that tells candidates, and one digit a grade.

    The verdict's feedback is the reasons of the lowest grade by each criterion, its `detail` the
    mean grades.

    Source: MT-Bench, Zheng et al. 2023, §3.1 (single answer grading); Prometheus 2, Kim et al.
    2024; G-Eval, Liu et al. 2023.

    Args:
        backend: the model.
        system: the system's message; none where it is empty.
        chat: whether the model is asked in a chat, or reads plain text that goes on.
        criteria: by name.
        low: the lowest grade.
        high: the highest.
        form: where the grade stands in a reply.
        scale: whether scores are mapped to [0, 1] (`unit`) or stay grades (`raw`).
        samples: replies by each criterion.
        expected: whether a reply's grade is the mean over the model's probabilities.
        reference: the entry of the task's `meta` that holds an answer to compare with. During a
            search that is an oracle unless everybody may know it.
        template: the user's message, instead of the packaged one of the form; `{prompt}`,
            `{answer}`, `{rubric}`, `{grades}`, `{low}`, `{high}`, `{reference}` and the keys of the
            task's `meta` are filled in.
        sampling: how replies are drawn; the most probable one by default.
        max_tokens: the most tokens of a reply.
        stop: strings that end a reply.

    Raises:
        pydantic.ValidationError: the scale is empty, a criterion does not explain each grade of it,
            all samples would be the same, or grades with `expected` are no digits.

    Example:
        >>> from branchwise import Node, Scripted, State, Step, Task, run_sync
        >>> root = Node(Task("2 + 2?"), State())
        >>> node = Node(root.task, State(), root, 0, Step("It is 4."))
        >>> model = Scripted(lambda request, seed: "It is right, but terse.\nScore: 4")
        >>> [verdict] = run_sync(Judge(backend=model).score, [node])
        >>> verdict.score, verdict.detail, verdict.feedback
        (0.75, 'correctness 4', 'It is right, but terse.')
    """

    kind: Literal["judge"] = "judge"
    criteria: dict[str, Criterion] = Field(default=_CRITERIA, min_length=1)
    low: int = 1
    high: int = 5
    form: Form = "score"
    scale: Literal["unit", "raw"] = "unit"
    samples: int = Field(default=1, ge=1)
    expected: bool = False
    reference: str = ""
    template: str | None = None
    sampling: Sampling = Sampling(temperature=0)
    max_tokens: int = Field(default=512, ge=1)
    stop: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        if self.low >= self.high:
            raise ValueError("`high` has to lie above `low`")
        for name, criterion in self.criteria.items():
            if criterion.grades and len(criterion.grades) != self.high - self.low + 1:
                raise ValueError(f"`grades` of {name!r} needs a text for each grade of the scale")
        if self.samples > 1 and self.sampling.temperature == 0:
            raise ValueError("at temperature 0 all `samples` are the same: raise it, or ask once")
        if self.expected and (self.low < 0 or self.high > _DIGITS):
            raise ValueError("`expected` reads one token, so grades have to be digits")
        if self.expected and self.form == "json":
            raise ValueError("`expected` needs the form `score` or `result`")
        return self

    def request(self, node: Node, criterion: str) -> Request:
        """What the model is asked: a pure function of the node.

        Raises:
            VerifierError: the task has no reference.
        """
        packaged, comparing = _TEMPLATES[self.form]
        rubric = self.criteria[criterion]
        grades = range(self.low, self.high + 1) if rubric.grades else (self.low, self.high)
        told = rubric.grades or ("not met at all", "met in full")
        known = {
            **node.task.meta,
            "prompt": node.task.prompt.strip(),
            "answer": node.text.strip(),
            "rubric": rubric.text,
            "grades": "\n".join(f"Score {g}: {t}" for g, t in zip(grades, told, strict=True)),
            "low": self.low,
            "high": self.high,
        }
        shown = ""
        if self.reference:
            text = node.task.meta.get(self.reference)
            if not isinstance(text, str):
                raise VerifierError(f"the task's meta has no text {self.reference!r} to compare")
            shown = filled(template(comparing), {**known, "reference": text.strip()}) + "\n\n"
        question = filled(self.template or template(packaged), {**known, "reference": shown})
        return replace(
            self._asked(question),
            seeds=tuple(seeds_of(0, node.path, range(self.samples))),
            sampling=self.sampling,
            stop=self.stop,
            max_tokens=self.max_tokens,
            logprobs=self.expected,
            candidates=_CANDIDATES if self.expected else 0,
            schema=self._schema() if self.form == "json" else None,
        )

    async def score(self, nodes: Sequence[Node]) -> Sequence[Verdict | VerifierError]:
        """One verdict for each node; an error where a criterion has no grade.

        Raises:
            BackendError: no later call can succeed either.
            SpecError: the backend follows no schema or tells no candidates, and has to.
        """
        return await settled(self._judge, nodes)

    async def _judge(self, node: Node) -> Verdict | VerifierError:
        try:
            requests = [self.request(node, criterion) for criterion in self.criteria]
        except VerifierError as error:
            return error
        rows = await settled(lambda request: replies(self.backend, request), requests)
        usage = cost(rows)
        means: list[float] = []
        feedback: list[str] = []
        detail: list[str] = []
        for name, row in zip(self.criteria, rows, strict=True):
            grades = [self._read(reply) for reply in row]
            good = [grade for grade in grades if isinstance(grade, Grade)]
            bad = [grade for grade in grades if isinstance(grade, VerifierError)]
            if not good:
                many = f"none of {len(bad)} replies holds one; the first: " if len(bad) > 1 else ""
                return VerifierError(
                    f"no grade for {name!r}: {many}{bad[0].message}", hint=bad[0].hint, spent=usage
                )
            means.append(fmean(grade.value for grade in good))
            reasons = min(good, key=lambda grade: grade.value).reasons
            heading = f"{name}: " if len(self.criteria) > 1 else ""
            feedback += [heading + reasons] if reasons else []
            left_out = f" ({len(bad)} left out, the first: {bad[0].message})" if bad else ""
            detail.append(f"{name} {means[-1]:.4g}{left_out}")
        weights = [criterion.weight for criterion in self.criteria.values()]
        score = math.fsum(w * m for w, m in zip(weights, means, strict=True)) / math.fsum(weights)
        if self.scale == "unit":
            score = (score - self.low) / (self.high - self.low)
        return Verdict(score, "\n\n".join(feedback), ", ".join(detail), usage)

    def _read(self, reply: Step | VerifierError) -> Grade | VerifierError:
        if isinstance(reply, VerifierError):
            return reply
        try:
            whole(reply)
            if self.form == "json":
                grade = _structured(reply.text)
            else:
                grade = _marked(reply.text, self.form, self.high)
            if not self.low <= grade.value <= self.high:
                said = f"{grade.value!s:.20}"  # as text: it may be too large for a float
                raise _unread(f"{said} is no grade from {self.low} to {self.high}", reply.text)
            return grade._replace(value=self._mean(reply, grade)) if self.expected else grade
        except VerifierError as error:
            return error

    def _mean(self, reply: Step, grade: Grade) -> float:
        """The mean over what the model finds probable in the grade's place, on the scale alone."""
        end = len(reply.text)
        for token, candidates in zip(reply.tokens[::-1], reply.candidates[::-1], strict=False):
            drawn = next((one.text for one in candidates if one.token == token), None)
            if drawn is None:
                break
            end -= len(drawn)
            if end <= grade.at:
                law = dict.fromkeys(range(self.low, self.high + 1), 0.0)
                for one in candidates:
                    if (said := _DIGIT.fullmatch(one.text)) and int(said[1]) in law:
                        law[int(said[1])] += math.exp(one.logprob)
                if not law[int(grade.value)]:
                    break
                total = math.fsum(law.values())
                # Divided first: so rounding leads no mean out of the scale.
                return math.fsum(g * (p / total) for g, p in law.items())
        raise _unread("the model does not tell what else it could have said there", reply.text)

    def _schema(self) -> Mapping[str, Json]:
        grades: list[Json] = [*range(self.low, self.high + 1)]
        return {
            "type": "object",
            "properties": {
                "reasons": {"type": "string"},
                "score": {"type": "integer", "enum": grades},
            },
            "required": ["reasons", "score"],
            "additionalProperties": False,
        }


class Grade(NamedTuple):
    """What a reply says.

    Args:
        value: the grade.
        reasons: what stands before it.
        at: where in the text it stands.
    """

    value: float
    reasons: str
    at: int = 0


def _marked(text: str, form: Literal["score", "result"], high: int) -> Grade:
    """The grade behind the mark that the reply ends with.

    Raises:
        VerifierError: the reply does not end with one, or holds different ones.
    """
    marks = list(_MARK[form].finditer(text))
    found = [_GRADE.match(text, mark.end()) for mark in marks]
    what = "`Score: <grade>`" if form == "score" else "`[RESULT] <grade>`"
    if not found or (last := found[-1]) is None or not _END.match(text, last.end()):
        raise _unread(f"it does not end with {what}", text)
    numbers = [_NUMBER.match(text, mark.end()) for mark in marks]
    grades = {match[1] for match in numbers if match is not None}
    if grades != {last["grade"]}:
        raise _unread(f"it holds the grades {', '.join(sorted(grades))}"[:_QUOTED], text)
    if last["of"] is not None and int(last["of"]) != high:
        raise _unread(f"its scale ends at {last['of']}, not at {high}", text)
    reasons = text[: marks[-1].start()].strip(" \t\n\r*_#").removeprefix(_OPENING[form]).strip()
    return Grade(int(last["grade"]), reasons, last.start("grade"))


def _structured(text: str) -> Grade:
    """The grade of a reply that is a JSON object.

    Raises:
        VerifierError: it is something else.
    """
    try:
        said: object = json.loads(text, object_pairs_hook=_once)
        json.dumps(said, ensure_ascii=False).encode()  # no halves of characters: trees are saved
    except (ValueError, RecursionError) as error:
        why = str(error).splitlines()[0][:_QUOTED]
        raise _unread(f"it is no JSON object ({why})", text) from error
    if not isinstance(said, dict):
        raise _unread("it is JSON, but no object", text)
    table = cast("dict[str, object]", said)
    if table.keys() != {"reasons", "score"}:
        raise _unread(f"it has the fields {', '.join(table) or 'of nobody'}"[:_QUOTED], text)
    reasons, score = table["reasons"], table["score"]
    if not isinstance(reasons, str):
        raise _unread("its `reasons` are no text", text)
    if not isinstance(score, int) or isinstance(score, bool):
        raise _unread("its `score` is no whole number", text)
    return Grade(score, reasons.strip())


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a field stands there twice")
    return table


def _unread(why: str, text: str) -> VerifierError:
    return VerifierError(
        f"the judge's reply could not be read: {why}; it ends with {text[-_QUOTED:]!r}",
        hint="the template has to ask for what `form` says, and `max_tokens` to leave room",
    )
