import json
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import pytest

from branchwise import BestFirst, Rollout, Verdict, solve
from branchwise.core.errors import SandboxError, SpecError, WorldError
from branchwise.core.types import State, Step, Task, ToolCall
from branchwise.environments.python_repl import NOTHING, PythonREPL, fenced
from branchwise.sandbox.bubblewrap import Bubblewrap
from branchwise.sandbox.ran import Limits
from branchwise.sandbox.unconfined import Unconfined
from branchwise.testing import check_closing, check_environment

pytestmark = pytest.mark.anyio
TASK = Task("Compute.")
SHORT = Limits(seconds=5, output=20_000)


@asynccontextmanager
async def repl(sandbox=None, **more):
    async with AsyncExitStack() as stack:
        opened = await stack.enter_async_context((sandbox or Unconfined()).open())
        spec = PythonREPL(**{"sandbox": opened, "limits": SHORT, **more})
        yield await stack.enter_async_context(spec.open())


@asynccontextmanager
async def walled(**more):
    try:
        async with Bubblewrap().open():
            pass
    except SpecError as error:
        pytest.skip(f"no sandbox: {error}")
    async with repl(Bubblewrap(), **more) as world:
        yield world


def block(code):
    return Step(f"Let me see.\n```python\n{code}\n```\n", finish="stop")


def call(code, name="python"):
    return ToolCall("1", name, json.dumps({"code": code}))


async def said(world, *codes):
    """What the last of these has said, and the state after it."""
    state = await world.reset(TASK)
    for code in codes:
        state = await world.step(state, block(code))
    return state.observation, state


LAWS = [
    block("x = [1]"),
    block("import random\nx.append(random.randrange(10**9)); x"),
    block("print(sorted(map(hash, 'abc')), set('hello'))"),
    block("open('note', 'a').write('more')\nopen('note').read()"),
    block("1/0"),
    Step("", finish="tools", tool_calls=(call("len(x)"), call("y"))),
    Step("It is 7.", finish="end"),
]


async def test_it_keeps_the_laws_behind_walls():
    async with walled(live=2) as world:
        await check_environment(world, TASK, LAWS)


async def test_it_closes_everything_however_it_ends():
    await check_closing(lambda: repl(live=2), TASK, LAWS[:2])


async def test_another_start_gives_the_same_world():
    seen = []
    for _ in range(2):
        async with repl() as world:
            seen.append(
                await said(world, "import random", "random.random(), hash('a'), set('abcdef')")
            )
    assert seen[0] == seen[1]


async def test_siblings_start_from_the_same_names_and_files():
    async with repl() as world:
        _, state = await said(world, "x = 1; open('a', 'w').write('a'); None")
        left = await world.step(state, block("x += 1; import os; os.remove('a'); x"))
        right = await world.step(state, block("x += 10; import os; x, os.listdir()"))
        again = await world.step(left, block("x"))
    assert (left.observation, right.observation, again.observation) == ("2", "(11, ['a'])", "2")


ECHOES = {
    "1 + 1": "2",
    "x = 2": NOTHING,
    "print('a')\n'b'": "a\n'b'",
    "def f():\n    return 5\n\nf()": "5",
    "import sys; print('e', file=sys.stderr)": "e",
    "import subprocess; subprocess.run(['echo', 'hi']).returncode": "hi\n0",
    "import os; _ = os.write(1, b'\\xff')": "\ufffd",
    "print('\\ud800')": "\\ud800",
    "None": NOTHING,
    "1; 2": "2",
}


async def test_it_echoes_like_a_repl():
    async with repl() as world:
        assert {code: (await said(world, code))[0] for code in ECHOES} == ECHOES


async def test_a_traceback_shows_the_code_and_nothing_else():
    async with repl() as world:
        text, state = await said(world, "x = 3\ndef f(y):\n    return y / 0\n", "f(x)")
        assert text.splitlines()[0] == "Traceback (most recent call last):"
        assert '<step 1>", line 3, in f\n    return y / 0' in text
        assert text.endswith("ZeroDivisionError: division by zero")
        assert "python_worker" not in text
        wrong = await world.step(state, block("x = = 1"))
        assert wrong.observation.splitlines()[-1] == "SyntaxError: invalid syntax"
        deep = await world.step(state, block("def g(n): return g(n + 1)\ng(0)"))
        assert len(deep.observation) < 1000
        assert "RecursionError" in deep.observation
        assert (await world.step(wrong, block("x"))).observation == "3"


STOPPED = {
    "while True: pass": "more than 0.3 s",
    "import time; time.sleep(60)": "more than 0.3 s",
    "while True: print('a' * 100)": "printed too much",
    "import os; os._exit(0)": "ended the interpreter",
    "import ctypes; ctypes.string_at(0)": "ended the interpreter",
}


async def test_code_that_is_stopped_leaves_the_state_as_it_was():
    async with repl(limits=Limits(seconds=0.3, output=2000)) as world:
        _, before = await said(world, "x = 1")
        for code, word in STOPPED.items():
            after = await world.step(before, block(f"x = 2\n{code}"))
            assert word in after.observation
            assert after.snapshot == before.snapshot
            assert (await world.step(after, block("x"))).observation == "1"


RUDE = (
    "exit_ = SystemExit(3); raise exit_",
    "raise KeyboardInterrupt",
    "import sys; sys.stdout.close(); sys.stderr = None",
    "import os, random, socket, time\nos.fork = socket.recv_fds = os._exit = os.waitpid = None",
    "input()",
    "class E(Exception):\n    def __str__(self): 1/0\nraise E",
    "import os; os.chdir('/')",
)


async def test_what_code_does_to_its_interpreter_stays_a_step():
    async with repl() as world:
        for code in RUDE:
            _, state = await said(world, "x = 1", code)
            after = await world.step(state, block("y = x + 1"))
            last = await world.step(after, block("import os; _ = os.write(1, b'%d' % y)"))
            assert last.observation == "2", code


async def test_memory_is_bounded():
    async with repl(limits=Limits(memory=256 << 20)) as world:
        text, _ = await said(world, "x = bytearray(1 << 30)")
        assert text.endswith("MemoryError")


async def test_whoever_kills_all_harms_himself_alone():
    kill = "import os\nfor p in os.listdir('/proc'):\n    if p.isdigit() and p not in ('1', str(os.getpid())):\n        os.kill(int(p), 9)"
    results = {}

    async with walled(limits=Limits(seconds=3)) as world:
        _, state = await said(world, "x = 1")

        async def go(name, code):
            results[name] = await world.step(state, block(code))

        async with anyio.create_task_group() as group:
            group.start_soon(go, "evil", kill)
            group.start_soon(go, "good", "import time; time.sleep(0.1); x + 1")
        assert (
            "ended the interpreter" in results["evil"].observation
            or results["evil"].observation == NOTHING
        )
        assert results["good"].observation == "2"
        assert (await world.step(state, block("x"))).observation == "1"


async def test_equal_steps_are_run_once():
    results = []
    async with repl() as world:
        root = await world.reset(TASK)

        async def go():
            results.append(await world.step(root, block("import os; os.getpid()")))

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(go)
    assert results[0] == results[1] == results[2]


async def test_a_reply_without_code_is_the_answer():
    async with repl() as world:
        root = await world.reset(TASK)
        end = await world.step(root, Step(r"So it is \boxed{12}.", finish="end"))
        assert (end.done, end.answer) == (True, "12")
        plain = await world.step(root, Step("```text\n1 + 1\n```\nThe answer is 3.", finish="end"))
        assert (plain.done, plain.answer) == (True, "3")
        for finish in ("length", "filter"):
            assert (await world.step(root, Step("```python\n1 +", finish=finish))).cut


async def test_tool_calls_are_answered_one_by_one():
    wrong = ToolCall("1", "python", '{"code": 3}')
    broken = ToolCall("1", "python", '{"code": "1')
    async with repl() as world:
        root = await world.reset(TASK)
        calls = (call("x = 5"), call("x"), wrong, broken, call("1", name="bash"), call("x + 1"))
        state = await world.step(root, Step("", finish="tools", tool_calls=calls))
    assert state.results[:2] == (NOTHING, "5")
    assert "have to be" in state.results[2]
    assert "have to be" in state.results[3]
    assert "no tool 'bash'" in state.results[4]
    assert state.results[5] == "6"
    assert state.snapshot == ["x = 5", "x", "x + 1"]
    assert state.tools == root.tools


async def test_the_setup_is_there_and_its_errors_are_told():
    async with repl(setup="import math\nlimit = 4") as world:
        assert (await said(world, "math.isqrt(limit)"))[0] == "2"
    for wrong in ("import nowhere", "x ="):
        with pytest.raises(SpecError, match="setup failed"):
            async with repl(setup=wrong):
                pass


async def test_long_output_is_clipped_in_its_middle():
    async with repl(shown=200) as world:
        text, _ = await said(world, "print('a' * 1000 + 'z' * 1000)")
    assert text.startswith("aaa")
    assert text.endswith("zzz")
    assert "1800 characters are left out" in text


async def test_what_is_no_state_or_no_program():
    async with repl() as world:
        with pytest.raises(WorldError, match="list of code"):
            await world.step(State({"x": 1}), block("1"))
        with pytest.raises(WorldError, match="could not be run again"):
            await world.step(State(["import os; os._exit(1)"]), block("1"))
        assert "longer than" in (await said(world, "x = 1\n" * 20_000))[0]


async def test_an_error_in_the_block_is_raised_as_it_is():
    with pytest.raises(ValueError, match="mine"):
        async with repl():
            raise ValueError("mine")


async def test_a_sandbox_that_does_not_start_is_told():
    class Broken:
        @asynccontextmanager
        async def start(self, files, argv, limits):
            raise SandboxError("no more namespaces")
            yield

    with pytest.raises(SandboxError, match="namespaces"):
        async with PythonREPL(sandbox=Broken()).open():
            pass


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\n1\n```", "1\n"),
        ("```py\n1\n```\nand\n```Python3\n2\n```", "1\n2\n"),
        ("~~~python\n1\n~~~", "1\n"),
        ("  ```python\n1\n  ```", "1\n"),
        ("```python\n1", "1"),
        ("```python\ns = '```'\n```", "s = '```'\n"),
        ("````python\n```\n````", "```\n"),
        ("```\n1\n```", None),
        ("```js\n1\n```", None),
        ("1 + 1", None),
    ],
)
def test_code_is_what_stands_in_python_blocks(text, code):
    assert fenced(text) == code


class Programmer:
    """Counts up in code until it has what it wants."""

    async def propose(self, node, seeds):
        if not node.parent:
            return [block(f"x = {i}") for i, _ in enumerate(seeds)]
        if node.depth < 3:
            return [block("x += 10; x") for _ in seeds]
        last = node.state.observation
        return [Step(f"The answer is {last}.", finish="end") for _ in seeds]


@pytest.mark.parametrize(("controller", "best"), [(Rollout(), "20"), (BestFirst(fanout=3), "22")])
async def test_the_same_agent_searches(controller, best):
    class Judge:
        async def score(self, nodes):
            return [Verdict(float(node.state.answer or node.text.count("2"))) for node in nodes]

    async with repl(live=2) as world:
        answer = await solve(
            "?", policy=Programmer(), controller=controller, environment=world, verifier=Judge()
        )
    assert answer.value == best
