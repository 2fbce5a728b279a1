"""A judge that asks for JSON, and servers that follow the schema or do not."""

import json

import anyio
import pytest
from hostile import refuse, talking

from branchwise.agents.chat import Chat
from branchwise.core.errors import BackendError, VerifierError
from branchwise.core.node import Node
from branchwise.core.types import State, Step, Task, Verdict
from branchwise.environments.writing import Writing
from branchwise.search.best_of_n import BestOfN
from branchwise.solve import solve
from branchwise.verifiers.cascade import Cascade, Stage
from branchwise.verifiers.ensemble import Ensemble
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


async def test_without_candidates_there_is_no_expected_grade():
    async def silent(asked):
        assert asked.body["top_logprobs"] == 20
        await asked.chat("Score: 4")

    async with talking(silent) as (_, model):
        [error] = await Judge(backend=model, expected=True).score(NODES[:1])
    assert isinstance(error, VerifierError)
    assert "what else it could have said" in str(error)
    assert "'Score: 4'" in str(error)
    assert error.spent.completion == 7


class Searches:
    """A verifier that runs a search for each node, with a model and a judge of its own."""

    def __init__(self, model, verifier=None):
        self.model, self.verifier = model, verifier

    async def score(self, nodes):
        verdicts = []
        for node in nodes:
            found = await solve(
                f"Is this right? {node.text}",
                policy=Chat(backend=self.model, max_tokens=8),
                controller=BestOfN(n=2),
                environment=Writing(),
                verifier=self.verifier,
            )
            verdicts.append(Verdict(found.node.score, usage=found.usage))
        return verdicts


@pytest.mark.parametrize("held", ["alone", "ensemble", "cascade"])
async def test_searches_inside_of_verifiers_inside_of_searches_share_one_connection(held):
    async def answers(asked):
        await asked.chat("Reasons: fine.\nScore: 4")

    async with talking(answers, connections=1) as (server, model):
        judge = Judge(backend=model)
        nested = Searches(model, Searches(model, judge))
        verifier = {
            "alone": nested,
            "ensemble": Ensemble(members={"nested": nested, "judge": judge}),
            "cascade": Cascade(stages=(Stage(verifier=judge, at_least=0), Stage(verifier=nested))),
        }[held]
        with anyio.fail_after(20):
            answer = await solve(
                "TASK",
                policy=Chat(backend=model, max_tokens=8),
                controller=BestOfN(n=2),
                environment=Writing(),
                verifier=verifier,
            )
    assert answer.stopped == "finished"
    assert answer.node.score == 0.75
    assert answer.usage.completion == 7 * len(server.bodies)
