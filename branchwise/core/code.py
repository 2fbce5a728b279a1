"""Programs in texts: the code of a reply, the examples of a problem, the tests of a file."""

from __future__ import annotations

import ast
import builtins
import functools
import re
import warnings
from collections.abc import Iterator
from itertools import islice

from branchwise.core.types import Task

LONGEST = 200_000
"""Texts with more characters are not parsed."""
REPLY = 30_000
"""The same for what models write: while a text is parsed, nothing else of the process goes on."""
TRIED = 32
"""So many calls in the text of a problem are looked at."""
DEPTH = 100
"""So many levels of a syntax tree can be written as a text without fear."""
_FENCE = re.compile(r"^[ \t]*```+[ \t]*([\w+#.-]*)[^\n`]*$", re.MULTILINE)
_TAGS = {"python", "py", "python3", "py3"}
_CODE = re.compile(r"^(?:def|class|import|from|async def|@\w+)\b", re.MULTILINE)
_SIGN = re.compile(
    r"\s*(?:#\s*)?(?:[-=]{1,2}>|={2,3}|[➞→➡⟹⇒]|=|(?:should\s+)?returns?\b|should\s+be\b|gives\b)"
    r"\s*:?\s*"
)
_GOES_ON = re.compile(r"[\w\"']|\s*(?:[-+*/%<>=|&^]|(?:or|and|if|in|is|not)\b)")
"""What shows that a literal is only the beginning of an expression."""
_RIGHT = 400


def parsed(code: str, *, depth: int | None = None, longest: int = LONGEST) -> ast.Module | None:
    """The syntax tree; None where the text is no program of Python. Never raises.

    Args:
        code: the text.
        depth: trees with more levels are None too: those at most `DEPTH` deep can be written again.
        longest: texts with more characters are None too.

    Example:
        >>> parsed("x = ") is None
        True
    """
    if len(code) > longest:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd escape in a string is no fault of ours
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    level: list[ast.AST] = [tree]
    while depth is not None and level:
        if depth == 0:
            return None
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        depth -= 1
    return tree


def extract(reply: str) -> str | None:
    r"""The program in a model's reply; None where there is none.

    - Of several fenced blocks, those of Python that define something, one after the other: later
      definitions win, and what only shows how to call them is left out.
    - A single fence without a language, after code, closes a block that the prompt had opened.
    - Without a fence, the whole text where it is a program or the body of a function.

    What stands before the end of a `</think>` is left out.

    Example:
        >>> extract("Sure:\n```python\ndef f(x):\n    return x\n```\nTry:\n```python\nf(1)\n```")
        'def f(x):\n    return x\n'
        >>> extract("    return x + 1\n```\nThis adds one.")
        '    return x + 1\n'
        >>> extract("I do not know.") is None
        True
    """
    text = reply.rpartition("</think>")[2]
    fences = [*_FENCE.finditer(text)]
    if not fences:
        return text if _is_code(text) or _CODE.search(text) else None
    before = text[: fences[0].start()]
    closing = not fences[0][1] and (_is_code(before) or _opened(before, fences))
    if closing and before.strip():
        return before
    blocks = [*_blocks(text, fences)]
    found = [body for tag, body in blocks if tag in _TAGS] or [b for tag, b in blocks if not tag]
    found = [body for body in found if body.strip()]
    sound = [body for body in found if _is_code(body)]
    defining = [body for body in sound if _defines(body)]
    if defining:
        return "\n".join(defining)
    return (sound or found or [None])[-1]


def closed(reply: str) -> bool:
    r"""Whether a reply has just closed a block of code.

    Example:
        >>> closed("```python\nx = 1\n```"), closed("```python\nx = 1\n")
        (True, False)
    """
    fences = [*_FENCE.finditer(reply)]
    if not fences or reply[fences[-1].end() :].strip() or fences[-1][1]:
        return False
    before = reply[: fences[-1].start()]
    if len(fences) == 1:  # the prompt has opened it
        return _is_code(before) or _opened(before, fences)
    return len(fences) % 2 == 0 and extract(before) is not None


def _opened(before: str, fences: list[re.Match[str]]) -> bool:
    """Whether the one fence ends code that does not parse."""
    return len(fences) == 1 and _CODE.search(before) is not None


def _blocks(text: str, fences: list[re.Match[str]]) -> Iterator[tuple[str, str]]:
    """The language and the text of each fenced block; the last one may lack its end."""
    start, tag = None, ""
    for fence in fences:
        if start is None:
            start, tag = fence.end() + 1, fence[1].lower()
        else:
            yield tag, text[start : fence.start()]
            start = None
    if start is not None:
        yield tag, text[start:]


def _is_code(text: str) -> bool:
    """Whether it is a program or the body of a function, and not a word or a number alone."""
    tree = parsed(text, longest=REPLY) or parsed(f"def f():\n{text}", longest=REPLY)
    return tree is not None and any(not _is_word(node) for node in tree.body)


def _is_word(node: ast.stmt) -> bool:
    plain = (ast.Name, ast.Constant, ast.Tuple, ast.Attribute, ast.UnaryOp)
    return isinstance(node, ast.Expr) and isinstance(node.value, plain)


def _defines(code: str) -> bool:
    tree = parsed(code, longest=REPLY)
    if tree is None:
        return True  # a function's body
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return any(isinstance(node, kinds) for node in tree.body)


def single_tests(program: str) -> list[str]:
    r"""The tests of a program as programs of their own: each with what stands before it.

    Each assertion on the outermost level is one test; what follows the last one is one more. A
    program without such assertions is one test.

    Example:
        >>> single_tests("x = 1\nassert f(x) == 2\nassert f(2) == 3")
        ['x = 1\nassert f(x) == 2', 'x = 1\nassert f(2) == 3']
    """
    return [*_single_tests(program)]


@functools.lru_cache(256)  # for each program the same tests
def _single_tests(program: str) -> list[str]:
    tree = parsed(program, depth=DEPTH)
    if tree is None or not any(isinstance(node, ast.Assert) for node in tree.body):
        return [program] if program.strip() else []
    before: list[str] = []
    tests: list[str] = []
    rest = False
    for node in tree.body:
        text = ast.unparse(node)
        if isinstance(node, ast.Assert):
            tests.append("\n".join([*before, text]))
        else:
            before.append(text)
        rest = not isinstance(node, ast.Assert)
    return [*tests, "\n".join(before)] if rest else tests


def entry_point(task: Task) -> str | None:
    """The name that a task's program has to define, where it says so."""
    name = task.meta.get("entry_point")
    return name if isinstance(name, str) and name else None


def prelude(task: Task) -> str:
    """The code that stands before a task's program."""
    code = task.meta.get("prelude")
    return code if isinstance(code, str) else ""


def public_tests(task: Task) -> list[str]:
    """The tests that a task shows: those in its `meta`, else the examples in its texts.

    Example:
        >>> public_tests(Task("Double it: f(2) == 4", meta={"entry_point": "f"}))
        ['assert f(2) == 4']
    """
    match task.meta.get("tests"):
        case str(text) if text.strip():
            return single_tests(text)
        case [*texts] if texts:
            return [test for text in texts for test in single_tests(str(text))]
        case _:
            texts = dict.fromkeys([prelude(task), task.prompt])
            found = [test for text in texts for test in examples(text, entry_point(task) or "")]
            return list(dict.fromkeys(found))


def examples(text: str, entry_point: str) -> list[str]:
    r"""The examples in a problem's text, as assertions.

    It knows `>>>` and lines such as `f(1, 2) == 3`, with `=`, `➞`, `=>`, `->` or `returns` for the
    sign, where the left is a call with literals and the right a literal. The rest is left out.

    Example:
        >>> examples("Twice x.\n>>> f(2)\n4\nAlso f([1]) ➞ [1, 1].", "f")
        ['assert f(2) == 4', 'assert f([1]) == [1, 1]']
    """
    return [*_examples(text, entry_point)]


@functools.lru_cache(256)  # the same for each state of a task
def _examples(text: str, entry_point: str) -> list[str]:
    if not entry_point.isidentifier() or len(text) > LONGEST:
        return []
    found: list[str] = []
    rest = _prompts(text, entry_point, found)
    calls = re.finditer(rf"(?<![\w.]){re.escape(entry_point)}[ \t]*\(", rest)
    for start in islice(calls, TRIED):
        if (call := _call(rest[start.start() :], entry_point)) is None:
            continue
        right = rest[start.start() + len(call) :]
        if (sign := _SIGN.match(right)) and (value := _literal(right[sign.end() :])) is not None:
            found.append(f"assert {' '.join(call.split(chr(10)))} == {value}")
    return list(dict.fromkeys(found))


def _prompts(text: str, entry_point: str, found: list[str]) -> str:
    """Take the examples after `>>>` out of a text; what is left of it."""
    lines = text.splitlines()
    rest: list[str] = []
    setup: list[str] = []
    at = 0
    while at < len(lines):
        line = lines[at].strip()
        at += 1
        if not line.startswith(">>>"):
            rest.append(lines[at - 1])
            continue
        source = [line[3:].strip()]
        while at < len(lines) and lines[at].strip().startswith("..."):
            source.append(lines[at].strip()[3:].removeprefix(" "))
            at += 1
        expected: list[str] = []
        while at < len(lines) and lines[at].strip() and not _ends(lines[at]):
            expected.append(lines[at].strip())
            at += 1
        code = "\n".join(source)
        test, used = _example(code, expected, {entry_point, *_names(setup)}, entry_point)
        rest += expected[used:]
        if test is not None:
            found.append("\n".join([*setup, test]))
        elif parsed(code) is not None and not expected:
            setup.append(code)
        else:  # another form, perhaps with its sign on the same line
            rest.append(code)
    return "\n".join(rest)


def _ends(line: str) -> bool:
    return line.strip().startswith((">>>", '"""', "'''"))


def _names(setup: list[str]) -> set[str]:
    """What the lines of a session define."""
    trees = [tree for code in setup if (tree := parsed(code)) is not None]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    stored = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    return stored | {(name.asname or name.name) for node in imports for name in node.names}


def _example(
    code: str, expected: list[str], known: set[str], entry_point: str
) -> tuple[str | None, int]:
    """The assertion that a line of a session makes, and how many of the lines below it are used."""
    tree = _expression(code)
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} if tree else set()
    if entry_point not in names or not names <= {*known, *vars(builtins)}:
        return None, 0
    if not expected and isinstance(tree, ast.Compare):
        return f"assert {code}", 0
    for end in range(len(expected), 0, -1):
        if (value := _literal("\n".join(expected[:end]), whole=True)) is not None:
            return f"assert {code} == {value}", end
    return None, 0


def _expression(code: str) -> ast.expr | None:
    """The only expression that a text is."""
    tree = parsed(code.strip(), depth=DEPTH)
    if tree is None or len(tree.body) != 1 or not isinstance(line := tree.body[0], ast.Expr):
        return None
    return line.value


def _call(text: str, entry_point: str) -> str | None:
    """The call with literals that a text begins with."""
    for end in re.finditer(r"\)", text[: 4 * _RIGHT]):
        match _expression(text[: end.end()]):
            case ast.Call(func=ast.Name(id=name), args=args, keywords=words):
                given = [*args, *(word.value for word in words)]
                plain = name == entry_point and all(map(_is_literal, given))
                return text[: end.end()] if plain else None
            case _:
                continue
    return None


def _is_literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return False
    return True


def _literal(text: str, *, whole: bool = False) -> str | None:
    """The literal that a text is, or begins with, in Python's spelling."""
    for end in [len(text)] if whole else range(min(len(text), _RIGHT), 0, -1):
        if not whole and text[end - 1] in ",; \t\n":
            continue
        node = _expression(text[:end])
        if node is None or not _is_literal(node):
            continue
        if isinstance(node, ast.Tuple) and not text.startswith("("):
            continue
        return None if _GOES_ON.match(text, end) else ast.unparse(node)
    return None
