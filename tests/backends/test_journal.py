import json
import os
import stat

import anyio
import pytest
from worlds import Judge

from branchwise import (
    MCTS,
    BackendError,
    Beam,
    BestOfN,
    Chat,
    Journal,
    Message,
    Request,
    Sampling,
    Scripted,
    SpecError,
    Step,
    Usage,
    Writing,
    solve,
    to_json,
)

pytestmark = pytest.mark.anyio


def speaker(**more):
    return Scripted(lambda request, seed: f"{seed % 7}\n", **more)


async def test_a_recorded_search_is_regrown_without_the_model(tmp_path):
    async def grown(backend):
        answer = await solve(
            "?",
            policy=Chat(backend=backend, stop=("\n",)),
            controller=MCTS(simulations=5),
            environment=Writing(),
            verifier=Judge(),
        )
        return to_json(answer.root)

    model = speaker()
    first = await grown(Journal(tmp_path / "j", model))
    assert await grown(Journal(tmp_path / "j")) == first
    asked = len(model.requests)
    assert await grown(Journal(tmp_path / "j", model)) == first
    assert len(model.requests) == asked


async def test_samples_that_searches_have_in_common_are_paid_once(tmp_path):
    model = speaker()
    journal = Journal(tmp_path / "j", model)
    policy = Chat(backend=journal)
    for n in (4, 8, 2):
        await solve("?", policy=policy, controller=BestOfN(n=n), environment=Writing())
    assert [len(request.seeds) for request in model.requests] == [4, 4]


async def test_the_same_question_at_the_same_time_is_asked_once(tmp_path):
    go = anyio.Event()

    class Slow:
        name = "slow"
        calls = 0

        async def complete(self, request):
            Slow.calls += 1
            await go.wait()
            return [Step(f"{seed}") for seed in request.seeds]

    journal = Journal(tmp_path / "j", Slow())
    got = []

    async def ask(*seeds):
        got.append([s.text for s in await journal.complete(Request(prompt="?", seeds=seeds))])

    async with anyio.create_task_group() as group:
        group.start_soon(ask, 1, 2)
        group.start_soon(ask, 1, 2)
        await anyio.wait_all_tasks_blocked()
        go.set()
    assert got == [["1", "2"], ["1", "2"]]
    assert Slow.calls == 1


async def test_a_waiting_caller_asks_itself_where_the_first_one_fails(tmp_path):
    go = anyio.Event()
    calls = []

    class Once:
        name = "once"

        async def complete(self, request):
            calls.append(request)
            await go.wait()
            if len(calls) == 1:
                raise BackendError("broke")
            return [Step("x")]

    journal = Journal(tmp_path / "j", Once())
    outcomes = []

    async def ask():
        try:
            outcomes.append((await journal.complete(Request(prompt="?")))[0].text)
        except BackendError as error:
            outcomes.append(str(error))

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        group.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        go.set()
    assert sorted(outcomes) == ["broke", "x"]


BASE = Request(prompt="?")


@pytest.mark.parametrize(
    "other",
    [
        Request(prompt="!"),
        Request(messages=(Message("user", "?"),)),
        Request(tokens=(1, 2)),
        Request(prompt="?", said=(Step("so"),)),
        Request(prompt="?", said=(Step("so", tokens=(5,)),)),
        Request(prompt="?", seeds=(1,)),
        Request(prompt="?", sampling=Sampling(temperature=0.5)),
        Request(prompt="?", sampling=Sampling(top_p=0.5)),
        Request(prompt="?", stop=("x",)),
        Request(prompt="?", max_tokens=7),
        Request(prompt="?", logprobs=False),
        Request(prompt="?", schema={"type": "object"}),
    ],
)
async def test_whatever_could_change_the_answer_is_part_of_the_key(tmp_path, other):
    model = speaker()
    journal = Journal(tmp_path / "j", model)
    await journal.complete(BASE)
    await journal.complete(other)
    assert len(model.requests) == 2
    await Journal(tmp_path / "j", speaker(name="another model")).complete(BASE)


async def test_what_an_earlier_step_cost_is_no_part_of_it(tmp_path):
    model = speaker()
    journal = Journal(tmp_path / "j", model)
    await journal.complete(Request(prompt="?", said=(Step("so", usage=Usage(seconds=1)),)))
    await journal.complete(Request(prompt="?", said=(Step("so", usage=Usage(seconds=2)),)))
    assert len(model.requests) == 1


async def test_what_is_not_recorded_is_an_error_without_the_model(tmp_path):
    await Journal(tmp_path / "j", speaker()).complete(BASE)
    with pytest.raises(BackendError, match="holds no answer to '!' with seed 0"):
        await Journal(tmp_path / "j").complete(Request(prompt="!"))


async def test_an_answer_that_was_paid_for_is_kept_through_a_cancellation(tmp_path):
    class Cancelling:
        name = "c"

        async def complete(self, request):
            scope.cancel()
            return [Step("dear")]

    with anyio.CancelScope() as scope:
        await Journal(tmp_path / "j", Cancelling()).complete(BASE)
    assert (await Journal(tmp_path / "j").complete(BASE))[0].text == "dear"


async def test_a_torn_last_line_is_dropped_and_a_wrong_line_named(tmp_path):
    path = tmp_path / "j"
    await Journal(path, speaker()).complete(BASE)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:20])
    assert len(Journal(path).recorded) == 1
    Journal(path, speaker())
    assert path.read_bytes() == whole
    path.write_text(json.dumps({"key": 1}) + "\n")
    with pytest.raises(SpecError, match="line 1: not a record"):
        Journal(path)


async def test_an_empty_journal_cannot_be_replayed(tmp_path):
    with pytest.raises(SpecError, match="holds the answers of 0 models"):
        Journal(tmp_path / "none")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
async def test_a_journal_that_cannot_be_written_says_so(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(SpecError, match="cannot write the journal"):
        await Journal(tmp_path / "sub" / "j", speaker()).complete(BASE)


async def test_losers_of_an_early_winner_are_still_paid_for(tmp_path):
    """A search that is cut when a winner is found: the other samples are in the journal."""
    found = anyio.Event()

    class Watcher(Judge):
        async def score(self, nodes):
            found.set()
            return await super().score(nodes)

    journal = Journal(tmp_path / "j", speaker())
    async with anyio.create_task_group() as group:

        async def searching():
            await solve(
                "?",
                policy=Chat(backend=journal, stop=("\n",)),
                controller=Beam(width=2, fanout=2),
                environment=Writing(),
                verifier=Watcher(),
            )

        group.start_soon(searching)
        await found.wait()
        group.cancel_scope.cancel()
    assert len(Journal(tmp_path / "j").recorded) >= 4


class Half:
    """Fails for odd seeds, as a server that goes down between the samples of a request."""

    name = "half"
    asked = 0

    async def complete(self, request):
        self.asked += len(request.seeds)
        arrived = [None if seed % 2 else Step(f"{seed}") for seed in request.seeds]
        if None in arrived:
            raise BackendError("went down", arrived=arrived)
        return arrived


async def test_samples_that_arrived_before_a_failure_are_kept(tmp_path):
    model = Half()
    journal = Journal(tmp_path / "j", model)
    with pytest.raises(BackendError) as failed:
        await journal.complete(Request(prompt="?", seeds=(1, 2, 4)))
    assert [step and step.text for step in failed.value.arrived] == [None, "2", "4"]
    with pytest.raises(BackendError) as failed:
        await journal.complete(Request(prompt="?", seeds=(4, 3)))
    assert [step and step.text for step in failed.value.arrived] == ["4", None]
    assert model.asked == 4
    replayed = await Journal(tmp_path / "j").complete(Request(prompt="?", seeds=(4, 2)))
    assert [step.text for step in replayed] == ["4", "2"]


async def test_a_search_uses_the_samples_that_arrived(tmp_path):
    answer = await solve(
        "?", policy=Chat(backend=Half()), controller=BestOfN(n=8), environment=Writing()
    )
    failures = [child.failure for child in answer.root.children]
    assert len(failures) == 8
    assert set(failures) == {None, "went down"}
    assert int(answer.text) % 2 == 0
