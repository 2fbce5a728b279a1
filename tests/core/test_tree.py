import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchwise import (
    Node,
    SpecError,
    State,
    Step,
    Task,
    Tool,
    Usage,
    Verdict,
    from_json,
    to_json,
    to_networkx,
)

ADD = Tool("add", "Adds.", {"type": "object", "properties": {"x": {"type": "integer"}}})

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | st.text(max_size=5),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=3), values),
    max_leaves=5,
)


@st.composite
def trees(draw):
    root = Node(Task("?", meta={"level": 1}), State(draw(json_values)))
    nodes = [root]
    for _ in range(draw(st.integers(0, 12))):
        parent = draw(st.sampled_from(nodes))
        step = Step(
            draw(st.text(max_size=6)),
            tokens=(1, 2),
            logprob=-0.5,
            usage=Usage(calls=1, completion=2),
        )
        state = State(
            draw(json_values),
            answer=draw(st.none() | st.text(max_size=3)),
            results=draw(st.sampled_from([(), ("7", "no such tool")])),
            tools=draw(st.sampled_from([(), (ADD,), (ADD, Tool("stop", "", {}))])),
        )
        child = Node(root.task, state, parent, parent.promised, step)
        parent.promised += draw(st.integers(1, 3))
        if draw(st.booleans()):
            child.judged(("a", "b"), (Verdict(0.25, "so so"), Verdict(-1.0)))
            child.score = 0.25
        elif draw(st.booleans()):
            child.failed("broken")
        parent.adopt([child])
        nodes.append(child)
    return root


@given(trees())
def test_json_brings_the_same_tree_back(root):
    text = to_json(root)
    twin = from_json(text)
    assert to_json(twin) == text
    for a, b in zip(root.walk(), twin.walk(), strict=True):
        assert a.path == b.path
        assert (a.step, a.state, a.failure, a.promised) == (b.step, b.state, b.failure, b.promised)
        assert dict(a.verdicts) == dict(b.verdicts)
        assert a.score == b.score
    assert twin.usage == root.usage


@given(trees())
def test_a_graph_has_the_tree_s_edges_and_columns(root):
    graph = to_networkx(root, failure=lambda node: node.failure)
    nodes = {node.path: node for node in root.walk()}
    assert set(graph) == set(nodes)
    assert set(graph.edges) == {(path[:-1], path) for path in nodes if path}
    assert all(graph.nodes[path]["failure"] == node.failure for path, node in nodes.items())


def test_a_snapshot_that_is_no_json_is_refused_by_name():
    with pytest.raises(SpecError, match="snapshots have to be JSON"):
        to_json(Node(Task("?"), State(object())))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": "other", "version": 1}'])
def test_what_is_no_tree_is_refused(text):
    with pytest.raises(SpecError, match="not a"):
        from_json(text)


def test_a_newer_version_is_refused():
    table = json.loads(to_json(Node(Task("?"), State())))
    with pytest.raises(SpecError, match="version 1 or older"):
        from_json(json.dumps(table | {"version": 2}))


def test_a_failed_branch_scores_below_everything():
    node = Node(Task("?"), State())
    node.failed("gone")
    assert node.score == -math.inf
    assert node.done
    assert not node.finished


def test_children_keep_the_order_of_their_indices_whenever_they_arrive():
    root = Node(Task("?"), State())
    late, early = (Node(root.task, State(), root, i, Step(str(i))) for i in (3, 1))
    root.adopt([late])
    root.adopt([early])
    assert [child.index for child in root.children] == [1, 3]
