import pytest

from branchwise import Beam, BestFirst, Chat, Rollout, Scripted, SpecError, State, Step, Task, solve
from branchwise.core.errors import SandboxError, WorldError
from branchwise.environments.python_tests import NO_PROGRAM, PythonTests
from branchwise.sandbox.bubblewrap import Bubblewrap
from branchwise.sandbox.ran import Ran
from branchwise.testing import check_environment

pytestmark = pytest.mark.anyio
TASK = Task("Write f: twice x.\n>>> f(2)\n4\n>>> f(0)\n0\n", meta={"entry_point": "f"})
RIGHT = "```python\ndef f(x):\n    return 2 * x\n```"
SQUARE = "```python\ndef f(x):\n    return x * x + 1\n```"


@pytest.fixture
async def sandbox():
    opened = Bubblewrap().open()
    try:
        live = await opened.__aenter__()
    except SpecError as error:
        pytest.skip(f"no sandbox: {error}")
    yield live
    await opened.__aexit__(None, None, None)


class Counted:
    """A sandbox that counts its runs."""

    def __init__(self, sandbox):
        self.sandbox, self.runs = sandbox, 0

    async def run(self, *args, **more):
        self.runs += 1
        return await self.sandbox.run(*args, **more)


class Gone:
    async def run(self, *_, **__):
        return Ran("exited", 127)


async def after(world, *steps, task=TASK):
    state = await world.reset(task)
    for step in steps:
        state = await world.step(state, step if isinstance(step, Step) else Step(step))
    return state


@pytest.mark.parametrize(
    ("reply", "reward", "told"),
    [
        (RIGHT, 1.0, "all 2 public tests pass"),
        ("def f(x):\n    return x * x\n", 1.0, "all 2 public tests pass"),
        (
            SQUARE,
            0.0,
            "0 of 2 public tests pass\nf(2) returned 5, expected 4\nf(0) returned 1, expected 0",
        ),
        (
            "def f(x):\n    print('hm')\n    return x + 2",
            0.5,
            "1 of 2 public tests pass\nf(0) returned 2, expected 0\nit printed: hm",
        ),
        (
            "def f(x):\n    return [][x]",
            0.0,
            "0 of 2 public tests pass\nf(2) raised IndexError: list index out of range at line 2: `return [][x]`\nf(0) raised IndexError: list index out of range at line 2: `return [][x]`",
        ),
        (
            "def f(x):\n    return (x",
            0.0,
            "the program raised SyntaxError: '(' was never closed at line 2: `return (x`",
        ),
        (
            "def g(x):\n    return x",
            0.0,
            "0 of 2 public tests pass\nthe program raised NameError: name 'f' is not defined",
        ),
        ("while True:\n    pass", 0.0, "the program took longer than 0.3 s"),
        ("I cannot.", 0.0, NO_PROGRAM),
    ],
)
async def test_the_public_tests_answer(sandbox, reply, reward, told):
    state = await after(PythonTests(sandbox=sandbox, seconds=0.3), reply)
    assert (state.done, state.reward, state.observation) == (True, reward, told)
    assert (state.answer is None) == (told == NO_PROGRAM)


@pytest.mark.parametrize(
    ("meta", "reply", "reward"),
    [
        ({"tests": ["assert g(1) == 1", "assert g(2) == 3"]}, "def g(x):\n    return x", 0.5),
        ({"entry_point": "g"}, "def g(x):\n    return x", 1.0),
        ({"entry_point": "g"}, "def f(x):\n    return x", 0.0),
        ({}, "def f(x):\n    return x", 1.0),
        ({}, "def f(x:\n", 0.0),
        (
            {"prelude": "def h(x):\n    '''h(2) == 3'''\n", "entry_point": "h"},
            "    return x + 1\n",
            1.0,
        ),
    ],
)
async def test_what_a_task_may_say(sandbox, meta, reply, reward):
    state = await after(PythonTests(sandbox=sandbox), reply, task=Task("?", meta=meta))
    assert state.reward == reward


async def test_lines_are_steps_and_a_closing_fence_ends_them(sandbox):
    world = PythonTests(sandbox=sandbox)
    lines = [Step(line + "\n", finish="stop") for line in RIGHT.split("\n")]
    for n in range(1, len(lines)):
        assert not (await after(world, *lines[:n])).done
    state = await after(world, *lines)
    assert (state.done, state.answer, state.reward) == (True, "def f(x):\n    return 2 * x\n", 1.0)
    opened = RIGHT.removeprefix("```python\n")
    assert (await after(world, Step(opened, finish="stop"))).answer == state.answer
    assert (await after(world, Step(RIGHT, finish="length"))).cut


async def test_a_failing_program_may_be_followed_by_another(sandbox):
    world = PythonTests(sandbox=sandbox, attempts=3)
    first = await after(world, SQUARE)
    assert (first.done, first.answer) == (False, "def f(x):\n    return x * x + 1\n")
    assert "returned 5" in first.observation
    assert (await world.step(first, Step(RIGHT))).done
    second = await world.step(first, Step("No."))
    assert (second.done, second.observation) == (False, NO_PROGRAM)
    third = await world.step(second, Step(SQUARE))
    assert (third.done, third.reward) == (True, 0.0)


async def test_equal_programs_run_once_and_results_do_not_depend_on_it(sandbox):
    counted = Counted(sandbox)
    world = PythonTests(sandbox=counted)
    states = [await after(world, SQUARE) for _ in range(3)]
    assert counted.runs == 1
    assert states == [await after(PythonTests(sandbox=sandbox), SQUARE)] * 3
    assert world == PythonTests(sandbox=counted)


async def test_it_keeps_the_laws_of_worlds(sandbox):
    said = (
        "```python\nimport random\ndef f(x):\n    return random.random(), {'a', 'b', str(x)}\n```"
    )
    steps = [
        Step("```python\n", finish="stop"),
        Step("def f(x):\n", finish="stop"),
        Step("    return 1\n```"),
    ]
    await check_environment(
        PythonTests(sandbox=sandbox, attempts=4), TASK, [*steps, Step(said), Step("No.")]
    )


async def test_what_is_no_fault_of_the_program_is_an_error():
    with pytest.raises(WorldError, match="no snapshot"):
        await PythonTests(sandbox=Gone()).step(State("x"), Step(RIGHT))
    with pytest.raises(SandboxError):
        await after(PythonTests(sandbox=Gone()), RIGHT)


@pytest.mark.parametrize(
    "controller",
    [Rollout(), BestFirst(fanout=1, enough=1.0), Beam(width=1, fanout=1)],
    ids=lambda c: c.kind,
)
async def test_the_feedback_reaches_the_model(sandbox, controller):
    def reply(request, seed):
        return RIGHT if "returned 5, expected 4" in request.asked else SQUARE

    answer = await solve(
        TASK,
        policy=Chat(backend=Scripted(reply)),
        controller=controller,
        environment=PythonTests(sandbox=sandbox, attempts=3),
    )
    assert (answer.value, answer.node.depth) == ("def f(x):\n    return 2 * x\n", 2)
