"""Keys and values of what was read and written lately, for calls that go on from there."""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeAlias

import torch

Tokens: TypeAlias = tuple[int, ...]
KeysValues: TypeAlias = tuple[torch.Tensor, torch.Tensor]


class Recent:
    """What a search asks next mostly continues what it has just been told: recall it, whole.

    The longest unused goes first.

    Args:
        room: the most bytes to keep; the newest is kept even where it is larger.

    Example:
        >>> recent = Recent(room=8)
        >>> for token in (1, 2):
        ...     recent.put((token,), (torch.zeros(1), torch.zeros(1)))
        >>> recent.get((1,)) is None, recent.get((2,)) is None
        (True, False)
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._used = 0
        self._kept: OrderedDict[Tokens, KeysValues] = OrderedDict()

    def get(self, tokens: Tokens) -> KeysValues | None:
        """The keys and values of exactly these tokens, where they are kept."""
        found = self._kept.get(tokens)
        if found is not None:
            self._kept.move_to_end(tokens)
        return found

    def put(self, tokens: Tokens, read: KeysValues) -> None:
        """Keep the keys and values of these tokens, dropping the oldest for want of room."""
        if self.get(tokens) is not None:
            return
        self._kept[tokens] = read
        self._used += _size(read)
        while self._used > self._room and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._used -= _size(dropped)


def _size(read: KeysValues) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in read)
