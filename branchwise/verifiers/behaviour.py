"""What a program does: its outputs on inputs, for picks that compare programs by them."""

from __future__ import annotations

import ast
import builtins
import random
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Literal

from pydantic import Field

from branchwise.core.aio import gather
from branchwise.core.code import DEPTH, entry_point, parsed, public_tests
from branchwise.core.errors import VerifierError
from branchwise.core.node import Node
from branchwise.core.types import Task, Verdict
from branchwise.sandbox.harness import Outcome
from branchwise.verifiers.execution import Execution

_FIRST_MARK, _MARKS = 0x20000, 0xA000
_TRIES = 20


class Behaviour(Execution):
    """What a program returns on inputs, as a text that equal programs share.

    The inputs are the calls in the public tests, without what the tests expect, and mutations of
    their arguments. The verdict's `detail` is what picks compare: `mbr` with `match` of this
    verifier is MBR-Exec, `cluster` groups by it. Its score is the share of inputs on which the
    program returned at all. A program that returned on none has no behaviour, and neither is chosen
    for what it does nor counts for others.

    Args:
        sandbox: where programs run.
        mutations: how many inputs are made by mutation, beyond those in the tests.
        seed: of the mutations.
        form: of the detail. `text`: a line for each input, with the value or `!` and how it failed.
            `marks`: a character for each input, the same where the line is, for `agreement`.
        seconds: the most time for one input.
        limits: of one program with all its inputs.

    Source: Shi et al. 2022 (MBR-Exec), §3; Li, Choi et al. 2022 (AlphaCode), §4; type-aware
    mutation: Liu et al. 2023 (EvalPlus), §2.1 and table 1.

    Example:
        >>> judge = Behaviour(sandbox=None, mutations=2)
        >>> judge.inputs(Task("Half of x: half(8) == 4", meta={"entry_point": "half"}))
        ['half(8)', 'half(9)', 'half(10)']
    """

    kind: Literal["behaviour"] = "behaviour"
    mutations: int = Field(default=0, ge=0)
    seed: int = 0
    form: Literal["text", "marks"] = "text"

    async def score(self, nodes: Sequence[Node]) -> Sequence[Verdict | VerifierError]:
        """One verdict for each node; an error where the sandbox broke."""
        return await gather(self._judge, nodes)

    def inputs(self, task: Task) -> list[str]:
        """The calls that are tried, each once: those of the tests first."""
        name = entry_point(task)
        calls = [call for test in public_tests(task) if (call := _call(test, name)) is not None]
        texts = list(dict.fromkeys(calls))
        pool = [(text, tree) for text in texts if (tree := _literal(text)) is not None]
        chance = random.Random(f"{self.seed} {texts}")  # noqa: S311  (nothing secret)
        for _ in range(_TRIES * self.mutations if pool else 0):
            if len(texts) >= len(set(calls)) + self.mutations:
                break
            call = mutated(chance.choice(pool)[1], chance)
            if (text := ast.unparse(call)) not in texts:
                texts.append(text)
                pool.append((text, call))
        return texts

    async def _judge(self, node: Node) -> Verdict | VerifierError:
        inputs = self.inputs(node.task)
        if not inputs:
            return Verdict(0.0, feedback="the task shows no inputs")
        if node.state.answer is None:
            return Verdict(0.0, feedback="no answer")
        checked = await self.tried(node, node.state.answer, inputs)
        if isinstance(checked, VerifierError):
            return checked
        if not checked.passed:
            return Verdict(0.0, feedback=checked.outcomes[0].told)
        lines = [_line(outcome) for outcome in checked.outcomes]
        detail = "\n".join(lines) if self.form == "text" else "".join(map(_mark, lines))
        return Verdict(checked.passed / len(inputs), detail=detail)


def _line(outcome: Outcome) -> str:
    if outcome.status == "passed":
        return outcome.value
    return f"!{outcome.kind or outcome.status}"


def _mark(line: str) -> str:
    """One character; two lines share it by chance once in 40 960."""
    digest = sha256(line.encode("utf-8", "surrogatepass")).digest()
    return chr(_FIRST_MARK + int.from_bytes(digest[:8], "big") % _MARKS)


def _call(test: str, name: str | None) -> str | None:
    """A test without what it expects: what stands before it, and the program's first call."""
    tree = parsed(test, depth=DEPTH)
    if tree is None or not tree.body:
        return None
    calls = [
        node
        for node in ast.walk(tree.body[-1])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    theirs = [call for call in calls if isinstance(call.func, ast.Name) and _is(call.func.id, name)]
    if not theirs:
        return None
    return "\n".join([*map(ast.unparse, tree.body[:-1]), ast.unparse(theirs[0])])


def _is(called: str, name: str | None) -> bool:
    return called == name if name is not None else called not in vars(builtins)


def _literal(text: str) -> ast.Call | None:
    """A call whose arguments are all literals; None for any other text."""
    tree = parsed(text, depth=DEPTH)
    if tree is None or len(tree.body) != 1 or not isinstance(line := tree.body[0], ast.Expr):
        return None
    call = line.value
    try:
        assert isinstance(call, ast.Call)
        values = [ast.literal_eval(argument) for argument in call.args]
    except (AssertionError, ValueError, TypeError, RecursionError):
        return None
    return call if values else None


def mutated(call: ast.Call, chance: random.Random) -> ast.Call:
    """The call with one of its arguments mutated."""
    args = list(call.args)
    place = chance.randrange(len(args))
    value = mutation(ast.literal_eval(args[place]), chance)
    args[place] = ast.parse(repr(value), mode="eval").body
    return ast.Call(call.func, args, call.keywords)


def mutation(value: object, chance: random.Random) -> object:
    """A value of the same type that is a little different, by EvalPlus's table 1.

    Example:
        >>> mutation([1, 2, 3], random.Random(3))
        [1, 1, 2, 3]
    """
    match value:
        case bool():
            new = chance.random() < 0.5  # noqa: PLR2004  (a fair coin)
        case int() | float():
            new = value + chance.choice((-1, 1))
        case str():
            new = _text(value, chance)
        case list():
            new = _items(value, chance)
        case tuple():
            new = tuple(_items([*value], chance))
        case set():
            items = _items(sorted(value, key=repr), chance)
            new = set(items)
        case dict():
            new = _pairs(value, chance)
        case _:
            new = value
    return new


def _text(text: str, chance: random.Random) -> str:
    if not text:
        return text
    start = chance.randrange(len(text))
    end = chance.randint(start + 1, len(text))
    part = text[start:end]
    new: Callable[[], str] = chance.choice(
        (lambda: "", lambda: part + part, lambda: "".join(chance.choices(text, k=len(part))))
    )
    return text[:start] + new() + text[end:]


def _items(items: Sequence[object], chance: random.Random) -> list[object]:
    if not items:
        return []
    place = chance.randrange(len(items))
    item = items[place]
    new: Callable[[], list[object]] = chance.choice(
        (
            list[object],
            lambda: [item, item],
            lambda: [mutation(item, chance)],
            lambda: [item, mutation(item, chance)],
        )
    )
    return [*items[:place], *new(), *items[place + 1 :]]


def _pairs(table: dict[object, object], chance: random.Random) -> dict[object, object]:
    if not table:
        return {}
    key = chance.choice([*table])
    match chance.randrange(3):
        case 0:
            return {other: value for other, value in table.items() if other != key}
        case 1:
            return {**table, key: mutation(table[key], chance)}
        case _:
            return {**table, mutation(key, chance): mutation(table[key], chance)}
