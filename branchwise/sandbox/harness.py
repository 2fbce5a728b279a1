"""Tests of programs that nobody has read, so that a program cannot fake a pass."""

from __future__ import annotations

import ast
import builtins
import functools
import importlib.util
import marshal
import secrets
import sys
from binascii import a2b_base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, cast

from anyio.lowlevel import checkpoint

from branchwise.core.code import DEPTH, parsed
from branchwise.core.errors import SandboxError
from branchwise.sandbox import checker
from branchwise.sandbox.checker.wire import GarbledError, pack, unpack
from branchwise.sandbox.ran import Limits, Ran, Sandbox

Status: TypeAlias = Literal["passed", "failed", "raised", "timeout", "died"]

_START = "from checker.judge import main; main()"
_MARKS: Mapping[Status, str] = {
    "passed": "1",
    "failed": "0",
    "raised": "E",
    "timeout": "T",
    "died": "X",
}
_TOLD = 1000
_VERDICT = 16_384
"""The most bytes that the verdict on one test takes, roughly."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one test.

    Args:
        status: `passed`; `failed`: an assertion does not hold; `raised`: the program or the test
            raised an exception; `timeout`; `died`: the program ended its process.
        test: the test.
        told: what happened, for people and models; empty where it passed.
        kind: the exception's type, where one was raised.
        line: of the program where it was raised; 0 where it was elsewhere.
        value: where the test ends in an expression, what that is worth: a text that two values
            share where Python calls them equal, floats to ten digits.
        printed: what the program wrote meanwhile, cut.
    """

    status: Status
    test: str
    told: str = ""
    kind: str = ""
    line: int = 0
    value: str = ""
    printed: str = ""


@dataclass(frozen=True, slots=True)
class Checked:
    """What became of all tests of a program.

    Args:
        outcomes: one for each test, in order.
        fault: why the program could not be loaded; None where it could. All tests then share it.
        ran: the run of the sandbox.
    """

    outcomes: tuple[Outcome, ...]
    fault: Outcome | None
    ran: Ran

    @property
    def marks(self) -> str:
        """A character for each test: `1` passed, `0` failed, `E` raised, `T` timeout, `X` died."""
        return "".join(_MARKS[outcome.status] for outcome in self.outcomes)

    @property
    def passed(self) -> int:
        """How many tests the program passed."""
        return sum(outcome.status == "passed" for outcome in self.outcomes)


async def check(
    sandbox: Sandbox,
    program: str,
    tests: Sequence[str],
    *,
    prelude: str = "",
    entry_point: str | None = None,
    seconds: float = 3.0,
    limits: Limits = Limits(),  # noqa: B008  (frozen)
) -> Checked:
    """Run a program against tests, all in one run of the sandbox.

    The program runs in a process that never sees the tests; they run in another one and call it.
    Results cross as plain values (numbers, texts, lists, tuples, sets, dictionaries; subclasses as
    their base), everything else as a handle that equals no plain value. So a program cannot pass by
    leaving, printing, changing the language, or returning what equals everything. Names in a test
    are its own, the prelude's functions, the language's and the standard library's before they are
    the program's.

    Args:
        sandbox: where to.
        program: what is tested: a program, or what completes the prelude.
        tests: each a text of statements that raises nothing where all is well; where the last one
            is an expression, its value is told.
        prelude: code before the program, such as imports and helpers that the task gives.
        entry_point: the name that the program has to define.
        seconds: the most time for one test, and for loading the program.
        limits: of the whole run; what is not done by then has timed out.

    Raises:
        SandboxError: the sandbox broke: nothing is known about the program.
    """
    secret = secrets.token_hex(16)
    job = {
        "secret": secret,
        "program": program,
        "prelude": prelude,
        "trusted": trusted(prelude, entry_point),
        "seconds": seconds,
        "tests": [await _prepared(test, entry_point) for test in tests],
    }
    stdin = bytearray()
    pack(job, stdin, lambda _: ("", 0))
    room = limits.output + _VERDICT * (len(tests) + 1)
    ran = await sandbox.run(
        _files(),
        ["python", "-s", "-S", "-B", "-c", _START, str(limits.memory * 3 // 4)],
        limits.model_copy(update={"output": room}),
        stdin=bytes(stdin),
    )
    return _read(ran, secret.encode(), program, tests, limits)


async def _prepared(test: str, entry_point: str | None) -> tuple[str, str, str]:
    await checkpoint()  # there may be thousands
    return prepared(test, entry_point)


@functools.cache
def _files() -> Mapping[str, bytes]:
    """The checker, and its code for an interpreter like this one.

    To compile it would take longer than all the rest. Another interpreter takes the source.
    """
    files: dict[str, bytes] = {}
    unchecked = (1).to_bytes(4, "little")  # by PEP 552: valid whatever the source says
    for path in Path(checker.__file__).parent.glob("*.py"):
        source = path.read_bytes()
        code = compile(source, f"checker/{path.name}", "exec", dont_inherit=True, optimize=0)
        head = importlib.util.MAGIC_NUMBER + unchecked + importlib.util.source_hash(source)
        name = f"checker/__pycache__/{path.stem}.{sys.implementation.cache_tag}.pyc"
        files |= {f"checker/{path.name}": source, name: head + marshal.dumps(code)}
    return files


def _read(ran: Ran, secret: bytes, program: str, tests: Sequence[str], limits: Limits) -> Checked:
    ready, *verdicts = [*_verdicts(ran.stdout, secret)] or [None]
    broken = [verdict for verdict in verdicts if isinstance(verdict, str)]
    if ready is None or broken:
        why = ran.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise SandboxError(f"the tests did not run: {'; '.join(broken) or why or ran.status}")
    read = [_outcome(cast("dict[str, object]", each), program) for each in verdicts]
    missing = _missing(ran, limits)
    fault = (read or [missing])[0]
    if fault.status != "passed":
        return Checked(tuple(_of(test, fault) for test in tests), fault, ran)
    found = [*read[1:], *[missing] * len(tests)]
    outcomes = tuple(_of(test, each) for test, each in zip(tests, found, strict=False))
    return Checked(outcomes, None, ran)


def _verdicts(stdout: bytes, secret: bytes) -> Iterator[object]:
    """What the checker has said; what does not carry the secret is not its word."""
    for line in stdout.splitlines():
        if line.startswith(secret):
            try:
                yield unpack(a2b_base64(line[len(secret) :]), lambda *_: None)
            except (GarbledError, ValueError):  # cut in the midst
                return


def _outcome(said: Mapping[str, object], program: str) -> Outcome:
    status = cast("Status", said["status"])
    told, line = str(said.get("told", "")), cast("int", said.get("line", 0))
    lines = program.splitlines()
    if 0 < line <= len(lines):
        told += f" at line {line}: `{lines[line - 1].strip():.200}`"
    return Outcome(
        status,
        "",
        told if len(told) <= _TOLD else f"{told[: _TOLD // 2]} ... {told[-_TOLD // 2 :]}",
        str(said.get("kind", "")),
        line,
        str(said.get("value", "")),
        str(said.get("printed", "")),
    )


def _missing(ran: Ran, limits: Limits) -> Outcome:
    """What is said of the tests that the run did not come to."""
    match ran.status:
        case "timeout":
            return Outcome("timeout", "", f"the tests took longer than {limits.seconds:g} s in all")
        case "memory":
            return Outcome("died", "", f"the program took more than {limits.memory >> 20} MiB")
        case _:
            return Outcome("died", "", "the program ended its tests")


def _of(test: str, outcome: Outcome) -> Outcome:
    return Outcome(
        outcome.status,
        test,
        outcome.told,
        outcome.kind,
        outcome.line,
        outcome.value,
        outcome.printed,
    )


@functools.lru_cache(4096)  # many programs meet the same tests
def prepared(test: str, entry_point: str | None) -> tuple[str, str, str]:
    """A test as the checker takes it: statements, the expression that it ends in, the entry point.

    Example:
        >>> prepared("f(2)", None)
        ('', 'f(2)', '')
        >>> prepared("sum(1, 2)", None)  # which tests nothing unless the program has a `sum`
        ('', 'sum(1, 2)', 'sum')
    """
    if (tree := parsed(test, depth=DEPTH)) is None:
        return test, "", entry_point or ""  # the checker says what is wrong with it
    nodes = [*ast.walk(tree)]
    names = [node.id for node in nodes if isinstance(node, ast.Name)]
    calls = [
        node.func.id
        for node in nodes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    if entry_point is None and calls and {*names} <= {*vars(builtins)}:
        entry_point = calls[0]
    imports = "".join(f"import {name}\n" for name in _modules(nodes, entry_point))
    ends = [tree.body.pop()] if tree.body and isinstance(tree.body[-1], ast.Expr) else []
    code = ast.unparse(ast.fix_missing_locations(_Asserts().visit(tree)))
    return imports + code, "".join(map(ast.unparse, ends)), entry_point or ""


class _Asserts(ast.NodeTransformer):
    """Assertions that say what they found."""

    def visit_Assert(self, node: ast.Assert) -> list[ast.stmt]:
        """The assertion in the long form."""
        source = ast.unparse(node.test)
        match node.test:
            case ast.Compare(left=left, ops=[sign], comparators=[right]):
                lines = "_left = 0\n_right = 0\nif not _left == _right:\n    "
                lines += f"_unequal(_left, _right, {_sign(sign)!r}, {ast.unparse(left)!r})"
                first, second, branch = ast.parse(lines).body
                cast("ast.Assign", first).value = left
                cast("ast.Assign", second).value = right
                compared = cast("ast.UnaryOp", cast("ast.If", branch).test).operand
                cast("ast.Compare", compared).ops = [sign]
                return [first, second, branch]
            case test:
                lines = f"_left = 0\nif not _left:\n    _untrue(_left, {source!r})"
                first, branch = ast.parse(lines).body
                cast("ast.Assign", first).value = test
                return [first, branch]


def _sign(operator: ast.cmpop) -> str:
    name = ast.Name("x")
    return ast.unparse(ast.Compare(name, [operator], [name]))[2:-2]


def _modules(nodes: Sequence[ast.AST], entry_point: str | None) -> list[str]:
    """Modules of the standard library that a test uses without importing them."""
    names = [node for node in nodes if isinstance(node, ast.Name)]
    bases = [node.value for node in nodes if isinstance(node, ast.Attribute)]
    used = {node.id for node in bases if isinstance(node, ast.Name)}
    own = {node.id for node in names if not isinstance(node.ctx, ast.Load)} | {entry_point}
    own |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    return sorted((used & sys.stdlib_module_names) - own)


@functools.lru_cache(256)
def trusted(prelude: str, entry_point: str | None) -> str:
    r"""What of a prelude the tests may use as it stands there, whatever the program makes of it.

    Its imports, its constants and the functions that have a body, but not the entry point. Classes
    are the program's, since their objects live there.

    Example:
        >>> print(trusted("import math\ndef f(x):\n    'Twice.'\ndef g():\n    return 1", "f"))
        import math
        def g():
            return 1
    """
    tree = parsed(prelude, depth=DEPTH)
    tree = tree or parsed(f"{prelude}\n    pass", depth=DEPTH)  # it may end in an open function
    kept = [node for node in (tree.body if tree else []) if _whole(node, entry_point)]
    return "\n".join(ast.unparse(node) for node in kept)


def _whole(node: ast.stmt, entry_point: str | None) -> bool:
    match node:
        case ast.Import() | ast.ImportFrom() | ast.Assign() | ast.AnnAssign():
            return True
        case ast.FunctionDef(name=name, body=body):
            return name != entry_point and any(
                not isinstance(line, ast.Pass)
                and not (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))
                for line in body
            )
        case _:
            return False
