import random

import pytest

from branchwise import MBR, Node, SpecError, State, Task
from branchwise.core.errors import VerifierError
from branchwise.sandbox.bubblewrap import Bubblewrap
from branchwise.sandbox.ran import Ran
from branchwise.search.cluster import Cluster
from branchwise.search.dual_agreement import DualAgreement
from branchwise.search.utility import Agreement, Match
from branchwise.verifiers.behaviour import Behaviour, mutation
from branchwise.verifiers.unit_tests import UnitTests

pytestmark = pytest.mark.anyio
SHOWN = "f(1) == 1, f(2) == 4, f(3) == 9"
HIDDEN = "import math\nassert f(4) == 16\nassert math.isclose(f(5), 25)\nassert f(-1) == 1"
TASK = Task(SHOWN, HIDDEN, {"entry_point": "f"})
SQUARES = [
    "def f(x): return x * x",
    "def f(x): return x ** 2",
    "def f(x): return sum([x] * x) if x > 0 else x * x",
]
WRONG = [
    "def f(x): return x",
    "def f(x): return 1",
    "def f(x): return f(x)",
    "def f(x: return",
    "import os\nos._exit(0)",
]


@pytest.fixture
async def sandbox():
    opened = Bubblewrap().open()
    try:
        live = await opened.__aenter__()
    except SpecError as error:
        pytest.skip(f"no sandbox: {error}")
    yield live
    await opened.__aexit__(None, None, None)


class Gone:
    async def run(self, *_, **__):
        return Ran("exited", 127, b"", b"no python")


def grown(programs, task=TASK):
    root = Node(task, State())
    root.adopt(
        [Node(task, State(done=True, answer=each), root, i) for i, each in enumerate(programs)]
    )
    return root


async def judged(judge, root, name="tests"):
    for node, verdict in zip(root.children, await judge.score(root.children), strict=True):
        node.judged((name,), [verdict])
        node.score = verdict.score
    return root.children


async def test_the_hidden_tests_grade_all_or_nothing(sandbox):
    nodes = await judged(UnitTests(sandbox=sandbox), grown([*SQUARES, *WRONG, None]))
    assert [node.score for node in nodes] == [1.0] * 3 + [0.0] * 6
    assert [node.first_verdict.detail for node in nodes] == ["111"] * 3 + [
        "000",
        "001",
        "EEE",
        "EEE",
        "XXX",
        "no answer",
    ]
    assert nodes[3].first_verdict.feedback.splitlines()[0] == "f(4) returned 4, expected 16"


async def test_a_share_of_the_public_tests(sandbox):
    nodes = await judged(
        UnitTests(sandbox=sandbox, of="public", all=False), grown([*SQUARES[:1], *WRONG[:2]])
    )
    assert [node.score for node in nodes] == [1.0, 1 / 3, 1 / 3]
    assert [node.first_verdict.detail for node in nodes] == ["111", "100", "100"]


@pytest.mark.parametrize(
    ("judge", "task", "message"),
    [
        (UnitTests(sandbox=Gone()), TASK.hidden(), "no target"),
        (UnitTests(sandbox=Gone()), Task("?", " "), "holds no tests"),
        (UnitTests(sandbox=Gone(), of="public"), Task("?"), "no public tests"),
        (UnitTests(sandbox=Gone()), TASK, "did not run: no python"),
        (Behaviour(sandbox=Gone()), TASK, "did not run: no python"),
    ],
)
async def test_what_cannot_be_judged_is_an_error_and_not_wrong(judge, task, message):
    (verdict,) = await judge.score([Node(task, State(answer="x = 1"))])
    assert isinstance(verdict, VerifierError)
    assert message in verdict.message


async def test_without_inputs_there_is_nothing_to_compare():
    (verdict,) = await Behaviour(sandbox=Gone()).score([Node(Task("?"), State(answer="x = 1"))])
    assert (verdict.score, verdict.detail) == (0.0, "")


async def test_the_behaviour_is_what_is_returned(sandbox):
    nodes = await judged(Behaviour(sandbox=sandbox, mutations=2), grown([*SQUARES, *WRONG, None]))
    details = [node.first_verdict.detail for node in nodes]
    inputs = [int(call[2:-1]) for call in Behaviour(sandbox=sandbox, mutations=2).inputs(TASK)]
    assert len(set(inputs)) == 5
    assert details[:3] == ["\n".join(str(x * x) for x in inputs)] * 3
    assert details[3] == "\n".join(map(str, inputs))
    assert details[5:] == ["", "", "", ""]
    partly = await judged(Behaviour(sandbox=sandbox), grown(["def f(x): return 2 // (x - 1)"]))
    assert partly[0].first_verdict.detail == "!ZeroDivisionError\n2\n1"
    assert partly[0].score == 2 / 3


async def test_mbr_over_behaviours_takes_what_most_programs_do(sandbox):
    root = grown([*WRONG, *SQUARES, WRONG[1]])
    await judged(Behaviour(sandbox=sandbox, mutations=2), root, "does")
    assert MBR(utility=Match(of="does"))(root).state.answer in SQUARES
    assert [len(group) for group in Cluster(behaviour="does").clusters(root)] == [3, 2, 1]
    marks = grown([*WRONG, *SQUARES, "def f(x): return x * x if x < 3 else 0"])
    await judged(Behaviour(sandbox=sandbox, form="marks"), marks, "does")
    assert MBR(utility=Agreement(of="does"))(marks).state.answer in SQUARES
    texts = [node.first_verdict.detail for node in marks.children]
    assert Agreement(of="does").between(texts[5], texts[8]) == 2 / 3


async def test_dual_agreement_over_tests_that_may_be_wrong(sandbox):
    generated = [
        "assert f(1) == 1",
        "assert f(2) == 4",
        "assert f(2) == 2",
        "assert f(3) == 9",
        "assert f(",
        "assert f(3) == 6",
    ]
    root = grown([*WRONG, *SQUARES], Task("?", meta={"tests": generated, "entry_point": "f"}))
    await judged(UnitTests(sandbox=sandbox, of="public", all=False), root)
    assert root.children[-1].first_verdict.detail == "1101E0".replace("01E", "01E")
    assert DualAgreement(tests="tests")(root).state.answer in SQUARES


def test_inputs_are_the_calls_of_the_tests_and_their_mutations():
    tests = [
        "assert g([1, 2], 'ab', k=3) == 3",
        "p = P(1)\nassert abs(g(p) - 1) < 2",
        "assert not g((1, {2: None}), True)",
    ]
    judge = Behaviour(sandbox=None, mutations=20, seed=1)
    inputs = judge.inputs(Task("?", meta={"tests": tests, "entry_point": "g"}))
    assert inputs[:3] == ["g([1, 2], 'ab', k=3)", "p = P(1)\ng(p)", "g((1, {2: None}), True)"]
    assert len(inputs) == len(set(inputs)) == 23
    assert inputs == judge.inputs(Task("?", meta={"tests": tests, "entry_point": "g"}))
    other = Behaviour(sandbox=None, mutations=20, seed=2)
    assert inputs != other.inputs(Task("?", meta={"tests": tests, "entry_point": "g"}))
    assert judge.inputs(Task("?", meta={"tests": ["assert len(h(3)) == 3"]}))[0] == "h(3)"


@pytest.mark.parametrize(
    "value", [True, 3, 2.5, "abc", [1, [2]], (1, "x"), {1, 2}, {"a": [1]}, None, "", [], {}, b"x"]
)
def test_a_mutation_keeps_the_type(value):
    chance = random.Random(0)
    before = repr(value)
    mutants = [mutation(value, chance) for _ in range(50)]
    assert {type(each) for each in mutants} == {type(value)}
    assert repr(value) == before
    assert (len({repr(each) for each in mutants}) > 1) == bool(value and value != b"x")
