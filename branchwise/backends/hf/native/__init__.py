"""Kernels in C for what torch's operators cannot express well; compiled at first use.

They are an option: where there is no compiler, or the machine is not one they are written for,
`library` is None and torch's operators do the same work.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

from branchwise.backends import models

# OpenMP is left to be found in what torch has loaded: two runtimes would mean two sets of threads
# that wait for each other in turn, busily.
_FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fopenmp", "-fPIC")


@cache
def library(name: str) -> ctypes.CDLL | None:
    """The compiled `NAME.c` of this folder; None where it cannot be had.

    `BRANCHWISE_NATIVE=0` turns kernels in C off.

    Args:
        name: of the source file, without its ending.
    """
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None or os.environ.get("BRANCHWISE_NATIVE") == "0" or not _threads_by_openmp():
        return None
    source = Path(__file__).with_name(f"{name}.c")
    # What is compiled for one processor may not run on another that shares the folder.
    key = "\n".join([source.read_text(), compiler, *_FLAGS, platform.platform(), _processor()])
    target = (
        models.cache() / "native" / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    )
    try:
        if not target.exists():
            _compile(compiler, source, target)
        return ctypes.CDLL(str(target))
    except (OSError, subprocess.SubprocessError):
        return None


def _compile(compiler: str, source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        built = Path(folder) / target.name
        command = [compiler, *_FLAGS, "-c", str(source), "-o", f"{built}.o"]
        subprocess.run(command, check=True, capture_output=True, timeout=120)  # noqa: S603  (our own source, the user's compiler)
        command = [compiler, "-shared", f"{built}.o", "-o", str(built), "-lm"]
        subprocess.run(command, check=True, capture_output=True, timeout=120)  # noqa: S603  (as above)
        built.replace(target)


def _threads_by_openmp() -> bool:
    """Whether torch has loaded an OpenMP runtime whose symbols a library can use."""
    torch.get_num_threads()
    return hasattr(ctypes.CDLL(None), "GOMP_parallel")


def _processor() -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(torch.cpu.get_capabilities().items()))
