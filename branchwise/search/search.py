"""What the searches of this room have in common: a pick that chooses their answer."""

from typing import Annotated, ClassVar

from pydantic import Field

from branchwise.core.controller import Controller
from branchwise.core.node import Node
from branchwise.search.best import Best
from branchwise.search.card import Card
from branchwise.search.cluster import Cluster
from branchwise.search.dual_agreement import DualAgreement
from branchwise.search.mbr import MBR
from branchwise.search.vote import Vote

AnyPick = Annotated[Best | Vote | MBR | Cluster | DualAgreement, Field(discriminator="kind")]


class Search(Controller):
    """A controller whose answer is chosen by a pick.

    Args:
        pick: chooses the answer among what has grown.
    """

    card: ClassVar[Card]
    pick: AnyPick = Best()

    def answer(self, root: Node) -> Node:
        """What the pick chooses."""
        return self.pick(root)
