"""What `docs/algorithms.md` says of an algorithm, kept where the algorithm is."""

from typing import Literal, NamedTuple


class Card(NamedTuple):
    """One row of the table of algorithms.

    Args:
        structure: what the tree looks like, in the words of Welleck et al. 2024: `primitive`,
            `parallel`, `step` (step-level search), `token` (the same with tokens as steps),
            `refinement`, `budget` (where compute goes), or `pick` (what chooses the answer).
        signals: what it needs to be told: samples, answers, a score for each step, and so on.
        paper: author, year and section.
        oracle: what its test compares it with.
        test: the test, as `file::function` below `tests/`.
    """

    structure: Literal["primitive", "parallel", "step", "token", "refinement", "budget", "pick"]
    signals: str
    paper: str
    oracle: str
    test: str
