import os
import subprocess
import sys
from importlib.util import find_spec

import anyio
import pytest

from branchwise.core.aio import gather
from branchwise.core.errors import SandboxError, SpecError
from branchwise.sandbox.monty import Monty
from branchwise.sandbox.ran import Limits, Sandbox

pytestmark = pytest.mark.anyio
BRIEF = Limits(seconds=0.3, memory=32 << 20, output=1000, disk=1 << 16)
needs = pytest.mark.skipif(find_spec("pydantic_monty") is None, reason="needs pydantic-monty")


@pytest.fixture
async def monty():
    pytest.importorskip("pydantic_monty")
    async with Monty(workers=2).open() as sandbox:
        yield sandbox


async def test_without_the_package_it_refuses(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydantic_monty", None)
    with pytest.raises(SpecError, match=r"pip install 'branchwise\[monty\]'"):
        async with Monty().open():
            pass


@needs
async def test_without_its_interpreter_it_refuses(monkeypatch, tmp_path):
    monkeypatch.setenv("MONTY_BIN", str(tmp_path / "missing"))
    with pytest.raises(SpecError, match="does not start"):
        async with Monty().open():
            pass


SCRIPTS = {
    "exits": ("print(6 * 7)", "exited", 0, b"42\n"),
    "raises": ("print(1)\n1 / 0", "exited", 1, b"1\n"),
    "wrong syntax": ("def f(:", "exited", 1, b""),
    "too deep": ("x = " + "(" * 30_000, "exited", 1, b""),
    "recursion": ("def f(): f()\nf()", "exited", 1, b""),
    "its own time-out": ("raise TimeoutError('mine')", "exited", 1, b""),
    "loop": ("print(1)\nwhile True: pass", "timeout", 9, b""),
    "loop that catches": ("while True:\n  try:\n    while True: pass\n  except: pass", "timeout", 9, b""),
    "one long operation": ("y = 10 ** (10 ** 7)", "timeout", 9, b""),
    "sleep": ("import time\ntime.sleep(5)", "timeout", 9, b""),
    "memory": ("x = [0] * 10 ** 10", "memory", 9, b""),
    "output": ("print('a' * 999 + 'é' * 10 ** 6)", "output", 9, b"a" * 999),
    "file outside": ("open('/etc/passwd')", "exited", 1, b""),
    "file above": ("open('../../etc/passwd')", "exited", 1, b""),
    "environment": ("import os\nos.environ", "exited", 1, b""),
    "process": ("import os\nos.system('id')", "exited", 1, b""),
    "import": ("import socket", "exited", 1, b""),
    "classes": ("().__class__.__bases__[0].__subclasses__()", "exited", 1, b""),
    "big file": ("open('x', 'w').write('x' * 10 ** 6)", "exited", 1, b""),
}  # fmt: skip


@pytest.mark.parametrize("name", SCRIPTS)
async def test_what_becomes_of_a_script(monty, name):
    script, status, code, stdout = SCRIPTS[name]
    ran = await monty.run({"main.py": script.encode()}, ["python", "main.py"], BRIEF)
    assert (ran.status, ran.code) == (status, code)
    assert ran.stdout.startswith(stdout)
    assert len(ran.stdout + ran.stderr) <= BRIEF.output
    assert ran.stdout or ran.stderr or status != "exited"
    assert (await monty.resume("1")).output == "1\n"


async def test_files_go_in_and_come_out(monty):
    assert isinstance(monty, Sandbox)
    script = b"text = open('data/in.txt').read()\nopen('out.txt', 'w').write(text.upper())"
    files = {"main.py": script, "data/in.txt": b"word"}
    ran = await monty.run(files, ["python", "main.py"], keep=True)
    assert ran.ok
    assert ran.files == {**files, "out.txt": b"WORD"}
    assert (await monty.run(files, ["python", "main.py"])).files == {}


@pytest.mark.parametrize(
    ("files", "argv", "stdin"),
    [
        ({"a.py": b""}, ["sh", "a.py"], b""),
        ({"a.py": b""}, ["python", "b.py"], b""),
        ({"a.py": b""}, ["python", "a.py", "x"], b""),
        ({"../a.py": b""}, ["python", "../a.py"], b""),
        ({"a.py": b""}, ["python", "a.py"], b"x"),
    ],
)
async def test_what_it_cannot_do_it_says(monty, files, argv, stdin):
    with pytest.raises(SpecError):
        await monty.run(files, argv, stdin=stdin)
    with pytest.raises(SpecError):
        monty.start(files, argv)


async def test_states_fork(monty):
    begun = await monty.resume("x = [1]\ndef double(n):\n    return 2 * n")
    left, right = await gather(
        lambda code: monty.resume(code, begun.saved), ["x.append(double(2))", "x.append(double(3))"]
    )
    seen = [await monty.resume("x", state.saved) for state in (begun, left, right)]
    assert [turn.output for turn in seen] == ["[1]\n", "[1, 4]\n", "[1, 6]\n"]
    assert len(begun.saved) < 1 << 15


async def test_chance_is_part_of_the_state(monty):
    begun = await monty.resume("import random\nx = random.random()")
    drawn = [await monty.resume("x, random.random()", begun.saved) for _ in range(2)]
    again = await monty.resume(
        "x", (await monty.resume("import random\nx = random.random()")).saved
    )
    assert drawn[0].output == drawn[1].output
    assert again.output.strip() in drawn[0].output


@pytest.mark.parametrize(
    ("code", "output"),
    [
        ("", ""),
        ("# nothing", ""),
        ("None", ""),
        ("x = 1", ""),
        ("'a'", "'a'\n"),
        ("x = 1; x", "1\n"),
        ("1; 2  # comment", "2\n"),
        ("(1,\r\n 2)\r\n", "(1, 2)\n"),
        ("'é\x0c\u2028'; 'ü'", "'ü'\n"),
        ("print(1)\n2", "1\n2\n"),
        ("if True: 3", ""),
        ("async def f(): return 4\nawait f()", "4\n"),
        ("*[1, 2], 3", "(1, 2, 3)\n"),
        ("(y := 5)", "5\n"),
    ],
)
async def test_the_last_value_is_printed(monty, code, output):
    turn = await monty.resume(code)
    assert (turn.status, turn.error, turn.output) == ("exited", "", output)


async def test_an_error_keeps_what_came_before_it(monty):
    turn = await monty.resume("x = 1\nprint('so far')\nx / 0")
    assert turn.output == "so far\n"
    assert "line 3" in turn.error
    assert turn.error.endswith("ZeroDivisionError: division by zero\n")
    assert (await monty.resume("x", turn.saved)).output == "1\n"


@pytest.mark.parametrize(
    ("code", "status"),
    [("x = 2\nwhile True: pass", "timeout"), ("x = 2\ny = [0] * 10 ** 10", "memory")],
)
async def test_a_limit_leaves_the_state_before(monty, code, status):
    begun = await monty.resume("x = 1", b"", BRIEF)
    turn = await monty.resume(code, begun.saved, BRIEF)
    assert turn.status == status
    assert turn.saved == begun.saved


async def test_a_value_too_large_to_print_takes_no_memory_here(monty):
    turn = await monty.resume("2 ** 10 ** 6", b"", BRIEF)
    assert "digits" in turn.error
    turn = await monty.resume("[0] * 10 ** 6", b"", BRIEF)
    assert turn.status in {"output", "memory"}
    assert len(turn.output) <= BRIEF.output


async def test_what_is_no_state_is_refused(monty):
    begun = await monty.resume("x = 1")
    for saved in (b"junk", begun.saved[:100]):
        with pytest.raises(SandboxError):
            await monty.resume("x", saved)
    assert (await monty.resume("x", begun.saved)).output == "1\n"


async def test_a_cancelled_run_ends_and_frees_its_place(monty):
    for _ in range(4):  # twice as often as there are workers
        with anyio.move_on_after(0.05) as scope:
            await monty.resume("while True: pass", b"", Limits(seconds=60))
        assert scope.cancelled_caught
    with anyio.fail_after(10):
        assert (await monty.resume("1")).output == "1\n"


@needs
def test_it_ends_cleanly_after_many_sessions():
    program = """if True:
        from branchwise.core.aio import gather, run_sync
        from branchwise.sandbox.monty import Monty
        async def main():
            async with Monty(workers=2).open() as monty:
                turns = await gather(lambda n: monty.resume(f"{n}"), range(200))
                assert [int(turn.output) for turn in turns] == list(range(200))
        run_sync(main)
    """
    ended = subprocess.run([sys.executable, "-c", program], env=os.environ, check=False)
    assert ended.returncode == 0
