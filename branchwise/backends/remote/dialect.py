"""How one server wants to be spoken to: what it needs beyond the standard, what it refuses."""

from __future__ import annotations

import re
from dataclasses import dataclass

from branchwise.core.types import Json, Request


@dataclass(frozen=True, slots=True)
class Flavour:
    """What sets a family of servers apart.

    Args:
        complete: it takes `top_k` and `min_p`, and fills what a call leaves out with defaults of
            its own, so that all of the sampling must be said.
        always: fields that make its replies say more.
        at_stop: the same, for calls with stop strings.
        one_by_one: it says only for the first sample of a call which stop string ended it.
    """

    complete: bool = False
    always: tuple[tuple[str, Json], ...] = ()
    at_stop: tuple[tuple[str, Json], ...] = ()
    one_by_one: bool = False


# The keys are what the servers write into `owned_by` of their models.
FLAVOURS = {
    "vllm": Flavour(
        complete=True,
        always=(("repetition_penalty", 1.0), ("return_token_ids", True)),
        at_stop=(("include_stop_str_in_output", True),),
    ),
    "sglang": Flavour(
        complete=True,
        always=(("repetition_penalty", 1.0),),
        at_stop=(("no_stop_trim", True),),
    ),
    "llamacpp": Flavour(complete=True, at_stop=(("verbose", True),), one_by_one=True),
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
        """The fields beyond the standard that this request needs here."""
        extras: dict[str, Json] = dict(self.flavour.always)
        if request.stop:
            extras |= dict(self.flavour.at_stop)
        if self.flavour.complete or request.sampling.top_k:
            extras["top_k"] = request.sampling.top_k or -1  # what all of them read as "all"
        if self.flavour.complete or request.sampling.min_p:
            extras["min_p"] = request.sampling.min_p
        return extras

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
        extra = {name for name, _ in (*self.flavour.always, *self.flavour.at_stop)}
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
            if name in _OPTIONAL or name in extra or (value == 1 and name in _DEFAULT_ONE):
                self._dropped.add(name)
                return f"the server refuses `{name}`: it is left out"
        return None
