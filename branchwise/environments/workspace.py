"""A folder of files that an agent works on, as a function of its states."""

from __future__ import annotations

import base64
import difflib
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias, cast

from pydantic import Field, PrivateAttr, SkipValidation

from branchwise.core.config import Config
from branchwise.core.errors import SpecError, WorldError
from branchwise.core.tools import validated
from branchwise.core.types import Json, State, Step, Task, Tool, ToolCall
from branchwise.sandbox.command import clipped, told
from branchwise.sandbox.ran import Files, Limits, Ran, Sandbox

Given: TypeAlias = Mapping[str, str | int]
"""The arguments of a call, checked against its tool's schema."""

_HITS = 200
IDLE = "Nothing was done. Call a tool; call submit when the work is done."


class Workspace(Config):
    r"""A folder of files with the tools of a programmer.

    The tools are `read_file`, `write_file`, `edit_file`, `list_files`, `search`, `run` (a shell
    command in the sandbox; the files that it changes are kept), `test` and `submit`. A wrong call
    is answered, not failed. `submit` ends: the answer is a unified diff against the start, and the
    reward is 1 where the test command exits with 0, else 0.

    A task begins with the files in `folder` and those in its `meta["files"]`, texts by path. Its
    `meta["test"]` goes before `test`; what `meta["test_files"]` holds is laid over the folder for
    that command only, so that its tests can neither be seen nor be changed.

    A snapshot holds the changes since the start, texts as they are and other contents in base 64,
    and the digest of the start. Unchanged contents are shared between states, and equal folders
    have equal snapshots. Another process has to `reset` the task once before it can go on from a
    saved state: what a task starts with is no part of the tree. Neither empty folders, links nor
    rights are kept.

    Args:
        sandbox: where commands run; open.
        folder: a folder that every task begins with; none where it is empty.
        test: the shell command that tells whether the work is done; none where it is empty.
        limits: of a command; `disk` and `entries` bound the files of a state as well.
        shown: the most characters of a result.

    Raises:
        SpecError: at `reset`: the files of a task cannot be used.
    """

    instant: ClassVar[bool] = False
    kind: Literal["workspace"] = "workspace"
    sandbox: SkipValidation[Sandbox] = Field(exclude=True, repr=False)
    folder: str = ""
    test: str = ""
    limits: Limits = Limits()
    shown: int = Field(default=8_000, ge=100)
    _starts: dict[str, _Start] = PrivateAttr(default_factory=dict[str, "_Start"])

    async def reset(self, task: Task) -> State:
        """The files that the task begins with.

        Raises:
            SpecError: they cannot be used.
        """
        files = {**_read(self.folder), **_texts(task, "files")}
        test = task.meta.get("test", self.test)
        if not isinstance(test, str):
            raise SpecError("a task's meta `test` has to be a shell command")
        start = _Start(files, test, _texts(task, "test_files"))
        if problem := _problem({**files, **start.tests}, self.limits):
            raise SpecError(f"the files of a task cannot be used: {problem}")
        self._starts[start.digest] = start
        tools = tuple(tool for tool in TOOLS if test or tool.name != "test")
        return State(snapshot={"start": start.digest, "changed": {}}, tools=tools)

    async def step(self, state: State, action: Step) -> State:
        """Carry out the calls, one after the other.

        Raises:
            WorldError: the state is not one of this world, its task was never reset here, or the
                sandbox broke.
        """
        start, changed = self._place(state.snapshot)
        if action.finish in {"length", "filter"}:
            return State(snapshot=state.snapshot, cut=True, tools=state.tools)
        if not action.tool_calls:
            return State(snapshot=state.snapshot, observation=IDLE, tools=state.tools)
        work = _Work(self, start, start.after(changed))
        results = [await work.call(call, state.tools) for call in action.tool_calls]
        return State(
            snapshot={"start": start.digest, "changed": start.changes(work.files, changed)},
            results=tuple(results),
            tools=state.tools,
            reward=work.reward,
            done=work.submitted,
            answer=diff(start.files, work.files) if work.submitted else None,
        )

    def _place(self, snapshot: object) -> tuple[_Start, Changes]:
        match snapshot:
            case {"start": str(digest), "changed": dict(changed)}:
                pass
            case _:
                raise WorldError(f"no snapshot of a workspace: {snapshot!r:.80}")
        if (start := self._starts.get(digest)) is None:
            raise WorldError(
                "what this task starts with is not known here", hint="reset its task once"
            )
        return start, cast("Changes", changed)


Changes: TypeAlias = dict[str, Json]
"""Paths with what they hold now: a text, other bytes (`base64`), or None where they are gone."""


@dataclass(frozen=True)
class _Start:
    """What a task begins with."""

    files: dict[str, bytes]
    test: str
    tests: dict[str, bytes]

    @property
    def digest(self) -> str:
        known = self.__dict__.get("_digest")
        if known is None:
            said = blake2b(digest_size=16)
            for group in (self.files, self.tests, {self.test: b""}):
                for path, content in sorted(group.items()):
                    said.update(f"{path}\0{len(content)}\0".encode() + content)
                said.update(b"\1")
            known = self.__dict__["_digest"] = said.hexdigest()
        return known

    def after(self, changed: Changes) -> dict[str, bytes]:
        """The files with these changes."""
        files = dict(self.files)
        for path, content in changed.items():
            match content:
                case None:
                    files.pop(path, None)
                case str():
                    files[path] = content.encode()
                case {"base64": str(coded)}:
                    files[path] = base64.b64decode(coded)
                case _:
                    raise WorldError(f"no content of a file: {content!r:.80}")
        return files

    def changes(self, files: Files, before: Changes) -> Changes:
        """What is other than at the start; contents that `before` holds are shared with it."""
        changed: Changes = {}
        for path in sorted({*self.files, *files}):
            now = files.get(path)
            if now != self.files.get(path):
                content = _content(now)
                changed[path] = (
                    before[path] if path in before and before[path] == content else content
                )
        return changed


def _content(data: bytes | None) -> Json:
    if data is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


class _Work:
    """The files of a state while its calls are carried out."""

    def __init__(self, world: Workspace, start: _Start, files: dict[str, bytes]) -> None:
        self.world, self.start, self.files = world, start, files
        self.submitted = False
        self.reward = 0.0

    async def call(self, call: ToolCall, tools: tuple[Tool, ...]) -> str:
        """What a call comes to."""
        if self.submitted:
            return "The work is submitted already."
        by_name = {tool.name: tool for tool in tools}
        if (tool := by_name.get(call.name)) is None:
            return f"There is no tool {call.name!r}; there is {', '.join(by_name)}."
        given = validated(tool, call.arguments)
        if isinstance(given, str):
            return f"{call.name}: {given}"
        try:
            return clipped(await _CALLS[call.name](self, cast("Given", given)), self.world.shown)
        except _WrongError as wrong:
            return str(wrong)

    async def read_file(self, given: Given) -> str:
        lines = self._text(given).splitlines()
        first, last = int(given.get("first", 1)), int(given.get("last", len(lines)))
        if not lines:
            return "The file is empty."
        if first < 1 or last < first or first > len(lines):
            raise _WrongError(f"There are lines 1 to {len(lines)}.")
        shown = enumerate(lines[first - 1 : last], first)
        return "\n".join(f"{number:>6}\t{line}" for number, line in shown)

    async def write_file(self, given: Given) -> str:
        path = _path(given)
        self._put({**self.files, path: str(given["content"]).encode("utf-8", "replace")})
        return f"{path} is written."

    async def edit_file(self, given: Given) -> str:
        path, old, new = _path(given), str(given["old"]), str(given["new"])
        text = self._text(given)
        found = text.count(old) if old else 0
        if found != 1:
            raise _WrongError(f"`old` has to be there exactly once; it is there {found} times.")
        self._put({**self.files, path: text.replace(old, new).encode("utf-8", "replace")})
        return f"{path} is changed."

    async def list_files(self, given: Given) -> str:
        paths = self._under(given)
        return "\n".join(f"{path} ({len(self.files[path])} bytes)" for path in paths)

    async def search(self, given: Given) -> str:
        text = str(given["text"])
        hits: list[str] = []
        for path in self._under(given):
            content = _content(self.files[path])
            lines = content.splitlines() if isinstance(content, str) else []
            hits += [f"{path}:{i}: {line}" for i, line in enumerate(lines, 1) if text in line]
            if len(hits) > _HITS:
                return "\n".join([*hits[:_HITS], "There is more: search for something rarer."])
        return "\n".join(hits) or "It is nowhere."

    async def run(self, given: Given) -> str:
        command = str(given["command"])
        if not _written(command):
            raise _WrongError("The command holds what no shell can read.")
        ran = await self._ran(command, self.files, keep=True)
        said = told(ran, self.world.shown)
        if ran.status not in {"exited", "killed"}:
            return f"{said}\nThe files are as they were before."
        try:
            self._put({path: bytes(data) for path, data in ran.files.items()})
        except _WrongError as wrong:
            return f"{said}\nThe files are as they were before. {wrong}"
        return said or "There was no output."

    async def test(self, given: Given) -> str:  # noqa: ARG002  (it has none)
        ran = await self._tested()
        said = told(ran, self.world.shown)
        return "\n".join(filter(None, [said, "It passed." if ran.ok else "It failed."]))

    async def submit(self, given: Given) -> str:  # noqa: ARG002  (it has none)
        if self.start.test:
            self.reward = float((await self._tested()).ok)
        self.submitted = True
        return "The work is submitted."

    async def _tested(self) -> Ran:
        files = {**self.files, **self.start.tests}
        # What the agent has put where the tests need a folder, or a file, gives way.
        clear = {p: c for p, c in files.items() if p in self.start.tests or not _bad(p, files)}
        return await self._ran(self.start.test, clear, keep=False)

    async def _ran(self, command: str, files: Files, *, keep: bool) -> Ran:
        try:
            return await self.world.sandbox.run(
                files, ("sh", "-c", command), self.world.limits, keep=keep
            )
        except SpecError as error:
            raise WorldError(error.message, hint=error.hint) from error

    def _text(self, given: Given) -> str:
        path = _path(given)
        if path not in self.files:
            raise _WrongError(f"There is no file {path}.")
        content = _content(self.files[path])
        if not isinstance(content, str):
            raise _WrongError(f"{path} is no text.")
        return content

    def _under(self, given: Given) -> list[str]:
        folder = str(given.get("folder", "")).removeprefix("./").rstrip("/")
        if folder in {"", "."}:
            paths = sorted(self.files)
        else:
            paths = sorted(path for path in self.files if path.startswith(f"{folder}/"))
        if not paths:
            raise _WrongError("There are no files.")
        return paths

    def _put(self, files: dict[str, bytes]) -> None:
        if problem := _problem(files, self.world.limits):
            raise _WrongError(f"That cannot be: {problem}.")
        self.files = files


class _WrongError(Exception):
    """A call that cannot be carried out; its text is the result."""


_CALLS: dict[str, Callable[[_Work, Given], Awaitable[str]]] = {
    "read_file": _Work.read_file,
    "write_file": _Work.write_file,
    "edit_file": _Work.edit_file,
    "list_files": _Work.list_files,
    "search": _Work.search,
    "run": _Work.run,
    "test": _Work.test,
    "submit": _Work.submit,
}


def _tool(name: str, description: str, optional: tuple[str, ...] = (), **arguments: str) -> Tool:
    kinds = {"first": "integer", "last": "integer"}
    properties: dict[str, Json] = {
        key: {"type": kinds.get(key, "string"), "description": text}
        for key, text in arguments.items()
    }
    schema: dict[str, Json] = {
        "type": "object",
        "properties": properties,
        "required": [key for key in arguments if key not in optional],
        "additionalProperties": False,
    }
    return Tool(name, description, schema)


_PATH = "a path from the folder's top, such as src/main.py"
TOOLS = (
    _tool(
        "read_file",
        "Shows a text file with the numbers of its lines.",
        ("first", "last"),
        path=_PATH,
        first="the first line, from 1; the file's first where it is left out",
        last="the last line; the file's last where it is left out",
    ),
    _tool("write_file", "Writes a whole file.", path=_PATH, content="all that it shall hold"),
    _tool(
        "edit_file",
        "Replaces a part of a text file.",
        path=_PATH,
        old="the part to replace, exactly as it is; it has to be there once",
        new="what takes its place",
    ),
    _tool(
        "list_files", "Lists the files.", ("folder",), folder="only those in it; all where left out"
    ),
    _tool(
        "search",
        "Shows the lines that hold a text, letter for letter.",
        ("folder",),
        text="what to look for",
        folder="only in its files; in all where left out",
    ),
    _tool("run", "Runs a shell command in the folder.", command="such as ls -l"),
    _tool("test", "Runs the tests."),
    _tool("submit", "Hands the work in; nothing can be done afterwards."),
)


def _path(given: Given) -> str:
    path = str(given["path"]).removeprefix("./")
    if problem := _bad(path, {}):
        raise _WrongError(f"{path!r}: {problem}.")
    return path


def _bad(path: str, files: Mapping[str, bytes]) -> str | None:
    """Why a path names no file of these, or of any."""
    parts = path.split("/")
    if path.startswith("/") or ".." in parts:
        return "a path stays inside of the folder"
    if not _written(path):
        return "it is no path of a file"
    if "" in parts or "." in parts or any(len(p.encode()) > 255 for p in parts):  # noqa: PLR2004  (the most that file systems take)
        return "it is no path of a file"
    if any("/".join(parts[:i]) in files for i in range(1, len(parts))):
        return "a part of it is a file"
    return None


def _written(text: str) -> bool:
    """Whether a text can be written in UTF-8 and has no null character."""
    return "\0" not in text and not any("\ud800" <= sign <= "\udfff" for sign in text)


def _problem(files: Files, limits: Limits) -> str | None:
    """Why these files are no state of a workspace."""
    for path in files:
        if problem := _bad(path, files):
            return f"{path!r}: {problem}"
    if len(files) > limits.entries:
        return f"there are more than {limits.entries} files"
    if sum(map(len, files.values())) > limits.disk:
        return f"they hold more than {limits.disk} bytes"
    return None


def _read(folder: str) -> dict[str, bytes]:
    """The regular files of a folder, no link followed."""
    if not folder:
        return {}
    top = Path(folder)
    if not top.is_dir():
        raise SpecError(f"there is no folder {folder}")
    files: dict[str, bytes] = {}
    for place, _, names in os.walk(top):
        for name in names:
            file = Path(place, name)
            if file.is_file() and not file.is_symlink():
                files[file.relative_to(top).as_posix()] = file.read_bytes()
    return files


def _texts(task: Task, name: str) -> dict[str, bytes]:
    match task.meta.get(name, {}):
        case dict(files) if all(isinstance(text, str) for text in files.values()):
            return {path: str(text).encode() for path, text in files.items()}
        case _:
            raise SpecError(f"a task's meta `{name}` has to be texts by path")


def diff(before: Files, after: Files) -> str:
    r"""A unified diff that `git apply` takes, but for contents that are no text.

    Example:
        >>> print(diff({"a": b"one\n"}, {"a": b"two\n"}), end="")
        diff --git a/a b/a
        --- a/a
        +++ b/a
        @@ -1 +1 @@
        -one
        +two
    """
    return "".join(
        line
        for path in sorted({*before, *after})
        if before.get(path) != after.get(path)
        for line in _hunks(path, before.get(path), after.get(path))
    )


def _hunks(path: str, before: bytes | None, after: bytes | None) -> Iterator[str]:
    yield f"diff --git a/{path} b/{path}\n"
    if before is None:
        yield "new file mode 100644\n"
    if after is None:
        yield "deleted file mode 100644\n"
    old, new = _content(before or b""), _content(after or b"")
    names = ("/dev/null" if before is None else f"a/{path}", f"b/{path}")
    if after is None:
        names = (names[0], "/dev/null")
    if not (isinstance(old, str) and isinstance(new, str)):
        yield f"Binary files {names[0]} and {names[1]} differ\n"
        return
    for line in difflib.unified_diff(_lines(old), _lines(new), *names):
        yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"


def _lines(text: str) -> list[str]:
    """Lines as diffs know them: only a newline ends one."""
    lines = text.split("\n")
    return [f"{line}\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
