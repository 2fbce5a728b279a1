import pytest

from branchwise import BestFirst, Chat, Rollout, Scripted, SpecError, State, Step, Task, solve
from branchwise.core.errors import SandboxError, WorldError
from branchwise.environments.program_aided import ProgramAided
from branchwise.sandbox.bubblewrap import Bubblewrap
from branchwise.sandbox.ran import Limits, Ran
from branchwise.testing import check_environment

pytestmark = pytest.mark.anyio
TASK = Task("Olivia has $23. She bought five bagels for $3 each. How much money is left?")
PAL = """```python
def solution():
    \"\"\"Olivia has $23. She bought five bagels for $3 each.\"\"\"
    money_initial = 23
    bagels = 5
    bagel_cost = 3
    return money_initial - bagels * bagel_cost
```"""


@pytest.fixture
async def sandbox():
    opened = Bubblewrap().open()
    try:
        live = await opened.__aenter__()
    except SpecError as error:
        pytest.skip(f"no sandbox: {error}")
    yield live
    await opened.__aexit__(None, None, None)


async def after(world, *texts):
    state = await world.reset(TASK)
    for text in texts:
        state = await world.step(state, Step(text))
    return state


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (PAL, "8"),
        ("```python\nanswer = 0.1 + 0.2\nprint('so')\n```", "0.3"),
        ("```\nprint('The answer is')\nprint('$1,234.00')\n```", "1234"),
        ("```python\nfrom fractions import Fraction\nanswer = Fraction(6, 8)\n```", "3/4"),
        ("```python\nimport sys\nprint(7)\nsys.exit()\n```", "7"),
        ("```python\ndef solution(x):\n    return x\nprint(5)\n```", "5"),
        ("```python\ndef solution():\n    return 1e20\n```", "100000000000000000000"),
    ],
)
async def test_a_program_gives_the_answer(sandbox, text, answer):
    state = await after(ProgramAided(sandbox=sandbox), text)
    assert (state.done, state.answer) == (True, answer)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("I do not know.", "no program"),
        ("```python\nx = 1\n```", "printed nothing"),
        ("```python\ndef solution():\n    return 1 / 0\n```", "ZeroDivisionError"),
        ("```python\nimport no_such_module\n```", "No module named"),
        ("```python\nprint(1\n```", "SyntaxError"),
        ("```python\nimport sys\nsys.exit('bad luck')\n```", "bad luck"),
        ("```python\nprint('x' * 9000)\n```", "wrote too much"),
    ],
)
async def test_a_fault_is_told_and_the_next_program_may_be_right(sandbox, text, why):
    world = ProgramAided(sandbox=sandbox, limits=Limits(output=4000))
    state = await after(world, text)
    assert why in state.observation
    assert "run.py" not in state.observation
    assert (state.done, state.cut, state.answer) == (False, False, None)


async def test_a_program_has_limited_time(sandbox):
    world = ProgramAided(sandbox=sandbox, limits=Limits(seconds=0.3))
    state = await after(world, "```python\nwhile True: pass\n```")
    assert state.observation == "The program was stopped after 0.3 seconds."


async def test_so_many_faults_end_it(sandbox):
    once = ProgramAided(sandbox=sandbox, attempts=1)
    assert (await after(once, "?")).cut
    twice = ProgramAided(sandbox=sandbox, attempts=2)
    assert not (await after(twice, "?")).cut
    assert (await after(twice, "?", "?")).cut
    assert (await after(twice, "?", PAL)).answer == "8"


class Canned:
    """A sandbox that says what it is told to, or breaks."""

    def __init__(self, ran=None):
        self.ran = ran

    async def run(self, files, argv, limits, *, stdin=b"", keep=False):
        if self.ran is None:
            raise SandboxError("gone")
        return self.ran


async def test_it_keeps_the_laws():
    world = ProgramAided(sandbox=Canned(Ran("exited", stdout=b"8\n")))
    await check_environment(world, TASK, [Step("?"), Step("Hm."), Step(PAL)])


@pytest.mark.parametrize(
    ("ran", "why"),
    [
        (Ran("memory"), "memory"),
        (Ran("denied"), "asked the system"),
        (Ran("killed", 9), "The program failed."),
        (Ran("exited", 1, stderr=b"x" * 5000), "x" * 2000),
    ],
)
async def test_other_ends_are_told_too(ran, why):
    state = await after(ProgramAided(sandbox=Canned(ran)), PAL)
    assert state.observation.endswith(why) or why in state.observation
    assert len(state.observation) < 2100


async def test_half_a_program_is_not_run_and_a_broken_sandbox_fails_the_branch():
    world = ProgramAided(sandbox=Canned())
    start = await world.reset(TASK)
    for finish in ("length", "filter"):
        assert (await world.step(start, Step(PAL, finish=finish))).cut
    assert "no tools" in (await world.step(start, Step("", finish="tools"))).observation
    with pytest.raises(SandboxError, match="gone"):
        await world.step(start, Step(PAL))
    with pytest.raises(WorldError):
        await world.step(State("a text"), Step(PAL))


@pytest.mark.parametrize("controller", [Rollout(), BestFirst(fanout=1)])
async def test_a_model_mends_its_program(sandbox, controller):
    def reply(request, seed):
        faulty = len(request.messages) == 1
        return "```python\nprint(23 - 5 * bagel)\n```" if faulty else PAL

    answer = await solve(
        TASK,
        policy=Chat(backend=Scripted(reply)),
        controller=controller,
        environment=ProgramAided(sandbox=sandbox),
    )
    assert answer.value == "8"
    assert "NameError" in answer.node.parent.state.observation
