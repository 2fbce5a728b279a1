"""A model chooses among the answers that it is shown: universal self-consistency."""

import re
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, SkipValidation

from branchwise.agents.retold import retold
from branchwise.core.config import Config, Sampling
from branchwise.core.errors import BackendError
from branchwise.core.node import Node
from branchwise.core.template import filled
from branchwise.core.types import FREE, Backend, Message, Request, Step, Usage, joined

_NUMBER_AT_THE_END = re.compile(r"(?<!\d)(?<!\d[.,])(\d{1,9})[\W_]*\Z")
_ENTRY = "Response {number}:\n{text}"
_TEMPLATE = """\
Several people were given the same task and worked on it apart from one another.

Task:
{prompt}

{responses}

Compare what these {count} responses conclude. Which one agrees best with the majority of them? \
Explain in a sentence or two, then end your reply with the number of that response."""


class Chooser(Config):
    """Asks a model which of the finished answers below a node is the most consistent one.

    The answers are shown in the order of the tree, numbered from 1, and the chosen one is proposed
    again, word by word, as one step whose cost is that of the choice. The reply has to end with a
    number. A reply without one, or with a number that no answer has, fails the new branch, whose
    `failure` quotes it; `Transform` then falls back to its pick, by default the first answer, as
    published. A single answer is chosen without asking.

    Source: universal self-consistency, Chen et al. 2023, §3.

    Args:
        backend: the model.
        system: the system's message; none where it is empty.
        template: the user's message; `{prompt}`, `{responses}`, `{count}` and the keys of the
            task's `meta` are filled in.
        entry: how one answer is shown in `{responses}`; `{number}` and `{text}` are filled in.
        sampling: how the reply is drawn; the most probable one by default.
        max_tokens: the most tokens of the reply.
        stop: strings that end the reply.

    Example:
        >>> from branchwise import Node, Scripted, State, Step, Task, run_sync
        >>> root = Node(Task("2 + 2?"), State())
        >>> for i, said in enumerate(["It is 5.", "It is 4."]):
        ...     root.adopt([Node(root.task, State(done=True), root, i, Step(said))])
        >>> judge = Scripted(lambda request, seed: "The most consistent one is response 2.")
        >>> run_sync(Chooser(backend=judge).propose, root, [0])[0].text
        'It is 4.'
    """

    backend: SkipValidation[Backend] = Field(exclude=True, repr=False)
    kind: Literal["chooser"] = "chooser"
    system: str = ""
    template: str = _TEMPLATE
    entry: str = _ENTRY
    sampling: Sampling = Sampling(temperature=0)
    max_tokens: int = Field(default=512, ge=1)
    stop: tuple[str, ...] = ()

    def request(self, node: Node, seeds: Sequence[int]) -> Request:
        """What the model is asked: a pure function of the tree below the node and the seeds."""
        answers = finished(node)
        responses = "\n\n".join(
            filled(self.entry, {"number": number, "text": answer.text.strip()})
            for number, answer in enumerate(answers, start=1)
        )
        known = {"prompt": node.task.prompt, "responses": responses, "count": len(answers)}
        question = filled(self.template, {**node.task.meta, **known})
        messages = [Message("system", self.system)] if self.system else []
        return Request(
            messages=(*messages, Message("user", question)),
            seeds=tuple(seeds),
            sampling=self.sampling,
            stop=self.stop,
            max_tokens=self.max_tokens,
            logprobs=False,
        )

    async def propose(self, node: Node, seeds: Sequence[int]) -> Sequence[Step]:
        """For each seed the answer that a reply chose; nothing where no answer has finished.

        Raises:
            BackendError: the model's call failed, or a reply chose no answer.
        """
        answers = finished(node)
        if len(answers) < 2:  # noqa: PLR2004  (nothing to choose from)
            return [repeated(node, answer, FREE) for answer in answers for _ in seeds]
        failure: BackendError | None = None
        try:
            replies: Sequence[Step | None] = await self.backend.complete(self.request(node, seeds))
        except BackendError as error:
            failure, replies = error, error.arrived
        chosen = [reply and _chosen(node, answers, reply) for reply in replies]
        spent = FREE
        for reply, step in zip(replies, chosen, strict=True):
            if reply is not None and step is None:
                failure = failure or _unread(reply, len(answers))
                spent += reply.usage
        if failure is not None:
            # What arrived at the model's call are replies; the search must see answers.
            raise retold(failure, chosen, spent) from failure
        return [step for step in chosen if step is not None]

    def bound(self, n: int) -> Usage:
        """The most that `n` choices at one node may cost, without the prompt."""
        return Usage(calls=1, completion=n * self.max_tokens)


def finished(node: Node) -> list[Node]:
    """The finished answers below a node, in the order of the tree."""
    return [below for below in node.walk() if below.finished and below is not node]


def repeated(node: Node, answer: Node, usage: Usage) -> Step:
    """What was said from `node` down to `answer`, as one step that costs `usage`.

    What the answer's steps cost themselves is on their own nodes and not counted again.
    """
    # An answer that begins below the node is a new draft; else it goes on from what is said there.
    before = len(node.steps) if answer.start is node.start else 0
    steps = answer.steps[before:]
    return joined(steps, finish=steps[-1].finish if steps else "end", usage=usage)


def _chosen(node: Node, answers: Sequence[Node], reply: Step) -> Step | None:
    """The answer whose number the reply ends with; a reply that was cut short does not end."""
    match = _NUMBER_AT_THE_END.search(reply.text)
    if match is None or reply.finish in {"length", "filter"}:
        return None
    number = int(match[1])
    return repeated(node, answers[number - 1], reply.usage) if 0 < number <= len(answers) else None


def _unread(reply: Step, count: int) -> BackendError:
    cut = " and was cut short" if reply.finish in {"length", "filter"} else ""
    return BackendError(
        f"the choice among {count} answers could not be read: the reply ends with "
        f"{reply.text[-80:]!r}{cut}",
        hint="the template has to ask for a number at the end, and `max_tokens` to leave room",
    )
