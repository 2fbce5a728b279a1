"""How well an answer explains its question: the noisy channel."""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field, SkipValidation

from branchwise.core.config import Config
from branchwise.core.errors import BackendError, VerifierError
from branchwise.core.judging import cost
from branchwise.core.node import Node
from branchwise.core.types import FREE, Message, Request, Scoring, Step, Usage, Verdict
from branchwise.verifiers.asked import each, failure, finite
from branchwise.verifiers.likelihood import Likelihood


class _Sum(NamedTuple):
    """Of all tokens of what was read."""

    logprob: float
    tokens: int
    usage: Usage


class NoisyChannel(Config):
    r"""How probable the answer is, how well it explains the question, and how fluent it is.

        s(y) = log p(y | x) / |y|^α + (λ₁ log p(x | y) + λ₂ log p(y)) / L^α

    L = |y| is the reranking of Ng et al. 2019, one length penalty on the whole sum; L = |x| that of
    Yee et al. 2019, who take α = 1: the length of the question is the same for all answers to it,
    so that the two further terms are sums. Lengths are in tokens. α = 0 is the plain sum, and with
    λ₁ = λ₂ = 0 the score is that of `Likelihood`, without a call.

    log p(y | x) is what the steps of the answer carry. The other two the model reads: x after
    `backward`, which shows it y, and y after `alone`, which does not show it x. What a weight of 0
    makes useless is not read. The verdict's `detail` says what was.

    Source: Ng et al. 2019 (noisy channel model reranking); Yee et al. 2019, §2.

    Args:
        backend: the model that reads.
        channel: λ₁, the weight of log p(x | y).
        prior: λ₂, the weight of log p(y).
        alpha: α, the length penalty's power.
        per: L, `answer` or `question`.
        backward: what the model reads before the question; `{answer}` is filled in.
        alone: what the model reads before the answer.
        chat: whether these two are a user's message, to which the model's reply is read, or plain
            text that is read on.

    Example:
        >>> from branchwise import Node, State, Step, Task, run_sync
        >>> from branchwise.core.types import Reading
        >>> class Model:
        ...     async def read(self, request, *, since=0, state=False):
        ...         return [Reading((1, 2), (-1.0, -0.5))]
        >>> node = Node(Task("?"), State(), Node(Task("?"), State()), 0, Step("!", (1,), -3.0))
        >>> run_sync(NoisyChannel(backend=Model(), alpha=0).score, [node])[0].score
        -6.0
    """

    reads: ClassVar[bool] = True
    backend: SkipValidation[Scoring] = Field(exclude=True, repr=False)
    kind: Literal["noisy-channel"] = "noisy-channel"
    channel: float = 1.0
    prior: float = 1.0
    alpha: float = 1.0
    per: Literal["answer", "question"] = "answer"
    backward: str = "{answer}\n\nThat was an answer. Write the question that it answers."
    alone: str = "Somebody is asked a question. Write the answer alone."
    chat: bool = True

    async def score(self, nodes: Sequence[Node]) -> Sequence[Verdict | VerifierError]:
        """One verdict for each node; an error where a probability is not known.

        Raises:
            BackendError: no later call can succeed either.
        """
        direct = await Likelihood(alpha=self.alpha).score(nodes)
        if self.channel == self.prior == 0:
            return direct
        return await each(self._judge, list(zip(nodes, direct, strict=True)))

    async def _judge(self, judged: tuple[Node, Verdict | VerifierError]) -> Verdict:
        node, direct = judged
        if isinstance(direct, VerifierError):
            raise direct
        question = (Step(node.task.prompt),) if self.channel or self.per == "question" else ()
        answer = tuple(step for step in node.steps if step.text)
        requests = [
            self._request(self.backward.replace("{answer}", node.text), question),
            self._request(self.alone, answer if self.prior else ()),
        ]
        told = await each(self._read, requests)
        for fault in told:
            if isinstance(fault, VerifierError):
                raise VerifierError(fault.message, hint=fault.hint, spent=cost(told))
        channel, prior = (read for read in told if not isinstance(read, VerifierError))
        tokens = sum(len(step.tokens) or len(step.logprobs) for step in node.steps)
        length = max(tokens if self.per == "answer" else channel.tokens, 1)
        more = self.channel * channel.logprob + self.prior * prior.logprob
        detail = ", ".join(
            f"log p({what}) = {read.logprob:.6g}"
            for what, read in (("x|y", channel), ("y", prior))
            if read.tokens
        )
        score = direct.score + more / length**self.alpha
        return finite(Verdict(score, detail=detail, usage=cost(told)))

    def _request(self, before: str, said: tuple[Step, ...]) -> Request:
        if self.chat:
            return Request(messages=(Message("user", before),), said=said)
        return Request(prompt=before, said=said)

    async def _read(self, request: Request) -> _Sum:
        """What the model makes of all that was said, as one; nothing said costs nothing."""
        if not request.said:
            return _Sum(0.0, 0, FREE)
        try:
            readings = await self.backend.read(request)
        except BackendError as error:
            if error.fatal:
                raise
            raise failure(error, cost(error)) from error
        logprobs = [reading.logprob for reading in readings if reading.logprob is not None]
        if len(logprobs) < len(request.said):
            raise VerifierError(
                "the model gives no log-probabilities",
                hint="it needs a language head",
                spent=cost(readings),
            )
        return _Sum(
            math.fsum(logprobs),
            sum(len(reading.tokens) for reading in readings),
            cost(readings),
        )
