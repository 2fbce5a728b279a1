"""A local model as a backend: the spec, and what it opens."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Literal, cast

from anyio import to_thread
from pydantic import Field

from branchwise.backends.batcher import Batcher
from branchwise.backends.fetch import EXTRA
from branchwise.backends.hf.asked import Asked, Judge, Told
from branchwise.core.config import Config
from branchwise.core.errors import SpecError
from branchwise.core.types import Backend, Reading, Request, Step

if TYPE_CHECKING:
    from branchwise.backends.hf.server import Server


class HF(Config):
    """A model on this machine, run by transformers and decoded many rows at a time.

    Each seed of a request is a row. Rows join and leave at every step, first come, first served;
    what rows share is read once; a request is answered as soon as its own rows are done.
    The same seed gives the same tokens alone and in company, up to rounding: exactly in practice
    with float32, not with bfloat16. It also reads what was written (`read`): reward models load as
    others do, by the tensors of their value heads.

    Args:
        model: a name of the catalogue (`branchwise models`), a hub's `owner/model`, a folder, or a
            `.gguf` file.
        dtype: of weights and computation; `auto` takes bfloat16 where the device is fast at it.
        device: `cpu`, `cuda`, ...; `auto` takes the GPU where there is one.
        max_rows: the most samples that are decoded together.
        memory: gigabytes (2**30 bytes) for keys and values, of which a token takes
            2 × layers × key heads × head size × bytes of a number. When they run out, what is
            longest unused is forgotten and read again where it is needed.
        draft: what guesses the next tokens, to be read in one pass: `lookup` repeats the text, any
            other name is a smaller model of the same vocabulary; None takes a token at a time.
            The law of the samples is the model's own in any case, but which sample a seed gives
            then depends on the guesses; it pays for few samples at once. A smaller model has as
            much `memory` again.
        guess: tokens of a guess.
        threads: of the processor; None for one per core.

    Example:
        >>> HF(model="smollm2-135m-instruct").max_rows
        64
    """

    kind: Literal["hf"] = "hf"
    model: str
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    device: str = "auto"
    max_rows: int = Field(default=64, ge=1)
    memory: float = Field(default=2.0, gt=0)
    draft: str | None = None
    guess: int = Field(default=5, ge=1)
    threads: int | None = Field(default=None, ge=1)

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Backend]:
        """Load the model, fetching it at first use.

        Raises:
            SpecError: no such model, no such device, or the extra is not installed.
            BackendError: the model cannot be fetched.
        """
        server = await to_thread.run_sync(self._load, abandon_on_cancel=True)
        async with Batcher(server.run) as batcher:
            yield Local(server.name, batcher)

    def _load(self) -> Server:
        try:
            # Here, for torch and transformers take seconds to import and come with an extra.
            from branchwise.backends.hf.server import load  # noqa: PLC0415
        except ImportError as error:
            raise SpecError("the local engine needs an extra", hint=EXTRA) from error
        return load(self)


class Local:
    """The backend that `HF` opens.

    Args:
        name: the model, its revision and its dtype.
        batcher: what calls join.
    """

    def __init__(self, name: str, batcher: Batcher[Asked, Told]) -> None:
        self._name = name
        self._batcher = batcher

    @property
    def name(self) -> str:
        """The model, its revision and its dtype."""
        return self._name

    async def complete(self, request: Request) -> Sequence[Step]:
        """One sample for each seed, decoded together with whatever else is asked meanwhile.

        Raises:
            SpecError: the model or this engine cannot do what is asked.
            BackendError: the request does not fit the model, the model failed, or was closed.
        """
        return cast("Sequence[Step]", await self._batcher.submit(request))

    async def read(
        self,
        request: Request,
        *,
        since: int = 0,
        state: bool = False,
        words: Sequence[str | int] = (),
    ) -> Sequence[Reading]:
        """What the model makes of the steps that were said, read together with all else.

        Steps that carry no tokens are tokenised each by itself. Where states, words or a value head
        tell of the steps, no log-probabilities do: each step then costs one token, and those that
        nobody has read or written before.

        Args:
            request: the question and the answer so far.
            since: the first step to judge; those before it count as part of the question. Where
                none is left to judge, there is one reading of no tokens: of all that stands there.
            state: whether the states of the model's last layer are wanted.
            words: texts of one token, or tokens, of which it is wanted how probable they are next.
                A text is that of a token in the middle of a sentence: "Yes" and " Yes" are two.

        Returns:
            one for each step that is judged; none where there is none and nothing but its
            log-probabilities could be told.

        Raises:
            SpecError: a word is not one token, two are the same one, the model has no language
                head for them, its chat template cannot say what is asked, or `since` is negative.
            BackendError: the text does not fit the model, the model failed, or was closed.
        """
        judge = Judge(request, since, state, tuple(words))
        return cast("Sequence[Reading]", await self._batcher.submit(judge))
