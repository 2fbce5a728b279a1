"""Controllers and picks: one algorithm, or one pick, per file. The union is the registry."""

from typing import Annotated

from pydantic import Field

from branchwise.search import until
from branchwise.search.ab_mcts import ABMCTS
from branchwise.search.astar import AStar
from branchwise.search.beam import Beam
from branchwise.search.beam_decoding import BeamDecoding
from branchwise.search.belief import BetaPrior, GaussianPrior
from branchwise.search.best import Best
from branchwise.search.best_first import BestFirst
from branchwise.search.best_of_n import BestOfN
from branchwise.search.cluster import Cluster
from branchwise.search.deepening import IterativeDeepening
from branchwise.search.discrepancy import LimitedDiscrepancy
from branchwise.search.diverse_beam import DiverseBeam
from branchwise.search.dual_agreement import DualAgreement
from branchwise.search.exact import ExactSearch
from branchwise.search.gumbel import GumbelMCTS
from branchwise.search.lookahead import Lookahead
from branchwise.search.mbr import MBR
from branchwise.search.mcts import MCTS
from branchwise.search.particle_filter import ParticleFilter
from branchwise.search.particle_gibbs import ParticleGibbs
from branchwise.search.pick import Pick
from branchwise.search.rebase import Rebase
from branchwise.search.refine import Refine
from branchwise.search.rejection import Rejection
from branchwise.search.rollout import Rollout
from branchwise.search.search import AnyPick, Search
from branchwise.search.smc import SMC
from branchwise.search.speculative_rejection import SpeculativeRejection
from branchwise.search.stochastic_beam import StochasticBeam
from branchwise.search.tot_bfs import TreeOfThoughtsBFS
from branchwise.search.tot_dfs import TreeOfThoughtsDFS
from branchwise.search.transform import Transform
from branchwise.search.tree_refine import TreeRefine
from branchwise.search.until import AnyRule, Until
from branchwise.search.vote import Vote

AnyController = Annotated[
    Rollout
    | BestOfN
    | ABMCTS
    | AStar
    | Beam
    | BeamDecoding
    | BestFirst
    | DiverseBeam
    | ExactSearch
    | GumbelMCTS
    | IterativeDeepening
    | LimitedDiscrepancy
    | Lookahead
    | MCTS
    | ParticleFilter
    | ParticleGibbs
    | Rebase
    | Refine
    | Rejection
    | SMC
    | SpeculativeRejection
    | StochasticBeam
    | Transform
    | TreeOfThoughtsBFS
    | TreeOfThoughtsDFS
    | TreeRefine
    | Until,
    Field(discriminator="kind"),
]
# Where pydantic looks for it when an `Until` is made for the first time: to build all controllers
# here would take half of the package's import.
until.__dict__["AnyController"] = AnyController

__all__ = [
    "ABMCTS",
    "MBR",
    "MCTS",
    "SMC",
    "AStar",
    "AnyController",
    "AnyPick",
    "AnyRule",
    "Beam",
    "BeamDecoding",
    "Best",
    "BestFirst",
    "BestOfN",
    "BetaPrior",
    "Cluster",
    "DiverseBeam",
    "DualAgreement",
    "ExactSearch",
    "GaussianPrior",
    "GumbelMCTS",
    "IterativeDeepening",
    "LimitedDiscrepancy",
    "Lookahead",
    "ParticleFilter",
    "ParticleGibbs",
    "Pick",
    "Rebase",
    "Refine",
    "Rejection",
    "Rollout",
    "Search",
    "SpeculativeRejection",
    "StochasticBeam",
    "Transform",
    "TreeOfThoughtsBFS",
    "TreeOfThoughtsDFS",
    "TreeRefine",
    "Until",
    "Vote",
]
