"""Write the table of `docs/algorithms.md` from the cards that the algorithms carry.

    python docs/table.py

A test compares the page with what this writes.
"""

import ast
from pathlib import Path
from typing import get_args

from branchwise.search import AnyController, AnyPick
from branchwise.search.card import Card

DOCS = Path(__file__).parent
PAGE = DOCS / "algorithms.md"
BEGIN, END = "<!-- table: docs/table.py writes it -->\n", "<!-- end of the table -->"
HEAD = ("`kind`", "structure", "signals", "source", "oracle", "test")


def cards() -> list[tuple[str, Card]]:
    """Every controller and every pick by its kind, in the order of the registry."""
    return [
        (part.model_fields["kind"].default, part.card)
        for union in (AnyController, AnyPick)
        for part in get_args(get_args(union)[0])
    ]


def table() -> str:
    """The table in Markdown."""
    rows = [HEAD, ("---",) * len(HEAD)]
    for kind, card in cards():
        file, _, name = card.test.partition("::")
        test = f"[{name.removeprefix('test_').replace('_', ' ')}](../tests/{file})"
        link = f"[`{kind}`](algorithms/{kind}.md)"
        rows.append((link, card.structure, card.signals, card.paper, card.oracle, test))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def tests_in(path: Path) -> set[str]:
    """The names of the tests in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def written(page: str) -> str:
    """The page with the table of today in it."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table()}{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
