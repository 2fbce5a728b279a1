"""Controllers and picks: one algorithm, or one pick, per file. The union is the registry."""

from typing import Annotated

from pydantic import Field

from branchwise.search.beam import Beam
from branchwise.search.best import Best
from branchwise.search.best_first import BestFirst
from branchwise.search.best_of_n import BestOfN
from branchwise.search.mcts import MCTS
from branchwise.search.rebase import Rebase
from branchwise.search.rollout import Rollout
from branchwise.search.search import AnyPick, Search
from branchwise.search.vote import Vote

AnyController = Annotated[
    Rollout | BestOfN | Beam | BestFirst | MCTS | Rebase, Field(discriminator="kind")
]

__all__ = [
    "MCTS",
    "AnyController",
    "AnyPick",
    "Beam",
    "Best",
    "BestFirst",
    "BestOfN",
    "Rebase",
    "Rollout",
    "Search",
    "Vote",
]
