"""Finding out whether a server draws the same sample for the same seed."""

from __future__ import annotations

from branchwise.backends.remote.call import Caller
from branchwise.backends.remote.continuation import Ask
from branchwise.core.aio import gather
from branchwise.core.errors import BackendError
from branchwise.core.types import Message, Request

# Hardly two samples begin alike by chance here.
_DICE = Request(
    messages=(Message("user", "Write a line of random letters and digits."),),
    seeds=(20_240_229,),
    max_tokens=8,
    logprobs=False,
)


async def heeded(ask: Ask, caller: Caller) -> bool:
    """Whether two equal calls bring the same sample; True also where nothing can be told.

    Args:
        ask: sends a request and returns its steps.
        caller: writes the calls.

    Raises:
        BackendError: no call can succeed any more.
    """

    async def one(request: Request) -> str | None:
        try:
            return (await ask(caller, request))[0].text
        except BackendError as error:
            if error.fatal:
                raise
            return None

    texts = set(await gather(one, [_DICE, _DICE])) - {None}
    return len(texts) < 2  # noqa: PLR2004  (both calls)
