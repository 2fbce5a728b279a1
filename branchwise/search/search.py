"""What the searches of this room have in common: a pick that chooses their answer."""

from typing import Annotated, ClassVar

from pydantic import Field, SerializeAsAny, ValidatorFunctionWrapHandler, WrapValidator

from branchwise.core.controller import Controller
from branchwise.core.node import Node
from branchwise.search.best import Best
from branchwise.search.card import Card
from branchwise.search.cluster import Cluster
from branchwise.search.dual_agreement import DualAgreement
from branchwise.search.mbr import MBR
from branchwise.search.pick import Pick
from branchwise.search.vote import Vote

AnyPick = Annotated[Best | Vote | MBR | Cluster | DualAgreement, Field(discriminator="kind")]


def own(base: type) -> WrapValidator:
    """Take an object with this base as it is, also one that a union does not know."""

    def validate(value: object, handler: ValidatorFunctionWrapHandler) -> object:
        return value if isinstance(value, base) else handler(value)

    return WrapValidator(validate)


class Search(Controller):
    """A controller whose answer is chosen by a pick.

    Args:
        pick: chooses the answer among what has grown.
    """

    card: ClassVar[Card]
    pick: Annotated[SerializeAsAny[AnyPick], own(Pick)] = Best()

    def answer(self, root: Node) -> Node:
        """What the pick chooses."""
        return self.pick(root)
