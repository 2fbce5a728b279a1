"""Whether two answers mean the same: exact where numbers settle it, Math-Verify where not."""

import json
import re
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pydantic import Field

from branchwise.core.aio import gather
from branchwise.core.answers import Way, extract
from branchwise.core.config import Config
from branchwise.core.errors import SpecError, VerifierError
from branchwise.core.node import Node
from branchwise.core.spelling import LONGEST, canonical, number
from branchwise.core.types import Verdict
from branchwise.verifiers.workers import WorkerDiedError, Workers

_WORKER = Path(__file__).with_name("math_worker.py")


class MathEqual(Config):
    """1 where the answer equals the task's target, 0 where it does not: a grader for mathematics.

    Equal spellings and plain numbers are compared here. The rest goes to Math-Verify, in processes
    that can be killed, for algebra may take for ever. A verdict's `detail` is `equal`, `different`,
    `unparsed` (the answer is no mathematics) or `no answer`; running out of time or memory is no
    wrong answer but an error, whose message begins with `timeout`.

    A percentage equals its number and its share: 50 % is 50 and 0.5. Numbers with a base or a
    colon equal only their like: 7_8 is not 7, and 3:4 is not 3/4.

    Args:
        workers: the most processes at one time; each starts when it is first needed.
        seconds: the most time for one comparison.
        memory: the most address space of a process, in bytes.
        extract: where to look in an answer or a target that is a text; what holds none of these is
            compared as a whole.

    Example:
        >>> from branchwise import Node, State, Task, run_sync
        >>> async def grade(answer: str, target: str) -> str:
        ...     async with MathEqual().open() as verifier:
        ...         node = Node(Task("?", target), State(answer=answer))
        ...         return (await verifier.score([node]))[0].detail
        >>> run_sync(grade, "0.75", "3/4")
        'equal'
    """

    kind: Literal["math-equal"] = "math-equal"
    workers: int = Field(default=2, ge=1)
    seconds: float = Field(default=5.0, gt=0)
    memory: int = Field(default=1 << 30, ge=1 << 28)
    extract: tuple[Way, ...] = ("boxed", "hashes", "says")

    @asynccontextmanager
    async def open(self) -> AsyncGenerator["MathEquality"]:
        """The verifier; its processes end with the block.

        Raises:
            SpecError: Math-Verify is not installed.
        """
        if find_spec("math_verify") is None:
            raise SpecError("math-equal needs Math-Verify", hint="pip install 'branchwise[math]'")
        command = [sys.executable, "-P", str(_WORKER), str(self.seconds + 1), str(self.memory)]
        workers = Workers(command, count=self.workers, seconds=self.seconds)
        try:
            yield MathEquality(self.extract, workers)
        finally:
            await workers.aclose()


class MathEquality:
    """A `MathEqual` at work.

    Args:
        ways: where to look for the answer in a text.
        workers: the processes for what takes algebra.
    """

    def __init__(self, ways: Sequence[Way], workers: Workers) -> None:
        self._ways = ways
        self._workers = workers

    async def score(self, nodes: Sequence[Node]) -> Sequence[Verdict | VerifierError]:
        """One verdict for each node; equal questions are asked once."""
        pairs = [self._pair(node) for node in nodes]
        unique = list(dict.fromkeys(pair for pair in pairs if isinstance(pair, tuple)))
        words = dict(zip(unique, await gather(self._compare, unique), strict=True))
        return [_verdict(words[pair]) if isinstance(pair, tuple) else pair for pair in pairs]

    def _pair(self, node: Node) -> tuple[str, str] | Verdict | VerifierError:
        target, answer = node.task.target, node.state.answer
        if target is None:
            return VerifierError(
                "there is no target to compare with",
                hint="the target is hidden from a search: use math-equal as the grader, "
                "or set oracle = true",
            )
        if answer is None:
            return Verdict(0.0, detail="no answer")
        return self._read(answer), self._read(target)

    def _read(self, text: str) -> str:
        return _normal(extract(text, self._ways) or canonical(text))

    async def _compare(self, pair: tuple[str, str]) -> str:
        answer, target = pair
        if (equal := same(answer, target)) is not None:
            return "equal" if equal else "different"
        if len(target) > LONGEST:
            return "unparsed target"
        if len(answer) > LONGEST:
            return "unparsed"
        try:
            return (await self._workers.ask(json.dumps(pair).encode())).decode()
        except TimeoutError:
            return "timeout: the comparison took too long"
        except WorkerDiedError:
            return "timeout: the comparison took too much memory or ended its process"


def _verdict(word: str) -> Verdict | VerifierError:
    if word == "unparsed target":
        return VerifierError(word, hint="Math-Verify cannot read it; compare with `exact` instead")
    if word.startswith("timeout"):
        return VerifierError(word, hint="it counts neither as right nor as wrong")
    return Verdict(float(word == "equal"), detail=word)


_RATIO = re.compile(r"([0-9]+(?:\.[0-9]+)?):([0-9]+(?:\.[0-9]+)?)")
_BASED = re.compile(r"[0-9A-F]+_[0-9]+")
_NAME = re.compile(r"[A-Za-z]{3,}(?:[ '-][A-Za-z]+)*")
_ROUNDING = Fraction(1, 100_000)
"""Farther apart than this, two numbers cannot be one rounded to the six places that count."""


def same(answer: str, target: str) -> bool | None:
    """Whether two canonical answers are equal; None where that takes algebra.

    Example:
        >>> same("1000", "1000"), same("0.5", "3/4"), same("2x", "x+x")
        (True, False, None)
    """
    if answer == target:
        return True
    x, y = number(answer), number(target)
    if x is not None and y is not None:
        return True if x == y else False if abs(x - y) > _ROUNDING else None
    ratio, other = _RATIO.fullmatch(answer), _RATIO.fullmatch(target)
    if ratio and other:
        return Fraction(ratio[1]) * Fraction(other[2]) == Fraction(ratio[2]) * Fraction(other[1])
    if ratio or other or _BASED.fullmatch(answer) or _BASED.fullmatch(target):
        return False
    if _NAME.fullmatch(target):
        return answer.casefold() == target.casefold()
    return None


_BETWEEN = re.compile(
    r"([^<>≤≥,]+?) ?(<|≤|\\leq?(?![A-Za-z])) ?[A-Za-z] ?(<|≤|\\leq?(?![A-Za-z])) ?([^<>≤≥,]+)"
)
_SIGNS = str.maketrans({"²": "^2", "³": "^3", "√": r"\sqrt "})
_IMAGINARY = re.compile(r"\\sqrt ?\{?-1\}?(?![0-9.])")


def _normal(answer: str) -> str:
    """What Math-Verify misreads, in a spelling that it reads."""
    answer = _IMAGINARY.sub("i", answer.translate(_SIGNS))
    if between := _BETWEEN.fullmatch(answer):
        low, left, right, high = between.groups()
        return f"{'(' if left == '<' else '['}{low},{high}{')' if right == '<' else ']'}"
    return answer
