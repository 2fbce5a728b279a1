"""States that the tree has reached before."""

import pytest
from worlds import Enumerate

from branchwise import Beam, BestFirst, Environment, Node, State, Step, Task, solve
from branchwise.core.around import distinct, merged
from branchwise.core.grow import Grow
from branchwise.testing import Word

pytestmark = pytest.mark.anyio


class Sums(Environment):
    """A world of numbers: each step adds its own, and 6 or more is the end."""

    async def reset(self, task):
        return State(0)

    async def step(self, state, action):
        total = state.snapshot + int(action.text)
        return State(total, reward=-total, done=total >= 6, answer=str(total))


@pytest.mark.parametrize(
    "controller", [Beam(width=99, fanout=3), BestFirst(fanout=3, expansions=99)]
)
async def test_no_state_is_grown_twice(controller):
    async def grown(unique):
        answer = await solve(
            "?",
            policy=Enumerate("123"),
            controller=controller,
            environment=Sums(),
            unique=unique,
        )
        return [node.state.snapshot for node in answer.root.walk() if node.children]

    assert sorted(await grown("states")) == [0, 1, 2, 3, 4, 5]
    # Without it, one for each way to write a number below 6 as a sum of 1, 2 and 3.
    assert len(await grown(None)) == 1 + 1 + 2 + 4 + 7 + 13


async def test_a_state_is_known_by_what_one_says():
    verb = merged(
        Grow({"policy": Enumerate("123")}, Sums(), {}), key=lambda v: v.state.snapshot % 2
    )

    root = Node(Task("?"), State(0))
    assert [child.state.snapshot for child in await verb([root], 3)] == [1]


async def test_siblings_without_text_are_known_by_their_tokens():
    """An end and a part of a character say nothing, and are not copies of one another."""

    class Tokens:
        async def propose(self, node, seeds):
            said = [("a", 1), ("", 2), ("", 3), ("a", 1), ("", 2), ("a", 4)]
            return [Step(text, (token,)) for text, token in said]

    answer = Node(Task("?"), State(""))
    verb = distinct(Grow({"policy": Tokens()}, Word(9), {}))
    assert [child.step.tokens for child in await verb([answer], 6)] == [(1,), (2,), (3,)]
