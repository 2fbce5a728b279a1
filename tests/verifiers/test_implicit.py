import math
import random

import pytest
from pydantic import ValidationError

from branchwise.core.errors import BackendError, SpecError, VerifierError
from branchwise.core.node import Node
from branchwise.core.types import Reading, State, Step, Task, Usage, Verifier
from branchwise.verifiers.aggregate import Aggregate
from branchwise.verifiers.implicit import ImplicitReward

pytestmark = pytest.mark.anyio
LETTERS = "ab;"
ONE = Usage(calls=1)


class Letters:
    """A model of letters: the next one's law is drawn by the question and all letters before."""

    def __init__(self, name, wrong=None):
        self.name, self.wrong, self.asked = name, wrong, []

    def law(self, question, before):
        dice = random.Random(f"{self.name} {question} {before}")
        weights = {letter: dice.random() + 0.1 for letter in (*LETTERS, "$")}
        return {letter: weight / sum(weights.values()) for letter, weight in weights.items()}

    def p(self, question, text):
        return math.prod(self.law(question, text[:i])[letter] for i, letter in enumerate(text))

    async def read(self, request, *, since=0, state=False, words=()):
        self.asked.append(request)
        if self.wrong:
            raise self.wrong
        question = request.prompt or request.messages[-1].content
        text, readings = "", []
        for step in request.said:
            law = [self.law(question, text + step.text[:i]) for i in range(len(step.text))]
            logs = tuple(
                math.log(each[letter]) for each, letter in zip(law, step.text, strict=True)
            )
            readings.append(Reading(tuple(map(ord, step.text)), logs, usage=ONE))
            text += step.text
        return readings[since:]


def chain(*texts, finish="stop", prompt="?"):
    node = Node(Task(prompt), State())
    nodes = []
    for text in texts:
        node = Node(node.task, State(), node, 0, Step(text, finish=finish))
        nodes.append(node)
    return nodes


def judge(**fields):
    fields = {"backend": Letters("new"), "reference": Letters("old"), "separator": ";"} | fields
    return ImplicitReward(**fields)


@pytest.mark.parametrize("beta", [0.1, 2.0])
async def test_the_reward_is_the_log_ratio_of_the_texts(beta):
    dpo = judge(beta=beta)
    assert isinstance(dpo, Verifier)
    text = "ab;ba;aab"
    [whole], path = chain(text), chain("ab;", "ba;", "aab")
    verdicts = await dpo.score([whole, *path])
    expected = beta * math.log(dpo.backend.p("?", text) / dpo.reference.p("?", text))
    assert verdicts[0].score == pytest.approx(expected)
    assert len(verdicts[0].steps) == 3
    assert [verdict.steps for verdict in verdicts[1:]] == [(s,) for s in verdicts[0].steps]
    for node, verdict in zip((whole, *path), verdicts, strict=True):
        node.judged(("dpo",), (verdict,))
    assert Aggregate(of="dpo", how="sum")(path[-1]) == pytest.approx(expected)
    assert verdicts[1].usage == ONE + ONE


async def test_rewards_give_back_the_trained_model():
    # The policy of largest reward under a penalty is the reference times exp(r / beta).
    dpo = judge(beta=0.5)
    texts = [a + b for a in LETTERS for b in LETTERS]
    verdicts = await dpo.score([chain(text)[0] for text in texts])
    weights = [
        dpo.reference.p("?", text) * math.exp(verdict.score / 0.5)
        for text, verdict in zip(texts, verdicts, strict=True)
    ]
    assert weights == pytest.approx([dpo.backend.p("?", text) for text in texts])


async def test_the_end_of_an_answer_counts_where_it_is_known():
    dpo = judge(beta=1.0, ending="$")
    ended, open_ = chain("ab", finish="end")[0], chain("ab")[0]
    empty = chain("ab", "", finish="end")[1]
    one, other, last = await dpo.score([ended, open_, empty])
    for text, verdict in (("ab$", one), ("ab", other)):
        ratio = dpo.backend.p("?", text) / dpo.reference.p("?", text)
        assert verdict.score == pytest.approx(math.log(ratio))
    assert last.steps == (last.score,)
    assert other.score + last.score != pytest.approx(other.score)


async def test_what_says_nothing():
    empty, *blank = await judge().score([chain("a", "")[1], chain("")[0], Node(Task("?"), State())])
    assert (empty.score, empty.steps) == (0.0, ())
    assert all("no text" in error.message for error in blank)


async def test_both_models_see_the_same():
    plain = judge(chat=False, template="Q: {prompt}\n")
    chat = judge(system="Think.", template="{prompt}!")
    for each in (plain, chat):
        await each.score(chain("a"))
        assert each.backend.asked == each.reference.asked
    assert plain.backend.asked[0].prompt == "Q: ?\n"
    assert [m.content for m in chat.backend.asked[0].messages] == ["Think.", "?!"]


@pytest.mark.parametrize("which", ["backend", "reference"])
async def test_what_goes_wrong_stays_with_its_node(which):
    wrong = BackendError("it does not fit", hint="shorten it", spent=ONE)
    [error] = await judge(**{which: Letters("x", wrong)}).score(chain("a"))
    assert isinstance(error, VerifierError)
    assert (error.message, error.hint, error.spent) == (wrong.message, wrong.hint, ONE + ONE)
    outage = BackendError("wrong key", fatal=True)
    with pytest.raises(BackendError, match="wrong key"):
        await judge(**{which: Letters("x", outage)}).score(chain("a"))


class Fixed:
    def __init__(self, *readings):
        self.readings = readings

    async def read(self, request, *, since=0, state=False, words=()):
        return self.readings


async def test_a_certainty_that_is_none_fails_its_node():
    models = {
        "backend": Fixed(Reading((1,), (-1.0,))),
        "reference": Fixed(Reading((1,), (-math.inf,))),
    }
    [error] = await judge(**models).score(chain("a"))
    assert error.message == "the node's step 1 has the reward inf"


@pytest.mark.parametrize(
    ("reading", "words"),
    [
        (Reading((1, 2), (-1.0, -1.0)), "into other tokens: 1 of them, and 2"),
        (Reading((1,)), "no log-probabilities"),
    ],
)
async def test_models_that_do_not_belong_together(reading, words):
    models = {"backend": Fixed(Reading((1,), (-1.0,))), "reference": Fixed(reading)}
    with pytest.raises(SpecError, match=words):
        await judge(**models).score(chain("a"))


def test_the_question_has_to_be_shown():
    with pytest.raises(ValidationError, match="has to stand in `template`"):
        judge(template="?")
