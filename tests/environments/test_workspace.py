import json
import re
import shutil
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from pydantic import TypeAdapter

from branchwise import BestFirst, Rollout, solve
from branchwise.core.errors import SandboxError, SpecError, WorldError
from branchwise.core.types import State, Step, Task, ToolCall
from branchwise.environments.workspace import TOOLS, Workspace, diff
from branchwise.sandbox.bubblewrap import Bubblewrap
from branchwise.sandbox.ran import Limits, Ran
from branchwise.sandbox.unconfined import Unconfined
from branchwise.testing import check_environment

pytestmark = pytest.mark.anyio
SUM = "def add(a, b):\n    return a - b\n"
FILES = {"sum.py": SUM, "doc/read.me": "Adds.\nOnly two.\n", "empty": ""}
TESTS = {"check.py": "from sum import add\nassert add(1, 2) == 3\nprint('fine')\n"}
TASK = Task("Mend it.", meta={"files": FILES, "test": "python3 check.py", "test_files": TESTS})


@asynccontextmanager
async def workspace(**more):
    async with Unconfined().open() as sandbox:
        yield Workspace(sandbox=sandbox, **more)


def calls(*named):
    each = [ToolCall(str(i), name, json.dumps(given)) for i, (name, given) in enumerate(named)]
    return Step("", finish="tools", tool_calls=tuple(each))


def call(tool, **given):
    return calls((tool, given))


async def result(world, state, tool, **given):
    state = await world.step(state, call(tool, **given))
    assert len(state.results) == 1
    return state.results[0]


MEND = call("edit_file", path="sum.py", old="a - b", new="a + b")


async def test_it_keeps_the_laws():
    actions = [
        call("list_files"),
        MEND,
        call("run", command="cat sum.py > copy; printf '\\377' > bytes; rm empty"),
        call("write_file", path="./new/one.txt", content="1"),
        calls(("test", {}), ("submit", {})),
    ]
    try:  # without walls, each run has a folder of another name, which tracebacks show
        async with Bubblewrap().open() as sandbox:
            await check_environment(Workspace(sandbox=sandbox), TASK, actions)
    except SpecError as error:
        pytest.skip(f"no sandbox: {error}")


async def test_the_tools_do_what_they_say():
    async with workspace() as world:
        root = await world.reset(TASK)
        assert await result(world, root, "list_files") == (
            "doc/read.me (16 bytes)\nempty (0 bytes)\nsum.py (32 bytes)"
        )
        assert await result(world, root, "list_files", folder="doc/") == "doc/read.me (16 bytes)"
        assert await result(world, root, "read_file", path="./doc/read.me", first=2) == (
            "     2\tOnly two."
        )
        assert await result(world, root, "read_file", path="empty") == "The file is empty."
        assert await result(world, root, "search", text="a, b") == "sum.py:1: def add(a, b):"
        assert await result(world, root, "search", text="a.*b") == "It is nowhere."
        ran = await world.step(root, call("run", command="echo out; echo err >&2; exit 3"))
        assert ran.results == ("out\nerr\nExit status 3.",)
        mended = await world.step(root, MEND)
        assert await result(world, root, "test") != await result(world, mended, "test")
        assert await result(world, mended, "test") == "fine\nIt passed."
        assert (await result(world, root, "test")).endswith("It failed.")


@pytest.mark.parametrize(
    ("tool", "given", "word"),
    [
        ("read_file", {"path": "nowhere"}, "no file"),
        ("read_file", {"path": "../secret"}, "inside"),
        ("read_file", {"path": "/etc/passwd"}, "inside"),
        ("read_file", {"path": "doc"}, "no file"),
        ("read_file", {"path": "sum.py", "first": 3}, "lines 1 to 2"),
        ("read_file", {"path": "sum.py", "first": 2, "last": 1}, "lines 1 to 2"),
        ("read_file", {"path": "sum.py", "first": "1"}, "type 'integer'"),
        ("read_file", {"path": "sum.py", "first": True}, "type 'integer'"),
        ("read_file", {}, "'path' is a required property"),
        ("read_file", {"path": "sum.py", "lines": 3}, "('lines' was unexpected)"),
        ("write_file", {"path": "a/../../b", "content": ""}, "inside"),
        ("write_file", {"path": "", "content": ""}, "no path"),
        ("write_file", {"path": "a//b", "content": ""}, "no path"),
        ("write_file", {"path": "a\0b", "content": ""}, "no path"),
        ("write_file", {"path": "a" * 300, "content": ""}, "no path"),
        ("write_file", {"path": "sum.py/b", "content": ""}, "is a file"),
        ("write_file", {"path": "doc", "content": ""}, "is a file"),
        ("write_file", {"path": "big", "content": "a" * 100_000}, "more than"),
        ("edit_file", {"path": "sum.py", "old": "a", "new": ""}, "it is there 3 times"),
        ("edit_file", {"path": "sum.py", "old": "x", "new": ""}, "it is there 0 times"),
        ("edit_file", {"path": "sum.py", "old": "", "new": "x"}, "it is there 0 times"),
        ("list_files", {"folder": "nowhere"}, "no files"),
        ("fly", {}, "no tool 'fly'"),
    ],
)
async def test_a_wrong_call_is_answered_and_changes_nothing(tool, given, word):
    async with workspace(limits=Limits(disk=1 << 16)) as world:
        root = await world.reset(TASK)
        state = await world.step(root, call(tool, **given))
    assert word in state.results[0]
    assert state.snapshot == root.snapshot


@pytest.mark.parametrize("arguments", ["", "{", "[]", "3", "[" * 100_000])
async def test_arguments_that_are_no_object(arguments):
    async with workspace() as world:
        root = await world.reset(TASK)
        state = await world.step(
            root, Step("", tool_calls=(ToolCall("1", "read_file", arguments),))
        )
    assert "arguments" in state.results[0] or "is a required" in state.results[0]


async def test_the_answer_is_a_diff_that_git_applies(tmp_path):
    odd = "no end of line"
    changes = "printf 'x\\ny' > doc/new; rm empty; printf more >> odd"
    task = Task("?", meta={"files": {**FILES, "odd": odd, "a\x0cb": "form\x0cfeed\n"}})
    async with workspace() as world:
        state = await world.reset(task)
        for action in (MEND, call("run", command=changes), call("submit")):
            state = await world.step(state, action)
    assert (state.done, state.reward) == (True, 0.0)
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    for path, text in task.meta["files"].items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    await anyio.run_process(["git", "apply", "-"], input=state.answer.encode(), cwd=tmp_path)
    after = {p.relative_to(tmp_path).as_posix(): p for p in tmp_path.rglob("*") if p.is_file()}
    assert {path: file.read_text() for path, file in after.items()} == {
        "sum.py": SUM.replace("-", "+"),
        "doc/read.me": FILES["doc/read.me"],
        "doc/new": "x\ny",
        "odd": f"{odd}more",
        "a\x0cb": "form\x0cfeed\n",
    }


async def test_the_reward_is_what_the_tests_say():
    async with workspace() as world:
        root = await world.reset(TASK)
        assert (await world.step(root, call("submit"))).reward == 0
        cheat = call("write_file", path="check.py", content="")
        cheated = await world.step(root, cheat)
        assert (await world.step(cheated, call("submit"))).reward == 0
        there = await world.step(root, call("write_file", path="check.py/x", content=""))
        assert (await world.step(there, call("submit"))).reward == 0
        mended = await world.step(root, MEND)
        end = await world.step(mended, calls(("submit", {}), ("test", {})))
        assert (end.done, end.reward) == (True, 1)
        assert "already" in end.results[1]
        assert "check.py" not in end.answer


async def test_a_task_without_a_test_has_no_such_tool():
    async with workspace() as world:
        root = await world.reset(Task("?", meta={"files": FILES}))
        assert {tool.name for tool in TOOLS} - {tool.name for tool in root.tools} == {"test"}
        assert "no tool 'test'" in await result(world, root, "test")


async def test_what_a_command_that_was_stopped_did_is_undone():
    async with workspace(limits=Limits(seconds=0.3)) as world:
        root = await world.reset(TASK)
        state = await world.step(root, call("run", command="rm sum.py; sleep 60"))
    assert state.snapshot == root.snapshot
    assert "too long" in state.results[0]


async def test_states_share_what_they_do_not_change():
    async with workspace() as world:
        root = await world.reset(TASK)
        one = await world.step(root, call("write_file", path="a", content="long" * 100))
        two = await world.step(one, call("write_file", path="b", content="2"))
        assert two.snapshot["changed"]["a"] is one.snapshot["changed"]["a"]
        back = await world.step(two, call("run", command="rm a b"))
        assert back.snapshot == root.snapshot


async def test_a_saved_state_goes_on_where_its_task_is_known(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_text("here")
    (tmp_path / "link").symlink_to("/etc/passwd")
    async with workspace(folder=str(tmp_path)) as world:
        root = await world.reset(TASK)
        listed = await result(world, root, "list_files")
        assert ("sub/a" in listed, "link" in listed) == (True, False)
        state = await world.step(root, call("run", command="printf '\\377' > b"))
    saved = TypeAdapter(State).dump_json(state)
    async with workspace(folder=str(tmp_path)) as elsewhere:
        state = TypeAdapter(State).validate_json(saved)
        with pytest.raises(WorldError, match="not known"):
            await elsewhere.step(state, MEND)
        await elsewhere.reset(TASK)
        assert await result(elsewhere, state, "run", command="wc -c < b") == "1"


@pytest.mark.parametrize(
    "meta", [{"files": {"../a": ""}}, {"files": {"a": 3}}, {"files": "a"}, {"test": 3}]
)
async def test_a_task_that_cannot_be(meta):
    async with workspace() as world:
        with pytest.raises(SpecError):
            await world.reset(Task("?", meta=meta))
    with pytest.raises(SpecError, match="no folder"):
        await Workspace(sandbox=None, folder="/nowhere/at/all").reset(TASK)


async def test_what_is_no_call_and_no_state():
    async with workspace() as world:
        root = await world.reset(TASK)
        idle = await world.step(root, Step("I think so."))
        assert (idle.done, idle.snapshot) == (False, root.snapshot)
        assert "submit" in idle.observation
        assert (await world.step(root, Step("", finish="length"))).cut
        with pytest.raises(WorldError, match="no snapshot"):
            await world.step(State("x"), MEND)
        wrong = {"start": root.snapshot["start"], "changed": {"a": 3}}
        with pytest.raises(WorldError, match="no content"):
            await world.step(State(wrong), MEND)


@pytest.mark.parametrize("error", [SandboxError("broken"), SpecError("broken")])
async def test_a_sandbox_that_breaks_fails_the_branch(error):
    class Broken:
        async def run(self, files, argv, limits, **more):
            raise error

    world = Workspace(sandbox=Broken())
    with pytest.raises(WorldError, match="broken"):
        await world.step(await world.reset(TASK), call("run", command="ls"))


async def test_files_that_a_command_may_not_leave_are_not_taken():
    class Odd:
        async def run(self, files, argv, limits, **more):
            return Ran("exited", files={"a": b"", "a/b": b""})

    world = Workspace(sandbox=Odd())
    root = await world.reset(TASK)
    state = await world.step(root, call("run", command="ls"))
    assert "as they were before" in state.results[0]
    assert state.snapshot == root.snapshot


def test_contents_that_are_no_text_are_named_in_a_diff():
    assert "Binary files a/a and b/a differ" in diff({"a": b"\xff"}, {"a": b"\xfe"})


class Mender:
    """Tries one replacement after the other, each in a branch of its own."""

    async def propose(self, node, seeds):
        if node.depth == 0:
            news = ["a * b", "a + b", "b"]
            begun = node.promised - len(seeds)
            edits = [("edit_file", {"path": "sum.py", "old": "a - b", "new": new}) for new in news]
            return [calls(edit) for edit in edits[begun : node.promised]]
        return [calls(("submit", {})) for _ in seeds]


@pytest.mark.parametrize(("controller", "reward"), [(Rollout(), 0), (BestFirst(fanout=3), 1)])
async def test_the_same_agent_searches(controller, reward):
    async with workspace() as world:
        answer = await solve(TASK, policy=Mender(), controller=controller, environment=world)
    assert max(node.state.reward for node in answer.root.walk()) == reward


async def test_the_page_works():
    page = Path(__file__).parents[2] / "docs" / "environments" / "workspace.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    names = {}
    exec(block, names)
    try:
        await names["main"]()
    except SpecError as error:
        pytest.skip(f"no sandbox: {error}")


async def test_texts_that_no_system_takes_are_wrong_calls():
    async with workspace() as world:
        state = await world.reset(TASK)
        assert "no path of a file" in await result(
            world, state, "write_file", path="a\0b", content=""
        )
        assert "no shell can read" in await result(world, state, "run", command="echo \0")
        odd = await result(world, state, "run", command="touch \"$(printf '\\376')\"")
        assert "as they were before" in odd
        spoilt = ToolCall("0", "write_file", '{"path": "\\ud800", "content": "\\ud800"}')
        after = await world.step(state, Step("", finish="tools", tool_calls=(spoilt,)))
        assert after.snapshot == state.snapshot
