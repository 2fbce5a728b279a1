"""A chat model as a policy: how a node becomes messages, and the reply the next step."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, SkipValidation

from branchwise.core.config import Config, Sampling
from branchwise.core.node import Node
from branchwise.core.template import filled
from branchwise.core.types import Backend, Message, Request, State, Step, Task, Usage


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
        messages = [Message("system", self.system)] if self.system else []
        for shot in self.shots:
            messages.append(Message("user", self._filled(Task(shot.prompt))))
            messages.append(Message("assistant", shot.reply))
        question = [self._filled(node.task), node.lineage[0].state.observation]
        return [*messages, Message("user", "\n\n".join(part for part in question if part))]

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

    Example:
        >>> from branchwise import Node, Scripted, State, Task
        >>> chat = Chat(backend=Scripted(lambda request, seed: "4"), template="{prompt} Be brief.")
        >>> chat.request(Node(Task("2 + 2?"), State()), seeds=[1]).messages[0].content
        '2 + 2? Be brief.'
    """

    kind: Literal["chat"] = "chat"

    def request(self, node: Node, seeds: Sequence[int]) -> Request:
        """What the model is asked at a node: a pure function of the node and the seeds."""
        messages = self.opening(node)
        said: list[Step] = []
        for place in node.lineage[1:]:
            if place.step is not None:
                said.append(place.step)
            if place.state.observation or place.state.results:
                messages += turn(said, place.state, self.prefill)
                said = []
        return self.asks(messages, said, seeds)

    async def propose(self, node: Node, seeds: Sequence[int]) -> Sequence[Step]:
        """One step for each seed.

        Raises:
            BackendError: the model's call failed.
        """
        return await self.backend.complete(self.request(node, seeds))

    def bound(self, n: int) -> Usage:
        """The most that `n` samples at one node may cost, without the prompt."""
        return Usage(calls=1, completion=n * self.max_tokens)


def turn(said: Sequence[Step], state: State, prefill: str = "") -> list[Message]:
    """The model's finished turn and what the world answered to it, to each of its tool calls."""
    calls = tuple(call for step in said for call in step.tool_calls)
    text = "".join(step.text for step in said)
    messages = [Message("assistant", prefill + text, calls)] if text or calls else []
    results = state.results or (state.observation,) * len(calls)
    for call, result in zip(calls, results, strict=False):
        messages.append(Message("tool", result, tool_call_id=call.id))
    if state.observation and (state.results or not calls):
        messages.append(Message("user", state.observation))
    return messages
