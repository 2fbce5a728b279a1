"""Record every answer of a model; replay them without it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import anyio
from anyio import to_thread
from pydantic import TypeAdapter, ValidationError

from branchwise.core.errors import BackendError, SpecError
from branchwise.core.types import Backend, Request, Step

_step = TypeAdapter(Step)
_request = TypeAdapter(Request)


class Journal:
    """A backend that writes down what the one behind it says, and never asks it twice.

    The key of a sample is the model's name, everything in the request that could change the
    answer, and the seed: so a search that wants eight samples where another had four pays for
    four. The same question asked twice at once is asked once. Each answer is in the file before it
    is handed on; a crashed run is resumed by running it again. A replayed step carries the usage
    that was paid when it was recorded. It records what a model writes; what a model only reads is
    asked of the model itself.

    Args:
        path: a file of one JSON object a line; made where it is missing. Text after the last line
            break (a write that was cut off) is dropped.
        backend: the model; None replays only.

    Raises:
        SpecError: a line is no record, or the journal shall be replayed and holds no model, or
            several.

    Example:
        >>> import tempfile
        >>> from branchwise import Request, Scripted, run_sync
        >>> file = Path(tempfile.mkdtemp(), "journal.jsonl")
        >>> live = Journal(file, Scripted(lambda request, seed: f"{seed}"))
        >>> said = run_sync(live.complete, Request(prompt="?", seeds=(7,)))
        >>> run_sync(Journal(file).complete, Request(prompt="?", seeds=(7,))) == said
        True
    """

    def __init__(self, path: Path | str, backend: Backend | None = None) -> None:
        self.path, self.backend = Path(path), backend
        self.recorded: dict[str, Step] = {}
        self._in_flight: dict[str, anyio.Event] = {}
        models = self._read()
        if backend is not None:
            self.name = backend.name
        elif len(models) == 1:
            (self.name,) = models
        else:
            raise SpecError(
                f"{self.path} holds the answers of {len(models)} models: one can be replayed",
                hint="record with Journal(path, backend) first",
            )

    async def complete(self, request: Request) -> Sequence[Step]:
        """One step for each seed: the recorded one, or a new one that is recorded.

        Raises:
            BackendError: the model failed, or a sample is not recorded and there is no model.
        """
        question = self._question(request)
        keys = {seed: f"{question}/{seed}" for seed in request.seeds}
        while missing := [seed for seed, key in keys.items() if key not in self.recorded]:
            ours = [seed for seed in missing if keys[seed] not in self._in_flight]
            if not ours:  # somebody else asks already; where that fails, the loop asks again
                await self._in_flight[keys[missing[0]]].wait()
                continue
            try:
                await self._ask(request, {seed: keys[seed] for seed in ours})
            except BackendError as error:
                error.arrived = [self.recorded.get(keys[seed]) for seed in request.seeds]
                raise
        return [self.recorded[keys[seed]] for seed in request.seeds]

    async def _ask(self, request: Request, keys: dict[int, str]) -> None:
        if self.backend is None:
            raise BackendError(
                f"{self.path} holds no answer to {request.asked[:60]!r} with seed {min(keys)}",
                hint="the journal was recorded with another spec; give it a backend to go on",
            )
        told = anyio.Event()
        self._in_flight |= dict.fromkeys(keys.values(), told)
        try:
            steps = await self.backend.complete(dataclasses.replace(request, seeds=tuple(keys)))
            await self._record(keys, steps)
        except BackendError as error:
            await self._record(keys, error.arrived)
            raise
        finally:
            for key in keys.values():
                del self._in_flight[key]
            told.set()

    async def _record(self, keys: dict[int, str], steps: Sequence[Step | None]) -> None:
        """What was paid for is kept, come what may."""
        rows = {
            key: step
            for key, step in zip(keys.values(), steps, strict=bool(steps))
            if step is not None
        }
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(self._write, rows)
        self.recorded |= rows

    def _question(self, request: Request) -> str:
        asked = _request.dump_python(request, mode="json", exclude={"seeds", "said"})
        said = [(step.text, step.tokens) for step in request.said]
        canonical = json.dumps([self.name, asked, said], sort_keys=True)
        return blake2b(canonical.encode(), digest_size=16).hexdigest()

    def _write(self, rows: dict[str, Step]) -> None:
        lines = [
            json.dumps(
                {"model": self.name, "key": key, "step": _step.dump_python(step, mode="json")},
                ensure_ascii=False,
            )
            for key, step in rows.items()
        ]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(f"{line}\n" for line in lines))
        except OSError as error:
            raise SpecError(f"cannot write the journal {self.path}: {error.strerror}") from error

    def _read(self) -> set[str]:
        if not self.path.exists():
            return set()
        whole = self.path.read_bytes()
        kept = whole[: whole.rfind(b"\n") + 1]
        if self.backend is not None and len(kept) < len(whole):
            os.truncate(self.path, len(kept))
        models: set[str] = set()
        for number, line in enumerate(kept.splitlines(), start=1):
            try:
                row = json.loads(line)
                self.recorded[row["key"]] = _step.validate_python(row["step"])
                models.add(row["model"])
            except (ValueError, KeyError, TypeError, ValidationError) as error:
                raise SpecError(f"{self.path}, line {number}: not a record of a journal") from error
        return models
