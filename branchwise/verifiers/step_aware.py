"""Which steps of wrong answers are right all the same: labels for a step-aware verifier."""

import re
from collections.abc import Callable, Sequence

from branchwise.core.answers import extract
from branchwise.core.spelling import INTEGER, LONGEST, canonical, plain

_EQUALS = re.compile(
    rf"=\s{{0,4}}[$€£¥₹]?\s?(-?[$€£¥₹]?(?:(?:{INTEGER})(?:\.[0-9]+)?|\.[0-9]+)%?)"
    r"(?![0-9%]|[.,][0-9]|\s?[-+*/×÷^]\s?[$(]?[0-9])"  # else it is the beginning of a term
)
_TRIES = 32
"""How many equality signs, from the end of a step, are looked at before it has no result."""


def intermediate_result(step: str) -> str | None:
    r"""What a step comes to: the answer that it gives, or else the number after its last `=`.

    Numbers that are merely mentioned are no results. GSM8K's calculator annotations are equations
    as any other.

    Args:
        step: its text.

    Returns:
        The result in its canonical spelling; None where the step has none.

    Example:
        >>> [intermediate_result(s) for s in ("5 * 2 = <<5*2=10>>10", "So the answer is $18.00.")]
        ['10', '18']
    """
    if answer := extract(step, ("boxed", "hashes", "says")):
        return answer
    at = len(step)
    for _ in range(_TRIES):
        if (at := step.rfind("=", 0, at)) < 0:
            break
        if found := _EQUALS.match(plain(step[at : at + LONGEST])):
            return canonical(found[1])
    return None


def matched_steps(
    paths: Sequence[Sequence[str]],
    right: Sequence[bool],
    result: Callable[[str], str | None] = intermediate_result,
) -> list[tuple[bool, ...]]:
    """For each step of some answers to one problem, whether it is taken to be right.

    All steps of a right answer are. Those of a wrong one are as long as each comes to a result that
    some step of a right answer comes to as well; from the first that does not, none is. A step
    without a result is labelled as the one before it, at the beginning as the first one that has a
    result; where no step has one, all are wrong.

    The labels err on both sides: a step that is right but in no right answer counts as wrong, and
    one that comes to a right number for a wrong reason as right. Without a right answer all steps
    are wrong.

    Source: DiVeRSe, Li et al. 2023, §2.3 and figure 3. Their released code asks for more: that one
    right answer alone has all the results so far, each as often.

    Args:
        paths: the steps of each answer, in order.
        right: whether the answer is right.
        result: what two steps have to share; it may be a class of equivalent texts where there are
            no numbers.

    Example:
        >>> good, bad = ["4 + 3 = 7", "7 + 2 = 9"], ["4 + 3 = 7", "7 + 1 = 8", "8 + 1 = 9"]
        >>> matched_steps([good, bad], [True, False])
        [(True, True), (True, False, False)]
    """
    results = [[result(step) for step in path] for path in paths]
    known = {each for row, good in zip(results, right, strict=True) if good for each in row}
    return [
        (True,) * len(row) if good else _as_long_as(row, known)
        for row, good in zip(results, right, strict=True)
    ]


def _as_long_as(results: Sequence[str | None], known: set[str | None]) -> tuple[bool, ...]:
    good = next((each in known for each in results if each is not None), False)
    labels: list[bool] = []
    for each in results:
        good = good and (each is None or each in known)
        labels.append(good)
    return tuple(labels)
