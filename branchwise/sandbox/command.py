"""What a compiler or a prover says of a text: the core of a world and of a verifier."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field, SkipValidation

from branchwise.core.config import Config
from branchwise.sandbox.ran import Limits, Ran, Sandbox


def clipped(text: str, most: int) -> str:
    """A text of at most about so many characters: what is too much is left out in its middle.

    Example:
        >>> clipped("x" * 500, 100).count("x"), clipped("short", 100)
        (100, 'short')
    """
    if len(text) <= most:
        return text
    half = most // 2
    out = len(text) - 2 * half
    return f"{text[:half]}\n[{out} characters are left out here]\n{text[-half:]}"


def told(ran: Ran, most: int) -> str:
    r"""What became of a program, as its user is told: its output, and how it ended if not well.

    Example:
        >>> told(Ran("exited", 1, b"no\n"), 100)
        'no\nExit status 1.'
    """
    parts = [ran.stdout.decode(errors="replace"), ran.stderr.decode(errors="replace")]
    said = clipped("\n".join(part.rstrip("\n") for part in parts if part.strip()), most)
    match ran.status:
        case "exited":
            end = f"Exit status {ran.code}." if ran.code else ""
        case "killed":
            end = f"It was killed by signal {ran.code}."
        case "timeout":
            end = "It was stopped: it ran for too long."
        case "memory":
            end = "It was stopped: it used too much memory."
        case "output":
            end = "It was stopped: it printed too much."
        case "denied":
            end = "It was stopped: it asked for what no program here may have."
    return "\n".join(part for part in (said, end) if part)


def _compiled(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    return pattern


Pattern = Annotated[str, AfterValidator(_compiled)]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a compiler or prover.

    Args:
        severity: in lower case, such as `error`.
        text: what it says.
        file: where; empty where it does not say.
        line: the line, from 1; 0 where it does not say.
    """

    severity: str
    text: str
    file: str = ""
    line: int = 0


@dataclass(frozen=True, slots=True)
class Checked:
    """What a command says of a text.

    Args:
        program: the text that it was given.
        detail: `verified`, `failed`, `invalid` (it is no program), `forbidden`, or how a run ended
            that did not end on its own, such as `timeout`.
        score: 1 where it is verified, -1 where it is invalid or forbidden, else less than 1.
        feedback: what it says, for the one who wrote the text.
        messages: its messages.
    """

    program: str
    detail: str
    score: float
    feedback: str
    messages: tuple[Message, ...] = ()


class Check(Config):
    r"""Runs a command on a text and reads what it says.

    Args:
        sandbox: where it runs; open.
        command: the command and its arguments; `{file}` is the file's name.
        file: the name of the file that the text is written to.
        language: the mark of the fenced blocks in a reply that hold the text, such as `dafny`; the
            last one counts. Any block does where it is empty, and all of a reply without blocks.
        passes: what the output of a run that is right has to match, besides the exit status 0.
        message: matches one message of the output; its groups `file`, `line`, `severity` and
            `message` are read, those that it has.
        counts: matches the output's summary; its groups `verified` and `errors` are numbers.
        forbidden: what the text must not match, such as a prover's `assume`.
        limits: of a run.
        shown: the most characters of a feedback.
    """

    sandbox: SkipValidation[Sandbox] = Field(exclude=True, repr=False)
    command: tuple[str, ...] = Field(min_length=1)
    file: str = Field(min_length=1, pattern=r"^[\w.-]+$")
    language: str = ""
    passes: Pattern = ""
    message: Pattern = ""
    counts: Pattern = ""
    forbidden: tuple[Pattern, ...] = ()
    limits: Limits = Limits()
    shown: int = Field(default=8_000, ge=100)

    async def check(self, reply: str) -> Checked:
        """What the command says of the text in a reply.

        Raises:
            SandboxError: the sandbox broke.
        """
        program = self.extracted(reply)
        if program is None:
            mark = f"```{self.language}" if self.language else "```"
            return Checked("", "invalid", -1.0, f"There is no block that begins with {mark}.")
        for pattern in self.forbidden:
            if found := re.search(pattern, program):
                return Checked(program, "forbidden", -1.0, f"{found[0]!r} is not allowed here.")
        argv = [part.replace("{file}", self.file) for part in self.command]
        ran = await self.sandbox.run({self.file: program.encode()}, argv, self.limits)
        return self._read(program, ran)

    def extracted(self, reply: str) -> str | None:
        """The text in a reply; None where it has none."""
        blocks = [(block["mark"], block["text"]) for block in _BLOCK.finditer(reply)]
        marked = [text for mark, text in blocks if mark.lower() == self.language.lower()]
        if marked:
            return marked[-1]
        if self.language and blocks:
            return None
        return blocks[-1][1] if blocks else reply

    def _read(self, program: str, ran: Ran) -> Checked:
        said = told(ran, self.shown)
        output = "\n".join(part.decode(errors="replace") for part in (ran.stdout, ran.stderr))
        messages = self._messages(output)
        right = ran.ok and re.search(self.passes, output, re.MULTILINE) is not None
        if right and not any(message.severity == "error" for message in messages):
            return Checked(program, "verified", 1.0, said, messages)
        if ran.status != "exited":
            return Checked(program, ran.status, 0.0, said, messages)
        if not self.counts:
            return Checked(program, "failed", 0.0, said, messages)
        if (found := re.search(self.counts, output, re.MULTILINE)) is None:
            return Checked(program, "invalid", -1.0, said, messages)
        verified, errors = (_count(found, name) for name in ("verified", "errors"))
        return Checked(program, "failed", _value(verified, errors, messages), said, messages)

    def _messages(self, output: str) -> tuple[Message, ...]:
        if not self.message:
            return ()
        found: list[Message] = []
        for match in re.finditer(self.message, output, re.MULTILINE):
            groups = {name: text or "" for name, text in match.groupdict().items()}
            line = groups.get("line", "")
            found.append(
                Message(
                    groups.get("severity", "error").lower(),
                    groups.get("message", match[0]),
                    groups.get("file", ""),
                    int(line) if line.isdecimal() else 0,
                )
            )
        return tuple(found)


_BLOCK = re.compile(
    r"^[ \t]*(?P<fence>`{3,})[ \t]*(?P<mark>[\w+#.-]*)[^\n]*\n(?P<text>.*?)"
    r"(?:^[ \t]*(?P=fence)`*[ \t]*$|\Z)",
    re.DOTALL | re.MULTILINE,
)


def _count(found: re.Match[str], name: str) -> int:
    text = found.groupdict().get(name) or "0"
    return int(text) if text.isdecimal() else 0


def _value(verified: int, errors: int, messages: tuple[Message, ...]) -> float:
    """The value of Aggarwal et al. 2024: the share that is verified, less for each message."""
    total = verified + errors
    if not total:
        return 0.0
    severe = sum(message.severity == "error" for message in messages)
    return (verified - 0.1 * severe - 0.04 * (len(messages) - severe)) / total
