import math
from decimal import Decimal
from fractions import Fraction

import anyio
import pytest

from branchwise.core.errors import BackendError, Exhausted, VerifierError
from branchwise.core.node import Node
from branchwise.core.types import State, Task, Verdict
from branchwise.verifiers.function import Function

pytestmark = pytest.mark.anyio


class Scalar:
    """What numpy and torch call a number."""

    def __float__(self):
        return 0.25


def nodes(*answers):
    return [Node(Task("?"), State(answer=answer)) for answer in answers]


@pytest.mark.parametrize(
    ("said", "score"),
    [
        *((True, 1.0), (False, 0.0), (3, 3.0), (0.5, 0.5), (Decimal("0.1"), 0.1)),
        *((Fraction(1, 4), 0.25), (Scalar(), 0.25), (Verdict(Decimal(2), detail="x"), 2.0)),
    ],
)
async def test_numbers_of_all_kinds_become_floats(said, score):
    [verdict] = await Function(lambda _: said).score(nodes("a"))
    assert (verdict.score, type(verdict.score)) == (score, float)


@pytest.mark.parametrize(
    "said", [math.nan, math.inf, None, "0.5", [1.0], 10**400, Verdict(math.nan), Verdict(None), 1j]
)
async def test_no_number_is_an_error_in_its_place_alone(said):
    def judge(node):
        return said if node.state.answer == "bad" else 1.0

    good, bad, also_good = await Function(judge).score(nodes("a", "bad", "b"))
    assert good.score == also_good.score == 1
    assert isinstance(bad, VerifierError)
    assert "judge" in bad.message


async def test_an_exception_names_the_function_and_stays_with_its_node():
    def parse(node):
        return {"a": 1.0}[node.state.answer]

    good, bad = await Function(parse).score(nodes("a", "b"))
    assert good.score == 1
    assert "parse raised KeyError: 'b'" in str(bad)


async def test_its_name_can_be_given():
    [error] = await Function(lambda _: None, name="taste").score(nodes("a"))
    assert str(error).startswith("taste ")


async def test_an_async_function_is_called_for_all_nodes_at_once():
    arrived = anyio.Event()

    async def judge(node):
        if node.state.answer == "first":
            with anyio.fail_after(5):
                await arrived.wait()
        arrived.set()
        return len(node.state.answer)

    assert [v.score for v in await Function(judge).score(nodes("first", "2"))] == [5, 1]


async def test_an_object_with_an_async_call_waits_too():
    class Judge:
        async def __call__(self, node):
            return 2

    assert [v.score for v in await Function(Judge()).score(nodes("a", "b"))] == [2, 2]


async def test_a_failed_model_call_is_data_but_signals_pass():
    async def call(node):
        raise {"a": BackendError("busy"), "b": BackendError("no key", fatal=True)}.get(
            node.state.answer, Exhausted("spent")
        )

    [busy] = await Function(call, name="judge").score(nodes("a"))
    assert isinstance(busy, VerifierError)
    assert busy.message == "judge: busy"
    with pytest.raises(BackendError, match="no key"):
        await Function(call).score(nodes("b"))
    with pytest.raises(Exhausted):
        await Function(call).score(nodes("c"))


async def test_its_own_verifier_errors_pass_through():
    mine = VerifierError("cannot tell")

    def judge(node):
        raise mine

    assert await Function(judge).score(nodes("a")) == [mine]


async def test_no_nodes_no_verdicts():
    async def judge(node):
        return 1

    assert await Function(judge).score([]) == []
