import json
import os
import subprocess
import sys
from itertools import islice

import pytest

from branchwise.core.errors import VerifierError
from branchwise.core.node import Node
from branchwise.core.types import State, Task
from branchwise.verifiers.reasoning_gym import ReasoningGym

pytestmark = pytest.mark.anyio

pytest.importorskip("reasoning_gym")

ALL = """
import json
from reasoning_gym.factory import DATASETS, create_dataset
firsts = {name: create_dataset(name, size=1, seed=3)[0] for name in DATASETS if name != "composite"}
print("\\0", json.dumps({name: first["answer"] for name, first in firsts.items()}))
"""


@pytest.fixture(scope="module")
def answers():
    """The answer to the first problem of each family."""
    ran = subprocess.run(
        [sys.executable, "-c", ALL],
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        check=True,
    )
    return json.loads(ran.stdout.rpartition(b"\0")[2])


def node(name, target, answer, **more):
    asked = {"name": name, "size": 1, "seed": 3, "options": {}, "index": 0, **more}
    return Node(Task("?", target, {"reasoning_gym": asked}), State(answer=answer))


async def score(*nodes):
    async with ReasoningGym(workers=1, seconds=60).open() as verifier:
        return await verifier.score(nodes)


COMPARES, EVALUATES, PARSES, RAISES = "chain_sum", "n_queens", "countdown", "prime_factorization"
NO_ANSWERS = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
EVIL = [
    "__import__('pathlib').Path({0!r}).touch()",
    "open({0!r}, 'w')",
    "[open(p, 'w') for p in [{0!r}]]",
    "(lambda: open({0!r}, 'w'))()",
    "eval(chr(111) + 'pen')({0!r}, 'w')",
    "S('open({0!r}, 1)')",
    "().__class__.__base__.__subclasses__()",
]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # a process takes seconds to start
async def test_scores(answers, tmp_path):
    path, right = str(tmp_path / "made"), answers[COMPARES]
    families = [node(name, answer or "", answer or "") for name, answer in answers.items()]
    evil = [
        node(name, answers[name], text.format(path))
        for name in (COMPARES, EVALUATES, PARSES, RAISES)
        for text in EVIL
    ]
    texts = [f"<answer>0</answer> no: <answer>\n{right} </answer>", f" {right}\n"]
    tagged = [node(COMPARES, right, text) for text in [*texts, f"<answer></answer>{right}"]]
    faulty = [
        node(COMPARES, right, None),
        node(RAISES, answers[RAISES], "two"),
        node(COMPARES, None, right),
        Node(Task("?", right), State(answer=right)),
        node(COMPARES, "12", right),
        node("no_family", right, right),
        node(COMPARES, right, right, options={"no": 1}),
    ]
    said = iter(await score(*families, *evil, *tagged, *faulty))

    scored = zip(answers, list(islice(said, len(families))), strict=True)
    missed = {name for name, verdict in scored if verdict.score != 1}
    assert missed == NO_ANSWERS == {name for name, answer in answers.items() if answer is None}
    assert len(answers) >= 100
    # An answer names nothing but mathematics.
    assert max(verdict.score for verdict in islice(said, len(evil))) <= 0.05
    assert not [*tmp_path.iterdir()]
    # It is the last tagged one.
    assert [v.detail for v in islice(said, len(tagged))] == ["right", "right", "wrong"]
    # What is not scored says why.
    no_answer, raised, hidden, strange, other, family, option = said
    assert (no_answer.score, no_answer.detail) == (0, "no answer")
    assert (raised.score, raised.detail) == (0, "the scorer raised ValueError")
    assert "use reasoning-gym as the grader, or set oracle = true" in hidden.hint
    assert strange.message == "this is no problem of reasoning-gym"
    assert "makes another problem" in other.message
    assert "'no_family' not registered" in family.message
    assert "unexpected keyword" in option.message


async def test_an_answer_that_takes_for_ever_has_no_verdict(answers):
    asked = [
        node(EVALUATES, answers[EVALUATES], said) for said in ("9**9**9**9", answers[EVALUATES])
    ]
    async with ReasoningGym(workers=1, seconds=2).open() as verifier:
        await verifier.score(asked[1:])  # the process is there now, and has read the family
        slow, next_one = [(await verifier.score([one]))[0] for one in asked]
    assert isinstance(slow, VerifierError)
    assert slow.message == "timeout: scoring took too long"
    assert next_one.score == 1
