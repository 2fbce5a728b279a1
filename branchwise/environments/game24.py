"""The Game of 24."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from branchwise.core.types import Task
from branchwise.environments.number_game import (
    NumberGame,
    Numbers,
    Rule,
    Value,
    numbers_of,
    rational,
)


class Game24(NumberGame):
    """Make 24 of four numbers by + - * /, each used once; fractions are allowed on the way.

    A step takes two of the numbers that are left and puts what they make in their place; it is a
    line `a op b = c (left: x y z)`, whose last part may be missing. What is left after the last
    step is the answer, as an expression in the numbers of the task. `Answer: expression` ends the
    game at once. Wrong arithmetic, a number that is not left and a wrong list of what is left are
    illegal moves.

    The numbers are those of the task's text, or `meta["numbers"]`; any count of at least two goes.
    `meta["target"]` overrides `target`. The reward of the last step is 1 if it made the target.

    Source: Yao et al. 2023 (Tree of Thoughts), §4.1.

    Args:
        most_steps: the game is cut after so many moves, illegal ones included.
        illegal: after an illegal move one may `stay` and try again, or it is the `end` of the
            branch, which is cut.
        tell: whether the rules and the position are told; if not, only what is wrong with an
            illegal move is, as suits policies whose own text keeps the books.
        target: what to make, where the task does not say it.

    Example:
        >>> from branchwise import Step, Task, run_sync
        >>> async def play() -> str | None:
        ...     world = Game24()
        ...     state = await world.reset(Task("4 9 10 13"))
        ...     for line in ("13 - 9 = 4 (left: 4 4 10)", "10 - 4 = 6", "4 * 6 = 24 (left: 24)"):
        ...         state = await world.step(state, Step(line))
        ...     return state.answer
        >>> run_sync(play)
        '(13 - 9) * (10 - 4)'
    """

    all_used: ClassVar[bool] = True
    kind: Literal["game24"] = "game24"
    target: int = 24

    @property
    def rule(self) -> Rule:
        """Exact arithmetic."""
        return rational

    def asked(self, task: Task) -> tuple[Sequence[Value], Value]:
        """The numbers, and the target that `meta` or the field says."""
        target = numbers_of(task, "target") if "target" in task.meta else [self.target]
        return numbers_of(task, "numbers"), target[0] if target else self.target

    def rules(self, position: Numbers) -> str:
        """How to play."""
        return (
            f"Make {position.target} from {' '.join(position.given)} with + - * /, using each "
            "number once. Take two of the numbers that are left in each step and write one line: "
            "a op b = c (left: the numbers that are left now)"
        )
