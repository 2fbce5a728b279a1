import json
import math
import random
from dataclasses import replace
from statistics import pvariance

import pytest
from pydantic import ValidationError

from branchwise.backends.journal import Journal
from branchwise.backends.scripted import Scripted
from branchwise.core.errors import BackendError, SpecError, VerifierError
from branchwise.core.node import Node
from branchwise.core.types import Candidate, Reading, State, Step, Task, Usage
from branchwise.environments.writing import Writing
from branchwise.search.best_of_n import BestOfN
from branchwise.solve import solve
from branchwise.verifiers import prompts
from branchwise.verifiers.chance import chances
from branchwise.verifiers.generative import GenRM, GenRMCoT

pytestmark = pytest.mark.anyio
SECRET = "the-target-42"
ROOT = Node(Task("What is {6 * 7}?", target=SECRET), State())
TOKEN = Usage(completion=1)
BOTH = {"Yes": 0.5, " Yes": 0.125, "No": 0.25}


def node(text="It is 42.", place=0):
    return Node(ROOT.task, State(done=True), ROOT, place, Step(text))


def next_token(law, **more):
    """A reply of one token, with the probabilities that candidates have."""
    known = sorted(law.items(), key=lambda entry: entry[1])  # not in the order of probability
    top = tuple(Candidate(i, text, math.log(p), None) for i, (text, p) in enumerate(known))
    return Step(max(law, key=law.get), finish="length", candidates=(top,), usage=TOKEN, **more)


def asking(law, **fields):
    """A verifier whose model expects that next."""
    reply = law if isinstance(law, Step) else next_token(law)
    return GenRM(backend=Scripted(lambda request, seed: reply), **fields)


class Reader(Scripted):
    """Reads, with these probabilities of words, and writes like `reply`."""

    def __init__(self, law, reply=None):
        super().__init__(reply or (lambda request, seed: pytest.fail("it reads")))
        self.law, self.read_ = law, []

    async def read(self, request, *, since=0, state=False, words=()):
        self.read_.append((request, since))
        known = tuple(math.log(self.law[w]) if w in self.law else -math.inf for w in words)
        return [Reading((), words=known, usage=Usage(calls=1, prompt=9))]


@pytest.mark.parametrize(
    ("law", "normalised", "score"),
    [
        ({"Yes": 0.5, "No": 0.25, "Well": 0.125}, False, 0.5),
        ({"Yes": 0.5, "No": 0.25, "Well": 0.125}, True, 0.5 / 0.75),
        (BOTH | {"yes": 0.0625, "NO": 0.03125}, False, 0.6875),
        (BOTH | {"yes": 0.0625, "NO": 0.03125}, True, 0.6875 / 0.96875),
        ({"Yes": 1.0}, True, 1.0),
        ({"No": 0.75, "Maybe": 0.25}, False, 0.0),
        ({"Yes": 0.25, "Yesterday": 0.5, "Nope": 0.125}, True, 1.0),
    ],
)
async def test_the_score_is_the_probability_of_yes(law, normalised, score):
    [verdict] = await asking(law, normalised=normalised).score([node()])
    assert verdict.score == pytest.approx(score, abs=1e-12)
    [read] = await GenRM(backend=Reader(law), normalised=normalised).score([node()])
    assert read.score == pytest.approx(score, abs=1e-12)


async def test_normalised_it_is_one_minus_the_probability_of_no():
    verifier = asking(BOTH, normalised=True)
    swapped = verifier.model_copy(update={"yes": verifier.no, "no": verifier.yes})
    [there], [back] = await verifier.score([node()]), await swapped.score([node()])
    assert there.score == pytest.approx(1 - back.score)


async def test_what_the_model_is_asked_and_what_it_costs():
    verifier = asking(BOTH, template="{prompt}|{answer}|{target}", system="S")
    [verdict] = await verifier.score([node("  4{prompt}2 \n")])
    [request] = verifier.backend.requests
    assert [(m.role, m.content) for m in request.messages] == [
        ("system", "S"),
        ("user", "What is {6 * 7}?|4{prompt}2|{target}"),
    ]
    assert (request.max_tokens, request.candidates, request.seeds) == (1, 20, (0,))
    assert request.sampling.applied == ()  # at temperature 1, so that all servers say the same
    assert verdict.usage == Usage(calls=1, prompt=5, completion=1)
    assert verdict.detail == "p(Yes) = 0.625, p(No) = 0.25"


async def test_without_a_chat_it_is_a_text_that_goes_on():
    verifier = asking(BOTH, chat=False)
    await verifier.score([node()])
    [request] = verifier.backend.requests
    assert request.prompt.endswith("Is the answer correct (Yes/No)?")
    assert "What is {6 * 7}?" in request.prompt
    assert "It is 42." in request.prompt
    with pytest.raises(ValidationError, match="no place for `system`"):
        GenRM(backend=verifier.backend, chat=False, system="S")


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (next_token({"The": 0.75, "**": 0.125}), r"probability 0; .* 'The' \(0.75\), '\*\*'"),
        (next_token({"The": 0.75, "Yes": 0.001}), r"probability 0.001; .* 'The' \(0.75\)"),
        (Step("Yes", usage=TOKEN), "no candidates .* said 'Yes' .*top_logprobs"),
        (Step("", candidates=((),), usage=TOKEN), "no candidates .* said ''"),
        (replace(next_token(BOTH), finish="filter"), "withheld"),
        (
            Step("", candidates=((Candidate(1, "Yes", math.nan, None),),), usage=TOKEN),
            "'Yes' the log-probability nan",
        ),
        (
            Step("", candidates=((Candidate(1, "No", 0.7, None),),), usage=TOKEN),
            "'No' the log-probability 0.7",
        ),
    ],
)
async def test_what_says_nothing_is_an_error_that_quotes_and_costs(reply, words):
    def shy(request, seed):
        return reply if "bad" in request.asked else next_token(BOTH)

    verifier = GenRM(backend=Scripted(shy))
    good, error = await verifier.score([node(), node("bad", 1)])
    assert good.score == 0.625
    assert isinstance(error, VerifierError)
    with pytest.raises(VerifierError, match=words):
        raise error
    assert (error.spent.calls, error.spent.completion) == (1, 1)


async def test_rounding_above_certainty_is_certainty():
    top = (Candidate(1, "Yes", 1e-6, None),)
    [verdict] = await asking(Step("Yes", candidates=(top,))).score([node()])
    assert verdict.score == 1.0


async def test_a_call_that_fails_spoils_no_sibling_and_a_fatal_one_ends_it():
    def broken(request, seed):
        if "bad" in request.asked:
            raise BackendError("gone", hint="wait", spent=Usage(calls=3))
        return next_token(BOTH)

    good, bad = await GenRM(backend=Scripted(broken)).score([node(), node("bad", 1)])
    assert good.score == 0.625
    assert (str(bad), bad.spent) == ("gone (wait)", Usage(calls=3))

    def spent(request, seed):
        raise BackendError("no money", fatal=True, status=402, arrived=[Step("", usage=TOKEN)])

    with pytest.raises(BackendError, match="no money") as said:
        await GenRM(backend=Scripted(spent)).score([node()])
    assert (said.value.fatal, said.value.status) == (True, 402)
    assert (said.value.arrived, said.value.spent) == ((), TOKEN)


async def test_a_model_that_reads_is_asked_for_the_words_alone():
    model = Reader(BOTH)
    [verdict] = await GenRM(backend=model).score([node()])
    assert verdict.usage == Usage(calls=1, prompt=9)
    assert [(len(request.messages), request.said, since) for request, since in model.read_] == [
        (1, (), 0)
    ]
    assert model.requests == []


def test_no_word_stands_for_both():
    with pytest.raises(ValidationError, match="'No' stands for yes and for no"):
        asking(BOTH, yes=("Yes", "No"))


async def test_where_reading_cannot_say_it_candidates_do():
    class Front(Reader):
        async def read(self, request, *, since=0, state=False, words=()):
            raise SpecError("behind is a server")

    class Mute(Reader):
        async def read(self, request, *, since=0, state=False, words=()):
            return []

    for kind in (Front, Mute):
        [verdict] = await GenRM(backend=kind({}, lambda r, s: next_token(BOTH))).score([node()])
        assert verdict.score == 0.625
    model = Reader({"Yes": 0.001}, lambda r, s: next_token({"Well": 0.5, "Yes": 0.001}))
    [error] = await GenRM(backend=model).score([node()])
    assert "'Well' (0.5)" in str(error)
    assert (error.spent.calls, error.spent.completion) == (2, 1)
    assert error.spent.prompt > 9


async def test_faults_of_reading_stay_with_the_node():
    class Bad(Reader):
        async def read(self, request, *, since=0, state=False, words=()):
            if "long" in request.asked:
                raise BackendError("too long", spent=TOKEN)
            if "fatal" in request.asked:
                raise BackendError("down", fatal=True)
            return [Reading((), words=(math.nan,) * len(words), usage=TOKEN)]

    verifier = GenRM(backend=Bad({}))
    long, strange = await verifier.score([node("long"), node("strange", 1)])
    assert (str(long), long.spent) == ("too long", TOKEN)
    assert "'Yes' the log-probability nan" in str(strange)
    assert strange.spent == TOKEN
    with pytest.raises(BackendError, match="down"):
        await verifier.score([node(), node("fatal", 1)])


THOUGHTS = {0: ("fine", 0.75), 1: ("doubtful", 0.25), 2: ("hopeless", 0.125)}


class Thinker(Scripted):
    """Thinks by the seed, and believes what it thought."""

    def __init__(self, thought=lambda seed: THOUGHTS[seed % 3][0]):
        super().__init__(self.answer)
        self.thought = thought

    def answer(self, request, seed):
        if not request.candidates:
            return self.thought(seed)
        said = request.so_far or "".join(m.content for m in request.messages)
        [p] = [p for text, p in THOUGHTS.values() if text in said]
        return next_token({"Yes": p, "No": 1 - p})


async def test_the_score_is_the_mean_over_the_rationales():
    model = Thinker()
    verifier = GenRMCoT(backend=model, samples=5, max_tokens=77, stop=("END",))
    [verdict] = await verifier.score([node()])
    first = model.requests[0]
    assert (len(set(first.seeds)), first.max_tokens, first.stop) == (5, 77, ("END",))
    expected = [THOUGHTS[seed % 3] for seed in first.seeds]
    assert verdict.score == pytest.approx(sum(p for _, p in expected) / 5)
    assert verdict.feedback == min(expected, key=lambda one: one[1])[0]
    assert verdict.detail.startswith("mean of 5: ")
    assert verdict.usage.calls == 6
    assert verdict.usage.completion == 5 + 5  # each rationale is one word here
    again = GenRMCoT(backend=Thinker(), samples=5)
    assert [one.score for one in await again.score([node()])] == [verdict.score]


@pytest.mark.parametrize("chat", [True, False])
async def test_the_word_is_asked_for_after_the_rationale(chat):
    model = Thinker(lambda seed: "fine\n")
    verifier = GenRMCoT(
        backend=model, samples=1, chat=chat, template="Q {answer}", verdict="V {prompt}"
    )
    await verifier.score([node("42")])
    asked = model.requests[1]
    if chat:
        assert [(m.role, m.content) for m in asked.messages] == [
            ("user", "Q 42"),
            ("assistant", "fine"),
            ("user", "V What is {6 * 7}?"),
        ]
    else:
        assert asked.prompt + asked.so_far == "Q 42\n\nfine\n\nV What is {6 * 7}?"
        assert all(not step.tokens for step in asked.said)


async def test_a_rationale_that_leads_nowhere_is_left_out_and_counted():
    def thought(seed):
        kinds = [
            "fine",
            Step("fine, then", finish="length", usage=Usage(completion=7)),
            Step("", finish="filter"),
            " \n",
            "strange",
            "hopeless",
        ]
        return kinds[order.setdefault(seed, len(order))]

    order = {}
    model = Thinker(thought)
    answer = model.answer

    def reply(request, seed):
        last = "".join(m.content for m in request.messages)
        return next_token({"Hm": 0.9}) if "strange" in last else answer(request, seed)

    model.reply = reply
    [verdict] = await GenRMCoT(backend=model, samples=6).score([node()])
    assert verdict.score == (0.75 + 0.125) / 2
    assert verdict.feedback == "hopeless"
    assert verdict.detail.startswith("mean of 2: 0.75, 0.125; 4 left out, the first: ")
    assert "was cut short: it ends with 'fine, then'" in verdict.detail
    # Six rationales in one call, of 1 + 7 + 0 + 2 + 1 + 1 tokens, and three calls of a token.
    assert (verdict.usage.calls, verdict.usage.completion) == (4, 12 + 3)


async def test_without_a_rationale_there_is_no_verdict():
    cut = Step("Let me see", finish="length", usage=Usage(completion=3))
    good, error = await GenRMCoT(
        backend=Scripted(
            lambda request, seed: (
                cut
                if "bad" in request.asked
                else next_token(BOTH)
                if request.candidates
                else "It is so."
            )
        ),
        samples=3,
    ).score([node(), node("bad", 1)])
    assert good.score == 0.625
    assert "none of 3 led to a verdict" in str(error)
    assert "'Let me see'" in str(error)
    assert "`max_tokens`" in str(error)
    assert (error.spent.calls, error.spent.completion) == (1, 9)


async def test_rationales_that_arrived_count_where_others_failed():
    class Half(Thinker):
        async def complete(self, request):
            steps = await super().complete(request)
            if len(steps) == 1:
                return steps
            raise BackendError("line", arrived=[None, *steps[1:]], spent=Usage(dollars=0.5))

    model = Half()
    [verdict] = await GenRMCoT(backend=model, samples=3).score([node()])
    kept = [THOUGHTS[seed % 3][1] for seed in model.requests[0].seeds[1:]]
    assert verdict.score == pytest.approx(sum(kept) / 2)
    assert "1 left out, the first: line" in verdict.detail
    assert verdict.usage.dollars == 0.5
    assert verdict.usage.completion == 2 + 2


async def test_a_fatal_error_after_the_rationales_says_what_they_cost():
    def broke(request, seed):
        if request.candidates:
            raise BackendError("quota", fatal=True)
        return "I think so."

    with pytest.raises(BackendError, match="quota") as said:
        await GenRMCoT(backend=Scripted(broke), samples=4).score([node()])
    assert said.value.spent.completion == 4 * 3


async def test_the_variance_falls_with_the_number_of_rationales():
    def thought(seed):
        return random.Random(seed).choices(["fine", "doubtful", "hopeless"], [5, 3, 2])[0]

    mean = 0.5 * 0.75 + 0.3 * 0.25 + 0.2 * 0.125
    variance = 0.5 * 0.75**2 + 0.3 * 0.25**2 + 0.2 * 0.125**2 - mean**2
    nodes = [node(place=i) for i in range(150)]
    for k in (1, 8):
        verdicts = await GenRMCoT(backend=Thinker(thought), samples=k).score(nodes)
        scores = [verdict.score for verdict in verdicts]
        # Four standard errors of the mean; of a variance, whose own is about sqrt(2 / 150).
        assert sum(scores) / 150 == pytest.approx(mean, abs=4 * math.sqrt(variance / k / 150))
        assert pvariance(scores) == pytest.approx(variance / k, rel=0.46)


async def test_a_journal_replays_it_and_further_rationales_cost_only_themselves(tmp_path):
    live = Journal(tmp_path / "journal", model := Thinker())
    nodes = [node(), node("It is 41.", 1)]
    first = await GenRMCoT(backend=live, samples=2).score(nodes)
    asked = sum(len(request.seeds) for request in model.requests if not request.candidates)
    await GenRMCoT(backend=live, samples=3).score(nodes)
    thought = sum(len(request.seeds) for request in model.requests if not request.candidates)
    assert (asked, thought) == (4, 6)
    assert await GenRMCoT(backend=Journal(tmp_path / "journal"), samples=2).score(nodes) == first


@pytest.mark.parametrize("kind", [GenRM, GenRMCoT])
async def test_a_search_finds_the_answer_and_nobody_sees_the_target(kind):
    class Policy:
        async def propose(self, parent, seeds):
            return [Step(f"It is {i}.", finish="end") for i in (41, 42, 43)]

    def judge(request, seed):
        text = "".join(message.content for message in request.messages)
        if not request.candidates:
            return "It looks good to me."
        if "It is 43." in text:
            return next_token({"Hm": 1.0})
        p = 0.75 if "It is 42." in text else 0.25
        return next_token({"Yes": p, "No": 1 - p})

    model = Scripted(judge)
    answer = await solve(
        ROOT.task,
        policy=Policy(),
        controller=BestOfN(n=3),
        environment=Writing(),
        verifier=kind(backend=model),
    )
    assert answer.value == "It is 42."
    wrong, right, strange = answer.root.children
    assert (wrong.score, right.score) == pytest.approx((0.25, 0.75))
    assert "'Hm' (1)" in strange.failure
    assert strange.lost.completion > 0
    assert model.requests
    assert SECRET not in repr(model.requests)


def test_the_configuration_holds_its_prompts_but_no_model():
    for kind in (GenRM, GenRMCoT):
        verifier = kind(backend=Thinker(), normalised=True)
        dumped = json.loads(verifier.model_dump_json())
        assert "backend" not in dumped
        assert "{prompt}" in dumped["template"]
        assert kind(backend=verifier.backend, **dumped) == verifier


def test_a_template_is_found_by_its_name():
    assert prompts.template("genrm").startswith("Check the answer")
    with pytest.raises(SpecError, match=r"no template 'genrn' \(did you mean 'genrm'\?\)"):
        prompts.template("genrn")


async def test_any_words_have_chances():
    model = Scripted(lambda r, s: next_token({"1": 0.5, " 2": 0.25, "3": 0.125}))
    found = await chances(model, GenRM(backend=model).request(node()), [("1",), ("2", " 2")])
    assert found.of == pytest.approx((0.5, 0.25))
    assert found.shares == pytest.approx((2 / 3, 1 / 3))
