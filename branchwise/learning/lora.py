"""A reward model by LoRA: a frozen language model, small matrices that learn, and a value head."""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import TypeAlias, cast

import torch
from pydantic import Field
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoConfig,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from branchwise.backends.hf.backend import HF
from branchwise.backends.hf.quiet import without_bars, without_reports
from branchwise.backends.hf.server import chosen
from branchwise.backends.hf.text import Text
from branchwise.backends.models import folder
from branchwise.core.errors import SpecError
from branchwise.learning.labels import Labelled, Labels
from branchwise.learning.losses import Answer, Batch, batched, pairwise, pointwise, whole
from branchwise.learning.report import Findings, examined, numbers, page
from branchwise.learning.train import (
    Data,
    Epoch,
    Recipe,
    joined,
    keep,
    share,
    split,
    taken_up,
    teaches,
)
from branchwise.verifiers.aggregate import How
from branchwise.verifiers.calibration import Platt
from branchwise.verifiers.head import Reads, put
from branchwise.verifiers.outcome import Value
from branchwise.verifiers.process import Format

CHECKPOINT = "checkpoint.pt"
Tensors: TypeAlias = dict[str, Tensor]


class LoRA(Recipe):
    """How a model is tuned; `Recipe` has the rest.

    Args:
        rank: r, of the matrices that learn.
        alpha: what they add is multiplied by alpha / r.
        rate: of learning, at its highest.
        warm_up: the share of the updates in which the rate rises; then it falls as half a cosine.
        decay: AdamW's, of what learns.
        clip: the largest norm of a gradient.
        batch: problems of one update.
        epochs: the most passes through the data.
        patience: so many epochs without a better loss on the held-out problems end the training.
        tokens: so many go through the model together at most, padding included: a matter of memory
            and speed, not of what is learned. What is longer goes alone.
        longest: tokens of a question and its answer at most; longer ones are left out.
        recompute: whether activations are computed twice instead of kept (gradient checkpointing).
    """

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    rate: float = Field(default=2e-4, gt=0)
    warm_up: float = Field(default=0.05, ge=0, lt=1)
    decay: float = Field(default=0.0, ge=0)
    clip: float = Field(default=1.0, gt=0)
    batch: int = Field(default=8, ge=1)
    epochs: int = Field(default=3, ge=1)
    patience: int = Field(default=1, ge=1)
    tokens: int = Field(default=2048, ge=1)
    longest: int = Field(default=2048, ge=1)
    recompute: bool = False
    keep: float = Field(default=60.0, ge=0)


@dataclass(frozen=True, slots=True)
class Example:
    """An answer as the model learns from it.

    Args:
        answer: as losses see it.
        tokens: of the question and the answer.
        ends: the places of the tokens that end steps, where the model is asked for a value.
    """

    answer: Answer
    tokens: tuple[int, ...]
    ends: tuple[int, ...]


class Adapted(nn.Module):
    """A linear map W that stays, and what is learned beside it: W x + alpha / r · B A x.

    B begins as zero, so the model begins as it was.

    Source: Hu et al. 2022, §4.1.

    Args:
        base: the map W, with its bias.
        rank: r.
        alpha: of the factor.
        chance: draws the numbers in A.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float, chance: torch.Generator) -> None:
        super().__init__()
        self.base = base
        self.scale = alpha / rank
        bound = base.in_features**-0.5
        a = torch.empty(rank, base.in_features).uniform_(-bound, bound, generator=chance)
        # In single precision whatever the base has: bfloat16 is too coarse for an update.
        self.a = nn.Parameter(a.to(base.weight.device))
        self.b = nn.Parameter(torch.zeros(base.out_features, rank, device=base.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both."""
        low = linear(x, self.a.to(x.dtype)) * self.scale
        return self.base(x) + linear(low, self.b.to(x.dtype))

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """One map that does the same: the base, whose weights change."""
        weight = self.base.weight
        weight.copy_(weight.float() + self.scale * self.b @ self.a)
        return self.base


class Valued(nn.Module):
    """A model with LoRA on each linear map of its layers, and the value head, which learns too.

    Args:
        model: of a class `...ForTokenClassification` with one label; it is changed in place.
        how: rank, alpha, seed, and whether activations are computed twice.
    """

    def __init__(self, model: PreTrainedModel, how: LoRA) -> None:
        super().__init__()
        # Without dropout: little learns, and not for long.
        self.model = model.eval().requires_grad_(requires_grad=False)
        # Values of single precision: those of bfloat16 are often the same for two answers.
        self.head = cast("nn.Linear", model.score).float().requires_grad_()
        chance = torch.Generator().manual_seed(how.seed)
        for path, module in list(model.base_model.named_modules()):
            if isinstance(module, nn.Linear):
                adapted = Adapted(module, how.rank, how.alpha, chance)
                model.base_model.set_submodule(path, adapted)
        if how.recompute:
            for layer in self._layers:
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)

    def forward(self, examples: Sequence[Example]) -> list[Tensor]:
        """For each example a value at each of its ends."""
        # Attention is causal and padding on the right, so nothing that counts sees it.
        longest = max(len(example.tokens) for example in examples)
        rows = [example.tokens + (0,) * (longest - len(example.tokens)) for example in examples]
        ids = torch.tensor(rows, device=self.model.device)
        states = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return [
            self.head(states[row, list(example.ends)].float())[:, 0]
            for row, example in enumerate(examples)
        ]

    @property
    def learns(self) -> dict[str, nn.Parameter]:
        """What learns, by name."""
        return {name: each for name, each in self.named_parameters() if each.requires_grad}

    @property
    def _layers(self) -> list[nn.Module]:
        layers = self.model.base_model.modules()
        return [layer for layer in layers if isinstance(layer, GradientCheckpointingLayer)]

    def merge(self) -> None:
        """Make it a plain model that says the same, up to rounding, and learns nothing more."""
        for layer in self._layers:
            vars(layer).pop("forward", None)
        for path, module in list(self.model.base_model.named_modules()):
            if isinstance(module, Adapted):
                self.model.base_model.set_submodule(path, module.merged())
        self.requires_grad_(requires_grad=False)

    @torch.no_grad()
    def calibrate(self, calibration: Platt) -> None:
        """Make its values those that a calibration maps them to, as logits."""
        self.head.weight.mul_(calibration.slope)
        self.head.bias.mul_(calibration.slope).add_(calibration.bias)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a training is.

    Args:
        update: how many are done.
        updates: of all epochs.
        loss: of the last update, before it.
        held_out: the loss on the held-out problems after each epoch so far.
    """

    update: int
    updates: int
    loss: float
    held_out: tuple[float, ...]


class Tuner:
    """One tuning, which can be left and taken up again.

    The loss of an update is a mean over all of its problems, however they are cut into passes. What
    an epoch's order is depends on the seed and its number alone, so a tuning that is taken up from
    its checkpoint goes on as if nothing had happened.

    Args:
        valued: the model.
        train: the answers to learn from.
        held_out: answers to other problems, which say when to end.
        how: it is tuned.
        balance: the share of good steps, where good and bad ones together shall count the same.
        checkpoint: where it is kept while it goes on; None keeps nothing.
        watch: told each update.

    Attributes:
        losses: of the updates so far, each before it.
        history: the loss on the held-out problems after each epoch so far.

    Raises:
        SpecError: there is nothing to learn from.
    """

    def __init__(
        self,
        valued: Valued,
        train: Sequence[Example],
        held_out: Sequence[Example],
        how: LoRA,
        *,
        balance: float | None = None,
        checkpoint: Path | None = None,
        watch: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        self.valued, self.how = valued, how
        self.train, self.held_out = (
            self._of_use(train, "train on"),
            self._of_use(held_out, "hold out"),
        )
        self.checkpoint, self.watch = checkpoint, watch
        self.losses: list[float] = []
        self.history: list[float] = []
        self.balance = balance
        self._problems: dict[str, list[Example]] = {}
        for example in self.train:
            self._problems.setdefault(example.answer.problem, []).append(example)
        self._per_epoch = math.ceil(len(self._problems) / how.batch)
        self._updates = how.epochs * self._per_epoch
        self._optimiser = torch.optim.AdamW(
            valued.learns.values(), lr=how.rate, weight_decay=how.decay
        )
        self._best: Tensors = {}

    def run(self) -> None:
        """Tune until it gets no better; the model is then the best that it was.

        Raises:
            SpecError: the tuning came to what is no number, or cannot be kept.
        """
        self._resume()
        kept = time.monotonic()
        while not self._over():
            done = len(self.losses)
            epoch, place = divmod(done, self._per_epoch)
            begin = place * self.how.batch
            self._update(self._order(epoch)[begin : begin + self.how.batch])
            ends = place == self._per_epoch - 1
            if ends:
                self.history.append(self.loss(self.held_out))
                if self._best_epoch == epoch:
                    self._best = _copies(self.valued.learns)
            if self.checkpoint is not None and (ends or time.monotonic() - kept >= self.how.keep):
                self._keep(self.checkpoint)
                kept = time.monotonic()
            told = Progress(done + 1, self._updates, self.losses[-1], tuple(self.history))
            self.watch(told)
        self.valued.load_state_dict(self._best, strict=False)

    @torch.no_grad()
    def loss(self, examples: Sequence[Example]) -> float:
        """The loss of answers from which nothing is learned."""
        return sum(loss.item() for loss in self._losses(examples))

    def _of_use(self, examples: Sequence[Example], what: str) -> Sequence[Example]:
        """Those from which there is something to learn: from pairs alone, not from all."""
        if self.how.pointwise:
            return examples
        kinds: dict[str, set[bool]] = {}
        for example in examples:
            kinds.setdefault(example.answer.problem, set()).add(example.answer.right)
        kept = [example for example in examples if len(kinds[example.answer.problem]) > 1]
        if not kept:
            raise SpecError(f"there is no problem with right and wrong answers to {what}")
        return kept

    @property
    def epochs(self) -> list[Epoch]:
        """The epochs that are over; the loss in training is the mean of the epoch's updates."""
        epochs: list[Epoch] = []
        for number, held_out in enumerate(self.history):
            own = self.losses[number * self._per_epoch : (number + 1) * self._per_epoch]
            best = held_out == min(self.history[: number + 1])
            epochs.append(Epoch(number + 1, fmean(own), held_out, best))
        return epochs

    @torch.no_grad()
    def values(self, examples: Sequence[Example]) -> Tensor:
        """What the model says at all ends of all examples, one after the other."""
        return torch.cat([self.valued([example])[0].cpu() for example in examples])

    def _over(self) -> bool:
        worse = len(self.history) - 1 - self._best_epoch if self.history else 0
        return len(self.losses) >= self._updates or worse >= self.how.patience

    @property
    def _best_epoch(self) -> int:
        return min(range(len(self.history)), key=self.history.__getitem__)

    def _order(self, epoch: int) -> list[str]:
        order = list(self._problems)
        random.Random(f"order {self.how.seed} {epoch}").shuffle(order)  # noqa: S311  (no secret)
        return order

    def _update(self, problems: Sequence[str]) -> None:
        self._optimiser.zero_grad()
        loss = 0.0
        for part in self._losses([e for problem in problems for e in self._problems[problem]]):
            part.backward()
            loss += part.item()
        if not math.isfinite(loss):
            raise SpecError("the tuning came to what is no number", hint="lower `rate`")
        nn.utils.clip_grad_norm_(self.valued.learns.values(), self.how.clip)
        for group in self._optimiser.param_groups:
            group["lr"] = self.how.rate * _rate(len(self.losses), self._updates, self.how.warm_up)
        self._optimiser.step()
        self.losses.append(loss)

    def _losses(self, examples: Sequence[Example]) -> Iterator[Tensor]:
        """The loss of some answers, one pass after the other: they add up to it."""
        everything = self._batch(examples)
        steps, pairs = everything.weights.sum(), everything.shares.sum().clamp_min(1e-12)
        for part in passes(examples, self.how.tokens, whole=bool(self.how.pairwise)):
            batch = self._batch(part)
            logits = torch.cat(self.valued(part)).cpu()
            loss = logits.new_zeros(())
            if self.how.pointwise:
                share = batch.weights.sum() / steps
                loss += self.how.pointwise * share * pointwise(logits, batch.targets, batch.weights)
            if len(batch.pairs):
                share = batch.shares.sum() / pairs
                logits = whole(logits, batch, self.how.pairs_on)
                loss += self.how.pairwise * share * pairwise(logits, batch.pairs, batch.shares)
            yield loss

    def _batch(self, examples: Sequence[Example]) -> Batch:
        return batched([example.answer for example in examples], self.how.on, self.balance)

    def _keep(self, checkpoint: Path) -> None:
        state = {
            "losses": self.losses,
            "history": self.history,
            "now": _copies(self.valued.learns),
            "best": self._best,
            "optimiser": self._optimiser.state_dict(),
        }
        keep(checkpoint, self._key, state)

    def _resume(self) -> None:
        """Take up what an earlier tuning of the same kind on the same data has kept."""
        if self.checkpoint is None or (kept := taken_up(self.checkpoint, self._key)) is None:
            return
        self.losses = cast("list[float]", kept["losses"])
        self.history = cast("list[float]", kept["history"])
        self._best = cast("Tensors", kept["best"])
        self.valued.load_state_dict(cast("Tensors", kept["now"]), strict=False)
        self._optimiser.load_state_dict(cast("dict[str, object]", kept["optimiser"]))

    @cached_property
    def _key(self) -> str:
        """A digest of all that decides what comes out."""
        apart = {"keep", "how", "calibration", "tokens", "recompute", "device"}
        told = [
            [self.valued.model.name_or_path, str(self.valued.model.dtype)],
            self.how.model_dump(mode="json", exclude=apart),
            [asdict(example) for example in (*self.train, *self.held_out)],
            len(self.train),
        ]
        return blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=16).hexdigest()


def passes(examples: Sequence[Example], tokens: int, *, whole: bool) -> Iterator[list[Example]]:
    """Examples of about the same length together, shortest first.

    Args:
        examples: some.
        tokens: of a pass at most, padding included; what is longer goes alone.
        whole: whether the answers to a problem stay together, for they are compared.
    """
    groups: dict[object, list[Example]] = {}
    for number, example in enumerate(examples):
        groups.setdefault(example.answer.problem if whole else number, []).append(example)
    part: list[Example] = []
    for group in sorted(groups.values(), key=_longest):
        if part and (len(part) + len(group)) * _longest(group) > tokens:
            yield part
            part = []
        part = part + group
    if part:
        yield part


def _longest(examples: Sequence[Example]) -> int:
    return max(len(example.tokens) for example in examples)


def _rate(update: int, updates: int, warm_up: float) -> float:
    """Of the highest rate: a line up, then half a cosine down."""
    rise = round(warm_up * updates)
    if update < rise:
        return (update + 1) / (rise + 1)
    return (1 + math.cos(math.pi * (update - rise) / (updates - rise))) / 2


def _copies(learns: dict[str, nn.Parameter]) -> Tensors:
    return {name: each.detach().cpu().clone() for name, each in learns.items()}


def loaded(spec: HF) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model with a value head of one label; where it brings none, it begins with zeros.

    Args:
        spec: the model, its dtype and its device.

    Raises:
        SpecError: there is no such model or device, or transformers has no value head for its kind.
        BackendError: the model cannot be fetched.
    """
    device, dtype = chosen(spec)
    name, where = spec.model, folder(spec.model, dtype)
    try:
        with without_bars(), without_reports():
            tokenizer = AutoTokenizer.from_pretrained(where)
            config = AutoConfig.from_pretrained(where, num_labels=1)
            config.token_classification_bias = True
            kind: torch.dtype = getattr(torch, dtype)
            both: object = AutoModelForTokenClassification.from_pretrained(
                where, config=config, dtype=kind, output_loading_info=True
            )
    except Exception as error:  # what is damaged fails in many ways
        problem = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SpecError(f"model {name!r} takes no value head: {problem}") from error
    model, told = cast("tuple[PreTrainedModel, dict[str, set[str]]]", both)
    missing = told["missing_keys"]
    if not hasattr(model, "score") or missing - {"score.weight", "score.bias"}:
        raise SpecError(f"model {name!r} takes no value head: it lacks {min(missing)}")
    if missing:
        for parameter in cast("nn.Linear", model.score).parameters():
            nn.init.zeros_(parameter)
    model.to(device)  # pyright: ignore[reportArgumentType]  (its type has lost nn.Module's)
    return model, tokenizer


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a tuning has come to.

    Args:
        format: how the model wants to be read.
        found: what the held-out problems say of it.
        history: its epochs.
        left_out: answers that were too long.
    """

    format: Format
    found: Findings
    history: Sequence[Epoch]
    left_out: int

    @property
    def how(self) -> How:
        """How the scores of several steps become one."""
        return self.format.how


def tune(
    labels: Labels,
    spec: HF,
    how: LoRA,
    out: Path,
    watch: Callable[[Progress], None] = lambda _: None,
) -> Tuned:
    """Tune a model, find out what it is worth, and write it down.

    `out` then holds a model that the engine and transformers load, with a value head whose output
    is a logit; `format.toml`, which says how a `prm` verifier reads it; `report.md` and
    `calibration.svg`. A tuning that was ended half-way goes on from its `checkpoint.pt`.

    The question is put before the model as before the policy, but for worked examples: what they
    would tell is learned.

    Args:
        labels: what to learn from.
        spec: the model; of the rest its dtype, its device and its threads count. What learns has
            single precision in any case.
        how: to tune.
        out: where to.
        watch: told each update.

    Raises:
        SpecError: the model takes no value head, there is too little to learn from, or the model
            cannot be written.
        BackendError: the model cannot be fetched.
    """
    if (out / "config.json").exists():
        raise SpecError(f"{out} holds a model already", hint="give another directory with --out")
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    model, tokenizer = loaded(spec)
    reads = labels.reads.model_copy(update={"shots": ()})
    text = Text(tokenizer, frozenset())
    rows = [row for row in labels.rows if len(_tokens(row, reads, text)[0]) <= how.longest]
    if not rows or "{prompt}" not in reads.template:
        what = "a `template` with {prompt}" if rows else f"an answer of {how.longest} tokens"
        raise SpecError(f"{labels.folder}: there has to be {what}")
    blank = [torch.zeros(len(row.steps), 1).numpy() for row in rows]  # nothing is kept of a model
    train, held_out = split(joined(rows, blank, how.label), how.held_out, how.seed)
    teaches(train.answers, how)
    told, judged = (
        [
            Example(answer, *_tokens(row, reads, text))
            for answer, row in zip(data.answers, data.rows, strict=True)
        ]
        for data in (train, held_out)
    )
    valued = Valued(model, how)
    tuner = Tuner(
        valued,
        told,
        judged,
        how,
        balance=share(train.answers, how.on) if how.balance else None,
        checkpoint=out / CHECKPOINT,
        watch=watch,
    )
    tuner.run()
    valued.merge()  # first, so that what is said of it is said of what is saved
    values = tuner.values(judged)[:, None]
    found = examined(_first, Data(held_out.rows, held_out.answers, values), how)
    valued.calibrate(found.calibration)
    form = Format(
        system=reads.system,
        question=reads.template,
        separator=reads.separator,
        strip=False,  # as it was in training
        read=Value(scale="sigmoid"),
        how=how.how,
    )
    about = {"model": spec.model, **numbers(found, how, tuner.epochs, train, held_out)}
    note = " The held-out problems also chose the epoch."
    text_of = page(f"{spec.model}, tuned", found, how, tuner.epochs, (train, held_out), note=note)
    put(out / "training.json", (json.dumps(about, indent=2) + "\n").encode())
    put(out / "report.md", text_of.encode())
    put(out / "calibration.svg", found.svg.encode())
    put(out / "format.toml", toml(form).encode())
    save(valued, tokenizer, out)
    (out / CHECKPOINT).unlink(missing_ok=True)
    return Tuned(form, found, tuner.epochs, len(labels.rows) - len(rows))


def toml(form: Format) -> str:
    """A format as a file beside those of the package.

    Example:
        >>> print(toml(Format(read=Value(scale="sigmoid"))).splitlines()[-2])
        read = { kind = "value", scale = "sigmoid", label = 0 }
    """
    table = form.model_dump(mode="json", exclude_none=True)
    lines: list[str] = []
    for name, value in table.items():
        said = _toml(value)
        if isinstance(value, dict):
            inner = (f"{key} = {_toml(own)}" for key, own in value.items())
            said = f"{{ {', '.join(inner)} }}"
        lines.append(f"{name} = {said}\n")
    return "".join(lines)


def _toml(value: object) -> str:
    # What JSON escapes, TOML reads alike; DEL alone must not stand there as it is.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _first(values: Tensor) -> Tensor:
    return values[:, 0]


def save(valued: Valued, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Write a merged model and its tokenizer down; its head keeps single precision.

    Raises:
        SpecError: they cannot be written.
    """
    half = out / "part"
    try:
        shutil.rmtree(half, ignore_errors=True)
        with without_bars():
            valued.model.save_pretrained(half)
        tokenizer.save_pretrained(half)
        # The config comes last: where it is, the model is whole.
        for file in sorted(half.iterdir(), key=lambda file: file.name == "config.json"):
            file.replace(out / file.name)
        half.rmdir()
    except (OSError, SafetensorError) as error:
        raise SpecError(f"cannot write the model to {out}: {error}") from error


def _tokens(row: Labelled, reads: Reads, text: Text) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """An answer in tokens, as the engine reads it, and the places where its steps end.

    Raises:
        SpecError: the model has no chat template.
        BackendError: the model's chat template refuses.
    """
    question, pieces = text.pieces(reads.request(row.prompt, row.steps))
    ends = accumulate((len(piece) for piece in pieces), initial=len(question) - 1)
    return (*question, *(token for piece in pieces for token in piece)), tuple(ends)[1:]
