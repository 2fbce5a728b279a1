"""What a frozen model makes of each step, computed once and kept on disk."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

import anyio
from anyio import to_thread

from branchwise.core.aio import lanes
from branchwise.core.errors import BackendError, SpecError
from branchwise.core.types import Backend, Scoring
from branchwise.learning.labels import Labelled, key_of
from branchwise.verifiers.head import Reads, put

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[np.floating]

IN_FLIGHT = 64
_SHARD = 16
"""Answers of a file: so many may have to be read again after a crash."""


class Model(Backend, Scoring, Protocol):
    """A model that reads, and has a name."""


class Cache:
    """States on disk: files of tensors, one tensor of shape (steps, size) for each answer.

    An answer's name is a digest of the model, the prompt, the separator and the texts, so what was
    changed is read anew and what was not never is. Each file is written whole or not at all.

    Args:
        folder: where; made where it is missing.

    Raises:
        SpecError: a file in the folder is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Path] = {}
        self._fresh: dict[str, Array] = {}
        for file in sorted(folder.glob("*.safetensors")):
            self._files |= dict.fromkeys(_names(file), file)

    def __contains__(self, name: str) -> bool:
        return name in self._files or name in self._fresh

    def add(self, name: str, states: Sequence[Sequence[float]]) -> bool:
        """Take in the states of an answer; whether there is enough for a file."""
        import numpy as np  # noqa: PLC0415  (comes with an extra)

        self._fresh[name] = np.asarray(states, dtype="float32")
        return len(self._fresh) >= _SHARD

    def flush(self) -> None:
        """Write down what has been taken in.

        Raises:
            SpecError: it cannot be written.
        """
        from safetensors.numpy import save  # noqa: PLC0415  (comes with an extra)

        fresh, self._fresh = self._fresh, {}
        if fresh:
            file = self._folder / f"{secrets.token_hex(8)}.safetensors"
            put(file, save(fresh))
            self._files |= dict.fromkeys(fresh, file)

    def states(self, names: Sequence[str]) -> dict[str, Array]:
        """The states of these answers.

        Raises:
            KeyError: one is not there.
        """
        from safetensors import safe_open  # noqa: PLC0415  (comes with an extra)

        wanted: dict[Path, list[str]] = {}
        for name in dict.fromkeys(names):
            wanted.setdefault(self._files[name], []).append(name)
        found: dict[str, Array] = {}
        for file, here in wanted.items():
            with safe_open(file, framework="np") as tensors:
                found |= {name: tensors.get_tensor(name) for name in here}
        return found


def _names(file: Path) -> Iterator[str]:
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415  (comes with an extra)

    try:
        with safe_open(file, framework="np") as tensors:
            yield from tensors.keys()
    except (SafetensorError, OSError) as error:
        raise SpecError(
            f"{file}: damaged: {error}", hint="remove it; what it held is read again"
        ) from error


def digest(reads: Reads, model: str, row: Labelled) -> str:
    """The name of an answer's states."""
    canonical = key_of(reads, model, row.prompt, row.steps)
    return blake2b(canonical.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


async def embed(
    rows: Sequence[Labelled],
    reads: Reads,
    model: Model,
    cache: Cache,
    watch: Callable[[int, int], None] = lambda _done, _all: None,
) -> list[Array]:
    """The states after the steps of each answer, of shape (steps, size).

    Many answers are read at once, in their order, so that what begins alike is read once. What has
    been read is kept, however this ends.

    Args:
        rows: the answers.
        reads: how a question is put before the model.
        model: which is frozen.
        cache: what is there is not read again.
        watch: told how many answers are done, and of how many.

    Raises:
        SpecError: an answer does not fit the model, or the states cannot be written.
    """
    names = [digest(reads, model.name, row) for row in rows]
    missing = {name: row for name, row in zip(names, rows, strict=True) if name not in cache}
    done = len(rows) - len(missing)
    watch(done, len(rows))

    async def one() -> bool:
        nonlocal done
        if not left:
            return False
        name, row = left.popleft()
        try:
            readings = await model.read(reads.request(row.prompt, row.steps), state=True)
        except BackendError as error:
            raise SpecError(f"an answer to problem {row.problem!r}: {error}") from error
        if cache.add(name, [reading.state for reading in readings]):
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(cache.flush)
        done += 1
        watch(done, len(rows))
        return True

    left = deque(missing.items())
    try:
        await lanes(one, IN_FLIGHT)
    finally:
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(cache.flush)
    states = await to_thread.run_sync(cache.states, names)
    return [states[name] for name in names]
