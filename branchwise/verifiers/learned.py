"""A value head on the policy's own model as a process verifier."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import cached_property
from typing import ClassVar, Literal, Self

from pydantic import Field, SkipValidation

from branchwise.core.config import Beside, Config
from branchwise.core.errors import BackendError, SpecError, VerifierError
from branchwise.core.judging import settled
from branchwise.core.node import Node
from branchwise.core.types import FREE, Scoring, Verdict
from branchwise.verifiers.aggregate import How, aggregated
from branchwise.verifiers.head import Head, load
from branchwise.verifiers.steps import parts


class Learned(Config):
    """How probable it is that the answer comes out right, after each step of a node's text.

    A head that `branchwise train-verifier` has trained looks at the state of the model's last layer
    after the last token of each step. Where the policy writes with the same model, its engine has
    the keys and values already, and a step costs about one token.

    The score is made of the node's own steps; `Verdict.steps` holds theirs, so `Aggregate` makes
    any score of the path. A node that adds no text has the score of the last step above it.

    Source: a value head as the verifier of Cobbe et al. 2021, §4.2; a number after each step as in
    Uesato et al. 2022, §2.4, and Wang et al. 2024 (Math-Shepherd), §3.

    Args:
        path: the head's folder; in a spec relative to the spec's.
        how: how the scores of the node's steps become one; the head's own way where it is None.
        backend: the model that the head was trained on.
    """

    reads: ClassVar[bool] = True

    backend: SkipValidation[Scoring] = Field(exclude=True, repr=False)
    kind: Literal["learned"] = "learned"
    path: Beside
    how: How | None = None

    @cached_property
    def head(self) -> Head:
        """The head.

        Raises:
            SpecError: it cannot be loaded.
        """
        return load(self.path)

    def check(self) -> None:
        """Find out that the head fits the model.

        Raises:
            SpecError: it cannot be loaded, or was trained on another model.
        """
        trained = self.head.about.model
        name = getattr(self.backend, "name", type(self.backend).__name__)
        if name != trained:
            raise SpecError(
                f"{self.path}: the head was trained on {trained!r}, and the model is {name!r}",
                hint="states of another model, revision or dtype mean something else",
            )

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Self]:
        """Find out that the head fits before anything is spent.

        Raises:
            SpecError: it cannot be loaded, or was trained on another model.
        """
        self.check()
        yield self

    async def score(self, nodes: Sequence[Node]) -> Sequence[Verdict | VerifierError]:
        """One verdict for each node; an error where there is no text, or it does not fit the model.

        Raises:
            SpecError: the head cannot be loaded, or was trained on another model.
            BackendError: no later call can succeed either.
        """
        self.check()
        return await settled(self._judge, nodes)

    async def _judge(self, node: Node) -> Verdict | VerifierError:
        about = self.head.about
        before, own = parts(node, about.separator)
        said = (*before, *own)
        if not said:
            return VerifierError("there is no text to judge")
        since = len(said) - max(len(own), 1)
        try:
            readings = await self.backend.read(
                about.request(node.task.prompt, said), since=since, state=True
            )
        except BackendError as error:
            if error.fatal:
                raise
            return VerifierError(error.message, hint=error.hint, spent=error.spent)
        usage = sum((reading.usage for reading in readings), FREE)
        if len(readings) != len(said) - since or not all(reading.state for reading in readings):
            return VerifierError("the model gave no state after each step", spent=usage)
        scores = self.head.probabilities([reading.state for reading in readings])
        if not all(score == score for score in scores):  # noqa: PLR0124  (what is no number)
            return VerifierError("the model's state holds what is no number", spent=usage)
        score = aggregated(scores, self.how or about.how)
        return Verdict(score, usage=usage, steps=tuple(scores) if own else ())
