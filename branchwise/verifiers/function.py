"""Any Python function as a verifier."""

import dataclasses
import inspect
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import SupportsFloat, TypeAlias

from branchwise.core.errors import (
    BackendError,
    BranchError,
    BranchwiseError,
    VerifierError,
)
from branchwise.core.judging import settled
from branchwise.core.node import Node
from branchwise.core.types import Verdict

Judgement: TypeAlias = SupportsFloat | Verdict


class Function:
    """A function of a node as a verifier; what goes wrong with one node stays with that node.

    An `async def` is called with all nodes at once, any other function with one after the other.

    Args:
        function: takes a node and gives a number, a bool or a `Verdict`, or an awaitable of one.
        name: what its errors call it; by default the function's own name.

    Example:
        >>> from branchwise import Node, State, Task, run_sync
        >>> short = Function(lambda node: len(node.state.answer or "") < 3)
        >>> run_sync(short.score, [Node(Task("?"), State(answer="42"))])[0].score
        1.0
    """

    def __init__(
        self, function: Callable[[Node], Judgement | Awaitable[Judgement]], *, name: str = ""
    ) -> None:
        self._function = function
        self._name = name or str(getattr(function, "__qualname__", type(function).__qualname__))
        self._waits = any(map(inspect.iscoroutinefunction, (function, type(function).__call__)))

    async def score(self, nodes: Sequence[Node]) -> Sequence[Verdict | VerifierError]:
        """One verdict for each node; an error where the function raised or gave no number.

        Raises:
            BranchwiseError: a signal that is not one node's business, such as a spent budget.
        """
        if self._waits:
            return await settled(self._judge, nodes)
        return [await self._judge(node) for node in nodes]

    async def _judge(self, node: Node) -> Verdict | VerifierError:
        try:
            said = self._function(node)
            said = await said if inspect.isawaitable(said) else said
            verdict = said if isinstance(said, Verdict) else Verdict(_number(said))
            verdict = dataclasses.replace(verdict, score=_number(verdict.score))
        except VerifierError as error:
            return error
        except BranchwiseError as error:
            if not isinstance(error, BranchError) or _fatal(error):
                raise
            return VerifierError(
                f"{self._name}: {error.message}", hint=error.hint, spent=error.spent
            )
        except Exception as error:  # noqa: BLE001  (a user's function; its faults are data)
            return VerifierError(f"{self._name} raised {type(error).__name__}: {error}")
        if not math.isfinite(verdict.score):
            return VerifierError(
                f"{self._name} gave {verdict.score}, which is no finite number", spent=verdict.usage
            )
        return verdict


def _number(said: object) -> float:
    """A float from a bool, an int, a Decimal, a Fraction or a scalar of numpy or torch."""
    if not isinstance(said, SupportsFloat):
        raise TypeError(f"it gave {said!r:.80}, which is neither a number nor a Verdict")
    return float(said)


def _fatal(error: BranchError) -> bool:
    return isinstance(error, BackendError) and error.fatal
