"""Judges behind OpenAI's wire: what they write, and what goes wrong with it."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("openai")
sys.path.insert(0, str(Path(__file__).parent.parent / "backends"))  # its server

from hostile import completion, talking

from branchwise.core.errors import BackendError, VerifierError
from branchwise.core.node import Node
from branchwise.core.types import State, Step, Task
from branchwise.verifiers.critic import Critic
from branchwise.verifiers.self_evaluation import SelfEvaluation

pytestmark = pytest.mark.asyncio
ROOT = Node(Task("2 + 2?", target="the-target"), State())


def answers(*texts):
    return [Node(ROOT.task, State(done=True), ROOT, i, Step(text)) for i, text in enumerate(texts)]


async def test_critiques_and_their_scores():
    async def judge(asked):
        messages = asked.body["messages"]
        if len(messages) == 1:
            right = "Response:\n4\n" in messages[0]["content"]
            n = asked.body["n"]
            await asked.chat(*(f"{'Right' if right else 'Wrong'} {i}." for i in range(n)))
        else:
            assert [message["role"] for message in messages] == ["user", "assistant", "user"]
            await asked.chat({"Right 0.": "5", "Right 1.": "4"}.get(messages[1]["content"], "1"))

    async with talking(judge) as (server, backend):
        critic = Critic(backend=backend, by="written", samples=2)
        right, wrong = await critic.score(answers("4", "5"))
    assert (right.score, wrong.score) == (0.875, 0.0)
    assert (right.feedback, wrong.feedback) == ("Right 1.", "Wrong 0.")
    # The server counts 5 tokens read and 7 written each time.
    assert (right.usage.calls, right.usage.prompt, right.usage.completion) == (3, 15, 21)
    assert "the-target" not in str(server.bodies)


async def test_bad_replies_stay_with_their_nodes():
    said = {
        "garbage": completion("It depends."),
        "empty": completion(""),
        "cut": completion("7", finish="length"),
        "withheld": completion("75", finish="content_filter"),
        "fine": completion("75"),
    }

    async def judge(asked):
        content = asked.body["messages"][0]["content"]
        [reply] = [reply for word, reply in said.items() if f"answer:\n{word}\n" in content]
        await asked.reply(reply)

    async with talking(judge) as (server, backend):
        verifier = SelfEvaluation(backend=backend, by="verbalised")
        *bad, fine = await verifier.score(answers(*said))
    assert fine.score == 0.75
    assert all(isinstance(error, VerifierError) for error in bad)
    assert [error.spent.completion for error in bad] == [7] * 4
    garbage, empty, cut, withheld = map(str, bad)
    assert "no number from 0 to 100: 'It depends.'" in garbage
    assert "is empty" in empty
    assert "was cut short: it ends with '7'" in cut
    assert "withheld by the server" in withheld
    assert len(server.bodies) == 5


async def test_a_refused_key_ends_it():
    async def judge(asked):
        await asked.refuse(401, "wrong key")

    async with talking(judge) as (_, backend):
        with pytest.raises(BackendError, match="wrong key") as said:
            await SelfEvaluation(backend=backend, by="verbalised").score(answers("4", "5"))
    assert said.value.fatal
