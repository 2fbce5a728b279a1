"""How each row of a batch draws its next token."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from branchwise.core.config import Adapter, Sampling

# In this order alone they need no more than thresholds, so that one kernel does them all.
_PLAIN: tuple[Adapter, ...] = ("temperature", "top_k", "top_p", "min_p")
_SHIFTS: tuple[Adapter, ...] = (
    "logit_bias",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
)


@dataclass(slots=True)
class Past:
    """What stands before the token to draw.

    Args:
        tokens: the question, then the answer so far.
        asked: how many of them are the question.
        mu: mirostat's state, as the last draw returned it; None at the start.
    """

    tokens: Sequence[int]
    asked: int
    mu: float | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a batch needs to know of one sampling.

    Args:
        applied: the adapters to apply, in their order.
        plain: whether they are no more than temperature, top-k, top-p and min-p in this order.
        numbers: the parameters of these four.
    """

    applied: tuple[Adapter, ...]
    plain: bool
    numbers: tuple[float, float, float, float]

    @staticmethod
    def of(sampling: Sampling) -> Recipe:
        """The recipe of a sampling."""
        applied = sampling.applied
        if sampling.temperature == 0:
            # The largest stays the largest, whatever is cut.
            applied = tuple[Adapter, ...](name for name in applied if name in _SHIFTS)
        plain = [name for name in _PLAIN if name in applied] == list(applied)
        s = sampling
        return Recipe(applied, plain, (s.temperature, s.top_k, s.top_p, s.min_p))


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows that apply the same adapters in the same order.

    Args:
        applied: the adapters.
        samplings: one for each row.
        pasts: one for each row.
        places: where in the batch the rows stand.
        device: where the logits are.
        embedding: the model's output matrix, shape (vocabulary, size), where it was given.
    """

    applied: tuple[Adapter, ...]
    samplings: Sequence[Sampling]
    pasts: Sequence[Past]
    places: Sequence[int]
    device: torch.device
    embedding: torch.Tensor | None = None

    @property
    def greedy(self) -> bool:
        """Whether they take the most probable token."""
        return self.samplings[0].temperature == 0

    def column(self, name: str) -> torch.Tensor:
        """A parameter of each row, shape (rows, 1), double precision."""
        values = [float(getattr(sampling, name)) for sampling in self.samplings]
        return torch.tensor(values, dtype=torch.float64, device=self.device)[:, None]

    @property
    def index(self) -> torch.Tensor | slice:
        """The places, to index tensors by; a slice, which copies nothing, where they are one."""
        first, last = self.places[0], self.places[-1]
        if last - first + 1 == len(self.places):
            return slice(first, last + 1)
        return torch.tensor(self.places, device=self.device)

    def split(self, most: int) -> Iterator[Rows]:
        """The same rows, a few at a time."""
        for i in range(0, len(self.places), most):
            part = slice(i, i + most)
            yield Rows(
                self.applied,
                self.samplings[part],
                self.pasts[part],
                self.places[part],
                self.device,
                self.embedding,
            )


@dataclass(frozen=True, slots=True)
class Choice:
    """How each row draws.

    Args:
        samplings: one for each row.
        pasts: one for each row.
        recipes: one for each row.
        device: where the logits are.
        embedding: the model's output matrix, where `basis_cutoff` needs it.
    """

    samplings: Sequence[Sampling]
    pasts: Sequence[Past]
    recipes: Sequence[Recipe]
    device: torch.device
    embedding: torch.Tensor | None = None

    @staticmethod
    def of(
        samplings: Sequence[Sampling],
        pasts: Sequence[Past],
        device: torch.device,
        embedding: torch.Tensor | None = None,
    ) -> Choice:
        """What several requests ask for, side by side.

        Args:
            samplings: one for each row.
            pasts: one for each row; what a row's adapters do not need is not looked at.
            device: where the logits are.
            embedding: the model's output matrix, shape (vocabulary, size).
        """
        # Samples of one request share the object.
        known = {id(sampling): sampling for sampling in samplings}
        recipes = {key: Recipe.of(sampling) for key, sampling in known.items()}
        each = [recipes[id(sampling)] for sampling in samplings]
        return Choice(samplings, pasts, each, device, embedding)

    @property
    def plain(self) -> Sequence[int]:
        """The places of the rows that one kernel can do."""
        return [place for place, recipe in enumerate(self.recipes) if recipe.plain]

    def numbers(self, places: Sequence[int]) -> np.ndarray:
        """Temperature, top-k, top-p and min-p of some rows, shape (rows, 4)."""
        return np.array([self.recipes[place].numbers for place in places], np.float64)

    def alike(self, places: Sequence[int]) -> Iterator[Rows]:
        """Some of the rows, those together that apply the same adapters in the same order."""
        groups: defaultdict[tuple[bool, tuple[Adapter, ...]], list[int]] = defaultdict(list)
        for place in places:
            greedy = self.samplings[place].temperature == 0
            groups[greedy, self.recipes[place].applied].append(place)
        for (_, applied), members in groups.items():
            yield Rows(
                applied,
                [self.samplings[place] for place in members],
                [self.pasts[place] for place in members],
                members,
                self.device,
                self.embedding,
            )
