import json
import threading
from contextlib import asynccontextmanager
from datetime import date
from importlib.util import find_spec
from typing import Literal

import anyio
import pytest
from pydantic import BaseModel, Field, ValidationError

from branchwise import SpecError, State, Step, Task, ToolCall, WorldError
from branchwise.core.errors import SandboxError
from branchwise.environments.algebra import Algebra
from branchwise.environments.tools import Tools, declared
from branchwise.sandbox.bubblewrap import Bubblewrap
from branchwise.testing import check_environment

pytestmark = pytest.mark.anyio
TASK = Task("What is 2 + 3?")
CALCULATOR = "branchwise.environments.calculator:calculator"


def add(a: int, b: int = 1) -> int:
    """Add two numbers.

    They may be negative.

    Args:
        a: the first,
            which has to be given.
        b (int): the second.

    Returns:
        The sum.
    """
    return a + b


class Order(BaseModel):
    item: Literal["tea", "cake"]
    count: int = Field(ge=1)


def order(orders: list[Order], on: date) -> dict[str, object]:
    """Order something."""
    return {"on": on, "items": [each.item for each in orders]}


def fail(why: str) -> None:
    raise RuntimeError(why)


async def later(word: str) -> str:
    await anyio.lowlevel.checkpoint()
    return word[::-1]


def calls(*wanted):
    return Step(
        "",
        finish="tools",
        tool_calls=tuple(
            ToolCall(str(i), name, said if isinstance(said, str) else json.dumps(said))
            for i, (name, said) in enumerate(wanted)
        ),
    )


async def results(*wanted, functions=(add, order, fail, later), **fields):
    world = Tools(functions=functions, **fields)
    state = await world.step(await world.reset(TASK), calls(*wanted))
    assert state.tools is world.tools
    return state.results


def test_a_function_says_what_it_takes():
    tool = declared(add)
    assert tool.description == "Add two numbers.\n\nThey may be negative."
    assert tool.parameters == {
        "type": "object",
        "properties": {
            "a": {"type": "integer", "description": "the first, which has to be given."},
            "b": {"type": "integer", "default": 1, "description": "the second."},
        },
        "required": ["a"],
        "additionalProperties": False,
    }
    assert declared(later).parameters["required"] == ["word"]
    assert "count" in json.dumps(declared(order).parameters)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x,
        "no_module_here:x",
        "json:nothing",
        "json",
        CALCULATOR.replace("calculator:calculator", "calculator:BITS"),
        (lambda *args: args),
        object(),
    ],
)
def test_what_cannot_be_a_tool_is_refused(wrong):
    with pytest.raises(ValidationError):
        Tools(functions=[wrong])


def test_names_differ():
    def finish() -> None:
        pass

    def positional(a, /):
        return a

    for functions in ([add, add], [finish], [positional], []):
        with pytest.raises(ValidationError):
            Tools(functions=functions)


async def test_calls_side_by_side_give_results_in_order():
    meet = anyio.Event()

    async def wait() -> str:
        await meet.wait()
        return "met"

    async def come() -> str:
        meet.set()
        return "came"

    said = await results(("wait", {}), ("come", ""), functions=(wait, come))
    assert said == ("met", "came")


@pytest.mark.parametrize(
    ("name", "arguments", "result"),
    [
        ("add", {"a": 2, "b": 3}, "5"),
        ("add", {"a": "2"}, "3"),
        ("later", {"word": "abc"}, "cba"),
        (
            "order",
            {"orders": [{"item": "tea", "count": 2}], "on": "2024-02-29"},
            '{"on":"2024-02-29","items":["tea"]}',
        ),
        ("add", {}, "Error: a: Missing required argument"),
        ("add", {"a": 1, "c": 2}, "Error: c: Unexpected keyword argument"),
        ("add", {"a": 1.5}, "Error: a: Input should be a valid integer"),
        (
            "order",
            {"orders": [{"item": "x", "count": 1}], "on": "2024-01-01"},
            "Error: orders.0.item",
        ),
        ("add", "{a: 1}", "Error: the arguments are no JSON"),
        ("add", "[1, 2]", "Error: the arguments are no JSON object"),
        ("add", "[" * 100_000, "Error: the arguments are no JSON"),
        ("fail", {"why": "no luck"}, "Error: RuntimeError: no luck"),
        ("ad", {"a": 1}, "Error: there is no tool 'ad' (did you mean 'add'?)"),
        ("finish", {"answer": "5"}, "Error: there is no tool 'finish'"),
    ],
)
async def test_whatever_happens_is_a_result(name, arguments, result):
    [said] = await results((name, arguments))
    assert said == result if not result.startswith("Error") else said.startswith(result), said


async def test_a_call_has_limited_time_in_threads_too():
    stop = threading.Event()

    def hang() -> None:
        stop.wait(10)

    try:
        said = await results(("hang", {}), functions=(hang,), seconds=0.05)
        assert said == ("Error: no result after 0.05 seconds",)
    finally:
        stop.set()
    said = await results(("sleep", {"delay": 9}), functions=(anyio.sleep,), seconds=0.01)
    assert said == ("Error: no result after 0.01 seconds",)


async def test_long_results_are_cut():
    def long() -> str:
        return "x" * 150

    assert await results(("long", {}), functions=(long,), longest=100) == (
        f"{'x' * 100}... (50 characters more)",
    )


async def test_a_text_is_the_answer():
    world = Tools(functions=[add])
    start = await world.reset(TASK)
    assert (await world.step(start, Step(" It is 5. "))).answer == "It is 5."
    assert (await world.step(start, Step(" "))).answer is None
    assert (await world.step(start, Step("The answer is", finish="length"))).cut
    assert "no call" in (await world.step(start, Step("?", finish="tools"))).observation
    read = Tools(functions=[add], extract=("says", "last_number"))
    assert (await read.step(start, Step("The answer is $5.00."))).answer == "5"


async def test_a_tool_may_end_it():
    world = Tools(functions=[add], finish=True)
    start = await world.reset(TASK)
    thought = await world.step(start, Step("It must be 5."))
    assert (thought.done, "finish" in thought.observation) == (False, True)
    wrong = await world.step(start, calls(("finish", {"answer": 5})))
    assert (wrong.done, wrong.results) == (False, ("Error: answer: a string is needed",))
    end = await world.step(start, calls(("add", {"a": 1}), ("finish", {"answer": "5"})))
    assert (end.done, end.answer, end.results) == (True, "5", ("2", "Done."))
    assert [tool.name for tool in start.tools] == ["add", "finish"]


async def test_it_keeps_the_laws():
    steps = [
        calls(("add", {"a": 1}), ("fail", {"why": "x"})),
        Step("?", finish="tools"),
        calls(("nothing", "")),
        Step("2"),
    ]
    world = Tools(functions=[add, fail])
    await check_environment(world, TASK, steps)
    with pytest.raises(WorldError):
        await world.step(State("a text"), steps[0])


async def test_a_broken_world_is_no_result():
    def broken() -> None:
        raise SandboxError("gone")

    with pytest.raises(WorldError, match="gone"):
        await results(("broken", {}), functions=(broken,))

    def bug() -> None:
        raise SpecError("wrong")

    with pytest.raises(SpecError):
        await results(("bug", {}), functions=(bug,))


async def test_a_spec_names_functions():
    world = Tools.model_validate_json(json.dumps({"functions": [CALCULATOR]}))
    assert Tools.model_validate_json(world.model_dump_json()) == world
    state = await world.step(
        await world.reset(TASK),
        calls(("calculator", {"expression": "12*7"}), ("calculator", {"expression": "sqrt(2)"})),
    )
    assert state.results == ("84", "Error: ValueError: the square root of 2 is not rational")


@asynccontextmanager
async def algebra(**limits):
    pytest.importorskip("sympy")
    try:
        opened = Bubblewrap(packages=True).open()
        sandbox = await opened.__aenter__()
    except SpecError as error:
        pytest.skip(f"no sandbox: {error}")
    try:
        yield Algebra(sandbox=sandbox, **limits)
    finally:
        await opened.__aexit__(None, None, None)


@pytest.mark.skipif(find_spec("sympy") is None, reason="needs SymPy")
async def test_sympy_works_in_a_sandbox():
    async with algebra() as tool:
        world = Tools(functions=[tool.sympy], seconds=60)
        asked = [
            ("solve(x^2 - 2, x)", "[-sqrt(2), sqrt(2)]"),
            ("integrate(exp(-x), (x, 0, oo))", "1"),
            ("__import__('os').listdir('/nowhere')", "Error: FileNotFoundError"),
        ]
        step = calls(*[("sympy", {"expression": text}) for text, _ in asked])
        said = (await world.step(await world.reset(TASK), step)).results
        for result, (_, expected) in zip(said, asked, strict=True):
            assert result.startswith(expected)
