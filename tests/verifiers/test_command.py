import shutil

import pytest

from branchwise import BestOfN, Node, solve
from branchwise.core.errors import SandboxError, VerifierError
from branchwise.core.types import State, Step, Task, Verdict
from branchwise.environments.writing import Writing
from branchwise.sandbox.ran import Ran
from branchwise.sandbox.unconfined import Unconfined
from branchwise.verifiers.command import Command

pytestmark = pytest.mark.anyio
PROVED = "(declare-const x Int)\n(assert (< x x))\n(check-sat)\n"
COUNTER = "(declare-const x Int)\n(assert (< x 3))\n(check-sat)\n"


class Sandboxed:
    """Says what a text holds; breaks where it holds `break`."""

    def __init__(self):
        self.asked = []

    async def run(self, files, argv, limits, **more):
        text = files["f"]
        self.asked.append(text)
        if b"break" in text:
            raise SandboxError("gone")
        return Ran("exited", 0 if b"right" in text else 1, text)


def node(text, answer=None):
    root = Node(Task("?"), State())
    return Node(root.task, State(answer=answer), root, 0, Step(text))


async def test_each_node_gets_a_verdict_or_an_error_of_its_own():
    command = Command(sandbox=Sandboxed(), command=("check", "{file}"), file="f")
    nodes = [node("right"), node("wrong"), node("break"), node("wrong", answer="right")]
    first, second, third, fourth = await command.score(nodes)
    assert first == fourth == Verdict(1.0, feedback="right", detail="verified")
    assert second == Verdict(0.0, feedback="wrong\nExit status 1.", detail="failed")
    assert isinstance(third, VerifierError)
    assert "gone" in str(third)


async def test_equal_texts_are_checked_once():
    sandbox = Sandboxed()
    command = Command(sandbox=sandbox, command=("check", "{file}"), file="f")
    await command.score([node("right")] * 3)
    assert sandbox.asked == [b"right"]


async def test_best_of_n_finds_the_proof():
    if not shutil.which("z3"):
        pytest.skip("z3 is not installed")

    class Claims:
        async def propose(self, node, seeds):
            return [Step(f"```smt2\n{text}```") for text in (COUNTER, PROVED, "(")][: len(seeds)]

    async with Unconfined().open() as sandbox:
        verifier = Command(
            sandbox=sandbox, command=("z3", "{file}"), file="c.smt2", passes="^unsat$"
        )
        answer = await solve(
            "?",
            policy=Claims(),
            controller=BestOfN(n=3),
            environment=Writing(),
            verifier=verifier,
        )
    assert PROVED in answer.value
