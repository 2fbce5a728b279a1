from hypothesis import given
from hypothesis import strategies as st

from branchwise.core.node import Node
from branchwise.core.types import State, Step, Task
from branchwise.verifiers.steps import parts, split

TEXTS = st.text(alphabet="ab \n", max_size=30)


@given(TEXTS, st.sampled_from(["", "\n", "\n\n", " "]))
def test_the_steps_of_a_text_are_all_of_it_and_none_is_blank(text, separator):
    steps = split(text, separator)
    assert "".join(steps) == text
    assert all(step.strip() for step in steps) or len(steps) <= 1


def test_a_gap_belongs_to_the_step_before_it():
    assert split("\n\na\n\n\n\nb\n\n", "\n\n") == ("\n\na\n\n\n\n", "b\n\n")
    assert split("one\ntwo", "") == ("one\ntwo",)
    assert split("", "\n") == ()


def test_a_node_has_its_own_steps_and_those_above_it():
    node = Node(Task("?"), State())
    assert parts(node, "\n") == ((), ())
    for text in ("a\n", "b\nc\n"):
        node = Node(node.task, State(), node, 0, Step(text))
    assert parts(node, "\n") == (("a\n",), ("b\n", "c\n"))
