"""Inference-time search over language models: one tree, one verb, every strategy."""

from branchwise.core.around import Budget
from branchwise.core.aio import run_sync
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
    Environment,
    Expand,
    Message,
    Policy,
    Request,
    State,
    Step,
    Task,
    Tool,
    ToolCall,
    Usage,
    Verdict,
    Verifier,
)
from branchwise.search import MCTS, Beam, Best, BestFirst, BestOfN, Rebase, Rollout, Search, Vote
from branchwise.backends.journal import Journal
from branchwise.backends.scripted import Scripted
from branchwise.solve import Answer, Searched, solve
from branchwise.verifiers.exact import Exact
