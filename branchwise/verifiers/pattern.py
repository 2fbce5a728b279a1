"""Whether an answer has a form that a regular expression describes."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from branchwise.core.aio import gather
from branchwise.core.config import Config
from branchwise.core.errors import VerifierError
from branchwise.core.node import Node
from branchwise.core.types import Verdict
from branchwise.verifiers.workers import WorkerDiedError, Workers

_WORKER = Path(__file__).with_name("pattern_worker.py")


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"no regular expression: {error}") from error
    return pattern


class Pattern(Config):
    r"""1 where an answer has the form that a regular expression describes, else 0.

    Expressions are Python's; flags stand in them, as in `(?im)`. Some take exponentially long on
    some texts, so they are matched in processes that can be killed, and running out of time is an
    error whose message begins with `timeout`. A verdict's `detail` is `match`, `no match` or
    `no answer`; its feedback says what is wanted where the score is 0.

    Args:
        pattern: the expression.
        how: whether it has to be found anywhere (`search`), describe the whole (`full`), or be
            found nowhere (`absent`).
        of: what it is about, the `answer` or all of the `text` up to the node.
        feedback: what is said where the score is 0; by default the expression.
        seconds: the most time for one text.
        workers: the most processes at one time; each starts when it is first needed.

    Raises:
        pydantic.ValidationError: the pattern is no regular expression.

    Example:
        >>> from branchwise import Node, State, Task, run_sync
        >>> async def judge(answer: str) -> float:
        ...     async with Pattern(pattern=r"-?\d+", how="full").open() as verifier:
        ...         return (await verifier.score([Node(Task("?"), State(answer=answer))]))[0].score
        >>> run_sync(judge, "-12"), run_sync(judge, "12 apples")
        (1.0, 0.0)
    """

    kind: Literal["pattern"] = "pattern"
    pattern: Annotated[str, AfterValidator(_compiles)]
    how: Literal["search", "full", "absent"] = "search"
    of: Literal["answer", "text"] = "answer"
    feedback: str = ""
    seconds: float = Field(default=1.0, gt=0)
    workers: int = Field(default=1, ge=1)

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Matching]:
        """The verifier; its processes end with the block."""
        command = [sys.executable, "-I", "-S", str(_WORKER), str(self.seconds + 1)]
        workers = Workers(command, count=self.workers, seconds=self.seconds)
        try:
            yield Matching(self, workers)
        finally:
            await workers.aclose()


class Matching:
    """A `Pattern` at work.

    Args:
        spec: what is wanted.
        workers: the processes that match.
    """

    def __init__(self, spec: Pattern, workers: Workers) -> None:
        self._spec = spec
        self._workers = workers
        self._wanted = (
            spec.feedback
            or {
                "search": f"It has to contain something that matches {spec.pattern}",
                "full": f"The whole of it has to match {spec.pattern}",
                "absent": f"It must not contain anything that matches {spec.pattern}",
            }[spec.how]
        )

    async def score(self, nodes: Sequence[Node]) -> Sequence[Verdict | VerifierError]:
        """One verdict for each node; equal texts are matched once."""
        texts = [node.state.answer if self._spec.of == "answer" else node.text for node in nodes]
        unique = list(dict.fromkeys(text for text in texts if text is not None))
        words = dict(zip(unique, await gather(self._match, unique), strict=True))
        return [self._verdict("no answer" if text is None else words[text]) for text in texts]

    async def _match(self, text: str) -> str:
        line = json.dumps([self._spec.pattern, self._spec.how == "full", text]).encode()
        try:
            return (await self._workers.ask(line)).decode()
        except TimeoutError:
            return "timeout: matching took too long"
        except WorkerDiedError:
            return "matching ended its process"

    def _verdict(self, word: str) -> Verdict | VerifierError:
        if word not in {"match", "no match", "no answer"}:
            hint = "nested repetitions such as (a+)+ can take for ever"
            return VerifierError(word, hint=hint)
        wanted = "no match" if self._spec.how == "absent" else "match"
        return Verdict(float(word == wanted), "" if word == wanted else self._wanted, word)
