"""What a reward model makes of a whole answer, and where a reward model's number is read."""

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, SkipValidation, model_validator

from branchwise.core.config import Config
from branchwise.core.errors import BackendError, SpecError, VerifierError
from branchwise.core.judging import cost, judged, settled
from branchwise.core.node import Node
from branchwise.core.template import filled
from branchwise.core.types import (
    FREE,
    Message,
    Reading,
    Request,
    Scoring,
    Step,
    Verdict,
    Verifier,
)

Token: TypeAlias = str | int


class Words(Config):
    """The number is how probable some words are as the next token.

        p = p(good) / (p(good) + p(bad))

    Args:
        good: words that say that it is right, as text or token ids; each has to be one token.
        bad: words that say that it is wrong.
        neutral: words that say neither.
        neutral_is: what these count as. Lightman et al. 2024 count them as good.
        normalised: whether p(good) is divided so; else it is taken as it is, and what the model
            would say instead of all these words counts against it.

    Raises:
        pydantic.ValidationError: there is nothing to divide by.

    Example:
        >>> reading = Reading((), words=(math.log(0.3), math.log(0.1)))
        >>> round(Words(good=("+",), bad=("-",)).number(reading), 6)
        0.75
    """

    kind: Literal["words"] = "words"
    good: tuple[Token, ...] = Field(min_length=1)
    bad: tuple[Token, ...] = ()
    neutral: tuple[Token, ...] = ()
    neutral_is: Literal["good", "bad"] = "good"
    normalised: bool = True

    @model_validator(mode="after")
    def _weighed(self) -> Self:
        if self.normalised and not self.bad:
            raise ValueError("without `bad` words the share of the `good` ones is always 1")
        return self

    @property
    def words(self) -> tuple[Token, ...]:
        """What the model is asked for."""
        return (*self.good, *self.bad, *self.neutral)

    def number(self, reading: Reading) -> float:
        """The number at one place.

        Raises:
            SpecError: the model gave no probabilities.
        """
        logs = reading.words
        if len(logs) != len(self.words):
            raise SpecError(
                "the model gives no probabilities of words",
                hint='it needs a language head; one with a value head is read as kind = "value"',
            )
        split = len(self.good) + len(self.bad)
        neutral = logs[split:]
        good = _sum((*logs[: len(self.good)], *(neutral if self.neutral_is == "good" else ())))
        if not self.normalised:
            return min(math.exp(good), 1.0)  # rounding may add a little to a certainty
        bad = _sum((*logs[len(self.good) : split], *(neutral if self.neutral_is == "bad" else ())))
        return sigmoid(good - bad)


class Value(Config):
    """The number is what the model's value head says.

    Args:
        scale: `raw`, a reward on no scale; `sigmoid`, the probability of which it is the logit;
            `softmax`, the probability of one label among all of the head's.
        label: which of the head's numbers, counted from 0.

    Example:
        >>> Value(scale="softmax", label=1).number(Reading((), values=(0.0, 0.0)))
        0.5
    """

    kind: Literal["value"] = "value"
    scale: Literal["raw", "sigmoid", "softmax"] = "raw"
    label: int = Field(default=0, ge=0)

    @property
    def words(self) -> tuple[Token, ...]:
        """Nothing is asked of the language head."""
        return ()

    def number(self, reading: Reading) -> float:
        """The number at one place.

        Raises:
            SpecError: the model has no value head, or one without this label.
        """
        values = reading.values
        if self.label >= len(values):
            if values:
                raise SpecError(
                    f"the value head has {len(values)} labels, none of number {self.label}"
                )
            raise SpecError(
                "the model has no value head",
                hint='one that says words is read as kind = "words"',
            )
        value = values[self.label]
        if self.scale == "sigmoid":
            return sigmoid(value)
        if self.scale == "softmax":
            others = _sum([v for i, v in enumerate(values) if i != self.label])
            return sigmoid(value - others)
        return value


Number: TypeAlias = Annotated[Words | Value, Field(discriminator="kind")]


class OutcomeReward(Config):
    """What a reward model makes of a whole answer: an outcome reward model.

    By default the model has a value head and reads the finished conversation once; its number
    after the last token is the reward. Other models are asked in words:

        OutcomeReward(backend=model, template="{prompt} {answer}", reply="",
                      read=Words(good=("+",), bad=("-",)))

    The model sees an answer that is finished. What is not is judged as if it were.

    Source: Cobbe et al. 2021 (verifiers), Stiennon et al. 2020 (rewards from preferences).

    Args:
        backend: the model.
        read: where the number is read: `words` or `value`.
        chat: whether the question and the answer are a chat; else they are one text.
        system: the system's message; none where it is empty.
        template: the user's message; `{prompt}` and `{answer}` are filled in.
        reply: the assistant's message, which is read as a finished one; `{prompt}` and `{answer}`
            are filled in. Where it is empty, the number stands where the assistant would begin.
        ending: what is read after all this, tokenised by itself; the number then stands after it.

    Raises:
        pydantic.ValidationError: the model would not see the answer.

    Example:
        >>> from branchwise import Node, State, Step, Task, run_sync
        >>> class Model:
        ...     async def read(self, request, *, since=0, state=False, words=()):
        ...         return [Reading((), values=(float(len(request.messages[-1].content)),))]
        >>> root = Node(Task("2 + 2?"), State())
        >>> node = Node(root.task, State(), root, 0, Step("It is 4."))
        >>> run_sync(OutcomeReward(backend=Model()).score, [node])[0].score
        8.0
    """

    reads: ClassVar[bool] = True

    backend: SkipValidation[Scoring] = Field(exclude=True, repr=False)
    kind: Literal["orm"] = "orm"
    read: Number = Value()
    chat: bool = True
    system: str = ""
    template: str = "{prompt}"
    reply: str = "{answer}"
    ending: str = ""

    @model_validator(mode="after")
    def _shown(self) -> Self:
        if "{answer}" not in self.template + self.reply:
            raise ValueError("`{answer}` has to stand in `template` or in `reply`")
        return self

    def request(self, node: Node) -> Request:
        """What the model reads: a pure function of the node."""
        values = {"prompt": node.task.prompt, "answer": node.text.strip()}
        question, reply = filled(self.template, values), filled(self.reply, values)
        said = (Step(self.ending),) if self.ending else ()
        if not self.chat:
            return Request(prompt=question + reply, said=said)
        messages = [
            *([Message("system", self.system)] if self.system else []),
            Message("user", question),
            *([Message("assistant", reply)] if reply else []),
        ]
        return Request(messages=tuple(messages), said=said)

    async def score(self, nodes: Sequence[Node]) -> Sequence[Verdict | VerifierError]:
        """One verdict for each node; an error where it says nothing or the model gave no number.

        Raises:
            SpecError: the model cannot do what is asked.
            BackendError: no later call can succeed either.
        """
        return await settled(self._judge, nodes)

    async def _judge(self, node: Node) -> Verdict | VerifierError:
        if not node.text.strip():
            return VerifierError("there is no text to judge")
        readings = await readings_of(self.backend, self.request(node), self.read)
        if isinstance(readings, VerifierError):
            return readings
        usage = cost(readings)
        number = self.read.number(readings[-1])
        if not math.isfinite(number):
            return VerifierError(f"the model's number for the answer is {number}", spent=usage)
        return Verdict(number, usage=usage)


class BradleyTerry(Config):
    """Which of two answers is better, by their rewards.

        P(a beats b) = σ((r_a - r_b) / scale)

    The rewards have to be raw: a probability is the σ of one already. What judging an answer cost
    is on the first pair that has it.

    Source: Bradley and Terry 1952; as a model of preferences, Stiennon et al. 2020, §3.4.

    Args:
        reward: the verifier whose scores are the rewards.
        scale: what differences of rewards are divided by.

    Example:
        >>> from branchwise import Function, Node, State, Task, run_sync
        >>> long, short = (Node(Task("?"), State(answer=said)) for said in ("12", "3"))
        >>> length = Function(lambda node: len(node.state.answer))
        >>> prefer = BradleyTerry(reward=length).prefer
        >>> [round(run_sync(prefer, [(long, other)], [0])[0].score, 3) for other in (long, short)]
        [0.5, 0.731]
    """

    reward: SkipValidation[Verifier] = Field(exclude=True, repr=False)
    kind: Literal["bradley-terry"] = "bradley-terry"
    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    async def prefer(
        self,
        pairs: Sequence[tuple[Node, Node]],
        seeds: Sequence[int],  # noqa: ARG002  (a reward draws nothing)
    ) -> Sequence[Verdict | VerifierError]:
        """One verdict for each pair; an error where one of the two has no reward.

        Raises:
            SpecError: the model cannot do what is asked.
            BackendError: no later call can succeed either.
        """
        nodes = list(dict.fromkeys(node for pair in pairs for node in pair))
        rewards = dict(zip(nodes, await judged(self.reward, nodes), strict=True))
        unpaid = {node: cost(said) for node, said in rewards.items()}
        verdicts: list[Verdict | VerifierError] = []
        for first, second in pairs:
            usage = unpaid.pop(first, FREE) + unpaid.pop(second, FREE)
            one, other = rewards[first], rewards[second]
            if isinstance(one, Verdict) and isinstance(other, Verdict):
                chance = sigmoid((one.score - other.score) / self.scale)
                verdicts.append(Verdict(chance, usage=usage))
            else:
                fault = one if isinstance(one, VerifierError) else other
                assert isinstance(fault, VerifierError)  # one of the two is
                verdicts.append(VerifierError(fault.message, hint=fault.hint, spent=usage))
        return verdicts


async def readings_of(
    model: Scoring, request: Request, number: Words | Value, since: int = 0
) -> Sequence[Reading] | VerifierError:
    """What a model makes of a request; an error where it fails for this request alone.

    Args:
        model: that reads.
        request: the question and the answer so far.
        number: what is wanted of each reading.
        since: the first step to judge.

    Raises:
        SpecError: the model cannot do what is asked.
        BackendError: no later call can succeed either.
    """
    try:
        readings = await model.read(request, since=since, words=number.words)
    except BackendError as error:
        if error.fatal:
            raise
        return VerifierError(error.message, hint=error.hint, spent=error.spent)
    # A model that only knows probabilities of what was said has no word on a question alone.
    return readings or [Reading(())]


def sigmoid(x: float) -> float:
    """The logistic function, without overflow; not a number stays so."""
    if x >= 0:
        return 1 / (1 + math.exp(-x))
    return math.exp(x) / (1 + math.exp(x))


def _sum(logs: Sequence[float]) -> float:
    """The logarithm of a sum of what is given as logarithms."""
    most = max(logs, default=-math.inf)
    if most == -math.inf:
        return most
    return most + math.log(math.fsum(math.exp(each - most) for each in logs))
