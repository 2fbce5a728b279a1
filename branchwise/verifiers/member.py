"""Verifiers that hold verifiers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self, runtime_checkable

from branchwise.core.types import Verifier


@runtime_checkable
class Holding(Protocol):
    """A verifier that asks others, which may have to be opened before it can."""

    @property
    def inner(self) -> tuple[Verifier, ...]:
        """The verifiers that it asks, in order."""
        ...

    def around(self, inner: Sequence[Verifier]) -> Self:
        """The same with other verifiers, such as the opened ones.

        Args:
            inner: one for each of `inner`, in order.
        """
        ...
