"""Objects of the program, as the tests see them, and values as texts."""

from __future__ import annotations

import operator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .solution import Solution

SHOWN = 300
"""So many characters of a value are shown."""
ITEMS = 1000
"""So many items of an iterator belong to what a program does."""


class GoneError(BaseException):
    """The process of the program has ended, or what it says is no answer."""


class Proxy:
    """An object of the program, as the tests see it.

    It has no order and no arithmetic with values of the tests, so that no answer of its own making
    comes between a result and the value that is expected.
    """

    quiet = False
    __slots__ = ("proxy_kind", "proxy_label", "proxy_number", "proxy_side")

    def __init__(self, side: Solution, number: int, kind: str, label: str) -> None:
        for name, value in zip(Proxy.__slots__, (kind, label, number, side), strict=True):
            object.__setattr__(self, name, value)

    def __call__(self, *args: object, **named: object) -> object:
        """Call it, in the process of the program."""
        return self.proxy_side.ask("call", self, args, named, label=self.proxy_label)

    def __getattr__(self, name: str) -> object:
        value = self.proxy_side.ask("getattr", self, name)
        if isinstance(value, Proxy):
            object.__setattr__(value, "proxy_label", f"{self.proxy_label}.{name}")
        return value

    def __setattr__(self, name: str, value: object) -> None:
        self.proxy_side.ask("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        self.proxy_side.ask("delattr", self, name)

    def __getitem__(self, key: object) -> object:
        return self.proxy_side.ask("getitem", self, key)

    def __setitem__(self, key: object, value: object) -> None:
        self.proxy_side.ask("setitem", self, key, value)

    def __delitem__(self, key: object) -> None:
        self.proxy_side.ask("delitem", self, key)

    def __iter__(self) -> Iterator[object]:
        iterator = self.proxy_side.ask("iter", self)
        while True:
            found = self.proxy_side.ask("next", iterator)
            if not isinstance(found, tuple) or len(found) > 1:
                raise GoneError
            if not found:
                return
            yield found[0]

    def __next__(self) -> object:
        found = self.proxy_side.ask("next", self)
        if not isinstance(found, tuple) or len(found) > 1:
            raise GoneError
        if not found:
            raise StopIteration
        return found[0]

    def __len__(self) -> int:
        return operator.index(self.proxy_side.ask("len", self))

    def __bool__(self) -> bool:
        return self.proxy_side.ask("bool", self) is True

    def __str__(self) -> str:
        return _string(self.proxy_side.ask("str", self))

    def __repr__(self) -> str:
        if Proxy.quiet:
            return f"<{self.proxy_kind}>"
        return _string(self.proxy_side.ask("repr", self))

    def __enter__(self) -> object:
        return self.proxy_side.ask("enter", self)

    def __exit__(self, *_: object) -> None:
        self.proxy_side.ask("exit", self)

    def __instancecheck__(self, value: object) -> bool:
        return self.proxy_side.ask("isinstance", value, self) is True

    def __hash__(self) -> int:
        return hash(("an object of the program", self.proxy_number))

    def _compared(self, name: str, other: object) -> bool:
        if not isinstance(other, Proxy):
            return NotImplemented
        return self.proxy_side.ask("compare", name, self, other) is True

    def __eq__(self, other: object) -> bool:
        return self._compared("eq", other)

    def __ne__(self, other: object) -> bool:
        return self._compared("ne", other)

    def __lt__(self, other: object) -> bool:
        return self._compared("lt", other)

    def __le__(self, other: object) -> bool:
        return self._compared("le", other)

    def __gt__(self, other: object) -> bool:
        return self._compared("gt", other)

    def __ge__(self, other: object) -> bool:
        return self._compared("ge", other)


class Coroutine(Proxy):
    """A coroutine of the program: whoever awaits it has the program run it to its end."""

    __slots__ = ()

    def __next__(self) -> object:
        raise StopIteration(self.proxy_side.ask("await", self))

    def send(self, _: object) -> object:
        """What loops of events call."""
        return next(self)

    def __await__(self) -> Iterator[object]:
        return self.proxy_side.ask("await", self)
        yield

    def throw(self, error: BaseException) -> None:
        """What loops of events call to cancel it."""
        raise error

    def close(self) -> None:
        """It is closed by the program."""


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise GoneError
    return value


def shown(value: object) -> str:
    """A value for people, cut in the middle; the program is not asked."""
    Proxy.quiet = True
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  (such as a number with too many digits)
        text = f"<{kind_of(value)}>"
    finally:
        Proxy.quiet = False
    half = SHOWN // 2
    return text if len(text) <= SHOWN else f"{text[:half]} ... {text[-half:]}"


def kind_of(value: object) -> str:
    """The name of a value's type."""
    return value.proxy_kind if isinstance(value, Proxy) else type(value).__name__


def canonical(value: object, depth: int = 50) -> str:
    """A text that two values share where Python calls them equal, or nearly so for floats."""
    if depth == 0:
        return "..."
    if isinstance(value, Proxy):
        return f"<{kind_of(value)}>{_iterated(value, depth)}"
    inside = [canonical(item, depth - 1) for item in _members(value)]
    if isinstance(value, int):
        text = hex(value) if value.bit_length() > 1000 else str(int(value))  # noqa: PLR2004
    elif isinstance(value, float):
        text = str(int(value)) if value.is_integer() else format(value, ".10g")
    elif isinstance(value, list):
        text = f"[{', '.join(inside)}]"
    elif isinstance(value, tuple):
        text = f"({', '.join(inside)})"
    elif isinstance(value, dict):
        pairs = zip(inside, (canonical(item, depth - 1) for item in value.values()), strict=True)
        text = f"{{{', '.join(sorted(f'{key}: {item}' for key, item in pairs))}}}"
    elif isinstance(value, set | frozenset):
        text = f"{{{', '.join(sorted(inside))}}}" if inside else "set()"
    else:
        text = repr(value)
    return text


def _iterated(value: Proxy, depth: int) -> str:
    """What an object of the program gives when it is iterated over; nothing where it cannot be."""
    try:
        items = [item for item, _ in zip(value, range(ITEMS), strict=False)]
    except TypeError:
        return ""
    return canonical(items, depth - 1)


def _members(value: object) -> list[object]:
    return [*value] if isinstance(value, list | tuple | set | frozenset | dict) else []
