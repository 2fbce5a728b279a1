"""The front door: solve one task with one controller."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import anyio

from branchwise.core.aio import gather
from branchwise.core.around import Budget, Watch, alive, distinct, fused, merged, metered, watched
from branchwise.core.controller import Controller
from branchwise.core.errors import BackendError, Exhausted, SearchFailed, SpecError, suggestion
from branchwise.core.grow import Grow
from branchwise.core.node import Node
from branchwise.core.types import (
    FREE,
    Environment,
    Expand,
    Policy,
    Request,
    Step,
    Task,
    Usage,
    Verifier,
    joined,
)

Unique = Literal["siblings", "states"]
Stopped = Literal["finished", "exhausted", "deadline", "failing"]
Meter = Callable[[Expand], Expand]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a search found, and the tree it found it in.

    Args:
        node: the node that answers.
        root: the whole tree.
        stopped: why the search ended: the controller was done (`finished`), the budget was spent
            (`exhausted`), its time was over (`deadline`), or nothing succeeded any more
            (`failing`).
        usage: what the tree has cost.
        seconds: wall-clock seconds.
        error: the outage, where `stopped` is `failing`.
    """

    node: Node
    root: Node
    stopped: Stopped
    usage: Usage
    seconds: float
    error: SearchFailed | None = None

    @property
    def value(self) -> str | None:
        """The final answer that the environment read; None where the search found none."""
        return self.node.state.answer

    @property
    def text(self) -> str:
        """Everything that was said on the way to the answer."""
        return self.node.text


async def solve(
    task: Task | str,
    *,
    policy: Policy | Mapping[str, Policy],
    controller: Controller,
    environment: Environment,
    verifier: Verifier | Mapping[str, Verifier] | None = None,
    rank: Callable[[Node], float] | None = None,
    budget: Budget | None = None,
    seed: int = 0,
    horizon: int = 100,
    oracle: bool = False,
    unique: Unique | None = None,
    watch: Watch | None = None,
) -> Answer:
    """Search for the answer to one task.

    Args:
        task: what is asked.
        policy: proposes steps; several by name, of which `policy` is the one used by default.
        controller: the algorithm.
        environment: the world the steps act in.
        verifier: judges nodes; several by name, of which the first is in charge of the scores.
            Without one, the environment's rewards are the scores.
        rank: how a node's verdicts become its score, where the verifier's own word is not it.
        budget: the most to spend.
        seed: the same seed grows the same tree, as far as the backend keeps its word.
        horizon: the most steps below the root.
        oracle: show `task.target` to policies and verifiers. Whatever comes of it is no longer a
            result, only an upper bound.
        unique: hide copies from the controller: of `siblings` that say the same, or of `states`
            that the tree has reached before.
        watch: called with new nodes as they come.

    Returns:
        The answer from what has grown, also when the search was cut short.

    Raises:
        SearchFailed: nothing succeeded from the start.
        SpecError: the parts do not fit together.

    Example:
        >>> from branchwise import BestOfN, Chat, Scripted, Vote, Writing, run_sync
        >>> async def main() -> str | None:
        ...     policy = Chat(backend=Scripted(lambda request, seed: "4"))
        ...     search = BestOfN(n=3, pick=Vote())
        ...     world = Writing()
        ...     found = await solve("2 + 2?", policy=policy, controller=search, environment=world)
        ...     return found.value
        >>> run_sync(main)
        '4'
    """
    policies = policies_of(policy)
    budget = budget or Budget()
    answer = await search(
        Task(task) if isinstance(task, str) else task,
        controller,
        Grow(policies, environment, verifiers_of(verifier), rank, seed, horizon),
        meter=_meter(budget, policies),
        seconds=budget.seconds,
        watch=watch,
        oracle=oracle,
        unique=unique,
    )
    if not any(node is not answer.root for node in answer.root.leaves()):
        _raise(answer.root, answer.error)
    return answer


async def search(
    task: Task,
    controller: Controller,
    grow: Grow,
    *,
    meter: Meter | None,
    seconds: float | None,
    watch: Watch | None,
    oracle: bool,
    unique: Unique | None,
) -> Answer:
    """One search with its verb made: what `solve` does, but nothing grown is an answer too."""
    started = time.monotonic()
    shown = task if oracle else task.hidden()
    root = Node(shown, await grow.environment.reset(shown))
    expand = _stack(grow, meter, watch, unique)
    stopped, error = await _grow(controller, root, expand, seconds)
    node = controller.answer(root)
    return Answer(node, root, stopped, root.usage, time.monotonic() - started, error)


async def _grow(
    controller: Controller, root: Node, expand: Expand, seconds: float | None
) -> tuple[Stopped, SearchFailed | None]:
    with anyio.move_on_after(seconds) as scope:
        try:
            await controller.grow(root, expand)
        except Exhausted:
            return "exhausted", None
        except SearchFailed as error:
            return "failing", error
    return ("deadline" if scope.cancelled_caught else "finished"), None


def _raise(root: Node, error: SearchFailed | None) -> None:
    """Say why nothing has grown, where it was not the controller's or the policy's will."""
    if error is not None:
        raise error
    for child in root.children:  # all of them failed
        raise SearchFailed(f"nothing has grown: {child.failure}")


def _stack(
    expand: Expand, meter: Meter | None, watch: Watch | None, unique: Unique | None
) -> Expand:
    if unique not in (None, *get_args(Unique)):
        raise SpecError(f"unique = {unique!r}{suggestion(str(unique), get_args(Unique))}")
    expand = fused(expand)
    if watch is not None:
        expand = watched(expand, watch)
    if meter is not None:
        expand = meter(expand)
    expand = alive(expand)
    if unique is None:
        return expand
    return distinct(expand) if unique == "siblings" else merged(expand)


def _meter(budget: Budget, policies: Mapping[str, Policy]) -> Meter | None:
    if budget.model_copy(update={"seconds": None}) == Budget():
        return None
    return lambda expand: metered(expand, budget, policies)


def policies_of(policy: Policy | Mapping[str, Policy]) -> Mapping[str, Policy]:
    """Policies by name; one alone is called `policy`."""
    return policy if isinstance(policy, Mapping) else {"policy": policy}


def verifiers_of(verifier: Verifier | Mapping[str, Verifier] | None) -> Mapping[str, Verifier]:
    """Verifiers by name; one alone is called `verifier`."""
    if verifier is None:
        return {}
    return verifier if isinstance(verifier, Mapping) else {"verifier": verifier}


@dataclass(frozen=True)
class Searched:
    """A controller with its parts, as a policy and as a backend: the algebra is closed.

    As a policy it proposes, for each seed, the text that a search of its own from the node's
    state arrives at. As a backend it answers a request the same way, so that it can be served,
    or be the model of another policy.

    Args:
        controller: the algorithm of the inner search.
        policy: what proposes its steps.
        environment: its world; as a policy, the same one as outside, for it starts from its states.
        verifier: what judges its nodes.
        rank: how verdicts become scores.
        budget: the most that one inner search may spend.
        horizon: the most steps of an inner search.
        name: what a journal calls it.

    Example:
        >>> from branchwise import BestOfN, Chat, Rollout, Scripted, Writing, run_sync
        >>> policy = Chat(backend=Scripted(lambda request, seed: "4"))
        >>> best = Searched(BestOfN(n=4), policy, Writing())
        >>> async def main() -> str | None:
        ...     parts = {"policy": Chat(backend=best), "environment": Writing()}
        ...     answer = await solve("2 + 2?", controller=Rollout(), **parts)
        ...     return answer.value
        >>> run_sync(main)
        '4'
    """

    controller: Controller
    policy: Policy
    environment: Environment
    verifier: Verifier | Mapping[str, Verifier] | None = None
    rank: Callable[[Node], float] | None = None
    budget: Budget | None = None
    horizon: int = 100
    name: str = "searched"

    async def propose(self, node: Node, seeds: Sequence[int]) -> Sequence[Step]:
        """One step for each seed: where an inner search from the node's state arrives.

        Raises:
            BackendError: an inner search failed from the start.
        """
        return await gather(lambda seed: self._search(node, seed), seeds)

    async def complete(self, request: Request) -> Sequence[Step]:
        """One answer for each seed; the inner task is the request's question.

        Raises:
            BackendError: an inner search failed from the start.
        """
        task = Task(request.asked)
        state = await self.environment.reset(task)
        root = Node(task, state)
        return await gather(lambda seed: self._search(root, seed), request.seeds)

    async def _search(self, start: Node, seed: int) -> Step:
        root = start.asked(start.task)  # its ancestors stay in sight, its children do not
        policies, verifiers = policies_of(self.policy), verifiers_of(self.verifier)
        horizon = len(start.path) + self.horizon
        grow = Grow(policies, self.environment, verifiers, self.rank, seed, horizon)
        budget = self.budget or Budget()
        expand = _stack(grow, _meter(budget, policies), None, None)
        _, error = await _grow(self.controller, root, expand, budget.seconds)
        if not any(node is not root for node in root.leaves()):
            try:
                _raise(root, error)
            except SearchFailed as failed:
                raise BackendError(f"the inner search failed: {failed}") from failed
        node = self.controller.answer(root)
        anew = root.done or len(node.start.path) > len(root.path)  # the answer is a new draft
        steps = node.steps if anew else node.steps[len(start.steps) :]
        return joined(
            steps,
            finish="end" if node.finished else "length",
            usage=sum((grown.cost for grown in root.walk() if grown is not root), FREE),
        )
