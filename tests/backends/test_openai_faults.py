"""Endpoints that misbehave: what is tried again, what is not, and what the caller reads."""

import asyncio

import anyio
import pytest
from hostile import (
    GREEDY,
    Jump,
    chat,
    completion,
    refuse,
    request,
    script,
    serving,
    spec_of,
    talking,
)

from branchwise.backends.journal import Journal
from branchwise.backends.openai import OpenAI, connected
from branchwise.core.errors import BackendError

pytestmark = pytest.mark.asyncio


async def failing(answer, **fields):
    """The error of one request to a server, and how often it was tried."""
    async with talking(answer, **fields) as (server, backend):
        with pytest.raises(BackendError) as caught:
            await backend.complete(request())
    assert "\n" not in str(caught.value)
    return caught.value, len(server.asked)


@pytest.mark.parametrize(
    ("told", "waited"),
    [("7", 7.25), ("1m30s", 90.25), ("inf", 0.25), ("-1", 0.25), ("1e400", 0.25)],
)
async def test_waits_as_told_before_it_tries_again(told, waited):
    jump = Jump()
    busy = refuse(429, headers={"retry-after": told})
    async with talking(script(busy, chat("a")), clock=jump.clock) as (_, backend):
        (step,) = await backend.complete(request())
    assert step.text == "a"
    # What is slept for the endpoint's rest comes on top of the request's own pause.
    assert jump.sleeps[0] == pytest.approx(waited)
    assert sum(jump.sleeps) <= waited + 1.5


async def test_a_rate_limit_that_speaks_of_billing_is_no_spent_quota():
    busy = refuse(429, "Rate limit reached. See https://x/account/billing", code="rate_limit")
    async with talking(script(busy, chat("a"))) as (_, backend):
        (step,) = await backend.complete(request())
    assert step.text == "a"


async def test_does_not_wait_past_the_deadline():
    jump = Jump()
    busy = refuse(429, "slow down", headers={"retry-after": "89"})
    error, tries = await failing(busy, clock=jump.clock, deadline=200)
    assert (error.status, error.fatal, tries) == (429, False, 3)
    assert 89 <= sum(jump.sleeps) <= 200


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 529])
async def test_passing_failures_are_tried_again(status):
    async with talking(script(refuse(status), refuse(status), chat("a"))) as (server, backend):
        (step,) = await backend.complete(request())
    assert (step.text, len(server.asked)) == ("a", 3)


@pytest.mark.parametrize(
    ("status", "error", "fatal", "hint"),
    [
        (429, {"code": "insufficient_quota"}, True, "quota"),
        (401, {}, True, "OPENAI_API_KEY"),
        (403, {}, True, "may not use"),
        (404, {"message": "The model `m` does not exist."}, True, "correct `model`"),
        (404, {"message": "Not Found"}, False, "/v1"),
        (400, {"code": "context_length_exceeded"}, False, "shorten"),
        (400, {"message": "exceeds the available context size"}, False, "shorten"),
        (422, {"message": "bad temperature"}, False, ""),
        (501, {}, False, ""),
    ],
)
async def test_lasting_refusals_are_not_tried_again(status, error, fatal, hint):
    found, tries = await failing(refuse(status, **{"message": "no", **error}))
    assert (found.status, found.fatal, tries) == (status, fatal, 1)
    assert hint in found.hint


async def test_a_server_may_forbid_another_try():
    _, tries = await failing(refuse(503, headers={"x-should-retry": "false"}))
    assert tries == 1


async def test_a_wrong_key_shows_at_opening():
    async def models(asked):
        await asked.refuse(401, "bad key")

    async with serving(models) as server:
        spec = spec_of(server, continuation="auto")
        with pytest.raises(BackendError, match="401") as caught:
            async with connected(spec):
                pass
    assert caught.value.fatal


async def test_nobody_there_is_said_at_once():
    async with serving(chat("a")) as server:
        pass
    with pytest.raises(BackendError, match="no connection to http") as caught:
        async with OpenAI(model="m", base_url=server.url).open():
            pass
    assert "start the server" in caught.value.hint


async def test_an_unknown_host_is_said_at_once():
    with pytest.raises(BackendError, match=r"no connection to http://nowhere\.invalid/v1"):
        async with OpenAI(model="m", base_url="http://nowhere.invalid/v1", connect=1).open():
            pass


async def test_a_server_that_goes_away_is_waited_for_until_the_deadline():
    jump = Jump()
    async with talking(chat("a"), clock=jump.clock, deadline=60) as (server, backend):
        await backend.complete(request())
        await server.stop()
        with pytest.raises(BackendError, match=r"no connection|broke"):
            await backend.complete(request())
        assert 20 < sum(jump.sleeps) <= 60
        await server.start()
        (step,) = await backend.complete(request())
    assert step.text == "a"


# -- connections that break or stall


async def reset_at_once(asked):
    asked.reset()


async def reset_in_the_head(asked):
    await asked.write(b"HTTP/1.1 200 OK\r\ncontent-ty")
    asked.reset()


async def reset_in_the_body(asked):
    await asked.head(1000)
    await asked.write(b'{"choices": [')
    asked.reset()


async def hang_before_the_head(asked):
    await asked.gone()


async def hang_after_the_head(asked):
    await asked.head(1000)
    await asked.gone()


async def stall_in_the_body(asked):
    await asked.head(1000)
    await asked.write(b'{"choices": [{"text": "par')
    await asked.gone()


async def drip(asked):
    await asked.head(1_000_000)
    while True:
        await asked.write(b" ")
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    "answer",
    [
        reset_at_once,
        reset_in_the_head,
        reset_in_the_body,
        hang_before_the_head,
        hang_after_the_head,
        stall_in_the_body,
        drip,
    ],
)
async def test_a_broken_try_is_made_again(answer):
    limits = {"idle": 0.3, "attempt": 0.8}
    async with talking(script(answer, chat("whole")), **limits) as (server, backend):
        (step,) = await backend.complete(request())
        assert (step.text, len(server.asked)) == ("whole", 2)
    # Only what has nothing to time out may still be at it.
    assert server.running == 0 or answer is drip


async def test_silence_ends_in_an_error_that_names_the_limits():
    error, _ = await failing(hang_before_the_head, idle=0.05, deadline=2)
    assert "`idle`" in error.hint


# -- replies that are no completions


def body(data, kind="application/json"):
    return lambda asked: asked.reply(data, kind=kind)


MALFORMED = [
    body(b"<html>welcome</html>", kind="text/html"),
    body(b'{"choices": [{"mess'),
    body({"choices": []}),
    body({"object": "error", "message": "x"}),
    body(b"\xff\xfe"),
    body({"error": {"message": "upstream"}}),
]


@pytest.mark.parametrize("answer", MALFORMED)
async def test_malformed_replies_are_tried_three_times(answer):
    error, tries = await failing(answer)
    assert tries == 3
    assert "malformed reply from http://127.0.0.1" in error.message
    assert "/v1" in error.hint


@pytest.mark.parametrize("answer", MALFORMED)
async def test_a_malformed_reply_may_be_an_accident(answer):
    async with talking(script(answer, chat("a"))) as (_, backend):
        (step,) = await backend.complete(request())
    assert step.text == "a"


@pytest.mark.parametrize(
    "reply",
    [
        completion(None),
        completion("", usage=None, id=None, created="x", object=5, extra={"deep": []}),
        {"choices": [{"message": {"content": None}}], "usage": {}},
        {"choices": [{"text": ""}], "usage": {"prompt_tokens": None}},
    ],
)
async def test_sparse_replies_are_tolerated(reply):
    async with talking(body(reply)) as (server, backend):
        (step,) = await backend.complete(request())
    assert (step.text, step.finish, len(server.asked)) == ("", "end", 1)
    assert step.usage.calls == 1


# -- what was paid for is kept where one of several calls fails


def by_seed(failures):
    """One sample a call, named after its seed; some seeds fail."""

    async def answer(asked):
        seed = asked.body["seed"]
        await (failures[seed](asked) if seed in failures else asked.chat(f"s{seed}"))

    return answer


async def arrived(backend, **fields):
    with pytest.raises(BackendError) as caught:
        await backend.complete(request(**{"seeds": (1, 2, 3, 4, 5), **fields}))
    return caught.value, [step and step.text for step in caught.value.arrived]


@pytest.mark.parametrize("sampling", [{}, {"sampling": GREEDY}])
@pytest.mark.parametrize("status", [400, 500])
async def test_one_seed_fails_and_the_others_arrive(status, sampling):
    """Whether the calls are one for each seed from the start, or top up what is missing."""
    failing_seed = by_seed({3: refuse(status)})
    async with talking(failing_seed, deadline=60) as (server, backend):
        error, texts = await arrived(backend, **sampling)
    assert (error.status, error.fatal) == (status, False)
    assert texts == ["s1", "s2", None, "s4", "s5"]
    seeds = [body["seed"] for body in server.bodies]
    assert [seeds.count(seed) for seed in (1, 2, 4, 5)] == [1, 1, 1, 1]
    assert seeds.count(3) == 1 if status == 400 else seeds.count(3) > 3


async def test_a_call_that_brings_some_is_kept_where_the_rest_fails():
    async def two_at_once(asked):
        if asked.body["seed"] == 1:
            await asked.chat("a", "b", usage=(10, 2))
        else:
            await asked.refuse(400)

    async with talking(two_at_once) as (_, backend):
        error, texts = await arrived(backend)
    assert texts == ["a", "b", None, None, None]
    assert (error.arrived[0].usage.calls, error.arrived[0].usage.prompt) == (1, 10)


async def test_the_error_names_the_first_failure():
    late = asyncio.Event()

    async def second(asked):
        await late.wait()
        await asked.refuse(400, "second")

    async def first(asked):
        await asked.refuse(422, "first")
        late.set()

    async with talking(by_seed({2: second, 5: first})) as (_, backend):
        error, texts = await arrived(backend, sampling=GREEDY)
    assert "first" in error.message
    assert texts == ["s1", None, "s3", "s4", None]


async def test_where_all_calls_fail_nothing_has_arrived():
    async with talking(refuse(400)) as (server, backend):
        _, texts = await arrived(backend, sampling=GREEDY)
    assert texts == [None] * 5
    assert len(server.asked) == 5


async def test_nothing_is_sent_after_a_fatal_failure():
    spent = refuse(429, code="insufficient_quota")
    async with talking(by_seed({2: spent}), connections=1) as (server, backend):
        error, texts = await arrived(backend, sampling=GREEDY)
    assert error.fatal
    assert texts == ["s1", None, None, None, None]
    assert [body["seed"] for body in server.bodies] == [1, 2]


async def test_calls_under_way_are_answered_after_a_fatal_failure():
    """It is also the one that is raised, though another failed before."""
    others, refused = asyncio.Event(), asyncio.Event()

    async def fatal(asked):
        await others.wait()
        await asked.refuse(401, "bad key")
        refused.set()

    async def failed_before(asked):
        await asked.refuse(400)
        others.set()

    async def slow(asked):
        await refused.wait()
        for _ in range(100):  # turns of the loop, in which the client reads the refusal
            await asyncio.sleep(0)
        await asked.chat("slow")

    async def busy(asked):
        await refused.wait()
        await asked.refuse(503)

    answers = by_seed({1: slow, 2: fatal, 4: failed_before, 5: busy})
    async with talking(answers) as (server, backend):
        error, texts = await arrived(backend, sampling=GREEDY)
    assert (error.status, error.fatal) == (401, True)
    assert texts == ["slow", None, "s3", None, None]
    assert len(server.asked) == 5


async def test_a_journal_asks_again_only_for_what_is_missing(tmp_path):
    broken = {4: refuse(400)}
    async with talking(by_seed(broken)) as (server, backend):
        journal = Journal(tmp_path / "journal.jsonl", backend)
        _, texts = await arrived(journal, sampling=GREEDY)
        assert texts == ["s1", "s2", "s3", None, "s5"]
        before = len(server.asked)
        broken.clear()
        steps = await journal.complete(request(seeds=(1, 2, 3, 4, 5), sampling=GREEDY))
    assert [step.text for step in steps] == ["s1", "s2", "s3", "s4", "s5"]
    assert [body["seed"] for body in server.bodies[before:]] == [4]


# -- several endpoints


async def test_load_moves_from_a_dead_endpoint_without_a_pause():
    jump = Jump()
    async with (
        serving(chat("dead")) as dead,
        serving(chat("alive")) as alive,
        connected(spec_of(dead, alive), jump.clock) as backend,
    ):
        await dead.stop()
        for _ in range(20):
            (step,) = await backend.complete(request())
            assert step.text == "alive"
        assert jump.sleeps == []
        assert (len(dead.asked), len(alive.asked)) == (0, 20)
        # It comes back once it has rested.
        await dead.start()
        jump.time += 100
        texts = {(await backend.complete(request()))[0].text for _ in range(2)}
        assert "dead" in texts


async def test_a_missing_endpoint_does_not_keep_the_others_from_opening():
    async with serving(chat("dead")) as dead:
        pass
    async with serving(chat("alive")) as alive, connected(spec_of(dead, alive)) as backend:
        (step,) = await backend.complete(request())
        assert step.text == "alive"
    assert "the other endpoints take its load" in backend.notes[0]


async def test_an_endpoint_rests_after_failures_in_a_row():
    jump = Jump()
    async with (
        serving(refuse(500)) as ill,
        serving(chat("well")) as well,
        connected(spec_of(ill, well), jump.clock) as backend,
    ):
        for _ in range(30):
            await backend.complete(request())
    assert len(ill.asked) == 3
    assert len(well.asked) == 30


async def test_a_slow_endpoint_holds_nobody_up():
    slow_ones = asyncio.Event()

    async def slow(asked):
        await slow_ones.wait()
        await asked.chat("slow")

    async with (
        serving(slow) as one,
        serving(chat("quick")) as other,
        connected(spec_of(one, other, connections=2)) as backend,
    ):
        done = []

        async def ask():
            done.append((await backend.complete(request()))[0].text)
            if len(done) == 18:
                slow_ones.set()

        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                for _ in range(20):
                    group.start_soon(ask)
    assert done[:18] == ["quick"] * 18
