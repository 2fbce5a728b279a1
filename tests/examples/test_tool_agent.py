import importlib.util
import json
import random
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from branchwise import HF, Scripted, Step, ToolCall
from branchwise.testing import check_environment

FILE = Path(__file__).parents[2] / "examples" / "tool_agent.py"
_spec = importlib.util.spec_from_file_location("tool_agent", FILE)
example = importlib.util.module_from_spec(_spec)
sys.modules["tool_agent"] = example
_spec.loader.exec_module(example)

pytestmark = pytest.mark.anyio
TASKS = [example.journey(seed) for seed in range(8)]


def cheapest(task):
    """The cheapest journey, by going over all of them (an oracle for the generator)."""
    best = []

    def ride(city, cities, paid):
        if paid > task.meta["coins"]:
            return
        if city == task.meta["goal"]:
            best.append((paid, cities))
            return
        for to, price in task.meta["trains"][city].items():
            if to not in cities:
                ride(to, [*cities, to], paid + price)

    ride(task.meta["city"], [task.meta["city"]], 0)
    return min(best)


def ride(city, number=0):
    call = ToolCall(f"{number}", "ride", json.dumps({"to": city}))
    return Step("", finish="tools", tool_calls=(call,))


async def test_every_task_can_be_done_and_not_by_going_nearest():
    for task in TASKS:
        assert task.target is None
        paid, cities = cheapest(task)
        assert len(cities) > example.SHORTEST
        world = example.Trains()
        state = await world.reset(task)
        for city in cities[1:]:
            assert not state.done
            state = await world.step(state, ride(city))
        assert (state.done, state.reward, state.snapshot["coins"]) == (
            *(True, 1.0, task.meta["coins"] - paid),
        )
        state = await world.reset(task)
        while not (state.done or state.cut):
            here = state.snapshot
            goal, places = here["places"][here["goal"]], here["places"]
            near = {
                to: round(((places[to][0] - goal[0]) ** 2 + (places[to][1] - goal[1]) ** 2) ** 0.5)
                for to, price in here["trains"][here["city"]].items()
                if price <= here["coins"]
            }
            state = await world.step(state, ride(min(sorted(near), key=near.get)))
        assert state.cut


async def test_the_world_keeps_the_laws():
    task = TASKS[0]
    _, cities = cheapest(task)
    far = next(city for city in example.CITIES if city not in task.meta["trains"][cities[0]])
    wrong = [Step("", finish="tools", tool_calls=(ToolCall("1", "fly", "{}"),)), ride(far)]
    await check_environment(example.Trains(), task, [*wrong, *map(ride, cities[1:])])
    state = await example.Trains().step(await example.Trains().reset(task), wrong[1])
    assert state.results[0].startswith("Error: to: ")
    assert state.snapshot["city"] == cities[0]


async def test_the_verifier_gives_nobody_up_who_can_still_arrive():
    for task in TASKS:
        _, cities = cheapest(task)
        state = await example.Trains().reset(task)
        for city in cities[1:]:
            state = await example.Trains().step(state, ride(city))
            node = example.Node(task, state)
            assert example.promising(node).score > 0
        assert example.promising(node).score == 1


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_agent_fails_without_search_and_succeeds_with_it(anyio_backend):
    arrived = {}
    for strategy in ("rollout, greedy", "rollout", "best-first", "mcts", "beam"):
        answers = [
            await example.travel(Scripted(example.scripted), task, strategy) for task in TASKS
        ]
        arrived[strategy] = sum(answer.node.finished for answer in answers)
        assert all(answer.node.finished == (answer.value is not None) for answer in answers)
    assert arrived["rollout, greedy"] == 0
    assert arrived["rollout"] <= 2
    assert min(arrived["best-first"], arrived["mcts"]) >= 7
    assert arrived["beam"] > arrived["rollout"] + 2


def test_the_table_is_the_same_each_time_in_every_protocol(capsys):
    options = ["--tasks", "2", "--strategies", "rollout", "best-first", "--fanout", "6"]
    first = example.main(options)
    printed = capsys.readouterr().out
    assert example.main(options) == first
    assert capsys.readouterr().out == printed
    assert example.main([*options, "--protocol", "react"]) == first
    assert "best-first" in printed


def test_a_real_model_is_asked_for_less_and_told_what_it_may_cost(capsys, monkeypatch):
    class Counted:
        def __init__(self, model):
            assert model == "some model"

        @asynccontextmanager
        async def open(self):
            def reply(request, seed):
                nonlocal replies
                replies += 1
                return example.scripted(request, seed)

            yield Scripted(reply)

    replies = 0
    monkeypatch.setattr(example, "HF", Counted)
    arrived = dict(example.main(["--model", "some model", "--tasks", "20"]))
    first = capsys.readouterr().out.splitlines()[0]
    most, longest = (int(word) for word in first.split() if word.isdigit())
    assert replies <= most == 20 * (12 + 12 + 40 + 40)
    assert replies * longest / 2 < 60_000
    assert arrived["rollout, greedy"] == 0
    assert arrived["best-first"] > arrived["rollout"] + 5


@pytest.mark.parametrize(
    ("right", "n", "interval"),
    [(0, 20, (0.0, 0.1611)), (10, 20, (0.2993, 0.7007)), (20, 20, (0.8389, 1.0))],
)
def test_intervals(right, n, interval):
    assert example.wilson(right, n) == pytest.approx(interval, abs=1e-4)  # published tables


async def test_a_model_that_says_anything_at_all_breaks_nothing():
    noise = random.Random(0)
    pieces = [
        "<tool_call>",
        "</tool_call>",
        '{"name": "ride", "arguments": ',
        '{"to": "Jena"}}',
        "x",
    ]

    def reply(request, seed):
        return "".join(noise.choices(pieces, k=4))

    answer = await example.travel(Scripted(reply), TASKS[0], "best-first", effort=example.Effort(3))
    assert answer.stopped == "finished"
    assert all(node.failure is None for node in answer.root.walk())


TEMPLATE = (
    "{% if tools %}<tools>{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model of random weights that reads bytes and has room for the prompts."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    torch = pytest.importorskip("torch")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<|end|>", *alphabet])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", chat_template=TEMPLATE
    )
    config = transformers.Qwen2Config(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=8192,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tiny")
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path)
    fast.save_pretrained(path)
    return str(path)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("protocol", ["text", "native", "react"])
async def test_the_local_engine_can_be_asked(anyio_backend, tiny, protocol):
    async with HF(model=tiny, dtype="float32", threads=1, memory=0.2).open() as model:
        answer = await example.travel(
            model, TASKS[0], "beam", effort=example.Effort(1), protocol=protocol
        )
    assert len(answer.root.children) >= 1
    for node in answer.root.children:
        assert node.failure is None
        assert node.step.tokens


@pytest.mark.real
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_real_model_can_be_asked(anyio_backend):
    async with HF(model="smollm2-135m-instruct").open() as model:
        answer = await example.travel(model, TASKS[0], "best-first", effort=example.Effort(2))
    assert len(answer.root.children) == 2
