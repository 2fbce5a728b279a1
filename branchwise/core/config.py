"""The base of every configuration object."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal, Self, cast, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationInfo,
    field_validator,
    model_validator,
)


class Config(BaseModel):
    """A frozen pydantic model that refuses unknown fields: the configuration *is* the object.

    Raises:
        pydantic.ValidationError: a field is unknown, missing or out of its range.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, defer_build=True
    )


def _beside(path: Path, info: ValidationInfo) -> Path:
    context = cast("Mapping[str, object]", info.context or {})
    return Path(str(context.get("folder", "."))) / path.expanduser()


Beside = Annotated[Path, AfterValidator(_beside)]
"""A path; a relative one in a spec is relative to the spec's folder."""

Adapter = Literal[
    "logit_bias",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "top_n_sigma",
    "basis_cutoff",
    "mirostat",
]
"""What changes the model's distribution before a token is drawn: the field that turns it on."""

ADAPTERS: tuple[Adapter, ...] = get_args(Adapter)
"""All of them, in the order of transformers; those that it lacks come last of their kind."""


class Bias(Mapping[int, float]):
    """What is added to the logits of some tokens: a mapping that does not change and has a hash.

    Example:
        >>> Bias({7: -1}) == {7: -1.0}, hash(Bias({1: 0, 2: 1})) == hash(Bias({2: 1, 1: 0}))
        (True, True)
    """

    def __init__(self, bias: Mapping[int, float]) -> None:
        self._bias = dict(sorted(bias.items()))

    def __getitem__(self, token: int) -> float:
        return self._bias[token]

    def __iter__(self) -> Iterator[int]:
        return iter(self._bias)

    def __len__(self) -> int:
        return len(self._bias)

    def __hash__(self) -> int:
        return hash(tuple(self._bias.items()))

    def __repr__(self) -> str:
        return repr(self._bias)


def _plain(bias: Mapping[int, float]) -> dict[int, float]:
    return dict(bias)


_Token = Annotated[int, Field(ge=0)]
_Addend = Annotated[float, Field(ge=-100, le=100)]
_Biases = Annotated[
    Mapping[_Token, _Addend],
    AfterValidator(Bias),
    PlainSerializer(_plain, return_type=dict[int, float]),
]


class Sampling(Config):
    """How the next token is drawn from the model's distribution.

    Each field turns one adapter on; all are off by default. They are applied in `order`, each to
    the renormalised result of the one before. Temperature 0 takes the most probable token after
    the bias and the penalties, of equal ones the one with the lowest id; nothing else matters then.

    Args:
        temperature: divides the logits; 0 takes the most probable token.
        top_p: keep the smallest set of tokens with at least this probability mass
            (Holtzman et al. 2020); 1 keeps all.
        top_k: keep the k most probable tokens (Fan et al. 2018); 0 keeps all.
        min_p: keep tokens with at least this share of the largest probability
            (Nguyen et al. 2024); 0 keeps all.
        typical_p: keep the smallest set of tokens with at least this mass whose surprise is
            closest to the entropy (Meister et al. 2023); 1 keeps all.
        epsilon_cutoff: keep tokens with at least this probability (Hewitt et al. 2022); 0 keeps
            all.
        eta_cutoff: the same with min(ε, √ε exp(-entropy)), ε being this number (Hewitt et al.
            2022, entropy in nats); 0 keeps all.
        top_n_sigma: keep tokens whose logit is at most so many standard deviations of the logits
            below the largest (Tang et al. 2024); 0 keeps all.
        basis_cutoff: keep tokens with at least this probability under the model, and those that
            its output matrix certifies (Finlayson et al. 2024); 0 keeps all.
        basis_size: columns of the output matrix, after its singular value decomposition, that
            `basis_cutoff` looks at.
        mirostat: 1 or 2 keeps the mean surprise of the answer's tokens near `mirostat_tau`
            (Basu et al. 2021); 0 is off.
        mirostat_tau: the surprise to keep, in bits.
        mirostat_eta: how fast mirostat learns.
        repetition_penalty: positive logits of the tokens in the prompt and the answer are divided
            by it, negative ones multiplied (Keskar et al. 2019); 1 is off.
        frequency_penalty: subtracted from a token's logit for each time that the answer has it
            (OpenAI's definition); 0 is off.
        presence_penalty: subtracted once from the logit of each token that the answer has.
        logit_bias: what is added to the logits of tokens, by token id.
        order: the adapters that are on, in the order in which they are applied; names of those
            that are off may stand anywhere or be left out.

    Example:
        >>> Sampling(temperature=0.7, top_p=0.95).top_k
        0
        >>> Sampling(top_k=5, temperature=2, order=("top_k", "temperature")).applied
        ('top_k', 'temperature')
    """

    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0, lt=2**31)
    min_p: float = Field(default=0.0, ge=0, le=1)
    typical_p: float = Field(default=1.0, gt=0, le=1)
    epsilon_cutoff: float = Field(default=0.0, ge=0, lt=1)
    eta_cutoff: float = Field(default=0.0, ge=0, lt=1)
    top_n_sigma: float = Field(default=0.0, ge=0)
    basis_cutoff: float = Field(default=0.0, ge=0, lt=1)
    basis_size: int = Field(default=16, ge=1)
    mirostat: Literal[0, 1, 2] = 0
    mirostat_tau: float = Field(default=5.0, gt=0)
    mirostat_eta: float = Field(default=0.1, gt=0)
    repetition_penalty: float = Field(default=1.0, ge=0.01, le=100)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    logit_bias: _Biases = Bias({})
    order: tuple[Adapter, ...] = ADAPTERS

    @property
    def applied(self) -> tuple[Adapter, ...]:
        """The adapters that are on, in their order."""
        return tuple(name for name in self.order if self.uses(name))

    def uses(self, name: Adapter) -> bool:
        """Whether the adapter of this name is on."""
        return getattr(self, name) != _OFF[name]

    @field_validator("order")
    @classmethod
    def _once(cls, order: tuple[Adapter, ...]) -> tuple[Adapter, ...]:
        if len(set(order)) < len(order):
            raise ValueError("each adapter is applied once, so each name stands once")
        return order

    @model_validator(mode="after")
    def _placed(self) -> Self:
        for name in ADAPTERS:
            if name not in self.order and self.uses(name):
                raise ValueError(f"`order` must say where `{name}` stands, since it is on")
        return self


_OFF: dict[Adapter, object] = {name: Sampling.model_fields[name].default for name in ADAPTERS}
