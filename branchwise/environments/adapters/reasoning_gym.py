"""Problems of Reasoning Gym as tasks: families that are generated, each with a scorer."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec

from branchwise.core.errors import SpecError
from branchwise.core.types import Json, Task

# Five families iterate over sets of strings, so that their problems depend on Python's hash seed:
# the problems are made in a process which has the seed that the scorer's process has, too.
_HASH_SEED = "0"
_PROGRAM = """
import json, sys
from reasoning_gym import create_dataset
name, size, seed, options = json.loads(sys.argv[1])
entries = create_dataset(name, size=size, seed=seed, **options)
print("\\0", json.dumps([[entry["question"], entry["answer"]] for entry in entries]))
"""
_NAME = re.compile(r"[a-z0-9_]+")


def tasks(name: str, size: int, seed: int = 0, **options: Json) -> list[Task]:
    """The first problems of a family, the same for the same arguments.

    A task's `meta["reasoning_gym"]` names the problem, so that the verifier `reasoning-gym` can
    make it again and score an answer: what belongs to a problem but is not asked would give the
    answer away, so tasks do not carry it. The target is the family's own answer; it is empty in
    those that have scorers but no answers.

    Args:
        name: the family, as in `reasoning_gym.create_dataset`.
        size: how many problems.
        seed: of the family.
        options: what else the family is told, such as `min_terms`.

    Raises:
        SpecError: the package is not installed, or the family or one of its options is not known.

    Source: Stojanovski et al. 2025, "Reasoning Gym: Reasoning Environments for Reinforcement
    Learning with Verifiable Rewards".

    Example:
        >>> tasks("no family", 1)
        Traceback (most recent call last):
        branchwise.core.errors.SpecError: 'no family' is no name of a family of problems
    """
    if not _NAME.fullmatch(name):
        raise SpecError(f"{name!r} is no name of a family of problems")
    if find_spec("reasoning_gym") is None:
        raise SpecError("reasoning-gym needs its package", hint="pip install reasoning-gym")
    ran = subprocess.run(  # noqa: S603  (this interpreter, and a program of our own)
        [sys.executable, "-P", "-c", _PROGRAM, json.dumps([name, size, seed, options])],
        capture_output=True,
        env={**os.environ, "PYTHONHASHSEED": _HASH_SEED},
        check=False,
    )
    if ran.returncode:
        last = ran.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise SpecError(f"reasoning-gym:{name} cannot be made: {last:.200}")
    made: list[tuple[str, str | None]] = json.loads(ran.stdout.rpartition(b"\0")[2])
    asked: dict[str, Json] = {"name": name, "size": size, "seed": seed, "options": options}
    return [
        Task(
            question,
            target or "",
            {"id": f"{name}-{seed}-{i}", "reasoning_gym": {**asked, "index": i}},
        )
        for i, (question, target) in enumerate(made)
    ]
