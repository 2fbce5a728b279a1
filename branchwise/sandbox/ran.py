"""What every sandbox promises: a program with limits goes in, what became of it comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from pydantic import Field

from branchwise.core.config import Config

Ending: TypeAlias = Literal["exited", "killed", "timeout", "memory", "output", "denied"]
Files: TypeAlias = Mapping[str, bytes]
"""Contents by path, relative to the folder that the program starts in."""


class Limits(Config):
    """The most that one run may use of each thing.

    Args:
        seconds: of the wall clock; then everything that the run started is killed.
        memory: of all its processes together, in bytes.
        processes: at one time, threads included.
        output: on standard output and standard error together, in bytes.
        disk: what its files may hold together, in bytes.
        entries: how many files and folders it may make.
    """

    seconds: float = Field(default=10.0, gt=0)
    memory: int = Field(default=512 << 20, ge=32 << 20)
    processes: int = Field(default=64, ge=1)
    output: int = Field(default=1 << 20, ge=0)
    disk: int = Field(default=64 << 20, ge=1 << 16)
    entries: int = Field(default=10_000, ge=16)


@dataclass(frozen=True, slots=True)
class Ran:
    """What became of a program.

    Args:
        status: how it ended: `exited` on its own, `killed` by a signal, `timeout`, out of `memory`,
            too much `output`, or `denied`: it asked the system for what no program here may have.
        code: its exit status where it exited, the signal's number where one killed it.
        stdout: what it wrote, cut at the limit.
        stderr: the same for standard error.
        seconds: of the wall clock.
        peak: the most memory in use at one time, in bytes; 0 where the sandbox cannot tell.
        files: the files in its folder afterwards, where they were asked for.
    """

    status: Ending
    code: int = 0
    stdout: bytes = b""
    stderr: bytes = b""
    seconds: float = 0.0
    peak: int = 0
    files: Files = field(default_factory=dict[str, bytes])

    @property
    def ok(self) -> bool:
        """Whether it exited on its own and said that all went well."""
        return self.status == "exited" and self.code == 0


class Running(Protocol):
    """A program in a sandbox that one can talk with; it ends with its block."""

    async def send(self, line: bytes) -> None:
        """Write a line, without its end, on the program's standard input.

        Raises:
            SandboxError: the program has ended.
        """
        ...

    async def receive(self, seconds: float) -> bytes:
        """The next line on the program's standard output, without its end.

        Raises:
            TimeoutError: there was none in time.
            SandboxError: the program has ended, or its line is longer than `Limits.output`.
        """
        ...


@runtime_checkable
class Sandbox(Protocol):
    """Runs programs that may do anything, so that they do nothing to anyone else."""

    async def run(
        self,
        files: Files,
        argv: Sequence[str],
        limits: Limits = Limits(),  # noqa: B008  (frozen)
        *,
        stdin: bytes = b"",
        keep: bool = False,
    ) -> Ran:
        """Run a program to its end in a fresh place of its own.

        Args:
            files: what lies in its folder at first; paths are relative and stay inside.
            argv: the command; `python` is the interpreter that the sandbox has.
            limits: the most it may use.
            stdin: what it reads.
            keep: whether `Ran.files` is wanted: what the folder holds afterwards.

        Raises:
            SpecError: a path leaves the folder, or the command is empty.
            SandboxError: the sandbox itself broke: nothing is known about the program.
        """
        ...

    def start(
        self,
        files: Files,
        argv: Sequence[str],
        limits: Limits = Limits(),  # noqa: B008  (frozen)
    ) -> AbstractAsyncContextManager[Running]:
        """Start a program to talk with, line by line; `limits.seconds` bounds its whole life."""
        ...
