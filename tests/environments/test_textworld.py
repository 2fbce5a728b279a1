import pytest

from branchwise.core.errors import SpecError
from branchwise.core.types import Step, Task, ToolCall
from branchwise.environments.adapters.textworld import TextWorld
from branchwise.search.best_first import BestFirst
from branchwise.solve import solve
from branchwise.testing import check_environment

pytestmark = pytest.mark.anyio

textworld = pytest.importorskip("textworld")

TASK = Task("Take the coin.")


@pytest.fixture(scope="module")
def game(tmp_path_factory):
    """Four rooms, of which one is a dead end, and a coin: a coin collector (Yuan et al. 2018)."""
    options = textworld.GameOptions()
    options.seeds = 1
    maker = textworld.GameMaker(options)
    hall, cellar, attic, yard = (maker.new_room(name) for name in "ABCD")
    maker.connect(hall.east, cellar.west)
    maker.connect(cellar.south, attic.north)
    maker.connect(cellar.east, yard.west)
    maker.set_player(hall)
    coin = maker.new("o", name="coin")
    attic.add(coin)
    taken = textworld.generator.game.Event(conditions={maker.new_fact("in", coin, maker.inventory)})
    maker.quests = [textworld.generator.game.Quest(win_events=[taken])]
    return maker.compile(str(tmp_path_factory.mktemp("games") / "coin.z8"))


async def test_a_game_is_a_function_of_its_states(game):
    said = ["go east", "dance", "go south", "take coin"]
    async with TextWorld(game=game, live=2).open() as world:
        await check_environment(world, TASK, [Step(text) for text in said])


async def test_what_a_game_says_and_what_it_is_worth(game):
    async with TextWorld(game=game).open() as world:
        state = first = await world.reset(TASK)
        said = []
        for command in ("go east\n", "go south", "take coin"):
            state = await world.step(state, Step(command))
            said.append((state.reward, state.done, state.answer))
        no_room, no_word = [
            (await world.step(first, Step(text))).observation for text in ("go up", "frobnicate")
        ]
    assert "-= A =-" in first.observation
    assert "$$" not in first.observation  # the banner
    assert not first.observation.endswith("0/1")  # the status line
    assert said == [(0, False, None), (0, False, None), (1, True, "1")]
    assert "can't go" in no_room
    assert "not a verb" in no_word


@pytest.mark.parametrize("text", ["", " \n", "look\ntake coin", "x" * 1000, "\x00", "ça"])
async def test_what_is_no_command_is_told_so(game, text):
    async with TextWorld(game=game).open() as world:
        state = await world.step(await world.reset(TASK), Step(text))
    assert state.observation == "Say one command, of at most 150 plain characters."


@pytest.mark.parametrize("text", ["save", "look. SAVE", "script", "transcripts on", "q", "#record"])
async def test_a_game_writes_no_files(game, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    async with TextWorld(game=game).open() as world:
        state = await world.step(await world.reset(TASK), Step(text))
    assert state.observation.startswith("There is no ")
    assert not [*tmp_path.iterdir()]


async def test_there_are_no_tools(game):
    async with TextWorld(game=game).open() as world:
        call = Step("", finish="tools", tool_calls=(ToolCall("1", "go", "{}"),))
        state = await world.step(await world.reset(TASK), call)
    assert state.observation == "There are no tools here. Answer in words."


class Commands:
    """Proposes each command that the observation lists, once."""

    async def propose(self, node, seeds):
        able = node.state.observation.rpartition("Commands: ")[2].split(", ")
        first = node.promised - len(seeds)
        return [Step(command) for command in able[first : node.promised]]


async def test_a_search_collects_the_coin(game):
    async with TextWorld(game=game, commands=True).open() as world:
        answer = await solve(
            TASK,
            policy=Commands(),
            environment=world,
            controller=BestFirst(fanout=6, expansions=40, enough=1.0),
        )
    played = [step.text for step in answer.node.steps]
    # The coin is three commands away, and best-first takes the older of equals: breadth first.
    assert played == ["go east", "go south", "take coin"]
    assert answer.value == "1"


@pytest.mark.parametrize("name", ["", "no.z8", "game.txt"])
async def test_a_game_that_is_not_there(name):
    async with TextWorld(game=name).open() as world:
        with pytest.raises(SpecError, match="there is no game"):
            await world.reset(TASK)
