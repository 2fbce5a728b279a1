"""A chat model that revises: it reads the drafts so far and what was said of them."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from branchwise.agents.chat import Asking
from branchwise.agents.retold import retold
from branchwise.core.aio import gather
from branchwise.core.errors import BackendError
from branchwise.core.node import Node
from branchwise.core.template import filled
from branchwise.core.types import FREE, Message, Request, Step, Usage, joined


class Reviser(Asking):
    r"""Writes an answer anew, having read the earlier drafts and their feedback.

    Each draft is a turn of the model, and what the world and the verifiers said of it the user's
    reply. With `critique` the model first says itself what is wrong (self-refine, Madaan et al.
    2023), once for each seed; where a critique contains `satisfied`, the draft is handed back as
    it is, which ends a refinement. Without `critique`, the feedback is all there is
    (self-debugging, Chen et al. 2024).

    It writes texts: it is offered no tools and reads no calls, and of a draft that was made with
    tools it sees what was said, and what came of the last step.

    Args:
        backend: the model.
        system: the system's message; none where it is empty.
        template: the user's message; `{prompt}` and the keys of the task's `meta` are filled in.
        shots: worked examples, as earlier turns.
        sampling: how tokens are drawn.
        max_tokens: the most tokens of one step, and of one critique.
        stop: strings that end a step.
        logprobs: whether to ask for the log-probabilities of the tokens.
        prefill: how each reply of the model begins: it goes on from these words, which are no part
            of its step.
        revision: the user's reply to a draft; `{feedback}`, `{prompt}` and the keys of the task's
            `meta` are filled in.
        critique: asks the model for its own feedback; empty asks nothing. A revision should then
            be one step, for only its first step has read the critique.
        satisfied: what a critique says when nothing is left to improve.
        memory: how many of the last drafts it reads; None reads all.

    Example:
        >>> from branchwise import Node, Scripted, State, Task
        >>> reviser = Reviser(backend=Scripted(lambda request, seed: "5"))
        >>> root = Node(Task("2 + 3?"), State())
        >>> draft = Node(root.task, State(observation="too small", done=True), root, 0, Step("4"))
        >>> [message.content.split("\n")[0] for message in reviser.request(draft, [1]).messages]
        ['2 + 3?', '4', 'too small']
    """

    kind: Literal["reviser"] = "reviser"
    revision: str = (
        "{feedback}\n\nRead your answer again with this in mind, find what is wrong, "
        "and write the whole answer once more."
    )
    critique: str = ""
    satisfied: str = "nothing to improve"
    memory: int | None = Field(default=None, ge=1)

    def request(self, node: Node, seeds: Sequence[int], critique: str = "") -> Request:
        """What the model is asked at a draft, or within a revision that it has begun."""
        messages = self._drafts(node)
        if messages and critique:
            messages[-1] = self._reply(node, critique)
        said = () if node.done else node.steps
        return self.asks([*self.opening(node), *messages], said, seeds)

    async def propose(self, node: Node, seeds: Sequence[int]) -> Sequence[Step]:
        """One revision for each seed.

        Raises:
            BackendError: the model's call failed.
        """
        if not self.critique or not node.done:
            return await self.backend.complete(self.request(node, seeds))
        question = [*self._drafts(node)[:-1], Message("user", self.critique)]
        asked = self.asks([*self.opening(node), *question], (), seeds, prefill=False)
        lost: BackendError | None = None
        try:
            critiques: Sequence[Step | None] = await self.backend.complete(asked)
        except BackendError as error:
            lost, critiques = error, error.arrived or [None] * len(seeds)

        async def revise(each: tuple[int, Step | None]) -> Step | BackendError | None:
            seed, said = each
            if said is None:
                return lost
            if node.steps and self.satisfied.lower() in said.text.lower():
                return joined(node.steps, finish=node.steps[-1].finish, usage=said.usage)
            try:
                (step,) = await self.backend.complete(self.request(node, [seed], said.text))
            except BackendError as error:
                return retold(error, [], said.usage + (error.spent or FREE))
            return dataclasses.replace(step, usage=step.usage + said.usage)

        revised = await gather(revise, list(zip(seeds, critiques, strict=True)))
        steps = [step if isinstance(step, Step) else None for step in revised]
        failures = list(dict.fromkeys(r for r in revised if isinstance(r, BackendError)))
        if failures:
            # A critique that arrived is no draft: only what has been revised is handed on.
            worst = next((failure for failure in failures if failure.fatal), failures[0])
            spent = sum((failure.spent for failure in failures if failure.spent), FREE)
            raise retold(worst, steps, spent)
        return [step for step in steps if step is not None]

    def bound(self, n: int) -> Usage:
        """The most that `n` revisions of one draft may cost, without the prompts."""
        calls = 1 + n if self.critique else 1
        return Usage(calls=calls, completion=n * self.max_tokens * (2 if self.critique else 1))

    def _drafts(self, node: Node) -> list[Message]:
        """The drafts above, each with the reply to it."""
        drafts = [v for v in node.lineage if v.done and v.step is not None]
        messages: list[Message] = []
        for draft in drafts[-self.memory if self.memory else 0 :]:
            messages += [
                Message("assistant", self.prefill + draft.text),
                self._reply(draft, _feedback(draft)),
            ]
        return messages

    def _reply(self, draft: Node, feedback: str) -> Message:
        values = {**draft.task.meta, "prompt": draft.task.prompt, "feedback": feedback}
        return Message("user", filled(self.revision, values).strip())


def _feedback(draft: Node) -> str:
    """What the world and the verifiers said of a draft."""
    heard = [
        *draft.state.results,
        draft.state.observation,
        *(v.feedback for v in draft.verdicts.values()),
    ]
    return "\n".join(part for part in heard if part)
