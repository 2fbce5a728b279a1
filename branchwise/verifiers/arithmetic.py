"""Whether what a text calculates is right: a pocket calculator as a process verifier."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

from branchwise.core.arithmetic import evaluate
from branchwise.core.config import Config
from branchwise.core.node import Node
from branchwise.core.types import Verdict

_NUMBER = r"[$€£]?\d[\d,]*(?:\.\d+)?%?"
_OPERATOR = r"[-+*/×÷x]"
_OPEN, _CLOSE = r"(?:\( ?)*", r"(?: ?\))*"
_TERM = rf"{_OPEN}-?{_NUMBER}(?: [a-z]+(?: [a-z]+)?)?{_CLOSE}"
_EQUATION = re.compile(
    rf"(?<![\w.)%=]) ?(?P<left>{_TERM}(?: ?{_OPERATOR} ?{_TERM}){{1,8}}) ?= ?"
    r"[$€£]?(?P<right>-?\d[\d,]*(?:\.\d+)?)(?![\d%]| ?[-+*/×÷^] ?\d)",
    re.IGNORECASE,
)


class Arithmetic(Config):
    """Minus the number of wrong calculations on the path: 0 where none is wrong.

    It reads calculations such as `12 * 3 - 4 = 32` out of what was said and works them out exactly;
    a result may be rounded to the decimals that it shows. It needs no target and no model, so a
    search may use it for process scores (it judges the text so far) and for outcome scores alike.
    What it cannot read it does not judge, and whether the right things were calculated it cannot
    tell: it is good for a small model's slips.

    Source: the calculator of Cobbe et al. 2021, §4, as a judge instead of a tool.

    Example:
        >>> from branchwise import Node, State, Step, Task, run_sync
        >>> wrong = Node(Task("?"), State(), step=Step("They have 3 * 4 = 14 apples."))
        >>> [verdict] = run_sync(Arithmetic().score, [wrong])
        >>> verdict.score, verdict.feedback
        (-1.0, '3 * 4 is 12, not 14.')
    """

    kind: Literal["arithmetic"] = "arithmetic"

    async def score(self, nodes: Sequence[Node]) -> Sequence[Verdict]:
        """One verdict for each node."""
        return [_judge(node.text) for node in nodes]


def _judge(text: str) -> Verdict:
    checked, wrong = 0, list[str]()
    for line in text.splitlines():
        for equation in _EQUATION.finditer(_without_latex(line[:_LONGEST])):
            left, said = _plain(equation["left"]), equation["right"].replace(",", "")
            value = _value(left)
            if value is None:
                continue
            checked += 1
            decimals = len(said.partition(".")[2])
            if abs(value - Fraction(said)) > Fraction(1, 2 * 10**decimals) * (decimals > 0):
                wrong.append(f"{' '.join(left.split())} is {_shown(value)}, not {said}.")
    return Verdict(-float(len(wrong)), "\n".join(wrong), f"{checked} checked")


_LONGEST = 500
"""Characters of a line that are read: a calculation is short, and matching is not linear."""


_LATEX = tuple(
    (re.compile(pattern), plain)
    for pattern, plain in (
        (r"\\(?:text|mathrm|textbf)\{([^{}]*)\}", r"\1"),
        (r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}", r"(\1) / (\2)"),
        (r"\\(?:times|cdot)(?![a-z])", "*"),
        (r"\\div(?![a-z])", "/"),
        (r"\\boxed\{([^{}]*)\}", r"\1"),
        (r"\\([$%])", r"\1"),
        (r"\\[()\[\],;:! ]", " "),
        (r" {2,}", " "),
    )
)


def _without_latex(line: str) -> str:
    if "\\" in line:
        for pattern, plain in _LATEX:
            line = pattern.sub(plain, line)
    return line


def _plain(left: str) -> str:
    """An expression of digits, operators and brackets; units and signs of currencies fall away."""
    left = re.sub(r"(?<=[\d)%]) ?[x×] ?(?=[\d($-])", " * ", left).replace("÷", "/")
    left = re.sub(r"(\d+(?:\.\d+)?)%", r"(\1/100)", left.replace(",", ""))
    return re.sub(r"[^-+*/().\d ]", "", left)


def _value(left: str) -> Fraction | None:
    try:
        return evaluate(left)
    except ValueError:
        return None


def _shown(value: Fraction) -> str:
    return str(value) if value.denominator == 1 else f"{float(value):.4g}"
