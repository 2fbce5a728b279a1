"""Blocksworld."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Literal, TypeAlias, cast

from pydantic import ValidationError

from branchwise.core.errors import SpecError
from branchwise.core.types import State, Step, Task
from branchwise.environments.game import Game, Illegal, Position

Stacks: TypeAlias = tuple[tuple[str, ...], ...]
Goal: TypeAlias = tuple[tuple[str, str], ...]
World: TypeAlias = tuple[Stacks, str | None]
"""The stacks, each from its lowest block up, in order; and the block in the hand."""

Action: TypeAlias = tuple[str, ...]
"""A verb and the names it takes."""
Pair: TypeAlias = tuple[str, str]

TABLE = "table"


class Blocks(Position):
    """Where a game of Blocksworld stands.

    Args:
        stacks: the stacks, each from its lowest block up, in alphabetical order.
        hand: the block that is held.
        goal: what shall stand on what.
    """

    stacks: Stacks
    hand: str | None = None
    goal: Goal

    @property
    def world(self) -> World:
        """All but the goal and the count."""
        return self.stacks, self.hand


class Blocksworld(Game[Blocks]):
    """Rearrange stacks of blocks, one block at a time, until they stand as asked.

    With `actions = "hand"` there are the four operators of the planning literature: `pick up A`
    (from the table), `put down A`, `stack A on B` and `unstack A from B`. With `"move"` there is
    one: `move A from B to C`, where B and C may be the table. The long forms of PlanBench ("unstack
    the red block from on top of the blue block") are read too. The reward of the step that reaches
    the goal is 1; the answer is the plan's number of steps.

    A task says `meta["stacks"]`, lists of names from the lowest block up, and `meta["goal"]`, pairs
    `[A, B]`: A on B, which may be `table`. Without them its text is read: sentences such as "A is
    on B" or "the red block is on the table" before the word "goal" are the beginning, those after
    it the goal.

    Source: Slaney and Thiébaux 2001 for the game; with language models, Valmeekam et al. 2023
    (PlanBench) and Hao et al. 2023 (RAP), §4.1.

    Args:
        most_steps: the game is cut after so many moves, illegal ones included.
        illegal: after an illegal move one may `stay` and try again, or it is the `end` of the
            branch, which is cut.
        tell: whether the rules and the position are told; if not, only what is wrong with an
            illegal move is, as suits policies whose own text keeps the books.
        actions: `hand` or `move`.

    Example:
        >>> from branchwise import Task, run_sync
        >>> world = Blocksworld()
        >>> start = run_sync(world.reset, Task("A is on B. B is on the table. Goal: B is on A."))
        >>> world.solve(start)
        ['unstack A from B', 'put down A', 'pick up B', 'stack B on A']
    """

    kind: Literal["blocksworld"] = "blocksworld"
    actions: Literal["hand", "move"] = "hand"

    def begin(self, task: Task) -> Blocks:
        """The stacks and the goal of a task.

        Raises:
            SpecError: they are missing, or cannot stand.
        """
        if "stacks" in task.meta:
            try:
                position = Blocks.model_validate(
                    {"stacks": task.meta["stacks"], "goal": task.meta.get("goal", ())}
                )
            except ValidationError as error:
                raise SpecError(
                    f"the stacks or the goal of {task.prompt!r:.60} are wrong"
                ) from error
        else:
            before, _, after = task.prompt.partition("goal" if "goal" in task.prompt else "Goal")
            position = Blocks(stacks=_stacked(_pairs(before)), goal=_pairs(after))
        names = [name for stack in position.stacks for name in stack]
        asked = {name for pair in position.goal for name in pair} - {TABLE}
        if not position.goal or len(set(names)) < len(names) or not asked <= set(names):
            raise SpecError(
                f"no game of Blocksworld: {task.prompt!r:.60}",
                hint='write "A is on B. B is on the table. Goal: B is on A."',
            )
        return position.model_copy(update={"stacks": _sorted(position.stacks)})

    def load(self, snapshot: object) -> Blocks:
        """The position that a snapshot stands for."""
        return Blocks.model_validate(snapshot)

    def options(self, position: Blocks) -> list[str]:
        """All legal actions."""
        return [_text(action) for action, _ in _neighbours(self.actions, position.world)]

    def play(self, position: Blocks, line: str) -> Blocks | None:
        """The position after the action in a line."""
        if (asked := _action(line)) is None:
            return None
        for action, (stacks, hand) in _neighbours(self.actions, position.world):
            if _same(action, asked):
                return position.model_copy(update={"stacks": stacks, "hand": hand})
        raise Illegal(_why(self.actions, position, asked))

    def over(self, position: Blocks) -> bool:
        """Whether the goal holds."""
        return _holds(position.goal, position.world)

    def earned(self, before: Blocks, after: Blocks) -> float:  # noqa: ARG002  (of the end alone)
        """1 for reaching the goal."""
        return float(self.over(after))

    def answer(self, position: Blocks) -> str:
        """How many steps it took."""
        return str(position.steps)

    def shown(self, position: Blocks) -> str:
        """What stands on what."""
        told = [
            f"{name} is on {stack[i - 1] if i else 'the table'}"
            for stack in position.stacks
            for i, name in enumerate(stack)
        ]
        if self.actions == "hand":
            told.append(f"{position.hand} is held" if position.hand else "the hand is empty")
        return "; ".join(told) + "."

    def rules(self, position: Blocks) -> str:
        """How to play."""
        goal = "; ".join(f"{a} on {'the table' if b == TABLE else b}" for a, b in position.goal)
        forms = (
            "pick up A; put down A; stack A on B; unstack A from B"
            if self.actions == "hand"
            else "move A from B to C, where B and C may be the table"
        )
        return (
            f"{self.shown(position)}\nGoal: {goal}.\nActions, one on each line: {forms}. "
            "Only a block with nothing on it can be moved, one at a time."
        )

    def distance(self, state: State) -> int:
        """The fewest actions that lead to the goal.

        Raises:
            SpecError: there are more than 7 blocks.
        """
        position = self.position(state)
        distances = _distances(self.actions, _spread_out(position), position.goal)
        return distances[position.world]

    def worth(self, position: Blocks) -> float:
        """1 where the goal can still be reached in time, else 0.

        Raises:
            SpecError: there are more than 7 blocks.
        """
        distances = _distances(self.actions, _spread_out(position), position.goal)
        return float(distances.get(position.world, _NEVER) <= self.steps_left(position))

    def solve(self, state: State) -> list[str] | None:
        """A shortest plan; None where the goal cannot be reached in time."""
        if not self.best(state):
            return None
        plan: list[str] = []
        while distance := self.distance(state):
            for move in self.moves(state):
                after = self.after(state, Step(move))
                if self.distance(after) < distance:
                    plan.append(move)
                    state = after
                    break
        return plan


_NEVER = 10**9
_MOST = 7  # which takes seconds the first time; each block more takes fifteen times as long
_NAME = r"(?:the +)?([A-Za-z0-9_]+)(?: +block)?"
_TOP = r"(?:on *)?(?:top +of +)?"
_ON = re.compile(rf"{_NAME} +(?:is +|be +)?on +(?:top +of +)?{_NAME}", re.IGNORECASE)
_FORMS = tuple(
    (re.compile(rf"\b{form}", re.IGNORECASE), verb)
    for verb, form in (
        ("pick up", rf"pick[ -]up +{_NAME}"),
        ("put down", rf"put[ -]down +{_NAME}"),
        ("unstack", rf"unstack +{_NAME} +from +{_TOP}{_NAME}"),
        ("stack", rf"stack +{_NAME} +{_TOP}{_NAME}"),
        ("move", rf"move +{_NAME}(?: +from +{_TOP}{_NAME})? +(?:to|onto) +{_TOP}{_NAME}"),
    )
)


def _action(line: str) -> Action | None:
    """The action in a line; the name of what it leaves may be empty."""
    for form, verb in _FORMS:
        if found := form.search(line):
            return (verb, *(name or "" for name in found.groups()))
    return None


def _text(action: Action) -> str:
    verb, block, *others = action
    words = {"stack": ["on"], "unstack": ["from"], "move": ["from", "to"]}.get(verb, [])
    places = ["the table" if place == TABLE else place for place in others]
    return " ".join(
        [verb, block, *(f"{word} {at}" for word, at in zip(words, places, strict=True))]
    )


def _same(action: Action, asked: Action) -> bool:
    return len(action) == len(asked) and all(
        b in {"", a} for a, b in zip(map(str.lower, action), map(str.lower, asked), strict=True)
    )


def _why(actions: str, position: Blocks, asked: Action) -> str:
    """The first reason why an action cannot be taken."""
    verb, block, *others = asked
    names = {name.lower(): name for stack in position.stacks for name in stack}
    if position.hand:
        names[position.hand.lower()] = position.hand
    if (verb == "move") != (actions == "move"):
        return f"{verb!r} is no action here."
    for name in (block, *others):
        if name and name.lower() not in names and not (verb == "move" and name.lower() == TABLE):
            return f"there is no block {name}."
    held = verb in {"put down", "stack"}
    if held and names[block.lower()] != position.hand:
        return f"{block} is not held."
    if not held and position.hand:
        return f"{position.hand} is held."
    clear = {stack[-1].lower() for stack in position.stacks} | {TABLE}
    for name in (block, others[-1]) if verb == "move" else others if held else (block,):
        if name.lower() not in clear:
            return f"there is something on {name}."
    return f"{block} does not stand there, or is to stay."


def _pairs(text: str) -> Goal:
    return tuple(
        (a, TABLE if b.lower() == TABLE else b) for a, b in cast("list[Pair]", _ON.findall(text))
    )


def _stacked(pairs: Goal) -> Stacks:
    """The stacks that sentences describe; what stands on nothing they say stands on the table."""
    above = {below: block for block, below in pairs if below != TABLE}
    on_blocks = {block for block, below in pairs if below != TABLE}
    stacks: list[tuple[str, ...]] = []
    for name in dict.fromkeys(name for pair in pairs for name in pair if name != TABLE):
        if name not in on_blocks:
            stack = [name]
            while (higher := above.get(stack[-1])) is not None:
                stack.append(higher)
            stacks.append(tuple(stack))
    return tuple(stacks)


def _sorted(stacks: Iterable[tuple[str, ...]]) -> Stacks:
    return tuple(sorted(stack for stack in stacks if stack))


def _neighbours(actions: str, world: World) -> list[tuple[Action, World]]:
    """Where each legal action leads."""
    stacks, hand = world
    found: list[tuple[Action, World]] = []
    if hand is not None:
        found.append((("put down", hand), (_sorted([*stacks, (hand,)]), None)))
        for i, stack in enumerate(stacks):
            rest = [*stacks[:i], *stacks[i + 1 :]]
            onto = _sorted([*rest, (*stack, hand)])
            found.append((("stack", hand, stack[-1]), (onto, None)))
        return found
    for i, (*under, block) in enumerate(stacks):
        rest = [*stacks[:i], *stacks[i + 1 :]]
        below = under[-1] if under else TABLE
        lifted = _sorted([*rest, tuple(under)])
        if actions == "hand":
            verb: Action = ("unstack", block, below) if under else ("pick up", block)
            found.append((verb, (lifted, block)))
            continue
        if under:
            found.append((("move", block, below, TABLE), (_sorted([*lifted, (block,)]), None)))
        for j, stack in enumerate(stacks):
            if i != j:
                others = [each for k, each in enumerate(stacks) if k not in (i, j)]
                onto = _sorted([*others, tuple(under), (*stack, block)])
                found.append((("move", block, below, stack[-1]), (onto, None)))
    return found


def _holds(goal: Goal, world: World) -> bool:
    below = {
        block: stack[i - 1] if i else TABLE for stack in world[0] for i, block in enumerate(stack)
    }
    return all(below.get(block) == under for block, under in goal)


def _spread_out(position: Blocks) -> World:
    """All blocks on the table: every position can be reached from there, and it from every one."""
    names = [name for stack in position.stacks for name in stack]
    names += [] if position.hand is None else [position.hand]
    if len(names) > _MOST:
        raise SpecError(f"the solver takes too long for more than {_MOST} blocks")
    return _sorted((name,) for name in names), None


@lru_cache(maxsize=256)
def _distances(actions: str, start: World, goal: Goal) -> Mapping[World, int]:
    """How far every position is from the goal: each action can be taken back by one."""
    around: dict[World, list[World]] = {}
    level = [start]
    while level:
        for world in level:
            around[world] = [after for _, after in _neighbours(actions, world)]
        level = list({after for world in level for after in around[world]} - around.keys())
    distances: dict[World, int] = {}
    level, far = [world for world in around if _holds(goal, world)], 0
    while level:
        distances |= dict.fromkeys(level, far)
        level = list({after for world in level for after in around[world]} - distances.keys())
        far += 1
    return distances
