import math

import pytest

from branchwise.core.errors import VerifierError
from branchwise.core.node import Node
from branchwise.core.types import State, Step, Task
from branchwise.verifiers.likelihood import Likelihood

pytestmark = pytest.mark.anyio


def path(*steps):
    node = Node(Task("?"), State())
    for step in steps:
        node = Node(node.task, State(), node, 0, step)
    return node


A = Step("a", tokens=(1, 2), logprobs=(-1.0, -2.0), logprob=-3.0)
B = Step("b", tokens=(3,), logprob=-1.0)
UNKNOWN = Step("c", tokens=(1,))


@pytest.mark.parametrize(
    ("alpha", "score"), [(0.0, -4.0), (1.0, -4 / 3), (2.0, -4 / 9), (-1.0, -12.0)]
)
async def test_the_sum_over_the_length_to_the_power(alpha, score):
    [verdict] = await Likelihood(alpha=alpha).score([path(A, B)])
    assert verdict.score == pytest.approx(score)


async def test_tokens_may_be_counted_by_their_logprobs():
    [verdict] = await Likelihood().score([path(Step("a", logprobs=(-1.0, -2.0), logprob=-3.0))])
    assert verdict.score == -1.5


async def test_where_nothing_was_said_nothing_was_improbable():
    root, silent = path(), path(Step("", logprob=0.0))
    assert [v.score for v in await Likelihood().score([root, silent])] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("step", "hint"),
    [
        (UNKNOWN, "logprobs"),
        (Step("c", tokens=(1,), logprob=-math.inf), "logprobs"),
        (Step("c", logprob=-1.0), "alpha = 0"),
    ],
)
async def test_an_unknown_probability_spoils_no_sibling(step, hint):
    error, verdict = await Likelihood().score([path(A, step), path(A, B)])
    assert isinstance(error, VerifierError)
    assert "step 2" in error.message
    assert hint in error.hint
    assert verdict.score == pytest.approx(-4 / 3)


async def test_a_sum_needs_no_length():
    [verdict] = await Likelihood(alpha=0).score([path(Step("c", logprob=-1.0))])
    assert verdict.score == -1


async def test_the_worst_token_counts_where_it_is_asked_for():
    worst = Likelihood(worst=True)
    best = Step("b", tokens=(3,), logprobs=(-0.5,), logprob=-0.5)
    unsaid = Step("c", tokens=(1,), logprob=-1.0)
    verdicts = await worst.score([path(A, best), path(best), path(Step("", logprob=0.0))])
    assert [verdict.score for verdict in verdicts] == [-2.0, -0.5, 0.0]
    [error] = await worst.score([path(A, unsaid)])
    assert "step 2 does not say" in str(error)
