"""Texts with names in braces."""

import re
from collections.abc import Callable, Mapping

_PLACEHOLDER = re.compile(r"\{(\w+(?:\.\d+)?)\}")


def filled(template: str, values: Mapping[str, object] | Callable[[str], object]) -> str:
    """The template with its names filled in, in one pass: braces in what is filled in stay.

    Args:
        template: the text, with `{name}` where something goes.
        values: by name; names that are not there stay as they are. Or a function of the name.

    Example:
        >>> filled("{a} and {b} and {c}", {"a": "{b}", "b": 1})
        '{b} and 1 and {c}'
    """
    if isinstance(values, Mapping):
        return _PLACEHOLDER.sub(lambda found: str(values.get(found[1], found[0])), template)
    return _PLACEHOLDER.sub(lambda found: str(values(found[1])), template)
