"""The Game of 24 without a model: what a search makes of random legal moves and a doubtful judge.

python examples/game24.py 4 9 10 13
"""

import sys

from branchwise import BestFirst, Function, run_sync, solve
from branchwise.environments.game24 import Game24
from branchwise.environments.moves import Moves, noisy

GAME = Game24()


async def main(puzzle: str) -> None:
    """Search, and show the moves of the answer."""
    answer = await solve(
        puzzle,
        policy=Moves(GAME),
        controller=BestFirst(fanout=8, expansions=200, enough=1.0),
        environment=GAME,
        verifier=Function(noisy(GAME, skill=1.0)),
    )
    grown = [node for node in answer.root.walk() if node.children]
    dead = [node for node in grown if not GAME.best(node.state)]
    for step in answer.node.steps:
        print(step.text)
    print(f"{answer.value} = {'24' if answer.node.state.reward else 'not 24'}")
    print(f"{len(grown)} states grown, {len(dead)} of them dead ends")


if __name__ == "__main__":
    run_sync(main, " ".join(sys.argv[1:]) or "4 9 10 13")
