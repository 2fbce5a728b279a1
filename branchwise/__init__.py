"""Inference-time search over language models: one tree, one verb, every strategy."""

from branchwise.agents.chat import Chat, Shot
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
from branchwise.search import MCTS, Beam, Best, BestFirst, BestOfN, Rebase, Rollout, Search, Vote
from branchwise.solve import Answer, Searched, solve
from branchwise.verifiers.aggregate import Aggregate, rescore
from branchwise.verifiers.arithmetic import Arithmetic
from branchwise.verifiers.blend import Blend
from branchwise.verifiers.exact import Exact
from branchwise.verifiers.function import Function
from branchwise.verifiers.likelihood import Likelihood
from branchwise.verifiers.math_equal import MathEqual

__all__ = [
    "HF",
    "MCTS",
    "Aggregate",
    "Answer",
    "Arithmetic",
    "Backend",
    "BackendError",
    "Beam",
    "Best",
    "BestFirst",
    "BestOfN",
    "Blend",
    "BranchError",
    "BranchwiseError",
    "Budget",
    "Candidate",
    "Chat",
    "Config",
    "Controller",
    "Environment",
    "Exact",
    "Exhausted",
    "Expand",
    "Function",
    "Journal",
    "Likelihood",
    "Math",
    "MathEqual",
    "Message",
    "Node",
    "OpenAI",
    "Policy",
    "Reading",
    "Rebase",
    "Request",
    "Rollout",
    "Sampling",
    "Scoring",
    "Scripted",
    "Search",
    "SearchFailed",
    "Searched",
    "Shot",
    "SpecError",
    "State",
    "Step",
    "Task",
    "Tool",
    "ToolCall",
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
    "to_json",
    "to_networkx",
]
