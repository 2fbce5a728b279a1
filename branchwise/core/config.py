"""The base of every configuration object."""

from pydantic import BaseModel, ConfigDict, Field


class Config(BaseModel):
    """A frozen pydantic model that refuses unknown fields: the configuration *is* the object.

    Raises:
        pydantic.ValidationError: a field is unknown, missing or out of its range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class Sampling(Config):
    """How the next token is drawn from the model's distribution.

    The order is that of transformers: temperature, then top-k, top-p and min-p, each on the
    renormalised result of the one before.

    Args:
        temperature: divides the logits; 0 takes the most probable token.
        top_p: keep the smallest set of tokens with at least this probability mass
            (Holtzman et al. 2020); 1 keeps all.
        top_k: keep the k most probable tokens (Fan et al. 2018); 0 keeps all.
        min_p: keep tokens with at least this share of the largest probability
            (Nguyen et al. 2024); 0 keeps all.

    Example:
        >>> Sampling(temperature=0.7, top_p=0.95).top_k
        0
    """

    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    min_p: float = Field(default=0.0, ge=0, le=1)
