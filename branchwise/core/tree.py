"""A whole tree as a graph or as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from pydantic import TypeAdapter, ValidationError

from branchwise.core.errors import SpecError
from branchwise.core.node import Node
from branchwise.core.types import FREE, Json, State, Step, Task, Tool, Usage, Verdict

if TYPE_CHECKING:
    import networkx as nx

FORMAT = "branchwise-tree"
VERSION = 1

_task = TypeAdapter(Task)
_step = TypeAdapter(Step)
_state = TypeAdapter(State)
_tool = TypeAdapter(Tool)
_verdict = TypeAdapter(Verdict)
_usage = TypeAdapter(Usage)


def to_networkx(root: Node, **columns: Callable[[Node], object]) -> nx.DiGraph[tuple[int, ...]]:
    """The tree as a directed graph: nodes are paths, each with `score`, `text` and `done`.

    Args:
        root: the tree.
        columns: further attributes: a name, and what to put there for a node.

    Example:
        >>> graph = to_networkx(Node(Task("?"), State()), answer=lambda node: node.state.answer)
        >>> dict(graph.nodes)
        {(): {'score': 0.0, 'text': '', 'done': False, 'answer': None}}
    """
    import networkx as nx  # noqa: PLC0415  (it takes longer to import than the rest together)

    graph: nx.DiGraph[tuple[int, ...]] = nx.DiGraph()
    for node in root.walk():
        own: dict[str, object] = {
            "score": node.score,
            "text": "" if node.step is None else node.step.text,
            "done": node.done,
        }
        own |= {name: column(node) for name, column in columns.items()}
        graph.add_node(node.path, **own)
        if node is not root and node.parent is not None:
            graph.add_edge(node.parent.path, node.path)
    return graph


def to_json(root: Node) -> str:
    """The tree as JSON text: the same tree gives the same bytes.

    Raises:
        SpecError: a snapshot is not a JSON value.

    Example:
        >>> from_json(to_json(Node(Task("?"), State()))).task.prompt
        '?'
    """
    start = len(root.path)
    try:
        table = {
            "format": FORMAT,
            "version": VERSION,
            "task": _task.dump_python(root.task, mode="json"),
            "nodes": [_dump(node, node.path[start:]) for node in root.walk()],
        }
        return json.dumps(table, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SpecError(
            f"the tree cannot be saved: {error}", hint="snapshots have to be JSON values"
        ) from error


def from_json(text: str) -> Node:
    """The tree that `to_json` wrote.

    Raises:
        SpecError: the text is no such tree, or one of a newer version.
    """
    try:
        table = json.loads(text)
        if table["format"] != FORMAT or table["version"] > VERSION:
            raise SpecError(f"not a tree of version {VERSION} or older")
        task = _task.validate_python(table["task"])
        nodes: dict[tuple[int, ...], Node] = {}
        for row in table["nodes"]:
            _load(row, task, nodes)
        return nodes[()]
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise SpecError(f"not a saved tree: {type(error).__name__}: {error}") from error


def _dump(node: Node, path: tuple[int, ...]) -> dict[str, Json]:
    state = node.state
    # The snapshot has to be JSON already, and must come back the same. Its keys are sorted, so that
    # equal trees have equal bytes; the order of the verdicts says who is in charge.
    return {
        "path": list(path),
        "step": None if node.step is None else _step.dump_python(node.step, mode="json"),
        "state": {
            "snapshot": _sorted(state.snapshot),
            "observation": state.observation,
            "reward": state.reward,
            "done": state.done,
            "cut": state.cut,
            "answer": state.answer,
            **({"results": list(state.results)} if state.results else {}),
            **_tools(node),
        },
        "score": node.score if math.isfinite(node.score) else None,
        "failure": node.failure,
        **({} if node.lost is FREE else {"lost": _usage.dump_python(node.lost, mode="json")}),
        "promised": node.promised,
        "verdicts": {
            name: _verdict.dump_python(verdict, mode="json")
            for name, verdict in node.verdicts.items()
        },
    }


def _tools(node: Node) -> dict[str, Json]:
    """The tools where they are others than the parent's: most worlds have the same everywhere."""
    before = () if node.parent is None else node.parent.state.tools
    if node.state.tools == before:
        return {}
    return {"tools": [_tool.dump_python(tool, mode="json") for tool in node.state.tools]}


def _sorted(snapshot: object) -> Json:
    if isinstance(snapshot, (dict, list)):
        return json.loads(json.dumps(snapshot, allow_nan=False, sort_keys=True))
    return cast("Json", snapshot)


def _load(row: dict[str, object], task: Task, nodes: dict[tuple[int, ...], Node]) -> None:
    path = tuple(cast("list[int]", row["path"]))
    parent = nodes[path[:-1]] if path else None
    step = None if row["step"] is None else _step.validate_python(row["step"])
    inherited = {} if parent is None else {"tools": parent.state.tools}
    state = _state.validate_python({**inherited, **cast("dict[str, object]", row["state"])})
    node = Node(task, state, parent, path[-1] if path else 0, step)
    node.score = -math.inf if row["score"] is None else cast("float", row["score"])
    node.failure = cast("str | None", row["failure"])
    node.lost = _usage.validate_python(row["lost"]) if "lost" in row else FREE
    node.promised = cast("int", row["promised"])
    verdicts = cast("dict[str, object]", row["verdicts"])
    node.judged(tuple(verdicts), tuple(_verdict.validate_python(v) for v in verdicts.values()))
    nodes[path] = node
    if parent is not None:
        parent.adopt([node])
