import math
import random
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from branchwise.core.errors import BackendError, SpecError, VerifierError
from branchwise.core.node import Node
from branchwise.core.types import Reading, Scoring, State, Step, Task, Usage
from branchwise.verifiers.aggregate import Aggregate, aggregated
from branchwise.verifiers.process import Format, ProcessReward, formats

pytestmark = pytest.mark.anyio
QUESTION = "What is 1 + 2 + 3?"
STEPS = ("1 + 2 = 3.", "3 + 3 = 6.", "So it is 6.")
ONE = Usage(calls=1, prompt=3)


class Numbers:
    """A model whose numbers are drawn by the text before them; it remembers what it was asked."""

    def __init__(self, *, labels=2, words=True, said=None):
        self.labels, self.knows_words, self.said = labels, words, said or {}
        self.asked = []

    async def read(self, request, *, since=0, state=False, words=()):
        self.asked.append((request, since))
        head = request.prompt or "".join(f"<{m.role}>{m.content}" for m in request.messages)
        ends = range(since + 1, len(request.said) + 1) if request.said else [0]
        texts = [head + "".join(step.text for step in request.said[:end]) for end in ends]
        if any(text in self.said for text in texts):
            raise next(self.said[text] for text in texts if text in self.said)
        return [self.reading(text, words) for text in texts]

    def reading(self, text, words):
        dice = random.Random(text)
        values = tuple(dice.gauss(0, 1) for _ in range(self.labels))
        law = [dice.random() for _ in words] + [1]
        logs = tuple(math.log(weight / sum(law)) for weight in law[:-1])
        return Reading((1,), values=values, words=logs if self.knows_words else (), usage=ONE)


def chain(*texts, prompt=QUESTION):
    """The nodes of a path, below the root."""
    node, nodes = Node(Task(prompt), State()), []
    for text in texts:
        node = Node(node.task, State(), node, 0, Step(text))
        nodes.append(node)
    return nodes


def like(name):
    return Format.model_validate(ProcessReward(backend=Numbers(), format=name).format)


@pytest.mark.parametrize("name", formats())
async def test_a_step_search_and_whole_answers_have_the_same_numbers(name):
    separator = like(name).separator
    model = Numbers()
    assert isinstance(model, Scoring)
    judge = ProcessReward(backend=model, format=name)
    [whole] = chain(separator.join(STEPS))
    path = chain(*(step + separator for step in STEPS[:-1]), STEPS[-1])
    two = chain(separator.join(STEPS[:2]) + separator, STEPS[2])
    verdicts = await judge.score([whole, *path, *two])
    steps = verdicts[0].steps
    assert len(set(steps)) == len(STEPS)
    assert all(0 <= score <= 1 for score in steps)
    assert [verdict.steps for verdict in verdicts[1:4]] == [(step,) for step in steps]
    assert [verdict.score for verdict in verdicts[1:4]] == list(steps)
    assert [verdict.steps for verdict in verdicts[4:]] == [steps[:2], steps[2:]]
    assert verdicts[0].score == aggregated(steps, judge.format.how)


@pytest.mark.parametrize("name", ["qwen2.5-math-prm", "rlhflow-deepseek", "trl"])
async def test_only_the_nodes_own_steps_are_paid(name):
    judge = ProcessReward(backend=Numbers(), format=name)
    separator = judge.format.separator
    verdicts = await judge.score(chain(*(step + separator for step in STEPS)))
    readings = 2 if judge.format.mark else 1
    assert [verdict.usage.prompt for verdict in verdicts] == [3 * readings] * 3


HOWS = {"min": 0.25, "prod": 0.1, "last": 0.8, "mean": 1.55 / 3, "max": 0.8, "sum": 1.55}


class Told:
    """A model whose value head says the logits of given numbers, in order."""

    def __init__(self, *numbers):
        self.numbers = numbers

    async def read(self, request, *, since=0, state=False, words=()):
        told = self.numbers[since : len(request.said)]
        return [Reading((1,), values=(math.log(p / (1 - p)) if 0 < p < 1 else p,)) for p in told]


PLAIN = {"read": {"kind": "value", "scale": "sigmoid"}}


@pytest.mark.parametrize("how", HOWS)
async def test_scores_of_steps_become_one_as_asked(how):
    judge = ProcessReward(backend=Told(0.5, 0.25, 0.8), format=PLAIN, how=how)
    [whole] = chain("\n\n".join(STEPS))
    path = chain(STEPS[0] + "\n\n", "\n\n".join(STEPS[1:]))
    verdicts = await judge.score([whole, *path])
    assert verdicts[0].score == pytest.approx(HOWS[how])
    assert verdicts[0].steps == pytest.approx((0.5, 0.25, 0.8))
    for node, verdict in zip([whole, *path], verdicts, strict=True):
        node.judged(("prm",), (verdict,))
    for node in (whole, path[-1]):
        assert Aggregate(of="prm", how=how)(node) == pytest.approx(HOWS[how])


@pytest.mark.parametrize("name", ["qwen2.5-math-prm", "rlhflow-deepseek", "skywork-o1"])
@pytest.mark.parametrize("empty", ["", "\n", " \n\n"])
async def test_an_empty_last_step_has_the_score_of_the_one_before(name, empty):
    judge = ProcessReward(backend=Numbers(), format=name)
    first, last, ended = await judge.score(chain("a\n\n", "b", empty))
    assert ended.score == last.score != first.score
    assert ended.steps == ()
    assert ended.usage.calls > 0


async def test_a_new_draft_begins_anew():
    root = Node(Task(QUESTION), State())
    draft = Node(root.task, State(done=True), root, 0, Step("a"))
    fresh = Node(root.task, State(), draft, 0, Step("b"))
    alone = Node(root.task, State(), root, 1, Step("b"))
    judge = ProcessReward(backend=Numbers(), format="qwen2.5-math-prm")
    one, other = await judge.score([fresh, alone])
    assert one == other


async def test_who_says_nothing_has_no_score():
    judge = ProcessReward(backend=Numbers(), format="trl")
    verdicts = await judge.score([Node(Task("?"), State()), *chain("", "\n", "x")])
    assert [isinstance(verdict, VerifierError) for verdict in verdicts] == [True] * 3 + [False]
    assert "no text" in verdicts[0].message


@pytest.mark.parametrize("number", [math.nan, math.inf])
async def test_a_number_that_is_none_fails_its_node_and_quotes_the_step(number):
    raw = {"read": {"kind": "value"}}
    judge = ProcessReward(backend=Told(0.5, number, 0.5), format=raw)
    good, bad = await judge.score([chain("a")[0], chain("a\n\nbad\n\nc")[0]])
    assert good.score == 0
    assert f"after the step 'bad' is {number}" in bad.message


async def test_a_failed_reading_fails_its_node_and_keeps_what_was_paid():
    wrong = BackendError("it does not fit", hint="shorten it", spent=ONE)
    model = Numbers(said={f"<user>{QUESTION} a<assistant>+<user>b": wrong})
    judge = ProcessReward(backend=model, format="rlhflow-deepseek")
    bad, good = await judge.score([chain("a\n\nb")[0], chain("a\n\nc")[0]])
    assert isinstance(bad, VerifierError)
    assert (bad.message, bad.hint) == (wrong.message, wrong.hint)
    assert bad.spent == ONE + ONE
    assert len(good.steps) == 2


async def test_an_outage_is_raised():
    text = f"<user>{QUESTION}a<extra_0>"
    model = Numbers(said={text: BackendError("wrong key", fatal=True)})
    judge = ProcessReward(backend=model, format={"like": "qwen2.5-math-prm", "system": ""})
    with pytest.raises(BackendError, match="wrong key"):
        await judge.score(chain("a"))


@pytest.mark.parametrize(
    ("model", "name", "words"),
    [
        (Numbers(labels=0), "skywork-o1", "no value head"),
        (Numbers(labels=0), "qwen2.5-math-prm", "no value head"),
        (Numbers(labels=1), "qwen2.5-math-prm", "has 1 labels"),
        (Numbers(words=False), "math-shepherd", "no probabilities of words"),
    ],
)
async def test_a_model_of_another_kind_is_a_fault_of_the_spec(model, name, words):
    with pytest.raises(SpecError, match=words):
        await ProcessReward(backend=model, format=name).score(chain("a"))


@pytest.mark.parametrize(("neutral_is", "score"), [("good", 0.7), ("bad", 0.6), (None, 0.7)])
async def test_neutral_steps_count_as_one_says(neutral_is, score):
    class Model:
        async def read(self, request, *, since=0, state=False, words=()):
            law = {" positive": 0.3, " negative": 0.15, " neutral": 0.05}
            return [Reading((1,), words=tuple(math.log(law[word]) for word in words))]

    read = {} if neutral_is is None else {"read": {"neutral_is": neutral_is}}
    judge = ProcessReward(backend=Model(), format={"like": "prm800k", **read})
    [verdict] = await judge.score(chain("a"))
    assert verdict.score == pytest.approx(score)


async def test_words_need_not_be_weighed_against_each_other():
    class Model:
        async def read(self, request, *, since=0, state=False, words=()):
            assert words == ("+", 5)
            return [Reading((1,), words=(math.log(0.3), math.log(0.1)))]

    table = {"read": {"kind": "words", "good": ["+", 5], "normalised": False}}
    [verdict] = await ProcessReward(backend=Model(), format=table).score(chain("a"))
    assert verdict.score == pytest.approx(0.4)


def test_formats_are_declared():
    table = {
        "chat": False,
        "question": "Q: {prompt}\n",
        "separator": ";",
        "step": "{number}) {step} #",
        "first": "A: {step} #",
        **PLAIN,
    }
    judge = ProcessReward(backend=Numbers(), format=table)
    assert judge.format.separator == ";"
    own = ProcessReward(backend=Numbers(), format={"like": "trl", "mark": "\n\n"}).format
    assert own == like("trl").model_copy(update={"mark": "\n\n"})
    words = {"kind": "words", "good": ["+"], "bad": ["-"]}
    other = ProcessReward(backend=Numbers(), format={"like": "trl", "read": words}).format
    assert other.read.good == ("+",)


async def test_texts_are_written_as_the_format_says():
    table = {"chat": False, "question": "Q: {prompt}\n", "separator": ";", **PLAIN}
    table |= {"first": "A: {step} #", "step": " {number}) {step} #", "mark": "|"}
    model = Numbers()
    await ProcessReward(backend=model, format=table).score(chain(" a{b} ;", "c;; d"))
    (one, _), (two, since) = sorted(model.asked, key=lambda asked: asked[1])
    assert (one.prompt, one.so_far) == (f"Q: {QUESTION}\n", "A: a{b} #|")
    assert [step.text for step in two.said] == ["A: a{b} #", "|", " 2) c #", "|", " 3) d #", "|"]
    assert since == 2
    model = Numbers()
    raw = {"strip": False, "separator": "\n", **PLAIN}
    await ProcessReward(backend=model, format=raw).score(chain(" a \n", "b"))
    last = max(model.asked, key=lambda asked: asked[1])[0]
    assert [step.text for step in last.said] == [" a \n", "b"]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("math-sheperd", "did you mean 'math-shepherd'"),
        ({"like": "x"}, "there is math-shepherd, prm800k"),
        ({"step": "{stp}", **PLAIN}, "`{step}` has to stand"),
        ({"question": "?", **PLAIN}, "`{prompt}` has to stand in `question`"),
        ({"reply": "+", **PLAIN}, "`{prompt}` has to stand in `first`"),
        ({"like": "rlhflow-mistral", "mark": "x"}, "without a `mark`"),
        ({"read": {"kind": "words", "good": ["+"]}}, "without `bad` words"),
        ({"like": "trl", "seperator": "x"}, "seperator"),
        ({}, "read"),
    ],
)
def test_what_a_format_cannot_say(table, words):
    with pytest.raises(ValidationError, match=words):
        ProcessReward(backend=Numbers(), format=table)


def test_a_format_may_be_a_file_beside_the_spec(tmp_path):
    shown = 'question = "{prompt}"\nstrip = false\nread = { kind = "value" }\n'
    (tmp_path / "own.toml").write_text(shown)
    (tmp_path / "like.toml").write_text('like = "trl"\nmark = "x"\n')
    (tmp_path / "bad.toml").write_text("question")

    def read(name):
        table = {"backend": Numbers(), "format": name}
        return ProcessReward.model_validate(table, context={"folder": tmp_path}).format

    own = read("own.toml")
    assert (own.strip, own.read.kind, read("like.toml").mark) == (False, "value", "x")
    assert own == ProcessReward(backend=Numbers(), format=str(tmp_path / "own.toml")).format
    with pytest.raises(ValidationError, match=r"cannot read .*none\.toml: No such file"):
        read("none.toml")
    with pytest.raises(ValidationError, match=r"bad\.toml: not a TOML file"):
        read("bad.toml")


def test_every_format_is_on_the_page():
    page = Path(__file__).parents[2] / "docs" / "verifiers" / "reward-models.md"
    text = page.read_text(encoding="utf-8")
    rows = {name: f"| {like(name).how} |" for name in formats()}
    for line in text.splitlines():
        for name in re.findall(r"`([^`]*)`", line.split("|")[1]) if line.startswith("| `") else ():
            assert line.endswith(rows.pop(name))
    assert not rows
