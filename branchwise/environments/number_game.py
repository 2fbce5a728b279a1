"""Games in which numbers are put together, two at a time, until they make a target."""

from __future__ import annotations

import ast
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import permutations
from typing import ClassVar, TypeAlias

from branchwise.core.arithmetic import Written, expression
from branchwise.core.errors import SpecError
from branchwise.core.spelling import plain
from branchwise.core.types import Json, State, Step, Task
from branchwise.environments.game import Game, Illegal, Position

Value: TypeAlias = int | Fraction
"""Whole numbers are ints: they are much faster than fractions."""
Rule: TypeAlias = Callable[[str, Value, Value], Value]
"""What an operator makes of two numbers; it raises `Illegal`."""

OPERATORS = "+-*/"


class Numbers(Position):
    """Where a number game stands.

    Args:
        given: the numbers that it began with.
        target: what they shall make.
        left: the numbers that are left, each with how it was made, in order.
        said: the final expression, where the player announced one.
    """

    given: tuple[str, ...]
    target: str
    left: tuple[tuple[str, str], ...]
    said: str | None = None


class NumberGame(Game[Numbers]):
    """The rules that number games share: what two numbers make, and when it is over, differ.

    Args:
        most_steps: the game is cut after so many moves, illegal ones included.
        illegal: after an illegal move one may `stay` and try again, or it is the `end` of the
            branch, which is cut.
        tell: whether the rules and the position are told; if not, only what is wrong with an
            illegal move is, as suits policies whose own text keeps the books.
    """

    all_used: ClassVar[bool]

    @abstractmethod
    def asked(self, task: Task) -> tuple[Sequence[Value], Value]:
        """The numbers and the target of a task.

        Raises:
            SpecError: it does not say them.
        """

    @property
    @abstractmethod
    def rule(self) -> Rule:
        """What two numbers make: a plain function, for the solver's memory is kept under it."""

    def begin(self, task: Task) -> Numbers:
        """All numbers are left.

        Raises:
            SpecError: the task does not say at least two numbers and a target.
        """
        numbers, target = self.asked(task)
        if len(numbers) < 2:  # noqa: PLR2004  (an operation takes two)
            raise SpecError(f"this game needs at least two numbers: {task.prompt!r:.60}")
        if not self.all_used and target in numbers:
            raise SpecError(f"the target is one of the numbers: {task.prompt!r:.60}")
        given = tuple(map(str, numbers))
        return Numbers(given=given, target=str(target), left=_ordered((n, n) for n in given))

    def load(self, snapshot: object) -> Numbers:
        """The position that a snapshot stands for."""
        return Numbers.model_validate(snapshot)

    def options(self, position: Numbers) -> list[str]:
        """All operations on two of the numbers that are left, each once."""
        found: dict[str, None] = {}
        values = _values(position)
        for i, j in _pairs(len(values)):
            rest = [values[k] for k in range(len(values)) if k not in (i, j)]
            for op in OPERATORS:
                try:
                    made = self.rule(op, values[i], values[j])
                except Illegal:
                    continue
                if i > j and op in "+*":
                    continue  # the same as the other way round
                left = " ".join(map(str, sorted([*rest, made], reverse=True)))
                move = f"{_in_brackets(values[i])} {op} {_in_brackets(values[j])} = {made}"
                found[f"{move} (left: {left})"] = None
        return list(found)

    def play(self, position: Numbers, line: str) -> Numbers | None:
        """The position after `a op b = c (left: ...)`, or after `Answer: expression`."""
        if announced := _ANSWER.search(line):
            return self._announced(position, announced[1])
        move = _MOVE.search(_plain(line)) if "=" in line else None
        if move is None:
            return None
        if move["after"]:
            raise Illegal("one operation on two numbers makes a move.")
        a, op, b = _number(move["a"]), move["op"], _number(move["b"])
        rest = list(position.left)
        hows: list[str] = []
        for value in (a, b):
            how = next((term for term in rest if _number(term[0]) == value), None)
            if how is None:
                once = " twice" if hows and a == b else ""
                raise Illegal(f"{value} is not left{once}.")
            rest.remove(how)
            hows.append(how[1])
        made = self.rule(op, a, b)
        if _number(move["c"]) != made:
            raise Illegal(f"{a} {op} {b} is {made}, not {move['c']}.")
        left = _ordered([*rest, (str(made), _joined(op, *hows))])
        if move["left"] is not None:
            said = Counter(map(_number, re.findall(_NUMBER, move["left"])))
            if said != Counter(_number(value) for value, _ in left):
                raise Illegal(f"then {' '.join(value for value, _ in left)} are left.")
        return position.model_copy(update={"left": left})

    def _announced(self, position: Numbers, text: str) -> Numbers:
        """The final expression: it has to use the given numbers, and ends the game."""
        text = plain(text).partition("=")[0].strip(" .`*$")
        used: Counter[Value] = Counter()
        try:
            written = expression(text)
            made = self._made(written, used)
        except ValueError as error:
            raise Illegal(f"{error}.") from error
        given = Counter(map(_number, position.given))
        if used - given or (self.all_used and given - used):
            each = "each of" if self.all_used else "at most"
            raise Illegal(f"an answer uses {each} {' '.join(position.given)} once.")
        return position.model_copy(
            update={"said": written.text, "left": ((str(made), written.text),)}
        )

    def _made(self, written: Written, used: Counter[Value]) -> Value:
        match written.tree:
            case ast.Constant():
                value = _whole(written.number())
                used[value] += 1
                return value
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _SYMBOLS:
                sides = [self._made(written.inside(side), used) for side in (left, right)]
                return self.rule(_SYMBOLS[type(op)], *sides)
            case _:
                raise ValueError("an answer has numbers, brackets and + - * / only")

    def over(self, position: Numbers) -> bool:
        """Whether there is an answer."""
        return (
            position.said is not None
            or len(position.left) == 1
            or (not self.all_used and self._won(position))
        )

    def earned(self, before: Numbers, after: Numbers) -> float:  # noqa: ARG002  (of the end alone)
        """1 for making the target."""
        return float(self.over(after) and self._won(after))

    def answer(self, position: Numbers) -> str | None:
        """The expression that makes the target, or what became of the numbers instead."""
        target = _number(position.target)
        hows = [how for value, how in position.left if _number(value) == target]
        return hows[0] if hows else position.left[0][1]

    def shown(self, position: Numbers) -> str:
        """What is left."""
        return f"Left: {' '.join(value for value, _ in position.left)}"

    def worth(self, position: Numbers) -> float:
        """1 where the target has been made or still can be, else 0.

        Raises:
            SpecError: more than 6 numbers are left.
        """
        if self.over(position):
            return float(self._won(position))
        if len(position.left) > _MOST:
            raise SpecError(f"the solver takes too long for more than {_MOST} numbers")
        moves = min(len(position.left) - 1, self.steps_left(position))
        values, target = tuple(_values(position)), _number(position.target)
        return float(_reaches(self.rule, self.all_used, values, target, moves))

    def solve(self, state: State) -> list[str] | None:
        """Moves that make the target; None where nothing does."""
        plan: list[str] = []
        while self.best(state):
            position = self.position(state)
            if self.over(position):
                return plan
            for move in self.options(position):
                after = self.after(state, Step(move))
                if self.best(after):
                    plan.append(move)
                    state = after
                    break
        return None

    def solutions(self, state: State) -> list[str]:
        """All final expressions, as moves write them, that still make the target, in order."""
        found: set[str] = set()
        seen: set[tuple[tuple[str, str], ...]] = set()

        def search(state: State) -> None:
            position = self.position(state)
            if not self.best(state) or position.left in seen:
                return
            seen.add(position.left)
            if self.over(position):
                found.add(str(self.answer(position)))
                return
            for move in self.options(position):
                for after in self._ways(position, move):
                    search(after)

        search(state)
        return sorted(found)

    def _ways(self, position: Numbers, move: str) -> Iterator[State]:
        """Equal numbers that were made in different ways give one move several outcomes."""
        values = {value for value, _ in position.left}
        equal = len(values) < len(position.left)
        for left in permutations(position.left) if equal else (position.left,):
            state = State(position.model_copy(update={"left": left}).model_dump(mode="json"))
            yield self.after(state, Step(move))

    def _won(self, position: Numbers) -> bool:
        target = _number(position.target)
        return any(_number(value) == target for value, _ in position.left)


_MOST = 6  # which takes half a minute where nothing makes the target; 5 take less than a second

_NUMBER = r"-?[0-9]+(?:\.[0-9]+)?(?:/[0-9]*[1-9][0-9]*)?"
_MOVE = re.compile(
    rf"(?<![0-9.])\(?(?P<a>{_NUMBER})\)? *(?P<op>[-+*/]) *\(?(?P<b>{_NUMBER})\)?"
    rf" *(?P<after>[-+*/)][^=]*)?= *\(?(?P<c>{_NUMBER})\)?"
    r"(?:[^0-9\n]*?\bleft\b(?P<left>[^)\n]*))?"
)
_ANSWER = re.compile(r"\banswer\b[\s*]*(?:is\b)?[\s:*]*(.+)", re.IGNORECASE)
_SYMBOLS: dict[type[ast.operator], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
}
_TIMES = re.compile(r"(?<=[0-9)]) *[x×·⋅] *(?=[-(0-9])")


def _plain(line: str) -> str:
    return _TIMES.sub(" * ", plain(line)).replace("÷", "/")


def numbers_in(text: str) -> list[Value]:
    """The numbers of a text, in order."""
    return [_number(each) for each in re.findall(_NUMBER, plain(text))]


def numbers_of(task: Task, key: str) -> list[Value]:
    """The numbers that a task's `meta` has under a name: a list, or a text; else those of its text.

    Raises:
        SpecError: there is something else.
    """
    said: Json = task.meta.get(key, task.prompt)
    text = " ".join(map(str, said)) if isinstance(said, list) else str(said)
    return numbers_in(text)


def rational(op: str, a: Value, b: Value) -> Value:
    """What two numbers make, exactly.

    Raises:
        Illegal: division by zero.
    """
    match op:
        case "+":
            made = a + b
        case "-":
            made = a - b
        case "*":
            made = a * b
        case _:
            if b == 0:
                raise Illegal(f"{a} / {b} divides by zero.")
            made = Fraction(a) / b
    return _whole(made)


def natural(op: str, a: Value, b: Value) -> Value:
    """The same where only positive whole numbers may be made.

    Raises:
        Illegal: the result is none.
    """
    made = rational(op, a, b)
    if isinstance(made, Fraction) or made <= 0:
        raise Illegal(f"{a} {op} {b} is {made}: only positive whole numbers may be made.")
    return made


@lru_cache(maxsize=1 << 20)
def _reaches(
    rule: Rule, all_used: bool, values: tuple[Value, ...], target: Value, moves: int
) -> bool:
    """Whether so many moves at most make the target of these numbers."""
    if len(values) == 1 or not all_used:
        if target in values:
            return True
        if len(values) == 1:
            return False
    if moves == 0:
        return False
    for i, j in _pairs(len(values)):
        rest = [values[k] for k in range(len(values)) if k not in (i, j)]
        for op in OPERATORS if i < j else "-/":
            try:
                made = rule(op, values[i], values[j])
            except Illegal:
                continue
            after = tuple(sorted([*rest, made], reverse=True))
            if _reaches(rule, all_used, after, target, moves - 1):
                return True
    return False


def _pairs(n: int) -> Iterator[tuple[int, int]]:
    return ((i, j) for i in range(n) for j in range(n) if i != j)


def _values(position: Numbers) -> list[Value]:
    return [_number(value) for value, _ in position.left]


def _number(text: str) -> Value:
    return int(text) if text.isdecimal() else _whole(Fraction(text))


def _whole(value: Value) -> Value:
    return value.numerator if value.denominator == 1 else value


def _ordered(
    terms: Iterator[tuple[str, str]] | list[tuple[str, str]],
) -> tuple[tuple[str, str], ...]:
    """In one order, so that moves that commute lead to one position."""
    return tuple(sorted(terms, key=lambda term: (-_number(term[0]), len(term[1]), term[1])))


def _in_brackets(value: Value) -> str:
    return str(value) if isinstance(value, int) and value >= 0 else f"({value})"


def _joined(op: str, a: str, b: str) -> str:
    return f"{_closed(a)} {op} {_closed(b)}"


def _closed(how: str) -> str:
    return f"({how})" if " " in how else how
