"""What a run is: model, policy, world, verifiers, strategies, data and budget, in one file."""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ForwardRef, TypeAlias, cast, get_args

from pydantic import (
    BeforeValidator,
    Field,
    TypeAdapter,
    ValidationError,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic import ValidatorFunctionWrapHandler as Handler
from pydantic_core import ErrorDetails

from branchwise.agents.chat import Asking, Chat
from branchwise.agents.chooser import Chooser
from branchwise.agents.code_act import CodeAct
from branchwise.agents.next_token import NextToken
from branchwise.agents.react import ReAct
from branchwise.agents.reviser import Reviser
from branchwise.agents.router import Router
from branchwise.agents.tool_user import ToolUser
from branchwise.agents.tournament import Tournament
from branchwise.backends.hf import HF
from branchwise.backends.openai import OpenAI
from branchwise.core.around import Budget
from branchwise.core.config import Config
from branchwise.core.errors import SpecError, suggestion
from branchwise.core.types import Backend, Json, Policy, Request, Step
from branchwise.environments.adapters.aviary import Aviary
from branchwise.environments.adapters.gymnasium import Gymnasium
from branchwise.environments.adapters.mcp import MCP
from branchwise.environments.adapters.openenv import OpenEnv
from branchwise.environments.adapters.textworld import TextWorld
from branchwise.environments.blocksworld import Blocksworld
from branchwise.environments.command_line import CommandLine
from branchwise.environments.countdown import Countdown
from branchwise.environments.game24 import Game24
from branchwise.environments.grid import Grid
from branchwise.environments.math import Math
from branchwise.environments.program_aided import ProgramAided
from branchwise.environments.python_repl import PythonREPL
from branchwise.environments.python_tests import PythonTests
from branchwise.environments.tools import Tools
from branchwise.environments.workspace import Workspace
from branchwise.environments.writing import Text, Writing
from branchwise.runs.dataset import Data
from branchwise.sandbox.bubblewrap import Bubblewrap
from branchwise.sandbox.container import Container
from branchwise.sandbox.unconfined import Unconfined
from branchwise.search import AnyController
from branchwise.solve import Unique
from branchwise.verifiers.aggregate import Aggregate
from branchwise.verifiers.agreement import Agreement
from branchwise.verifiers.arithmetic import Arithmetic
from branchwise.verifiers.behaviour import Behaviour
from branchwise.verifiers.blend import Blend
from branchwise.verifiers.calibrated import Calibrated
from branchwise.verifiers.cascade import Cascade, Stage
from branchwise.verifiers.channel import NoisyChannel
from branchwise.verifiers.command import Command
from branchwise.verifiers.critic import Critic
from branchwise.verifiers.ensemble import Ensemble
from branchwise.verifiers.exact import Exact
from branchwise.verifiers.generative import GenRM, GenRMCoT
from branchwise.verifiers.geometric import Geometric
from branchwise.verifiers.implicit import ImplicitReward
from branchwise.verifiers.judge import Judge
from branchwise.verifiers.learned import Learned
from branchwise.verifiers.likelihood import Likelihood
from branchwise.verifiers.math_equal import MathEqual
from branchwise.verifiers.outcome import OutcomeReward
from branchwise.verifiers.pairwise import Pairwise
from branchwise.verifiers.pattern import Pattern
from branchwise.verifiers.process import ProcessReward
from branchwise.verifiers.product import Product
from branchwise.verifiers.reasoning_gym import ReasoningGym
from branchwise.verifiers.reward import Reward
from branchwise.verifiers.schema import Schema
from branchwise.verifiers.self_evaluation import SelfEvaluation
from branchwise.verifiers.unit_tests import UnitTests

Table: TypeAlias = dict[str, Json]


class Unopened:
    """Stands in a part for the model or the sandbox until the run opens it."""

    name = "unopened"

    async def complete(self, request: Request) -> Sequence[Step]:
        """Refuse.

        Raises:
            SpecError: always.
        """
        raise SpecError(f"the model has not been opened: {request.asked[:40]!r} cannot be answered")


UNOPENED = Unopened()


class _Part:
    """Takes somebody else's part, `kind = "their_pkg.module:Class"`; all else goes to the union.

    Args:
        verb: the method that makes it a part of this kind.
        opens: whether it may have resources, so that what it opens has the method.
    """

    def __init__(self, verb: str, *, opens: bool = False) -> None:
        self.verbs = (verb, "open") if opens else (verb,)

    def __call__(self, value: object, handler: Handler) -> object:
        table = cast("Mapping[str, object]", value) if isinstance(value, Mapping) else {}
        inner = table.get("search")
        if self._is_outside(inner):  # `until` takes any controller, but only as an object
            return handler({**table, "search": self._loaded(cast("Mapping[str, object]", inner))})
        return self._loaded(table) if self._is_outside(table) else handler(value)

    def _is_outside(self, value: object) -> bool:
        kind = cast("Mapping[str, object]", value).get("kind") if isinstance(value, Mapping) else ""
        return isinstance(kind, str) and ":" in kind

    def _loaded(self, table: Mapping[str, object]) -> object:
        kind = str(table["kind"])
        module, _, name = kind.partition(":")
        try:
            part = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"cannot load {kind!r}: {error}") from error
        fields = {field: value for field, value in table.items() if field != "kind"}
        if isinstance(part, type) and issubclass(part, Config):
            if "backend" not in part.model_fields:
                fields.pop("backend", None)
            fields = {**_stand_ins(part), **_own_model(part, fields)}
        try:
            made = part(**fields)
        except TypeError as error:
            raise ValueError(f"cannot make {kind!r}: {error}") from error
        if not any(hasattr(made, verb) for verb in self.verbs):
            raise ValueError(f"{kind!r} does not fit here: it has no `{'` or `'.join(self.verbs)}`")
        return made


def _stand_ins(part: type[Config]) -> dict[str, object]:
    """What a part needs that only the run can open."""
    return {name: UNOPENED for name in ("backend", "sandbox") if name in part.model_fields}


class _Ranking(Tournament):
    """A tournament whose comparisons the run's model makes: `prefer` has the fields of `Pairwise`.

    Args:
        prefer: what compares two answers.
    """

    prefer: Annotated[Pairwise, WrapValidator(_Part("prefer"))] = Field(  # pyright: ignore[reportIncompatibleVariableOverride]  (frozen)
        exclude=True, repr=False
    )

    @model_validator(mode="before")
    @classmethod
    def _opened(cls, table: object) -> object:
        """The model is that of the comparisons."""
        if not isinstance(table, Mapping):
            return table
        rest = dict(cast("Mapping[str, object]", table))
        prefer, backend = rest.pop("prefer", {}), rest.pop("backend", None)
        asked = {**prefer, "backend": backend} if isinstance(prefer, Mapping) else prefer
        return {**rest, "prefer": asked}


AnyModel = Annotated[
    Annotated[HF | OpenAI, Field(discriminator="kind")],
    WrapValidator(_Part("complete", opens=True)),
]
_Policy = Chat | ToolUser | ReAct | CodeAct | Reviser | NextToken | Chooser | _Ranking


class _Routing(Router):
    """A router whose policies all ask the run's model.

    Args:
        policies: by name.
    """

    policies: dict[  # pyright: ignore[reportIncompatibleVariableOverride]  (frozen)
        str,
        Annotated[Annotated[_Policy, Field(discriminator="kind")], WrapValidator(_Part("propose"))],
    ] = Field(exclude=True, repr=False)

    @model_validator(mode="before")
    @classmethod
    def _opened(cls, table: object) -> object:
        """The model is that of each policy."""
        if not isinstance(table, Mapping):
            return table
        rest = dict(cast("Mapping[str, object]", table))
        backend, policies = rest.pop("backend", None), rest.get("policies")
        if isinstance(policies, Mapping):
            rest["policies"] = {
                name: {"kind": "chat", **one, "backend": backend}
                if isinstance(one, Mapping)
                else one
                for name, one in cast("Mapping[str, object]", policies).items()
            }
        return rest


POLICIES = (*get_args(_Policy), _Routing)
AnyPolicy = Annotated[
    Annotated[_Policy | _Routing, Field(discriminator="kind")],
    WrapValidator(_Part("propose")),
]
_World = (
    Writing
    | Math
    | PythonTests
    | PythonREPL
    | ProgramAided
    | Workspace
    | CommandLine
    | Tools
    | Game24
    | Countdown
    | Blocksworld
    | Grid
    | Gymnasium
    | Aviary
    | TextWorld
    | OpenEnv
    | MCP
)


class _Stage(Stage):
    """A stage whose verifier is any that a spec can name."""

    verifier: AnyVerifier = Field(exclude=True, repr=False)  # pyright: ignore[reportIncompatibleVariableOverride]  (frozen)


class _Cascade(Cascade):
    """A cascade of any verifiers."""

    stages: Annotated[tuple[_Stage, ...], Field(min_length=2)]  # pyright: ignore[reportIncompatibleVariableOverride]  (frozen)


class _Ensemble(Ensemble):
    """An ensemble of any verifiers."""

    members: Verifiers = Field(exclude=True, repr=False)  # pyright: ignore[reportIncompatibleVariableOverride]  (frozen)


class _Calibrated(Calibrated):
    """Any verifier, calibrated."""

    of: AnyVerifier = Field(exclude=True, repr=False)  # pyright: ignore[reportIncompatibleVariableOverride]  (frozen)


_Verifier = (
    Likelihood
    | Arithmetic
    | MathEqual
    | Exact
    | Agreement
    | NoisyChannel
    | UnitTests
    | Behaviour
    | Command
    | Pattern
    | Schema
    | ProcessReward
    | OutcomeReward
    | ImplicitReward
    | Learned
    | GenRM
    | GenRMCoT
    | Critic
    | SelfEvaluation
    | Judge
    | _Cascade
    | _Ensemble
    | _Calibrated
)


def _stood_in(value: object) -> object:
    """A world or a verifier, with something in the place of what the run will open for it."""
    if not isinstance(value, Mapping):
        return value
    table = cast("Mapping[str, object]", value)
    for part in (*get_args(_World), *get_args(_Verifier)):
        if table.get("kind") == _kind_of(part):
            return {**_stand_ins(part), **_own_model(part, table)}
    return table


MODELS = ("reference", "head")
"""The fields of verifiers that hold a model beside the one that they ask."""


def _own_model(part: type[Config], table: Mapping[str, object]) -> Mapping[str, object]:
    """The table of a part; a `model` in it is what it asks, instead of the run's."""
    fields = {"backend" if name == "model" else name: value for name, value in table.items()}
    if "model" in part.model_fields or "backend" not in part.model_fields:
        fields = dict(table)
    for name in ("backend", *MODELS):
        if name in part.model_fields and isinstance(fields.get(name), Mapping):
            fields[name] = _model.validate_python(fields[name])
    return fields


AnyWorld = Annotated[
    Annotated[_World, Field(discriminator="kind")],
    BeforeValidator(_stood_in),
    WrapValidator(_Part("step", opens=True)),
]
AnyVerifier = Annotated[
    Annotated[_Verifier, Field(discriminator="kind")],
    BeforeValidator(_stood_in),
    WrapValidator(_Part("score", opens=True)),
]
AnyGrader = Annotated[
    Annotated[
        MathEqual | Exact | UnitTests | Command | ReasoningGym | Reward, Field(discriminator="kind")
    ],
    BeforeValidator(_stood_in),
    WrapValidator(_Part("score", opens=True)),
]


def _sandbox(value: object) -> object:
    """A sandbox by its kind alone, as in `sandbox = "bubblewrap"`."""
    return {"kind": value} if isinstance(value, str) else value


AnySandbox = Annotated[
    Annotated[Bubblewrap | Container | Unconfined, Field(discriminator="kind")],
    BeforeValidator(_sandbox),
    WrapValidator(_Part("run", opens=True)),
]


def _named(value: object) -> object:
    """Verifiers by name; one alone and those in a list are called by their kinds."""
    if isinstance(value, Mapping) and "kind" not in value:
        entries = list(cast("Mapping[str, object]", value).items())
    elif isinstance(value, Sequence) and not isinstance(value, str):
        entries = [("", entry) for entry in cast("Sequence[object]", value)]
    else:
        entries = [("", value)]
    named: dict[str, object] = {}
    for given, entry in entries:
        if not isinstance(entry, Mapping) or not isinstance(entry.get("kind"), str):
            raise ValueError("a verifier is a table with a `kind`")  # noqa: TRY004  (pydantic's)
        name = given or ("verifier" if ":" in entry["kind"] else entry["kind"])
        if name in named:
            raise ValueError(
                f"two verifiers would be called {name!r}: name them, as in "
                "verifier = { first = { kind = ... }, second = { kind = ... } }"
            )
        named[name] = entry
    return named


Verifiers = Annotated[dict[str, AnyVerifier], BeforeValidator(_named)]
AnyRank = Annotated[
    Annotated[Aggregate | Blend | Geometric | Product, Field(discriminator="kind")],
    WrapValidator(_Part("__call__")),
]
AnySearch = Annotated[AnyController, WrapValidator(_Part("grow"))]


class Strategy(Config):
    """One way to spend compute, to be compared with others.

    Args:
        name: what tables call it.
        search: the controller.
        policy: changes to the run's policy, for this strategy alone.
        policies: further policies by the names that the search asks for (`by`). A `reviser`, or
            any other that asks as a chat does, begins with this strategy's policy.
        verifier: what judges nodes, for this strategy alone.
        rank: how verdicts become scores, where the first verifier's word is not it.
        budget: the most that one problem may spend, instead of the run's budget.
        unique: hide copies from the controller: of `siblings` that say the same, or of `states`
            that the tree has reached before.
        horizon: the most steps of an answer.
    """

    name: str = Field(min_length=1, pattern=r"^[\w.,+ -]+$")
    search: AnySearch
    policy: Table = Field(default_factory=dict)
    policies: dict[str, Table] = Field(default_factory=dict)
    verifier: Verifiers | None = None
    rank: AnyRank | None = None
    budget: Budget | None = None
    unique: Unique | None = None
    horizon: int = Field(default=100, ge=1)


class Parts(Config):
    """What every search needs.

    Args:
        model: the backend, with its `kind`.
        policy: how a node becomes a prompt; its `kind` is `chat` where none is given.
        environment: the world.
        verifier: what judges nodes during the search: one, a list, or several by name, where
            those without a name are called by their kind; the first one's word is the
            score; without one, the world's rewards are.
        budget: the most that one problem may spend with one strategy.
        sandbox: where programs run that the model has written, opened where a part asks for one.
        seed: of everything.
    """

    model: AnyModel
    policy: Table = Field(default_factory=dict)
    environment: AnyWorld = Math()
    verifier: Verifiers = Field(default_factory=dict)
    budget: Budget = Budget()
    sandbox: AnySandbox = Bubblewrap()
    seed: int = 0

    def policies_of(self, strategy: Strategy, backend: Backend) -> dict[str, Policy]:
        """The policies of one strategy by name; `policy` is the one used by default.

        Raises:
            pydantic.ValidationError: a field is wrong.
        """
        table = {"kind": "chat", **_merged(self.policy, strategy.policy)}
        policies = {"policy": _policy.validate_python({**table, "backend": backend})}
        asks = {field: value for field, value in table.items() if field in Asking.model_fields}
        for name, own in strategy.policies.items():
            under = asks if own.get("kind") in _ASKING else {}
            policies[name] = _policy.validate_python({**_merged(under, own), "backend": backend})
        return policies


class Question(Parts):
    """One question and one strategy.

    Args:
        strategy: how to search.
    """

    strategy: Strategy


class Spec(Parts):
    """A run: every problem of the data with every strategy.

    Args:
        name: what the run is called.
        grader: what compares answers with targets, after the search.
        strategies: what to compare; the first is the baseline.
        data: the problems.
        concurrency: how many searches are in flight at once, over all problems and strategies.
        oracle: let policies and verifiers see the targets. The report then says so.
    """

    name: str = "run"
    grader: AnyGrader = MathEqual()
    strategies: Annotated[tuple[Strategy, ...], Field(min_length=1)]
    data: Data
    concurrency: int = Field(default=64, ge=1)
    oracle: bool = False

    @field_validator("strategies")
    @classmethod
    def _names_differ(cls, strategies: tuple[Strategy, ...]) -> tuple[Strategy, ...]:
        names = [strategy.name for strategy in strategies]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two strategies are called {name!r}; names have to differ")
        return strategies


def _kind_of(model: type[Config]) -> object:
    kind = model.model_fields.get("kind")
    return None if kind is None else kind.default


_policy: TypeAdapter[Policy] = TypeAdapter(AnyPolicy)
_model: TypeAdapter[object] = TypeAdapter(AnyModel)
_ASKING = [_kind_of(policy) for policy in POLICIES if issubclass(policy, Asking)]


def _merged(under: Table, over: Table) -> Table:
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            merged[key] = _merged(below, value)
        else:
            merged[key] = value
    return merged


def read(path: Path, changes: Sequence[str] = ()) -> Table:
    """The table of a spec file, with changes.

    Args:
        path: a TOML file.
        changes: `a.b=c`, as on the command line; lists take an index or a strategy's name.

    Raises:
        SpecError: the file cannot be read, or a change does not fit it.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"{path}: cannot read the spec: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: not a TOML file: {error}") from error
    change(table, changes)
    return table


def parse(table: Table, source: Path) -> Spec:
    """The spec that a table describes.

    Args:
        table: the fields.
        source: the file it comes from; relative paths in it are relative to this file's folder.

    Raises:
        SpecError: a field is wrong; one line names the file, the field and the fix.
    """
    try:
        spec = Spec.model_validate(table, context={"folder": source.parent})
    except ValidationError as error:
        raise SpecError(f"{source}: {explain(error, Spec)}") from error
    for i, strategy in enumerate(spec.strategies):
        _check(spec, strategy, f"strategies.{i}.", f"{source}: ")
    made = spec.data.path.startswith("reasoning-gym:") or "reasoning_gym" in spec.data.meta
    if isinstance(spec.grader, ReasoningGym) and not made:
        raise SpecError(
            f"{source}: grader: reasoning-gym grades problems that it has made: "
            "data.path = reasoning-gym:FAMILY"
        )
    return spec.model_copy(update={"data": spec.data.within(source.parent)})


def question(table: Table) -> Question:
    """The question that a table describes, from the command line.

    Raises:
        SpecError: a field is wrong; one line names the field and the fix.
    """
    try:
        asked = Question.model_validate(table)
    except ValidationError as error:
        raise SpecError(explain(error, Question)) from error
    _check(asked, asked.strategy, "strategy.", "")
    return asked


def _check(parts: Parts, strategy: Strategy, where: str, source: str) -> None:
    """Find out before anything is spent whether the parts of a strategy fit together.

    Raises:
        SpecError: they do not.
    """
    alone = strategy.model_copy(update={"policies": {}})
    builds = [(f"{where}policy" if strategy.policy else "policy", alone)]
    for name, table in strategy.policies.items():
        one = strategy.model_copy(update={"policies": {name: table}})
        builds.append((f"{where}policies.{name}", one))
    for path, build in builds:  # each on its own, so that a fault names its place
        try:
            policies = parts.policies_of(build, UNOPENED)
        except ValidationError as error:
            raise SpecError(f"{source}{explain(error, *POLICIES, below=path)}") from error
        policy = [*policies.values()][-1]
        if isinstance(policy, ToolUser | ReAct) and (world := type(parts.environment)) in _TOOLLESS:
            raise SpecError(
                f"{source}{path}: {policy.kind} calls tools, and the world {_kind_of(world)} has "
                "none: environment.kind = tools (or workspace, python-repl, mcp) has some"
            )
        if isinstance(policy, NextToken) and _cuts(parts.environment):
            raise SpecError(
                f"{source}{path}: next-token says one token at a time, which this world takes for "
                "an answer cut short: set environment.continue_at_length = true"
            )
    for fault in _misnamed(parts, strategy):
        raise SpecError(f"{source}{where}{fault}")


_TOOLLESS = frozenset[type](
    {
        Writing,
        Math,
        PythonTests,
        ProgramAided,
        CommandLine,
        Game24,
        Countdown,
        Blocksworld,
        Grid,
        Gymnasium,
        TextWorld,
    }
)


def _cuts(world: object) -> bool:
    return isinstance(world, Text) and not world.continue_at_length


def _misnamed(parts: Parts, strategy: Strategy) -> Iterator[str]:
    """What the strategy asks for by name and nobody is called."""
    policies = ["policy", *strategy.policies]
    verifiers = [*(parts.verifier if strategy.verifier is None else strategy.verifier)]
    for path, field, name in _names(strategy.search, "search"):
        if field in _BY and name not in policies:
            yield (
                f"{path}: no policy is called {name!r}{suggestion(name, policies)}; "
                f"policies.{name} = {{ kind = ... }} makes one"
            )
    for path, field, name in (*_names(strategy.search, "search"), *_names(strategy.rank, "rank")):
        if field in _OF and name not in verifiers and name not in {"text", "answer"}:
            there = suggestion(name, verifiers) or " (there is none)"
            yield f"{path}: no verifier is called {name!r}{there}"


def _names(part: object, path: str) -> Iterator[tuple[str, str, str]]:
    """The fields of our own parts that hold names: where they are, what they are called, a name."""
    if not isinstance(part, Config) or not type(part).__module__.startswith("branchwise."):
        return
    for field, value in part:
        here = f"{path}.{field}"
        yield from _names(value, here)
        if field in _BY | _OF:
            names = [value] if isinstance(value, str) else value
            if isinstance(names, (list, tuple, Mapping)):
                yield from ((here, field, str(name)) for name in cast("Sequence[object]", names))


_BY = frozenset({"by", "rollout_by", "policies"})
_OF = frozenset({"of", "reward", "value", "tests", "behaviour"})


def controllers() -> dict[str, type[AnyController]]:
    """Every controller of the package by its kind.

    Example:
        >>> controllers()["beam"].card.structure
        'step'
    """
    known = get_args(get_args(AnyController)[0])
    return {str(_kind_of(one)): one for one in known}


def explain(error: ValidationError, *models: type[Config], below: str = "") -> str:
    """One fault of a validation error in one line: the field, what is wrong, the fix.

    A misspelt field is two faults, one unknown and one missing: the unknown one tells more.
    """
    faults = error.errors(include_url=False)
    fault = next((f for f in faults if f["type"] == "extra_forbidden"), faults[0])
    path, about = _place(fault["loc"], models)
    fields = [name for one in about for name in one.model_fields]
    said = _said(fault, fields)
    # One value that is none of several types is as many faults, and the type ends their places.
    rest = [
        f for f in faults if f["loc"][:-1] == fault["loc"][:-1] and f["input"] is fault["input"]
    ]
    if len(rest) > 1 and fault["type"] not in {"missing", "extra_forbidden"}:
        path, said = path[:-1], f"{' or '.join(f['msg'] for f in rest)}, not {fault['input']!r}"
    if fault["type"] == "union_tag_invalid" and path[-1:] == [fault.get("ctx", {}).get("tag")]:
        path = path[:-1]  # a verifier that is called by its kind
    where = ".".join([*([below] if below else []), *path])
    return f"{where}: {said}" if where else said


def _place(
    location: tuple[int | str, ...], models: Sequence[type[Config]]
) -> tuple[list[str], list[type[Config]]]:
    """The path of a fault without the tags of unions, and the models it may be about."""
    path: list[str] = []
    here = list(models)
    for element in location:
        if tagged := [one for one in here if _kind_of(one) == element]:
            here = tagged
            continue
        path.append(str(element))
        for field in [one.model_fields[element] for one in here if element in one.model_fields]:
            # What stands for any controller or verifier inside one is the name of a type.
            known = field.annotation
            if isinstance(known, ForwardRef):
                known = AnyVerifier if "Verifier" in known.__forward_arg__ else AnySearch
            here = list(_models(known)) or here
    return path, [*here, Chat] if NextToken in here else here  # its fields stand beside a Chat's


def _models(annotation: object) -> Iterator[type[Config]]:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _said(fault: ErrorDetails, fields: Sequence[str]) -> str:
    context: Mapping[str, Any] = fault.get("ctx", {})
    match fault["type"]:
        case "extra_forbidden":
            wrong = str(fault["loc"][-1])
            return f"there is no such field{suggestion(wrong, fields)}"
        case "union_tag_invalid":
            kinds = [tag.strip("' ") for tag in str(context["expected_tags"]).split(",")]
            wrong = str(context["tag"])
            return f"unknown kind {wrong!r}{suggestion(wrong, kinds)}"
        case "union_tag_not_found":
            return "it needs a `kind`"
        case "missing":
            return "the field is missing"
        case "value_error":
            return str(context["error"])
        case _:
            return f"{fault['msg']}, not {fault['input']!r}"


def change(table: Table, changes: Sequence[str]) -> None:
    """Carry out changes of the form `a.b=c` on a table.

    Raises:
        SpecError: a change is not of this form, or there is no such place.
    """
    for one in changes:
        name, equals, text = one.partition("=")
        if not equals or not name:
            raise SpecError(f"--set {one}: not of the form a.b=c")
        try:
            value = cast("Json", tomllib.loads(f"value = {text}")["value"])
        except tomllib.TOMLDecodeError:
            value = text  # a word needs no quotes
        *path, last = name.strip().split(".")
        here: Json = table
        for step in path:
            if isinstance(here, dict):
                here = here.setdefault(step, {})
            elif isinstance(here, list):
                here = _entry(here, step, one)
        if not isinstance(here, dict):
            raise SpecError(f"--set {one}: there is no table {'.'.join(path)!r} in the spec")
        here[last] = value


def _entry(entries: list[Json], step: str, change: str) -> Json:
    """An entry of a list by its index or its name."""
    for i, entry in enumerate(entries):
        if step == str(i) or (isinstance(entry, dict) and step == entry.get("name")):
            return entry
    raise SpecError(f"--set {change}: the list has no entry {step!r}")
