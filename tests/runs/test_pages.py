"""Every spec in the pages is carried out as it is written, with a model that is a script."""

import ast
import builtins
import inspect
import json
import re
import shutil
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import anyio
import pytest
from parrot import Judge, Parrot
from pydantic import TypeAdapter

import branchwise
from branchwise.runs.runner import Run
from branchwise.runs.spec import Strategy, controllers, parse
from branchwise.runs.store import Store
from branchwise.search import AnyPick, AnyRule

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(language):
    """All blocks of a language in the pages, each with where it stands."""
    for page in PAGES:
        found = re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)
        yield from ((block, f"{page.stem}-{i}") for i, block in enumerate(found))


BLOCKS = [pytest.param(tomllib.loads(block), id=where) for block, where in blocks("toml")]
PYTHON = [
    pytest.param(block, id=where) for block, where in blocks("python") if "self." not in block
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    theirs = ModuleType("your_pkg.module")
    theirs.__getattr__ = lambda name: Judge
    monkeypatch.setitem(sys.modules, "your_pkg", ModuleType("your_pkg"))
    monkeypatch.setitem(sys.modules, "your_pkg.module", theirs)
    return tmp_path


SANDBOXED = {"python-tests", "workspace"}

# What a model has to be asked and to say in worlds that do not take any text for an answer.
SAID = {
    "python-tests": ("Double x.", "```python\ndef double(x):\n    return 2 * x\n```"),
    "workspace": ("Mend it.", '<tool_call>{"name": "submit", "arguments": {}}</tool_call>'),
    "game24": ("4 9 10 13", "Answer: (10 - 4) * (13 - 9)"),
}


def whole(table, folder):
    """A spec of what a page shows of one: a part, a strategy, or all but the problems."""
    if "strategies" not in table:
        own = {name: table[name] for name in table if name in Strategy.model_fields}
        strategy = {"search": {"kind": "rollout"}, **own, "name": "one"}
        rest = {name: table[name] for name in table if name not in own}
        table = {**rest, "strategies": [strategy]}
    table = scripted(table)
    prompt, says = SAID.get(table.get("environment", {}).get("kind"), ("What is 1 + 2?", ""))
    row = {"question": prompt, "answer": "3"}
    (folder / "problems.jsonl").write_text(json.dumps(row))
    return {
        **table,
        "model": {"kind": "parrot:Parrot", "says": says},
        "data": {"path": "problems.jsonl"},
    }


def scripted(value):
    """The same, with a script in the place of each model that a part has of its own."""
    if isinstance(value, list):
        return [scripted(one) for one in value]
    if not isinstance(value, dict):
        return value
    if value.get("kind") in {"hf", "openai"}:
        return {"kind": "parrot:Parrot"}
    return {name: scripted(one) for name, one in value.items()}


def carried_out(table, folder):
    """All results of a spec."""
    job = Run(parse(table, folder / "spec.toml"), Store(folder / "run", table))
    anyio.run(job.carry_out)
    assert job.failed == []
    return list(job.store.results.values())


@pytest.mark.parametrize("table", BLOCKS)
def test_what_the_pages_say_works(folder, table):
    spec = whole(table, folder)
    if "search" not in table and "strategies" not in table:
        shown = {name: table[name] for name in ("model", "data") if name in table}
        parse({**spec, **shown}, folder / "spec.toml")
        return
    if spec.get("environment", {}).get("kind") in SANDBOXED and not shutil.which("bwrap"):
        pytest.skip("bwrap is not installed")
    for result in carried_out(spec, folder):
        assert result.stopped == "finished"
        assert result.answer is not None


class Reader(dict):
    """The names that a reader of the pages has; whatever else is named is a verifier of theirs."""

    def __missing__(self, name):
        if hasattr(builtins, name):
            raise KeyError(name)
        return Judge()


@pytest.mark.anyio
@pytest.mark.parametrize("block", PYTHON)
async def test_python_in_the_pages_works(folder, block):
    async with Parrot().open() as model:
        chat = branchwise.Chat(backend=model, stop=("\n",))
        world = branchwise.Math()
        names = {name: getattr(branchwise, name) for name in branchwise.__all__}
        names |= {"HF": lambda **_: Parrot(), "task": "What is 1 + 2?", "tasks": ["1 + 2?", "3?"]}
        names |= {"model": model, "small": model, "large": model, "world": world}
        names |= {"policy": chat, "agent": chat, "chat": chat}
        names |= {"parts": {"policy": chat, "environment": world, "verifier": Judge()}}
        code = compile(block, "page", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        said = Reader(names)
        ran = eval(code, names, said)
        if inspect.iscoroutine(ran):
            await ran
        answer = said.get("answer")
        assert answer is None or (answer.stopped, answer.error) == ("finished", None)
        assert answer is None or answer.value is not None


def kinds(value):
    """Every `kind` of a table, at all depths."""
    if isinstance(value, dict):
        yield from [value["kind"]] if "kind" in value else []
        value = list(value.values())
    if isinstance(value, list):
        for entry in value:
            yield from kinds(entry)


WITH_KINDS = {"adapters", "games", "python", "tools", "workspace", "history", "router"}


def test_the_pages_of_worlds_and_agents_show_a_spec():
    pages = [page for page in PAGES if page.parent.name in {"environments", "agents"}]
    shown = {page.stem for page in pages if "```toml\n" in page.read_text()}
    assert shown >= WITH_KINDS


def test_the_pages_show_every_kind():
    shown = {kind for block in BLOCKS for kind in kinds(block.values[0])}
    rules = TypeAdapter(AnyRule).json_schema()["discriminator"]["mapping"]
    picks = TypeAdapter(AnyPick).json_schema()["discriminator"]["mapping"]
    assert {*controllers(), *picks} <= shown
    assert shown & rules.keys()
