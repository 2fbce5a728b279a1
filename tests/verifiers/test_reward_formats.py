"""The shipped formats against one plain pass over the whole text, as the models' cards show it."""

import math

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from backends.test_hf_backend import tiny_tokenizer  # noqa: E402  (after the check that torch is there)
from backends.tiny import config  # noqa: E402
from test_process import QUESTION, STEPS, chain  # noqa: E402

from branchwise.backends.hf import HF  # noqa: E402
from branchwise.core.errors import SpecError  # noqa: E402
from branchwise.verifiers.aggregate import aggregated  # noqa: E402
from branchwise.verifiers.implicit import ImplicitReward  # noqa: E402
from branchwise.verifiers.outcome import BradleyTerry, OutcomeReward, Words  # noqa: E402
from branchwise.verifiers.process import ProcessReward, formats  # noqa: E402

pytestmark = pytest.mark.anyio
WORDS = ("<|endoftext|>", "<extra_0>", " ки", " \n\n\n\n", " positive", " negative", " neutral")
HEADS = {"skywork-o1": 1, "qwen2.5-math-prm": 2, "reasonflux": 2, "trl": 2}  # others say words


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Models of random weights, by how many labels they have: 0 is a language model."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([transformers.AddedToken(word, normalized=False) for word in WORDS])
    made = {}
    for labels in (0, 1, 2):
        path = tmp_path_factory.mktemp(f"labels{labels}")
        torch.manual_seed(labels)
        shape = config("qwen2", vocab_size=700, num_labels=labels, max_position_embeddings=300)
        if labels:
            model = transformers.AutoModelForTokenClassification.from_config(shape)
            torch.nn.init.normal_(model.score.weight, std=0.1)
        else:
            model = transformers.AutoModelForCausalLM.from_config(shape)
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
        made[labels] = str(path)
    return made


class Card:
    """One pass over a whole text, as a model's makers show it."""

    def __init__(self, folder, labels):
        auto = transformers.AutoModelForTokenClassification
        kind = auto if labels else transformers.AutoModelForCausalLM
        self.model = kind.from_pretrained(folder).eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def ids(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False)

    def logits(self, ids):
        with torch.inference_mode():
            return self.model(torch.tensor([ids])).logits[0].double()

    def at(self, ids, mark):
        """The logits wherever the mark stands."""
        [mark] = self.ids(mark)
        logits = self.logits(ids)
        return [logits[place] for place, token in enumerate(ids) if token == mark]

    def pair(self, laws, good, bad):
        return [law[[good, bad]].softmax(-1)[0].item() for law in laws]

    def chat(self, *messages, **options):
        chat = [{"role": role, "content": content} for role, content in messages]
        return self.tokenizer.apply_chat_template(chat, tokenize=False, **options)


def math_shepherd(card, question, steps):
    text = f"{question} " + "\n".join(f"{step} ки" for step in steps)
    return card.pair(card.at(card.ids(text), " ки"), 648, 387)


def rlhflow(card, question, steps):
    scores, chat = [], []
    [good], [bad] = card.ids("+"), card.ids("-")
    for number, step in enumerate(steps):
        chat += [("user", step if number else f"{question} {step}"), ("assistant", "+")]
        ids = card.ids(card.chat(*chat))
        assert ids[-2] == good  # the sign, then a line break; Llama's turn ends with one token too
        scores += card.pair([card.logits(ids)[-3]], good, bad)
    return scores


def extra(card, question, steps, *system):
    answer = "<extra_0>".join(steps) + "<extra_0>"
    text = card.chat(*system, ("user", question), ("assistant", answer))
    return [law.softmax(-1)[1].item() for law in card.at(card.ids(text), "<extra_0>")]


def qwen(card, question, steps):
    says = "Please reason step by step, and put your final answer within \\boxed{}."
    return extra(card, question, steps, ("system", says))


def lines(card, beginning, steps):
    """Steps and line breaks, each tokenised by itself: what stands at the line breaks."""
    ids, places = card.ids(beginning), []
    for step in steps:
        ids += [*card.ids(step), card.ids("\n")[-1]]
        places.append(len(ids) - 1)
    return card.logits(ids)[places]


def skywork(card, question, steps):
    return lines(card, f"<|endoftext|>{question}\n", steps)[:, 0].sigmoid().tolist()


def trl(card, question, steps):
    return lines(card, question, steps).softmax(-1)[:, 1].tolist()


def prm800k(card, question, steps):
    ids = card.ids("\n".join((question, *steps, "")))
    words = [card.ids(word)[0] for word in (" positive", " neutral", " negative")]
    laws = card.at(ids, "\n")[1:]
    return [1 - law[words].softmax(-1)[2].item() for law in laws]


def versaprm(card, question, steps):
    ids = card.ids(f"{question} \n\n" + " \n\n\n\n".join(steps) + " \n\n\n\n")
    return card.pair(card.at(ids, " \n\n\n\n"), *(card.ids(sign)[0] for sign in "+-"))


CARDS = {
    "math-shepherd": math_shepherd,
    "rlhflow-deepseek": rlhflow,
    "rlhflow-mistral": rlhflow,
    "skywork-o1": skywork,
    "qwen2.5-math-prm": qwen,
    "reasonflux": extra,
    "prm800k": prm800k,
    "versaprm": versaprm,
    "trl": trl,
}


def opened(folder):
    return HF(model=folder, dtype="float32", device="cpu").open()


@pytest.mark.parametrize("name", formats())
async def test_scores_are_those_of_a_plain_pass_as_the_card_shows_it(folders, name):
    labels = HEADS.get(name, 0)
    expected = CARDS[name](Card(folders[labels], labels), QUESTION, STEPS)
    assert len({round(score, 3) for score in expected}) == len(STEPS)
    async with opened(folders[labels]) as backend:
        judge = ProcessReward(backend=backend, format=name)
        separator = judge.format.separator
        [whole] = chain(separator.join(STEPS))
        path = chain(*(step + separator for step in STEPS[:-1]), STEPS[-1])
        others = [chain(separator.join(STEPS[::-1]), prompt=p)[0] for p in ("?", QUESTION)]
        [alone] = await judge.score([path[-1]])
        verdicts = await judge.score([whole, *others, *path])
    assert verdicts[0].steps == pytest.approx(expected, abs=1e-4)
    assert verdicts[0].score == pytest.approx(aggregated(expected, judge.format.how), abs=1e-4)
    assert [v.score for v in verdicts[3:]] == pytest.approx(expected, abs=1e-4)
    assert alone.score == pytest.approx(expected[-1], abs=1e-4)
    assert all(isinstance(verdict.score, float) for verdict in verdicts)


async def test_what_does_not_fit_the_model_fails_alone(folders):
    async with opened(folders[2]) as backend:
        judge = ProcessReward(backend=backend, format="qwen2.5-math-prm")
        bad, good = await judge.score([chain("x " * 400)[0], chain("x")[0]])
    assert "do not fit the model" in bad.message
    assert 0 < good.score < 1


async def test_what_a_real_model_cannot_do_is_a_fault_of_the_spec(folders):
    word = {"kind": "words", "good": [" positively"], "bad": ["-"]}
    cases = [
        (0, {"like": "versaprm", "read": word}, "' positively' is .* not one"),
        (0, "qwen2.5-math-prm", "no value head"),
        (0, {"like": "rlhflow-mistral", "read": {"kind": "value"}}, "no value head"),
        (2, "versaprm", "no language head"),
        (1, "qwen2.5-math-prm", "has 1 labels"),
    ]
    for labels, name, words in cases:
        async with opened(folders[labels]) as backend:
            with pytest.raises(SpecError, match=words):
                await ProcessReward(backend=backend, format=name).score(chain("a"))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A model whose one number stands at the last token of a finished conversation."""
    path = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(3)
    tokenizer = tiny_tokenizer()
    shape = config("qwen2", vocab_size=len(tokenizer), num_labels=1)
    model = transformers.AutoModelForSequenceClassification.from_config(shape)
    torch.nn.init.normal_(model.score.weight, std=0.1)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


async def test_rewards_are_those_of_the_classifier_itself(classifier):
    auto = transformers.AutoModelForSequenceClassification
    model = auto.from_pretrained(classifier).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(classifier)
    expected = []
    for step in STEPS:
        chat = [("system", "Judge."), ("user", QUESTION), ("assistant", step)]
        messages = [{"role": role, "content": content} for role, content in chat]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        with torch.inference_mode():
            expected.append(model(torch.tensor([tokenizer.encode(text)])).logits.item())
    async with opened(classifier) as backend:
        judge = OutcomeReward(backend=backend, system="Judge.")
        nodes = [chain(step)[0] for step in STEPS]
        verdicts = await judge.score(nodes)
        [alone] = await judge.score(nodes[:1])
        [chance] = await BradleyTerry(reward=judge).prefer([(nodes[0], nodes[1])], [0])
    assert [verdict.score for verdict in verdicts] == pytest.approx(expected, abs=1e-4)
    assert alone.score == pytest.approx(expected[0], abs=1e-4)
    odds = math.exp(expected[0]) / (math.exp(expected[0]) + math.exp(expected[1]))
    assert chance.score == pytest.approx(odds, abs=1e-4)


async def test_a_language_model_says_at_the_end_whether_it_is_right(folders):
    card = Card(folders[0], 0)
    [good], [bad] = card.ids("+"), card.ids("-")
    text = card.chat(("user", f"{QUESTION} {STEPS[0]}"), ("assistant", "+"))
    law = card.logits(card.ids(text))[-3]
    read = Words(good=("+",), bad=("-",))
    fields = {"template": "{prompt} {answer}", "reply": ""}
    async with opened(folders[0]) as backend:
        one = OutcomeReward(backend=backend, read=read, **fields)
        other = OutcomeReward(backend=backend, read=Words(good=("+",), normalised=False), **fields)
        [weighed], [plain] = await one.score(chain(STEPS[0])), await other.score(chain(STEPS[0]))
    assert weighed.score == pytest.approx(card.pair([law], good, bad)[0], abs=1e-4)
    assert plain.score == pytest.approx(law.softmax(-1)[good].item(), abs=1e-4)


async def test_an_outcome_is_not_read_off_a_language_models_values(folders):
    async with opened(folders[0]) as backend:
        with pytest.raises(SpecError, match="no value head"):
            await OutcomeReward(backend=backend).score(chain("a"))


async def test_implicit_rewards_are_those_of_two_plain_passes(folders, tmp_path):
    cards = [Card(folders[0], 0)]
    torch.manual_seed(9)
    trained = transformers.AutoModelForCausalLM.from_config(cards[0].model.config)
    trained.save_pretrained(tmp_path)
    cards[0].tokenizer.save_pretrained(tmp_path)
    cards.insert(0, Card(str(tmp_path), 0))
    texts = []
    for card in cards:
        ids = card.ids(card.chat(("user", QUESTION), add_generation_prompt=True))
        begin = len(ids)
        for step in (STEPS[0] + "\n\n", STEPS[1] + "<|end|>"):
            ids += card.ids(step)
        laws = card.logits(ids).log_softmax(-1)
        texts.append(sum(laws[i - 1, ids[i]].item() for i in range(begin, len(ids))))
    async with opened(str(tmp_path)) as backend, opened(folders[0]) as reference:
        judge = ImplicitReward(backend=backend, reference=reference, beta=0.5, ending="<|end|>")
        verdicts = await judge.score(
            [*chain("\n\n".join(STEPS[:2])), *chain(STEPS[0] + "\n\n", STEPS[1])]
        )
    assert verdicts[0].score == pytest.approx(0.5 * (texts[0] - texts[1]), abs=1e-3)
    # The path's first step says that it is the end, too; as context it is read without.
    assert verdicts[2].score == pytest.approx(verdicts[0].steps[1], abs=1e-4)
