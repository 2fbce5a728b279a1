import json
import math
import random
from itertools import product

import pytest

from branchwise.core.errors import BackendError, VerifierError
from branchwise.core.node import Node
from branchwise.core.types import Message, Reading, Scoring, State, Step, Task, Usage
from branchwise.verifiers.channel import NoisyChannel

pytestmark = pytest.mark.anyio
QUESTIONS = ("u", "uv", "vvv")
ANSWERS = ("a", "bb", "ab", "abc", "cabba")


def law(seed):
    """A joint distribution of questions and answers."""
    dice = random.Random(seed)
    joint = {pair: dice.random() for pair in product(QUESTIONS, ANSWERS)}
    whole = sum(joint.values())
    return {pair: p / whole for pair, p in joint.items()}


class Joint:
    """Reads x after "x|y" and y after "y" by a joint distribution; a letter is a token."""

    def __init__(self, joint):
        self.joint, self.requests = joint, []

    def alone(self, y):
        return sum(self.joint[x, y] for x in QUESTIONS)

    async def read(self, request, *, since=0, state=False):
        self.requests.append(request)
        kind, _, y = request.prompt.partition("|")
        said = request.so_far
        p = self.joint[said, y] / self.alone(y) if kind == "x" else self.alone(said)
        return [
            Reading(
                tuple(map(ord, step.text)),
                (math.log(p) / len(said),) * len(step.text),
                usage=Usage(calls=1, prompt=len(step.text)),
            )
            for step in request.said
        ]


def verifier(backend, **fields):
    fields = {"backward": "x|{answer}", "alone": "y", "chat": False} | fields
    return NoisyChannel(backend=backend, **fields)


def answered(x, y, logprob):
    """A node that says y in steps of two letters, of which the first is certain."""
    node = Node(Task(x), State())
    pieces = [y[i : i + 2] for i in range(0, len(y), 2)]
    for i, piece in enumerate(pieces):
        step = Step(piece, tuple(map(ord, piece)), logprob if i == len(pieces) - 1 else 0.0)
        node = Node(node.task, State(), node, 0, step)
    return node


@pytest.mark.parametrize("seed", range(3))
async def test_without_the_direct_model_it_is_the_posterior(seed):
    model = Joint(law(seed))
    assert isinstance(model, Scoring)
    for x in QUESTIONS:
        nodes = [answered(x, y, 0.0) for y in ANSWERS]
        verdicts = await verifier(model, alpha=0).score(nodes)
        weights = [math.exp(verdict.score) for verdict in verdicts]
        evidence = sum(model.joint[x, y] for y in ANSWERS)
        assert sum(weights) == pytest.approx(evidence)
        for weight, y in zip(weights, ANSWERS, strict=True):
            assert weight / sum(weights) == pytest.approx(model.joint[x, y] / evidence)


@pytest.mark.parametrize("weight", [0.5, 1.0, 2.0])
async def test_models_that_agree_rank_as_the_direct_one(weight):
    model = Joint(law(5))
    x = "uv"
    evidence = sum(model.joint[x, y] for y in ANSWERS)
    direct = {y: math.log(model.joint[x, y] / evidence) for y in ANSWERS}
    nodes = [answered(x, y, direct[y]) for y in ANSWERS]
    verdicts = await verifier(model, alpha=0, channel=weight, prior=weight).score(nodes)
    for verdict, y in zip(verdicts, ANSWERS, strict=True):
        # By Bayes, log p(x | y) + log p(y) = log p(y | x) + log p(x).
        assert verdict.score == pytest.approx(
            (1 + weight) * direct[y] + weight * math.log(evidence)
        )


@pytest.mark.parametrize(
    ("alpha", "scores"), [(0, (-3, -4)), (1, (-1.5, -0.8)), (2, (-0.75, -0.16))]
)
async def test_without_weights_it_is_the_likelihood_and_nobody_is_asked(alpha, scores):
    model = Joint(law(0))
    nodes = [answered("u", "bb", -3.0), answered("u", "cabba", -4.0)]
    for per in ("answer", "question"):
        silent = verifier(model, channel=0, prior=0, alpha=alpha, per=per)
        verdicts = await silent.score(nodes)
        assert [verdict.score for verdict in verdicts] == pytest.approx(scores)
    assert model.requests == []


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("per", ["answer", "question"])
@pytest.mark.parametrize(("channel", "prior"), [(0.7, 0.2), (0.7, 0), (0, 0.2)])
async def test_lengths_divide_as_published(alpha, per, channel, prior):
    model = Joint(law(1))
    for x, y in product(QUESTIONS, ANSWERS):
        [verdict] = await verifier(model, channel=channel, prior=prior, alpha=alpha, per=per).score(
            [answered(x, y, -2.0)]
        )
        more = channel * math.log(model.joint[x, y] / model.alone(y))
        more += prior * math.log(model.alone(y))
        length = len(y) if per == "answer" else len(x)
        assert verdict.score == pytest.approx(-2 / len(y) ** alpha + more / length**alpha)


async def test_both_sums_and_their_cost_stay_on_the_verdict():
    model = Joint(dict.fromkeys(product(QUESTIONS, ANSWERS), 1 / 15))
    [verdict] = await verifier(model).score([answered("uv", "abc", -1.0)])
    assert verdict.detail == "log p(x|y) = -1.09861, log p(y) = -1.60944"  # ln 3 and ln 5
    assert verdict.usage == Usage(calls=3, prompt=2 + 3)
    [verdict] = await verifier(model, channel=0).score([answered("uv", "abc", -1.0)])
    assert verdict.detail == "log p(y) = -1.60944"


async def test_a_token_that_ends_the_answer_counts_where_it_was_drawn():
    model = Joint(law(1))
    steps = Step("ab", (1, 2), -1.0), Step("", (0,), -0.5)
    node = Node(Task("u"), State())
    for step in steps:
        node = Node(node.task, State(), node, 0, step)
    [verdict] = await verifier(model).score([node])
    assert verdict.score == pytest.approx((-1.5 + math.log(model.joint["u", "ab"])) / 3)


async def test_what_the_model_reads():
    class Spy(Joint):
        async def read(self, request, *, since=0, state=False):
            self.requests.append(request)
            return [Reading((1,), (-1.0,)) for _ in request.said]

    node = answered("{answer}", "{answer}", -1.0)
    steps = node.steps
    model = Spy(None)
    await verifier(model).score([node])
    await NoisyChannel(backend=model, backward="B {answer}", alone="A {answer}").score([node])
    asked = {(r.prompt or r.messages, r.said) for r in model.requests}
    assert asked == {
        ("x|{answer}", (Step("{answer}"),)),
        ("y", steps),
        ((Message("user", "B {answer}"),), (Step("{answer}"),)),
        ((Message("user", "A {answer}"),), steps),
    }
    assert sum((step.tokens for step in steps), ()) == tuple(map(ord, "{answer}"))


async def test_where_nothing_was_said_only_the_question_is_read():
    class Mute(Joint):
        async def read(self, request, *, since=0, state=False):
            assert all(step.text for step in request.said)
            return [Reading((7, 8), (-1.0, -2.0)) for _ in request.said]

    root = Node(Task("uv"), State())
    silent = Node(root.task, State(), root, 0, Step("", logprob=0.0))
    for per, score in (("answer", -3.0), ("question", -1.5)):
        verdicts = await verifier(Mute(None), per=per).score([root, silent])
        assert [verdict.score for verdict in verdicts] == [score, score]


async def test_a_node_that_cannot_be_read_spoils_no_sibling():
    class Half(Joint):
        async def read(self, request, *, since=0, state=False):
            if "bb" in (request.prompt, request.so_far):
                raise BackendError("too long", hint="shorten it")
            if request.so_far == "abc":
                return [Reading((1,), values=(0.5,)) for _ in request.said]
            return await super().read(request)

    nodes = [answered("u", y, None if y == "ab" else -1.0) for y in ANSWERS]
    verdicts = await verifier(Half(law(0))).score(nodes)
    said = {
        y: str(v) for y, v in zip(ANSWERS, verdicts, strict=True) if isinstance(v, VerifierError)
    }
    assert said.keys() == {"bb", "ab", "abc"}
    assert said["bb"] == "too long (shorten it)"
    assert "log-probability None" in said["ab"]
    assert "language head" in said["abc"]


async def test_a_fatal_error_passes_through():
    class Down:
        async def read(self, request, *, since=0, state=False):
            raise BackendError("wrong key", fatal=True)

    with pytest.raises(BackendError, match="wrong key"):
        await verifier(Down()).score([answered("u", "a", -1.0)])


def test_the_model_is_no_part_of_the_configuration():
    model = Joint(law(0))
    dumped = json.loads(verifier(model, per="question").model_dump_json())
    assert "backend" not in dumped
    assert NoisyChannel(backend=model, **dumped) == verifier(model, per="question")
