"""What holds for the package as a whole."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from pydantic import TypeAdapter
from worlds import Enumerate, Judge, worth

import branchwise
from branchwise import Config, run_sync, solve
from branchwise.runs.spec import AnyModel, AnySearch, parse, read
from branchwise.testing import Word

ROOT = Path(__file__).parent.parent
PACKAGE = Path(branchwise.__file__).parent
ROOMS = {"search", "agents", "verifiers", "environments", "backends"}
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages([str(PACKAGE)], "branchwise.")
    if not module.name.endswith(("math_worker", "__main__"))
)


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_public_names_are_pinned():
    public = {name for name, value in vars(branchwise).items() if not name.startswith("_")}
    modules = {name for name, value in vars(branchwise).items() if inspect.ismodule(value)}
    assert set(branchwise.__all__) == public - (modules - {"solve"})


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_rooms_import_core_and_never_each_other(path):
    room = path.relative_to(PACKAGE).parts[0]
    allowed = {
        "core": {"core"},
        **{name: {"core", name} for name in ROOMS},
        "solve.py": {"core"},
        "allocate.py": {"core", "solve"},
        "testing.py": {"core"},
        "runs": ROOMS | {"core", "runs", "solve"},
        "cli.py": ROOMS | {"core", "runs", "solve"},
        "__init__.py": ROOMS | {"core", "solve", "allocate"},
    }[room]
    used = {name.split(".")[1] for name in imports(path) if name.startswith("branchwise.")}
    assert used <= allowed


def test_importing_it_is_light():
    code = "import sys, branchwise; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    heavy = {
        "torch",
        "transformers",
        "openai",
        "networkx",
        "math_verify",
        "sympy",
        "rich",
        "cyclopts",
        "sacrebleu",
    }
    assert not heavy & set(loaded.stdout.split())


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_are_true(name):
    if name.endswith("_triton"):
        pytest.importorskip("triton")
    module = importlib.import_module(name)
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0


@pytest.mark.parametrize("name", branchwise.__all__)
def test_what_is_public_is_documented(name):
    thing = getattr(branchwise, name)
    text = inspect.getdoc(thing) or ""
    assert text, name
    if inspect.isclass(thing) and issubclass(thing, Config):
        for field in set(thing.model_fields) - {"kind", "pick"}:
            assert re.search(rf"^\s*{field}:", text, re.MULTILINE), f"{name}.{field}"


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_specs_and_python_in_the_pages_are_valid(page):
    text = page.read_text()
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(block, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for block in re.findall(r"```toml\n(.*?)```", text, re.DOTALL):
        table = tomllib.loads(block)
        if "strategies" in table:
            parse(table, page)
        elif "search" in table:
            TypeAdapter(AnySearch).validate_python(table["search"])
        else:
            TypeAdapter(AnyModel).validate_python(table["model"])


def test_the_table_of_algorithms_is_the_code_s():
    path = ROOT / "docs" / "table.py"
    table = importlib.util.module_from_spec(importlib.util.spec_from_file_location("table", path))
    table.__spec__.loader.exec_module(table)
    page = table.PAGE.read_text()
    assert table.written(page) == page, "run docs/table.py"
    for kind, card in table.cards():
        assert (ROOT / "docs" / "algorithms" / f"{kind}.md").exists()
        file, _, name = card.test.partition("::")
        assert name in table.tests_in(ROOT / "tests" / file), card.test


def test_the_controller_in_the_docs_works():
    page = (ROOT / "docs" / "algorithms.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {}
    exec(block, names)
    controller = names["Greedy"](fanout=3)

    async def search():
        parts = {"policy": Enumerate(), "environment": Word(4), "verifier": Judge()}
        return (await solve("?", controller=controller, **parts)).text

    word = ""
    while len(word) < 4:
        word = max((word + letter for letter in "abc"), key=worth)
    assert run_sync(search) == word


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.toml")), ids=lambda p: p.name)
def test_example_specs_are_valid(path):
    spec = parse(read(path), path)
    assert spec.data.path.startswith("hf:") or spec.data.tasks()
