"""Requests become rows, rows become steps: the part of the engine that knows both."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import cast

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from branchwise.backends.batcher import Feed, Ticket
from branchwise.backends.hf import attention, head
from branchwise.backends.hf.asked import Asked, Judge, Told
from branchwise.backends.hf.backend import HF
from branchwise.backends.hf.engine import Engine
from branchwise.backends.hf.model import Model
from branchwise.backends.hf.packed import pack
from branchwise.backends.hf.quiet import without_bars, without_reports
from branchwise.backends.hf.row import Look, Row
from branchwise.backends.hf.sampler import check
from branchwise.backends.hf.speculation import Lookup, Smaller
from branchwise.backends.hf.text import Stops, Text, Written
from branchwise.backends.models import Dtype, folder, revision
from branchwise.core.errors import BackendError, SpecError
from branchwise.core.types import Candidate, Reading, Request, Step, Usage


def load(spec: HF) -> Server:
    """Load what a spec names, fetching it at first use.

    Raises:
        SpecError: no such model or device, or the engine cannot run the model.
        BackendError: the model cannot be fetched.
    """
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    device, dtype = chosen(spec)
    where = folder(spec.model, dtype)
    tokenizer, model, value = _loaded(spec.model, where, dtype, device)
    smaller = None
    if spec.draft not in {None, "lookup"}:
        small = folder(cast("str", spec.draft), dtype)
        other, smaller, _ = _loaded(cast("str", spec.draft), small, dtype, device)
        if other.get_vocab() != tokenizer.get_vocab():
            raise SpecError(
                f"{spec.draft!r} has another vocabulary than {spec.model!r}",
                hint="only a model of the same family can draft; draft='lookup' needs none",
            )
        if smaller.get_output_embeddings() is None:
            raise SpecError(
                f"{spec.draft!r} has no language head", hint="a model that judges cannot draft"
            )
    # Of a local path only its end: the same weights elsewhere are the same model.
    short = where.name if Path(spec.model).expanduser().exists() else spec.model
    name = f"hf/{short}@{revision(spec.model, where)}/{dtype}"
    if spec.draft is not None:
        # The law of what is said stays the same; which sample a seed gives does not.
        name += f"/{spec.draft}-{spec.guess}"
    try:
        server = Server(name, model, tokenizer, spec, value=value, smaller=smaller)
        server.warm_up()
    except Exception as error:
        raise SpecError(
            f"the local engine cannot run a {model.config.model_type}: {error}",
            hint="serve it, and use the openai backend",
        ) from error
    return server


def _loaded(
    name: str, where: Path, dtype: Dtype, device: torch.device
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel, torch.nn.Module | None]:
    """A model's tokenizer, the model without what it does not use, and its value head."""
    try:
        with without_bars(), without_reports():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                where, trust_remote_code=False
            )
            # Of a reward model, too, all but the value head is that of a language model. Code that
            # comes with it stays where it is, and unknown tensors are left out.
            loaded: object = AutoModelForCausalLM.from_pretrained(
                where,
                dtype=getattr(torch, dtype),
                attn_implementation=attention.NAME,
                output_loading_info=True,
                trust_remote_code=False,
            )
        model, told = cast("tuple[PreTrainedModel, dict[str, set[str]]]", loaded)
        value = head.load(where, model.config)
    except Exception as error:  # what is damaged fails in many ways
        problem = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SpecError(f"model {name!r} does not load: {problem}") from error
    if getattr(model.config.get_text_config(), "use_bidirectional_attention", False) or any(
        getattr(module, "is_causal", True) is False for module in model.modules()
    ):
        raise SpecError(f"model {name!r} attends in both directions")
    missing = told["missing_keys"]  # transformers fills them with random numbers
    language = {
        f"{part}.weight"
        for part, module in model.named_modules()
        if module is model.get_output_embeddings()
    }
    if head.only_judges(model.config) or (value and missing & language):
        if value is None:
            own = ", ".join(sorted(told["unexpected_keys"])) or "none"
            raise SpecError(f"model {name!r} has no value head that is known (its own: {own})")
        missing -= language
        model = cast("PreTrainedModel", model.base_model)
    if missing:
        raise SpecError(f"model {name!r} does not load: it lacks {min(missing)}")
    model.to(device)  # pyright: ignore[reportArgumentType]  (its type has lost nn.Module's)
    pack(model)
    return tokenizer, model.eval(), value.to(device) if value else None


class Server:
    """Answers requests with one model, all that are there at once.

    Args:
        name: the model, its revision and its dtype.
        model: with the attention of this package.
        tokenizer: the model's.
        spec: of the engine.
        value: the model's value head, if it has one.
        smaller: a model that guesses what this one says.
    """

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        spec: HF,
        *,
        value: torch.nn.Module | None = None,
        smaller: PreTrainedModel | None = None,
    ) -> None:
        self.name = name
        self._tokenizer = tokenizer
        self._ends = _ends(model, tokenizer)
        config = model.config.get_text_config()
        self._room = _room(config)
        self._vocabulary: int = config.vocab_size
        self._text = Text(tokenizer, self._ends)
        self._model = Model(model, _bytes(spec.memory), value)
        drafter = None
        if smaller is not None:
            small, room = Model(smaller, _bytes(spec.memory)), _room(smaller.config)
            drafter = partial(Smaller, small, spec.guess, self._vocabulary, room)
        elif spec.draft == "lookup":
            drafter = partial(Lookup, spec.guess)
        self._engine = Engine(self._model, self._ends, spec.max_rows, drafter)

    def warm_up(self) -> None:
        """Read and draw a little: whether the loop fits the model shows, and no call is slow."""
        row = Row(context=(0, 0, 0), limit=4)
        if not self._model.speaks:
            row = Row(context=(0, 0, 0), look=Look())
        arrivals = iter([[row]])
        self._engine.run(lambda: next(arrivals, []))

    def run(self, feed: Feed[Asked, Told]) -> None:
        """Answer each request as soon as its rows are done, until there is none left.

        Raises:
            BackendError: the model failed for all of them.
        """
        jobs: dict[Ticket[Asked, Told], _Drawing | _Judging | _Looking] = {}

        def exchange() -> list[Row]:
            outcomes: list[tuple[Ticket[Asked, Told], Told | Exception]] = []
            arrived: list[Row] = []
            for ticket in feed.take():
                try:
                    asked = ticket.item
                    job = self._judge(asked) if isinstance(asked, Judge) else self._draw(asked)
                except Exception as error:  # noqa: BLE001  (raised in its caller; others go on)
                    outcomes.append((ticket, error))
                else:
                    jobs[ticket] = job
                    for row in job.rows:
                        row.gone = partial(getattr, ticket, "gone")
                    arrived += job.rows
            for ticket, job in list(jobs.items()):
                done = all(row.done for row in job.rows)
                if done:
                    outcomes.append((ticket, job.outcome()))
                if done or ticket.gone:
                    del jobs[ticket]
            if outcomes:
                feed.settle(outcomes)
            return arrived

        self._engine.run(exchange)

    def _draw(self, request: Request) -> _Drawing:
        if not self._model.speaks:
            raise SpecError("the model has no language head", hint="it judges: `read` it instead")
        check(request.sampling, self._vocabulary, self._model.embedding)
        if request.candidates < 0 or not all(0 <= seed < 2**64 for seed in request.seeds):
            raise SpecError("seeds lie between 0 and 2**64, candidates are not negative")
        context = self._checked(self._text.context(request))
        if not context:
            raise BackendError("the prompt is empty", hint="the model needs a token to begin with")
        room = self._room - len(context)
        if room <= 0:
            raise self._too_long(len(context), "and one more")
        if request.max_tokens <= 0:
            raise BackendError(
                f"max_tokens is {request.max_tokens}", hint="ask for one token at least"
            )
        asked = len(self._text.context(replace(request, said=())))
        stops = self._text.stops(tuple(request.stop))
        samples = [_Sample(self._written(request, context), stops) for _ in request.seeds]
        rows = [
            Row(
                context=context,
                seed=seed,
                sampling=request.sampling,
                limit=min(request.max_tokens, room),
                asked=asked,
                top=request.candidates,
                stops=sample.add,
            )
            for seed, sample in zip(request.seeds, samples, strict=True)
        ]
        return _Drawing(rows, samples, partial(self._written, request, context))

    def _judge(self, judge: Judge) -> _Judging | _Looking:
        if judge.since < 0:
            raise SpecError(f"since is {judge.since}", hint="steps are counted from 0")
        question, said = self._text.pieces(judge.request)
        since = min(judge.since, len(said))
        context = tuple(token for piece in (question, *said[:since]) for token in piece)
        pieces = said[since:]
        look = Look(judge.state, self._words(judge.words))
        looks = look != Look() or self._model.judges
        text = self._checked(context + tuple(token for piece in pieces for token in piece))
        if len(text) > self._room:
            raise self._too_long(len(text))
        if looks:
            pieces = pieces or [()]
            ends = list(accumulate(map(len, pieces), initial=len(context)))[1:]
            if not ends[0]:
                raise BackendError("there is nothing to read", hint="a model needs a token")
            return _Looking([Row(context=text[:end], look=look) for end in ends], pieces)
        if not all(pieces):
            raise BackendError("a step to judge is empty", hint="each needs a token at least")
        if pieces and not context:
            raise BackendError("the prompt is empty", hint="the model needs a token to begin with")
        rows = [Row(context=context, given=text[len(context) :])] if pieces else []
        return _Judging(rows, pieces)

    def _words(self, words: Sequence[str | int]) -> tuple[int, ...]:
        tokens = tuple(map(self._word, words))
        named: dict[int, str | int] = {}
        for word, token in zip(words, tokens, strict=True):
            if named.setdefault(token, word) != word:
                raise SpecError(
                    f"the words {named[token]!r} and {word!r} are one token of this model",
                    hint="one of them is enough: who adds them up would count it twice",
                )
        return tokens

    def _word(self, word: str | int) -> int:
        token = self._text.token(word) if isinstance(word, str) else word
        if not self._model.speaks:
            raise SpecError("the model has no language head", hint="it gives values, but no words")
        if not 0 <= token < self._vocabulary:
            raise SpecError(f"the model's vocabulary has no token {token}")
        return token

    def _checked(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        strange = next((t for t in tokens if not 0 <= t < self._vocabulary), None)
        if strange is not None:
            raise BackendError(f"the model's vocabulary has no token {strange}")
        return tokens

    def _too_long(self, tokens: int, more: str = "") -> BackendError:
        count = f"{tokens} tokens {more}".rstrip()
        return BackendError(
            f"{count} do not fit the model, which holds {self._room}", hint="shorten the prompt"
        )

    def _written(self, request: Request, context: Sequence[int]) -> Written:
        return Written(self._tokenizer, context, request.stop, self._ends)


@dataclass(slots=True)
class _Sample:
    """The text of a row, written down when it must be known: once is cheaper than in pieces.

    Args:
        written: what is written.
        stops: the strings that end it.
    """

    written: Written
    stops: Stops
    _unwritten: list[int] = field(default_factory=list[int])

    def add(self, token: int) -> bool:
        """Take the next token; whether it completes a stop string."""
        self._unwritten.append(token)
        return self.stops.completes(token) and self._write()

    def text(self) -> str:
        self._write()
        return self.written.text

    def _write(self) -> bool:
        tokens, self._unwritten = self._unwritten, []
        return self.written.add(tokens)


@dataclass(frozen=True, slots=True)
class _Drawing:
    rows: Sequence[Row]
    samples: Sequence[_Sample]
    begun: Callable[[], Written]

    def outcome(self) -> Sequence[Step] | Exception:
        errors = [row.error for row in self.rows if row.error is not None]
        steps = [
            None if row.error else self._step(row, sample, first=index == 0)
            for index, (row, sample) in enumerate(zip(self.rows, self.samples, strict=True))
        ]
        if errors:
            return BackendError(errors[0].message, hint=errors[0].hint, arrived=steps)
        return [step for step in steps if step is not None]

    def _step(self, row: Row, sample: _Sample, *, first: bool) -> Step:
        usage = Usage(
            calls=int(first),
            prompt=row.read if first else 0,
            cached=max(0, len(row.context) - row.read) if first else 0,
            completion=len(row.tokens),
            seconds=row.seconds,
        )
        return Step(
            sample.text(),
            tuple(row.tokens),
            sum(row.logprobs),
            tuple(row.logprobs),
            row.finish or "length",
            usage,
            proposals=tuple(row.proposals),
            candidates=tuple(self._candidates(row)),
        )

    def _candidates(self, row: Row) -> Iterator[tuple[Candidate, ...]]:
        if not row.tops:
            return
        written = self.begun()
        for drawn, top in zip(row.tokens, row.tops, strict=True):
            yield tuple(
                Candidate(
                    token,
                    written.adds(token),
                    logprob,
                    None if proposal == -math.inf else proposal,
                )
                for token, logprob, proposal in top
            )
            written.add([drawn])


@dataclass(frozen=True, slots=True)
class _Judging:
    rows: Sequence[Row]  # one, or none where there is nothing to judge
    pieces: Sequence[tuple[int, ...]]

    def outcome(self) -> Sequence[Reading] | Exception:
        ends = list(accumulate(map(len, self.pieces), initial=0))
        return _error(self.rows) or [
            Reading(
                piece,
                tuple(row.logprobs[begin:end]),
                usage=self._usage(row, len(piece), first=not begin),
            )
            for row in self.rows
            for piece, (begin, end) in zip(self.pieces, pairwise(ends), strict=True)
        ]

    def _usage(self, row: Row, tokens: int, *, first: bool) -> Usage:
        if not first:
            return Usage(prompt=tokens)
        cached = max(0, len(row.context) - row.read)
        return Usage(1, tokens + row.read, cached, seconds=row.seconds)


@dataclass(frozen=True, slots=True)
class _Looking:
    rows: Sequence[Row]  # one for each piece
    pieces: Sequence[tuple[int, ...]]

    def outcome(self) -> Sequence[Reading] | Exception:
        return _error(self.rows) or [
            Reading(
                piece,
                values=row.values,
                state=row.state,
                words=row.words,
                usage=self._usage(row, len(piece) if index else len(row.context), index),
            )
            for index, (piece, row) in enumerate(zip(self.pieces, self.rows, strict=True))
        ]

    def _usage(self, row: Row, tokens: int, index: int) -> Usage:
        return Usage(int(not index), row.read, max(0, tokens - row.read), seconds=row.seconds)


def _error(rows: Sequence[Row]) -> BackendError | None:
    return next((row.error for row in rows if row.error is not None), None)


def _room(config: PreTrainedConfig) -> int:
    """The longest sequence of a model that the engine computes as the model does.

    Some models turn to other frequencies, or attend in chunks, beyond a length: the whole pass then
    depends on its longest row, which rows of a batch must not.
    """
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    rooms: list[int | None] = [getattr(text, "max_position_embeddings", None)]
    if rope.get("rope_type") in {"longrope", "dynamic"}:
        rooms.append(rope.get("original_max_position_embeddings"))
        rooms.append(getattr(text, "original_max_position_embeddings", None))
    rooms.append(getattr(text, "attention_chunk_size", None))
    return min((room for room in rooms if room), default=sys.maxsize)


def _bytes(gigabytes: float) -> int:
    return int(gigabytes * 2**30)


def chosen(spec: HF) -> tuple[torch.device, Dtype]:
    """The device that a spec names, and the dtype: that which is fast there, where it names none.

    Raises:
        SpecError: there is no such device.
    """
    device = _device(spec.device)
    return device, _fast(device) if spec.dtype == "auto" else spec.dtype


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise SpecError(
            f"no device {name!r} here", hint="device='auto' takes what there is"
        ) from error


def _fast(device: torch.device) -> Dtype:
    """The dtype that is fast here: bfloat16 only where the hardware multiplies it."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    able = torch.cpu.get_capabilities()
    return (
        "bfloat16"
        if any(able.get(key) for key in ("amx_bf16", "avx512_bf16", "bf16"))
        else "float32"
    )


def _ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every token that ends an answer, whoever declares it."""
    ends: set[int] = set()
    config = getattr(model, "generation_config", None)  # reward models have none
    for declared in (config and config.eos_token_id, tokenizer.eos_token_id):
        if isinstance(declared, int):
            ends.add(declared)
        elif declared is not None:
            ends.update(int(token) for token in declared)
    return frozenset(ends)
