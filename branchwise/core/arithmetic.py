"""Arithmetic as people and models write it, worked out exactly and without `eval`."""

from __future__ import annotations

import ast
import math
import operator
import re
import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

from branchwise.core.spelling import plain

LONGEST = 500
"""Characters of an expression at most."""
BITS = 4096
"""What a number may take at most, above and below the line; intermediate ones too."""

_SIGNS = {"×": "*", "·": "*", "∙": "*", "⋅": "*", "÷": "/", "^": "**", "−": "-"}
_SPELLINGS = (
    (re.compile(r"\\(?:times|cdot)(?![A-Za-z])"), "*"),
    (re.compile(r"\\div(?![A-Za-z])"), "/"),
    (re.compile(r"(?<=[0-9)]) *[xX] *(?=[0-9(])"), "*"),
    (re.compile(r"(?<![0-9.,])([0-9]{1,3}(?:,[0-9]{3})+)(?![0-9,])"), ""),
    (re.compile(r"([0-9.]+) *% +of +"), r"(\1/100)*"),
    (re.compile(r"([0-9.]+) *%(?! *[0-9(])"), r"(\1/100)"),
)
_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: lambda a, b: Fraction(a // b),
    ast.Mod: operator.mod,
}


def expression(text: str) -> Written:
    """An expression as people and models write them.

    Raises:
        ValueError: it is none, or too long; the message says so to whoever wrote it.
    """
    if len(text) > LONGEST:
        raise ValueError(f"an expression has at most {LONGEST} characters")
    for sign, ours in _SIGNS.items():
        text = text.replace(sign, ours)
    text = plain(text).strip()
    for pattern, spelling in _SPELLINGS:
        text = pattern.sub(lambda m, s=spelling: m.expand(s) if s else m[0].replace(",", ""), text)
    try:
        with warnings.catch_warnings():  # "3(4)" looks like a call of a number to Python
            warnings.simplefilter("ignore", SyntaxWarning)
            return Written(ast.parse(text, mode="eval").body, text)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError(f"{text!r:.80} is no expression") from error


def evaluate(text: str) -> Fraction:
    """The exact value of an expression, without `eval`.

    Numbers, brackets, `+ - * / // % ** ^`, percentages (`15% of 80`), and the functions abs,
    min, max, round, floor, ceil, gcd, lcm, factorial and sqrt, which has to come out even.

    Raises:
        ValueError: it has no such value, or would be too large; the message says why.

    Example:
        >>> evaluate("15% of 80 + 2^10"), evaluate("1/3 + 0.1")
        (Fraction(1036, 1), Fraction(13, 30))
    """
    try:
        return _value(expression(text))
    except ZeroDivisionError as error:
        raise ValueError("division by zero") from error
    except RecursionError as error:
        raise ValueError("it has too many brackets") from error


class Written(NamedTuple):
    """An expression: its tree, and the text that the tree's places refer to."""

    tree: ast.expr
    text: str

    def inside(self, tree: ast.expr) -> Written:
        """A part of it."""
        return Written(tree, self.text)

    def number(self) -> Fraction:
        """The number that it is, as it was written: 0.1 is one tenth.

        Raises:
            ValueError: it is no number, or too large.
        """
        digits = ast.get_source_segment(self.text, self.tree) or ""
        if _LITERAL.fullmatch(digits) is None:
            raise ValueError(f"{digits!r:.40} is no number that can be worked with")
        return _bounded(Fraction(digits))


_LITERAL = re.compile(r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?")


def _value(written: Written) -> Fraction:
    def of(tree: ast.expr) -> Fraction:
        return _value(written.inside(tree))

    match written.tree:
        case ast.Constant():
            return written.number()
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -of(inner)
        case ast.UnaryOp(op=ast.UAdd(), operand=inner):
            return of(inner)
        case ast.BinOp(left=left, op=op, right=right):
            return _applied(op, of(left), of(right))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            return _called(name.lower(), [of(arg) for arg in args])
        case other:
            raise ValueError(f"{ast.unparse(other)!r:.80} is more than a calculation")


def _applied(op: ast.operator, a: Fraction, b: Fraction) -> Fraction:
    if isinstance(op, ast.Pow):
        return _power(a, b)
    if type(op) not in _OPERATORS:
        raise ValueError(f"{type(op).__name__} is no operator of a pocket calculator")
    return _bounded(_OPERATORS[type(op)](a, b))


def _power(a: Fraction, b: Fraction) -> Fraction:
    if b == Fraction(1, 2):
        return _root(a)
    if b.denominator != 1:
        raise ValueError("only whole powers and square roots are exact")
    size = max(a.numerator.bit_length(), a.denominator.bit_length())
    if size > 1 and size * abs(b) > BITS:  # before it is worked out
        raise ValueError("the power is too large")
    return _bounded(a ** int(b))


def _root(a: Fraction) -> Fraction:
    if a >= 0:
        root = Fraction(math.isqrt(a.numerator), math.isqrt(a.denominator))
        if root * root == a:
            return root
    raise ValueError(f"the square root of {spelled(a)} is not rational")


def _called(name: str, args: list[Fraction]) -> Fraction:
    if name in _FUNCTIONS and args:
        function, most, whole = _FUNCTIONS[name]
        if len(args) <= most and (not whole or all(each.denominator == 1 for each in args)):
            return _bounded(Fraction(function(*args)))
    raise ValueError(f"there is no {name} of {', '.join(map(spelled, args)) or 'nothing'} here")


def _rounded(a: Fraction, places: Fraction = Fraction()) -> Fraction:
    """As people round, and not to the even neighbour."""
    if places not in range(_MOST_PLACES):
        raise ValueError(f"numbers are rounded to 0 to {_MOST_PLACES - 1} places")
    unit = 10 ** int(places)
    away = Fraction(math.floor(abs(a) * unit + Fraction(1, 2)), unit)
    return away if a >= 0 else -away


def _factorial(n: Fraction) -> int:
    if n not in range(_MOST_FACTORIAL):
        raise ValueError(f"factorials go from 0 to {_MOST_FACTORIAL - 1}")
    return math.factorial(int(n))


def _gcd(*numbers: Fraction) -> int:
    return math.gcd(*map(int, numbers))


def _lcm(*numbers: Fraction) -> int:
    return math.lcm(*map(int, numbers))


_MOST_PLACES, _MOST_FACTORIAL, _MANY = 101, 501, 100

_FUNCTIONS: dict[str, tuple[Callable[..., Fraction | int], int, bool]] = {
    "abs": (Fraction.__abs__, 1, False),
    "sqrt": (_root, 1, False),
    "floor": (math.floor, 1, False),
    "ceil": (math.ceil, 1, False),
    "round": (_rounded, 2, False),
    "min": (lambda *a: min(a), _MANY, False),
    "max": (lambda *a: max(a), _MANY, False),
    "gcd": (_gcd, _MANY, True),
    "lcm": (_lcm, _MANY, True),
    "factorial": (_factorial, 1, True),
}
"""What each is, how many numbers it takes at most, and whether they have to be whole."""


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > BITS:
        raise ValueError("the number is too large")
    return value


def spelled(value: Fraction | int) -> str:
    """A number in one way: a whole one, a decimal where it ends, else a fraction.

    Example:
        >>> [spelled(x) for x in (Fraction(6, 2), Fraction(-3, 4), Fraction(8, 3))]
        ['3', '-0.75', '8/3']
    """
    value = Fraction(value)
    if value.denominator == 1:
        return str(value.numerator)
    places, scaled = 0, value
    while scaled.denominator != 1 and places < _PLACES:
        places, scaled = places + 1, scaled * 10
    if scaled.denominator != 1:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(scaled.numerator)).rjust(places + 1, "0")
    sign = "-" if value < 0 else ""
    return f"{sign}{digits[:-places]}.{digits[-places:]}"


_PLACES = 12
