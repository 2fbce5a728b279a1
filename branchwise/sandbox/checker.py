"""The script that judges a program from inside a sandbox; `harness` sends it there.

Two processes: this one, which knows the tests, and one that runs the program and never sees them.
The second is forked before the first test is read, holds neither the channel of the verdicts nor
that of the tests, and cannot look into the first, which is not dumpable. The tests call it over a
socket. What comes back is decoded as plain values, or as handles that equal no plain value, so that
every comparison is made here, between objects of this process.

It starts anew for each run, so it imports little: no `json`, no `ast`, no `typing`.
"""

from __future__ import annotations

import _signal as signal  # pyright: ignore[reportMissingImports]  # the module proper builds enumerations, which takes longer than a test
import _socket as socket  # the same
import binascii
import builtins
import ctypes
import io
import operator
import os
import resource
import select
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from importlib.machinery import ModuleSpec
    from types import CodeType, ModuleType

LARGEST = 64 << 20
"""The most bytes of one message."""
PRINTED = 2000
"""So many bytes of what the program prints during a test are kept."""
SHOWN = 300
"""So many characters of a value are shown."""
ITEMS = 1000
"""So many items of an iterator belong to what a program does."""
LONGEST = 10_000
"""A longer text of a value is replaced by its beginning and a digest."""
PROGRAM, PRELUDE = "<program>", "<prelude>"

_COUNT = struct.Struct("<I")
_FLOAT = struct.Struct("<d")
NO_NEW_RIGHTS, DIES_WITH_PARENT, DUMPABLE = 38, 1, 4


class GarbledError(Exception):
    """What came over the socket is no value."""


# ------------------------------------------------------------------------------------ plain values


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
    elif (word := _builtin(value)) is not None:
        _text(b"n", word.encode(), out)
    else:
        whose, number = opaque(value)
        _text(b"o", whose.encode("utf-8", "replace"), out)
        pack(number, out, opaque)


def _builtin(value: object) -> str | None:
    """The name of a type or a function of the language."""
    word = getattr(value, "__name__", "") if isinstance(value, type | type(len)) else ""
    return word if vars(builtins).get(word) is value else None


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
    b"n": lambda data, at, size, _: (vars(builtins)[_word(data, at, size)], at + size),
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


def _changeable(args: object, named: object) -> list[object]:
    """The arguments of a call that it may change in place."""
    given = [*args, *named.values()] if isinstance(args, tuple) and isinstance(named, dict) else []
    return [value for value in given if type(value) in {list, dict, set}]


def _change(old: object, new: object) -> None:
    if isinstance(old, list) and isinstance(new, list):
        old[:] = new
    elif isinstance(old, dict | set) and type(old) is type(new):
        old.clear()
        old.update(new)  # pyright: ignore[reportArgumentType, reportCallIssue]
    else:
        raise GarbledError("a value has changed its type")


# ---------------------------------------------------------------------------------------- the wire


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


def control(number: int, value: int) -> None:
    """`prctl`, where there is one."""
    if hasattr(_LIBC, "prctl"):
        _LIBC.prctl(number, *(ctypes.c_ulong(part) for part in (value, 0, 0, 0)))


_LIBC = ctypes.CDLL(None)


# ----------------------------------------------------------------------- the side of the program


class Callback:
    """A function of the tests, as the program sees it."""

    def __init__(self, number: int, side: Program) -> None:
        self.number, self.side = number, side

    def __call__(self, *args: object, **named: object) -> object:
        """Call it, in the process of the tests."""
        return self.side.back(self.number, args, named)


class Program:
    """Serves the program's objects to the tests.

    Args:
        line: the socket.
    """

    def __init__(self, line: int) -> None:
        self.line = line
        self.things: list[object] = []
        self.numbers: dict[int, int] = {}
        self.names: dict[str, object] = {}
        self.shift = 0

    def named(self, value: object) -> tuple[str, int]:
        """The name of what is not plain."""
        if isinstance(value, Callback):
            return "test", value.number
        if id(value) not in self.numbers:
            self.numbers[id(value)] = len(self.things)
            self.things.append(value)
        return f"program {type(value).__name__:.100}", self.numbers[id(value)]

    def meant(self, whose: str, number: int) -> object:
        """What a name stands for."""
        return Callback(number, self) if whose == "test" else self.things[number]

    def packed(self, value: object) -> bytes:
        """A value as bytes."""
        out = bytearray()
        pack(value, out, self.named)
        return bytes(out)

    def serve(self) -> None:
        """Answer until the tests are done."""
        while True:
            try:
                data = receive(self.line)
            except EOFError:
                return
            send(self.line, self.answer(data))

    def answer(self, data: bytes) -> bytes:
        """What a request comes to."""
        try:
            what, *given = self.request(data)
            changeable = _changeable(*given[1:]) if what == "call" else []
            before = [self.packed(value) for value in changeable]
            result = getattr(self, f"do_{what}")(*given)
            after = [self.packed(value) for value in changeable]
            changes = [
                (place, changeable[place])
                for place, (old, new) in enumerate(zip(before, after, strict=True))
                if old != new
            ]
            answer = self.packed(("ok", result, changes))
            if len(answer) > LARGEST:
                raise ValueError(f"the result is larger than {LARGEST >> 20} MiB")  # noqa: TRY301
        except BaseException as error:  # noqa: BLE001  (the program may raise anything)
            return self.failure(error)
        return answer

    def request(self, data: bytes) -> list[object]:
        """A message of the tests."""
        parts = unpack(data, self.meant)
        assert isinstance(parts, tuple)
        return [*parts]

    def failure(self, error: BaseException) -> bytes:
        """An exception as bytes: the names of its types, its message, the program's line."""
        names = [kind.__name__ for kind in type(error).__mro__]
        try:
            message = str(error)[:1000]
            if isinstance(error, SyntaxError):
                message = str(error.msg)
        except BaseException:  # noqa: BLE001  (the same)
            message = ""
        line, trace = 0, error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == PROGRAM:
                line = trace.tb_lineno
            trace = trace.tb_next
        if isinstance(error, SyntaxError) and error.filename == PROGRAM:
            line = error.lineno or 0
        return self.packed(("raise", names, message, max(line - self.shift, 0)))

    def back(self, number: int, args: tuple[object, ...], named: dict[str, object]) -> object:
        """Call a function of the tests."""
        send(self.line, self.packed(("back", number, args, named)))
        while True:
            what, *given = self.request(data := receive(self.line))
            if what == "returned":
                return given[0]
            if what == "raised":
                raise _exception(given[0], given[1])
            send(self.line, self.answer(data))

    def do_load(self, prelude: str, program: str) -> None:
        """Run the program itself."""
        module = type(sys)("program")
        sys.modules["program"] = module
        self.names = vars(module)
        for code in self.codes(prelude, program):
            exec(code, self.names)  # noqa: S102  (that is what it is for)
        if (random := sys.modules.get("random")) is not None:
            random.seed(0)  # so that a run can be repeated

    def codes(self, prelude: str, program: str) -> list[CodeType]:
        """The prelude and the program, or both as one where the program is its continuation."""
        try:
            whole = compile(program, PROGRAM, "exec", dont_inherit=True)
        except SyntaxError:
            continues = prelude != "" and program.lstrip("\r\n")[:1].isspace()
            if not continues:
                raise
            self.shift = prelude.count("\n")
            joined = compile(prelude + program, PROGRAM, "exec", dont_inherit=True)
            return [joined]
        try:
            return [compile(prelude, PRELUDE, "exec", dont_inherit=True), whole]
        except SyntaxError:  # it ends in the midst of what the program writes anew
            return [whole]

    def do_name(self, name: str) -> object:
        """What a global name stands for."""
        if name not in self.names:
            raise NameError(f"name {name!r} is not defined")
        return self.names[name]

    def do_call(
        self, function: Callable[..., object], args: Sequence[object], named: dict[str, object]
    ) -> object:
        """A call."""
        return function(*args, **named)

    def do_next(self, iterator: Iterator[object]) -> tuple[object, ...]:
        """The next item; nothing at the end."""
        for item in iterator:
            return (item,)
        return ()

    def do_compare(self, name: str, left: object, right: object) -> bool:
        """A comparison of two of its own objects."""
        return bool(getattr(operator, name)(left, right))

    def do_isinstance(self, value: object, kind: type) -> bool:
        """Whether a value is of a type of its own."""
        return isinstance(value, kind)

    do_getattr = staticmethod(getattr)
    do_setattr = staticmethod(setattr)
    do_delattr = staticmethod(delattr)
    do_getitem = staticmethod(operator.getitem)
    do_setitem = staticmethod(operator.setitem)
    do_delitem = staticmethod(operator.delitem)
    do_enter = staticmethod(lambda value: type(value).__enter__(value))
    do_exit = staticmethod(lambda value: type(value).__exit__(value, None, None, None))
    do_iter = staticmethod(iter)
    do_len = staticmethod(len)
    do_bool = staticmethod(bool)
    do_str = staticmethod(str)
    do_repr = staticmethod(repr)


def _exception(names: object, message: object) -> BaseException:
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


class Packages:
    """Makes the installed packages known when the program first asks for what is not yet known.

    The interpreter starts without them, in half the time.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None, /
    ) -> ModuleSpec | None:
        """Where the module is, now that more places are known."""
        sys.meta_path.remove(self)
        import site  # noqa: PLC0415  (the point of this class)

        site.main()
        return sys.meta_path[-1].find_spec(name, path, target)


def run_program(line: int, out: int, memory: int) -> None:
    """Be the process that runs the program."""
    os.setsid()
    control(DIES_WITH_PARENT, signal.SIGKILL)
    control(NO_NEW_RIGHTS, 1)
    if os.geteuid() == 0 and hasattr(_LIBC, "capset"):  # root may look into every process
        _LIBC.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for end in (1, 2):
        os.dup2(out, end)
    os.dup2(line, 3)
    os.closerange(4, 1 << 16)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
    sys.meta_path.append(Packages())
    for word in ("exit", "quit"):
        setattr(builtins, word, sys.exit)
    # Lower than the sandbox's limit: the program then fails alone, and the tests go on.
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    Program(3).serve()


def breed(control_line: socket.socket, verdicts: int, memory: int) -> None:
    """Be the process that forks one process for the program whenever it is asked to."""
    control(DIES_WITH_PARENT, signal.SIGKILL)
    nothing = os.open(os.devnull, os.O_RDWR)
    for end in (0, 1, 2, verdicts):
        os.dup2(nothing, end)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        data, carried, _, _ = control_line.recvmsg(1, socket.CMSG_SPACE(8))
        if not data:
            return
        line, out = struct.unpack("ii", carried[0][2])
        if not (child := os.fork()):
            control_line.close()
            run_program(line, out, memory)
            return
        os.close(line)
        os.close(out)
        control_line.send(struct.pack("i", child))


# -------------------------------------------------------------------------- the side of the tests


class TimeUpError(BaseException):
    """A test has taken too long; no test can catch it as an `Exception`."""


class GoneError(BaseException):
    """The process of the program has ended, or what it says is no answer."""


class FailedError(AssertionError):
    """An assertion that does not hold.

    Args:
        told: what is the case instead.
    """

    def __init__(self, told: str) -> None:
        super().__init__(told)
        self.told = told


def shown(value: object) -> str:
    """A value for people, cut in the middle; the program is not asked."""
    Proxy.quiet = True
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  (such as a number with too many digits)
        text = f"<{_kind(value)}>"
    finally:
        Proxy.quiet = False
    half = SHOWN // 2
    return text if len(text) <= SHOWN else f"{text[:half]} ... {text[-half:]}"


def _kind(value: object) -> str:
    return value.proxy_kind if isinstance(value, Proxy) else type(value).__name__


def canonical(value: object, depth: int = 50) -> str:
    """A text that two values share where Python calls them equal, or nearly so for floats."""
    if depth == 0:
        return "..."
    if isinstance(value, Proxy):
        return f"<{_kind(value)}>{_iterated(value, depth)}"
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


class Raised:
    """An exception of the program.

    Args:
        names: of its types, its own first.
        message: what it says.
        line: of the program; 0 where it is not known.
    """

    def __init__(self, names: object, message: object, line: int) -> None:
        self.error = _exception(names, message)
        if isinstance(self.error, StopIteration):  # it would end a loop of the test in silence
            self.error = RuntimeError("the program raised StopIteration")
        vars(self.error)["program"] = (names, message, line)


class Solution:
    """The program, as the tests reach it.

    Args:
        breeder: the socket of the process that starts it.
        label: what the entry point is called.
    """

    def __init__(self, breeder: socket.socket) -> None:
        ours, theirs = socket.socketpair()
        self.out, out = os.pipe()
        fds = struct.pack("ii", theirs.fileno(), out)
        try:
            breeder.sendmsg([b"+"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
            answer = breeder.recv(4)
        except OSError:
            answer = b""
        self.gone = not answer  # where a program has killed the process that starts it anew
        self.pid = struct.unpack("i", answer)[0] if answer else 0
        theirs.close()
        os.close(out)
        os.set_blocking(self.out, False)
        self.socket, self.line = ours, ours.fileno()
        self.poll = select.poll()
        self.poll.register(self.line, select.POLLIN)
        self.poll.register(self.out, select.POLLIN)
        self.printed = bytearray()
        self.things: dict[int, Proxy] = {}
        self.callbacks: list[Callable[..., object]] = []
        self.last: tuple[str, bytes] | None = None
        self.result: object = None

    def kill(self) -> None:
        """End it, and all that it has started."""
        if self.gone:
            return
        self.gone = True
        self.drain()
        for kill in (os.killpg, os.kill):
            try:
                kill(self.pid, signal.SIGKILL)
            except OSError:
                continue
        self.socket.close()
        os.close(self.out)

    def drain(self) -> None:
        """Take what it has printed."""
        try:
            while part := os.read(self.out, 1 << 16):
                self.printed += part[: max(PRINTED - len(self.printed), 0)]
            self.poll.unregister(self.out)  # nobody is left who could print
        except (BlockingIOError, KeyError):
            pass

    def ready(self) -> None:
        """Wait until there is an answer."""
        while True:
            happened = {end for end, _ in self.poll.poll()}
            if self.line in happened:
                return
            part = os.read(self.out, 1 << 16)
            if part:
                self.printed += part[: max(PRINTED - len(self.printed), 0)]
            else:
                self.poll.unregister(self.out)

    def named(self, value: object) -> tuple[str, int]:
        """The name of what is not plain."""
        if isinstance(value, Proxy) and value.proxy_side is self:
            return "program", value.proxy_number
        if callable(value):
            self.callbacks.append(value)
            return "test", len(self.callbacks) - 1
        raise TypeError(f"a test cannot hand a {_kind(value)} to the program")

    def meant(self, whose: str, number: int) -> object:
        """What a name stands for."""
        if whose == "test":
            return self.callbacks[number]
        if number not in self.things:
            kind = whose.partition(" ")[2]
            self.things[number] = Proxy(self, number, kind, f"<{kind}>")
        return self.things[number]

    def send(self, *message: object) -> bytes:
        """Send a message; what was sent."""
        out = bytearray()
        pack(message, out, self.named)
        try:
            send(self.line, out)
        except OSError as error:
            self.kill()
            raise GoneError from error
        return bytes(out)

    def ask(self, what: str, *given: object, label: str = "") -> object:
        """Have the program do something.

        Raises:
            GoneError: its process has ended, or said what is no answer.
        """
        if self.gone:
            raise GoneError
        request = self.send(what, *given)
        if what == "call":
            self.last, self.result = (label, request), None
        try:
            result = self.reply(given)
        except (EOFError, OSError, GarbledError, TypeError, ValueError, LookupError) as error:
            self.kill()
            raise GoneError from error
        failed = isinstance(result, Raised)
        if what == "call":
            self.last, self.result = (label, request), result.error if failed else result
        if failed:
            raise result.error
        return result

    def reply(self, given: tuple[object, ...]) -> object:
        """What a request has come to."""
        while True:
            reply = unpack(receive(self.line, self.ready), self.meant)
            if not isinstance(reply, tuple):
                raise GarbledError("no message")
            if reply[0] != "back":
                break
            self.call_back(*reply[1:])
        if reply[0] != "ok":
            _, names, message, line = reply
            return Raised(names, message, operator.index(line))
        _, result, changes = reply
        self.change(given, changes)
        return result

    def call_back(self, number: int, args: Sequence[object], named: dict[str, object]) -> None:
        """Call a function of the tests for the program."""
        function = self.callbacks[number]
        try:
            result = function(*args, **named)
        except Exception as error:  # noqa: BLE001  (it belongs to the program, which may expect it)
            names = [kind.__name__ for kind in type(error).__mro__]
            self.send("raised", names, str(error))
        else:
            self.send("returned", result)

    def change(self, given: tuple[object, ...], changes: object) -> None:
        """Change the arguments of a call as the program has changed its copies."""
        if not isinstance(changes, list):
            raise GarbledError("no changes")
        for place, new in changes:
            _change(_changeable(*given[1:])[place], new)

    def call(self) -> str:
        """The last call, as one would write it."""
        if self.last is None:
            return "the program"
        label, request = self.last
        parts = unpack(request, self.again)
        assert isinstance(parts, tuple)
        _, _, args, named = parts
        texts = [shown(arg) for arg in args]
        texts += [f"{name}={shown(arg)}" for name, arg in named.items()]
        return f"{label}({', '.join(texts)})"

    def again(self, whose: str, number: int) -> object:
        """What a name stands for in a request that was sent."""
        return self.callbacks[number] if whose == "test" else self.things[number]


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


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise GoneError
    return value


class Names(dict[str, object]):
    """The global names of a test: its own, then those of the language, then the program's.

    Args:
        solution: the program.
        entry_point: the name that is the program's even where the language has it too.
    """

    def __init__(self, solution: Solution, entry_point: str) -> None:
        super().__init__(
            __name__="tests", __builtins__=builtins, _untrue=self.untrue, _unequal=self.unequal
        )
        self.solution, self.entry_point = solution, entry_point

    def __missing__(self, name: str) -> object:
        if name != self.entry_point and name in vars(builtins):
            raise KeyError(name)
        value = self.solution.ask("name", name)
        if isinstance(value, Proxy):
            object.__setattr__(value, "proxy_label", name)
        return value

    def unequal(self, left: object, right: object, sign: str, source: str) -> None:
        """A comparison that does not hold."""
        side = self.solution
        said = left is side.result and side.last is not None
        what = f"{side.call()} returned" if said else f"`{source}` is"
        expected = shown(right) if sign == "==" else f"{sign} {shown(right)}"
        raise FailedError(f"{what} {shown(left)}, expected {expected}")

    def untrue(self, value: object, source: str) -> None:
        """What is not true."""
        side = self.solution
        if value is side.result and side.last is not None:
            raise FailedError(f"{side.call()} returned {shown(value)}, expected a true value")
        called = f": {side.call()} returned {shown(side.result)}" if side.last is not None else ""
        raise FailedError(f"`{source}` does not hold{called}")


def alarm(seconds: float) -> None:
    """Raise `TimeUpError` after so many seconds; never, for 0."""
    signal.setitimer(signal.ITIMER_REAL, seconds)


class Checker:
    """Runs the tests.

    Args:
        job: what `harness` has sent.
        breeder: the socket of the process that starts the program.
        tell: takes each verdict.
    """

    def __init__(
        self, job: dict[str, object], breeder: socket.socket, tell: Callable[[object], None]
    ) -> None:
        self.prelude, self.program = job["prelude"], job["program"]
        self.trusted = str(job["trusted"])
        self.seconds = float(str(job["seconds"]))
        self.tests: list[tuple[str, str, str]] = []
        if isinstance(job["tests"], list):
            self.tests += job["tests"]
        self.breeder, self.tell = breeder, tell
        self.solution = Solution(breeder)
        self.late = False
        signal.signal(signal.SIGALRM, self.time_up)

    def time_up(self, _: int, __: object) -> None:
        """The handler of the alarm."""
        self.late = True
        raise TimeUpError

    def judged(self, work: Callable[[], object]) -> dict[str, object]:
        """What some work comes to, within its time."""
        side = self.solution
        side.last, side.result, self.late = None, None, False
        side.printed.clear()
        verdict: dict[str, object] = {"status": "passed"}
        try:
            try:
                alarm(self.seconds)
                verdict["value"] = work()
            except Exception as error:  # noqa: BLE001  (whatever a test or the program raises)
                verdict = self.fallen(error)
            finally:
                alarm(0)
        except BaseException as error:  # noqa: BLE001  (the program may exit, and be interrupted)
            verdict = self.fallen(error)
        # A test may catch what it likes: what has happened counts, not what it has raised.
        if self.late:
            told = f"{side.call()} took longer than {self.seconds:g} s"
            verdict = {"status": "timeout", "told": told}
            side.kill()
        elif side.gone:
            verdict = {"status": "died", "told": f"{side.call()} ended its process"}
        else:
            side.drain()
        return verdict | {"printed": side.printed.decode("utf-8", "replace")}

    def fallen(self, error: BaseException) -> dict[str, object]:
        """What an exception says about the program."""
        side = self.solution
        if isinstance(error, FailedError):
            return {"status": "failed", "told": error.told}
        if "program" in vars(error):
            (kind, *_), message, line = vars(error)["program"]
            told = f"{side.call()} raised {kind}" + (f": {message}" if message else "")
            return {"status": "raised", "told": told, "kind": kind[:100], "line": line}
        kind, message = type(error).__name__, f"{error}"[:SHOWN]
        if isinstance(error, AssertionError):
            return {"status": "failed", "told": message or "an assertion of the test does not hold"}
        told = f"the test raised {kind}: {message}"
        if side.last is not None:
            told += f", after {side.call()} returned {shown(side.result)}"
        return {"status": "raised", "told": told, "kind": kind, "line": 0}

    def run(self) -> None:
        """Load the program and run all tests, each verdict told as soon as it is known."""
        loaded = self.judged(self.load)
        self.tell(loaded)
        if loaded["status"] != "passed":
            return
        trusted = compile(self.trusted, PRELUDE, "exec", dont_inherit=True)
        for test in self.tests:
            if self.solution.gone:
                self.solution = Solution(self.breeder)
                self.judged(self.load)
            self.tell(self.judged(lambda test=test: self.tried(test, trusted)))

    def load(self) -> None:
        """Have the program run itself."""
        self.solution.ask("load", self.prelude, self.program)

    def tried(self, test: tuple[str, str, str], trusted: CodeType) -> str:
        """Run one test; what its last expression is worth, where it has one."""
        setup, expression, entry_point = test
        names = Names(self.solution, entry_point)
        exec(trusted, names)  # noqa: S102  (the tests' own)
        exec(compile(setup, "<test>", "exec", dont_inherit=True), names)  # noqa: S102  (the same)
        if not expression:
            return ""
        code = compile(expression, "<test>", "eval", dont_inherit=True)
        text = canonical(eval(code, names))  # noqa: S307  (the same)
        if len(text) <= LONGEST:
            return text
        from hashlib import sha256  # noqa: PLC0415  (seldom needed, and slow to import)

        return f"{text[:SHOWN]}... {sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"


def main() -> None:
    """Fork, read the tests, judge."""
    control(DUMPABLE, 0)
    del sys.path[0]  # the folder that the program may write in
    verdicts = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)
    memory = int(sys.argv[1])
    breeder, theirs = socket.socketpair()
    if not os.fork():
        breeder.close()
        os.close(nothing)
        try:
            breed(theirs, verdicts, memory)
        finally:
            os._exit(0)
    theirs.close()
    parts: list[bytes] = []
    while part := os.read(0, 1 << 20):
        parts.append(part)
    job = unpack(b"".join(parts), lambda *_: None)
    assert isinstance(job, dict)
    secret = str(job["secret"]).encode()

    def tell(what: object) -> None:
        out = bytearray()
        pack(what, out, lambda _: ("", 0))
        line = memoryview(secret + binascii.b2a_base64(out))
        while line:
            line = line[os.write(verdicts, line) :]

    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115  (tests may print)
    tell("ready")
    try:
        Checker(job, breeder, tell).run()
    except BaseException as error:  # noqa: BLE001  (a fault of this script, not of the program)
        tell(f"{type(error).__name__}: {error}")
    os._exit(0)
