"""Monte Carlo tree search."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from math import log, sqrt
from typing import ClassVar, Literal

from pydantic import Field

from branchwise.core.node import Node
from branchwise.core.types import Expand
from branchwise.search.best import suffice
from branchwise.search.card import Card
from branchwise.search.pipeline import Pipeline
from branchwise.search.rollout import follow
from branchwise.search.search import Search
from branchwise.search.visit import Grown, Path, Visits

_DEFAULTS = {"uct": (sqrt(2), 1.0), "puct": (1.25, 19652.0), "p-ucb": (4.0, 10.0)}


class MCTS(Search):
    """Select by value and visits, expand, evaluate, back up along the path.

        repeat simulations times:
            v ← root;  while v has children:  v ← argmax_c Q(c) + U(c)
            grow k children of v and evaluate each
            for each a on the path from the root to v:  N(a) += k,  W(a) += Σ values

        Q(c) = W(c) / N(c)
        uct:    U(c) = C · sqrt(ln N(v) / N(c))                     (Kocsis and Szepesvári 2006)
        puct:   U(c) = P(c) · C(v) · sqrt(N(v)) / (1 + N(c))        (Silver et al. 2016)
        p-ucb:  U(c) = P(c) · C(v) · sqrt(ln N(v)) / (1 + N(c))     (PG-TD, Zhang et al. 2023)
        C(v) = C + ln((N(v) + base + 1) / base)                     (MuZero's c1 and c2)

    P is the softmax of the steps' mean log-probabilities, uniform where one is not known. Subtrees
    that are grown out are not selected again. With several `lanes`, calls overlap: what is being
    grown is not selected, and counts as visits without a value (WU-UCT, Liu et al. 2020) or as
    losses (virtual loss, Segal 2010).

    Source: Kocsis and Szepesvári 2006; Schrittwieser et al. 2020 (MuZero), appendix B.

    Args:
        simulations: how many times the search goes down the tree at most.
        fanout: k, the children that a node is grown by.
        select: the formula of U.
        exploration: C; None is √2, 1.25 or 4.
        decay: base; None is 19652 or 10.
        scale: `seen` scales Q to [0, 1] by the least and the greatest score seen, `none` leaves
            it as it is, as textbooks do.
        visit: `all` evaluates and counts each new child as a visit of its own, `one` counts one
            visit of the node that is grown, as textbooks and AlphaZero do; its children begin
            with N = 0. A child that is done is then visited once.
        unvisited: Q of a child with N = 0: its `score` (RAP's fast reward), `zero` on the scale
            (AlphaZero), or such children come `first`, by their scores (UCT).
        backup: whether Q is the `mean` of the returns or the greatest, `max`.
        returns: what a path brings each node on it: the score of its `leaf`, or the `sum` or the
            `mean` of the scores from the node on (RAP).
        rollout: how many steps an evaluation goes on at most, one child at a time; what it finds
            there is the value.
        rollout_by: the name of the policy that proposes them.
        widen_k: k of progressive widening: a node gets one more child when k · N^α exceeds their
            number (Coulom 2007; Couëtoux et al. 2011); None never.
        widen_alpha: α.
        lanes: how many simulations are in flight at once.
        in_flight: `wu` or `virtual-loss`; a loss is worth the least score seen.
        in_order: whether simulations are backed up in the order in which they were selected. The
            tree then does not depend on latencies, but a lane may wait for a slower one.
        enough: a score at which a finished node ends the search; None goes on.

    Example:
        >>> MCTS(simulations=64, select="puct").fanout
        4
    """

    kind: Literal["mcts"] = "mcts"
    card: ClassVar[Card] = Card(
        structure="step",
        signals="a score for each step; log-probabilities as priors of puct and p-ucb",
        paper="Kocsis and Szepesvári 2006; Silver et al. 2016; Schrittwieser et al. 2020, app. B",
        oracle="textbook loops, node by node; mctx's muzero_policy, visit by visit",
        test="search/test_mcts.py::test_it_visits_as_mctx_does",
    )
    simulations: int = Field(default=32, ge=1)
    fanout: int = Field(default=4, ge=1)
    select: Literal["uct", "puct", "p-ucb"] = "uct"
    exploration: float | None = Field(default=None, ge=0)
    decay: float | None = Field(default=None, gt=0)
    scale: Literal["seen", "none"] = "seen"
    visit: Literal["all", "one"] = "all"
    unvisited: Literal["score", "zero", "first"] = "score"
    backup: Literal["mean", "max"] = "mean"
    returns: Literal["leaf", "sum", "mean"] = "leaf"
    rollout: int = Field(default=0, ge=0)
    rollout_by: str = "policy"
    widen_k: float | None = Field(default=None, gt=0)
    widen_alpha: float = Field(default=0.5, ge=0, le=1)
    lanes: int = Field(default=1, ge=1)
    in_flight: Literal["wu", "virtual-loss"] = "wu"
    in_order: bool = True
    enough: float | None = None

    async def grow(self, root: Node, expand: Expand) -> None:
        """Run the simulations, several at a time."""
        visits = Visits(self, root)

        def take(path: Path, grown: Grown) -> bool:
            visits.backup(path, grown)
            return not suffice(itertools.chain(*grown), self.enough)

        await Pipeline(
            visits.select,
            partial(self._simulate, expand),
            take,
            total=self.simulations,
            width=self.lanes,
            in_order=self.in_order,
        ).run()

    def weight(self) -> Callable[[int], float]:
        """What U has of the parent alone, as a function of its visits."""
        usual = _DEFAULTS[self.select]
        c = usual[0] if self.exploration is None else self.exploration
        base = usual[1] if self.decay is None else self.decay
        match self.select:
            case "uct":
                return lambda n: c * sqrt(log(n))
            case "puct":
                return lambda n: (c + log((n + base + 1) / base)) * sqrt(n)
            case "p-ucb":
                return lambda n: (c + log((n + base + 1) / base)) * sqrt(log(n))

    async def _simulate(self, expand: Expand, path: Path) -> Grown:
        """Grow the selected node; evaluate its new children, or itself where `visit` is `one`."""
        leaf = path.visits[-1]
        node, first = leaf.node, leaf.grown is None
        over = node.done and len(path.visits) > 1  # under a root that is done it drafts anew
        children = [] if over else await expand([node], path.width)
        judged = children if self.visit == "all" else [node] if first else []
        return Grown(children, await self._roll(judged, expand) if self.rollout else judged)

    async def _roll(self, nodes: list[Node], expand: Expand) -> list[Node]:
        """Where the rollout of each node ends; at itself where it failed."""
        if not nodes:
            return []
        depth = nodes[0].depth
        ends = await follow(nodes, expand, self.rollout, by=self.rollout_by)
        reached = {end.lineage[depth]: end for end in ends}
        return [reached.get(node, node) for node in nodes]
