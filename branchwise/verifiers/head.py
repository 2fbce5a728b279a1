"""A value head: from a state of a language model to the probability that the answer is right."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

from pydantic import Field, ValidationError

from branchwise.core.config import Config
from branchwise.core.errors import SpecError
from branchwise.core.template import filled
from branchwise.core.types import Json, Message, Request, Step
from branchwise.verifiers.aggregate import How
from branchwise.verifiers.calibration import Platt

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[np.float64]

ABOUT, TENSORS = "head.json", "head.safetensors"
_EXTRA = "pip install 'branchwise[hf]'"


class Example(Config):
    """A worked example that the model reads before the question.

    Args:
        prompt: the question; it goes through the template as the task's does.
        reply: the reply.
    """

    prompt: str
    reply: str


class Reads(Config):
    """How a question and the steps of an answer are put before the model.

    Args:
        system: the system's message; none where it is empty.
        shots: worked examples, as earlier turns.
        template: the user's message; `{prompt}` is filled in.
        separator: what ends a step.
    """

    system: str = ""
    shots: tuple[Example, ...] = ()
    template: str = "{prompt}"
    separator: str = "\n\n"

    def request(self, prompt: str, steps: Sequence[str]) -> Request:
        """The question with the steps as what was said: texts, for the model reads its own way."""
        messages = [Message("system", self.system)] if self.system else []
        for shot in self.shots:
            messages += [self._question(shot.prompt), Message("assistant", shot.reply)]
        messages.append(self._question(prompt))
        return Request(messages=tuple(messages), said=tuple(map(Step, steps)))

    def _question(self, prompt: str) -> Message:
        return Message("user", filled(self.template, {"prompt": prompt}))


class About(Reads):
    """What a head says of itself, `head.json`.

    Args:
        version: of this format.
        model: the name of the backend whose states it was trained on.
        system: the system's message; none where it is empty.
        shots: worked examples, as earlier turns.
        template: the user's message; `{prompt}` is filled in.
        separator: what ends a step.
        digest: of the file of tensors that it is about.
        sizes: of the state, of the hidden layer where there is one, and 1.
        calibration: from its output to a probability.
        how: how the scores of several steps become one.
        report: what training and the held-out problems said.
    """

    version: Annotated[int, Field(ge=1, le=1)] = 1
    model: str
    digest: str = ""
    sizes: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=2, max_length=3)]
    calibration: Platt = Platt()
    how: How = "min"
    report: dict[str, Json] = Field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Head:
    """A linear function of a state, or one with a hidden layer of rectified units between.

        p = σ(slope · f((state - mean) / scale) + bias)

    Args:
        about: what it says of itself.
        mean: of the states that it was trained on.
        scale: their standard deviations.
        layers: weights, of shape (out, in), and biases.

    Raises:
        SpecError: a tensor has not the size that the card says, or holds what is no number.
    """

    about: About
    mean: Array
    scale: Array
    layers: tuple[tuple[Array, Array], ...]

    def __post_init__(self) -> None:
        shapes = _shapes(self.about.sizes)
        for (name, shape), tensor in zip(shapes.items(), self.tensors().values(), strict=True):
            if tensor.shape != shape:
                raise SpecError(f"{name!r} has the shape {tensor.shape}, not {shape}")
            if not _finite(tensor):
                raise SpecError(f"{name!r} holds what is no finite number")
        if not (self.scale > 0).all():
            raise SpecError("'scale' holds what is not above 0")

    def tensors(self) -> dict[str, Array]:
        """The tensors by the names under which they are saved."""
        named = {"mean": self.mean, "scale": self.scale}
        for number, (weight, bias) in enumerate(self.layers):
            named |= {f"weight.{number}": weight, f"bias.{number}": bias}
        return named

    def logits(self, states: Sequence[Sequence[float]]) -> Array:
        """The output for each state, before calibration.

        Raises:
            SpecError: the states are of another size than those it was trained on.
        """
        import numpy as np  # noqa: PLC0415  (comes with an extra)

        width = self.about.sizes[0]
        if any(len(state) != width for state in states):
            raise SpecError(f"the model's states have {len(states[0])} numbers, the head's {width}")
        if not len(states):
            return np.zeros(0)
        here = (np.asarray(states, dtype=np.float64) - self.mean) / self.scale
        for number, (weight, bias) in enumerate(self.layers):
            here = (np.maximum(here, 0) if number else here) @ weight.T + bias
        return here[:, 0]

    def probabilities(self, states: Sequence[Sequence[float]]) -> list[float]:
        """For each state how probable it is that the answer comes out right.

        Raises:
            SpecError: the states are of another size than those it was trained on.
        """
        return [self.about.calibration(float(logit)) for logit in self.logits(states)]

    def save(self, folder: Path) -> None:
        """Write it down, each of the two files whole or not at all.

        Raises:
            SpecError: they cannot be written.
        """
        from safetensors.numpy import save  # noqa: PLC0415  (comes with an extra)

        tensors = save(self.tensors())
        about = self.about.model_copy(update={"digest": _digest(tensors)})
        card = json.dumps(about.model_dump(mode="json"), indent=2, ensure_ascii=False)
        put(folder / TENSORS, tensors)
        put(folder / ABOUT, (card + "\n").encode())


def load(folder: Path | str) -> Head:
    """The head that `Head.save` wrote.

    Raises:
        SpecError: there is none, or it is damaged; one line names the file.
    """
    where = Path(folder)
    try:
        from safetensors import SafetensorError  # noqa: PLC0415  (comes with an extra)
        from safetensors.numpy import load as tensors_of  # noqa: PLC0415
    except ImportError as error:
        raise SpecError("a value head needs numpy and safetensors", hint=_EXTRA) from error
    here = where / ABOUT
    try:
        about = About.model_validate_json(here.read_bytes())
        here = where / TENSORS
        content = here.read_bytes()
        tensors = tensors_of(content)
    except OSError as error:
        raise SpecError(f"{here}: cannot read the head: {error.strerror}") from error
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(map(str, fault["loc"]))
        raise SpecError(f"{here}: not a head: {place or 'the file'}: {fault['msg']}") from error
    except (SafetensorError, ValueError) as error:
        raise SpecError(f"{here}: not a file of tensors: {error}") from error
    try:
        head = head_of(about, tensors)
    except SpecError as error:
        raise SpecError(f"{here}: {error.message}") from error
    if about.digest not in {"", _digest(content)}:
        raise SpecError(
            f"{here}: not the tensors that {ABOUT} is about",
            hint="a training was cut off while it wrote: run it again",
        )
    return head


def head_of(about: About, tensors: Mapping[str, NDArray[np.floating]]) -> Head:
    """The head that these tensors are.

    Raises:
        SpecError: one is missing, unknown, of a wrong size, or holds what is no finite number.
    """
    names = _shapes(about.sizes)
    if wrong := sorted(names.keys() ^ tensors.keys()):
        fault = "is missing" if wrong[0] in names else "is unknown"
        raise SpecError(f"the tensor {wrong[0]!r} {fault}")
    of = {name: tensors[name].astype("float64") for name in names}
    layers = range(len(about.sizes) - 1)
    pairs = tuple((of[f"weight.{n}"], of[f"bias.{n}"]) for n in layers)
    return Head(about, of["mean"], of["scale"], pairs)


def put(path: Path, content: bytes) -> None:
    """Write a file, its folder too, so that it is there whole or not at all.

    Raises:
        SpecError: it cannot be written.
    """
    half = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        half.write_bytes(content)
        half.replace(path)
    except OSError as error:
        with suppress(OSError):
            half.unlink(missing_ok=True)
        raise SpecError(f"cannot write {path}: {error.strerror}") from error


def _digest(tensors: bytes) -> str:
    return blake2b(tensors, digest_size=16).hexdigest()


def _shapes(sizes: Sequence[int]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"mean": (sizes[0],), "scale": (sizes[0],)}
    for number, (inner, outer) in enumerate(itertools.pairwise(sizes)):
        shapes |= {f"weight.{number}": (outer, inner), f"bias.{number}": (outer,)}
    return shapes


def _finite(tensor: Array) -> bool:
    import numpy as np  # noqa: PLC0415  (comes with an extra)

    return bool(np.isfinite(tensor).all())
