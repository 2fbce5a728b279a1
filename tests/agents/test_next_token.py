import math

import pytest
from pydantic import ValidationError
from toylm import WORLD, ToyLM

from branchwise.agents.chat import Chat
from branchwise.agents.next_token import NextToken
from branchwise.backends.scripted import Scripted
from branchwise.core.config import Sampling
from branchwise.core.errors import SpecError
from branchwise.core.grow import Grow
from branchwise.core.node import Node
from branchwise.core.types import Candidate, State, Step, Task, Usage
from branchwise.search.best_of_n import BestOfN
from branchwise.search.rollout import Rollout
from branchwise.solve import solve

pytestmark = pytest.mark.anyio


def root():
    return Node(Task("?"), State(snapshot=""))


def grow(model, **fields):
    return Grow({"policy": NextToken(policy=Chat(backend=model, **fields))}, WORLD, {})


class Fixed(ToyLM):
    """Gives the same candidates everywhere."""

    def __init__(self, *candidates):
        super().__init__()
        self.candidates = candidates

    async def complete(self, request):
        self.request = request
        return [
            Step("!", usage=Usage(1, 3, 0, 1), candidates=(self.candidates[: request.candidates],))
        ]


async def test_children_are_the_most_probable_tokens_in_order():
    model = ToyLM("abc")
    children = await grow(model)([root()], 9)
    law = dict(zip(["a", "b", "c", ""], model.law(""), strict=True))
    assert [child.text for child in children] == sorted(law, key=law.get, reverse=True)
    for child in children:
        assert child.step.logprob == pytest.approx(math.log(law[child.text]))
        assert child.step.logprobs == (child.step.logprob,)
        assert len(child.step.tokens) == 1
        assert child.done == child.finished == (child.text == "")


async def test_a_node_that_is_grown_again_gets_the_next_ones():
    expand, node, again = grow(ToyLM("abcd")), root(), root()
    texts = [child.text for n in (2, 1, 4) for child in await expand([node], n)]
    assert texts == [child.text for child in await expand([again], 5)]
    assert len(texts) == 5


async def test_failed_children_and_whole_texts_take_no_place():
    model, node = ToyLM("abcd"), root()
    lost, whole = (Node(node.task, node.state, node, i) for i in range(2))
    lost.failed("the line broke")
    whole.step = Step("ab", (0, 1, 4), -3.0)
    node.promised = 2
    node.adopt([lost, whole])
    texts = [child.text for child in await grow(model)([node], 3)]
    assert texts == [child.text for child in await grow(model)([root()], 3)]


async def test_one_token_is_asked_for_and_paid():
    model = Fixed(*(Candidate(i, "abc"[i], -1.0 - i, -1.0 - i) for i in range(3)))
    children = await grow(model, max_tokens=99, sampling=Sampling(top_k=3))([root()], 3)
    assert (model.request.max_tokens, model.request.candidates) == (1, 3)
    assert len(model.request.seeds) == 1
    assert model.request.sampling.top_k == 3
    assert [child.step.usage.completion for child in children] == [1, 0, 0]
    policy = NextToken(policy=Chat(backend=model))
    assert policy.bound(3) == Usage(calls=1, completion=1)
    assert policy.model_copy(update={"sample": True}).bound(3) == Usage(calls=1, completion=3)


async def test_tokens_that_adapters_cut_are_left_out():
    model = Fixed(
        Candidate(0, "a", -1.0, None), Candidate(1, "b", -2.0, 0.0), Candidate(2, "c", -3.0, None)
    )
    assert [child.text for child in await grow(model)([root()], 3)] == ["b"]


async def test_a_character_is_said_by_the_token_that_completes_it():
    said = []
    for candidate in (
        Candidate(1, "x", -1, -1),
        Candidate(2, " �", -1, -1),
        Candidate(3, " é", -1, -1),
    ):
        [child] = await grow(Fixed(candidate))([root()])
        said.append((child.step.text, child.step.tokens, child.step.finish))
    assert said == [("x", (1,), "length"), ("", (2,), "length"), (" é", (3,), "length")]


@pytest.mark.parametrize("stop", ["a", "ca", "bca"])
async def test_a_stop_string_may_lie_over_several_tokens(stop):
    law = {"": 1, "b": 2}
    model = ToyLM("abc", lambda prefix: [float(i == law.get(prefix, 0)) for i in range(4)])
    policy = NextToken(policy=Chat(backend=model, stop=("never", stop)))
    answer = await solve("?", policy=policy, controller=Rollout(), environment=WORLD)
    assert answer.text == "bca"
    assert [step.finish for step in answer.node.steps] == ["length", "length", "stop"]


async def test_drawn_tokens_follow_the_seed():
    model = ToyLM("abc")
    policy = NextToken(policy=Chat(backend=model), sample=True)
    parts = {"policy": policy, "environment": WORLD, "horizon": 5}
    first, again, other = [
        await solve("?", controller=BestOfN(n=20), seed=seed, **parts) for seed in (0, 0, 1)
    ]
    texts = [[node.text for node in answer.root.walk()] for answer in (first, again, other)]
    assert texts[0] == texts[1] != texts[2]
    assert model.asked
    assert not any(step.candidates for node in first.root.leaves() for step in node.steps)


async def test_a_backend_without_candidates_is_refused():
    with pytest.raises(SpecError, match="no candidates"):
        await grow(Scripted(lambda request, seed: "a"))([root()])


def test_it_can_be_written_as_a_table():
    model = ToyLM()
    table = {"kind": "next-token", "policy": {"kind": "chat", "system": "Hm."}, "backend": model}
    policy = NextToken.model_validate(table)
    assert policy == NextToken(policy=Chat(backend=model, system="Hm."))
    assert NextToken.model_validate({"backend": model}).policy == Chat(backend=model)
    dumped = policy.model_dump()
    assert dumped["policy"]["system"] == "Hm."
    assert NextToken.model_validate({**dumped, "backend": model}) == policy
    with pytest.raises(ValidationError):
        NextToken(policy="chat")
