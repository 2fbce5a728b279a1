"""How one server wants to be spoken to: what it needs beyond the standard, what it refuses."""

from __future__ import annotations

import re
from dataclasses import dataclass

from branchwise.core.config import ADAPTERS, Adapter, Sampling
from branchwise.core.errors import SpecError
from branchwise.core.types import Json, Request


@dataclass(frozen=True, slots=True)
class Flavour:
    """What sets a family of servers apart.

    Args:
        takes: the adapters that it has beyond OpenAI's, and what it calls them. It fills what a
            call leaves out with defaults of its own, so that all of them must be said.
        orders: it takes the order of its adapters.
        always: fields that make its replies say more.
        at_stop: the same, for calls with stop strings.
        at_penalty: fields that make its penalties look at all that their definitions say.
        one_by_one: it says only for the first sample of a call which stop string ended it.
    """

    takes: tuple[tuple[Adapter, str], ...] = ()
    orders: bool = False
    always: tuple[tuple[str, Json], ...] = ()
    at_stop: tuple[tuple[str, Json], ...] = ()
    at_penalty: tuple[tuple[str, Json], ...] = ()
    one_by_one: bool = False


_COMMON: tuple[tuple[Adapter, str], ...] = (
    ("top_k", "top_k"),
    ("min_p", "min_p"),
    ("repetition_penalty", "repetition_penalty"),
)
# The keys are what the servers write into `owned_by` of their models.
FLAVOURS = {
    "vllm": Flavour(
        takes=_COMMON,
        always=(("return_token_ids", True),),
        at_stop=(("include_stop_str_in_output", True),),
    ),
    "sglang": Flavour(takes=_COMMON, at_stop=(("no_stop_trim", True),)),
    "llamacpp": Flavour(
        takes=(
            ("top_k", "top_k"),
            ("min_p", "min_p"),
            ("repetition_penalty", "repeat_penalty"),
            ("frequency_penalty", "frequency_penalty"),
            ("presence_penalty", "presence_penalty"),
            ("typical_p", "typical_p"),
            ("top_n_sigma", "top_n_sigma"),
            ("mirostat", "mirostat"),
        ),
        orders=True,
        at_stop=(("verbose", True),),
        # So many tokens, not the last few alone; it keeps a list as long as this.
        at_penalty=(("repeat_last_n", 2**17),),
        one_by_one=True,
    ),
}

# What OpenAI's own interface has; the first two are in every call.
_STANDARD: tuple[Adapter, ...] = (
    "temperature",
    "top_p",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
)
# Where "off" is not the number that it is here.
_OFF: dict[Adapter, Json] = {"top_k": -1, "top_n_sigma": -1.0}
_PENALTIES: tuple[Adapter, ...] = (
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
)
_SHIFTS: tuple[Adapter, ...] = ("logit_bias", *_PENALTIES)
# What llama.cpp calls the steps of its chain; a bias comes first there, always.
_STEPS: dict[Adapter, str] = {
    "repetition_penalty": "penalties",
    "frequency_penalty": "penalties",
    "presence_penalty": "penalties",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical_p": "typ_p",
    "top_n_sigma": "top_n_sigma",
}

# A value of 1 is the default of these, so leaving it out changes nothing.
_DEFAULT_ONE = frozenset({"temperature", "top_p"})
# A field's name in quotes, or after the words of OpenAI's refusal.
_NAMED = "['\"`]{0}['\"`]|supplied: {0}\\b"
# As many samples a call as OpenAI takes.
_MOST = 128
_OPTIONAL = ("logprobs", "top_logprobs", "seed", "parallel_tool_calls")


class Dialect:
    """A server's flavour and what its replies have taught.

    Args:
        owner: what the server writes into `owned_by` of its models.

    Example:
        >>> Dialect("vllm").extras(Request(prompt="1 + 1 ="))["top_k"]
        -1
    """

    def __init__(self, owner: str = "") -> None:
        self.flavour = FLAVOURS.get(owner, Flavour())
        self._most = _MOST
        self._dropped: set[str] = set()
        self._renamed: dict[str, str] = {}

    def at_once(self, request: Request) -> int:
        """How many samples of the request one call may ask for."""
        # vLLM refuses several samples where all are the most probable one.
        alone = request.sampling.temperature == 0 or (request.stop and self.flavour.one_by_one)
        return 1 if alone else self._most

    def gives(self, samples: int) -> str | None:
        """What to do where the server gives fewer samples than asked for; None if it is known."""
        if samples >= self._most:
            return None
        self._most = samples
        if samples == 1:
            return "the server ignores `n`: samples are asked for one by one"
        return f"the server gives no more than {samples} samples a call: the rest is asked for anew"

    def extras(self, request: Request) -> dict[str, Json]:
        """The fields beyond those of every call that this request needs here.

        Raises:
            SpecError: the server is not known to draw as the request asks.
        """
        extras: dict[str, Json] = dict(self.flavour.always)
        if request.stop:
            extras |= dict(self.flavour.at_stop)
        return extras | self._sampling(request.sampling)

    def _sampling(self, sampling: Sampling) -> dict[str, Json]:
        names = dict(self.flavour.takes)
        applied: list[Adapter] = [
            name for name in sampling.applied if sampling.temperature or name in _SHIFTS
        ]
        for name in applied:
            if name not in names and name not in _STANDARD:
                raise _unknown(name)
        fields: dict[str, Json] = {}
        for name, called in names.items():
            value: Json = getattr(sampling, name)
            fields[called] = value if sampling.uses(name) else _OFF.get(name, value)
        for name in ("frequency_penalty", "presence_penalty"):
            if sampling.uses(name):
                fields[name] = getattr(sampling, name)
        if any(sampling.uses(name) for name in _PENALTIES):
            fields |= dict(self.flavour.at_penalty)
        if sampling.logit_bias:
            fields["logit_bias"] = {str(token): by for token, by in sampling.logit_bias.items()}
        if "mirostat" in applied:
            others = {"logit_bias", "temperature", "mirostat"}
            # llama.cpp's chain is then no more than these.
            if alien := next((name for name in applied if name not in others), None):
                raise _unknown(alien, " beside mirostat")
            fields["mirostat_tau"] = sampling.mirostat_tau
            fields["mirostat_eta"] = sampling.mirostat_eta
        return fields | self._order(applied)

    def _order(self, applied: list[Adapter]) -> dict[str, Json]:
        """The field that says in which order the adapters are applied, where there is one."""
        usual = [name for name in ADAPTERS if name in applied]
        if not self.flavour.orders or "mirostat" in applied:
            if applied != usual:
                raise _unknown("order")
            return {}
        steps = [_STEPS[name] for name in applied if name in _STEPS]
        chain = list(dict.fromkeys(steps))
        # Its penalties are one step, in the usual order, and what adds a bias is before all others.
        shifts = [name for name in applied if name in _SHIFTS]
        together = [step for i, step in enumerate(steps) if i == 0 or steps[i - 1] != step]
        if (
            shifts != [name for name in usual if name in _SHIFTS]
            or together != chain
            or "logit_bias" in applied[1:]
        ):
            raise _unknown("order")
        return {"samplers": list[Json](chain)} if len(chain) > 1 else {}

    def takes(self, name: str) -> bool:
        """Whether the server has not refused the field of this name."""
        return name not in self._dropped

    def spoken(self, body: dict[str, Json]) -> dict[str, Json]:
        """The body without what the server refuses."""
        return {
            self._renamed.get(key, key): value for key, value in body.items() if self.takes(key)
        }

    def learn(self, body: dict[str, Json], param: str | None, message: str) -> str | None:
        """What to change after a refusal that names a field of the request.

        Args:
            body: what was sent, before `spoken`.
            param: the field that the server names.
            message: what it says.

        Returns:
            The finding, for the user to read; None where nothing can be changed.
        """
        if "max_completion_tokens" in message and "max_tokens" not in self._renamed:
            self._renamed["max_tokens"] = "max_completion_tokens"
            return "the server wants `max_completion_tokens` for `max_tokens`"
        extra = {*self.flavour.always, *self.flavour.at_stop, ("repetition_penalty", 1.0)}
        for name, value in body.items():
            if name != param and not re.search(_NAMED.format(name), message):
                continue
            if not self.takes(name):
                continue
            if name == "n" and isinstance(value, int) and value > 1:
                if value > self._most:
                    continue
                self._most = value // 2
                return (
                    f"the server refuses {value} samples a call: at most {self._most} from now on"
                )
            optional = name in _OPTIONAL or (value == 1 and name in _DEFAULT_ONE)
            if optional or any(name == key and value == usual for key, usual in extra):
                self._dropped.add(name)
                return f"the server refuses `{name}`: it is left out"
        return None


def _unknown(field: str, where: str = "") -> SpecError:
    return SpecError(
        f"the server is not known to take `{field}` of the sampling{where}",
        hint="leave it out, or serve the model with another backend",
    )
