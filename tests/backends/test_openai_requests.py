"""What is sent, what comes back, and what servers do differently."""

import pytest
from hostile import (
    GREEDY,
    HELLO,
    chat,
    completion,
    refuse,
    request,
    script,
    serving,
    spec_of,
    talking,
)

from branchwise.backends.openai import connected
from branchwise.backends.remote.call import Template
from branchwise.core.config import Sampling
from branchwise.core.errors import BackendError, SpecError
from branchwise.core.types import Backend, Message, Step, Tool, ToolCall

pytestmark = pytest.mark.asyncio


def by_seed(asked):
    first, n = asked.body["seed"], asked.body.get("n", 1)
    return asked.chat(*(f"s{first}.{i}" for i in range(n)))


async def test_asks_once_for_all_seeds():
    async with talking(by_seed) as (server, backend):
        steps = await backend.complete(request(seeds=(7, 8, 9), stop=("#", ";")))
    assert isinstance(backend, Backend)
    assert backend.name == "openai:m:prompt"
    assert [step.text for step in steps] == ["s7.0", "s7.1", "s7.2"]
    (body,) = server.bodies
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "Say hello."}],
        "n": 3,
        "seed": 7,
        "temperature": 1.0,
        "top_p": 1.0,
        "max_tokens": 8,
        "stop": ["#", ";"],
    }


async def test_greedy_samples_are_asked_for_one_by_one():
    async with talking(by_seed) as (server, backend):
        await backend.complete(request(seeds=(7, 8), sampling=GREEDY))
    assert [body.get("n", 1) for body in server.bodies] == [1, 1]


async def test_usage_of_a_call_counts_once():
    reply = completion("abcdef", "abc", usage=(10, 9))
    reply["usage"]["prompt_tokens_details"] = {"cached_tokens": 4}
    prices = {"prompt": 1, "cached": 0.5, "completion": 2}
    async with talking(lambda asked: asked.reply(reply), prices=prices) as (_, backend):
        first, second = [s.usage for s in await backend.complete(request(seeds=(1, 2)))]
    assert (first.calls, first.prompt, first.cached, first.completion) == (1, 6, 4, 6)
    assert (second.calls, second.prompt, second.cached, second.completion) == (0, 0, 0, 3)
    assert first.dollars + second.dollars == pytest.approx((6 + 2 + 18) / 1e6)


async def test_tops_up_where_n_is_ignored_and_says_so_once():
    async def one(asked):
        await asked.chat(f"s{asked.body['seed']}")

    async with talking(one) as (server, backend):
        for _ in range(2):
            steps = await backend.complete(request(seeds=(3, 4, 5)))
            assert [step.text for step in steps] == ["s3", "s4", "s5"]
        assert sum(step.usage.calls for step in steps) == 3
    assert [body.get("n", 1) for body in server.bodies] == [3, 1, 1, 1, 1, 1]
    assert backend.notes == ["the server ignores `n`: samples are asked for one by one"]


@pytest.mark.parametrize("refuses", [True, False])
async def test_learns_how_many_samples_a_call_may_have(refuses):
    async def few(asked):
        first, n = asked.body["seed"], asked.body.get("n", 1)
        if n > 2 and refuses:
            await asked.refuse(400, f"Field 'n': Value must be between 1 and 2, but got {n}")
        else:
            await asked.chat(*(f"s{first}.{i}" for i in range(min(n, 2))))

    async with talking(few) as (server, backend):
        for _ in range(2):
            steps = await backend.complete(request(seeds=(1, 2, 3, 4, 5)))
            assert [step.text for step in steps] == ["s1.0", "s1.1", "s3.0", "s3.1", "s5.0"]
    assert [body.get("n", 1) for body in server.bodies[:2]] == [5, 2]
    assert len(server.asked) == (7 if refuses else 6)
    assert len(backend.notes) == 1


async def test_drops_samples_beyond_n():
    async with talking(chat("a", "b", "c")) as (_, backend):
        steps = await backend.complete(request(seeds=(1, 2)))
    assert [step.text for step in steps] == ["a", "b"]
    assert len(backend.notes) == 1


async def test_sorts_choices_by_index():
    reply = completion("a", "b")
    reply["choices"].reverse()
    async with talking(lambda asked: asked.reply(reply)) as (_, backend):
        steps = await backend.complete(request(seeds=(1, 2)))
    assert [step.text for step in steps] == ["a", "b"]


async def test_large_seeds_fit_a_servers_field():
    async with talking(chat("a")) as (server, backend):
        await backend.complete(request(seeds=(2**48 - 1,)))
    assert server.bodies[0]["seed"] == 2**31 - 1


@pytest.mark.parametrize(
    ("owner", "top_k", "expected"),
    [
        ("nobody", 0, {}),
        ("vllm", 5, {"top_k": 5, "min_p": 0.0}),
        ("vllm", 0, {"top_k": -1, "min_p": 0.0}),
    ],
)
async def test_says_the_whole_sampling_where_servers_have_defaults(owner, top_k, expected):
    async with talking(chat("a"), owner=owner) as (server, backend):
        await backend.complete(request(sampling=Sampling(top_k=top_k)))
    assert {k: v for k, v in server.bodies[0].items() if k in {"top_k", "min_p"}} == expected


async def test_logprobs_of_a_chat():
    content = [
        {"token": "4", "logprob": -0.5, "bytes": [52], "id": 36},
        {"token": "!", "logprob": -1.5, "bytes": [33], "id": 2},
    ]
    reply = completion("4!", usage=(1, 2))
    reply["choices"][0]["logprobs"] = {"content": content}
    async with talking(lambda asked: asked.reply(reply)) as (server, backend):
        (step,) = await backend.complete(request(logprobs=True))
    assert (step.logprob, step.logprobs, step.tokens) == (-2.0, (-0.5, -1.5), (36, 2))
    assert server.bodies[0]["logprobs"] is True


async def test_logprobs_of_a_completion():
    choice = {"text": "4!", "finish_reason": "length", "index": 0}
    choice["logprobs"] = {"tokens": ["4", "!"], "token_logprobs": [-0.5, -1.5]}
    reply = {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
    async with talking(lambda asked: asked.reply(reply)) as (server, backend):
        (step,) = await backend.complete(request(prompt="2+2=", logprobs=True))
    assert (step.text, step.logprob, step.finish) == ("4!", -2.0, "length")
    assert server.asked[0].path == "/completions"
    assert server.bodies[0]["prompt"] == "2+2="


async def test_missing_logprobs_are_noted_once():
    async with talking(chat("a")) as (_, backend):
        for _ in range(2):
            (step,) = await backend.complete(request(logprobs=True))
    assert step.logprob is None
    assert backend.notes == ["the server gives no log-probabilities"]


async def test_tokens_as_prompt_go_on_with_tokens():
    async with talking(chat("a")) as (server, backend):
        said = (Step("x", tokens=(3, 4)),)
        await backend.complete(request(tokens=(1, 2), said=said))
        with pytest.raises(BackendError, match="steps that carry tokens"):
            await backend.complete(request(tokens=(1, 2), said=(Step("x"),)))
    assert [body["prompt"] for body in server.bodies] == [[1, 2, 3, 4]]


async def test_tool_calls():
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    reply = completion(None)
    reply["choices"][0]["message"]["tool_calls"] = [call]
    history = (
        *HELLO,
        Message("assistant", "", tool_calls=(ToolCall("c0", "add", "{}"),)),
        Message("tool", "3", tool_call_id="c0"),
    )
    async with talking(lambda asked: asked.reply(reply)) as (server, backend):
        tools = (Tool("add", "adds", {"type": "object"}),)
        (step,) = await backend.complete(request(messages=history, tools=tools))
    assert (step.text, step.finish) == ("", "tools")
    assert step.tool_calls == (ToolCall("c1", "add", '{"a": 1}'),)
    (body,) = server.bodies
    assert body["tools"][0]["function"]["name"] == "add"
    assert body["messages"][1]["tool_calls"][0]["function"] == {"name": "add", "arguments": "{}"}
    assert body["messages"][2] == {"role": "tool", "content": "3", "tool_call_id": "c0"}


async def test_schema():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    async with talking(chat('{"a": 1}')) as (server, backend):
        await backend.complete(request(schema=schema))
        with pytest.raises(SpecError, match="cannot be continued"):
            await backend.complete(request(schema=schema, said=(Step("{"),)))
    (body,) = server.bodies
    assert body["response_format"]["json_schema"]["schema"] == schema


@pytest.mark.parametrize(
    ("finish", "expected"),
    [
        ("stop", "end"),
        ("length", "length"),
        ("content_filter", "filter"),
        (None, "end"),
        ("whatever", "end"),
    ],
)
async def test_finish_reasons_without_stop_strings(finish, expected):
    async with talking(chat("a", finish=finish)) as (_, backend):
        (step,) = await backend.complete(request())
    assert step.finish == expected


async def test_vllm_says_what_ended_a_sample():
    reply = completion("a\n", "b")
    reply["choices"][0]["stop_reason"] = "\n"
    reply["choices"][1]["stop_reason"] = None
    async with talking(lambda asked: asked.reply(reply), owner="vllm") as (server, backend):
        steps = await backend.complete(request(stop=("\n",), seeds=(1, 2)))
    assert [(step.text, step.finish) for step in steps] == [("a\n", "stop"), ("b", "end")]
    assert server.bodies[0]["include_stop_str_in_output"] is True


async def test_llama_cpp_is_asked_one_by_one_for_what_ended_a_sample():
    words = {1: "\n", 2: ""}

    async def answer(asked):
        word = words[asked.body["seed"]]
        verbose = {"stop_type": "word" if word else "eos", "stopping_word": word}
        await asked.chat("a", __verbose=verbose)

    async with talking(answer, owner="llamacpp") as (server, backend):
        steps = await backend.complete(request(stop=("\n",), seeds=(1, 2)))
        await backend.complete(request(seeds=(1, 2)))
    assert [(step.text, step.finish) for step in steps] == [("a\n", "stop"), ("a", "end")]
    assert [body.get("n") for body in server.bodies][:3] == [None, None, 2]


async def test_unheeded_stop_strings_are_heeded_here():
    async with talking(chat("one\ntwo")) as (_, backend):
        (step,) = await backend.complete(request(stop=("\n",)))
    assert (step.text, step.finish) == ("one\n", "stop")
    assert len(backend.notes) == 1


async def test_usage_is_estimated_where_it_is_missing():
    async with talking(chat("a" * 40, usage=None)) as (_, backend):
        (step,) = await backend.complete(request())
    assert (step.usage.calls, step.usage.prompt, step.usage.completion) == (1, 2, 10)
    assert "estimates" in backend.notes[0]


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
async def test_reasoning_stays_out_of_the_text(field):
    reply = completion(None, finish="length")
    reply["choices"][0]["message"][field] = "hm"
    async with talking(lambda asked: asked.reply(reply)) as (_, backend):
        (step,) = await backend.complete(request())
    assert (step.text, step.finish) == ("", "length")
    assert len(backend.notes) == 1


async def test_leaves_out_what_the_server_refuses():
    async def picky(asked):
        if "max_tokens" in asked.body:
            await asked.refuse(400, "'max_tokens' is not supported: use 'max_completion_tokens'")
        elif "logprobs" in asked.body:
            await asked.refuse(400, "not for this model", param="logprobs")
        elif asked.body.get("n", 1) > 1:
            await asked.refuse(422, "unsupported parameter: 'n'")
        else:
            await asked.chat(f"s{asked.body['seed']}")

    async with talking(picky) as (server, backend):
        for _ in range(2):
            steps = await backend.complete(request(seeds=(1, 2), logprobs=True))
            assert [step.text for step in steps] == ["s1", "s2"]
    assert server.bodies[-1]["max_completion_tokens"] == 8
    assert len(backend.notes) == 4


async def test_a_change_of_the_model_is_noted():
    async with talking(
        script(
            chat("a", system_fingerprint="1"),
            chat("a", system_fingerprint="2"),
            chat("a", model="other"),
        )
    ) as (server, backend):
        for _ in range(4):
            await backend.complete(request())
    assert backend.notes == [
        f"{server.url} changed its fingerprint: answers before and after may differ",
        f"{server.url} now serves 'other' instead of 'm'",
    ]


# -- continuing an answer


def continuing(asked, *, honest=True, echo=False):
    """A model that goes on where it is cut, if the server lets it."""
    body = asked.body
    if asked.path == "/completions":
        so_far, goes_on = body["prompt"].rpartition("assistant\n")[2], True
    else:
        last = body["messages"][-1]
        so_far = last["content"] if last["role"] == "assistant" else ""
        goes_on = honest and bool(so_far)
    rest = {"nes": "day", ", 1": "0"}.get(so_far[-3:], " and on") if goes_on else "Hello!"
    text = so_far + rest if echo and goes_on else rest
    if asked.path == "/completions":
        choice = {"text": text, "finish_reason": "stop", "index": 0}
        return asked.reply({"choices": [choice], "usage": {"prompt_tokens": len(body["prompt"])}})
    size = len(Template().render([Message(m["role"], m["content"]) for m in body["messages"]]))
    return asked.chat(text, usage=(size, 1))


async def asked_to_go_on(answer, **fields):
    async with talking(answer, continuation="auto", **fields) as (server, backend):
        before = len(server.asked)
        (step,) = await backend.complete(request(said=(Step("I say"),)))
        return backend, step, server.asked[before:]


@pytest.mark.parametrize("echo", [False, True])
async def test_continues_through_the_chat(echo):
    backend, step, (asked,) = await asked_to_go_on(lambda a: continuing(a, echo=echo))
    assert backend.continuation == "continue_final_message"
    assert step.text == " and on"
    assert asked.body["messages"][-1] == {"role": "assistant", "content": "I say"}
    assert asked.body["add_generation_prompt"] is False


async def test_a_continuation_may_begin_like_the_answer():
    """Only a server that repeats the answer has it taken off."""

    async def stutter(asked):
        so_far = asked.body["messages"][-1]["content"]
        await (asked.chat("ha ha") if so_far == "ha" else continuing(asked))

    async with talking(stutter, continuation="auto") as (_, backend):
        (step,) = await backend.complete(request(said=(Step("ha"),)))
    assert step.text == "ha ha"


async def test_continues_as_a_completion_where_the_template_fits():
    backend, step, (asked,) = await asked_to_go_on(lambda a: continuing(a, honest=False))
    assert backend.continuation == "completions"
    assert step.text == " and on"
    assert asked.body["prompt"].endswith("<|im_start|>assistant\nI say")


async def test_asks_to_go_on_where_the_template_does_not_fit():
    async def other(asked):
        if asked.path == "/completions":
            await continuing(asked)
        else:
            await asked.chat("Hello!", usage=(77, 1))

    backend, _, (asked,) = await asked_to_go_on(other)
    assert backend.continuation == "prompt"
    assert [m["role"] for m in asked.body["messages"]] == ["user", "assistant", "user"]
    assert "cannot continue" in backend.notes[-1]


async def test_a_given_template_needs_no_comparison():
    async def llama(asked):
        if asked.path == "/completions":
            so_far = asked.body["prompt"].rpartition("]")[2]
            rest = {"nes": "day", ", 1": "0"}.get(so_far[-3:], "!")
            await asked.reply({"choices": [{"text": rest, "finish_reason": "stop"}]})
        else:
            await asked.refuse(400, "unknown field")

    template = {"before": "[{role}]", "after": ""}
    backend, step, (asked,) = await asked_to_go_on(llama, template=template)
    assert backend.continuation == "completions"
    assert step.text == "!"
    assert asked.body["prompt"] == "[user]Say hello.[assistant]I say"
    assert backend.name.startswith("openai:m:completions:")


async def test_asks_to_go_on_where_there_is_only_a_chat():
    async def only_chat(asked):
        if asked.path == "/completions":
            await asked.refuse(404, "no such path")
        else:
            await asked.chat("Hello!")

    backend, _, _ = await asked_to_go_on(only_chat)
    assert backend.continuation == "prompt"


async def test_a_named_mode_must_be_true():
    async with serving(chat("Hello!")) as server:
        spec = spec_of(server, continuation="continue_final_message")
        with pytest.raises(BackendError, match="does not continue"):
            async with connected(spec):
                pass


async def test_the_key_reaches_the_server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "from-env")
    async with talking(chat("a")) as (server, backend):
        await backend.complete(request())
    assert server.asked[0].headers["authorization"] == "bearer from-env"


# -- whether seeds are heeded


def dice(draw):
    """A server that continues answers; what it says to anything else is drawn."""

    async def answer(asked):
        if asked.body["messages"][-1]["role"] == "assistant":
            await continuing(asked)
        else:
            await draw(asked)

    return answer


async def told_of_seeds(draw, **fields):
    async with talking(dice(draw), **{"continuation": "auto", **fields}) as (server, backend):
        assert backend.continuation == "continue_final_message"
        await backend.complete(request())
        return [note for note in backend.notes if "seed" in note], len(server.asked)


@pytest.mark.parametrize("continuation", ["auto", "continue_final_message"])
async def test_a_server_that_ignores_seeds_is_told_of_once(continuation):
    texts = map(str, range(100))
    notes, _ = await told_of_seeds(lambda asked: asked.chat(next(texts)), continuation=continuation)
    assert notes == ["the server ignores seeds: equal calls differ; a journal still replays"]


async def test_a_server_that_heeds_seeds_is_not_told_of():
    notes, asked = await told_of_seeds(lambda asked: asked.chat(f"s{asked.body['seed']}"))
    assert notes == []
    assert asked == 2 + 2 + 1  # how it continues, whether it heeds seeds, and the request


async def test_a_server_that_refuses_seeds_is_told_of_for_that_alone():
    texts = map(str, range(100))

    async def no_seeds(asked):
        if "seed" in asked.body:
            await asked.refuse(400, "unknown field", param="seed")
        else:
            await (continuing if len(asked.body["messages"]) > 2 else one)(asked)

    async def one(asked):
        await asked.chat(next(texts))

    async with talking(no_seeds, continuation="auto") as (_, backend):
        pass
    assert backend.notes == ["the server refuses `seed`: it is left out"]


@pytest.mark.parametrize("status", [400, 413, 500])
@pytest.mark.parametrize("both", [True, False])
async def test_a_server_that_fails_the_question_opens_all_the_same(status, both):
    answers = script(*[refuse(status)] * (40 if both else 1), chat("a"))
    async with talking(dice(answers), continuation="auto", deadline=5) as (_, backend):
        assert backend.continuation == "continue_final_message"
    assert backend.notes == []


async def test_a_key_that_is_spent_at_the_question_ends_the_opening():
    async with serving(dice(refuse(429, code="insufficient_quota"))) as server:
        with pytest.raises(BackendError, match="429") as caught:
            async with connected(spec_of(server, continuation="auto")):
                pass
    assert caught.value.fatal
