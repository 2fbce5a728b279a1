"""What is checked before anything runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import PurePosixPath

from branchwise.core.errors import SpecError
from branchwise.sandbox.ran import Files, Limits

PAGE = 4096


def sayable(text: str) -> bool:
    r"""Whether the system can be told a text, as a path or a part of a command.

    Example:
        >>> sayable("a b"), sayable("a\0b"), sayable("\ud800")
        (True, False, False)
    """
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def check(files: Files, argv: Sequence[str], limits: Limits) -> None:
    """Raise where a command is empty, a path leaves the folder, or the files do not fit.

    Raises:
        SpecError: that is so.

    Example:
        >>> check({"../x": b""}, ["true"], Limits())
        Traceback (most recent call last):
        branchwise.core.errors.SpecError: '../x' is not a path inside a sandbox's folder
    """
    if not argv or not argv[0]:
        raise SpecError("a sandbox was given no command")
    if not all(map(sayable, argv)):
        raise SpecError("a part of a command for a sandbox holds what no system can be told")
    folders: set[PurePosixPath] = set()
    for path in files:
        pure = PurePosixPath(path)
        plain = str(pure) == path and pure.parts and ".." not in pure.parts
        if not plain or pure.is_absolute() or not sayable(path):
            raise SpecError(f"{path!r} is not a path inside a sandbox's folder")
        folders.update(pure.parents[:-1])
    if both := folders.intersection(map(PurePosixPath, files)):
        raise SpecError(f"{str(min(both))!r} is a file and a folder of a sandbox at once")
    if len(files) + len(folders) > limits.entries:
        raise SpecError(f"{len(files)} files for a sandbox whose limit is {limits.entries}")
    size = sum(-len(content) % PAGE + len(content) for content in files.values())
    if size > limits.disk:
        raise SpecError(f"{size} bytes of files for a sandbox whose limit is {limits.disk}")
