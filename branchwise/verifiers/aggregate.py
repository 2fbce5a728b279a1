"""From the scores of the steps to one score of the path."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Literal

from branchwise.core.config import Config
from branchwise.core.errors import VerifierError
from branchwise.core.node import Node

How = Literal["min", "prod", "last", "mean", "max", "sum"]

_WAYS: dict[How, Callable[[Sequence[float]], float]] = {
    "min": min,
    "prod": math.prod,
    "last": lambda scores: scores[-1],
    "mean": fmean,
    "max": max,
    "sum": math.fsum,
}


class Aggregate(Config):
    """A score of a node from the scores that one verifier gave along the way to it.

    Process reward models judge steps; a search ranks paths. `min` is Math-Shepherd's choice (Wang
    et al. 2024), `prod` that of Lightman et al. 2024, `last` that of Snell et al. 2024. On [0, 1],
    prod ≤ min ≤ mean ≤ max, and all but `last` forget the order of the steps. Where one node holds
    several steps (`Verdict.steps`), each of them counts; an earlier draft does not, nor does a step
    without text.

    Args:
        of: the name of the verifier.
        how: how its scores become one.

    Example:
        >>> from branchwise import Node, State, Step, Task, Verdict
        >>> node = Node(Task("?"), State())
        >>> for score in (0.9, 0.5):
        ...     node = Node(node.task, State(), node, 0, Step("..."))
        ...     node.judged(("prm",), (Verdict(score),))
        >>> Aggregate(of="prm", how="prod")(node)
        0.45
    """

    kind: Literal["aggregate"] = "aggregate"
    of: str
    how: How = "min"

    def __call__(self, node: Node) -> float:
        """The score of the path to the node; nodes that were not judged, as the root, are left out.

        Raises:
            VerifierError: nothing on the path was judged by this verifier.
        """
        scores: list[float] = []
        for above in node.lineage[node.start.depth + 1 :]:
            verdict = above.verdicts.get(self.of)
            if verdict is None:
                continue
            # A step that says nothing, such as an end, is judged by what stands there already,
            # unless its verifier has found a step in it all the same.
            silent = above.step is not None and not above.step.text.strip()
            if verdict.steps or not (silent and scores):
                scores += verdict.steps or (verdict.score,)
        if not scores:
            known = ", ".join(node.verdicts) or "none"
            raise VerifierError(
                f"no score of {self.of!r} on the path", hint=f"judges here: {known}"
            )
        return aggregated(scores, self.how)


def aggregated(scores: Sequence[float], how: How) -> float:
    """The scores of some steps as one.

    Args:
        scores: of the steps, in order; at least one.
        how: how they become one.

    Example:
        >>> aggregated((0.9, 0.5, 0.8), "min")
        0.5
    """
    return _WAYS[how](scores)


def rescore(root: Node, rank: Callable[[Node], float]) -> None:
    """Write every `Node.score` of a grown tree anew, from the verdicts it keeps: no model is asked.

    The root, which nobody judges, and the branches that failed keep their scores.

    Args:
        root: the tree; its scores change in place.
        rank: an `Aggregate`, or any function of a node.

    Raises:
        VerifierError: a node was never judged.
    """
    for node in root.walk():
        if node.parent is not None and node.failure is None:
            node.score = rank(node)
