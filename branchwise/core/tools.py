"""What policies and worlds share about tools: how one reads to a model, and whether a call fits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import cast

from branchwise.core.types import Json, Tool

_FAULTS = 3
"""So many faults of a call are told: the rest follows from them more often than not."""
_FAULT = 200


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

    Nothing at all stands for no arguments.

    Example:
        >>> arguments_of('{"count": 2}'), arguments_of("[2]")
        ({'count': 2}, 'the arguments are no JSON object')
    """
    try:
        # Models write line breaks into strings as they are; nobody can mistake what they mean.
        value = cast("Json", json.loads(text or "{}", strict=False, parse_constant=_refuse))
    except (ValueError, RecursionError) as error:
        return f"the arguments are no JSON: {error}"
    return value if isinstance(value, dict) else "the arguments are no JSON object"


def validated(tool: Tool, arguments: str) -> dict[str, Json] | str:
    """The arguments of a call, or in a line what is wrong with them, for the model to read.

    They are checked against the tool's JSON schema (draft 2020-12). Nothing is converted and no
    default is filled in.

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
    from jsonschema import Draft202012Validator  # noqa: PLC0415  (slow to import, seldom needed)
    from jsonschema.exceptions import SchemaError  # noqa: PLC0415
    from referencing.exceptions import Unresolvable  # noqa: PLC0415

    value = arguments_of(arguments)
    if isinstance(value, str):
        return value
    schema = dict(tool.parameters)
    try:
        Draft202012Validator.check_schema(schema)
        faults = sorted(Draft202012Validator(schema).iter_errors(value), key=lambda f: f.json_path)
    except (SchemaError, Unresolvable, RecursionError) as error:
        return f"the schema of {tool.name} is broken: {str(error).splitlines()[0]:.{_FAULT}}"
    told = [
        _at(fault.json_path.removeprefix("$").removeprefix("."), fault.message) for fault in faults
    ]
    return "; ".join(told[:_FAULTS]) if told else value


def _refuse(constant: str) -> Json:
    raise ValueError(f"{constant} is no JSON")


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
