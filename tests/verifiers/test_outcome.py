import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from branchwise.agents.tournament import Tournament
from branchwise.core.errors import BackendError, SpecError, VerifierError
from branchwise.core.node import Node
from branchwise.core.types import Preference, Reading, State, Step, Task, Usage, Verdict, Verifier
from branchwise.verifiers.outcome import BradleyTerry, OutcomeReward, Value, Words, sigmoid

pytestmark = pytest.mark.anyio
ONE = Usage(calls=1, prompt=7)
LOGITS = st.lists(st.floats(-30, 30), min_size=2, max_size=5)


def answered(text, prompt="2 + 2?"):
    root = Node(Task(prompt), State())
    return Node(root.task, State(answer=text), root, 0, Step(text))


class Head:
    """A value head whose numbers are given by the last text that it reads."""

    def __init__(self, values):
        self.values, self.asked = values, []

    async def read(self, request, *, since=0, state=False, words=()):
        self.asked.append((request, words))
        told = self.values[request.prompt or request.messages[-1].content]
        if isinstance(told, Exception):
            raise told
        return [Reading((), values=told, usage=ONE)]


class Language:
    """A model that says words by a law, whatever it reads."""

    def __init__(self, **law):
        self.law, self.asked = law, []

    async def read(self, request, *, since=0, state=False, words=()):
        self.asked.append(request)
        return [Reading((), words=tuple(math.log(self.law[word]) for word in words))]


@given(LOGITS, st.integers(0, 4))
def test_a_label_is_read_on_three_scales(values, label):
    label %= len(values)
    reading = Reading((), values=tuple(values))
    weights = [math.exp(value) for value in values]
    chance = 1 / (1 + math.exp(-values[label]))
    assert Value(label=label).number(reading) == values[label]
    assert Value(label=label, scale="sigmoid").number(reading) == pytest.approx(chance)
    soft = Value(label=label, scale="softmax").number(reading)
    assert soft == pytest.approx(weights[label] / math.fsum(weights))
    assert 0 <= soft <= 1


@given(st.lists(st.floats(1e-9, 1), min_size=4, max_size=4))
def test_words_are_weighed_by_their_probabilities(weights):
    good, other, bad, neutral = (weight / (sum(weights) + 0.5) for weight in weights)
    reading = Reading((), words=tuple(map(math.log, (good, other, bad, neutral))))
    fields = {"good": ("a", "b"), "bad": ("c",), "neutral": ("d",)}
    right = good + other + neutral
    assert Words(**fields).number(reading) == pytest.approx(right / (right + bad))
    strict = Words(**fields, neutral_is="bad").number(reading)
    assert strict == pytest.approx((good + other) / (right + bad))
    assert Words(**fields, normalised=False).number(reading) == pytest.approx(right)


def test_words_that_cannot_be_said():
    words = Words(good=("a",), bad=("b",))
    assert words.number(Reading((), words=(-1.0, -math.inf))) == 1
    assert words.number(Reading((), words=(-math.inf, -1.0))) == 0
    assert math.isnan(words.number(Reading((), words=(-math.inf, -math.inf))))
    with pytest.raises(ValidationError, match="without `bad` words"):
        Words(good=("a",))


async def test_a_finished_conversation_is_read_once():
    model = Head({"It is 4.": (1.5,), "It is 5.": (-2.0,)})
    judge = OutcomeReward(backend=model, system="Judge.")
    assert isinstance(judge, Verifier)
    verdicts = await judge.score([answered(" It is 4.\n"), answered("It is 5.")])
    assert verdicts == [Verdict(1.5, usage=ONE), Verdict(-2.0, usage=ONE)]
    request, words = model.asked[0]
    assert [message.role for message in request.messages] == ["system", "user", "assistant"]
    assert (request.messages[1].content, request.said, words) == ("2 + 2?", (), ())


async def test_a_language_model_is_asked_at_the_end():
    model = Language(Yes=0.3, No=0.1)
    read = Words(good=("Yes",), bad=("No",))
    chat = OutcomeReward(backend=model, read=read, template="{prompt} {answer}", reply="")
    plain = OutcomeReward(
        backend=model,
        read=Words(good=("Yes",), normalised=False),
        chat=False,
        template="Q: {prompt}\nA: ",
        ending="\nRight?",
    )
    node = answered("{prompt}")
    [one], [other] = await chat.score([node]), await plain.score([node])
    assert (one.score, other.score) == pytest.approx((0.75, 0.3))
    asked, text = model.asked
    assert [(m.role, m.content) for m in asked.messages] == [("user", "2 + 2? {prompt}")]
    assert (text.prompt, text.so_far) == ("Q: 2 + 2?\nA: {prompt}", "\nRight?")


async def test_what_goes_wrong_stays_with_its_node():
    wrong = BackendError("it does not fit", hint="shorten it", spent=ONE)
    model = Head({"a": (math.nan,), "b": wrong, "c": (1.0,)})
    judge = OutcomeReward(backend=model)
    nan, failed, good, blank = await judge.score([*map(answered, "abc"), answered(" ")])
    assert (nan.message, nan.spent) == ("the model's number for the answer is nan", ONE)
    assert (failed.message, failed.hint, failed.spent) == (wrong.message, wrong.hint, ONE)
    assert good.score == 1
    assert "no text" in blank.message


@pytest.mark.parametrize("values", [(), (1.0, 2.0)])
async def test_a_label_that_the_head_has_not_is_a_fault_of_the_spec(values):
    judge = OutcomeReward(backend=Head({"a": values}), read=Value(label=2))
    with pytest.raises(SpecError, match=r"no value head|has 2 labels"):
        await judge.score([answered("a")])


async def test_an_outage_is_raised():
    judge = OutcomeReward(backend=Head({"a": BackendError("wrong key", fatal=True)}))
    with pytest.raises(BackendError, match="wrong key"):
        await judge.score([answered("a")])


def test_the_answer_has_to_be_shown():
    with pytest.raises(ValidationError, match=r"`\{answer\}` has to stand"):
        OutcomeReward(backend=Head({}), reply="")


async def test_preferences_are_those_of_bradley_and_terry():
    dice = random.Random(0)
    rewards = {letter: dice.gauss(0, 2) for letter in "abcd"}
    model = Head({letter: (reward,) for letter, reward in rewards.items()})
    judge = BradleyTerry(reward=OutcomeReward(backend=model), scale=2.0)
    assert isinstance(judge, Preference)
    nodes = {letter: answered(letter) for letter in rewards}
    names = [(a, b) for a in rewards for b in rewards]
    pairs = [(nodes[a], nodes[b]) for a, b in names]
    verdicts = await judge.prefer(pairs, range(len(pairs)))
    strength = {name: math.exp(reward / 2) for name, reward in rewards.items()}
    for (a, b), verdict in zip(names, verdicts, strict=True):
        assert verdict.score == pytest.approx(strength[a] / (strength[a] + strength[b]))
    # Each answer is read once, however often it is compared.
    assert len(model.asked) == len(nodes)
    assert sum(verdict.usage.calls for verdict in verdicts) == len(nodes)


async def test_a_pair_with_an_answer_that_has_no_reward_fails():
    wrong = BackendError("it does not fit", spent=ONE)
    judge = BradleyTerry(reward=OutcomeReward(backend=Head({"a": (0.0,), "b": wrong, "c": (9.0,)})))
    a, b, c = map(answered, "abc")
    one, other, third = await judge.prefer([(a, b), (b, c), (a, c)], (0, 0, 0))
    assert isinstance(one, VerifierError)
    assert isinstance(other, VerifierError)
    assert (one.message, one.spent, other.spent) == (wrong.message, ONE + ONE, ONE)
    assert third.score == pytest.approx(sigmoid(-9.0))


@pytest.mark.parametrize("how", ["knockout", "copeland", "bradley-terry"])
async def test_a_tournament_by_rewards_ends_with_the_best(how):
    model = Head({"a": (0.1,), "b": (7.0,), "c": (6.9,)})
    root = Node(Task("?"), State())
    for i, said in enumerate("abc"):
        root.adopt([Node(root.task, State(done=True), root, i, Step(said))])
    judge = BradleyTerry(reward=OutcomeReward(backend=model))
    [step] = await Tournament(prefer=judge, format=how).propose(root, [0])
    assert step.text == "b"
