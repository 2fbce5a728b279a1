import shutil
from contextlib import asynccontextmanager

import pytest
from pydantic import ValidationError

from branchwise.core.errors import SandboxError
from branchwise.core.types import State, Step, Task, ToolCall
from branchwise.environments.command_line import CommandLine
from branchwise.sandbox.ran import Limits, Ran
from branchwise.sandbox.unconfined import Unconfined
from branchwise.testing import check_environment

pytestmark = pytest.mark.anyio
TASK = Task("Show that x < x is false for all integers.")
ERROR = r'^\((?P<severity>error) "line (?P<line>\d+) column \d+: (?P<message>.*)"\)$'
PROVED = "(declare-const x Int)\n(assert (< x x))\n(check-sat)\n"
COUNTER = "(declare-const x Int)\n(assert (< x 3))\n(check-sat)\n"
WRONG = "(declare-const x Int)\n(assert (< x y))\n(check-sat)\n"
DAFNY = r"(?P<verified>\d+) verified, (?P<errors>\d+) errors?"
MESSAGE = (
    r"^(?P<file>[\w.]+)\((?P<line>\d+),\d+\): (?P<severity>Error|Warning|Note): (?P<message>.*)$"
)


@asynccontextmanager
async def z3(**more):
    if not shutil.which("z3"):
        pytest.skip("z3 is not installed")
    async with Unconfined().open() as sandbox:
        yield CommandLine(
            sandbox=sandbox,
            command=("z3", "{file}"),
            file="claim.smt2",
            language="smt2",
            passes="^unsat$",
            message=ERROR,
            **more,
        )


def reply(text, mark="smt2"):
    return Step(f"Here it is.\n```{mark}\n{text}```\n", finish="end")


class Said:
    """A sandbox in which every command says the same."""

    def __init__(self, output="", code=0, status="exited"):
        self.ran = Ran(status, code, output.encode())
        self.asked = []

    async def run(self, files, argv, limits, **more):
        self.asked.append((files, argv))
        return self.ran


def dafny(output, code=4, **more):
    fields = {"passes": " 0 errors", "counts": DAFNY, "message": MESSAGE, "language": "dafny"}
    return CommandLine(
        sandbox=Said(output, code), command=("dafny", "{file}"), file="p.dfy", **{**fields, **more}
    )


async def after(world, action):
    return await world.step(await world.reset(TASK), action)


async def test_it_keeps_the_laws():
    async with z3() as world:
        await check_environment(world, TASK, [reply(COUNTER), reply(WRONG), reply(PROVED)])


async def test_a_prover_is_content_with_a_proof_only():
    async with z3() as world:
        proved = await after(world, reply(PROVED))
        assert (proved.done, proved.reward, proved.answer) == (True, 1, PROVED)
        for text, word in ((COUNTER, "sat"), (WRONG, "unknown constant y"), ("(", "error")):
            state = await after(world, reply(text))
            assert (state.done, state.reward) == (False, 0)
            assert word in state.observation


async def test_its_messages_are_read():
    async with z3() as world:
        checked = await world.check(f"```smt2\n{WRONG}```")
    (message,) = checked.messages
    assert (message.severity, message.line, message.text) == ("error", 2, "unknown constant y")
    assert checked.detail == "failed"


async def test_a_proof_that_takes_too_long_is_no_proof():
    hard = "(declare-const x Int)(declare-const y Int)(declare-const z Int)\n(assert (and (> x 2) (> y 2) (> z 2) (= (+ (* x x x) (* y y y)) (* z z z))))\n(check-sat)\n"
    async with z3(limits=Limits(seconds=0.3)) as world:
        state = await after(world, reply(hard))
    assert (state.done, state.reward) == (False, 0)
    assert "too long" in state.observation


# The cases of the paper's formula, worked out by hand.
@pytest.mark.parametrize(
    ("output", "code", "value"),
    [
        ("Dafny program verifier finished with 3 verified, 0 errors", 0, 1.0),
        ("3 verified, 1 error", 4, 0.75),
        ("p.dfy(3,1): Error: no\n3 verified, 1 error", 4, (3 - 0.1) / 4),
        ("p.dfy(3,1): Error: no\np.dfy(4,1): Note: so\n1 verified, 3 errors", 4, (1 - 0.14) / 4),
        ("0 verified, 0 errors", 4, 0.0),
        ("p.dfy(1,1): Error: rbrace expected", 2, -1.0),
    ],
)
async def test_the_value_is_the_papers(output, code, value):
    state = await after(dafny(output, code), reply("method M() {}\n", "dafny"))
    assert state.reward == pytest.approx(value)
    assert state.done == (value == 1)


async def test_an_error_message_outweighs_a_good_status():
    state = await after(dafny("p.dfy(3,1): Error: no\n3 verified, 0 errors", 0), reply("", "dafny"))
    assert not state.done


@pytest.mark.parametrize(
    ("status", "word"),
    [
        ("timeout", "too long"),
        ("memory", "memory"),
        ("output", "printed"),
        ("denied", "asked"),
        ("killed", "signal 9"),
    ],
)
async def test_a_run_that_does_not_end_by_itself(status, word):
    world = CommandLine(sandbox=Said("", 9, status), command=("x",), file="f")
    state = await after(world, Step("text"))
    assert (state.reward, state.done) == (0, False)
    assert word in state.observation


async def test_what_is_forbidden_is_not_run():
    world = dafny("1 verified, 0 errors", 0, forbidden=(r"\bassume\b",))
    state = await after(world, reply("assume false;\n", "dafny"))
    assert (state.reward, state.done) == (-1, False)
    assert "'assume'" in state.observation
    assert world.sandbox.asked == []


@pytest.mark.parametrize(
    ("language", "said", "text"),
    [
        ("", "all of it", "all of it"),
        ("", "```\na\n```", "a\n"),
        ("", "```x\na\n```\n```y\nb\n```", "b\n"),
        ("c", "```c\na\n```\n```c\nb\n```\n```sh\nc\n```", "b\n"),
        ("c", "```C\na\n```", "a\n"),
        ("c++", "```c++ title\na", "a"),
        ("c", "int x;", "int x;"),
    ],
)
async def test_the_text_is_what_the_reply_marks(language, said, text):
    sandbox = Said()
    world = CommandLine(
        sandbox=sandbox, command=("cc", "-c", "{file}"), file="f.c", language=language
    )
    assert (await after(world, Step(said))).answer == text
    assert sandbox.asked == [({"f.c": text.encode()}, ["cc", "-c", "f.c"])]


async def test_a_reply_with_another_s_blocks_only_is_told_so():
    state = await after(dafny(""), reply("x\n", "python"))
    assert (state.reward, state.done) == (-1, False)
    assert "```dafny" in state.observation


async def test_half_a_reply_is_cut_and_a_tool_is_none():
    world = dafny("")
    assert (await after(world, Step("```dafny\n", finish="length"))).cut
    state = await after(world, Step("", tool_calls=(ToolCall("1", "x", "{}"),)))
    assert "no tools" in state.results[0]


async def test_a_sandbox_that_breaks_fails_the_branch():
    class Broken:
        async def run(self, files, argv, limits):
            raise SandboxError("gone")

    with pytest.raises(SandboxError, match="gone"):
        await CommandLine(sandbox=Broken(), command=("x",), file="f").step(State(), Step("x"))


@pytest.mark.parametrize(
    "wrong", [{"passes": "("}, {"forbidden": ("[",)}, {"file": "../f"}, {"command": ()}]
)
def test_what_cannot_be_configured(wrong):
    with pytest.raises(ValidationError):
        CommandLine(**{"sandbox": Said(), "command": ("x",), "file": "f", **wrong})
