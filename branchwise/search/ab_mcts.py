"""AB-MCTS-A: wider or deeper, by Thompson sampling."""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Annotated, ClassVar, Literal, TypeVar

from pydantic import Field, field_validator

from branchwise.core.node import Node
from branchwise.core.types import Expand
from branchwise.search.belief import Belief, BetaPrior, GaussianPrior
from branchwise.search.card import Card
from branchwise.search.search import Search

T = TypeVar("T")


class ABMCTS(Search):
    """Draw at each node whether a new child or the old ones promise more.

        repeat trials times:
            v ← root
            while v has children and draw(CONT of v) > draw(GEN of v):
                v ← argmax draw(c) over the children c of v
            p ← argmax draw(p) over the policies;  p grows one child c of v
            its score is seen by p, by GEN of v and by c,
                and by each a from v up to below the root, and by CONT of the parent of a

    `draw` takes a mean from the posterior of the scores that an arm has seen: Thompson sampling.
    CONT stands for the children together (node aggregation), so that GEN competes with one arm
    however many there are. The tree gets wide where first attempts do well, and deep where
    revising them does better.

    Source: Inoue et al. 2025 ("Wider or Deeper?"), AB-MCTS-A, and TreeQuest 0.3.3, its authors'
    code.

    Args:
        trials: how many children are grown.
        policies: the names of the policies that grow them (multi-LLM AB-MCTS).
        pool: what the draw of a policy looks at: the scores of all its children in the `tree`,
            after GEN is drawn (TreeQuest's default); or those at and below the `node`, before:
            there each policy has its own GEN, CONT and children (TreeQuest's `stack`).
        prior: of every arm.
        span: the range of scores, which is mapped to [0, 1], as the priors expect. A beta prior
            clips what lies outside.
        refine: descend into finished nodes too: what grows below one is a new draft, which a
            policy that reads the old one makes a revision. Without it only steps are searched.
        batch: how many trials are drawn before the first of them is carried out.
        seed: of the draws.

    Example:
        >>> ABMCTS(trials=64, policies=("small", "large"), prior=BetaPrior()).refine
        True
    """

    kind: Literal["ab-mcts"] = "ab-mcts"
    card: ClassVar[Card] = Card(
        structure="refinement",
        signals="a score for each answer or step",
        paper="Inoue et al. 2025, AB-MCTS-A",
        oracle="posteriors and choices by numerical integration",
        test="search/test_ab_mcts.py::test_the_choice_follows_the_chance_of_being_best",
    )
    trials: int = Field(default=32, ge=1)
    policies: tuple[str, ...] = Field(default=("policy",), min_length=1)
    pool: Literal["tree", "node"] = "tree"
    prior: Annotated[GaussianPrior | BetaPrior, Field(discriminator="kind")] = GaussianPrior()
    span: tuple[float, float] = (0.0, 1.0)
    refine: bool = True
    batch: int = Field(default=1, ge=1)
    seed: int = 0

    @field_validator("policies")
    @classmethod
    def _once(cls, policies: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(policies)) < len(policies):
            raise ValueError("each policy is named once")
        return policies

    @field_validator("span")
    @classmethod
    def _rising(cls, span: tuple[float, float]) -> tuple[float, float]:
        if not span[0] < span[1]:
            raise ValueError("the lowest score comes before the highest")
        return span

    async def grow(self, root: Node, expand: Expand) -> None:
        """Draw trials, carry them out, and let the arms see the scores."""
        seen = Seen()
        for first in range(0, self.trials, self.batch):
            trials = [
                self.trial(root, seen, random.Random(f"{self.seed}/{i}"))  # noqa: S311  (no secret)
                for i in range(first, min(first + self.batch, self.trials))
            ]
            for by in self.policies:
                wanted = Counter(node for node, name in trials if name == by)
                if wanted:
                    for child in await expand(list(wanted), list(wanted.values()), by=by):
                        self.back_up(root, seen, child, by)

    def trial(self, root: Node, seen: "Seen", draws: random.Random) -> tuple[Node, str]:
        """The node that gets a child next, and the policy that grows it."""
        node = root
        while True:
            lane = self._policy(seen, node, draws) if self.pool == "node" else None
            arms = seen.arms[node, lane]
            open_ = [c for c in arms.children if not c.done or (self.refine and c.finished)]
            wider, deeper = (self.prior.draw(arm, draws) for arm in (arms.gen, arms.cont))
            if not open_ or wider >= deeper:
                return node, self._policy(seen, None, draws) if lane is None else lane
            node = self._best(open_, lambda child: seen.nodes[child], draws)

    def back_up(self, root: Node, seen: "Seen", child: Node, by: str) -> None:
        """Let the arms that led to a new child see its score."""
        low, high = self.span
        score = (child.score - low) / (high - low)
        if self.prior.kind == "beta":
            score = min(max(score, 0.0), 1.0)
        lane = by if self.pool == "node" else None
        seen.lanes[child] = lane
        if lane is None:
            seen.policies[None, by].see(score)
        node = child
        while node is not root and (parent := node.parent) is not None:
            lane = seen.lanes[node]
            arms = seen.arms[parent, lane]
            if node is child:
                arms.children.append(child)
            (arms.gen if node is child else arms.cont).see(score)
            seen.nodes[node].see(score)
            if lane is not None:
                seen.policies[parent, lane].see(score)
            node = parent

    def _policy(self, seen: "Seen", node: Node | None, draws: random.Random) -> str:
        return self._best(self.policies, lambda by: seen.policies[node, by], draws)

    def _best(self, items: Iterable[T], belief: Callable[[T], Belief], draws: random.Random) -> T:
        return max(items, key=lambda item: self.prior.draw(belief(item), draws))


class Arms:
    """Of a node: its children, what they brought when new, and what grew below them since."""

    __slots__ = ("children", "cont", "gen")

    def __init__(self) -> None:
        self.gen, self.cont = Belief(), Belief()
        self.children: list[Node] = []


class Seen:
    """All arms: each node's, in lanes where policies are kept apart; nodes; and policies."""

    __slots__ = ("arms", "lanes", "nodes", "policies")

    def __init__(self) -> None:
        self.arms: defaultdict[tuple[Node, str | None], Arms] = defaultdict(Arms)
        self.lanes: dict[Node, str | None] = {}
        self.nodes: defaultdict[Node, Belief] = defaultdict(Belief)
        self.policies: defaultdict[tuple[Node | None, str], Belief] = defaultdict(Belief)
