"""What chooses the answer among all that has grown."""

from abc import ABC, abstractmethod

from branchwise.core.config import Config
from branchwise.core.node import Node


class Pick(Config, ABC):
    """Chooses the node that answers: a pure function of the tree."""

    @abstractmethod
    def __call__(self, root: Node) -> Node:
        """The chosen node; `root` itself where nothing has grown."""
