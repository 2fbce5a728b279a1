"""AB-MCTS-A: posteriors and choices against numerical integration, and TreeQuest's posteriors."""

import math
import random
from collections import Counter
from itertools import product

import pytest
from pydantic import ValidationError
from worlds import Judge, Random, worth

from branchwise import Node, State, Step, Task, Verdict, solve
from branchwise.search.ab_mcts import ABMCTS, Seen
from branchwise.search.belief import Belief, BetaPrior, GaussianPrior
from branchwise.testing import Word

pytestmark = pytest.mark.anyio

SCORES = [0.2, 0.9, 0.55, 0.7]


def believing(scores):
    belief = Belief()
    for score in scores:
        belief.see(score)
    return belief


def normal(x, mean, variance):
    return math.exp(-((x - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)


@pytest.mark.parametrize("scores", [[], SCORES[:1], SCORES])
def test_the_gaussian_posterior_is_prior_times_likelihood(scores):
    m, kappa, nu, tau2 = 0.3, 2.0, 5.0, 0.1
    prior = GaussianPrior(m=m, kappa=kappa, nu=nu, tau2=tau2)
    # The weight of each mean x and variance y, on a grid that is even in log y.
    grid = []
    for i, j in product(range(161), range(161)):
        x, y = -1.7 + i * 0.025, math.exp(-7 + 0.065 * j)
        # A scaled inverse χ²: the density of y, times y for the step in log y.
        before = y ** (-nu / 2) * math.exp(-nu * tau2 / (2 * y)) * normal(x, m, y / kappa)
        grid.append((before * math.prod(normal(r, x, y) for r in scores), x, y))

    def mean(value):
        return sum(w * value(x, y) for w, x, y in grid) / sum(w for w, _, _ in grid)

    m, kappa, nu, tau2 = prior.posterior(believing(scores))
    assert mean(lambda x, y: x) == pytest.approx(m, rel=1e-3)
    assert mean(lambda x, y: 1 / y) == pytest.approx(1 / tau2, rel=1e-3)
    assert mean(lambda x, y: (x - m) ** 2 / y) == pytest.approx(1 / kappa, rel=1e-2)
    assert mean(lambda x, y: 1 / y**2) == pytest.approx((1 + 2 / nu) / tau2**2, rel=1e-3)


def test_the_beta_posterior_is_prior_times_likelihood():
    a, b = 1.5, 2.0
    grid = [(i + 0.5) / 2000 for i in range(2000)]
    weights = [
        x ** (a - 1) * (1 - x) ** (b - 1) * math.prod(x**r * (1 - x) ** (1 - r) for r in SCORES)
        for x in grid
    ]
    mean = sum(w * x for w, x in zip(weights, grid, strict=True)) / sum(weights)
    square = sum(w * x * x for w, x in zip(weights, grid, strict=True)) / sum(weights)
    a, b = BetaPrior(a=a, b=b).posterior(believing(SCORES))
    assert mean == pytest.approx(a / (a + b), rel=1e-4)
    assert square - mean**2 == pytest.approx(a * b / (a + b) ** 2 / (a + b + 1), rel=1e-4)


def student(scores):
    """The density of the mean, with the default prior, after these scores (Murphy, §3.4.3.3)."""
    n = len(scores)
    nu, kappa = 1 + n, 1 + n
    m = sum(scores) / kappa
    # With m = 0 and kappa = 1 the prior is one more score of 0, and 0.1 more of a square.
    tau2 = (0.1 + m * m + sum((r - m) ** 2 for r in scores)) / nu
    scale = math.sqrt(tau2 / kappa)
    log = math.lgamma((nu + 1) / 2) - math.lgamma(nu / 2) - math.log(math.pi * nu) / 2
    return lambda x: math.exp(log) * (1 + ((x - m) / scale) ** 2 / nu) ** (-(nu + 1) / 2) / scale


def beta(scores):
    a, b = 0.5 + sum(scores), 0.5 + sum(1 - r for r in scores)
    log = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    return lambda x: math.exp(log) * x ** (a - 1) * (1 - x) ** (b - 1) if 0 < x < 1 else 0.0


def chances(densities, low, high, steps=8000):
    """The chance of each arm to have the highest draw."""
    width = (high - low) / steps
    below, total = [0.0] * len(densities), [0.0] * len(densities)
    for i in range(steps):
        masses = [density(low + (i + 0.5) * width) * width for density in densities]
        middle = [b + mass / 2 for b, mass in zip(below, masses, strict=True)]
        for arm, mass in enumerate(masses):
            total[arm] += mass * math.prod(middle[:arm] + middle[arm + 1 :])
        below = [b + mass for b, mass in zip(below, masses, strict=True)]
    assert sum(total) == pytest.approx(1, abs=5e-3)
    return [chance / sum(total) for chance in total]


def chi_square(counts, expected):
    return sum((c - e) ** 2 / e for c, e in zip(counts, expected, strict=True))


def family(root, scores):
    nodes = [
        Node(root.task, State(i, reward=score), root, i, Step("x"))
        for i, score in enumerate(scores)
    ]
    root.adopt(nodes)
    return nodes


@pytest.mark.parametrize(
    ("prior", "density", "low", "high"),
    [(GaussianPrior(), student, -12, 12), (BetaPrior(), beta, 0, 1)],
    ids=["gaussian", "beta"],
)
def test_the_choice_follows_the_chance_of_being_best(prior, density, low, high):
    search = ABMCTS(prior=prior)
    root, seen = Node(Task("?"), State()), Seen()
    children = family(root, [0.5, 0.8, 0.3])
    for child in children:
        search.back_up(root, seen, child, "policy")
    for child, scores in zip(children, ([0.6, 0.5], [0.9], [0.4]), strict=True):
        for below in family(child, scores):
            search.back_up(root, seen, below, "policy")
    # What each arm has seen, from the definition.
    gen, cont = [0.5, 0.8, 0.3], [0.6, 0.5, 0.9, 0.4]
    old = [[0.5, 0.6, 0.5], [0.8, 0.9], [0.3, 0.4]]
    wider, deeper = chances([density(gen), density(cont)], low, high)
    shares = chances([density(scores) for scores in old], low, high)
    # Below the root a trial ends at the child where GEN wins, or goes on.
    counts, n = Counter(), 6000
    for i in range(n):
        node, by = search.trial(root, seen, random.Random(f"choice/{i}"))
        assert by == "policy"
        counts[node.lineage[1].index if node is not root else None] += 1
    expected = [n * wider, *[n * deeper * share for share in shares]]
    assert chi_square([counts[None], *[counts[i] for i in range(3)]], expected) < 11.34  # 1 %


@pytest.mark.parametrize("pool", ["tree", "node"])
def test_policies_are_drawn_by_the_chance_of_being_best(pool):
    search = ABMCTS(policies=("small", "large"), pool=pool)
    root, seen = Node(Task("?"), State()), Seen()
    first = family(root, [0.5, 0.8, 0.3])
    for child, by in zip(first, ["small", "large", "small"], strict=True):
        search.back_up(root, seen, child, by)
    search.back_up(root, seen, family(first[1], [0.4])[0], "small")
    search.back_up(root, seen, family(first[0], [0.7])[0], "large")
    if pool == "tree":  # the scores of what each has grown, wherever
        small, large = [0.5, 0.3, 0.4], [0.8, 0.7]
    else:  # the scores at and below the children of the root that each has grown
        small, large = [0.5, 0.3, 0.7], [0.8, 0.4]
    share, _ = chances([student(small), student(large)], -20, 20)
    counts, n = Counter(), 4000
    for i in range(n):
        node, by = search.trial(root, seen, random.Random(f"policy/{i}"))
        counts[by if pool == "tree" or node is root else seen.lanes[node.lineage[1]]] += 1
    assert chi_square([counts["small"], counts["large"]], [n * share, n * (1 - share)]) < 6.64


class Recorded(ABMCTS):
    """Keeps what was told, in order."""

    def back_up(self, root, seen, child, by):
        TOLD.append((seen, child, by))
        super().back_up(root, seen, child, by)


TOLD = []


@pytest.fixture(autouse=True)
def _forget():
    TOLD.clear()


async def grown(search, *, policy=None, judge=None, length=4, **more):
    return await solve(
        "a word?",
        policy=policy or Random(),
        controller=search,
        environment=Word(length),
        verifier=judge or Judge(),
        **more,
    )


@pytest.mark.parametrize("prior", [GaussianPrior(m=0.2), BetaPrior()], ids=["gaussian", "beta"])
@pytest.mark.parametrize(
    ("pool", "strategy"), [("tree", "multiarm_bandit_thompson"), ("node", "stack")]
)
async def test_all_arms_have_seen_what_they_have_in_treequest(prior, pool, strategy):
    treequest = pytest.importorskip("treequest")
    config = pytest.importorskip("treequest.algos.ab_mcts_a.prob_state")
    policies = {"policy": Random(), "other": Random("bc")}
    search = Recorded(trials=40, policies=tuple(policies), pool=pool, prior=prior, batch=3)
    await grown(search, policy=policies)
    params = prior.model_dump()
    kind = params.pop("kind")
    if kind == "gaussian":
        params["tau_square"] = params.pop("tau2")
    theirs = treequest.ABMCTSA(
        dist_type=kind,
        prior_config=config.PriorConfig(dist_type=kind, prior=params),
        model_selection_strategy=strategy,
    )
    state = theirs.init_tree()
    twins = {}
    for _, child, by in TOLD:
        twin = twins.get(child.parent, state.tree.root)
        state.thompson_states.get_or_create(twin, list(policies))
        trial = state.trial_store.create_trial(twin, by)
        theirs.tell(state, trial.trial_id, (child.text, child.score))
        twins[child] = twin.children[-1]
    seen = TOLD[0][0]

    def same(belief, dist):
        assert prior.posterior(belief) == pytest.approx(tuple(dist.params.values()))

    compared = 0
    for node in {child.parent for _, child, _ in TOLD}:
        arms = state.thompson_states.get(twins.get(node, state.tree.root))
        for lane in policies if pool == "node" else [None]:
            name = lane or "shared"
            ours = seen.arms[node, lane]
            same(ours.gen, arms.gen_vs_cont_probas[name]["GEN"])
            same(ours.cont, arms.gen_vs_cont_probas[name]["CONT"])
            if lane:
                same(seen.policies[node, lane], arms.action_probas[lane])
            for child in ours.children:
                index = next(
                    i for i, c in enumerate(twins[child].parent.children) if c is twins[child]
                )
                same(seen.nodes[child], arms.node_probas[name][index])
                compared += 1
    assert compared == 40
    if pool == "tree":
        for by, rewards in state.all_rewards_store.items():
            same(seen.policies[None, by], _dist(config, kind, params, rewards))


def _dist(config, kind, params, rewards):
    dist = config.ProbabilisticDist(config.PriorConfig(dist_type=kind, prior=dict(params)))
    for reward in rewards:
        dist.tell_observation(reward)
    return dist


async def test_every_trial_is_one_child():
    for batch in (1, 5, 64):
        answer = await grown(ABMCTS(trials=23, batch=batch))
        assert sum(1 for _ in answer.root.walk()) == 24
    widths = [sum(1 for _ in (await grown(ABMCTS(trials=n))).root.walk()) for n in (1, 2, 9)]
    assert widths == [2, 3, 10]


async def test_the_first_trials_do_not_depend_on_how_many_follow():
    short, long = [(await grown(ABMCTS(trials=n, seed=4))).root for n in (10, 30)]
    said = {node.path: node.text for node in long.walk()}
    assert all(said[node.path] == node.text for node in short.walk())


@pytest.mark.parametrize("refine", [True, False])
async def test_finished_nodes_are_descended_into_to_refine_them(refine):
    answer = await grown(ABMCTS(trials=60, refine=refine), length=1, judge=Judge(worth))
    revised = [node for node in answer.root.walk() if node.done and node.children]
    assert bool(revised) == refine
    assert all(len(node.text) == 1 for node in answer.root.walk() if node is not answer.root)


async def test_what_was_cut_is_not_descended_into():
    answer = await grown(ABMCTS(trials=60), length=5, horizon=2)
    assert all(not node.children for node in answer.root.walk() if node.state.cut)
    assert any(node.state.cut for node in answer.root.walk())


class Stairs:
    """Each revision is better than its draft, and first drafts are all alike."""

    async def score(self, nodes):
        return [Verdict(min(0.1 + 0.15 * (node.depth - 1), 1.0)) for node in nodes]


class Lottery:
    """Revisions do nothing good; first drafts are good at times."""

    async def score(self, nodes):
        return [
            Verdict(random.Random(node.index).random() if node.depth == 1 else 0.0)
            for node in nodes
        ]


async def test_it_goes_deep_where_revising_helps_and_wide_where_it_does_not():
    for seed in range(8):
        search = ABMCTS(trials=40, seed=seed)
        deep = (await grown(search, length=1, judge=Stairs())).root
        wide = (await grown(search, length=1, judge=Lottery())).root
        assert len(deep.children) <= 8
        assert len(wide.children) >= 32


@pytest.mark.parametrize("pool", ["tree", "node"])
async def test_the_better_policy_is_called_more_often(pool):
    calls = Counter()

    class Says:
        def __init__(self, letter):
            self.letter = letter

        async def propose(self, node, seeds):
            calls[self.letter] += len(seeds)
            return [Step(self.letter)] * len(seeds)

    search = ABMCTS(trials=60, policies=("bad", "good"), pool=pool)
    judge = Judge(lambda text: 0.9 if text == "g" else 0.2)
    await grown(search, policy={"bad": Says("b"), "good": Says("g")}, length=1, judge=judge)
    assert calls["g"] + calls["b"] == 60
    assert calls["g"] > 3 * calls["b"] > 0


async def test_scores_of_another_range_are_mapped():
    for prior in (GaussianPrior(), BetaPrior()):
        plain = await grown(ABMCTS(trials=30, seed=2, prior=prior))
        stretched = ABMCTS(trials=30, seed=2, prior=prior, span=(-300.0, -100.0))
        judge = Judge(lambda word: -300 + 200 * worth(word))
        other = await grown(stretched, judge=judge)
        assert [n.path for n in other.root.walk()] == [n.path for n in plain.root.walk()]


async def test_scores_outside_the_range_are_clipped_for_a_beta_prior():
    wild = Judge(lambda word: 100 * (worth(word) - 0.5))
    answer = await grown(ABMCTS(trials=40, prior=BetaPrior()), judge=wild)
    assert sum(1 for _ in answer.root.walk()) == 41
    tame = Judge(lambda word: min(max(100 * (worth(word) - 0.5), 0.0), 1.0))
    same = await grown(ABMCTS(trials=40, prior=BetaPrior()), judge=tame)
    assert [n.path for n in same.root.walk()] == [n.path for n in answer.root.walk()]


def test_beliefs_keep_their_precision():
    belief = believing([1e9 + r for r in SCORES])
    assert belief.squares == pytest.approx(believing(SCORES).squares, rel=1e-6)


def test_what_makes_no_sense_is_refused():
    for wrong in ({"policies": ("a", "a")}, {"policies": ()}, {"span": (1.0, 1.0)}):
        with pytest.raises(ValidationError):
            ABMCTS(**wrong)
