"""Programs with faults, and a model that knows a fix for each thing that tests can say."""

import pytest

from branchwise.agents.chat import Chat
from branchwise.agents.reviser import Reviser
from branchwise.backends.scripted import Scripted
from branchwise.core.node import Node
from branchwise.core.types import State, Step, Task
from branchwise.environments.python_tests import PythonTests
from branchwise.sandbox.unconfined import Unconfined
from branchwise.search import Refine
from branchwise.solve import solve

pytestmark = pytest.mark.anyio


def program(body):
    return f"```python\n{body}\n```"


# Per task: its tests, and programs, each with a word that the tests say of it.
CORPUS = {
    "mean": (
        ["assert mean([1, 2, 3]) == 2", "assert mean([]) == 0"],
        [
            ("def mean(xs)\n    return sum(xs) / len(xs)", "SyntaxError"),
            ("def mean(xs):\n    return sum(xs) / len(xs)", "ZeroDivisionError"),
            ("def mean(xs):\n    return sum(xs) / max(1, len(xs))", "all 2"),
        ],
    ),
    "last": (
        ["assert last('abc') == 'c'", "assert last('') is None"],
        [
            ("def last(s):\n    return s[len(s)]", "IndexError"),
            ("def last(s):\n    return s[-1:]", "is None"),
            ("def last(s):\n    return s[-1] if s else None", "all 2"),
        ],
    ),
    "double": (
        ["assert double(2) == 4", "assert double('a') == 'aa'"],
        [
            ("def twice(x):\n    return 2 * x", "double"),
            ("def double(x):\n    return x ** 2", "TypeError"),
            ("def double(x):\n    return 2 * x", "all 2"),
        ],
    ),
}


def model(name, *, deaf=False):
    """Writes the first program, and after each reply to one the fix for what it says."""
    programs = CORPUS[name][1]

    def reply(request, seed):
        heard = [message.content for message in request.messages[1:] if message.role == "user"]
        drafts = [m.content for m in request.messages if m.role == "assistant"]
        assert len(heard) == len(drafts)
        if not drafts:
            return program(programs[0][0])
        place = [program(body) for body, _ in programs].index(drafts[-1])
        understood = not deaf and programs[place][1] in heard[-1]
        return program(programs[min(place + understood, len(programs) - 1)][0])

    return Scripted(reply)


async def debugged(name, rounds, *, deaf=False, **fields):
    tests, _ = CORPUS[name]
    backend = model(name, deaf=deaf)
    policies = {"policy": Chat(backend=backend), "revise": Reviser(backend=backend, **fields)}
    async with Unconfined().open() as sandbox:
        return await solve(
            Task(f"Write {name}.", meta={"tests": tests, "entry_point": name}),
            policy=policies,
            controller=Refine(rounds=rounds, enough=1.0),
            environment=PythonTests(sandbox=sandbox),
        )


@pytest.mark.parametrize("name", CORPUS)
async def test_feedback_of_tests_leads_to_the_fix(name):
    answer = await debugged(name, rounds=4)
    programs = [body for body, _ in CORPUS[name][1]]
    drafts = [node for node in answer.root.walk() if node.finished]
    assert [draft.state.answer.strip() for draft in drafts] == programs
    assert answer.node.state.reward == 1
    assert [draft.state.reward < 1 for draft in drafts] == [True, True, False]


async def test_without_the_rounds_or_without_listening_it_stays_broken():
    assert (await debugged("mean", rounds=1)).node.state.reward < 1
    assert (await debugged("mean", rounds=4, deaf=True)).node.state.reward < 1


async def test_a_reviser_with_a_short_memory_still_reads_the_last_word():
    answer = await debugged("last", rounds=4, memory=1)
    assert answer.node.state.reward == 1


async def test_it_reads_what_came_of_the_calls_that_ended_a_draft():
    reviser = Reviser(backend=Scripted(lambda request, seed: ""), revision="{feedback}")
    root = Node(Task("?"), State())
    ended = State(results=("submitted", "2 of 3 pass"), observation="over", done=True)
    draft = Node(root.task, ended, root, 0, Step("I hand it in."))
    assert reviser.request(draft, [1]).messages[-1].content == "submitted\n2 of 3 pass\nover"


async def test_a_prefill_begins_each_draft_as_the_model_reads_it():
    opened = Scripted(lambda request, seed: "def last(s):\n    return s\n```")
    policies = {
        "policy": Chat(backend=opened, prefill="Look:\n"),
        "revise": Reviser(backend=opened, prefill="Look:\n", revision="{feedback}"),
    }
    async with Unconfined().open() as sandbox:
        await solve(
            Task("Write last.", meta={"tests": CORPUS["last"][0], "entry_point": "last"}),
            policy=policies,
            controller=Refine(rounds=1),
            environment=PythonTests(sandbox=sandbox),
        )
    first, second = opened.requests
    assert first.so_far == second.so_far == "Look:\n"
    assert second.messages[1].content == "Look:\ndef last(s):\n    return s\n```"
