"""The OpenAI backend against a server nobody here wrote: llama.cpp's."""

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
import pytest_asyncio

from branchwise.backends.models import gguf
from branchwise.backends.openai import OpenAI
from branchwise.core.config import Sampling
from branchwise.core.errors import BackendError, SpecError
from branchwise.core.types import Message, Request, Step

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.skipif(
        importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp is not installed"
    ),
]

GREEDY = Sampling(temperature=0)
STORY = (Message("system", "You are a poet."), Message("user", "Tell me of a lighthouse."))
SERVER = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.port, params.n_parallel, params.n_ctx = 0, 4, 4096
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
print("READY", server.listening_address, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def model():
    given = os.environ.get("BRANCHWISE_TEST_GGUF")
    try:
        return Path(given) if given else gguf("smollm2-135m-instruct")
    except (BackendError, SpecError) as error:
        pytest.skip(f"no model to serve: {error}")


@pytest.fixture(scope="module")
def url(model):
    command = [sys.executable, "-c", SERVER, str(model)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        ready = next((line for line in server.stdout if line.startswith("READY ")), "")
        assert ready, "the server did not start"
        yield ready.split()[1] + "/v1"
        server.kill()


@pytest_asyncio.fixture
async def backend(url):
    async with OpenAI(model="smollm2", base_url=url).open() as opened:
        yield opened


def ask(**fields):
    given = {} if {"prompt", "tokens"} & fields.keys() else {"messages": STORY}
    return Request(**{**given, "max_tokens": 12, **fields})


def text(steps):
    return [step.text for step in steps]


async def test_samples_differ_by_seed_and_repeat_by_seed(backend):
    first = await backend.complete(ask(seeds=(11, 22, 33)))
    again = await backend.complete(ask(seeds=(11, 22, 33)))
    assert text(first) == text(again)
    assert len(set(text(first))) == 3
    # A large seed is a seed, and not a request for a random one.
    large = [await backend.complete(ask(seeds=(2**48 - 1,))) for _ in range(2)]
    assert text(large[0]) == text(large[1])


async def test_usage_adds_up(backend):
    steps = await backend.complete(ask(seeds=(1, 2)))
    assert [step.usage.calls for step in steps] == [1, 0]
    assert steps[0].usage.prompt + steps[0].usage.cached > 10
    for step in steps:
        assert step.usage.completion == len(step.logprobs)


async def test_greedy_logprobs_are_those_of_the_likeliest_tokens(backend):
    (step,) = await backend.complete(ask(sampling=GREEDY))
    assert len(step.logprobs) == len(step.tokens) == 12
    assert step.logprob == pytest.approx(math.fsum(step.logprobs))
    assert all(-20 < logprob <= 0 for logprob in step.logprobs)
    assert step.finish == "length"


async def test_a_stop_string_is_part_of_the_text(backend):
    steps = await backend.complete(ask(stop=("a",), seeds=(1, 2, 3), max_tokens=64))
    for step in steps:
        assert step.finish == "stop"
        assert step.text.count("a") == 1
        assert step.text.endswith("a")


async def test_the_models_end_is_told_from_a_stop_string(backend):
    question = (Message("user", "Say hello."),)
    ask_one = ask(messages=question, stop=("\n\n\n",), sampling=GREEDY, max_tokens=64)
    (step,) = await backend.complete(ask_one)
    assert step.finish == "end"
    assert not step.text.endswith("\n")


async def test_a_schema_is_followed(backend):
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["yes", "no"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    (chat,) = await backend.complete(ask(schema=schema, max_tokens=32))
    (plain,) = await backend.complete(ask(prompt="JSON:", schema=schema, max_tokens=32))
    for step in (chat, plain):
        assert "".join(step.text.split()) in {'{"a":"yes"}', '{"a":"no"}'}


async def test_an_answer_is_continued_where_it_stops(backend):
    assert backend.continuation == "continue_final_message"
    (whole,) = await backend.complete(ask(sampling=GREEDY, max_tokens=16))
    (half,) = await backend.complete(ask(sampling=GREEDY, max_tokens=8))
    (rest,) = await backend.complete(ask(sampling=GREEDY, max_tokens=8, said=(half,)))
    assert half.text + rest.text == whole.text


async def test_a_completion_continues_like_the_chat(url):
    spec = OpenAI(model="smollm2", base_url=url, continuation="completions")
    async with spec.open() as plain:
        (whole,) = await plain.complete(ask(sampling=GREEDY, max_tokens=16))
        half = Step(whole.text[: whole.text.index(" ", 8)])
        (rest,) = await plain.complete(ask(sampling=GREEDY, max_tokens=30, said=(half,)))
    assert (half.text + rest.text).startswith(whole.text)


async def test_tokens_are_a_prompt(backend):
    (step,) = await backend.complete(ask(prompt="One, two, three,", sampling=GREEDY))
    (again,) = await backend.complete(ask(tokens=step.tokens[:4], sampling=GREEDY))
    assert again.usage.prompt + again.usage.cached == 4
    (further,) = await backend.complete(ask(tokens=step.tokens[:4], said=(again,)))
    assert further.usage.prompt + further.usage.cached == 4 + len(again.tokens)


async def test_a_prompt_beyond_the_context_is_refused_with_a_hint(backend):
    with pytest.raises(BackendError, match="shorten") as caught:
        await backend.complete(ask(prompt="word " * 5000))
    assert (caught.value.status, caught.value.fatal) == (400, False)


async def test_the_server_stops_when_requests_are_cancelled(backend):
    """All slots are taken by endless answers; were they not freed, the last request would wait."""
    endless = ask(prompt="Once", max_tokens=100_000, seeds=(1,), stop=("never said",))
    with anyio.move_on_after(0.3):
        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(backend.complete, endless)
    with anyio.fail_after(5):
        (step,) = await backend.complete(ask(max_tokens=4))
    assert step.text
    assert backend.notes == []
