"""Control groups: what bounds all processes of a sandbox together, where one may be made."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import anyio

PREFIX = "branchwise"
NEEDED = ("memory", "pids")
_OPENED = itertools.count()


@dataclass(frozen=True, slots=True)
class Names:
    """The files of a version of control groups."""

    memory: str
    swap: str
    peak: str
    events: str


V1 = Names(
    memory="memory.limit_in_bytes",
    swap="memory.memsw.limit_in_bytes",
    peak="memory.max_usage_in_bytes",
    events="memory.oom_control",
)
V2 = Names(memory="memory.max", swap="memory.swap.max", peak="memory.peak", events="memory.events")


class Groups:
    """The groups of this process: one folder for all, in it one for each sandbox.

    The folder's name says whose it is, so that the next who comes removes those of the dead.

    Args:
        memory: the folder, where it holds the memory's controller.
        pids: the same of processes; with version 2 it is the same folder.
        names: the files of this version.
    """

    def __init__(self, memory: Path, pids: Path, names: Names) -> None:
        self._folders = list(dict.fromkeys((memory, pids)))
        self._names = names
        self._count = itertools.count()

    @classmethod
    def found(cls, proc: Path = Path("/proc/self")) -> Groups | None:
        """The groups that may be made here; None where none may.

        Args:
            proc: where it says which group this process is in.
        """
        places = _places(proc)
        if places is None:
            return None
        memory, pids, names = places
        made: list[Path] = []
        number = next(_OPENED)
        try:
            for parent in dict.fromkeys((memory, pids)):
                _swept(parent)
                folder = parent / f"{_label(os.getpid())}-{number}"
                folder.mkdir()
                made.append(folder)
                if names is V2:
                    _delegate(folder)
            groups = cls(made[0], made[-1], names)
            # Whether limits hold is known only when one has been set.
            for part in groups.made().folders:
                part.rmdir()
        except OSError:
            for folder in made:
                _removed(folder)
            return None
        return groups

    def made(self) -> Group:
        """A new group without limits.

        Raises:
            OSError: it cannot be made.
        """
        name = str(next(self._count))
        folders = [folder / name for folder in self._folders]
        for folder in folders:
            folder.mkdir()
        return Group(folders[0], folders[-1], self._names)

    def close(self) -> None:
        """Remove the folder; its groups are gone."""
        for folder in self._folders:
            with suppress(OSError):
                folder.rmdir()


class Group:
    """The processes of one sandbox.

    Args:
        memory: its folder of the memory's controller.
        pids: its folder of the processes' controller.
        names: the files of this version.
    """

    def __init__(self, memory: Path, pids: Path, names: Names) -> None:
        self._memory = memory
        self._pids = pids
        self._names = names
        self.folders = tuple(dict.fromkeys((memory, pids)))

    def add(self, pid: int) -> None:
        """Put a process into it; what the process has used so far stays with its old group."""
        for folder in self.folders:
            (folder / "cgroup.procs").write_text(str(pid))

    def limit(self, memory: int, processes: int) -> None:
        """Set the most that all its processes may use together."""
        (self._memory / self._names.memory).write_text(str(memory))
        with suppress(OSError):  # not everywhere is swap accounted for
            swap = 0 if self._names is V2 else memory
            (self._memory / self._names.swap).write_text(str(swap))
        (self._pids / "pids.max").write_text(str(processes))

    @property
    def peak(self) -> int:
        """The most memory in use at one time; 0 where the kernel is too old to say."""
        try:
            return int((self._memory / self._names.peak).read_text())
        except OSError:
            return 0

    @property
    def out_of_memory(self) -> bool:
        """Whether the kernel killed for want of memory."""
        lines = (self._memory / self._names.events).read_text().splitlines()
        counts = dict(line.split() for line in lines)
        return int(counts.get("oom_kill", 0)) > 0

    async def close(self) -> None:
        """Remove it; its processes have ended, though the kernel may take a moment to see it."""
        for folder in self.folders:
            for _ in range(50):
                try:
                    folder.rmdir()
                except FileNotFoundError:
                    break
                except OSError:
                    await anyio.sleep(0.01)
                else:
                    break


def _places(proc: Path) -> tuple[Path, Path, Names] | None:
    """The folders of this process's own group, or None where a controller is missing."""
    mounts: dict[str, Path] = {}
    for line in (proc / "mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        root, place = before.split(" ")[3:5]
        if kind == "cgroup":
            for name in set(NEEDED).intersection(options.split(" ")[-1].split(",")):
                mounts[name] = _below(proc, name, root, Path(place))
        elif kind == "cgroup2":
            mounts["unified"] = _below(proc, "", root, Path(place))
    if all(name in mounts for name in NEEDED):
        return mounts["memory"], mounts["pids"], V1
    if "unified" in mounts:
        return mounts["unified"], mounts["unified"], V2
    return None


def _below(proc: Path, controller: str, root: str, place: Path) -> Path:
    """This process's own folder below a mount."""
    for line in (proc / "cgroup").read_text().splitlines():
        _, names, own = line.split(":", 2)
        if controller in names.split(","):
            inside = os.path.relpath(own, root)
            return place if inside.startswith("..") else place / inside
    return place


def _delegate(folder: Path) -> None:
    """Let the groups in a folder have the controllers.

    Raises:
        OSError: the folder's own group does not have them.
    """
    have = (folder / "cgroup.controllers").read_text().split()
    if missing := set(NEEDED).difference(have):
        raise OSError(errno.ENOTSUP, f"no controller of {', '.join(sorted(missing))}")
    (folder / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in NEEDED))


def _label(pid: int) -> str:
    """Whose folder it is: the namespace of the process, its number and when it began."""
    space = Path("/proc/self/ns/pid").stat().st_ino
    return f"{PREFIX}-{space}-{pid}-{begun(pid)}"


def begun(pid: int | str) -> str:
    """When a process began, in ticks; empty where there is none that can be seen."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]


def _swept(parent: Path) -> Sequence[str]:
    """Remove the folders of processes of this namespace that are gone; their names."""
    gone: list[str] = []
    for folder in parent.glob(f"{PREFIX}-{Path('/proc/self/ns/pid').stat().st_ino}-*"):
        owner = folder.name.split("-")[2]
        alive = folder.name.rpartition("-")[0] == _label(int(owner)) if owner.isdigit() else True
        if not alive:
            _removed(folder)
            gone.append(folder.name)
    return gone


def _removed(folder: Path) -> None:
    with suppress(OSError):
        for inside in folder.iterdir():
            if inside.is_dir():
                inside.rmdir()
    with suppress(OSError):
        folder.rmdir()
