"""The reward that a model was trained for by preferences, read off its probabilities."""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, Self

from pydantic import Field, SkipValidation, model_validator

from branchwise.core.config import Config
from branchwise.core.errors import BackendError, SpecError, VerifierError
from branchwise.core.judging import cost, settled
from branchwise.core.node import Node
from branchwise.core.template import filled
from branchwise.core.types import Message, Reading, Request, Scoring, Step, Verdict
from branchwise.verifiers.aggregate import How, aggregated
from branchwise.verifiers.steps import split


class ImplicitReward(Config):
    r"""How much likelier a trained model finds an answer than the model that it was trained from.

        r(x, y) = β (log π(y | x) - log π_ref(y | x)) = Σ_t β log(π(y_t | ·) / π_ref(y_t | ·))

    Up to a constant of the question this is the reward that direct preference optimisation has
    maximised, so it compares answers to the same question. Being a sum over tokens, it has a part
    for each step: the verdict's `steps` are those of the node's own steps, its score is their sum.
    In a search over steps `Aggregate(of=..., how="sum")` adds up the whole path.

    Source: Rafailov et al. 2023 (DPO), §4 and §5; the parts of tokens, Rafailov et al. 2024, §4.

    Args:
        backend: π, the trained model.
        reference: π_ref, the model that the training began with; of the same vocabulary.
        beta: β.
        chat: whether the question is a chat's; else it is plain text.
        system: the system's message; none where it is empty.
        template: the user's message, or the text before the answer; `{prompt}` is filled in.
        separator: what ends a step in the node's text; where it is empty, a node is a step.
        ending: what a model says at the end of an answer, such as `<|im_end|>`; it counts for the
            last step of an answer that the policy has ended. Nothing counts where it is empty.
        how: how the steps of one node become its score.

    Raises:
        pydantic.ValidationError: the models would not see the question.

    Example:
        >>> from branchwise import Node, State, Task, run_sync
        >>> class Model:
        ...     def __init__(self, logprob):
        ...         self.logprob = logprob
        ...     async def read(self, request, *, since=0, state=False, words=()):
        ...         return [Reading((1,), (self.logprob,)) for _ in request.said[since:]]
        >>> node = Node(Task("?"), State(), Node(Task("?"), State()), 0, Step("one\n\ntwo"))
        >>> judge = ImplicitReward(backend=Model(-1.0), reference=Model(-3.0), beta=0.5)
        >>> [verdict] = run_sync(judge.score, [node])
        >>> verdict.steps, verdict.score
        ((1.0, 1.0), 2.0)
    """

    reads: ClassVar[bool] = True

    backend: SkipValidation[Scoring] = Field(exclude=True, repr=False)
    reference: SkipValidation[Scoring] = Field(exclude=True, repr=False)
    kind: Literal["implicit-reward"] = "implicit-reward"
    beta: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    chat: bool = True
    system: str = ""
    template: str = "{prompt}"
    separator: str = "\n\n"
    ending: str = ""
    how: How = "sum"

    @model_validator(mode="after")
    def _shown(self) -> Self:
        if "{prompt}" not in self.template:
            raise ValueError("`{prompt}` has to stand in `template`")
        return self

    def request(self, node: Node) -> tuple[Request, int]:
        """What both models read, and which of its steps is the node's first: a pure function."""
        said = [split(step.text, self.separator) for step in node.steps]
        before = [piece for pieces in said[:-1] for piece in pieces]
        own = list(said[-1]) if said else []
        if self.ending and node.step is not None and node.step.finish == "end":
            own = [*own[:-1], own[-1] + self.ending] if own else [self.ending]
        steps = tuple(map(Step, (*before, *own)))
        question = filled(self.template, {"prompt": node.task.prompt})
        if not self.chat:
            return Request(prompt=question, said=steps), len(before)
        system = [Message("system", self.system)] if self.system else []
        messages = (*system, Message("user", question))
        return Request(messages=messages, said=steps), len(before)

    async def score(self, nodes: Sequence[Node]) -> Sequence[Verdict | VerifierError]:
        """One verdict for each node; an error where a probability is not known.

        Raises:
            SpecError: a model has no language head, or the two divide texts into other tokens.
            BackendError: no later call can succeed either.
        """
        return await settled(self._judge, nodes)

    async def _judge(self, node: Node) -> Verdict | VerifierError:
        if not node.text.strip():
            return VerifierError("there is no text to judge")
        request, since = self.request(node)
        if since == len(request.said):
            return Verdict(0.0)  # an empty step changes neither probability
        models = (self.backend, self.reference)
        trained, before = await settled(_read, [(model, request, since) for model in models])
        usage = cost((trained, before))
        for fault in (trained, before):
            if isinstance(fault, VerifierError):
                return VerifierError(fault.message, hint=fault.hint, spent=usage)
        assert not isinstance(trained, VerifierError)
        assert not isinstance(before, VerifierError)
        pairs = zip(trained, before, strict=True)
        rewards = [self.beta * self._ratio(one, other) for one, other in pairs]
        for number, reward in enumerate(rewards, start=1):
            if not math.isfinite(reward):
                return VerifierError(
                    f"the node's step {number} has the reward {reward}", spent=usage
                )
        return Verdict(aggregated(rewards, self.how), usage=usage, steps=tuple(rewards))

    def _ratio(self, one: Reading, other: Reading) -> float:
        if one.tokens != other.tokens:
            raise SpecError(
                f"the two models divide a step into other tokens: {len(one.tokens)} of them, "
                f"and {len(other.tokens)}",
                hint="the reference is the model that the other was trained from",
            )
        if not len(one.logprobs) == len(other.logprobs) == len(one.tokens):
            raise SpecError("a model gives no log-probabilities", hint="it needs a language head")
        # Token by token: the sums of long texts are large, and their difference small.
        return math.fsum(a - b for a, b in zip(one.logprobs, other.logprobs, strict=True))


async def _read(asked: tuple[Scoring, Request, int]) -> Sequence[Reading] | VerifierError:
    model, request, since = asked
    try:
        return await model.read(request, since=since)
    except BackendError as error:
        if error.fatal:
            raise
        return VerifierError(error.message, hint=error.hint, spent=error.spent)
