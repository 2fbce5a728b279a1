"""The one noun: a node of the search tree. A tree is its root."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

from branchwise.core.types import FREE, State, Step, Task, Usage, Verdict

_Said: TypeAlias = Verdict | float


class Node:
    """A place that the search has reached. Its identity is its path from the root.

    A node keeps what happened (its step, its state, the verdicts), never an algorithm's statistics.

    Args:
        task: what is asked.
        state: where the world stands.
        parent: the node it grew from; None for the root.
        index: which child of its parent it is, counted over all children ever promised.
        step: what was said to get here; None for the root and for a call that failed.

    Attributes:
        score: what the search ranks by, higher is better: the verifier in charge writes it; -inf
            where the branch failed.
        children: the nodes grown from here so far, in the order of `index`, failed ones included.
        promised: how many children have been promised so far; the next one's index.
        failure: why the branch failed; None where it did not.
        lost: what its failure has cost, where a model was paid for nothing.

    Example:
        >>> root = Node(Task("2 + 2?"), State())
        >>> root.path, root.depth, root.done
        ((), 0, False)
    """

    __slots__ = (
        "_judges",
        "_verdicts",
        "children",
        "failure",
        "index",
        "lost",
        "parent",
        "promised",
        "score",
        "state",
        "step",
        "task",
    )

    def __init__(
        self,
        task: Task,
        state: State,
        parent: Node | None = None,
        index: int = 0,
        step: Step | None = None,
    ) -> None:
        self.task = task
        self.state = state
        self.parent = parent
        self.index = index
        self.step = step
        self.score: float = state.reward
        self.failure: str | None = None
        self.lost: Usage = FREE
        self.children: tuple[Node, ...] = ()
        self.promised = 0
        # The names are one object for the whole tree, and a verdict that says nothing but its
        # score is kept as that number: a tree of a million nodes is mostly verdicts.
        self._judges: tuple[str, ...] = ()
        self._verdicts: _Said | tuple[_Said, ...] = ()

    @property
    def verdicts(self) -> Mapping[str, Verdict]:
        """Every verdict, under its verifier's name."""
        return MappingProxyType(dict(zip(self._judges, map(_verdict, self._said), strict=True)))

    @property
    def first_verdict(self) -> Verdict:
        """The verdict of the verifier in charge."""
        return _verdict(self._said[0])

    def judged(self, names: tuple[str, ...], verdicts: Sequence[Verdict]) -> None:
        """Write down the verdicts, one for each name."""
        self._judges = names
        if len(verdicts) == 1:
            self._verdicts = _plain(verdicts[0])
        else:
            self._verdicts = tuple([_plain(verdict) for verdict in verdicts])

    @property
    def _said(self) -> tuple[_Said, ...]:
        return self._verdicts if isinstance(self._verdicts, tuple) else (self._verdicts,)

    def failed(self, why: str, lost: Usage = FREE) -> None:
        """Mark the branch as failed; it stays in the tree as data."""
        self.failure, self.score, self.lost = why, -math.inf, lost

    @property
    def path(self) -> tuple[int, ...]:
        """The indices from the root down to here; () for the root."""
        indices: list[int] = []
        node = self
        while node.parent is not None:
            indices.append(node.index)
            node = node.parent
        return tuple(reversed(indices))

    @property
    def lineage(self) -> tuple[Node, ...]:
        """The nodes from the root down to here, both included."""
        nodes: list[Node] = [self]
        while (parent := nodes[-1].parent) is not None:
            nodes.append(parent)
        return tuple(reversed(nodes))

    @property
    def depth(self) -> int:
        """How many steps lie between the root and here."""
        return len(self.lineage) - 1

    @property
    def start(self) -> Node:
        """Where the text of this node begins: its last ancestor that was done, or the root.

        What is grown under a node that is done is a new draft, not its continuation.
        """
        node = self
        while (parent := node.parent) is not None:
            if parent.done:
                return parent
            node = parent
        return node

    @property
    def steps(self) -> tuple[Step, ...]:
        """What was said from `start` down to here."""
        steps: list[Step] = []
        node: Node | None = self
        while node is not None:
            if node.step is not None:
                steps.append(node.step)
            node = None if node.parent is None or node.parent.done else node.parent
        return tuple(reversed(steps))

    @property
    def text(self) -> str:
        """The text of all steps from `start` down to here."""
        return "".join(step.text for step in self.steps)

    @property
    def done(self) -> bool:
        """Whether nothing can be grown here: finished, cut short or failed."""
        return self.state.done or self.state.cut or self.failure is not None

    @property
    def finished(self) -> bool:
        """Whether the world came to its end here: not cut short and not failed."""
        return self.state.done and not self.state.cut and self.failure is None

    @property
    def cost(self) -> Usage:
        """What this node alone has cost: its step, its verdicts and its failure."""
        total = FREE if self.step is None else self.step.usage
        if isinstance(self._verdicts, float) and self.lost is FREE:
            return total
        total += self.lost
        for verdict in self._said:
            if isinstance(verdict, Verdict):
                total += verdict.usage
        return total

    @property
    def usage(self) -> Usage:
        """What the tree from here down has cost."""
        total = FREE
        for node in self.walk():
            cost = node.cost
            if cost is not FREE:
                total += cost
        return total

    def walk(self) -> Iterator[Node]:
        """All nodes from here down: a parent before its children, siblings in order."""
        stack: list[Node] = [self]
        while stack:
            node = stack.pop()
            yield node
            if node.children:
                stack.extend(node.children[::-1])

    def leaves(self) -> Iterator[Node]:
        """The nodes from here down that did not fail and have no child that did not, in order."""
        return (node for node in self.walk() if node.is_leaf)

    @property
    def is_leaf(self) -> bool:
        """Whether it did not fail and has no child that did not."""
        if not self.children:
            return self.failure is None
        return self.failure is None and all(v.failure is not None for v in self.children)

    def adopt(self, children: list[Node]) -> None:
        """Take in children, keeping the order of their indices whenever they arrive."""
        in_order = not self.children or self.children[-1].index < children[0].index
        everyone = (*self.children, *children)
        self.children = everyone if in_order else tuple(sorted(everyone, key=_index))

    def asked(self, task: Task) -> Node:
        """This node as a node of another task, for a grader that may see the target."""
        twin = Node(task, self.state, self.parent, self.index, self.step)
        twin.score, twin.failure, twin.lost = self.score, self.failure, self.lost
        twin._judges, twin._verdicts = self._judges, self._verdicts
        return twin

    def __repr__(self) -> str:
        said = "" if self.step is None else f" {self.step.text!r}"
        return f"<Node {'/'.join(map(str, self.path)) or 'root'} {self.score:.3g}{said}>"


def _index(node: Node) -> int:
    return node.index


def _plain(verdict: Verdict) -> _Said:
    if verdict.feedback or verdict.detail or verdict.steps or verdict.usage is not FREE:
        return verdict
    return verdict.score


def _verdict(said: _Said) -> Verdict:
    return said if isinstance(said, Verdict) else Verdict(said)
