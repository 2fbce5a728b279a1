"""Several policies as one: which of them proposes a child follows from its place and its seed."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Self, TypeAlias

from pydantic import Field, SkipValidation, model_validator

from branchwise.agents.retold import retold
from branchwise.core.aio import gather
from branchwise.core.config import Config
from branchwise.core.errors import BackendError, BranchError, BranchwiseError, SpecError
from branchwise.core.node import Node
from branchwise.core.types import FREE, Bounded, Policy, Step, Usage

Choose: TypeAlias = Callable[[Node, int, int], str]
"""The name of the policy that proposes a child: from its parent, its index and its seed."""


class Router(Config):
    """Deals the children of a node to several policies, which propose side by side.

    - `turns`: the i-th child goes to the i-th policy, and round again.
    - `weights`: the policy is drawn with these weights, by the child's seed.
    - `depth`: the children of the root go to the first policy, theirs to the second, and so on; all
      that lies deeper goes to the last.
    - a function of the parent, the child's index and its seed: the name that it gives.

    Steps come back in the order of the seeds. A policy that fails loses its own children only: the
    steps of the others are kept. The tree does not depend on which policy answers first.

    Args:
        policies: by name; their order counts for `turns` and `depth`.
        rule: which policy proposes a child.
        weights: with `weights`, one for each name; all the same by default.

    Raises:
        pydantic.ValidationError: there is no policy, or `weights` names one that is not there or
            leaves one out.

    Example:
        >>> from branchwise import Chat, Node, Scripted, State, Task, run_sync
        >>> names = ("small", "large")
        >>> models = {n: Chat(backend=Scripted(lambda request, seed, n=n: n)) for n in names}
        >>> root = Node(Task("?"), State())
        >>> root.promised = 3
        >>> [step.text for step in run_sync(Router(policies=models).propose, root, [7, 8, 9])]
        ['small', 'large', 'small']
    """

    kind: Literal["router"] = "router"
    policies: SkipValidation[Mapping[str, Policy]] = Field(exclude=True, repr=False)
    rule: Literal["turns", "weights", "depth"] | Choose = "turns"
    weights: dict[str, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _known(self) -> Self:
        if not self.policies:
            raise ValueError("a router needs a policy")
        if self.weights and self.rule != "weights":
            raise ValueError("`weights` count with rule = 'weights' only")
        if self.weights and self.weights.keys() != self.policies.keys():
            raise ValueError(f"`weights` needs one number for each of {', '.join(self.policies)}")
        if self.weights and not (min(self.weights.values()) >= 0 < sum(self.weights.values())):
            raise ValueError("`weights` are at least 0, and one of them is more")
        return self

    async def propose(self, node: Node, seeds: Sequence[int]) -> Sequence[Step]:
        """At most one step for each seed, from the policy that is its turn.

        Raises:
            BackendError: a policy failed; `arrived` holds the steps of the others.
            SpecError: the function names a policy that is not there.
        """
        first = max(0, node.promised - len(seeds))
        dealt: dict[str, list[int]] = {}
        for place, seed in enumerate(seeds):
            dealt.setdefault(self._chosen(node, first + place, seed), []).append(place)

        async def ask(name: str) -> tuple[Sequence[Step | None], BackendError | None]:
            own = [seeds[place] for place in dealt[name]]
            try:
                return await _proposed(name, self.policies[name], node, own), None
            except BackendError as error:
                return error.arrived or [None] * len(own), error

        said = dict(zip(dealt, await gather(ask, list(dealt)), strict=True))
        steps: dict[int, Step | None] = {}
        for name, (arrived, _) in said.items():
            steps.update(zip(dealt[name], arrived, strict=False))  # a policy may give fewer
        ordered = [steps[place] for place in sorted(steps)]
        failures = [error for _, error in said.values() if error is not None]
        if failures:
            worst = next((failure for failure in failures if failure.fatal), failures[0])
            spent = [failure.spent for failure in failures if failure.spent is not None]
            raise retold(worst, ordered, sum(spent, FREE) if spent else None) from worst
        return [step for step in ordered if step is not None]

    def bound(self, n: int) -> Usage:
        """The most that `n` samples at one node may cost: what all policies may, taken together.

        With `turns` each of them gets its share of `n`, else any of them may get all. One that
        cannot say what it costs at most counts as nothing.
        """
        share = -(-n // len(self.policies)) if self.rule == "turns" else n
        bounded = [policy for policy in self.policies.values() if isinstance(policy, Bounded)]
        return sum((policy.bound(share) for policy in bounded), FREE)

    def _chosen(self, node: Node, index: int, seed: int) -> str:
        names = list(self.policies)
        match self.rule:
            case "turns":
                return names[index % len(names)]
            case "depth":
                return names[min(node.depth, len(names) - 1)]
            case "weights":
                weights = [self.weights[name] for name in names] if self.weights else None
                # Not the policy's own stream: what is drawn must not depend on who draws.
                draws = random.Random(f"route {seed}")  # noqa: S311  (no secret)
                return draws.choices(names, weights)[0]
            case choose:
                name = choose(node, index, seed)
                if name not in self.policies:
                    raise SpecError(
                        f"the router's rule chose {name!r}; there is {', '.join(names)}"
                    )
                return name


async def _proposed(name: str, policy: Policy, node: Node, seeds: list[int]) -> Sequence[Step]:
    """What one policy proposes; whatever goes wrong there must not cost the others' steps."""
    try:
        steps = await policy.propose(node, seeds)
    except BackendError:
        raise
    except BranchError as error:
        raise BackendError(error.message, hint=error.hint, spent=error.spent) from error
    except BranchwiseError:
        raise
    except Exception as error:
        raise BackendError(f"policy {name!r} raised {type(error).__name__}: {error}") from error
    if len(steps) > len(seeds):
        raise BackendError(f"policy {name!r} gave {len(steps)} steps for {len(seeds)} seeds")
    return steps
