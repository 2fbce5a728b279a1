"""What policies and worlds share about tools: how one reads to a model, and whether a call fits."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, cast

from branchwise.core.errors import BranchError, SpecError, suggestion
from branchwise.core.types import Json, Tool, ToolCall

_FAULTS = 3
"""So many faults of a call are told: the rest follows from them more often than not."""
_FAULT = 200
_CHECKS = 10_000
"""So many keywords are checked at most: a schema that refers to itself can ask for any number."""
_LARGEST = 100_000
"""Characters of a schema at most."""


def described(tool: Tool) -> str:
    """A tool in a line or a few, as a model without a tool protocol reads it.

    Example:
        >>> a, b = {"type": "integer"}, {"type": "string", "description": "What for."}
        >>> schema = {"properties": {"a": a, "b": b}, "required": ["a"]}
        >>> print(described(Tool("pay", "Pays a sum.", schema)))
        - pay(a: integer, b?: string): Pays a sum.
          b: What for.
    """
    lines: list[str] = []
    signature: list[str] = []
    required = tool.parameters.get("required")
    needed = required if isinstance(required, list) else []
    for name, schema in parameters_of(tool).items():
        signature.append(f"{name}{'' if name in needed else '?'}: {_shape(schema)}")
        if isinstance(schema, dict) and schema.get("description"):
            lines.append(f"  {name}: {schema['description']}")
    head = f"- {tool.name}({', '.join(signature)})"
    return "\n".join([f"{head}: {tool.description}" if tool.description else head, *lines])


def parameters_of(tool: Tool) -> Mapping[str, Json]:
    """The schema of each of a tool's parameters, by name, in order."""
    properties = tool.parameters.get("properties")
    return properties if isinstance(properties, dict) else {}


def arguments_of(text: str) -> dict[str, Json] | str:
    """The arguments of a call as its model wrote them, or what is wrong with them.

    Nothing at all stands for no arguments. Numbers that are not finite and halves of characters,
    which JSON texts can be made to say, are wrong: nobody could be sent them.

    Example:
        >>> arguments_of('{"count": 2}'), arguments_of("[2]")
        ({'count': 2}, 'the arguments are no JSON object')
    """
    try:
        # Models write line breaks into strings as they are; nobody can mistake what they mean.
        value = cast(
            "Json",
            json.loads(text or "{}", strict=False, parse_constant=_refuse, parse_float=_finite),
        )
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        return f"the arguments are no JSON: {error}"
    return value if isinstance(value, dict) else "the arguments are no JSON object"


def given(call: ToolCall, tools: Sequence[Tool]) -> dict[str, Json] | str:
    """The arguments of a call of one of these tools, or what is wrong with it.

    Example:
        >>> tools = [Tool("add", "", {}), Tool("take", "", {})]
        >>> given(ToolCall("1", "ad", "{}"), tools)
        "there is no tool 'ad' (did you mean 'add'?)"
    """
    names = [tool.name for tool in tools]
    if call.name not in names:
        return f"there is no tool {call.name!r:.80}{suggestion(call.name, names)}"
    return arguments_of(call.arguments)


def validated(tool: Tool, arguments: str) -> dict[str, Json] | str:
    """The arguments of a call, or in a line what is wrong with them, for the model to read.

    They are checked against the tool's JSON schema (draft 2020-12). Nothing is converted and no
    default is filled in.

    Schemas come from strangers, so the time is bounded. Arguments that take more than 10,000 checks
    do not pass. Not checked are `patternProperties`, `unevaluatedProperties`, and a `pattern` that
    is long, or repeats more than two things or a group, or meets a long text.

    Args:
        tool: the tool that is called.
        arguments: as the model wrote them.

    Example:
        >>> schema = {"properties": {"count": {"type": "integer"}}, "required": ["count"]}
        >>> take = Tool("take", "Takes some.", schema)
        >>> validated(take, '{"count": 2}')
        {'count': 2}
        >>> validated(take, '{"count": "two"}')
        "count: 'two' is not of type 'integer'"
    """
    value = arguments_of(arguments)
    if isinstance(value, str):
        return value
    try:
        found = faults(tool.parameters, value)
    except SpecError as error:
        return f"the schema of {tool.name} is broken: {error}"
    except BranchError as error:
        return f"the arguments cannot be checked: {error}"
    return "; ".join(found) if found else value


def sound(schema: Mapping[str, Json]) -> str:
    """The text of a JSON schema (draft 2020-12).

    Raises:
        SpecError: it is none.
    """
    text = json.dumps(dict(schema))
    if broken := _broken(text):
        raise _no_schema(broken)
    return text


def faults(schema: Mapping[str, Json], value: Json, at: str = "") -> list[str]:
    """What is wrong with a value by a JSON schema, by its place; of many faults the first ones.

    The time is bounded, as it is for `validated`.

    Args:
        schema: of draft 2020-12; references lead to places in itself.
        value: made of JSON's types, and of finite numbers.
        at: what the value is called in the places.

    Raises:
        SpecError: the schema is broken.
        BranchError: it takes too long.

    Example:
        >>> faults({"items": {"type": "integer"}}, [1, "two"], at="answer")
        ["answer[1]: 'two' is not of type 'integer'"]
    """
    from referencing.exceptions import Unresolvable  # noqa: PLC0415  (slow to import)

    text = sound(schema)
    _left.set(_CHECKS)
    try:
        found = sorted(_validator()(json.loads(text)).iter_errors(value), key=_place)
    except (Unresolvable, RecursionError) as error:
        raise _no_schema(str(error)) from error
    except OverflowError as error:
        raise BranchError(str(error)) from error
    return [
        _at((at + _place(fault).removeprefix("$")).removeprefix("."), fault.message)
        for fault in found[:_FAULTS]
    ]


def _no_schema(why: str) -> SpecError:
    return SpecError(f"{why.splitlines()[0]:.{_FAULT}}")


def _place(fault: Any) -> str:
    return cast("str", fault.json_path)


_left: ContextVar[int] = ContextVar("_left")
"""How many more keywords may be checked."""


def _spend(count: int) -> None:
    _left.set(_left.get() - count)
    if _left.get() < 0:
        raise BranchError("it takes too long")


@lru_cache(maxsize=256)
def _broken(schema: str) -> str:
    """What is wrong with a schema: it is the same one at every call."""
    from jsonschema import Draft202012Validator  # noqa: PLC0415  (slow to import, seldom needed)
    from jsonschema.exceptions import SchemaError  # noqa: PLC0415

    if len(schema) > _LARGEST:
        return f"it has more than {_LARGEST} characters"
    try:
        Draft202012Validator.check_schema(json.loads(schema))
    except (SchemaError, RecursionError) as error:
        return str(error)
    return ""


@lru_cache(maxsize=1)
def _validator() -> Callable[[Mapping[str, Json]], Any]:
    """The validator of the package `jsonschema`, in bounded time."""
    from jsonschema import Draft202012Validator  # noqa: PLC0415  (slow to import, seldom needed)
    from jsonschema.validators import extend  # noqa: PLC0415

    known = cast("dict[str, _Keyword]", Draft202012Validator.VALIDATORS)
    checks = {name: _counted(name, check) for name, check in known.items()}
    return cast("Callable[[Mapping[str, Json]], Any]", extend(Draft202012Validator, checks))


_Keyword = Callable[[Any, Any, Any, Any], Iterable[Any] | None]
"""How jsonschema checks a keyword: validator, the keyword's value, the instance and the schema."""


def _counted(name: str, check: _Keyword) -> _Keyword:
    def checked(validator: Any, said: Any, instance: Any, schema: Any) -> Iterable[Any] | None:
        pairs = name == "uniqueItems" and isinstance(instance, list)  # in the worst case each
        _spend(len(cast("list[Json]", instance)) ** 2 // 50 if pairs else 1)
        if name in {"patternProperties", "unevaluatedProperties"}:
            return None
        if name == "additionalProperties" and "patternProperties" in schema:
            return None
        if name == "pattern" and isinstance(instance, str) and not _tame(said, instance):
            return None
        return check(validator, said, instance, schema)

    return checked


def _tame(pattern: str, text: str) -> bool:
    """Whether matching is quick for sure: at most two repetitions, and none of a group."""
    short = len(pattern) <= _PATTERN and len(text) <= _FAULT
    return short and not _GROUPS.search(pattern) and len(_REPEATS.findall(pattern)) <= 2  # noqa: PLR2004  (cubic at worst)


_PATTERN = 100
_GROUPS = re.compile(r"\)[*+?{]")
_REPEATS = re.compile(r"[*+?]|\{[0-9]*,[0-9]*\}")


def _refuse(constant: str) -> Json:
    raise ValueError(f"{constant} is no JSON")


def _finite(number: str) -> float:
    value = float(number)
    return value if math.isfinite(value) else cast("float", _refuse(number))


def _at(where: str, fault: str) -> str:
    return f"{where}: {fault:.{_FAULT}}" if where else f"{fault:.{_FAULT}}"


def _shown(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False)


def _shape(schema: Json) -> str:
    """A schema in a few words; the whole of it where it is none that a few words say."""
    if not isinstance(schema, dict):
        return "any"
    if isinstance(options := schema.get("enum"), list):
        return " | ".join(map(_shown, options))
    match schema.get("type"):
        case "array":
            return f"array of {_shape(schema['items'])}" if "items" in schema else "array"
        case str() as name if name != "object" or "properties" not in schema:
            return name
        case list() as names:
            return " | ".join(map(str, names))
        case _:
            told = {k: v for k, v in schema.items() if k not in {"description", "title"}}
            return json.dumps(told, ensure_ascii=False) if told else "any"
