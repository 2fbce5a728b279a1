"""The next token as a step: what turns search over steps into search over tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, cast, runtime_checkable

from pydantic import model_validator

from branchwise.agents.chat import Chat
from branchwise.core.config import Config
from branchwise.core.errors import SpecError
from branchwise.core.node import Node
from branchwise.core.types import FREE, Backend, Candidate, Finish, Request, Step, Usage

_PART = "\ufffd"  # how a backend writes a character of which a part is missing


@runtime_checkable
class Asks(Protocol):
    """A policy that says what it asks of which model."""

    @property
    def backend(self) -> Backend:
        """The model."""
        ...

    def request(self, node: Node, seeds: Sequence[int]) -> Request:
        """What the model is asked at a node."""
        ...


class NextToken(Config):
    r"""Proposes single tokens: the i-th child of a node is its i-th most probable next token.

    Probable is meant under the model itself. Tokens that the sampling's adapters cut are left out,
    so `top_k` or `min_p` bound the branching; at temperature 0 only one token is left. Seeds do not
    matter. A node that is grown again gets the most probable tokens that no child of it says yet.

    A token that ends the answer has no text and the finish `end`; one that completes a stop string
    has `stop`, and every other one `length`: worlds of text go on where they say
    `continue_at_length=True`. A token that holds a part of a character has no text either; the one
    that completes the character has all of it. So texts join to the text that the tokens say.

    Needs a backend that gives `Step.candidates`, as the local engine does.

    Args:
        policy: says what is asked, as `Chat` does; its `max_tokens` does not matter here.
        sample: draw tokens by seed instead, with the policy's sampling.

    Raises:
        pydantic.ValidationError: `policy` does not say what it asks.

    Example:
        >>> from branchwise import Scripted
        >>> model = Scripted(lambda request, seed: "4")
        >>> NextToken(policy=Chat(backend=model)).bound(300).completion
        1
    """

    kind: Literal["next-token"] = "next-token"
    policy: Asks
    sample: bool = False

    @model_validator(mode="before")
    @classmethod
    def _opened(cls, table: object) -> object:
        """In a spec the fields of the policy and the model stand beside this one's own."""
        if not isinstance(table, Mapping) or "backend" not in table:
            return cast("object", table)
        rest = dict(cast("Mapping[str, object]", table))
        own = {field: rest.pop(field) for field in ("kind", "sample") if field in rest}
        inner = cast("Mapping[str, object]", rest.pop("policy", {}))
        return {**own, "policy": Chat.model_validate({**inner, **rest})}

    async def propose(self, node: Node, seeds: Sequence[int]) -> Sequence[Step]:
        """The next most probable tokens that the node has no child for yet, or drawn ones.

        Raises:
            BackendError: the model's call failed.
            SpecError: the backend gives no candidates.
        """
        request = dataclasses.replace(self.policy.request(node, seeds), max_tokens=1)
        if self.sample:
            steps = await self.policy.backend.complete(request)
            return [
                dataclasses.replace(s, finish=_finish(s.finish, s.text, request)) for s in steps
            ]
        # Not a number of children: some may have failed, others may be whole texts of a rollout.
        said = {child.step.tokens for child in node.children if child.step is not None}
        most = len(said) + len(seeds)
        request = dataclasses.replace(request, seeds=tuple(seeds[:1]), candidates=most)
        [drawn] = await self.policy.backend.complete(request)
        places = drawn.candidates or ((),)
        kept = [c for c in places[0] if c.proposal is not None]
        if not kept:  # servers tell neither ids nor what adapters did
            raise SpecError(
                "the backend gives no candidates that can be drawn",
                hint="the local engine does: backend kind hf",
            )
        new = [c for c in kept if (c.token,) not in said][: len(seeds)]
        return [_step(c, request, FREE if i else drawn.usage) for i, c in enumerate(new)]

    def bound(self, n: int) -> Usage:
        """The most that `n` children of one node may cost: without `sample`, one token."""
        return Usage(calls=1, completion=n if self.sample else 1)


def _step(candidate: Candidate, request: Request, usage: Usage) -> Step:
    text = "" if candidate.text.endswith(_PART) else candidate.text
    finish: Finish = "length" if candidate.text else "end"
    return Step(
        text,
        (candidate.token,),
        candidate.logprob,
        (candidate.logprob,),
        _finish(finish, text, request),
        usage,
    )


def _finish(finish: Finish, text: str, request: Request) -> Finish:
    """`stop` where the token completes a stop string, which may have begun in earlier tokens."""
    before = request.so_far if request.stop else ""
    for stop in request.stop:
        if finish == "length" and stop in before[max(0, len(before) - len(stop) + 1) :] + text:
            return "stop"
    return finish
