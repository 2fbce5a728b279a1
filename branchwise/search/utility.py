"""Utilities: what an answer is worth where another one is right."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import product
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, ImportString, model_validator

from branchwise.core.config import Config
from branchwise.core.errors import SpecError, suggestion
from branchwise.core.node import Node
from branchwise.core.types import Verdict

if TYPE_CHECKING:
    from sacrebleu.metrics import bleu, chrf


def verdict(node: Node, verifier: str) -> Verdict | None:
    """What a verifier says of a node; None where nothing has judged the node yet.

    Raises:
        SpecError: others have judged the node, but none of this name.
    """
    verdicts = node.verdicts
    if verdicts and verifier not in verdicts:
        raise SpecError(f"no verifier is called {verifier!r}{suggestion(verifier, [*verdicts])}")
    return verdicts.get(verifier)


def said(node: Node, of: str) -> str | None:
    """What a node says or does, as one string; None where there is nothing.

    Args:
        node: the node.
        of: `text`, `answer`, or the name of a verifier whose `Verdict.detail` is the behaviour: an
            execution verifier writes there what the program did, such as one character for each
            test. An empty detail is no behaviour.

    Raises:
        SpecError: no verifier of this name has judged the node, though others have.
    """
    if of == "text":
        return node.text
    if of == "answer":
        return node.state.answer
    judged = verdict(node, of)
    return (judged.detail or None) if judged is not None else None


class Comparison(Config, ABC):
    """A utility of what two nodes say or do.

    Args:
        of: what is compared: `text`, `answer`, or the name of a verifier whose `Verdict.detail`
            says what the answer does.
    """

    symmetric: ClassVar[bool] = False
    of: str

    def sees(self, node: Node) -> bool:
        """Whether the node has anything to compare."""
        return said(node, self.of) is not None

    def table(self, nodes: Sequence[Node]) -> list[list[float]]:
        """u(y_i, y_j) in row i and column j; equal strings are compared once."""
        strings = [said(node, self.of) or "" for node in nodes]
        known: dict[tuple[str, str], float] = {}
        for a, b in product(dict.fromkeys(strings), repeat=2):
            done = self.symmetric and (b, a) in known
            known[a, b] = known[b, a] if done else self.between(a, b)
        return [[known[a, b] for b in strings] for a in strings]

    @abstractmethod
    def between(self, hypothesis: str, evidence: str) -> float:
        """u(hypothesis, evidence)."""


class Match(Comparison):
    """1 where both are equal, else 0: minimum Bayes risk is then majority voting.

    With the outputs of a program on test inputs it is MBR-Exec (Shi et al. 2022).

    Args:
        of: what is compared.

    Example:
        >>> Match().between("4", "4")
        1.0
    """

    symmetric: ClassVar[bool] = True
    kind: Literal["match"] = "match"
    of: str = "answer"

    def between(self, hypothesis: str, evidence: str) -> float:
        """1 or 0."""
        return float(hypothesis == evidence)


class Edit(Comparison):
    """Edit similarity: 1 - lev(a, b) / max(|a|, |b|), in characters (Levenshtein 1966).

    Args:
        of: what is compared.

    Example:
        >>> Edit().between("kitten", "sitting") == 1 - 3 / 7
        True
    """

    symmetric: ClassVar[bool] = True
    kind: Literal["edit"] = "edit"
    of: str = "text"

    def between(self, hypothesis: str, evidence: str) -> float:
        """1 for equal strings, 0 where no character can stay."""
        longest = max(len(hypothesis), len(evidence))
        return 1 - levenshtein(hypothesis, evidence) / longest if longest else 1.0


class Agreement(Comparison):
    """The share of places in which two behaviours are the same: a soft `Match`.

    Where a verifier writes one character for each test, the share of tests on which two programs
    do the same. What one has and the other has not is a difference.

    Args:
        of: what is compared.

    Example:
        >>> Agreement(of="tests").between("1101", "1100")
        0.75
    """

    symmetric: ClassVar[bool] = True
    kind: Literal["agreement"] = "agreement"

    def between(self, hypothesis: str, evidence: str) -> float:
        """The share of places in [0, 1]; 1 where both are empty."""
        longest = max(len(hypothesis), len(evidence))
        same = sum(a == b for a, b in zip(hypothesis, evidence, strict=False))
        return same / longest if longest else 1.0


class Sacre(Comparison, ABC):
    """A metric of sacrebleu, from 0 to 100; it is not symmetric: the evidence is the reference.

    Args:
        of: what is compared.

    Raises:
        SpecError: sacrebleu is not installed.
    """

    @model_validator(mode="after")
    def _installed(self) -> Self:
        # Better said before a search than after it.
        if find_spec("sacrebleu") is None:
            raise SpecError(
                f"{type(self).__name__} needs sacrebleu", hint="pip install 'branchwise[mbr]'"
            )
        return self


class BLEU(Sacre):
    """Sentence BLEU by sacrebleu: effective order, exponential smoothing, from 0 to 100.

    Args:
        of: what is compared.
        tokenize: sacrebleu's name of the way to cut a text into words.

    Raises:
        SpecError: sacrebleu is not installed.

    Example:
        >>> BLEU(tokenize="char").kind
        'bleu'
    """

    kind: Literal["bleu"] = "bleu"
    of: str = "text"
    tokenize: Literal["13a", "intl", "zh", "char", "none"] = "13a"

    def between(self, hypothesis: str, evidence: str) -> float:
        """From 0 to 100."""
        return _bleu(self.tokenize).sentence_score(hypothesis, [evidence]).score


class ChrF(Sacre):
    """chrF by sacrebleu: the F-score of character n-grams (Popović 2015), from 0 to 100.

    Args:
        of: what is compared.
        word_order: the longest n-gram of words that counts too; 2 is chrF++ (Popović 2017).

    Raises:
        SpecError: sacrebleu is not installed.

    Example:
        >>> round(ChrF().between("a cat", "a cat"))
        100
    """

    kind: Literal["chrf"] = "chrf"
    of: str = "text"
    word_order: int = Field(default=0, ge=0)

    def between(self, hypothesis: str, evidence: str) -> float:
        """From 0 to 100."""
        return _chrf(self.word_order).sentence_score(hypothesis, [evidence]).score


class Custom(Config):
    """Any function u(hypothesis, evidence) of two nodes.

    Args:
        function: the function, or where to import it from: `pkg.module:name`.

    Example:
        >>> Custom(function=lambda y, e: float(len(y.text) <= len(e.text))).kind
        'custom'
    """

    kind: Literal["custom"] = "custom"
    function: ImportString[Callable[[Node, Node], float]]

    def sees(self, node: Node) -> bool:  # noqa: ARG002  (it is asked about every node)
        """Always."""
        return True

    def table(self, nodes: Sequence[Node]) -> list[list[float]]:
        """u(y_i, y_j) in row i and column j.

        Raises:
            SpecError: a value is no finite number.
        """
        rows = [[float(self.function(y, e)) for e in nodes] for y in nodes]
        if not all(math.isfinite(value) for row in rows for value in row):
            raise SpecError("the utility has to give finite numbers")
        return rows


AnyUtility = Annotated[Match | Edit | Agreement | BLEU | ChrF | Custom, Field(discriminator="kind")]


@functools.cache
def _bleu(tokenize: str) -> bleu.BLEU:
    from sacrebleu.metrics import bleu  # noqa: PLC0415  (comes with an extra)

    return bleu.BLEU(tokenize=tokenize, effective_order=True)


@functools.cache
def _chrf(word_order: int) -> chrf.CHRF:
    from sacrebleu.metrics import chrf  # noqa: PLC0415  (comes with an extra)

    return chrf.CHRF(word_order=word_order)


def levenshtein(a: str, b: str) -> int:
    """The least number of insertions, deletions and substitutions that turn `a` into `b`.

    A column of the table of dynamic programming is two integers, the bits of which say where it
    rises and where it falls, so that a column costs a few operations (Myers 1999; Hyyrö 2003).

    Example:
        >>> levenshtein("kitten", "sitting")
        3
    """
    if not a or not b:
        return len(a) + len(b)
    places: dict[str, int] = {}
    for i, letter in enumerate(a):
        places[letter] = places.get(letter, 0) | 1 << i
    full, last = (1 << len(a)) - 1, 1 << (len(a) - 1)
    rises, falls, distance = full, 0, len(a)
    for letter in b:
        equal = places.get(letter, 0)
        diagonal = ((((equal & rises) + rises) ^ rises) | equal | falls) & full
        right_rises = falls | (full & ~(diagonal | rises))
        right_falls = rises & diagonal
        distance += bool(right_rises & last) - bool(right_falls & last)
        right_rises = (right_rises << 1 | 1) & full
        right_falls = (right_falls << 1) & full
        rises = right_falls | (full & ~(diagonal | right_rises))
        falls = right_rises & diagonal
    return distance
