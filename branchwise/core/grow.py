"""The verb: propose, step, score."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from math import inf, isfinite
from typing import NamedTuple, cast

from branchwise.core.aio import checkpoint, gather
from branchwise.core.errors import (
    BackendError,
    BranchError,
    BranchwiseError,
    SearchFailed,
    SpecError,
    VerifierError,
    WorldError,
)
from branchwise.core.judging import cost, judged
from branchwise.core.node import Node
from branchwise.core.types import FREE, Environment, Policy, State, Step, Verdict, Verifier

_TURN = 32
"""Every so many orders the event loop gets a turn, also where no policy waits."""


def seed_of(run: int, path: tuple[int, ...]) -> int:
    """The seed of the child at `path`: a digest of the run's seed and the path, below 2**48.

    Example:
        >>> seed_of(0, (0,)) != seed_of(0, (1,)) != seed_of(1, (1,))
        True
    """
    return seeds_of(run, path[:-1], path[-1:])[0]


def seeds_of(run: int, parent: tuple[int, ...], indices: Iterable[int]) -> list[int]:
    """The seeds of the children of one parent that have these indices."""
    family = "/".join([str(run), *map(str, parent)])
    return [
        int.from_bytes(blake2b(f"{family}/{i}".encode(), digest_size=6).digest(), "big")
        for i in indices
    ]


def spread(nodes: Sequence[Node], n: int | Sequence[int]) -> list[int]:
    """How many children each node gets.

    Raises:
        SpecError: there are not as many widths as nodes, or one is negative.
    """
    widths = [n] * len(nodes) if isinstance(n, int) else list(n)
    if len(widths) != len(nodes) or (widths and min(widths) < 0):
        raise SpecError(f"cannot expand {len(nodes)} nodes by the widths {widths}")
    return widths


@dataclasses.dataclass(frozen=True)
class Grow:
    """Grows children: a policy proposes steps, the environment takes them, verifiers judge them.

    The paths of the children are promised before work starts and seeds follow from paths, so the
    same tree grows whatever the latencies. What one parent's policy call brings is in the tree as
    soon as it is there, failed children included.

    Args:
        policies: by name; `expand(..., by=name)` chooses.
        environment: the world.
        verifiers: by name; the first is in charge of `Node.score` unless `rank` is given.
        rank: the score of a node from its verdicts and its lineage.
        seed: the run's seed.
        horizon: the most steps below the root; a node there that is not done is cut.
        orders: counts the calls.
    """

    policies: Mapping[str, Policy]
    environment: Environment
    verifiers: Mapping[str, Verifier]
    rank: Callable[[Node], float] | None = None
    seed: int = 0
    horizon: int = 100
    orders: Iterator[int] = dataclasses.field(default_factory=itertools.count, repr=False)

    async def __call__(
        self, nodes: Sequence[Node], n: int | Sequence[int] = 1, *, by: str = "policy"
    ) -> list[Node]:
        """Children of all nodes, in order, failed ones included.

        Raises:
            SearchFailed: a call failed in a way that no later call can mend.
        """
        if next(self.orders) % _TURN == 0:
            await checkpoint()  # or a deadline would never fire where nothing waits
        if by not in self.policies:
            raise SpecError(f"no policy is called {by!r}; there is {', '.join(self.policies)}")
        orders: list[_Order] = []
        for node, width in zip(nodes, spread(nodes, n), strict=True):
            if width:
                orders.append(_Order(node, range(node.promised, node.promised + width), by))
                node.promised += width
        families = await gather(self._family, orders)
        for _, fatal in families:
            if fatal is not None:
                raise SearchFailed(fatal.message, hint=fatal.hint) from fatal
        return [child for family, _ in families for child in family]

    async def _family(self, order: _Order) -> tuple[list[Node], BackendError | None]:
        """One parent's new children; a fatal error is handed over, so that siblings arrive."""
        parent, indices, path = order.parent, order.indices, order.parent.path
        failure: BackendError | None = None
        try:
            steps = await self._propose(order, seeds_of(self.seed, path, indices))
        except BackendError as error:
            failure = error
            steps = error.arrived or [None] * len(indices)
        said = [step for step in steps if step is not None]
        cut = len(path) + 1 >= self.horizon
        # Under a node that is done nothing can follow: what is proposed there is a new draft.
        before = parent.lineage[0].state if parent.done else parent.state
        if self.environment.instant or len(said) == 1:
            states = await self._walk(before, said, cut=cut)
        else:
            walks = await gather(lambda step: self._walk(before, [step], cut=cut), said)
            states = [state for (state,) in walks]
        children: list[Node] = []
        alive: list[Node] = []
        arrived = iter(states)
        unpaid = [] if failure is None or failure.spent is None else [failure.spent]
        for i, step in zip(indices, steps, strict=False):
            state = failure if step is None else next(arrived)
            if isinstance(state, State):
                child = Node(parent.task, state, parent, i, step)
                alive.append(child)
            else:
                child = Node(parent.task, parent.state, parent, i, step)
                child.failed(str(state), unpaid.pop() if step is None and unpaid else FREE)
            children.append(child)
        if children:
            parent.adopt(children)
            if alive and self.verifiers:
                failure = await self._judge(alive) or failure
        return children, failure if failure is not None and failure.fatal else None

    async def _propose(self, order: _Order, seeds: list[int]) -> Sequence[Step | None]:
        try:
            steps = await self.policies[order.by].propose(order.parent, seeds)
        except BackendError:
            raise
        except BranchError as error:
            raise BackendError(error.message, hint=error.hint, spent=error.spent) from error
        except BranchwiseError:
            raise
        except Exception as error:
            raise BackendError(f"policy {order.by!r} raised {_named(error)}") from error
        if len(steps) > len(seeds):
            raise BackendError(
                f"policy {order.by!r} gave {len(steps)} steps for {len(seeds)} seeds"
            )
        return steps

    async def _walk(
        self, state: State, steps: Sequence[Step], *, cut: bool
    ) -> list[State | WorldError]:
        """Where each of the steps leads from the state, one after the other."""
        states: list[State | WorldError] = []
        for step in steps:
            try:
                after = await self.environment.step(state, step)
                states.append(_arrived(after, cut=cut))
            except WorldError as error:
                states.append(error)
            except BranchwiseError:
                raise
            except Exception as error:  # noqa: BLE001  (the world is a user's; its faults are data)
                states.append(WorldError(f"the environment raised {_named(error)}"))
        return states

    async def _judge(self, nodes: list[Node]) -> BackendError | None:
        """Judge children; what ends the search, where a verifier's model is out of reach."""
        for node in nodes:
            node.score = -inf  # until it is judged, a cut search must not prefer it
        names = tuple(self.verifiers)
        columns: list[Sequence[Verdict | VerifierError]] = []
        fatal: BackendError | None = None
        try:
            for name in names:
                try:
                    columns.append(await judged(self.verifiers[name], nodes, name))
                except BackendError as error:
                    fatal = error
                    lost = VerifierError(f"verifier {name!r}: {error}")
                    paid = VerifierError(f"verifier {name!r}: {error}", spent=error.spent)
                    columns.append([paid, *[lost] * (len(nodes) - 1)])
        except BaseException:  # cut short: what some verifiers have said is paid all the same
            for node, verdicts in zip(nodes, zip(*columns, strict=True), strict=False):
                node.lost = cost(verdicts)
            raise
        for node, verdicts in zip(nodes, zip(*columns, strict=True), strict=True):
            faults = [verdict for verdict in verdicts if isinstance(verdict, VerifierError)]
            if faults:
                node.failed(str(faults[0]), cost(verdicts))  # the others' too: they go unused
            else:
                node.judged(names, cast("tuple[Verdict, ...]", verdicts))
                if self.rank is None:
                    node.score = cast("Verdict", verdicts[0]).score
                else:
                    self._rank(node, self.rank)
        return fatal

    def _rank(self, node: Node, rank: Callable[[Node], float]) -> None:
        try:
            score = float(rank(node))
        except Exception as error:  # noqa: BLE001  (a user's function)
            node.failed(f"ranking raised {_named(error)}")
        else:
            if isfinite(score):
                node.score = score
            else:
                node.failed(f"ranking gave {score}, which is no finite number")


class _Order(NamedTuple):
    """Children with these indices, which are promised, of this parent."""

    parent: Node
    indices: range
    by: str


def _arrived(state: State, *, cut: bool) -> State | WorldError:
    if not isfinite(state.reward):
        return WorldError(f"the reward {state.reward} is no finite number")
    return dataclasses.replace(state, cut=True) if cut and not state.done else state


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
