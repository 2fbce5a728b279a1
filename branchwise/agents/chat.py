"""A chat model as a policy: how a node becomes messages, and the reply the next step."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, cast

from pydantic import Field, SkipValidation, ValidationInfo, field_validator

from branchwise.agents.history import Conversation, Summarised, Truncated, Turn
from branchwise.agents.retold import retold
from branchwise.core.config import Config, Sampling
from branchwise.core.errors import BackendError
from branchwise.core.node import Node
from branchwise.core.template import filled
from branchwise.core.types import (
    FREE,
    Backend,
    Message,
    Request,
    State,
    Step,
    Task,
    Tool,
    ToolCall,
    Usage,
)


class Shot(Config):
    """A worked example: a question and the reply that the model should have given.

    Args:
        prompt: the question; it goes through the template as the task's does.
        reply: the model's reply.
    """

    prompt: str
    reply: str


class Asking(Config):
    """What every policy has that asks a chat model.

    Args:
        backend: the model.
        system: the system's message; none where it is empty.
        template: the user's message; `{prompt}` and the keys of the task's `meta` in braces are
            filled in, other braces stay as they are.
        shots: worked examples, as earlier turns.
        sampling: how tokens are drawn.
        max_tokens: the most tokens of one step.
        stop: strings that end a step, such as a line's end for search over lines.
        logprobs: whether to ask for the log-probabilities of the tokens.
        prefill: how each reply of the model begins: it goes on from these words, which are no part
            of its step.
    """

    backend: SkipValidation[Backend] = Field(exclude=True, repr=False)
    system: str = ""
    template: str = "{prompt}"
    shots: tuple[Shot, ...] = ()
    sampling: Sampling = Sampling()
    max_tokens: int = Field(default=512, ge=1)
    stop: tuple[str, ...] = ()
    logprobs: bool = True
    prefill: str = ""

    def opening(self, node: Node) -> list[Message]:
        """The system's message, the worked examples and the question."""
        system = self.preface(node)
        messages = [Message("system", system)] if system else []
        for shot in self.shots:
            messages.append(Message("user", self._filled(Task(shot.prompt))))
            messages.append(Message("assistant", shot.reply))
        question = [self._filled(node.task), node.lineage[0].state.observation]
        return [*messages, Message("user", "\n\n".join(part for part in question if part))]

    def preface(self, node: Node) -> str:  # noqa: ARG002  (tools differ from node to node)
        """The system's message; none where it is empty."""
        return self.system

    def asks(
        self,
        messages: Sequence[Message],
        said: Sequence[Step],
        seeds: Sequence[int],
        *,
        prefill: bool = True,
    ) -> Request:
        """The request that these messages make."""
        begun = (Step(self.prefill),) if self.prefill and prefill else ()
        return Request(
            messages=tuple(messages),
            said=(*begun, *said),
            seeds=tuple(seeds),
            sampling=self.sampling,
            stop=self.stop,
            max_tokens=self.max_tokens,
            logprobs=self.logprobs,
        )

    def _filled(self, task: Task) -> str:
        return filled(self.template, {**task.meta, "prompt": task.prompt})


class Chat(Asking):
    r"""Asks a chat model to go on from a node.

    The system's text, the worked examples and the question come first. What was said since then is
    the beginning of the reply, which the model continues; where the world answered with an
    observation, what was said before it is a finished turn and the observation a message.

    Args:
        backend: the model.
        system: the system's message; none where it is empty.
        template: the user's message; `{prompt}` and the keys of the task's `meta` in braces are
            filled in, other braces stay as they are.
        shots: worked examples, as earlier turns.
        sampling: how tokens are drawn.
        max_tokens: the most tokens of one step.
        stop: strings that end a step, such as a line's end for search over lines.
        logprobs: whether to ask for the log-probabilities of the tokens.
        prefill: how each reply of the model begins: it goes on from these words, which are no part
            of its step.
        history: what is left out of long conversations; None asks with all of it.

    Example:
        >>> from branchwise import Node, Scripted, State, Task
        >>> chat = Chat(backend=Scripted(lambda request, seed: "4"), template="{prompt} Be brief.")
        >>> chat.request(Node(Task("2 + 2?"), State()), seeds=[1]).messages[0].content
        '2 + 2? Be brief.'
    """

    kind: Literal["chat"] = "chat"
    history: Annotated[Truncated | Summarised, Field(discriminator="kind")] | None = None

    @field_validator("history", mode="before")
    @classmethod
    def _read_by_the_same(cls, history: object, fields: ValidationInfo) -> object:
        """Where no other model is named, the policy's own writes the summaries."""
        if not isinstance(history, Mapping):
            return history
        table = cast("Mapping[str, object]", history)
        own = {"backend": fields.data.get("backend")} if table.get("kind") == "summarised" else {}
        return {**own, **table}

    def conversation(self, node: Node) -> Conversation:
        """All that was said on the way to a node."""
        turns: list[Turn] = []
        said: list[Step] = []
        for place in node.lineage[1:]:
            if place.step is not None:
                said.append(place.step)
            if place.state.observation or place.state.results:
                turns.append(Turn(place, tuple(self.turn(said, place.state))))
                said = []
        begun = [Step(self.prefill)] if self.prefill else []
        return Conversation(
            tuple(self.opening(node)), tuple(turns), (*begun, *said), self.offers(node)
        )

    def request(self, node: Node, seeds: Sequence[int], summary: str = "") -> Request:
        """What the model is asked at a node: a pure function of the node and the seeds.

        Raises:
            BackendError: the conversation does not fit into its `history`.
        """
        talk = self.conversation(node)
        messages = talk.messages if self.history is None else self.history.fitted(talk, summary)
        request = self.asks(messages, talk.said, seeds, prefill=False)  # it is in `said` already
        return dataclasses.replace(request, tools=talk.tools) if talk.tools else request

    async def propose(self, node: Node, seeds: Sequence[int]) -> Sequence[Step]:
        """One step for each seed.

        Raises:
            BackendError: the model's call failed, or the conversation does not fit into `history`.
        """
        summary, paid = "", FREE
        if isinstance(self.history, Summarised):
            written = await self.history.summarise(self.conversation(node))
            if written is not None:
                summary, paid = written.text, written.usage
        try:
            steps = await self.backend.complete(self.request(node, seeds, summary))
        except BackendError as error:
            arrived = [step and self.read(step, node) for step in error.arrived]
            raise retold(error, arrived, _sum(error.spent, paid)) from error
        read = [self.read(step, node) for step in steps]
        if read and paid is not FREE:
            read[0] = dataclasses.replace(read[0], usage=read[0].usage + paid)
        return read

    def bound(self, n: int) -> Usage:
        """The most that `n` samples at one node may cost, without the prompt."""
        own = Usage(calls=1, completion=n * self.max_tokens)
        if isinstance(self.history, Summarised):
            return own + Usage(calls=1, completion=self.history.summary)
        return own

    def offers(self, node: Node) -> tuple[Tool, ...]:  # noqa: ARG002  (a chat calls no tools)
        """The tools that the model's server is told of."""
        return ()

    def read(self, step: Step, node: Node) -> Step:  # noqa: ARG002  (a chat's text is its step)
        """The step that a reply to the request at a node means."""
        return step

    def turn(self, said: Sequence[Step], state: State) -> list[Message]:
        """The model's finished turn and what the world answered to it, to each of its calls."""
        calls = tuple(call for step in said for call in step.tool_calls)
        text = "".join(step.text for step in said)
        messages = [Message("assistant", self.prefill + text, calls)] if text or calls else []
        for call, result in zip(calls, results_of(calls, state), strict=False):
            messages.append(Message("tool", result, tool_call_id=call.id))
        if state.observation and (state.results or not calls):
            messages.append(Message("user", state.observation))
        return messages


def results_of(calls: Sequence[ToolCall], state: State) -> Sequence[str]:
    """What each call came to; a world that does not know of calls answers all in one."""
    return state.results or (state.observation,) * len(calls)


def _sum(spent: Usage | None, paid: Usage) -> Usage | None:
    return spent if paid is FREE else (spent or FREE) + paid
