"""A policy that knows the rules and nothing else, and values from a solver: search without a model.

What a search does with a good or a bad judge can so be measured exactly.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from branchwise.core.errors import SpecError
from branchwise.core.node import Node
from branchwise.core.types import Step
from branchwise.environments.game import Game

NO_MOVE = "?"
"""What no game takes for a move."""


@dataclass(frozen=True)
class Moves:
    """Proposes the legal moves of a game.

    Args:
        game: whose moves.
        order: `listed` and `shuffled` give each move of a state once, in the game's order or in
            one drawn for each state; nothing is proposed when there is none left. `drawn` draws
            each proposal by its seed, as a language model does, so that moves come again.
        illegal: the share of proposals that are no moves instead.
        seed: of the order and of which proposals are illegal.

    Raises:
        SpecError: `illegal` is no share.

    Example:
        >>> from branchwise import Node, State, Task, run_sync
        >>> from branchwise.environments.grid import Grid
        >>> game = Grid()
        >>> root = Node(Task("?"), run_sync(game.reset, Task("?")))
        >>> root.promised = 4  # as `expand` does
        >>> [step.text for step in run_sync(Moves(game, "listed").propose, root, [1, 2, 3, 4])]
        ['up', 'right']
    """

    game: Game[Any]  # any game will do
    order: Literal["listed", "shuffled", "drawn"] = "shuffled"
    illegal: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.illegal <= 1:
            raise SpecError(f"illegal = {self.illegal} is no share")

    async def propose(self, node: Node, seeds: Sequence[int]) -> Sequence[Step]:
        """The next moves, or drawn ones."""
        state = node.lineage[0].state if node.done else node.state
        moves = self.game.moves(state)
        if not moves:
            return []
        each = math.log1p(-self.illegal) - math.log(len(moves)) if self.illegal < 1 else None
        if self.order == "drawn":
            drawn = [random.Random(f"{self.seed}/{seed}") for seed in seeds]  # noqa: S311  (no secret)
            return [
                Step(NO_MOVE)
                if draws.random() < self.illegal
                else Step(draws.choice(moves), (), each)
                for draws in drawn
            ]
        draws = random.Random(f"{self.seed}/{state.snapshot!r}")  # noqa: S311  (no secret)
        if self.order == "shuffled":
            draws.shuffle(moves)
        first = node.promised - len(seeds)
        steps = [Step(move, (), each) for move in moves]
        if self.illegal:
            steps = [Step(NO_MOVE) if draws.random() < self.illegal else step for step in steps]
        return steps[first : node.promised]


def exact(game: Game[Any]) -> Callable[[Node], float]:
    """What the best play from a node earns, for `Function`: a judge that is never wrong.

    Example:
        >>> from branchwise import Node, Task, run_sync
        >>> from branchwise.environments.game24 import Game24
        >>> game = Game24()
        >>> starts = [run_sync(game.reset, Task(x)) for x in ("4 9 10 13", "1 1 1 1")]
        >>> [exact(game)(Node(Task("?"), start)) for start in starts]
        [1.0, 0.0]
    """
    return lambda node: game.best(node.state)


def noisy(game: Game[Any], skill: float = 1.0, *, seed: int = 0) -> Callable[[Node], float]:
    """The same from a judge who sees it through noise, for games that are won or lost.

    He draws evidence x from a normal distribution with variance 1 and the mean skill / 2 where
    the node can still be won, -skill / 2 where not, and says the probability that follows from it
    if both are as likely: 1 / (1 + exp(-skill · x)). Of two nodes, one that can be won and one that
    cannot, he prefers the right one with probability Φ(skill / √2): 0.76 with skill 1, 0.92 with 2,
    0.5 with 0. The same state always gets the same word. A game that has ended is not judged
    wrongly: who has won can be seen.

    Source: the signal detection theory of Green and Swets 1966; `skill` is their d′.

    Args:
        game: whose solver knows the truth.
        skill: how well he sees.
        seed: of the noise.
    """

    def value(node: Node) -> float:
        truth = game.best(node.state)
        if node.done:
            return truth
        noise = random.Random(f"{seed}/{node.state.snapshot!r}").gauss(0, 1)  # noqa: S311  (no secret)
        return 1 / (1 + math.exp(-skill * (skill * (truth - 0.5) + noise)))

    return value
