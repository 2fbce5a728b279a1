import re
import signal
import subprocess
import sys
import threading
from time import perf_counter

import anyio
import pytest
from pydantic import ValidationError
from worlds import words as words_of

from branchwise.core.aio import run_sync
from branchwise.core.errors import VerifierError
from branchwise.core.node import Node
from branchwise.core.types import State, Step, Task
from branchwise.verifiers.pattern import _WORKER, Pattern

TASK = Task("?")


def nodes(answers):
    return [Node(TASK, State(answer=answer)) for answer in answers]


async def judged(pattern, answers, **fields):
    async with Pattern(pattern=pattern, **fields).open() as verifier:
        return await verifier.score(nodes(answers))


async def words(pattern, answers, **fields):
    said = await judged(pattern, answers, **fields)
    return [v.message if isinstance(v, VerifierError) else (v.score, v.detail) for v in said]


YES, NO, NONE = (1.0, "match"), (0.0, "no match"), (0.0, "no answer")


@pytest.mark.anyio
async def test_what_matches_and_what_does_not():
    answers = ["12", "a 12", "", None, "12\n"]
    assert await words(r"\d+", answers) == [YES, YES, NO, NONE, YES]
    assert await words(r"\d+", answers, how="full") == [YES, NO, NO, NONE, NO]
    assert await words(r"\d+", answers, how="absent") == [
        *((0.0, "match"), (0.0, "match"), (1.0, "no match"), NONE, (0.0, "match")),
    ]


@pytest.mark.anyio
async def test_flags_stand_in_the_expression():
    assert await words(r"(?im)^yes$", ["so:\nYES\n", "yes!"]) == [YES, NO]


@pytest.mark.anyio
async def test_what_was_said_on_the_way_can_be_looked_at():
    root = Node(TASK, State())
    node = Node(TASK, State(answer="4"), root, 0, Step("2 + 2"))
    node = Node(TASK, State(answer="4"), node, 0, Step(" = 4"))
    async with Pattern(pattern=r"2 = 4", of="text").open() as verifier:
        assert [v.score for v in await verifier.score([node, root])] == [1, 0]


@pytest.mark.anyio
async def test_feedback_says_what_is_wanted_where_it_is_missing():
    said = await judged("[ab]+", ["x", "a"], how="full")
    assert [v.feedback for v in said] == ["The whole of it has to match [ab]+", ""]
    [said] = await judged("x", ["x"], how="absent", feedback="Do not say x.")
    assert said.feedback == "Do not say x."


HANGS, TEXT = "(a+)+$", "a" * 40 + "b"


@pytest.mark.anyio
async def test_a_match_that_takes_for_ever_is_killed_and_spoils_no_other():
    """The loop goes on meanwhile: the verdict comes long before such a match would end."""
    turns = 0

    async def turn():
        nonlocal turns
        while True:
            turns += 1
            await anyio.sleep(0.01)

    async with (
        Pattern(pattern=HANGS, seconds=0.3).open() as verifier,
        anyio.create_task_group() as g,
    ):
        g.start_soon(turn)
        began = perf_counter()
        said = await verifier.score(nodes(["a", TEXT, "aa"]))
        assert perf_counter() - began < 10
        g.cancel_scope.cancel()
    assert [getattr(v, "detail", "") for v in said] == ["match", "", "match"]
    assert str(said[1]).startswith("timeout: matching took too long (nested repetitions")
    assert turns > 5


def test_it_works_in_any_thread():
    said = []

    def work():
        said.append(run_sync(lambda: words(HANGS, ["a", TEXT], seconds=0.3)))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == [[YES, "timeout: matching took too long"]] * 2


@pytest.mark.anyio
async def test_odd_texts_are_texts():
    answers = ["\ud800", "\x00\n\r\u2028", "a" * 1_000_000, "ﬁ²", '"\\']
    assert await words(r"(?s).+", answers, how="full") == [YES] * 5


@pytest.mark.anyio
async def test_equal_texts_are_matched_once(monkeypatch):
    asked = []

    async with Pattern(pattern="a").open() as verifier:

        async def ask(line):
            asked.append(line)
            return b"match"

        monkeypatch.setattr(verifier._workers, "ask", ask)
        assert len(await verifier.score(nodes(["a", "b", "a", None]))) == 4
        assert await verifier.score([]) == []
    assert len(asked) == 2


@pytest.mark.anyio
async def test_a_worker_that_dies_leaves_an_error(monkeypatch):
    async with Pattern(pattern="a").open() as verifier:
        command = [sys.executable, "-c", "print('ready', flush=True); input()"]
        monkeypatch.setattr(verifier._workers, "_command", command)
        [said] = await verifier.score(nodes(["a"]))
    assert said.message == "matching ended its process"


@pytest.mark.parametrize("pattern", ["(", "a**", "(?P<x>a)(?P<x>b)", "a{99999999999}"])
def test_what_is_no_expression_is_refused(pattern):
    with pytest.raises(ValidationError, match="no regular expression"):
        Pattern(pattern=pattern)


@pytest.mark.anyio
@pytest.mark.parametrize(("how", "oracle"), [("search", re.search), ("full", re.fullmatch)])
async def test_it_says_what_pythons_expressions_say(how, oracle):
    texts = words_of(4, "ab1")
    found = [float(oracle("a+b?|1", text) is not None) for text in texts]
    said = await judged("a+b?|1", texts, how=how, seconds=10)
    assert [v.score for v in said] == found
    assert 0 < sum(found) < len(found)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no alarms")
def test_a_worker_that_nobody_watches_ends_itself():
    line = b'["(a+)+$", false, "' + TEXT.encode() + b'"]'
    command = [sys.executable, "-I", "-S", str(_WORKER), "0.3"]
    done = subprocess.run(command, check=False, input=line, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (-signal.SIGALRM, b"ready\n")
