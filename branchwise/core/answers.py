"""Where the final answer stands in a text."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from branchwise.core.spelling import INTEGER, LONGEST, canonical, number, plain

Way: TypeAlias = Literal["boxed", "hashes", "says", "last_number"]


def extract(text: str, ways: Sequence[Way]) -> str | None:
    r"""The final answer of a text in canonical form; None where no way finds one.

    Args:
        text: what was said.
        ways: where to look, the first that finds something wins: `boxed` (the last `\boxed{x}`),
            `hashes` (the last line `#### x`, GSM8K's form), `says` (the last "the answer is x" or
            "answer: x"), `last_number` (the last number of the text).

    Example:
        >>> extract("6 * 3 = 18. The answer is $18.00.", ["boxed", "says"])
        '18'
    """
    for way in ways:
        if answer := _WAYS[way](text):
            return answer
    return None


_BRACES = re.compile(r"(\\(?:boxed|fbox)\s*\{)|\\.|[{}]", re.DOTALL)


def _boxed(text: str) -> str:
    if "box" not in text:
        return ""
    found = ""
    opened: list[int | None] = []
    for brace in _BRACES.finditer(text):
        if brace[1]:
            opened.append(brace.end())
        elif brace[0] == "{":
            opened.append(None)
        elif brace[0] == "}" and opened and (begin := opened.pop()) is not None:
            found = text[begin : brace.start()]
    return canonical(found)


_TRIES = 32
"""How many places, from the end of the text, a way looks at before it gives up."""


def _last(pattern: re.Pattern[str], text: str) -> list[re.Match[str]]:
    return list(deque(pattern.finditer(text), maxlen=_TRIES))[::-1]


_HASHES = re.compile(r"^[ \t]*####[ \t]*([^\n]+)", re.MULTILINE)


def _hashes(text: str) -> str:
    """Level-four headings look the same: a line counts if it holds a number or ends the text."""
    end = len(text.rstrip())
    for line in _last(_HASHES, text):
        answer = canonical(line[1])
        if number(answer.removesuffix("%")) is not None or line.end() >= end:
            return answer
    return ""


_SAYS = re.compile(
    r"(?:\b(?:the|final|correct|our|my|an) |^[ \t*_#>-]{0,12})"
    r"answer\b[^\n.:=]{0,60}?(?:\bis\b|[:=])",
    re.IGNORECASE | re.MULTILINE,
)
_GAP = re.compile(r"\A(?:[\s:=]|\*+(?=\s))*")
_SENTENCE_END = re.compile(r"\n|[.!?](?=[\s*]|$)|, ?(?=[A-Za-z]{2})|;| because ")
_WORDS = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_MATH = re.compile(r"[0-9\\^+=<>]")


def _says(text: str) -> str:
    for lead in _last(_SAYS, text):
        phrase = _GAP.sub("", text[lead.end() : lead.end() + LONGEST])
        phrase = _SENTENCE_END.split(phrase, maxsplit=1)[0]
        answer = canonical(phrase)
        if len(_WORDS.findall(answer)) > 1 and len(numbers := _NUMBER.findall(answer)) == 1:
            return canonical(numbers[0])  # "The answer is that he has 18 of them."
        if answer and (_MATH.search(answer) or len(answer.split()) <= 3):  # noqa: PLR2004  (a name)
            return answer
    return ""


_NUMBER = re.compile(
    r"(?:(?<![\w)\]}])-[$€£¥₹]?|[$€£¥₹]-?)?"
    rf"(?:\\[dt]?frac\{{[0-9]+\}}\{{[0-9]+\}}|(?:{INTEGER})(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?"
    r"(?:[/:][0-9]+)?|\.[0-9]+)(?: ?\\?%)?"
)
_LAST_DIGIT = re.compile(r"\d")


def _last_number(text: str) -> str:
    """The search begins at the last digit: a number is short, and a text need not be."""
    if (last := _LAST_DIGIT.search(text[::-1])) is None:
        return ""
    end = len(text) - last.start()
    found = _NUMBER.findall(plain(text[max(0, end - LONGEST) : end + 4]))
    return canonical(found[-1]) if found else ""


_WAYS: dict[Way, Callable[[str], str]] = {
    "boxed": _boxed,
    "hashes": _hashes,
    "says": _says,
    "last_number": _last_number,
}
