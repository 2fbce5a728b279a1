"""The most probable next tokens, as servers tell them, and what verifiers make of them."""

import math

import pytest
from hostile import completion, refuse, request, script, talking

from branchwise.agents.chat import Chat
from branchwise.agents.next_token import NextToken
from branchwise.core.errors import SpecError, VerifierError
from branchwise.core.node import Node
from branchwise.core.types import State, Step, Task
from branchwise.verifiers.generative import GenRM, GenRMCoT

pytestmark = pytest.mark.asyncio
ROOT = Node(Task("2 + 2?", target="the-target"), State())
ANSWERS = [Node(ROOT.task, State(), ROOT, i, Step(text)) for i, text in enumerate(["4", "5"])]
LAW = {"Yes": 0.5, " yes": 0.25, "No": 0.125}


def named(law):
    """A reply of one token with OpenAI's log-probabilities."""
    top = [
        {"token": text, "logprob": math.log(p), "bytes": list(text.encode())}
        for text, p in law.items()
    ]
    reply = completion(next(iter(law)), finish="length", usage=(5, 1))
    reply["choices"][0]["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
    return reply


def judge(asked):
    said = asked.body["messages"][0]["content"]
    if asked.body["max_tokens"] > 1:
        return asked.chat(*["I doubt it."] * asked.body.get("n", 1))
    return asked.reply(named(LAW if "Answer:\n4" in said else {"No": 0.75, "Yes": 0.25}))


async def test_candidates_of_a_chat_and_of_a_completion():
    legacy = {
        "choices": [
            {
                "text": "Yes",
                "finish_reason": "length",
                "logprobs": {
                    "tokens": ["Yes"],
                    "token_logprobs": [-0.5],
                    "top_logprobs": [{"Yes": -0.5, "No": -1.5}],
                },
            }
        ]
    }
    answers = script(lambda a: a.reply(named(LAW)), lambda a: a.reply(legacy))
    async with talking(answers) as (server, backend):
        [chat] = await backend.complete(request(candidates=3))
        [plain] = await backend.complete(request(prompt="?", candidates=2))
    assert [(c.text, c.logprob) for c in chat.candidates[0]] == [
        (text, pytest.approx(math.log(p))) for text, p in LAW.items()
    ]
    assert {(c.token, c.proposal) for c in chat.candidates[0]} == {(-1, None)}
    assert [(c.text, c.logprob) for c in plain.candidates[0]] == [("Yes", -0.5), ("No", -1.5)]
    first, second = server.bodies
    assert (first["logprobs"], first["top_logprobs"], second["logprobs"]) == (True, 3, 2)


async def test_a_generative_verifier_reads_them():
    async with talking(judge) as (server, backend):
        right, wrong = await GenRM(backend=backend).score(ANSWERS)
        thought, _ = await GenRMCoT(backend=backend, samples=2).score(ANSWERS)
    assert (right.score, wrong.score) == pytest.approx((0.75, 0.25))
    assert (right.usage.calls, right.usage.prompt, right.usage.completion) == (1, 5, 1)
    assert thought.score == pytest.approx(0.75)
    assert thought.feedback == "I doubt it."
    assert "the-target" not in str(server.bodies)
    token = server.bodies[0]
    assert (token["max_tokens"], token["top_logprobs"], token["temperature"]) == (1, 20, 1.0)


async def test_a_server_without_log_probabilities_is_told_of():
    async with talking(lambda asked: asked.chat("Yes")) as (_, backend):
        [error] = await GenRM(backend=backend).score(ANSWERS[:1])
    assert isinstance(error, VerifierError)
    assert "names no candidates" in str(error)
    assert "top_logprobs" in str(error)
    assert error.spent.calls == 1
    refusal = refuse(400, "no `top_logprobs` here", param="top_logprobs")
    async with talking(script(refusal, lambda asked: asked.chat("Yes"))) as (_, backend):
        [error] = await GenRM(backend=backend).score(ANSWERS[:1])
    assert "names no candidates" in str(error)


async def test_a_search_over_tokens_needs_their_ids():
    async with talking(lambda asked: asked.reply(named(LAW))) as (_, backend):
        with pytest.raises(SpecError, match="can be drawn"):
            await NextToken(policy=Chat(backend=backend)).propose(ROOT, [0])
