"""Worlds that only go forward, as functions of their state."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeAlias

from branchwise.core.types import Json, State, Step, Task


class Session(Protocol):
    """One life of a stateful world: a game that is being played, a browser, an interpreter.

    What it returns are states without a snapshot: `Sessions` sees to that.
    """

    async def act(self, action: Step) -> State:
        """Carry out an action; a wrong one is an observation, not an error.

        Raises:
            WorldError: the world itself broke.
        """
        ...

    async def save(self) -> Json:
        """All there is to know to come back here, as a JSON value; None where there is no way."""
        ...

    async def load(self, saved: Json) -> None:
        """Come back to where `save` was called, in this session or in another of the same task."""
        ...

    async def close(self) -> None:
        """Free everything."""
        ...


Start: TypeAlias = Callable[[Task], Awaitable[tuple[Session, State]]]
"""Begins a session of a task: the session, and the state in which the task begins."""
