"""Worlds that only go forward, as functions of their state."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from hashlib import blake2b
from types import TracebackType
from typing import Protocol, Self, TypeAlias, cast

import anyio
from pydantic import TypeAdapter

from branchwise.core.errors import BranchwiseError, SpecError, WorldError
from branchwise.core.types import Environment, Finish, Json, State, Step, Task, ToolCall

_CLOSING = 10.0
"""How long a session may take to close; a search that was cancelled must not hang on it."""


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


class Sessions(Environment):
    """A stateful world as a function of its states: any state can be stepped from, in any order.

    A step takes place in a session of its own, which is brought to the state in the cheapest way
    that there is: one that stands there already, one that can `load` what was saved there, or a
    new one in which all actions since the start (or since the last state that could be saved) are
    carried out again. A world that answers such a replay otherwise than the first time is found
    out by its first different word. Sessions get of an action what a world may look at: its text,
    its tool calls and why it ended.

    A session that raises, or whose step is cancelled, is closed and never used again; the next
    visit replays. What `start` holds when it is cancelled or raises, it has to free itself.

    Snapshots are JSON values which share their past and from which another process can go on.
    Without `save` they hold all actions since the start.

    Args:
        start: begins a session of a task.
        live: the most sessions at one time; the one used least recently is closed for a new one,
            and steps wait where all are at work.

    Raises:
        SpecError: `live` is less than 1.

    Example:
        >>> from branchwise import run_sync
        >>> class Counter:
        ...     count = 0
        ...     async def act(self, action):
        ...         self.count += int(action.text)
        ...         return State(observation=str(self.count))
        ...     async def save(self):
        ...         return None
        ...     async def load(self, saved): ...
        ...     async def close(self): ...
        >>> async def start(task):
        ...     return Counter(), State(observation="0")
        >>> async def play():
        ...     async with Sessions(start) as world:
        ...         root = await world.reset(Task("Count."))
        ...         one = await world.step(root, Step("1"))
        ...         three = await world.step(one, Step("2"))
        ...         return [three, await world.step(one, Step("4"))]
        >>> [state.observation for state in run_sync(play)]
        ['3', '5']
    """

    def __init__(self, start: Start, live: int = 8) -> None:
        if live < 1:
            raise SpecError(f"live = {live}: a world needs at least one session")
        self._start = start
        self._live = live
        # Whoever holds a slot holds at most one busy session, so there is always room for one or
        # an idle one to make room: nobody waits while holding anything.
        self._slots: anyio.Semaphore | None = None
        self._idle: OrderedDict[int, _Life] = OrderedDict()  # the least recently used first
        self._busy: set[anyio.CancelScope] = set()

    async def __aenter__(self) -> Self:
        if self._slots is not None:
            raise SpecError("this world is open already")
        self._slots = anyio.Semaphore(self._live)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        slots, self._slots = self._slots, None
        for scope in self._busy:
            scope.cancel()
        if slots is not None:
            with anyio.CancelScope(shield=True):
                for _ in range(self._live):
                    await slots.acquire()  # whoever was at work has closed its own
                while self._idle:
                    await self._idle.popitem()[1].close()

    async def reset(self, task: Task) -> State:
        """The state in which a session of the task begins.

        Raises:
            WorldError: no session could be started.
        """
        async with self._slot():
            said = _tasks.dump_python(task, mode="json")
            session, state = await self._begin(task)
            start: Place = {"task": said, "at": _digest(said, state)}
            life = _Life(session, start)
            async with life.closed_on_error():
                return await self._arrived(life, state, start)

    async def step(self, state: State, action: Step) -> State:
        """The state that the action leads to, found by a session of the step's own.

        Raises:
            WorldError: the world is done here, the state is not one of this world, a session
                broke, or a replay took another way.
        """
        place = _read(state.snapshot)
        if state.done:
            raise WorldError("the world is done here: it accepts no further action")
        async with self._slot():
            life = await self._at(place)
            async with life.closed_on_error():
                said = _plain(action)
                after = await life.session.act(_step(said))
                came = _digest(place["at"], said, after)
                return await self._arrived(life, after, _further(place, said, came))

    async def _arrived(self, life: _Life, state: State, place: Place) -> State:
        """The state with its snapshot; its session may be used by others now."""
        saved = _copied(await life.session.save())
        if saved is not None:
            place = {"start": life.start, "saved": saved, "at": _digest(life.start["at"], saved)}
        life.at = place["at"]
        if state.done and saved is None:
            await life.close()  # nothing goes on from here, and it can be nowhere else
        else:
            self._idle[id(life)] = life
        return dataclasses.replace(state, snapshot=place)

    async def _at(self, place: Place) -> _Life:
        """A session that stands there and belongs to the caller."""
        for life in reversed(self._idle.values()):
            if life.at == place["at"]:
                return self._idle.pop(id(life))
        past: list[Place] = []  # from the last one back to what one can begin with
        first = place
        while "before" in first:
            past.append(first)
            first = _read(first["before"])
        start = _read(first.get("start", first))
        life = await self._loaded(start, first) if "saved" in first else None
        if life is None:
            session, state = await self._begin(_tasks.validate_python(start["task"]))
            life = _Life(session, start)
            async with life.closed_on_error():
                if "saved" in first:
                    await life.session.load(_copied(first["saved"]))
                elif _digest(start["task"], state) != start["at"]:
                    raise _other("the start", state)
        async with life.closed_on_error():
            at = first["at"]
            actions = [action for later in reversed(past) for action in _actions(later)]
            for depth, (said, came) in enumerate(actions, 1):
                state = await life.session.act(_step(said))
                if _digest(at, said, state) != came:
                    raise _other(f"action {depth}", state)
                at = came
        return life

    async def _loaded(self, start: Place, saved: Place) -> _Life | None:
        """An idle session of the same task, brought to what was saved."""
        for life in self._idle.values():
            if life.start["at"] == start["at"]:
                del self._idle[id(life)]
                async with life.closed_on_error():
                    await life.session.load(_copied(saved["saved"]))
                return life
        return None

    async def _begin(self, task: Task) -> tuple[Session, State]:
        """A new session, for which an idle one makes room where there is none."""
        while len(self._idle) + len(self._busy) > self._live:
            await self._idle.popitem(last=False)[1].close()
        return await self._start(task)

    @asynccontextmanager
    async def _slot(self) -> AsyncGenerator[None]:
        """The right to hold one session; what goes wrong meanwhile is a `WorldError`."""
        slots = self._slots
        if slots is None:
            raise WorldError("this world is not open", hint="async with Sessions(start) as world:")
        async with slots:
            if self._slots is not slots:
                raise WorldError("this world was closed meanwhile")
            with anyio.CancelScope() as scope:
                self._busy.add(scope)
                try:
                    yield
                except BranchwiseError:
                    raise
                except Exception as error:
                    raise WorldError(f"a session raised {type(error).__name__}: {error}") from error
                finally:
                    self._busy.discard(scope)
            if scope.cancelled_caught:
                raise WorldError("this world was closed meanwhile")


Place: TypeAlias = Mapping[str, object]
"""A snapshot: a start (`task`), something saved (`start`, `saved`) or actions after another place
(`before`, `actions`); `at` is a digest of how it was reached or of what was saved."""

_ROW = 64
"""So many actions stand side by side in a place: JSON can be nested some 900 deep only."""


class _Life:
    """A session, and where it stands."""

    def __init__(self, session: Session, start: Place) -> None:
        self.session = session
        self.start = start
        self.at: object = None

    @asynccontextmanager
    async def closed_on_error(self) -> AsyncGenerator[None]:
        """Nobody knows where a session stands that was left in the middle of something."""
        try:
            yield
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        try:
            with anyio.move_on_after(_CLOSING, shield=True) as scope:
                await self.session.close()
        except Exception as error:  # noqa: BLE001  (another branch's step must not fail for it)
            warnings.warn(f"a session did not close: {error!r}", ResourceWarning, stacklevel=2)
        else:
            if scope.cancelled_caught:
                warnings.warn("a session did not close in time", ResourceWarning, stacklevel=2)


_tasks = TypeAdapter(Task)


def _read(place: object) -> Place:
    match place:
        case {"at": str()}:
            return cast("Place", place)
        case _:
            raise WorldError(f"no snapshot of a world of sessions: {place!r:.80}")


def _further(place: Place, said: list[object], came: str) -> Place:
    """Where an action leads, which shares as much as it can with where it began."""
    row = _actions(place)
    if not 0 < len(row) < _ROW:
        return {"before": place, "actions": [[said, came]], "at": came}
    return {"before": place["before"], "actions": [*row, [said, came]], "at": came}


def _actions(place: Place) -> list[list[object]]:
    """The actions since the place before, each with the digest of where it led."""
    return cast("list[list[object]]", place.get("actions", []))


def _plain(action: Step) -> list[object]:
    """What a world may look at of an action, as a JSON value."""
    calls = [[call.id, call.name, call.arguments] for call in action.tool_calls]
    return [action.text, action.finish, calls]


def _step(said: object) -> Step:
    """The action that a world gets, the first time and at each replay."""
    text, finish, calls = cast("tuple[str, Finish, list[list[str]]]", said)
    return Step(text, finish=finish, tool_calls=tuple(ToolCall(*call) for call in calls))


def _digest(*parts: object) -> str:
    """What tells places apart: 16 bytes of the digest of JSON values and of what states say."""
    said = [_told(part) if isinstance(part, State) else part for part in parts]
    return blake2b(_json(said).encode(), digest_size=16).hexdigest()


def _json(value: object) -> str:
    try:
        return json.dumps(value, sort_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise WorldError(f"not a JSON value: {error}") from error


def _copied(saved: object) -> Json:
    """What a session saves or gets, as nobody else's: it may go on changing it."""
    return json.loads(_json(saved))


def _told(state: State) -> list[object]:
    return [
        state.observation,
        state.results,
        state.reward,
        state.done,
        state.cut,
        state.answer,
        [tool.name for tool in state.tools],
    ]


def _other(what: str, state: State) -> WorldError:
    return WorldError(
        f"the world is not deterministic: {what} now led to {state.observation!r:.80}",
        hint="give it a seed, or let its sessions save",
    )
