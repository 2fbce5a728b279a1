"""What crosses between the two processes: plain values, handles, exceptions, in messages."""

from __future__ import annotations

import builtins
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

LARGEST = 64 << 20
"""The most bytes of one message."""

HARMLESS = {
    *("abs", "all", "any", "ascii", "bin", "chr", "divmod", "hex", "len"),
    *("max", "min", "oct", "ord", "pow", "repr", "round", "sorted", "sum"),
}
"""Functions that cross, as types do but for `type` itself: the tests may call what they are given,
with arguments that they are given, and these can then do nothing to the process of the tests."""

_COUNT = struct.Struct("<I")
_FLOAT = struct.Struct("<d")


class GarbledError(Exception):
    """What came over the socket is no value."""


def pack(value: object, out: bytearray, opaque: Callable[[object], tuple[str, int]]) -> None:
    """Append a value; subclasses are reduced to their base.

    Args:
        value: what is written.
        out: where to.
        opaque: names what is not plain: whose it is and what type, and its number.
    """
    if value is None or isinstance(value, bool):
        out += b"N" if value is None else b"T" if value else b"F"
    elif isinstance(value, int):
        size = int.bit_length(value) // 8 + 1
        _text(b"i", int.to_bytes(value, size, "little", signed=True), out)
    elif isinstance(value, float):
        out += b"f" + _FLOAT.pack(value)
    elif isinstance(value, str):
        _text(b"s", str.encode(value, "utf-8", "surrogatepass"), out)
    elif isinstance(value, dict):
        items = list(dict.items(value))
        out += b"d" + _COUNT.pack(len(items))
        for item in items:
            pack(item[0], out, opaque)
            pack(item[1], out, opaque)
    elif isinstance(value, list | tuple | set | frozenset):
        members = [*value]
        tag = next(tag for base, tag in _GROUPS.items() if isinstance(value, base))
        out += tag + _COUNT.pack(len(members))
        for member in members:
            pack(member, out, opaque)
    else:
        _rare(value, out, opaque)


def _rare(value: object, out: bytearray, opaque: Callable[[object], tuple[str, int]]) -> None:
    kind = type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(value, complex):
        out += b"c" + _FLOAT.pack(value.real) + _FLOAT.pack(value.imag)
    elif isinstance(value, bytes | bytearray):
        _text(b"b" if isinstance(value, bytes) else b"a", bytes(memoryview(value)), out)
    elif name in _PARTS and (parts := _PARTS[name](value)) is not None:
        _text(b"p", name.encode(), out)
        pack(parts, out, opaque)
    elif name.startswith("numpy.") and hasattr(value, "tolist"):
        pack(value.tolist(), out, opaque)  # pyright: ignore[reportAttributeAccessIssue]
    elif (word := builtin(value)) and _crosses(value):
        _text(b"n", word.encode(), out)
    else:
        whose, number = opaque(value)
        _text(b"o", whose.encode("utf-8", "replace"), out)
        pack(number, out, opaque)


def builtin(value: object) -> str:
    """The name of a type or a function of the language; empty for all else."""
    word = getattr(value, "__name__", "") if isinstance(value, type | type(len)) else ""
    return word if vars(builtins).get(word) is value else ""


def _crosses(value: object) -> bool:
    if isinstance(value, type):
        return value is not type
    return builtin(value) in HARMLESS


def _named(data: bytes, at: int, size: int, _: object) -> tuple[object, int]:
    value = vars(builtins)[_word(data, at, size)]
    if not _crosses(value):
        raise GarbledError("not to be had by its name")
    return value, at + size


def unpack(data: bytes, opaque: Callable[[str, int], object]) -> object:
    """The value that the bytes hold; nothing is ever evaluated.

    Args:
        data: the bytes.
        opaque: makes a value of the name of what is not plain.

    Raises:
        GarbledError: they hold none.
    """
    try:
        value, end = _read(data, 0, opaque)
    except (
        ArithmeticError,
        ImportError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
        struct.error,
    ) as error:
        raise GarbledError("no value") from error
    if end != len(data):
        raise GarbledError("more than a value")
    return value


def _read(data: bytes, at: int, opaque: Callable[[str, int], object]) -> tuple[object, int]:
    tag = data[at : at + 1]
    at += 1
    if tag in _CONSTANTS:
        return _CONSTANTS[tag], at
    if tag == b"f":
        return _FLOAT.unpack_from(data, at)[0], at + 8
    if tag == b"c":
        parts = _FLOAT.unpack_from(data, at)[0], _FLOAT.unpack_from(data, at + 8)[0]
        return complex(*parts), at + 16
    (size,) = _COUNT.unpack_from(data, at)
    at += 4
    if tag in _TEXTS:
        if at + size > len(data):
            raise GarbledError("cut short")
        return _TEXTS[tag](data, at, size, opaque)
    if tag == b"d":
        table: dict[object, object] = {}
        for _ in range(size):
            key, at = _read(data, at, opaque)
            table[key], at = _read(data, at, opaque)
        return table, at
    members: list[object] = []
    for _ in range(size):
        member, at = _read(data, at, opaque)
        members.append(member)
    return _MADE[tag](members), at


def _text(tag: bytes, text: bytes, out: bytearray) -> None:
    out += tag + _COUNT.pack(len(text)) + text


def _word(data: bytes, at: int, size: int) -> str:
    return data[at : at + size].decode("utf-8", "surrogatepass")


def _whole(
    data: bytes, at: int, size: int, opaque: Callable[[str, int], object]
) -> tuple[object, int]:
    name = _word(data, at, size)
    parts, end = _read(data, at + size, opaque)
    if name not in _PARTS or not isinstance(parts, tuple):
        raise GarbledError("no such type")
    module, _, kind = name.partition(".")
    return getattr(__import__(module), kind)(*parts), end


def _handle(
    data: bytes, at: int, size: int, opaque: Callable[[str, int], object]
) -> tuple[object, int]:
    number, end = _read(data, at + size, opaque)
    if type(number) is not int:
        raise GarbledError("no number")
    return opaque(_word(data, at, size), number), end


_GROUPS: dict[type, bytes] = {list: b"l", tuple: b"t", set: b"S", frozenset: b"z"}
_MADE = {tag: kind for kind, tag in _GROUPS.items()}
_CONSTANTS = {b"N": None, b"T": True, b"F": False}
_TEXTS = {
    b"i": lambda data, at, size, _: (
        int.from_bytes(data[at : at + size], "little", signed=True),
        at + size,
    ),
    b"s": lambda data, at, size, _: (_word(data, at, size), at + size),
    b"b": lambda data, at, size, _: (data[at : at + size], at + size),
    b"a": lambda data, at, size, _: (bytearray(data[at : at + size]), at + size),
    b"n": _named,
    b"p": _whole,
    b"o": _handle,
}
_CLOCK = ("hour", "minute", "second", "microsecond")
_DAY = ("year", "month", "day")
_PARTS = {
    "builtins.range": lambda v: (v.start, v.stop, v.step),
    "collections.deque": lambda v: (list(v), v.maxlen),
    "datetime.date": lambda v: tuple(getattr(v, name) for name in _DAY),
    "datetime.datetime": lambda v: (
        None if v.tzinfo else tuple(getattr(v, name) for name in (*_DAY, *_CLOCK))
    ),
    "datetime.time": lambda v: None if v.tzinfo else tuple(getattr(v, name) for name in _CLOCK),
    "datetime.timedelta": lambda v: (v.days, v.seconds, v.microseconds),
    "decimal.Decimal": lambda v: (str(v),),
    "fractions.Fraction": lambda v: (v.numerator, v.denominator),
}
"""Types that cross as the arguments of their constructors."""


def changeable(args: object, named: object) -> list[object]:
    """The arguments of a call that it may change in place."""
    given = [*args, *named.values()] if isinstance(args, tuple) and isinstance(named, dict) else []
    return [value for value in given if type(value) in {list, dict, set}]


def change(old: object, new: object) -> None:
    """Give a list, dictionary or set the contents of another.

    Raises:
        GarbledError: the other is of another type.
    """
    if isinstance(old, list) and isinstance(new, list):
        old[:] = new
    elif isinstance(old, dict | set) and type(old) is type(new):
        old.clear()
        old.update(new)  # pyright: ignore[reportArgumentType, reportCallIssue]
    else:
        raise GarbledError("a value has changed its type")


def send(line: int, data: bytes | bytearray) -> None:
    """Write a message."""
    left = memoryview(_COUNT.pack(len(data)) + data)
    while left:
        left = left[os.write(line, left) :]


def _exactly(line: int, size: int, ready: Callable[[], None]) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        ready()
        if not (part := os.read(line, min(size - len(parts), 1 << 20))):
            raise EOFError
        parts += part
    return bytes(parts)


def receive(line: int, ready: Callable[[], None] = lambda: None) -> bytes:
    """Read a message.

    Args:
        line: where from.
        ready: returns when there is something to read.

    Raises:
        EOFError: the other side has closed.
        GarbledError: the message is too long.
    """
    (size,) = _COUNT.unpack(_exactly(line, 4, ready))
    if size > LARGEST:
        raise GarbledError("too long")
    return _exactly(line, size, ready)


def exception(names: object, message: object) -> BaseException:
    """The nearest builtin exception of these names, the type's own first."""
    if not isinstance(names, list) or not isinstance(message, str):
        raise GarbledError("no exception")
    if not names or not all(isinstance(name, str) for name in names):
        raise GarbledError("no names")
    for name in names:
        kind = vars(builtins).get(name)
        if isinstance(kind, type) and issubclass(kind, BaseException):
            try:
                return kind(message)
            except TypeError:  # it takes more than a message
                continue
    return RuntimeError(message)
