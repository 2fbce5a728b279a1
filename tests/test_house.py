"""What holds for the package as a whole."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from worlds import Enumerate, Judge, worth

import branchwise
from branchwise import Config, run_sync, search, solve
from branchwise.runs import spec
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
        **{name: {"core", "sandbox", name} for name in ("environments", "verifiers")},
        "sandbox": {"core", "sandbox"},
        "solve.py": {"core"},
        "allocate.py": {"core", "solve"},
        "testing.py": {"core"},
        "learning": {"core", "verifiers", "backends", "learning"},
        "runs": ROOMS | {"core", "sandbox", "runs", "learning", "solve"},
        "cli.py": ROOMS | {"core", "sandbox", "runs", "learning", "solve"},
        "__init__.py": ROOMS | {"core", "sandbox", "solve", "allocate"},
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


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


PYTHON = [
    pytest.param(block, id=f"{page.stem}-{i}")
    for page in PAGES
    for i, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("block", PYTHON)
def test_python_in_the_pages_compiles_and_its_arguments_exist(block):
    code = ast.parse(block)
    compile(block, "page", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for call in ast.walk(code):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
            called = getattr(branchwise, call.func.id, None)
            given = {keyword.arg for keyword in call.keywords} - {None}
            if inspect.isclass(called) and issubclass(called, Config):
                assert given <= set(called.model_fields)
            elif called is not None:
                assert given <= set(inspect.signature(called).parameters)


def anchors(page):
    """The places in a page that a link may name."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_in_the_pages_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = link.partition("#")
        if "://" in link:
            continue
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), link
        assert not anchor or anchor in anchors(there), link


def test_the_table_of_parts_names_every_kind():
    text = (ROOT / "docs" / "specs.md").read_text()
    rows = dict(re.findall(r"^\| (`\w+`[^|]*) \| (.*) \|$", text, re.MULTILINE))
    for part, kinds in (
        ("`model`", spec.AnyModel),
        ("`policy`, `policies.NAME`", spec.AnyPolicy),
        ("`environment`", spec.AnyWorld),
        ("`sandbox`", spec.AnySandbox),
        ("`verifier`", spec.AnyVerifier),
        ("`rank`", spec.AnyRank),
        ("`grader`", spec.AnyGrader),
    ):
        union = get_args(get_args(kinds)[0])
        known = {one.model_fields["kind"].default for one in union}
        assert known <= set(re.findall(r"`([\w-]+)`", rows[part])), part


def test_every_page_of_an_algorithm_is_reached():
    text = "".join((ROOT / "docs" / name).read_text() for name in ("algorithms.md", "specs.md"))
    for page in ALGORITHMS:
        assert f"algorithms/{page.name}" in text, page.name


WORLDS = sorted(
    page for room in ("environments", "agents") for page in (ROOT / "docs" / room).iterdir()
)


@pytest.mark.parametrize("page", WORLDS, ids=lambda page: page.name)
def test_every_page_of_a_world_or_an_agent_is_reached(page):
    index = (ROOT / "docs" / "environments.md").read_text()
    assert f"({page.relative_to(ROOT / 'docs')})" in index


ALGORITHMS = sorted((ROOT / "docs" / "algorithms").glob("*.md"))


@pytest.mark.parametrize("page", ALGORITHMS, ids=lambda page: page.name)
def test_pages_of_algorithms_have_the_same_parts(page):
    text = page.read_text()
    for part in ("\n```\n", "\n```python\n", "**Cost**", "\nSource: ", "Tested"):
        assert part in text, part


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


def test_the_readme_counts_the_catalogue():
    said = re.search(r"(\d+) searches, (\d+) picks and (\d+) stopping rules", PAGES[0].read_text())
    unions = (search.AnyController, search.AnyPick, search.AnyRule)
    assert list(map(int, said.groups())) == [len(get_args(get_args(one)[0])) for one in unions]


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
    run = spec.parse(spec.read(path), path)
    assert run.data.path.startswith("hf:") or run.data.tasks()
