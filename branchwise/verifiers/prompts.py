"""The prompts of judges: text files beside this module, which a spec may replace."""

from functools import cache
from importlib.resources import files

from branchwise.core.errors import SpecError, suggestion

_SUFFIX = ".txt"


@cache
def template(name: str) -> str:
    """The packaged prompt of that name, to be filled in by `core.template.filled`.

    The line break that ends the file is not part of it.

    Args:
        name: of the file in `templates/`, without its ending.

    Raises:
        SpecError: there is none of that name.

    Example:
        >>> "{prompt}" in template("genrm")
        True
    """
    folder = files("branchwise.verifiers").joinpath("templates")
    known = sorted(
        entry.name.removesuffix(_SUFFIX)
        for entry in folder.iterdir()
        if entry.name.endswith(_SUFFIX)
    )
    if name not in known:
        raise SpecError(f"no template {name!r}{suggestion(name, known)}")
    return folder.joinpath(name + _SUFFIX).read_text(encoding="utf-8").removesuffix("\n")
