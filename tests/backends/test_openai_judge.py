"""A judge that asks for JSON, and servers that follow the schema or do not."""

import json

import pytest
from hostile import refuse, talking

from branchwise.core.errors import BackendError, SpecError, VerifierError
from branchwise.core.node import Node
from branchwise.core.types import State, Step, Task
from branchwise.verifiers.judge import Judge

pytestmark = pytest.mark.asyncio
ROOT = Node(Task("TASK"), State())
NODES = [Node(ROOT.task, State(), ROOT, i, Step(f"ANSWER {i}.")) for i in range(3)]


def follows(asked):
    """A server that reads the schema: the best grade that it allows, for the first answer."""
    schema = asked.body["response_format"]["json_schema"]
    assert schema["strict"]
    assert schema["schema"]["required"] == ["reasons", "score"]
    grades = schema["schema"]["properties"]["score"]["enum"]
    first = "ANSWER 0." in asked.body["messages"][-1]["content"]
    return asked.chat(json.dumps({"reasons": "So.", "score": grades[-1] if first else grades[0]}))


def writes_prose(asked):
    return asked.chat("I would say four out of five, since it is mostly right.")


async def test_a_server_that_follows_the_schema():
    async with talking(follows) as (server, model):
        verdicts = await Judge(backend=model, form="json", low=0, high=10).score(NODES)
    assert [verdict.score for verdict in verdicts] == [1, 0, 0]
    assert {verdict.feedback for verdict in verdicts} == {"So."}
    assert [verdict.usage.completion for verdict in verdicts] == [7, 7, 7]
    assert len(server.bodies) == 3


async def test_a_server_that_ignores_the_schema_is_quoted_and_paid():
    async def moody(asked):
        prose = "ANSWER 1." in asked.body["messages"][-1]["content"]
        await (writes_prose if prose else follows)(asked)

    async with talking(moody) as (_, model):
        first, prose, last = await Judge(backend=model, form="json").score(NODES)
    assert (first.score, last.score) == (1, 0)
    assert isinstance(prose, VerifierError)
    assert "since it is mostly right.'" in str(prose)
    assert prose.spent.completion == 7


async def test_json_that_the_token_limit_cut_is_no_grade():
    async def cut(asked):
        await asked.chat('{"reasons": "So.", "score": 1', finish="length")

    async with talking(cut) as (_, model):
        [error] = await Judge(backend=model, form="json").score(NODES[:1])
    assert "was cut short" in str(error)
    assert '"score": 1' in str(error)


async def test_a_wrong_key_ends_it():
    async with talking(refuse(401, "no such key")) as (_, model):
        with pytest.raises(BackendError, match="no such key") as said:
            await Judge(backend=model, form="json").score(NODES[:1])
    assert said.value.fatal


async def test_servers_tell_no_candidates():
    async with talking(follows) as (server, model):
        with pytest.raises(SpecError, match="candidates"):
            await Judge(backend=model, expected=True).score(NODES[:1])
    assert server.asked == []
