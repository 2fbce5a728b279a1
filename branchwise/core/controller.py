"""The one rule: a controller turns a root and the verb into an answer."""

from abc import ABC, abstractmethod

from branchwise.core.config import Config
from branchwise.core.node import Node
from branchwise.core.types import Expand


class Controller(Config, ABC):
    """A search algorithm: `grow` spends, `answer` chooses from what has grown.

    The two are apart so that every algorithm is anytime: `grow` may be cut at any await, and
    `answer` works on any tree, its own or not.
    """

    @abstractmethod
    async def grow(self, root: Node, expand: Expand) -> None:
        """Grow the tree under `root`.

        Raises:
            Exhausted: the budget is spent.
            SearchFailed: no call succeeds any more.
        """

    @abstractmethod
    def answer(self, root: Node) -> Node:
        """The node that answers; `root` itself where nothing has grown."""
