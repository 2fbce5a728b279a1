import pytest

from branchwise.core.errors import WorldError
from branchwise.core.types import State, Step, Task, ToolCall
from branchwise.environments.math import Math
from branchwise.environments.writing import Writing
from branchwise.testing import check_environment

pytestmark = pytest.mark.anyio
TASK = Task("How many?")


async def after(world, *steps):
    state = await world.reset(TASK)
    for step in steps:
        state = await world.step(state, step)
    return state


LINE = Step("One.\n", finish="stop")


async def test_a_line_goes_on_and_the_models_end_ends_it():
    assert await after(Writing(), LINE) == State("One.\n")
    end = await after(Writing(), LINE, Step("Two. ", finish="end"))
    assert end == State("One.\nTwo. ", done=True, answer="One.\nTwo.")


@pytest.mark.parametrize(
    "last", [Step("", finish="stop"), Step("Two.", finish="stop"), Step("", finish="end")]
)
async def test_an_empty_step_or_another_stop_string_ends_it(last):
    assert (await after(Writing(), LINE, last)).done


async def test_nothing_said_is_no_answer():
    assert (await after(Writing(), Step(" \n", finish="end"))).answer is None


@pytest.mark.parametrize("finish", ["length", "filter"])
@pytest.mark.parametrize("text", ["The answer is 1", "", "The answer is 1\n"])
async def test_half_an_answer_is_cut_and_never_final(finish, text):
    for world in (Writing(), Math(stop_at_answer=True)):
        state = await after(world, LINE, Step(text, finish=finish))
        assert (state.cut, state.done, state.answer) == (True, False, None)


async def test_a_step_cut_by_length_can_be_continued():
    world = Writing(continue_at_length=True)
    state = await after(world, Step("The answer is 1", finish="length"), Step("8.", finish="end"))
    assert state.answer == "The answer is 18."


async def test_a_tool_call_is_told_that_there_are_none():
    call = Step("", finish="tools", tool_calls=(ToolCall("1", "python", "{}"),))
    state = await after(Writing(), LINE, call)
    assert (state.done, state.snapshot) == (False, "One.\n")
    assert "no tools" in state.observation
    assert not (await Writing().step(state, LINE)).observation


async def test_another_delimiter():
    world = Writing(delimiter="\n\n")
    assert not (await after(world, Step("a\nb\n\n", finish="stop"))).done
    assert (await after(world, Step("a\nb\n", finish="stop"))).done


async def test_a_foreign_state_is_refused():
    with pytest.raises(WorldError, match="text"):
        await Writing().step(State(snapshot=3), LINE)


@pytest.mark.parametrize("world", [Writing(), Math(), Math(stop_at_answer=True)])
async def test_worlds_of_text_keep_the_laws(world):
    await check_environment(
        world, TASK, [LINE, Step("2\n", finish="stop"), Step("3", finish="end")]
    )


@pytest.mark.parametrize(
    ("extract", "answer"),
    [(("boxed", "last_number"), "3"), (("says",), "18"), (("boxed",), None)],
)
async def test_the_answer_is_looked_for_as_configured(extract, answer):
    text = Step("The answer is $18.00.\nThat was line 3.", finish="end")
    assert (await after(Math(extract=extract), text)).answer == answer


async def test_it_can_stop_at_the_answer():
    said = Step("The answer is 18.\n", finish="stop")
    assert not (await after(Math(), LINE, said)).done
    state = await after(Math(stop_at_answer=True), LINE, said)
    assert (state.done, state.answer) == (True, "18")


@pytest.mark.parametrize("text", ["He has 18.\n", "The answer is 1", "Answer:\n"])
async def test_neither_a_number_nor_an_unfinished_line_stops_it(text):
    world = Math(stop_at_answer=True, continue_at_length=True)
    finish = "stop" if "\n" in text else "length"
    assert not (await after(world, Step(text, finish=finish))).done


def test_they_are_plain_configuration():
    world = Math(extract=("says",), delimiter=".")
    assert Math.model_validate_json(world.model_dump_json()) == world
    assert Math.instant
    assert "instant" not in world.model_dump()
