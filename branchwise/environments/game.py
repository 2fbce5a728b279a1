"""What games have in common: moves are lines of text, and an illegal one leaves the world alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, Literal, TypeVar

from pydantic import Field, ValidationError

from branchwise.core.config import Config
from branchwise.core.errors import WorldError
from branchwise.core.types import State, Step, Task


class Illegal(Exception):
    """A move that the rules do not allow; its text tells the player why."""


class Position(Config):
    """Where a game stands.

    Args:
        steps: how many moves have been tried, illegal ones included.
    """

    steps: int = Field(default=0, ge=0)


P = TypeVar("P", bound=Position)


class Game(Config, ABC, Generic[P]):
    """The rules that all games share; the abstract methods are what differs.

    Each line of a step that holds a move is played, so that a step may be one move or a whole game;
    lines without one are commentary. An illegal move is answered with what is wrong with it, and
    the lines after it are not read.

    Args:
        most_steps: the game is cut after so many moves, illegal ones included.
        illegal: after an illegal move one may `stay` and try again, or it is the `end` of the
            branch, which is cut.
        tell: whether the rules and the position are told; if not, only what is wrong with an
            illegal move is, as suits policies whose own text keeps the books.
    """

    instant: ClassVar[bool] = True
    most_steps: int = Field(default=16, ge=1)
    illegal: Literal["stay", "end"] = "stay"
    tell: bool = True

    @abstractmethod
    def begin(self, task: Task) -> P:
        """The position in which a task begins.

        Raises:
            SpecError: the task does not say one.
        """

    @abstractmethod
    def load(self, snapshot: object) -> P:
        """The position that a snapshot stands for.

        Raises:
            pydantic.ValidationError: it stands for none.
        """

    @abstractmethod
    def options(self, position: P) -> list[str]:
        """All legal moves of a position that is not over, always in the same order."""

    @abstractmethod
    def play(self, position: P, line: str) -> P | None:
        """The position after the move in a line; None where it holds none.

        Raises:
            Illegal: the rules do not allow it.
        """

    @abstractmethod
    def over(self, position: P) -> bool:
        """Whether the game has come to its end."""

    @abstractmethod
    def earned(self, before: P, after: P) -> float:
        """The reward of a move."""

    @abstractmethod
    def answer(self, position: P) -> str | None:
        """What the game came to, in a position that is over."""

    @abstractmethod
    def shown(self, position: P) -> str:
        """The position in words."""

    @abstractmethod
    def rules(self, position: P) -> str:
        """How to play, in words, with the position in which the game begins."""

    @abstractmethod
    def worth(self, position: P) -> float:
        """What the best play from here earns in the end; see `best`."""

    @abstractmethod
    def solve(self, state: State) -> list[str] | None:
        """The moves of a best play; None where the game cannot be won from here."""

    async def reset(self, task: Task) -> State:
        """The state in which a task begins.

        Raises:
            SpecError: the task does not say how the game begins.
        """
        position = self.begin(task)
        return State(
            snapshot=position.model_dump(mode="json"),
            observation=self.rules(position) if self.tell else "",
            done=self.over(position),
        )

    async def step(self, state: State, action: Step) -> State:
        """The state that the moves in the action lead to.

        Raises:
            WorldError: the state is not one of this game.
        """
        return self.after(state, action)

    def after(self, state: State, action: Step) -> State:
        """The same as `step`, for callers that do not wait."""
        position, reward, wrong = self.position(state), 0.0, "There is no move in this."
        if action.finish == "filter":
            return State(snapshot=state.snapshot, cut=True)
        for line in action.text.splitlines():
            if len(line) > _LONGEST:
                continue
            if self._ended(position):
                break
            try:
                played = self.play(position, line)
            except Illegal as error:
                wrong = str(error)
                break
            if played is not None:
                after = _counted(played, position.steps + 1)
                reward += self.earned(position, after)
                position, wrong = after, ""
        if wrong:
            position = _counted(position, position.steps + 1)
        over = self.over(position)
        cut = not over and (position.steps >= self.most_steps or bool(wrong and self._strict))
        told = [f"Illegal: {wrong}"] if wrong else []
        if self.tell:
            told.append(self.shown(position))
        return State(
            snapshot=position.model_dump(mode="json"),
            observation="\n".join(told),
            reward=reward,
            done=over,
            cut=cut,
            answer=self.answer(position) if over else None,
        )

    def moves(self, state: State) -> list[str]:
        """All legal moves, always in the same order; none where the game has ended."""
        position = self.position(state)
        return [] if state.cut or self._ended(position) else self.options(position)

    def best(self, state: State) -> float:
        """What the best play from a state earns in the end, exactly: an oracle.

        In games that are won or lost, 1 where a win can still be reached within `most_steps`, or
        has been, and else 0: a dead end.
        """
        position = self.position(state)
        return 0.0 if state.cut and not self.over(position) else self.worth(position)

    def position(self, state: State) -> P:
        """The position of a state.

        Raises:
            WorldError: the state is not one of this game.
        """
        try:
            return self.load(state.snapshot)
        except ValidationError as error:
            raise WorldError(f"no position of this game: {state.snapshot!r:.80}") from error

    def steps_left(self, position: P) -> int:
        """How many more moves may be tried."""
        return max(0, self.most_steps - position.steps)

    def _ended(self, position: P) -> bool:
        return self.over(position) or position.steps >= self.most_steps

    @property
    def _strict(self) -> bool:
        return self.illegal == "end"


_LONGEST = 500  # characters; a longer line is prose


def _counted(position: P, steps: int) -> P:
    return position.model_copy(update={"steps": steps})
