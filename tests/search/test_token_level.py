"""Search over tokens: the controllers of steps, with `NextToken` as their policy."""

import math
from collections import Counter
from functools import partial
from itertools import product

import pytest
from scipy.stats import chisquare
from toylm import WORLD, ToyLM
from worlds import Judge

from branchwise.agents.chat import Chat
from branchwise.agents.next_token import NextToken
from branchwise.backends.hf import HF
from branchwise.core.aio import gather, run_sync
from branchwise.core.config import Sampling
from branchwise.core.node import Node
from branchwise.core.types import Message, Request, State, Step, Task
from branchwise.search.beam_decoding import BeamDecoding
from branchwise.search.best_first import BestFirst
from branchwise.search.exact import ExactSearch
from branchwise.search.mcts import MCTS
from branchwise.search.pruning import Pruning
from branchwise.search.rollout import Rollout
from branchwise.solve import solve
from branchwise.testing import Word
from branchwise.verifiers.likelihood import Likelihood

CANONICAL = {"early_stopping": "never", "length_penalty": 0}
END = 0


def found(controller, model, horizon=5, **parts):
    async def search():
        return await solve("?", controller=controller, horizon=horizon, **model.parts(**parts))

    return run_sync(search)


class Sharp(ToyLM):
    """Another law for each number, of which texts do not end at once."""

    def __init__(self, number, letters="ab"):
        super().__init__(letters)
        self.number = number

    def _arbitrary(self, prefix):
        law = super()._arbitrary(f"{self.number} {prefix}")
        law[-1] *= 0.2 + len(prefix) / 4
        return [p / sum(law) for p in law]


def decoded(model, b, *, length, alpha, early_stopping, penalty):
    """Beam search over strings and lists, written once more; `$` ends a text."""

    def normalised(text):
        return scores[text] / ((5 + len(text)) / 6 if penalty == "gnmt" else len(text)) ** alpha

    scores, running, pool = {"": 0.0}, [""], []
    for depth in range(1, length + 1):
        offers = []
        for text in running:
            for letter, p in zip(model.letters + "$", model.law(text), strict=True):
                scores[text + letter] = scores[text] + math.log(p)
                offers.append(text + letter)
        offers.sort(key=scores.get, reverse=True)
        over = [text for text in offers if text.endswith("$") or depth == length]
        pool += [text for text in over if text in offers[:b]]
        pool = sorted(pool, key=normalised, reverse=True)[:b]
        running = [text for text in offers if text not in over][:b]
        if len(pool) == b and running:
            size = depth if penalty == "power" else (5 + depth) / 6
            hope = scores[running[0]] / size**alpha
            if early_stopping is True:
                break
            if (early_stopping is False or alpha <= 0) and hope <= normalised(pool[-1]):
                break
    return [(text.strip("$"), normalised(text)) for text in pool]


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize(
    ("alpha", "penalty"), [(0, "power"), (1, "power"), (-1, "power"), (0.6, "gnmt")]
)
def test_beam_decoding_keeps_a_pool(number, early_stopping, alpha, penalty):
    model = Sharp(number, "abc")
    for b, length in product((1, 2, 3, 5), (3, 6)):
        how = {"early_stopping": early_stopping, "penalty": penalty}
        beam = BeamDecoding(width=b, length_penalty=alpha, **how)
        answer = found(beam, model, length)
        pool = [
            (node.text, pytest.approx(beam.normalised(node))) for node in beam.pool(answer.root)
        ]
        assert pool == decoded(model, b, length=length, alpha=alpha, **how)
        assert (answer.text, answer.stopped) == (pool[0][0], "finished")


@pytest.mark.parametrize("number", range(6))
def test_an_exhaustive_beam_is_exact(number):
    model, length = Sharp(number), 5
    texts = model.texts(length)
    beam = BeamDecoding(width=2 ** (length - 1), **CANONICAL)
    node = found(beam, model, length).node
    cut = max(map(model.prefix, map("".join, product("ab", repeat=length))))
    assert node.score == pytest.approx(max(cut, *texts.values()))
    exact = found(ExactSearch(), model, length)
    assert exact.node.score == pytest.approx(max(texts.values()))


@pytest.mark.parametrize("number", range(6))
def test_best_first_is_dijkstra_and_its_first_texts_are_the_most_probable(number):
    model = Sharp(number, "abc")
    texts = model.texts(5)
    best = max(texts, key=texts.get)
    # What has to be popped before the best text would be: the beginnings that are more probable.
    before = [w for n in range(5) for w in map("".join, product("abc", repeat=n))]
    before = [w for w in before if model.prefix(w) > texts[best]]
    answer = found(BestFirst(fanout=4, expansions=len(before)), model)
    assert answer.text == best
    assert {n.text for n in answer.root.walk() if n.children} == set(before)
    # It says best when it has just been found, but nothing proves it before the others are popped.
    assert answer.node.finished


def test_tree_search_finds_the_text_with_the_best_reward():
    target = "cabba"

    def reward(text):
        return sum(a == b for a, b in zip(text, target, strict=False)) / 5 - 0.2 * (len(text) > 5)

    model = ToyLM("abc", lambda prefix: [0.5, 0.3, 0.15, 0.05])
    search = MCTS(simulations=60, fanout=3, select="puct", exploration=1.0)
    answer = found(search, model, horizon=6, verifier=Judge(reward))
    best = max(answer.root.leaves(), key=lambda leaf: leaf.score)
    assert best.text.startswith(target)
    assert sum(1 for _ in answer.root.walk()) < 3**5


def test_beam_sampling_draws_without_replacement():
    model = ToyLM("abc")
    law = dict(zip([0, 1, 2, 3], model.law(""), strict=True))
    runs, tau = 2000, 2.0
    heat = {t: p ** (1 / tau) for t, p in law.items()}
    total = sum(heat.values())
    root = found(BeamDecoding(width=4, fanout=4, **CANONICAL), model, horizon=1).root
    seen = Counter()
    for seed in range(runs):
        beam = BeamDecoding(width=2, fanout=4, temperature=tau, seed=seed, **CANONICAL)
        seen[frozenset(node.step.tokens[0] for node in beam.pool(root))] += 1
    pairs = {
        frozenset((x, y)): heat[x] / total * heat[y] / (total - heat[x])
        + heat[y] / total * heat[x] / (total - heat[y])
        for x in law
        for y in law
        if x < y
    }
    observed = [seen[pair] for pair in pairs]
    assert sum(observed) == runs
    assert chisquare(observed, [runs * p for p in pairs.values()]).pvalue > 0.01
    drawn = {
        found(BeamDecoding(width=2, fanout=4, temperature=1, seed=seed), model).text
        for seed in range(5)
    }
    assert len(drawn) > 1


@pytest.mark.parametrize(
    ("pruning", "kept"),
    [
        ({}, "abcdef"),
        ({"relative": 0.5}, "ab"),
        ({"absolute": -math.log(0.3)}, "abc"),
        ({"relative_local": 0.65}, "ace"),
        ({"per_parent": 1}, "ace"),
        ({"per_parent": 2, "absolute": 1.5}, "abcd"),
    ],
)
def test_pruning_drops_what_is_far_behind(pruning, kept):
    root = Node(Task("?"), State())
    parents = [Node(root.task, State(), root, i, Step("p")) for i in range(3)]
    for parent, p in zip(parents, (0.8, 0.31, 0.2), strict=True):
        parent.score = math.log(p)
    candidates = []
    # By their probabilities .40, .24, .14, .10, .08 and .02, of which these are the last steps'.
    for name, i, p in zip(
        "abcdef", (0, 0, 1, 1, 2, 0), (0.5, 0.3, 0.45, 0.32, 0.4, 0.025), strict=True
    ):
        candidates.append(Node(root.task, State(), parents[i], 0, Step(name)))
        candidates[-1].score = parents[i].score + math.log(p)
    assert "".join(c.text[-1] for c in Pruning(**pruning)(candidates)) == kept


def test_a_pruned_beam_grows_less_and_without_thresholds_the_same():
    model = Sharp(1, "abcd")
    sizes = [
        sum(1 for _ in found(BeamDecoding(width=5, pruning=how), model).root.walk())
        for how in (None, Pruning(), Pruning(absolute=1.0))
    ]
    assert sizes[0] == sizes[1] > sizes[2]


@pytest.mark.anyio
async def test_likelihood_with_the_penalty_of_gnmt():
    node = Node(Task("?"), State())
    for token in range(7):
        node = Node(node.task, State(), node, 0, Step("a", (token,), -1.0))
    [verdict] = await Likelihood(alpha=0.6, penalty="gnmt").score([node])
    assert verdict.score == pytest.approx(-7 / 2**0.6)


# The same against transformers, on a model of random weights.

LENGTH = 9
PROMPTS = ("ab", "fedcba", "gg", "hijk")


def tokenizer_of(characters, byte_level=False):
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    vocabulary = {token: i for i, token in enumerate(["<|end|>", *characters])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.decoder = tokenizers.decoders.Fuse()
    if byte_level:
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        chat_template="{% for m in messages %}{{ m.content }}{% endfor %}",
    )


def saved(tokenizer, path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(2)  # one whose texts end at many lengths
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=END,
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(tokenizer_of("abcdefghijk"), tmp_path_factory.mktemp("letters"))


@pytest.fixture(scope="module")
def peer(folder):
    """`generate` of transformers: the tokens of the best hypothesis."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def generate(prompt, **how):
        ids = torch.tensor([tokenizer.encode(prompt)])
        with torch.inference_mode():
            said = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=LENGTH,
                **how,
            )
        said = said[0, ids.shape[1] :].tolist()
        return said[: said.index(END) + 1] if END in said else said

    return generate


def searched(folder, jobs, horizon=LENGTH):
    """The answers of (controller, prompt) jobs."""

    async def search():
        async with HF(model=folder, dtype="float32", device="cpu").open() as backend:
            parts = {
                "policy": NextToken(policy=Chat(backend=backend)),
                "environment": WORLD,
                "verifier": Likelihood(alpha=0),
                "horizon": horizon,
            }
            return await gather(lambda job: solve(job[1], controller=job[0], **parts), jobs)

    return run_sync(search)


def tokens(answer):
    return [token for step in answer.node.steps for token in step.tokens]


def test_beam_decoding_is_that_of_transformers(folder, peer):
    rules = [("never", 0.0), (False, 1.0), (True, 1.0), ("never", 1.0), (True, -1.0)]
    hows = [{"early_stopping": early, "length_penalty": alpha} for early, alpha in rules]
    cases = list(product(hows, (2, 3, 5), PROMPTS))
    answers = searched(folder, [(BeamDecoding(width=b, **how), prompt) for how, b, prompt in cases])
    said = [tokens(answer) for answer in answers]
    assert said == [peer(prompt, num_beams=b, **how) for how, b, prompt in cases]
    # The rules make a difference, and texts end at many lengths, some only at the horizon.
    every = len(cases) // len(rules)
    assert len({str(said[i : i + every]) for i in range(0, len(cases), every)}) > 2
    assert len({len(text) for text in said}) > 4
    assert any(text[-1] != END for text in said)


def test_a_beam_of_one_is_greedy(folder, peer):
    beams = [(BeamDecoding(width=1, early_stopping=True), prompt) for prompt in PROMPTS]
    answers = searched(folder, [*beams, *((Rollout(), prompt) for prompt in PROMPTS)])
    greedy = [peer(prompt) for prompt in PROMPTS]
    assert [tokens(answer) for answer in answers] == [*greedy, *greedy]

    async def engine():
        async with HF(model=folder, dtype="float32", device="cpu").open() as backend:
            return [
                await backend.complete(
                    Request(
                        messages=(Message("user", prompt),),
                        sampling=Sampling(temperature=0),
                        max_tokens=LENGTH,
                    )
                )
                for prompt in PROMPTS
            ]

    assert [list(step.tokens) for [step] in run_sync(engine)] == greedy


def test_the_most_probable_text_of_a_model_is_found_and_proved(folder):
    length, vocabulary = 4, 12
    jobs = [(ExactSearch(), "ab"), (BeamDecoding(width=vocabulary**2, **CANONICAL), "ab")]
    exact, wide = searched(folder, jobs, length)
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    context = transformers.AutoTokenizer.from_pretrained(folder).encode("ab")
    texts = {}
    for size in range(length):
        words = [list(word) for word in product(range(1, vocabulary), repeat=size)]
        ids = torch.tensor([context + word for word in words])
        with torch.inference_mode():
            laws = model(ids).logits[:, len(context) - 1 :].log_softmax(-1)
        ends = torch.tensor([[*word, END] for word in words])
        sums = laws.gather(-1, ends[..., None]).sum((1, 2)).tolist()
        texts |= {(*word, END): p for word, p in zip(words, sums, strict=True)}
    best = max(texts, key=texts.get)
    assert tuple(tokens(exact)) == best
    assert exact.node.score == pytest.approx(texts[best], abs=1e-4)
    assert wide.node.score >= exact.node.score - 1e-9
    assert sum(1 for _ in exact.root.walk()) < len(texts) / 2


def test_texts_of_tokens_join_to_the_text_where_characters_take_several(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    folder = saved(tokenizer_of(alphabet, byte_level=True), tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    wanted = tokenizer.encode("a é漢🦊 b")

    async def write():
        async with HF(model=folder, dtype="float32", device="cpu").open() as backend:
            policy = NextToken(policy=Chat(backend=backend))
            node = Node(Task("x"), State(snapshot=""))
            for token in wanted:
                # All tokens are candidates; the next one of the text is taken.
                steps = await policy.propose(node, range(len(tokenizer)))
                [step] = [step for step in steps if step.tokens == (token,)]
                assert [s.tokens for s in steps if s.finish == "end"] == [(END,)]
                node = Node(node.task, State(snapshot=""), node, 0, step)
            return node

    node = run_sync(write)
    texts = ["a", " ", "", "é", "", "", "漢", "", "", "", "🦊", " ", "b"]
    assert [step.text for step in node.steps] == texts


@pytest.mark.parametrize("unique", [None, "siblings"])
def test_copies_do_not_fill_the_beam(unique):
    """A policy that says its best letter twice: the pool is that of one that says it once."""

    class Twice:
        async def propose(self, node, seeds):
            return [Step(letter, (ord(letter),)) for letter in "aab"][: len(seeds)]

    values = {"a": -1.0, "b": -2.0, "aa": -9.0, "ab": -8.0, "ba": -4.0, "bb": -3.0}
    beam = BeamDecoding(width=2, fanout=3, length_penalty=0)
    answer = run_sync(
        partial(
            solve,
            "?",
            policy=Twice(),
            controller=beam,
            environment=Word(2),
            verifier=Judge(values.__getitem__),
            unique=unique,
        )
    )
    assert [node.text for node in beam.pool(answer.root)] == ["bb", "ba"]
    assert answer.text == "bb"
