"""The numbers round of Countdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from branchwise.core.errors import SpecError
from branchwise.core.types import Task
from branchwise.environments.number_game import (
    NumberGame,
    Numbers,
    Rule,
    Value,
    natural,
    numbers_of,
)


class Countdown(NumberGame):
    """Make a target of some of the numbers by + - * /; all that is made is positive and whole.

    Moves are written as in the Game of 24. The game ends as soon as the target has been made, with
    `Answer: expression`, or when one number is left; not all numbers need be used, each at most
    once. The reward of the last step is 1 if the target has been made.

    The numbers are `meta["numbers"]` and the target `meta["target"]`; without them, the last number
    in the task's text is the target.

    Source: the numbers round of the television game; as a task of search, Gandhi et al. 2024
    (Stream of Search), §3.

    Args:
        most_steps: the game is cut after so many moves, illegal ones included.
        illegal: after an illegal move one may `stay` and try again, or it is the `end` of the
            branch, which is cut.
        tell: whether the rules and the position are told; if not, only what is wrong with an
            illegal move is, as suits policies whose own text keeps the books.

    Example:
        >>> from branchwise import Step, Task, run_sync
        >>> async def play() -> str | None:
        ...     world = Countdown()
        ...     state = await world.reset(Task("Make 12 of 3, 4 and 7", meta={"target": 12,
        ...         "numbers": [3, 4, 7]}))
        ...     return (await world.step(state, Step("3 * 4 = 12"))).answer
        >>> run_sync(play)
        '3 * 4'
    """

    all_used: ClassVar[bool] = False
    kind: Literal["countdown"] = "countdown"

    @property
    def rule(self) -> Rule:
        """Arithmetic of positive whole numbers."""
        return natural

    def asked(self, task: Task) -> tuple[Sequence[Value], Value]:
        """The numbers and the target.

        Raises:
            SpecError: a number is not whole or not positive, or there is none.
        """
        numbers = numbers_of(task, "numbers")
        target = numbers_of(task, "target") if "target" in task.meta else numbers[-1:]
        if "target" not in task.meta and "numbers" not in task.meta:
            numbers = numbers[:-1]
        for number in (*numbers, *target):
            if not isinstance(number, int) or number <= 0:
                raise SpecError(f"Countdown has positive whole numbers only: {task.prompt!r:.60}")
        if not target:
            raise SpecError(f"there is no target in {task.prompt!r:.60}")
        return numbers, target[0]

    def rules(self, position: Numbers) -> str:
        """How to play."""
        return (
            f"Make {position.target} from {' '.join(position.given)} with + - * /, using each "
            "number at most once; only positive whole numbers may be made. Take two of the numbers "
            "that are left in each step and write one line: "
            "a op b = c (left: the numbers that are left now)"
        )
