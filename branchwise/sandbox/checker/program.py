"""The process that runs the program."""

from __future__ import annotations

import _ctypes as ctypes  # the modules proper build classes, which takes longer than a test
import _signal as signal  # pyright: ignore[reportMissingImports]  # the same
import _socket as socket  # the same
import builtins
import io
import operator
import os
import resource
import struct
import sys

from .wire import LARGEST, changeable, exception, pack, receive, send, unpack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence
    from importlib.machinery import ModuleSpec
    from types import CodeType, ModuleType

PROGRAM, PRELUDE = "<program>", "<prelude>"
NO_NEW_RIGHTS, DIES_WITH_PARENT, DUMPABLE = 38, 1, 4


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
        if whose == "test":
            return Callback(number, self)
        if whose.startswith("language "):
            return vars(builtins)[whose.partition(" ")[2]]
        return self.things[number]

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
            mutable = changeable(*given[1:]) if what == "call" else []
            before = [self.packed(value) for value in mutable]
            result = getattr(self, f"do_{what}")(*given)
            after = [self.packed(value) for value in mutable]
            changes = [
                (place, mutable[place])
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
                raise exception(given[0], given[1])
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

    def do_await(self, coroutine: Coroutine[object, object, object]) -> object:
        """What a coroutine returns."""
        from asyncio import run  # noqa: PLC0415  (seldom needed, and slow to import)

        return run(coroutine)

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


def system(name: str, *args: int | bytes) -> None:
    """Call a function of the C library, where it has it."""
    try:
        function = ctypes.dlsym(ctypes.dlopen(None, 0), name)  # pyright: ignore[reportArgumentType]
    except OSError:
        return
    ctypes.call_function(function, args)


def control(number: int, value: int) -> None:
    """`prctl`."""
    system("prctl", number, value, 0, 0, 0)


def run_program(line: int, out: int, memory: int) -> None:
    """Be the process that runs the program."""
    os.setsid()
    control(DIES_WITH_PARENT, signal.SIGKILL)
    control(NO_NEW_RIGHTS, 1)
    if os.geteuid() == 0:  # root may look into every process
        system("capset", struct.pack("Ii", 0x20080522, 0), bytes(24))
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
