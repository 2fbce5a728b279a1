import ast
import json
import operator
import re
import tomllib
from collections import Counter
from fractions import Fraction
from pathlib import Path

from branchwise.agents.chat import Chat
from branchwise.backends.scripted import Scripted
from branchwise.core.answers import extract
from branchwise.core.node import Node
from branchwise.core.spelling import canonical, number
from branchwise.core.types import State, Task

FILE = Path(__file__).parents[2] / "examples" / "word_problems.jsonl"
PROBLEMS = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
SIGNS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def value(expression):
    match expression:
        case ast.Constant():
            return Fraction(str(expression.value))
        case ast.BinOp():
            return SIGNS[type(expression.op)](value(expression.left), value(expression.right))
    raise TypeError(expression)


def test_every_answer_is_what_its_solution_gives():
    wrong = [
        problem["id"]
        for problem in PROBLEMS
        if value(ast.parse(problem["solution"], mode="eval").body) != number(problem["answer"])
    ]
    assert wrong == []


def test_answers_are_spelled_canonically():
    assert [canonical(problem["answer"]) for problem in PROBLEMS] == [
        problem["answer"] for problem in PROBLEMS
    ]


def test_every_problem_is_there_once_with_all_its_fields():
    fields = {"id", "question", "answer", "steps", "solution"}
    assert all(set(problem) == fields for problem in PROBLEMS)
    assert len({problem["id"] for problem in PROBLEMS}) == len(PROBLEMS) == 100
    assert len({problem["question"] for problem in PROBLEMS}) == 100
    assert set(Counter(problem["steps"] for problem in PROBLEMS)) == {1, 2, 3}


def test_the_prompt_for_them_is_a_chat_policy():
    spec = tomllib.loads((FILE.parent / "word_problems.toml").read_text(encoding="utf-8"))
    chat = Chat(backend=Scripted(lambda request, seed: ""), **spec["policy"])
    *shots, question = chat.request(Node(Task("2 + 2?"), State()), [0]).messages
    assert "2 + 2?" in question.content
    for shot in shots:
        if shot.role == "assistant":
            *steps, last = shot.content.splitlines()
            for step in steps:
                left, right = re.search(r"([-0-9 */+]+) = ([0-9]+)", step).groups()
                assert value(ast.parse(left.strip(), mode="eval").body) == int(right)
            assert extract(last, ["says"]) == right
    assert not {shot.content for shot in shots} & {problem["question"] for problem in PROBLEMS}
