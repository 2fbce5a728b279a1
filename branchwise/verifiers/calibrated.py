"""A verifier whose scores have become probabilities."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, SkipValidation, TypeAdapter, ValidationInfo

from branchwise.core.config import Beside, Config
from branchwise.core.errors import SpecError, VerifierError
from branchwise.core.judging import judged
from branchwise.core.node import Node
from branchwise.core.types import Verdict, Verifier
from branchwise.verifiers.calibration import Map

_path = TypeAdapter(Beside)


def _read(value: object, info: ValidationInfo) -> object:
    """A map that is a file's path, read."""
    if not isinstance(value, str | Path):
        return value
    path = _path.validate_python(value, context=info.context)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error


class Calibrated(Config):
    """A verifier, with its scores sent through a fitted map.

    The map is data: `Platt.fit` and `Isotonic.fit` make it from scores and what was right, and
    `model_dump_json` writes it to a file. The verdict's `detail` ends with the score before the
    map, so another one can be fitted to a saved tree. The scores of steps are not kept: the map
    was fitted to whole scores.

    Args:
        of: the verifier.
        map: a `Platt` or an `Isotonic`, or the path of a JSON file that holds one.

    Raises:
        pydantic.ValidationError: the file cannot be read, or holds no map.

    Example:
        >>> from branchwise import Function, Node, State, Task, run_sync
        >>> from branchwise.verifiers.calibration import Platt
        >>> sure = Calibrated(of=Function(lambda _: 3.0), map=Platt(slope=2.0, bias=-6.0))
        >>> run_sync(sure.score, [Node(Task("?"), State())])
        [Verdict(score=0.5, feedback='', detail='raw 3.0', usage=Usage(...), steps=())]
    """

    kind: Literal["calibrated"] = "calibrated"
    of: SkipValidation[Verifier] = Field(exclude=True, repr=False)
    map: Annotated[Map, BeforeValidator(_read)]

    @property
    def inner(self) -> tuple[Verifier, ...]:
        """The verifier, alone."""
        return (self.of,)

    def around(self, inner: Sequence[Verifier]) -> Self:
        """The same map of another verifier, such as the opened one.

        Args:
            inner: the verifier, alone.
        """
        (of,) = inner
        return self.model_copy(update={"of": of})

    async def score(self, nodes: Sequence[Node]) -> Sequence[Verdict | VerifierError]:
        """One verdict for each node; an error where the verifier has none, or the map takes it not.

        Raises:
            BackendError: no later call can succeed either.
        """
        return [self._mapped(verdict) for verdict in await judged(self.of, nodes)]

    def _mapped(self, said: Verdict | VerifierError) -> Verdict | VerifierError:
        if isinstance(said, VerifierError):
            return said
        try:
            score = self.map(said.score)
        except SpecError as error:
            return VerifierError(error.message, hint=error.hint, spent=said.usage)
        detail = f"{said.detail}{', ' if said.detail else ''}raw {said.score!r}"
        return Verdict(score, said.feedback, detail, said.usage)
