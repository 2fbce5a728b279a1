"""Clusters against the equivalence of formulas on all inputs."""

from itertools import product

import pytest
from worlds import Enumerate

from branchwise import BestOfN, Node, SpecError, State, Step, Task, Verdict, solve
from branchwise.search.cluster import Cluster
from branchwise.testing import Word

pytestmark = pytest.mark.anyio

# By the laws of Boole, one class a line; the first is the largest, the last two are of one size.
CLASSES = [
    ["x and y", "y and x", "not (not x or not y)", "x and (y or not x)"],
    ["x != y", "(x or y) and not (x and y)", "y != x"],
    ["x or y", "not (not x and not y)"],
    ["not x or y", "x <= y"],
]
INPUTS = list(product([False, True], repeat=2))
FORMULAS = [CLASSES[c][i] for i, c in product(range(4), [3, 2, 1, 0]) if i < len(CLASSES[c])]


class Says:
    """A policy that says the formulas in turn."""

    async def propose(self, node, seeds):
        first = node.promised - len(seeds)
        return [Step(formula) for formula in FORMULAS[first : node.promised]]


class Runs:
    """Runs a formula on inputs; the detail is what it printed, the score the share it got right."""

    def __init__(self, inputs, want):
        self.inputs, self.want = inputs, want

    async def score(self, nodes):
        verdicts = []
        for node in nodes:
            out = [bool(eval(node.text, {"x": x, "y": y})) for x, y in self.inputs]
            right = sum(a == self.want(x, y) for a, (x, y) in zip(out, self.inputs, strict=True))
            printed = "".join("01"[a] for a in out)
            verdicts.append(Verdict(right / len(out), detail=printed))
        return verdicts


async def grown(want=lambda x, y: x or y, public=(INPUTS[3],)):
    verifiers = {"public": Runs(public, want), "inputs": Runs(INPUTS, lambda x, y: False)}
    controller = BestOfN(n=len(FORMULAS))
    world = Word(1)  # whatever is said is an answer
    return (
        await solve(
            "?", policy=Says(), controller=controller, environment=world, verifier=verifiers
        )
    ).root


async def test_clusters_are_the_classes_of_equivalent_programs():
    clusters = Cluster(behaviour="inputs").clusters(await grown())
    assert [{node.text for node in cluster} for cluster in clusters][:2] == [
        set(CLASSES[0]),
        set(CLASSES[1]),
    ]
    assert {frozenset(node.text for node in c) for c in clusters} == set(map(frozenset, CLASSES))
    # Of two groups of one size the one comes first whose first program came first.
    assert clusters[2][0].text == FORMULAS[0] == CLASSES[3][0]


async def test_what_fails_the_public_tests_is_out():
    root = await grown(lambda x, y: x != y, public=(INPUTS[3], INPUTS[1]))
    pick = Cluster(behaviour="inputs", tests="public")
    (cluster,) = pick.clusters(root)
    assert {node.text for node in cluster} == set(CLASSES[1])
    assert pick(root).text == "x != y"
    assert len(Cluster(behaviour="inputs", tests="public", passed=0.5).clusters(root)) == 3


async def test_where_nothing_passes_all_are_clustered():
    root = await grown(lambda x, y: 2)
    pick = Cluster(behaviour="inputs", tests="public")
    assert pick.clusters(root) == Cluster(behaviour="inputs").clusters(root)


async def test_submissions_are_one_of_each_cluster():
    root = await grown()
    pick = Cluster(behaviour="inputs")
    assert [s.text for s in pick.submissions(root)] == ["x and y", "x != y", "not x or y", "x or y"]
    assert pick.submissions(root, 2) == pick.submissions(root)[:2]
    assert pick(root) is pick.submissions(root, 1)[0]


def test_it_works_on_any_tree():
    root = Node(Task("?"), State())
    pick = Cluster(behaviour="inputs", tests="public")
    assert pick(root) is root
    assert pick.submissions(root) == []
    leaves = [Node(root.task, State(done=True, reward=r), root, i) for i, r in enumerate([1, 2])]
    root.adopt(leaves)
    assert pick(root) is leaves[1]  # nobody has run: the best
    leaves[0].judged(("public", "inputs"), (Verdict(1.0), Verdict(0.0)))
    assert pick(root) is leaves[0]  # it passes, though it prints nothing


async def test_without_a_verifier_answers_are_the_behaviour():
    world = Word(2)
    controller = BestOfN(n=3)
    answer = await solve("?", policy=Enumerate("ab"), controller=controller, environment=world)
    assert Cluster()(answer.root).text == "aa"


async def test_a_verifier_that_is_not_there_is_named():
    root = await grown()
    with pytest.raises(SpecError, match="no verifier is called 'input'"):
        Cluster(behaviour="input")(root)
    with pytest.raises(SpecError, match="did you mean 'public'"):
        Cluster(tests="publik")(root)
