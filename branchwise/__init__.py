"""Inference-time search over language models: one tree, one verb, every strategy."""

from branchwise.agents.chat import Chat, Shot
from branchwise.agents.chooser import Chooser
from branchwise.agents.next_token import NextToken
from branchwise.agents.reviser import Reviser
from branchwise.agents.tournament import Tournament
from branchwise.allocate import solve_all
from branchwise.backends.hf import HF
from branchwise.backends.journal import Journal
from branchwise.backends.openai import OpenAI
from branchwise.backends.scripted import Scripted
from branchwise.core.aio import run_sync
from branchwise.core.around import Budget
from branchwise.core.config import Config, Sampling
from branchwise.core.controller import Controller
from branchwise.core.errors import (
    BackendError,
    BranchError,
    BranchwiseError,
    Exhausted,
    SearchFailed,
    SpecError,
    VerifierError,
    WorldError,
)
from branchwise.core.node import Node
from branchwise.core.tree import from_json, to_json, to_networkx
from branchwise.core.types import (
    Backend,
    Candidate,
    Environment,
    Expand,
    Message,
    Policy,
    Preference,
    Reading,
    Request,
    Scoring,
    State,
    Step,
    Task,
    Tool,
    ToolCall,
    Usage,
    Verdict,
    Verifier,
)
from branchwise.environments.math import Math
from branchwise.environments.writing import Writing
from branchwise.search import (
    ABMCTS,
    MBR,
    MCTS,
    SMC,
    AStar,
    Beam,
    BeamDecoding,
    Best,
    BestFirst,
    BestOfN,
    BetaPrior,
    Cluster,
    DiverseBeam,
    DualAgreement,
    ExactSearch,
    GaussianPrior,
    GumbelMCTS,
    IterativeDeepening,
    LimitedDiscrepancy,
    Lookahead,
    ParticleFilter,
    ParticleGibbs,
    Pick,
    Rebase,
    Refine,
    Rejection,
    Rollout,
    Search,
    SpeculativeRejection,
    StochasticBeam,
    Transform,
    TreeOfThoughtsBFS,
    TreeOfThoughtsDFS,
    TreeRefine,
    Until,
    Vote,
)
from branchwise.search.regret import Regret
from branchwise.search.stopping import (
    AdaptiveConsistency,
    Curtailment,
    EarlyStopping,
    Enough,
    Patience,
)
from branchwise.solve import Answer, Searched, solve
from branchwise.verifiers.aggregate import Aggregate, rescore
from branchwise.verifiers.agreement import Agreement
from branchwise.verifiers.arithmetic import Arithmetic
from branchwise.verifiers.blend import Blend
from branchwise.verifiers.channel import NoisyChannel
from branchwise.verifiers.exact import Exact
from branchwise.verifiers.function import Function
from branchwise.verifiers.geometric import Geometric
from branchwise.verifiers.likelihood import Likelihood
from branchwise.verifiers.math_equal import MathEqual
from branchwise.verifiers.pairwise import Comparison, Pairwise

__all__ = [
    "ABMCTS",
    "HF",
    "MBR",
    "MCTS",
    "SMC",
    "AStar",
    "AdaptiveConsistency",
    "Aggregate",
    "Agreement",
    "Answer",
    "Arithmetic",
    "Backend",
    "BackendError",
    "Beam",
    "BeamDecoding",
    "Best",
    "BestFirst",
    "BestOfN",
    "BetaPrior",
    "Blend",
    "BranchError",
    "BranchwiseError",
    "Budget",
    "Candidate",
    "Chat",
    "Chooser",
    "Cluster",
    "Comparison",
    "Config",
    "Controller",
    "Curtailment",
    "DiverseBeam",
    "DualAgreement",
    "EarlyStopping",
    "Enough",
    "Environment",
    "Exact",
    "ExactSearch",
    "Exhausted",
    "Expand",
    "Function",
    "GaussianPrior",
    "Geometric",
    "GumbelMCTS",
    "IterativeDeepening",
    "Journal",
    "Likelihood",
    "LimitedDiscrepancy",
    "Lookahead",
    "Math",
    "MathEqual",
    "Message",
    "NextToken",
    "Node",
    "NoisyChannel",
    "OpenAI",
    "Pairwise",
    "ParticleFilter",
    "ParticleGibbs",
    "Patience",
    "Pick",
    "Policy",
    "Preference",
    "Reading",
    "Rebase",
    "Refine",
    "Regret",
    "Rejection",
    "Request",
    "Reviser",
    "Rollout",
    "Sampling",
    "Scoring",
    "Scripted",
    "Search",
    "SearchFailed",
    "Searched",
    "Shot",
    "SpecError",
    "SpeculativeRejection",
    "State",
    "Step",
    "StochasticBeam",
    "Task",
    "Tool",
    "ToolCall",
    "Tournament",
    "Transform",
    "TreeOfThoughtsBFS",
    "TreeOfThoughtsDFS",
    "TreeRefine",
    "Until",
    "Usage",
    "Verdict",
    "Verifier",
    "VerifierError",
    "Vote",
    "WorldError",
    "Writing",
    "from_json",
    "rescore",
    "run_sync",
    "solve",
    "solve_all",
    "to_json",
    "to_networkx",
]
