"""A value head: its file, its numbers, and how it judges nodes."""

import json
import math

import pytest

np = pytest.importorskip("numpy")
safetensors = pytest.importorskip("safetensors.numpy")

from branchwise import Aggregate, Node, State, Step, Task  # noqa: E402  (after the check for numpy)
from branchwise.core.errors import BackendError, SpecError, VerifierError  # noqa: E402
from branchwise.core.types import Reading, Usage  # noqa: E402
from branchwise.verifiers.calibration import Platt  # noqa: E402
from branchwise.verifiers.head import About, Example, Head, load  # noqa: E402
from branchwise.verifiers.learned import Learned  # noqa: E402

pytestmark = pytest.mark.anyio


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def arrays(*values):
    return tuple(np.array(value, dtype="float64") for value in values)


def linear(**more):
    about = About(**{"model": "judge", "sizes": (2, 1), "how": "min"} | more)
    mean, scale, weight, bias = arrays([1, 0], [2, 1], [[1, -1]], [0.5])
    return Head(about, mean, scale, ((weight, bias),))


class Judge:
    """A model whose state is how many characters were said, and how many steps."""

    name = "judge"

    def __init__(self, error=None, state=True):
        self.asked, self.error, self.state = [], error, state

    async def read(self, request, *, since=0, state=False, words=()):
        self.asked.append((request, since, state))
        if self.error is not None:
            raise self.error
        texts = [step.text for step in request.said]
        return [
            Reading(
                (1,),
                state=(float(len("".join(texts[: i + 1]))), float(i)) if self.state else (),
                usage=Usage(prompt=1),
            )
            for i in range(since, len(texts))
        ]


def chance(characters, place):
    """What `linear` says of such a state."""
    return sigmoid((characters - 1) / 2 - place + 0.5)


def chain(*texts, done=()):
    node = Node(Task("2 + 2?"), State())
    for i, text in enumerate(texts):
        node = Node(node.task, State(done=i in done), node, 0, Step(text, tokens=(9, 9)))
    return node


@pytest.fixture
def path(tmp_path):
    linear().save(tmp_path / "head")
    return tmp_path / "head"


def test_a_head_is_its_formula():
    assert linear().probabilities([(3.0, 1.0), (1.0, 0.0)]) == pytest.approx([sigmoid(0.5)] * 2)
    cooled = linear(calibration=Platt(slope=0.5, bias=-1.0))
    assert cooled.probabilities([(3.0, 0.0)]) == pytest.approx([sigmoid(0.5 * 1.5 - 1)])
    mean, scale, first, bias, second, last = arrays(
        [0, 0], [1, 1], [[1, 0], [-1, 0]], [0, 1], [[2, 3]], [-1]
    )
    deep = Head(About(model="m", sizes=(2, 2, 1)), mean, scale, ((first, bias), (second, last)))
    # Hidden units: max(x, 0) and max(1 - x, 0).
    assert deep.logits([(3.0, 9.0), (-2.0, 9.0)]).tolist() == [2 * 3 - 1, 3 * 3 - 1]
    assert deep.logits([]).tolist() == []
    with pytest.raises(SpecError, match="states have 3 numbers, the head's 2"):
        deep.logits([(1.0, 2.0, 3.0)])


def test_a_head_is_saved_and_loaded(path):
    head = linear(shots=(Example(prompt="1 + 1?", reply="2"),), report={"auc": 0.9})
    head.save(path)
    again = load(path)
    assert again.about.model_copy(update={"digest": ""}) == head.about
    for name, tensor in head.tensors().items():
        assert (again.tensors()[name] == tensor).all()
    assert {file.name for file in path.iterdir()} == {"head.json", "head.safetensors"}


def changed(tensors, **more):
    tensors |= {name.replace("_", "."): np.array(value, "float64") for name, value in more.items()}
    return tensors


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("bias.0") is None or t, r"the tensor 'bias.0' is missing"),
        (lambda t: changed(t, weight_1=[[1.0]]), r"the tensor 'weight.1' is unknown"),
        (lambda t: changed(t, mean=[1.0]), r"'mean' has the shape \(1,\), not \(2,\)"),
        (lambda t: changed(t, weight_0=[[1.0, math.nan]]), r"'weight.0' holds what is no finite"),
        (lambda t: changed(t, scale=[1.0, 0.0]), r"'scale' holds what is not above 0"),
        (lambda t: changed(t, bias_0=[9.0]), r"not the tensors that head\.json is about"),
    ],
)
def test_wrong_tensors_are_refused_by_name(path, change, words):
    file = path / "head.safetensors"
    file.write_bytes(safetensors.save(change(safetensors.load(file.read_bytes()))))
    with pytest.raises(SpecError, match=rf"head\.safetensors: {words}"):
        load(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sizes": [2, 3, 4, 1]}, r"sizes: "),
        ({"calibration": {"kind": "platt", "slope": "NaN"}}, r"calibration.slope: .*finite"),
        ({"version": 2}, r"version: "),
        ({"how": "best"}, r"how: "),
        ({"colour": 1}, r"colour: "),
    ],
)
def test_a_wrong_card_is_refused_by_field(path, change, words):
    file = path / "head.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(SpecError, match=rf"head\.json: not a head: {words}"):
        load(path)


def test_files_that_are_no_head_are_refused(path, tmp_path):
    with pytest.raises(SpecError, match=r"nowhere.head\.json: cannot read the head: No such file"):
        load(tmp_path / "nowhere")
    (path / "head.safetensors").write_bytes(b"?" * 40)
    with pytest.raises(SpecError, match=r"head\.safetensors: not a file of tensors"):
        load(path)
    (path / "head.json").write_text("{")
    with pytest.raises(SpecError, match=r"head\.json: not a head: .*JSON"):
        load(path)


async def test_each_step_of_an_answer_is_judged(path):
    model = Judge()
    node = chain("ab\n\ncdef\n\ng")
    (verdict,) = await Learned(backend=model, path=path).score([node])
    expected = [chance(4, 0), chance(10, 1), chance(11, 2)]
    assert verdict.steps == pytest.approx(expected)
    assert verdict.score == pytest.approx(min(expected))
    assert verdict.usage == Usage(prompt=3)
    ((request, since, state),) = model.asked
    assert (since, state) == (0, True)
    assert [message.content for message in request.messages] == ["2 + 2?"]
    assert [(step.text, step.tokens) for step in request.said] == [
        ("ab\n\n", ()),
        ("cdef\n\n", ()),
        ("g", ()),
    ]


async def test_of_a_path_only_the_last_node_is_read(path):
    model = Judge()
    verifier = Learned(backend=model, path=path, how="last")
    node = chain("ab\n\n", "c\n\nd\n\n", "e")
    for one in node.lineage[1:]:
        one.judged(("head",), await verifier.score([one]))
    assert [since for _, since, _ in model.asked] == [0, 1, 3]
    assert [len(one.verdicts["head"].steps) for one in node.lineage[1:]] == [1, 2, 1]
    scores = [chance(4, 0), chance(7, 1), chance(10, 2), chance(11, 3)]
    assert node.parent.verdicts["head"].score == pytest.approx(scores[2])
    for how, expected in (("min", min(scores)), ("prod", math.prod(scores)), ("last", scores[3])):
        assert Aggregate(of="head", how=how)(node) == pytest.approx(expected)


async def test_an_earlier_draft_is_not_read(path):
    model = Judge()
    (verdict,) = await Learned(backend=model, path=path).score([chain("draft", "new", done={0})])
    assert [step.text for step in model.asked[0][0].said] == ["new"]
    assert verdict.score == pytest.approx(chance(3, 0))


async def test_a_node_without_text_has_the_score_of_the_step_above(path):
    verifier = Learned(backend=Judge(), path=path)
    said, silent = await verifier.score([chain("ab\n\nc"), chain("ab\n\nc", "")])
    assert silent.score == said.steps[-1]
    assert silent.steps == ()
    nothing, root = await verifier.score([chain(""), Node(Task("?"), State())])
    for error in (nothing, root):
        assert isinstance(error, VerifierError)
        assert "no text to judge" in str(error)


async def test_the_model_has_to_be_the_one_of_the_training(path, tmp_path):
    other = Judge()
    other.name = "another"
    for backend, name in ((other, "'another'"), (object(), "'object'")):
        verifier = Learned(backend=backend, path=path)
        with pytest.raises(SpecError, match=rf"head: .* trained on 'judge', .* model is {name}"):
            await verifier.score([chain("a")])
        with pytest.raises(SpecError, match="trained on 'judge'"):
            async with verifier.open():
                pass
    async with Learned(backend=Judge(), path=path).open() as live:
        assert live.reads
    with pytest.raises(SpecError, match="cannot read the head"):
        await Learned(backend=Judge(), path=tmp_path).score([chain("a")])


async def test_what_goes_wrong_with_a_node_stays_with_it(path):
    lost = Judge(BackendError("too long", spent=Usage(prompt=7)))
    (error,) = await Learned(backend=lost, path=path).score([chain("a")])
    assert isinstance(error, VerifierError)
    assert (error.message, error.spent) == ("too long", Usage(prompt=7))
    (error,) = await Learned(backend=Judge(state=False), path=path).score([chain("a")])
    assert "no state after each step" in str(error)
    assert error.spent == Usage(prompt=1)

    class Dizzy(Judge):
        async def read(self, request, **more):
            return [Reading((1,), state=(math.nan, 0.0), usage=Usage(prompt=1))]

    (error,) = await Learned(backend=Dizzy(), path=path).score([chain("a")])
    assert "holds what is no number" in str(error)
    gone = Learned(backend=Judge(BackendError("closed", fatal=True)), path=path)
    with pytest.raises(BackendError, match="closed"):
        await gone.score([chain("a")])


async def test_the_prompt_is_the_head_s(tmp_path):
    shots = (Example(prompt="1 + 1?", reply="2"),)
    linear(system="Judge.", template="Q: {prompt}", separator="|", shots=shots).save(tmp_path)
    model = Judge()
    (verdict,) = await Learned(backend=model, path=tmp_path).score([chain("a|b")])
    assert len(verdict.steps) == 2
    assert [(m.role, m.content) for m in model.asked[0][0].messages] == [
        ("system", "Judge."),
        ("user", "Q: 1 + 1?"),
        ("assistant", "2"),
        ("user", "Q: 2 + 2?"),
    ]
