import functools
import json
import os
import signal
import subprocess
import sys
import threading
from time import perf_counter

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchwise.core.aio import run_sync
from branchwise.core.errors import SpecError, VerifierError
from branchwise.core.node import Node
from branchwise.core.types import State, Task
from branchwise.verifiers import math_equal
from branchwise.verifiers.math_equal import MathEqual, same
from branchwise.verifiers.workers import WorkerDiedError, Workers


def nodes(pairs):
    return [Node(Task("?", target), State(answer=answer)) for answer, target in pairs]


def words(verdicts):
    return [v.message if isinstance(v, VerifierError) else v.detail for v in verdicts]


async def graded(pairs, **spec):
    async with MathEqual(**spec).open() as verifier:
        return words(await verifier.score(nodes(pairs)))


EQUAL = [
    *(("18", "18.00"), ("$1,000", "1000"), ("0.75", "3/4"), ("1e3", "1000"), ("(B)", "B")),
    *(("even", "Even"), ("6:8", "3:4"), ("The answer is 5.", "#### 5"), ("7_{8}", "7_8")),
    *(("5<x<7", "(5, 7)"), ("5 \\le x < 7", "[5,7)"), ("√-1", "i"), ("x² + 1", "1 + x^2")),
    *(("\\sqrt{8}", "2\\sqrt{2}"), ("2^{10}", "1024"), ("(x+1)^2", "x^2+2x+1"), ("50%", "1/2")),
    *(("1, 2", "2, 1"), ("0.333333", "1/3"), ("x=5", "5"), ("50%", "50"), ("5!", "120")),
]
DIFFERENT = [
    *(("18", "19"), ("3:4", "3/4"), ("7_8", "7"), ("odd", "even"), ("0.33", "1/3"), ("2x", "2")),
    *(("(1,2)", "(2,1)"), ("[1,2]", "(1,2)"), ("\\pi", "3.14"), ("x+1", "x+2")),
]


@pytest.mark.anyio
async def test_what_is_equal_and_what_is_not():
    assert await graded(EQUAL + DIFFERENT) == ["equal"] * len(EQUAL) + ["different"] * len(
        DIFFERENT
    )


@pytest.mark.anyio
async def test_what_cannot_be_compared_says_why():
    pairs = [("\\input{/etc/passwd}", "1"), (None, "1"), ("2x", "\\input{x}"), ("1", None)]
    pairs += [("x" * 1_000_000, "1"), ("1", "+x" * 500_000), ("\u202e\x00{}", "1")]
    no_target = "there is no target to compare with"
    assert await graded(pairs) == [
        *("unparsed", "no answer", "unparsed target", no_target),
        *("unparsed", "unparsed target", "unparsed"),
    ]


def test_a_hidden_target_is_explained():
    [error] = run_sync(score, [("1", None)])
    assert "use math-equal as the grader, or set oracle = true" in error.hint


async def score(pairs):
    async with MathEqual().open() as verifier:
        return await verifier.score(nodes(pairs))


TOWER = "9^{9^{9^{9^{9^{9}}}}}"


@pytest.mark.anyio
async def test_a_comparison_that_hangs_is_killed_and_spoils_no_other():
    async with MathEqual(workers=1, seconds=1).open() as verifier:
        await verifier.score(nodes([("2x", "x+x")]))
        began = perf_counter()
        said = words(
            await verifier.score(nodes([("2x", "x+x"), (TOWER, "8^{8^8}"), ("3y", "y+2y")]))
        )
        assert perf_counter() - began < 10
    assert said == ["equal", "timeout: the comparison took too long", "equal"]


def test_nested_deep_or_long_gets_its_verdict_in_time():
    pairs = [("(" * 450 + "x" + ")" * 450, "2y"), ("\\frac{1}{" * 90 + "x" + "}" * 90, "2y")]
    pairs += [("\\sqrt{x}+" * 100_000, "2y"), ("\\boxed{x+x}" + "\\frac" * 100_000, "2x")]
    began = perf_counter()
    said = run_sync(functools.partial(graded, seconds=1), pairs)
    assert perf_counter() - began < 15
    assert said[2:] == ["unparsed", "equal"]
    assert all(word in {"unparsed", "different"} or word.startswith("timeout") for word in said[:2])


def test_it_works_in_any_thread():
    said = []
    thread = threading.Thread(target=lambda: said.extend(run_sync(graded, [("2x", "x+x")])))
    thread.start()
    thread.join()
    assert said == ["equal"]


def test_it_stops_in_time_in_any_thread_and_on_any_loop():
    said = []
    grade = functools.partial(graded, workers=1, seconds=0.3)

    def work(backend):
        said.extend(run_sync(grade, [(TOWER, "8^{8^8}")], backend=backend))

    threads = [threading.Thread(target=work, args=[loop]) for loop in ("asyncio", "trio")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == ["timeout: the comparison took too long"] * 2


ODD = [
    *("\ud800", "\u0301" * 300, "\U0001d465+\U0001d465", "\ufeff2x\u200b", "\r\n\u2028", "%\n"),
    *("\\input{/dev/zero}", "\\def\\a{\\a\\a}\\a", "\\csname x\\endcsname", "$$", "\\"),
    *("(" * 100_000 + "x" + ")" * 100_000, "{" * 20_000, "x^" * 3000 + "x"),
    "\\frac{1}{" * 2000 + "x" + "}" * 2000,
]


def test_whatever_the_characters_one_of_its_words_comes():
    said = run_sync(
        functools.partial(graded, workers=1, seconds=60),
        [pair for odd in ODD for pair in ((odd, "2x"), ("2x", odd), (odd, odd))],
    )
    assert set(said[::3]) <= {"unparsed", "different"}
    assert set(said[1::3]) <= {"unparsed target", "different"}
    assert set(said[2::3]) == {"equal"}


def test_without_math_verify_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(math_equal, "find_spec", lambda _: None)
    with pytest.raises(SpecError, match=r"pip install 'branchwise\[math\]'"):
        run_sync(score, [])


@given(st.fractions(), st.fractions())
def test_numbers_need_no_algebra(x, y):
    assert same(str(x), str(x)) is True
    assert same(str(x), str(y)) in ({True} if x == y else {False, None})


@pytest.mark.skipif(sys.platform == "win32", reason="there are no alarms")
def test_a_worker_that_nobody_watches_ends_itself():
    line = json.dumps([TOWER, "8^{8^8}"]).encode()
    command = [sys.executable, "-P", str(math_equal._WORKER), "0.3", str(1 << 30)]
    done = subprocess.run(command, check=False, input=line, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (-signal.SIGALRM, b"ready\n")


# Workers

ECHO = (
    "import sys, time\n"
    "print('ready', flush=True)\n"
    "for n, line in enumerate(sys.stdin):\n"
    "    if 'hang' in line: time.sleep(60)\n"
    "    if 'die' in line or ('second' in line and n): sys.exit()\n"
    "    import os; print(os.getpid(), line, end='', flush=True)\n"
)


def pool(count=1, seconds=20.0):
    return Workers([sys.executable, "-c", ECHO], count=count, seconds=seconds)


async def pid(workers, line=b"a"):
    return int((await workers.ask(line)).split()[0])


def alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.anyio
async def test_a_worker_serves_again_and_ends_with_its_pool():
    workers = pool()
    first = await pid(workers)
    assert await pid(workers) == first
    assert alive(first)
    await workers.aclose()
    assert not alive(first)


@pytest.mark.anyio
async def test_a_worker_that_died_of_older_lines_is_replaced():
    workers = pool()
    first = await pid(workers)
    assert await pid(workers, b"second") != first
    with pytest.raises(WorkerDiedError):
        await workers.ask(b"die")
    assert await pid(workers) != first
    await workers.aclose()


@pytest.mark.anyio
async def test_a_slow_or_forsaken_worker_is_killed():
    workers = pool(seconds=0.2)
    first = await pid(workers)
    with pytest.raises(TimeoutError):
        await workers.ask(b"hang")
    assert not alive(first)
    second = await pid(workers)
    with anyio.move_on_after(0.05) as scope:
        await workers.ask(b"hang")
    assert scope.cancelled_caught
    assert not alive(second)
    assert await pid(workers) not in {first, second}
    await workers.aclose()


@pytest.mark.anyio
async def test_no_more_workers_than_allowed():
    workers = pool(count=2)
    seen = set()

    async def one():
        seen.add(await pid(workers))

    async with anyio.create_task_group() as group:
        for _ in range(6):
            group.start_soon(one)
    assert 1 <= len(seen) <= 2
    await workers.aclose()
