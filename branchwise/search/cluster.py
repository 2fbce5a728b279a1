"""Filtering and clustering of programs by what they do."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from branchwise.core.node import Node
from branchwise.search.best import best, candidates
from branchwise.search.card import Card
from branchwise.search.pick import Pick
from branchwise.search.utility import said, verdict


class Cluster(Pick):
    """Pick from the largest group of answers that do the same.

        P ← the answers that pass the public tests (all of them where none does)
        C ← P by behaviour, the largest group first
        submit one of C_1, one of C_2, ..., one of C_k

    Of a group it takes the answer that scores highest, of groups of one size the one that came
    first. Answers without a behaviour belong to no group.

    Source: Li, Choi et al. 2022 (AlphaCode), §4, where the behaviour is what a program
    prints for inputs that a model has written.

    Args:
        behaviour: what a group has in common: `answer`, `text`, or the name of a verifier whose
            `Verdict.detail` says what the program did.
        tests: the verifier whose score says whether an answer passes the public tests; None
            filters nothing.
        passed: the score from which on it does.

    Example:
        >>> from branchwise import Node, State, Task
        >>> root = Node(Task("?"), State())
        >>> ends = [State(answer=said, done=True) for said in "abccb"]
        >>> root.adopt([Node(root.task, end, root, i) for i, end in enumerate(ends)])
        >>> [node.state.answer for node in Cluster().submissions(root, 2)]
        ['b', 'c']
    """

    kind: Literal["cluster"] = "cluster"
    card: ClassVar[Card] = Card(
        structure="pick",
        signals="what each program does; public tests",
        paper="Li, Choi et al. 2022 (AlphaCode), §4",
        oracle="equivalence of formulas on all inputs",
        test="search/test_cluster.py::test_clusters_are_the_classes_of_equivalent_programs",
    )
    behaviour: str = "answer"
    tests: str | None = None
    passed: float = Field(default=1.0, allow_inf_nan=False)

    def __call__(self, root: Node) -> Node:
        """The chosen node."""
        return next(iter(self.submissions(root, 1)), None) or best(self._passing(root))

    def submissions(self, root: Node, k: int = 10) -> list[Node]:
        """The best answer of each of the k largest groups, the largest first."""
        return [best(group) for group in self.clusters(root)[:k]]

    def clusters(self, root: Node) -> list[list[Node]]:
        """The groups, the largest first."""
        groups: dict[str, list[Node]] = {}
        for node in self._passing(root):
            behaviour = said(node, self.behaviour)
            if behaviour is not None:
                groups.setdefault(behaviour, []).append(node)
        return sorted(groups.values(), key=lambda group: -len(group))

    def _passing(self, root: Node) -> Sequence[Node]:
        everyone = candidates(root)
        return [node for node in everyone if self._passes(node)] or everyone

    def _passes(self, node: Node) -> bool:
        if self.tests is None:
            return True
        judged = verdict(node, self.tests)
        return judged is not None and judged.score >= self.passed
