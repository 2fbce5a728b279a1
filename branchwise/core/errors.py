"""Every error of the package, sorted by who must act.

BranchwiseError
├── SpecError          you: fix the spec, the argument or the file that the message names
├── Exhausted          nobody: a signal that the budget is spent; `solve` turns it into an answer
├── BranchError        nobody: a bad branch is data, it stays on its node as `failure`
│   ├── BackendError       a model call failed after its retries
│   ├── WorldError         an environment could not carry out an action
│   │   └── SandboxError       a sandbox broke: no word on the program that it should have run
│   └── VerifierError      a verifier could not judge
└── SearchFailed       the operator: an outage, no call can succeed any more

Anything else that escapes is a bug.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from branchwise.core.types import Step, Usage


def suggestion(wrong: str, known: Sequence[str]) -> str:
    """What may have been meant, as the end of a message: the closest name, or all names.

    Example:
        >>> suggestion("baem", ["beam", "mcts"]), suggestion("x", ["beam", "mcts"])
        (" (did you mean 'beam'?)", ' (there is beam, mcts)')
    """
    if close := difflib.get_close_matches(wrong, known, n=1):
        return f" (did you mean {close[0]!r}?)"
    return f" (there is {', '.join(known)})" if known else ""


class BranchwiseError(Exception):
    """Root of the package's errors: a message in one line and, where there is one, the fix.

    Args:
        message: what went wrong, in one line.
        hint: what to do about it; printed after the message.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class SpecError(BranchwiseError):
    """A spec, an argument or an input file is wrong; the message names the field and the file."""


class Exhausted(BranchwiseError):
    """The budget admits no further call: the signal that ends `grow`, not a fault."""


class BranchError(BranchwiseError):
    """One branch failed; its siblings go on.

    Args:
        message: what went wrong, in one line.
        hint: what to do about it.
        spent: what it has cost all the same, where a model was paid; None is nothing.
    """

    def __init__(self, message: str, *, hint: str = "", spent: Usage | None = None) -> None:
        super().__init__(message, hint=hint)
        self.spent = spent


class BackendError(BranchError):
    """A policy or its model failed for one call.

    Args:
        message: what went wrong, in one line.
        hint: what to do about it.
        fatal: whether no later call can succeed either (a wrong key, a spent quota, an unknown
            model), so that the search must end instead of failing branch by branch.
        status: the HTTP status where a server gave one.
        arrived: the samples that did arrive, one place for each seed of the request, None where
            there is none: they are paid for, so a journal keeps them and a search uses them.
        spent: what the call has cost all the same, beyond what `arrived` says.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        fatal: bool = False,
        status: int | None = None,
        arrived: Sequence[Step | None] = (),
        spent: Usage | None = None,
    ) -> None:
        super().__init__(message, hint=hint, spent=spent)
        self.fatal = fatal
        self.status = status
        self.arrived = arrived


class WorldError(BranchError):
    """An environment could not carry out an action (a wrong action is an observation instead)."""


class SandboxError(WorldError):
    """A sandbox broke, so nothing is known about the program that it should have run."""


class VerifierError(BranchError):
    """A verifier could not judge a node, or what it said is not a finite number."""


class SearchFailed(BranchwiseError):
    """An outage: no call succeeds any more. What had grown by then is still in the tree."""
