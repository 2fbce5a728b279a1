"""The values and the roles: what is passed around, and who may pass it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

from pydantic import JsonValue

from branchwise.core.config import Sampling
from branchwise.core.errors import SpecError, VerifierError

if TYPE_CHECKING:
    from branchwise.core.node import Node

Json: TypeAlias = JsonValue
Finish: TypeAlias = Literal["end", "stop", "length", "tools", "filter"]


@dataclass(frozen=True, slots=True)
class Usage:
    """What something cost; adds up with `+`.

    Args:
        calls: model calls.
        prompt: tokens read, without those that a cache held.
        cached: tokens read that a cache held.
        completion: tokens written.
        seconds: time the model spent, in seconds.
        dollars: price in US dollars.

    Example:
        >>> (Usage(calls=1, completion=7) + Usage(calls=1, completion=5)).completion
        12
    """

    calls: int = 0
    prompt: int = 0
    cached: int = 0
    completion: int = 0
    seconds: float = 0.0
    dollars: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.calls + other.calls,
            self.prompt + other.prompt,
            self.cached + other.cached,
            self.completion + other.completion,
            self.seconds + other.seconds,
            self.dollars + other.dollars,
        )


FREE = Usage()


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool that a model asks for.

    Args:
        id: the name that the answer to the call must carry.
        name: the tool.
        arguments: the arguments as the model wrote them: JSON text, not yet checked.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that a model may call.

    Args:
        name: what the model calls it by.
        description: what it does, for the model to read.
        parameters: the JSON schema of its arguments.
    """

    name: str
    description: str
    parameters: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat.

    Args:
        role: who speaks.
        content: the text.
        tool_calls: the calls that an assistant asks for.
        tool_call_id: the call that a tool's message answers.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """What is asked.

    Args:
        prompt: the question.
        target: the right answer, for grading. It is hidden from policies and from the verifiers of
            a search: `solve` hands them `hidden()` unless it is told `oracle=True`.
        meta: anything else the data set says (level, tests, an id).

    Example:
        >>> Task("1 + 1?", target="2").hidden().target is None
        True
    """

    prompt: str
    target: str | None = None
    meta: Mapping[str, Json] = field(default_factory=dict[str, "Json"])

    def hidden(self) -> Task:
        """The same task without its target."""
        return Task(self.prompt, None, self.meta)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token that could have been drawn in some place.

    Args:
        token: its id; -1 where a server does not tell it.
        text: what it adds to the text so far: nothing where it ends the answer; it ends in U+FFFD
            where it leaves a character incomplete.
        logprob: the natural logarithm of its probability under the model: at temperature 1, before
            all adapters (penalties, temperature, truncation). Servers differ in whether they tell
            it before or after these: at temperature 1 with nothing else on, it is the same.
        proposal: the same after all adapters; None where they cut it, or a server does not tell it.
    """

    token: int
    text: str
    logprob: float
    proposal: float | None


@dataclass(frozen=True, slots=True)
class Step:
    """One thing said: a token, a line, an action or a whole answer.

    Args:
        text: what was said. Where a stop string ended it, the text runs to the end of the token
            that completed the stop string.
        tokens: the model's token ids, where the backend knows them; never tokenised again.
        logprob: the natural logarithm of the probability of the text under the model: at
            temperature 1, before all adapters, summed over its tokens; None where it is not known.
        logprobs: the same for each token; empty where it is not known.
        proposals: the same for each token after all adapters: under the distribution that it was
            drawn from, as importance weights need it; empty where it is not known.
        candidates: for each token the most probable ones in its place, as many as were asked for.
        finish: why it ended: `end` (the model ended its answer), `stop` (a stop string, or a
            server that does not tell the two apart), `length` (`max_tokens`), `tools` (it calls
            tools), `filter` (the server withheld the rest).
        usage: what this step cost; the prompt of a call for several samples counts on the first.
        tool_calls: the tools it calls.

    Example:
        >>> Step("4", finish="end").text
        '4'
    """

    text: str
    tokens: tuple[int, ...] = ()
    logprob: float | None = None
    logprobs: tuple[float, ...] = ()
    finish: Finish = "end"
    usage: Usage = FREE
    tool_calls: tuple[ToolCall, ...] = ()
    proposals: tuple[float, ...] = ()
    candidates: tuple[tuple[Candidate, ...], ...] = ()


def joined(steps: Sequence[Step], *, finish: Finish, usage: Usage) -> Step:
    """Several steps as one: texts and tokens follow one another, log-probabilities add up.

    Args:
        steps: what was said, in order.
        finish: why the whole ended.
        usage: what the whole cost, which its parts need not add up to.

    Example:
        >>> joined([Step("1 "), Step("2")], finish="end", usage=FREE).text
        '1 2'
    """
    logprobs = [step.logprob for step in steps if step.logprob is not None]
    whole = all(step.tokens or not step.text for step in steps)  # else a part would be missing
    told = all(len(step.logprobs) == len(step.tokens) for step in steps)
    return Step(
        "".join(step.text for step in steps),
        tokens=tuple(token for step in steps for token in step.tokens) if whole else (),
        logprob=math.fsum(logprobs) if len(logprobs) == len(steps) else None,
        logprobs=tuple(each for step in steps for each in step.logprobs) if whole and told else (),
        finish=finish,
        usage=usage,
    )


@dataclass(frozen=True, slots=True)
class State:
    """Where the world stands after a step.

    Args:
        snapshot: the world itself; opaque to all but its environment. A JSON value where the tree
            shall be saved and grown further.
        observation: what the policy gets to see.
        reward: what the last step earned; the score of the node where no verifier is in charge.
        done: whether the world accepts no further step.
        cut: whether it was stopped before it was done (a horizon, a length limit).
        answer: what voting, grading and MBR look at; None where there is none.
        results: what each tool call of the last step came to, in order; empty where it had none.
        tools: what may be called here; empty where the world has no tools.
    """

    snapshot: object = None
    observation: str = ""
    reward: float = 0.0
    done: bool = False
    cut: bool = False
    answer: str | None = None
    results: tuple[str, ...] = ()
    tools: tuple[Tool, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier says of a node.

    Args:
        score: a finite number; higher is better.
        feedback: what a refinement may read.
        detail: a word for how the score came about (`equal`, `timeout`, ...).
        usage: what the verdict cost, where a model gave it.
        steps: the scores of the steps that the node's own text consists of, in order, from a
            verifier that looks at each; `score` is then made of them. Empty from all others.
    """

    score: float
    feedback: str = ""
    detail: str = ""
    usage: Usage = FREE
    steps: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a policy asks of a backend: samples, one for each seed.

    Exactly one of `messages`, `prompt` and `tokens` says what the model reads.

    Args:
        messages: a chat; the backend renders the model's template.
        prompt: plain text.
        tokens: token ids.
        said: the answer so far, which the model continues; tokens that the steps carry are used as
            they are, so that a continued answer is never tokenised again.
        seeds: one sample for each; the same request and seed give the same sample where the
            backend can promise it.
        sampling: how tokens are drawn.
        stop: strings that end a sample.
        max_tokens: the most tokens of one sample.
        logprobs: whether the log-probabilities of the sampled tokens are wanted.
        candidates: how many of the most probable tokens are wanted in each place.
        tools: what the model may call.
        schema: the JSON schema that the sample must follow.

    Raises:
        SpecError: none or several of `messages`, `prompt` and `tokens` are given, or no seed is.

    Example:
        >>> Request(prompt="2 + 2 =", seeds=(1, 2)).max_tokens
        256
    """

    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    tokens: tuple[int, ...] | None = None
    said: tuple[Step, ...] = ()
    seeds: tuple[int, ...] = (0,)
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    max_tokens: int = 256
    logprobs: bool = True
    candidates: int = 0
    tools: tuple[Tool, ...] = ()
    schema: Mapping[str, Json] | None = None

    def __post_init__(self) -> None:
        if bool(self.messages) + (self.prompt is not None) + (self.tokens is not None) != 1:
            msg = "a request needs exactly one of messages, prompt and tokens"
            raise SpecError(msg)
        if not self.seeds:
            msg = "a request needs at least one seed"
            raise SpecError(msg, hint="one sample is drawn for each seed")

    @property
    def asked(self) -> str:
        """The text of the question: the prompt, or the last message that is not the model's."""
        if self.prompt is not None:
            return self.prompt
        others = [message for message in self.messages if message.role != "assistant"]
        return others[-1].content if others else ""

    @property
    def so_far(self) -> str:
        """The text of the answer that the model continues."""
        return "".join(step.text for step in self.said)


@runtime_checkable
class Backend(Protocol):
    """A model: turns a request into samples."""

    @property
    def name(self) -> str:
        """What names the model and everything that changes its answers; a journal's key."""
        ...

    async def complete(self, request: Request) -> Sequence[Step]:
        """One step for each seed of the request, in order.

        Raises:
            BackendError: the call failed after its retries, for some or all seeds; `arrived` holds
                the samples of the others.
        """
        ...


@dataclass(frozen=True, slots=True)
class Reading:
    """What a model makes of a step that it was given to read.

    Args:
        tokens: the step's.
        logprobs: the log-probability of each token, at temperature 1, given all before it; empty
            where states or words are asked for, or the model has a value head or no language head.
        values: what the model's value head says after the last token, one number for each of its
            labels; empty where it has none.
        state: of the model's last layer after the last token, where it was asked for.
        words: the log-probability, at temperature 1, of each of the words that were asked for as
            the next token; empty where none was.
        usage: what reading it cost.

    Example:
        >>> Reading((5, 6), (-1.0, -0.5)).logprob
        -1.5
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    values: tuple[float, ...] = ()
    state: tuple[float, ...] = ()
    words: tuple[float, ...] = ()
    usage: Usage = FREE

    @property
    def logprob(self) -> float | None:
        """Of the whole step; None where those of its tokens are not told."""
        return math.fsum(self.logprobs) if self.logprobs else None


@runtime_checkable
class Scoring(Protocol):
    """A model that judges what it is given instead of writing: what reward models are made of."""

    async def read(
        self,
        request: Request,
        *,
        since: int = 0,
        state: bool = False,
        words: Sequence[str | int] = (),
    ) -> Sequence[Reading]:
        """What the model makes of the steps in `request.said`, in order.

        Where nothing was said there is one reading, of no tokens: what the model makes of the
        question. A chat whose last message is the assistant's is read as a finished one.

        Args:
            request: the question and the answer so far; its sampling, seeds and limits count for
                nothing.
            since: the first step to judge; those before it are read as part of the question.
            state: whether the model's states are wanted.
            words: tokens, by their text or their id, of which it is wanted how probable they are
                after each step.

        Raises:
            SpecError: the model or its server cannot do what is asked.
            BackendError: the text does not fit the model, or the model failed.
        """
        ...


@runtime_checkable
class Policy(Protocol):
    """Proposes the next steps of a node: a generator g(y | x) of Welleck et al. 2024, §2."""

    async def propose(self, node: Node, seeds: Sequence[int]) -> Sequence[Step]:
        """At most one step for each seed.

        Raises:
            BackendError: no step could be had.
        """
        ...


@runtime_checkable
class Bounded(Protocol):
    """A policy that can say in advance what its samples may cost at most."""

    def bound(self, n: int) -> Usage:
        """The most that `n` samples under one node may cost: a budget reserves it."""
        ...


class Environment(Protocol):
    """A world as functions of its state: to backtrack is to step from an older state.

    `instant` says that `step` never waits, so that siblings are stepped in a plain loop.
    """

    instant: ClassVar[bool] = False

    async def reset(self, task: Task) -> State:
        """The state in which the task begins."""
        ...

    async def step(self, state: State, action: Step) -> State:
        """The state that the action leads to; `state` itself stays as it is.

        Raises:
            WorldError: the action could not be carried out at all.
        """
        ...


@runtime_checkable
class Verifier(Protocol):
    """Judges nodes."""

    async def score(self, nodes: Sequence[Node]) -> Sequence[Verdict | VerifierError]:
        """One verdict for each node, in order; an error in the place of a node that has none.

        Raises:
            VerifierError: none of the nodes could be judged.
        """
        ...


@runtime_checkable
class Preference(Protocol):
    """Compares nodes in pairs: what tournaments ask."""

    async def prefer(
        self, pairs: Sequence[tuple[Node, Node]], seeds: Sequence[int]
    ) -> Sequence[Verdict | VerifierError]:
        """One verdict for each pair, in order; an error in the place of a pair that has none.

        A verdict's score is the probability, in [0, 1], that the pair's first node is the better.

        Args:
            pairs: what to compare; a pair that stands there several times is judged as often.
            seeds: one for each pair: a judge that draws its votes draws each by its seed.

        Raises:
            VerifierError: none of the pairs could be compared.
            BackendError: no later comparison can succeed either (`fatal`).
        """
        ...


class Expand(Protocol):
    """The one verb: grow children under nodes."""

    async def __call__(
        self, nodes: Sequence[Node], n: int | Sequence[int] = 1, *, by: str = "policy"
    ) -> list[Node]:
        """Children of all nodes, in the order of `nodes`.

        What a controller gets leaves out the children that failed: they are in the tree only.

        Args:
            nodes: the parents.
            n: how many children each gets, or a number for each.
            by: the name of the policy that proposes them.

        Raises:
            Exhausted: the budget is spent.
            SearchFailed: no call succeeds any more.
        """
        ...
