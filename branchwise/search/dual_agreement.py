"""Programs and tests that agree with each other."""

from typing import ClassVar, Literal

from branchwise.core.node import Node
from branchwise.search.best import best, candidates
from branchwise.search.card import Card
from branchwise.search.pick import Pick
from branchwise.search.utility import said


class DualAgreement(Pick):
    """Pick from the group of programs that agree with most tests and with most other programs.

        a consensus set: all solutions S that pass exactly the same tests T
        product: f(S, T) = |S| · |T|           (the paper)
        sqrt:    f(S, T) = sqrt(|S|) · |T|     (the authors' code)

    The tests are generated, so they may be wrong, and so may the solutions; what is wrong in many
    ways is seldom agreed upon. Solutions that pass no test have f = 0. Of equal sets the one that
    came first wins, of a set the solution that scores highest.

    Source: Chen et al. 2022 (CodeT), §2; copies of solutions and of tests count each.

    Args:
        tests: the verifier that runs the generated tests; its `Verdict.detail` has one character
            for each test, `1` where the solution passes it.
        form: of f.

    Example:
        >>> DualAgreement(tests="tests").agreement(4, 3)
        12.0
        >>> DualAgreement(tests="tests", form="sqrt").agreement(4, 3)
        6.0
    """

    kind: Literal["dual-agreement"] = "dual-agreement"
    card: ClassVar[Card] = Card(
        structure="pick",
        signals="which generated tests each program passes",
        paper="Chen et al. 2022 (CodeT), §2",
        oracle="the definition by pairs of a solution and a test it passes",
        test="search/test_dual_agreement.py::test_it_is_the_best_consensus_of_all_pairs",
    )
    tests: str
    form: Literal["product", "sqrt"] = "product"

    def __call__(self, root: Node) -> Node:
        """The chosen node."""
        return next(iter(self.submissions(root, 1)), None) or best(candidates(root))

    def submissions(self, root: Node, k: int = 10) -> list[Node]:
        """The best solution of each of the k best consensus sets, the best set first."""
        sets = sorted(
            self.consensus(root).items(), key=lambda s: -self.agreement(len(s[1]), len(s[0]))
        )
        return [best(solutions) for _, solutions in sets[:k]]

    def consensus(self, root: Node) -> dict[frozenset[int], list[Node]]:
        """The solutions by the tests that they pass, in the order in which they came."""
        sets: dict[frozenset[int], list[Node]] = {}
        for node in candidates(root):
            outcome = said(node, self.tests)
            if outcome is not None:
                passed = frozenset(i for i, mark in enumerate(outcome) if mark == "1")
                sets.setdefault(passed, []).append(node)
        return sets

    def agreement(self, solutions: int, tests: int) -> float:
        """f(S, T) from the two sizes."""
        return (solutions if self.form == "product" else solutions**0.5) * float(tests)
