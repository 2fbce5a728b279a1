import pytest

from branchwise.agents.code_act import CodeAct
from branchwise.backends.scripted import Scripted
from branchwise.core.node import Node
from branchwise.core.types import Message, State, Step, Task
from branchwise.environments.python_repl import PythonREPL, fenced
from branchwise.sandbox.unconfined import Unconfined
from branchwise.search import BestFirst, Rollout
from branchwise.solve import solve

pytestmark = pytest.mark.anyio
ROOT = Node(Task("What is 6 * 7?"), State())
SILENT = Scripted(lambda request, seed: "")
CODE = "Let me see.\n```python\nprint(6 * 7)\n```"


def after(text, observation="42", **fields):
    step = Step(text)
    node = Node(ROOT.task, State(observation=observation), ROOT, 0, step)
    return CodeAct(backend=SILENT, **fields).request(node, [1]).messages[2:]


def test_output_is_an_answer_of_the_user():
    assert after(f"{CODE}\n") == (Message("assistant", CODE), Message("user", "Output:\n42"))
    assert after(CODE, output="<out>{output}</out>")[-1].content == "<out>42</out>"


def test_what_follows_the_last_block_is_made_up():
    assert after(f"{CODE}\nOutput:\n```\n41\n```\nSo it is 41.")[0].content == CODE
    two = f"{CODE}\nand\n~~~py\n1\n~~~"
    assert after(f"{two}\nSo it is 1.")[0].content == two  # the world runs both


def test_words_stay_as_they_are():
    assert after("Is it 42?", "Yes.")[0].content == "Is it 42?"


@pytest.mark.parametrize(
    ("text", "finish", "read"),
    [
        (f"{CODE}\n", "stop", "stop"),
        (CODE, "end", "end"),
        ("The answer is 42.", "end", "end"),
        ("Let me see.\n```\n", "stop", "length"),
        ("Let me see.\n```python\n1", "end", "end"),
        ("Let me see.\n```python\n1", "length", "length"),
    ],
)
def test_a_reply_that_ends_at_an_opening_fence_is_cut_short(text, finish, read):
    step = CodeAct(backend=SILENT).read(Step(text, finish=finish), ROOT)
    assert step == Step(text, finish=read)


class Notes:
    """A world that runs nothing, and tells how much code it has been given."""

    instant = True

    async def reset(self, task):
        return State(snapshot=[])

    async def step(self, state, action):
        code = fenced(action.text)
        if code is None:
            return State(state.snapshot, done=True, answer=action.text)
        notes = [*state.snapshot, code]
        return State(notes, observation=f"{len(notes)} pieces")


async def test_a_model_writes_one_piece_at_a_time():
    def reply(request, seed):
        if request.messages[-1].content == "Output:\n2 pieces":
            return "Done."
        return f"{CODE}\nOutput: 41\n{CODE}\n"

    model = Scripted(reply)
    policy = CodeAct(backend=model, system="Be brief.")
    answer = await solve(ROOT.task, policy=policy, controller=Rollout(), environment=Notes())
    assert answer.value == "Done."
    assert answer.node.state.snapshot == ["print(6 * 7)\n"] * 2
    system, question, *turns = model.requests[-1].messages
    assert system.content.startswith("Be brief.\n\nSolve the task with Python")
    assert question == Message("user", "What is 6 * 7?")
    assert turns == [
        Message("assistant", CODE),
        Message("user", "Output:\n1 pieces"),
        Message("assistant", CODE),
        Message("user", "Output:\n2 pieces"),
    ]


@pytest.mark.parametrize("controller", [Rollout(), BestFirst(fanout=2, expansions=5, enough=1.0)])
async def test_a_real_interpreter_answers_on_every_branch(controller):
    def reply(request, seed):
        heard = [m.content for m in request.messages[2:] if m.role == "user"]
        if not heard:
            return f"```python\nx = {seed % 2}\nprint('x is', x)\n```\nOutput: 9"
        said = request.messages[2].content
        assert heard[0] == f"Output:\nx is {said[said.index('=') + 2]}"  # of its own branch
        if len(heard) == 1:
            return "```python\nx + 41\n```"
        return f"The answer is {heard[1].removeprefix('Output:').strip()}."

    policy = CodeAct(backend=Scripted(reply))
    async with Unconfined().open() as sandbox, PythonREPL(sandbox=sandbox).open() as world:
        answer = await solve("?", policy=policy, controller=controller, environment=world)
    assert answer.value in {"41", "42"}
    assert not [node for node in answer.root.walk() if node.failure]


def test_the_configuration_survives_a_table():
    policy = CodeAct(backend=SILENT, output="{output}", max_tokens=9)
    assert CodeAct(backend=SILENT, **policy.model_dump()) == policy
