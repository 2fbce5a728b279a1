"""Requests become rows, rows become steps: the part of the engine that knows both."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from branchwise.backends.batcher import Feed, Ticket
from branchwise.backends.hf import attention
from branchwise.backends.hf.backend import HF
from branchwise.backends.hf.engine import Engine, Row
from branchwise.backends.hf.packed import pack
from branchwise.backends.hf.quiet import without_bars
from branchwise.backends.hf.text import Text, Written
from branchwise.backends.models import Dtype, folder, revision
from branchwise.core.config import Sampling
from branchwise.core.errors import BackendError, SpecError
from branchwise.core.types import Request, Step, Usage

_Asked: TypeAlias = Ticket[Request, Sequence[Step]]


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
    try:
        with without_bars():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(where)
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                where, dtype=getattr(torch, dtype), attn_implementation=attention.NAME
            )
    except (OSError, ValueError) as error:
        problem = str(error).strip().splitlines()[0]
        raise SpecError(f"model {spec.model!r} does not load: {problem}") from error
    # Of a local path only its end: the same weights elsewhere are the same model.
    short = where.name if Path(spec.model).expanduser().exists() else spec.model
    name = f"hf/{short}@{revision(spec.model, where)}/{dtype}"
    model.to(device)  # pyright: ignore[reportArgumentType]  (its type has lost nn.Module's)
    pack(model)
    try:
        server = Server(name, model.eval(), tokenizer, spec.max_rows)
        server.warm_up()
    except Exception as error:
        raise SpecError(
            f"the local engine cannot run a {model.config.model_type}: {error}",
            hint="serve it, and use the openai backend",
        ) from error
    return server


class Server:
    """Answers requests with one model, all that are there at once.

    Args:
        name: the model, its revision and its dtype.
        model: with the attention of this package.
        tokenizer: the model's.
        max_rows: the most rows that are decoded together.
    """

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_rows: int,
    ) -> None:
        self.name = name
        self._tokenizer = tokenizer
        self._ends = _ends(model, tokenizer)
        config = model.config.get_text_config()
        # None where the positions have no end.
        room: int | None = getattr(config, "max_position_embeddings", None)
        self._room = room or sys.maxsize
        self._vocabulary: int = config.vocab_size
        self._text = Text(tokenizer, self._ends)
        self._engine = Engine(model, self._ends, max_rows)

    def warm_up(self) -> None:
        """Draw a token: whether the loop fits the model shows, and the first call is not slow."""
        row = Row(context=(0, 0, 0), seed=0, sampling=Sampling(), limit=1)
        arrivals = iter([[row]])
        self._engine.decode(lambda: next(arrivals, []))

    def run(self, feed: Feed[Request, Sequence[Step]]) -> None:
        """Answer each request as soon as its samples are drawn, until there is none left.

        Raises:
            BackendError: the model failed for all of them.
        """
        drawn: dict[_Asked, Sequence[_Sample]] = {}

        def exchange() -> list[Row]:
            outcomes: list[tuple[_Asked, Sequence[Step] | Exception]] = []
            for ticket, samples in list(drawn.items()):
                done = all(sample.row.finish for sample in samples)
                if done:
                    outcomes.append((ticket, [sample.step() for sample in samples]))
                if done or ticket.gone:
                    del drawn[ticket]
            arrived: list[_Sample] = []
            for ticket in feed.take():
                try:
                    drawn[ticket] = self._samples(ticket)
                except Exception as error:  # noqa: BLE001  (raised in its caller; others go on)
                    outcomes.append((ticket, error))
                else:
                    arrived += drawn[ticket]
            if outcomes:
                feed.settle(outcomes)
            return [sample.row for sample in arrived]

        self._engine.decode(exchange)

    def _samples(self, ticket: _Asked) -> list[_Sample]:
        request = ticket.item
        context = self._text.context(request)
        strange = next((t for t in context if not 0 <= t < self._vocabulary), None)
        if strange is not None:
            raise BackendError(f"the model's vocabulary has no token {strange}")
        limit = min(request.max_tokens, self._room - len(context))
        if limit <= 0:
            raise BackendError(
                f"a prompt of {len(context)} tokens leaves no room to answer",
                hint=f"the model holds {self._room} tokens in all, max_tokens must be positive",
            )
        return [
            self._sample(ticket, context, limit, seed, first=index == 0)
            for index, seed in enumerate(request.seeds)
        ]

    def _sample(
        self,
        ticket: _Asked,
        context: tuple[int, ...],
        limit: int,
        seed: int,
        *,
        first: bool,
    ) -> _Sample:
        stop = ticket.item.stop
        written = Written(self._tokenizer, context, stop, self._ends)
        row = Row(
            context=context,
            seed=seed,
            sampling=ticket.item.sampling,
            limit=limit,
            # Without stop strings the text can wait: to write it once is cheaper than in pieces.
            stops=(lambda token: written.add([token])) if stop else (lambda _: False),
            gone=lambda: ticket.gone,
        )
        return _Sample(row, written, read_at_end=not stop, first=first)


@dataclass(frozen=True, slots=True)
class _Sample:
    """A row and its text.

    Args:
        row: what the engine draws.
        written: its text.
        read_at_end: whether the text has not been written as the tokens came.
        first: whether it is its request's first, which carries the cost of the prompt.
    """

    row: Row
    written: Written
    read_at_end: bool
    first: bool

    def step(self) -> Step:
        row = self.row
        if self.read_at_end:
            self.written.add(row.tokens)
        usage = Usage(
            calls=int(self.first),
            prompt=row.read if self.first else 0,
            cached=len(row.context) - row.read if self.first else 0,
            completion=len(row.tokens),
            seconds=row.seconds,
        )
        return Step(
            self.written.text,
            tuple(row.tokens),
            sum(row.logprobs),
            tuple(row.logprobs),
            row.finish or "length",
            usage,
        )


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
    config = model.generation_config
    for declared in (config and config.eos_token_id, tokenizer.eos_token_id):
        if isinstance(declared, int):
            ends.add(declared)
        elif declared is not None:
            ends.update(int(token) for token in declared)
    return frozenset(ends)
