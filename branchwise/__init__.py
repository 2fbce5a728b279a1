"""Inference-time search over language models: one tree, one verb, every strategy."""

from branchwise.agents.chat import Chat, Shot
from branchwise.agents.chooser import Chooser
from branchwise.agents.code_act import CodeAct
from branchwise.agents.history import Summarised, Truncated
from branchwise.agents.next_token import NextToken
from branchwise.agents.react import ReAct
from branchwise.agents.reviser import Reviser
from branchwise.agents.router import Router
from branchwise.agents.tool_user import ToolUser
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
    SandboxError,
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
from branchwise.environments.algebra import Algebra
from branchwise.environments.blocksworld import Blocksworld
from branchwise.environments.calculator import calculator
from branchwise.environments.command_line import CommandLine
from branchwise.environments.countdown import Countdown
from branchwise.environments.game24 import Game24
from branchwise.environments.grid import Grid
from branchwise.environments.math import Math
from branchwise.environments.moves import Moves
from branchwise.environments.program_aided import ProgramAided
from branchwise.environments.python_repl import PythonREPL
from branchwise.environments.python_tests import PythonTests
from branchwise.environments.sessions import Session, Sessions
from branchwise.environments.tools import Tools
from branchwise.environments.workspace import Workspace
from branchwise.environments.writing import Writing
from branchwise.sandbox.bubblewrap import Bubblewrap
from branchwise.sandbox.container import Container
from branchwise.sandbox.monty import Monty
from branchwise.sandbox.ran import Limits, Ran, Sandbox
from branchwise.sandbox.unconfined import Unconfined
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
from branchwise.verifiers.behaviour import Behaviour
from branchwise.verifiers.blend import Blend
from branchwise.verifiers.calibrated import Calibrated
from branchwise.verifiers.calibration import Isotonic, Platt
from branchwise.verifiers.cascade import Cascade, Stage
from branchwise.verifiers.channel import NoisyChannel
from branchwise.verifiers.command import Command
from branchwise.verifiers.critic import Critic
from branchwise.verifiers.ensemble import Ensemble
from branchwise.verifiers.exact import Exact
from branchwise.verifiers.function import Function
from branchwise.verifiers.generative import GenRM, GenRMCoT
from branchwise.verifiers.geometric import Geometric
from branchwise.verifiers.implicit import ImplicitReward
from branchwise.verifiers.judge import Criterion, Judge
from branchwise.verifiers.learned import Learned
from branchwise.verifiers.likelihood import Likelihood
from branchwise.verifiers.math_equal import MathEqual
from branchwise.verifiers.outcome import BradleyTerry, OutcomeReward, Value, Words
from branchwise.verifiers.pairwise import Comparison, Pairwise, position_bias
from branchwise.verifiers.pattern import Pattern
from branchwise.verifiers.process import Format, ProcessReward, formats
from branchwise.verifiers.product import Product
from branchwise.verifiers.reward import Reward
from branchwise.verifiers.schema import Schema
from branchwise.verifiers.self_evaluation import SelfEvaluation
from branchwise.verifiers.unit_tests import UnitTests

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
    "Algebra",
    "Answer",
    "Arithmetic",
    "Backend",
    "BackendError",
    "Beam",
    "BeamDecoding",
    "Behaviour",
    "Best",
    "BestFirst",
    "BestOfN",
    "BetaPrior",
    "Blend",
    "Blocksworld",
    "BradleyTerry",
    "BranchError",
    "BranchwiseError",
    "Bubblewrap",
    "Budget",
    "Calibrated",
    "Candidate",
    "Cascade",
    "Chat",
    "Chooser",
    "Cluster",
    "CodeAct",
    "Command",
    "CommandLine",
    "Comparison",
    "Config",
    "Container",
    "Controller",
    "Countdown",
    "Criterion",
    "Critic",
    "Curtailment",
    "DiverseBeam",
    "DualAgreement",
    "EarlyStopping",
    "Enough",
    "Ensemble",
    "Environment",
    "Exact",
    "ExactSearch",
    "Exhausted",
    "Expand",
    "Format",
    "Function",
    "Game24",
    "GaussianPrior",
    "GenRM",
    "GenRMCoT",
    "Geometric",
    "Grid",
    "GumbelMCTS",
    "ImplicitReward",
    "Isotonic",
    "IterativeDeepening",
    "Journal",
    "Judge",
    "Learned",
    "Likelihood",
    "LimitedDiscrepancy",
    "Limits",
    "Lookahead",
    "Math",
    "MathEqual",
    "Message",
    "Monty",
    "Moves",
    "NextToken",
    "Node",
    "NoisyChannel",
    "OpenAI",
    "OutcomeReward",
    "Pairwise",
    "ParticleFilter",
    "ParticleGibbs",
    "Patience",
    "Pattern",
    "Pick",
    "Platt",
    "Policy",
    "Preference",
    "ProcessReward",
    "Product",
    "ProgramAided",
    "PythonREPL",
    "PythonTests",
    "Ran",
    "ReAct",
    "Reading",
    "Rebase",
    "Refine",
    "Regret",
    "Rejection",
    "Request",
    "Reviser",
    "Reward",
    "Rollout",
    "Router",
    "Sampling",
    "Sandbox",
    "SandboxError",
    "Schema",
    "Scoring",
    "Scripted",
    "Search",
    "SearchFailed",
    "Searched",
    "SelfEvaluation",
    "Session",
    "Sessions",
    "Shot",
    "SpecError",
    "SpeculativeRejection",
    "Stage",
    "State",
    "Step",
    "StochasticBeam",
    "Summarised",
    "Task",
    "Tool",
    "ToolCall",
    "ToolUser",
    "Tools",
    "Tournament",
    "Transform",
    "TreeOfThoughtsBFS",
    "TreeOfThoughtsDFS",
    "TreeRefine",
    "Truncated",
    "Unconfined",
    "UnitTests",
    "Until",
    "Usage",
    "Value",
    "Verdict",
    "Verifier",
    "VerifierError",
    "Vote",
    "Words",
    "Workspace",
    "WorldError",
    "Writing",
    "calculator",
    "formats",
    "from_json",
    "position_bias",
    "rescore",
    "run_sync",
    "solve",
    "solve_all",
    "to_json",
    "to_networkx",
]
