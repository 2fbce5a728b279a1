"""A small world of squares with rewards: a Markov decision process whose values are known."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from branchwise.core.types import State, Step, Task
from branchwise.environments.game import Game, Illegal, Position

DIRECTIONS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}


class Place(Position):
    """Where one stands.

    Args:
        row: counted from the top, from 0.
        column: counted from the left, from 0.
    """

    row: int
    column: int


class Grid(Game[Place]):
    """Walk over a map; some squares pay or cost something and end the walk, walls stop it.

    In the map `#` is a wall, `S` the start, a letter of `ends` a square that ends the walk, and
    everything else is free. Moves are `up`, `down`, `left` and `right`; walking into a wall or off
    the map is illegal. The reward of a move is `step`, and on a square that ends the walk its own;
    a search that wants the sum along a path asks for it (`returns = "sum"` of MCTS). The answer is
    the letter of the square where the walk ends.

    Source: the grid worlds of Sutton and Barto 2018, ch. 3 and 4; the default is the one of Russell
    and Norvig 2020, §17.1, with moves that do what they say.

    Args:
        most_steps: the game is cut after so many moves, illegal ones included.
        illegal: after an illegal move one may `stay` and try again, or it is the `end` of the
            branch, which is cut.
        tell: whether the rules and the position are told; if not, only what is wrong with an
            illegal move is, as suits policies whose own text keeps the books.
        map: the rows.
        ends: what ends the walk, with what it pays.
        cost: the reward of a move to a free square.

    Raises:
        pydantic.ValidationError: the map has not exactly one start, or its rows differ in length.

    Example:
        >>> from branchwise import Task, run_sync
        >>> world = Grid()
        >>> start = run_sync(world.reset, Task("Find the goal."))
        >>> world.solve(start), round(world.best(start), 2)
        (['up', 'up', 'right', 'right', 'right'], 0.84)
    """

    kind: Literal["grid"] = "grid"
    map: tuple[str, ...] = ("...G", ".#.P", "S...")
    ends: Mapping[str, float] = Field(default_factory=lambda: {"G": 1.0, "P": -1.0})
    cost: float = -0.04

    @field_validator("map")
    @classmethod
    def _is_map(cls, rows: tuple[str, ...]) -> tuple[str, ...]:
        if len({len(row) for row in rows}) != 1 or "".join(rows).count("S") != 1:
            raise ValueError("a map has rows of one length, and one start S")
        return rows

    @model_validator(mode="after")
    def _ends_are_squares(self) -> Self:
        if wrong := [mark for mark in self.ends if len(mark) != 1 or mark in "#S"]:
            raise ValueError(f"{wrong[0]!r} cannot mark a square that ends the walk")
        return self

    def begin(self, task: Task) -> Place:  # noqa: ARG002  (the map is the task)
        """The start."""
        row = next(i for i, squares in enumerate(self.map) if "S" in squares)
        return Place(row=row, column=self.map[row].index("S"))

    def load(self, snapshot: object) -> Place:
        """The position that a snapshot stands for."""
        return Place.model_validate(snapshot)

    def options(self, position: Place) -> list[str]:
        """The directions without a wall."""
        return [name for name in DIRECTIONS if self._free(*_beside(position, name))]

    def play(self, position: Place, line: str) -> Place | None:
        """The square in a direction."""
        words = [word.strip(".,:;!*`'\"").lower() for word in line.split()]
        direction = next((word for word in words if word in DIRECTIONS), None)
        if direction is None:
            return None
        row, column = _beside(position, direction)
        if not self._free(row, column):
            raise Illegal(f"there is a wall {direction} of here.")
        return position.model_copy(update={"row": row, "column": column})

    def over(self, position: Place) -> bool:
        """Whether the square ends the walk."""
        return self.map[position.row][position.column] in self.ends

    def earned(self, before: Place, after: Place) -> float:  # noqa: ARG002  (of where it leads)
        """What the new square pays."""
        return self._paid(after.row, after.column)

    def answer(self, position: Place) -> str:
        """The letter of the square."""
        return self.map[position.row][position.column]

    def shown(self, position: Place) -> str:
        """The map, with an @ where one stands."""
        rows = [list(row.replace("S", ".")) for row in self.map]
        rows[position.row][position.column] = "@"
        return "\n".join("".join(row) for row in rows)

    def rules(self, position: Place) -> str:
        """How to play."""
        ends = ", ".join(
            f"{mark} ends the walk and pays {paid:g}" for mark, paid in self.ends.items()
        )
        return (
            f"You are at @ on this map; # is a wall; {ends}; each other move pays {self.cost:g}. "
            f"Say up, down, left or right.\n{self.shown(position)}"
        )

    def worth(self, position: Place) -> float:
        """The greatest sum of rewards that the moves which are left can still earn."""
        return self._value(position.row, position.column, self.steps_left(position))

    def solve(self, state: State) -> list[str]:
        """A walk with the greatest sum of rewards; it never gives up."""
        plan: list[str] = []
        while moves := self.moves(state):
            ways = [(move, self.after(state, Step(move))) for move in moves]
            move, state = max(ways, key=lambda way: way[1].reward + self.best(way[1]))
            plan.append(move)
        return plan

    def _free(self, row: int, column: int) -> bool:
        inside = 0 <= row < len(self.map) and 0 <= column < len(self.map[0])
        return inside and self.map[row][column] != "#"

    def _paid(self, row: int, column: int) -> float:
        return self.ends.get(self.map[row][column], self.cost)

    def _value(self, row: int, column: int, moves: int) -> float:
        """By backward induction: the values with k moves left, from those with k - 1."""
        return _values(self.map, tuple(self.ends.items()), self.cost, moves)[row][column]


def _beside(position: Place, direction: str) -> tuple[int, int]:
    down, right = DIRECTIONS[direction]
    return position.row + down, position.column + right


@lru_cache(maxsize=4096)
def _values(
    squares: tuple[str, ...], ends: tuple[tuple[str, float], ...], cost: float, moves: int
) -> tuple[tuple[float, ...], ...]:
    """The value of every square with so many moves left: value iteration, k times."""
    pays = dict(ends)
    values = tuple((0.0,) * len(row) for row in squares)
    for _ in range(moves):
        values = tuple(
            tuple(
                0.0
                if mark in pays or mark == "#"
                else max(
                    (
                        pays.get(squares[r + down][c + right], cost) + values[r + down][c + right]
                        for down, right in DIRECTIONS.values()
                        if 0 <= r + down < len(squares)
                        and 0 <= c + right < len(row)
                        and squares[r + down][c + right] != "#"
                    ),
                    default=0.0,
                )
                for c, mark in enumerate(row)
            )
            for r, row in enumerate(squares)
        )
    return values
