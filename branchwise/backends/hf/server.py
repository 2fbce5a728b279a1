"""Requests become rows, rows become steps: the part of the engine that knows both."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TypeAlias, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from branchwise.backends.batcher import Feed, Ticket
from branchwise.backends.hf import attention
from branchwise.backends.hf.asked import Asked, Judge, Told
from branchwise.backends.hf.backend import HF
from branchwise.backends.hf.engine import Engine
from branchwise.backends.hf.model import Model
from branchwise.backends.hf.packed import pack
from branchwise.backends.hf.quiet import without_bars
from branchwise.backends.hf.row import Row
from branchwise.backends.hf.sampler import check
from branchwise.backends.hf.speculation import Lookup, Smaller
from branchwise.backends.hf.text import Stops, Text, Written
from branchwise.backends.models import Dtype, folder, revision
from branchwise.core.errors import BackendError, SpecError
from branchwise.core.types import Candidate, Reading, Request, Step, Usage

_AutoModel: TypeAlias = (
    AutoModelForCausalLM | AutoModelForSequenceClassification | AutoModelForTokenClassification
)


def load(spec: HF) -> Server:
    """Load what a spec names, fetching it at first use.

    Raises:
        SpecError: no such model or device, or the engine cannot run the model.
        BackendError: the model cannot be fetched.
    """
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    device = _device(spec.device)
    dtype: Dtype = _fast(device) if spec.dtype == "auto" else spec.dtype
    where = folder(spec.model, dtype)
    tokenizer, model = _loaded(spec.model, where, dtype, device)
    smaller = None
    if spec.draft not in {None, "lookup"}:
        small = folder(cast("str", spec.draft), dtype)
        other, smaller = _loaded(cast("str", spec.draft), small, dtype, device)
        if other.get_vocab() != tokenizer.get_vocab():
            raise SpecError(
                f"{spec.draft!r} has another vocabulary than {spec.model!r}",
                hint="only a model of the same family can draft; draft='lookup' needs none",
            )
        if _kind(smaller.config) is not AutoModelForCausalLM:
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
        server = Server(name, model, tokenizer, spec, smaller)
        server.warm_up()
    except Exception as error:
        raise SpecError(
            f"the local engine cannot run a {model.config.model_type}: {error}",
            hint="serve it, and use the openai backend",
        ) from error
    return server


def _loaded(
    name: str, where: Path, dtype: Dtype, device: torch.device
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    try:
        with without_bars():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(where)
            kind = _kind(AutoConfig.from_pretrained(where))
            loaded: object = kind.from_pretrained(
                where,
                dtype=getattr(torch, dtype),
                attn_implementation=attention.NAME,
                output_loading_info=True,
            )
    except Exception as error:  # what is damaged fails in many ways
        problem = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SpecError(f"model {name!r} does not load: {problem}") from error
    model, told = cast("tuple[PreTrainedModel, dict[str, set[str]]]", loaded)
    if told["missing_keys"]:  # transformers fills them with random numbers
        raise SpecError(f"model {name!r} does not load: it lacks {min(told['missing_keys'])}")
    if getattr(model.config.get_text_config(), "use_bidirectional_attention", False):
        raise SpecError(f"model {name!r} attends in both directions")
    model.to(device)  # pyright: ignore[reportArgumentType]  (its type has lost nn.Module's)
    pack(model)
    return tokenizer, model.eval()


def _kind(config: PreTrainedConfig) -> type[_AutoModel]:
    """What class a model's weights are of: reward models have a value head."""
    for name in config.architectures or ():
        if name.endswith("ForSequenceClassification"):
            return AutoModelForSequenceClassification
        if name.endswith("ForTokenClassification"):
            return AutoModelForTokenClassification
    return AutoModelForCausalLM


class Server:
    """Answers requests with one model, all that are there at once.

    Args:
        name: the model, its revision and its dtype.
        model: with the attention of this package.
        tokenizer: the model's.
        spec: of the engine.
        smaller: a model that guesses what this one says.
    """

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        spec: HF,
        smaller: PreTrainedModel | None = None,
    ) -> None:
        self.name = name
        self._tokenizer = tokenizer
        self._ends = _ends(model, tokenizer)
        config = model.config.get_text_config()
        self._room = _room(config)
        self._vocabulary: int = config.vocab_size
        self._text = Text(tokenizer, self._ends)
        self._model = Model(model, _bytes(spec.memory))
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
            row = Row(context=(0, 0, 0), given=(0,), after=frozenset({0}))
        arrivals = iter([[row]])
        self._engine.run(lambda: next(arrivals, []))

    def run(self, feed: Feed[Asked, Told]) -> None:
        """Answer each request as soon as its rows are done, until there is none left.

        Raises:
            BackendError: the model failed for all of them.
        """
        jobs: dict[Ticket[Asked, Told], _Drawing | _Judging] = {}

        def exchange() -> list[Row]:
            outcomes: list[tuple[Ticket[Asked, Told], Told | Exception]] = []
            for ticket, job in list(jobs.items()):
                done = all(row.done for row in job.rows)
                if done:
                    outcomes.append((ticket, job.outcome()))
                if done or ticket.gone:
                    del jobs[ticket]
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

    def _judge(self, judge: Judge) -> _Judging:
        said = judge.request.said
        context = self._text.context(replace(judge.request, said=said[: judge.since]))
        pieces = self._text.pieces(said[judge.since :])
        given = tuple(token for piece in pieces for token in piece)
        self._checked(context + given)
        if not all(pieces):
            raise BackendError("a step to judge is empty", hint="each needs a token at least")
        if self._model.speaks and not context:
            raise BackendError("the prompt is empty", hint="the model needs a token to begin with")
        if len(context) + len(given) > self._room:
            raise self._too_long(len(context) + len(given))
        ends = [end - 1 for end in accumulate(map(len, pieces))]
        after = frozenset(ends) if judge.state or not self._model.speaks else frozenset[int]()
        return _Judging([Row(context=context, given=given, after=after)], pieces, judge.state)

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
    rows: Sequence[Row]  # one
    pieces: Sequence[tuple[int, ...]]
    state: bool

    def outcome(self) -> Sequence[Reading] | Exception:
        (row,) = self.rows
        if row.error is not None:
            return row.error
        ends = [0, *accumulate(map(len, self.pieces))]
        return [
            Reading(
                piece,
                tuple(row.logprobs[begin:end]),
                row.values.get(end - 1, ()),
                row.states.get(end - 1, ()) if self.state else (),
                self._usage(row, len(piece), first=not begin),
            )
            for piece, (begin, end) in zip(self.pieces, pairwise(ends), strict=True)
        ]

    def _usage(self, row: Row, tokens: int, *, first: bool) -> Usage:
        if not first:
            return Usage(prompt=tokens)
        cached = max(0, len(row.context) - row.read)
        return Usage(1, tokens + row.read, cached, seconds=row.seconds)


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
