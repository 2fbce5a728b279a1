import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchwise.core.code import closed, examples, extract, parsed, public_tests, single_tests
from branchwise.core.types import Task

F = "def f(x):\n    return x\n"
PIECES = [
    "```",
    "```python\n",
    "\n```\n",
    F,
    "f(1)",
    "f(",
    ") == 3",
    ">>> ",
    "\n",
    " ",
    "Sure. ",
    "'",
    '"',
    "[1,",
]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=4)).map("".join)


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (f"```python\n{F}```", F),
        (f"Here it is:\n```\n{F}```\nIt works.", F),
        (f"```py\n{F}", F),
        (f"Here:\n```\n{F}", F),
        (f"{F}```", F),
        (f"{F}```\nIt doubles.\n```python\nf(1)\n```", F),
        ("def f(x:\n    return x\n```", "def f(x:\n    return x\n"),
        ("    return x + 1\n", "    return x + 1\n"),
        (F, F),
        (f"```python\n{F}```\nTry it:\n```python\nprint(f(1))\n```\n```text\n1\n```", F),
        (
            f"```python\nimport os\ndef g(): pass\n```\nand\n```python\n{F}```",
            f"import os\ndef g(): pass\n\n{F}",
        ),
        (f"```bash\npip install x\n```\n```python\n{F}```", F),
        ("```python\ndef f(:\n```", "def f(:\n"),
        (f"<think>```python\nx = 1\n```</think>```python\n{F}```", F),
        (f"  ```python\n{F}  ```", F),
        ("I cannot.", None),
        ("Sure", None),
        ("", None),
        ("```python\n```", None),
        ("```json\n{}\n```", None),
    ],
)
def test_the_program_in_a_reply(reply, code):
    assert extract(reply) == code


@pytest.mark.parametrize(
    ("reply", "is_closed"),
    [
        (f"```python\n{F}```", True),
        (f"{F}```\n", True),
        (f"```python\n{F}", False),
        ("Here:\n```", False),
        ("```json\n{}\n```", False),
        (f"```python\n{F}```\nIt", False),
        ("", False),
    ],
)
def test_when_a_block_is_closed(reply, is_closed):
    assert closed(reply) is is_closed


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            ">>> f(1)\n2\n>>> f([1,\n...   2])\n[2, 4]\nMore.",
            ["f(1) == 2", "f([1,\n  2]) == [2, 4]"],
        ),
        (">>> x = [1]\n>>> f(x)\n'a'\n", ["x = [1]\nassert f(x) == 'a'"]),
        (">>> f(1) == 2\n\n>>> f(3) ➞ 4", ["f(1) == 2", "f(3) == 4"]),
        (">>> f(1)\n[1,\n 2]\n", ["f(1) == [1, 2]"]),
        (">>> f(1)\nTraceback (most recent call last)\n>>> g(1)\n2\n>>> f(y)\n2", []),
        (
            "f(1, 2) == 3, f(2) ==> 'a'; f(3) -> [1]. f(4) returns None.",
            ["f(1, 2) == 3", "f(2) == 'a'", "f(3) == [1]", "f(4) == None"],
        ),
        (
            "f(-1.5) → 2.5. f((1,)) # returns (1, 2)\nf('(') should return ')'",
            ["f(-1.5) == 2.5", "f((1,)) == (1, 2)", "f('(') == ')'"],
        ),
        ("f(1) == 19 - 5 = 14, f(2) == ''a'', f(3) == x, f(y) == 3, f(4) == 5 or 6", []),
        ("def f(x: int) -> int:\n    def f(1) -> 2", ["f(1) == 2"]),
        ("f(1) = (3), other.f(1) == 3, ff(1) == 3, f 1 == 3", ["f(1) == 3"]),
        ("f({'a': 1},\n  b=2) == {1: 2}", ["f({'a': 1},   b=2) == {1: 2}"]),
    ],
)
def test_the_examples_in_a_text(text, found):
    wanted = [each if "assert" in each else f"assert {each}" for each in found]
    assert examples(text, "f") == wanted


def test_tests_are_split_with_what_stands_before_them():
    program = "import x\nassert f(1)\ny = 2\nassert f(y) == 3, 'y'\ncheck(f)"
    assert single_tests(program) == [
        "import x\nassert f(1)",
        "import x\ny = 2\nassert f(y) == 3, 'y'",
        "import x\ny = 2\ncheck(f)",
    ]
    assert single_tests("def check(f):\n    assert f(1)\ncheck(f)") == [
        "def check(f):\n    assert f(1)\ncheck(f)"
    ]
    assert (single_tests(" \n"), single_tests("assert (")) == ([], ["assert ("])


@pytest.mark.parametrize(
    ("meta", "tests"),
    [
        ({"tests": "assert f(1) == 2\nassert f(2) == 3"}, ["assert f(1) == 2", "assert f(2) == 3"]),
        (
            {"tests": ["assert f(1) == 2", "assert f(2) == 3"]},
            ["assert f(1) == 2", "assert f(2) == 3"],
        ),
        ({"tests": "", "entry_point": "f"}, ["assert f(0) == 1"]),
        (
            {"prelude": "# f(5) == 6\n", "entry_point": "f"},
            ["assert f(5) == 6", "assert f(0) == 1"],
        ),
        ({"entry_point": 3}, []),
        ({}, []),
    ],
)
def test_what_a_task_shows(meta, tests):
    assert public_tests(Task("f(0) == 1", meta=meta)) == tests


@given(TEXTS)
def test_no_text_is_too_odd(text):
    code = extract(text)
    assert code is None or code in text or "\n".join(code.splitlines())
    closed(text)
    single_tests(text)
    for test in examples(text, "f"):
        assert "f" in {node.id for node in ast.walk(parsed(test)) if isinstance(node, ast.Name)}


@pytest.mark.parametrize(
    "text",
    ["(" * 10_000, "-" * 60_000 + "1", "f(" * 3000, "x" * 300_000, "\0", "f(1) == " + "[" * 900],
)
def test_no_text_is_too_deep_or_long(text):
    assert parsed(text) is None
    assert examples(text, "f") == []
    assert closed(text) is False


def test_what_is_too_deep_to_be_written_again_stays_as_it_is():
    test = f"assert f(1) == {'+'.join('1' * 500)}"
    assert single_tests(test) == [test]
    assert extract(f"x = {'+'.join('1' * 500)}") is not None
