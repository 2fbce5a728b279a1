"""The program, as the tests reach it."""

from __future__ import annotations

import _signal as signal  # pyright: ignore[reportMissingImports]  # the module proper builds enumerations, which takes longer than a test
import _socket as socket  # the same
import operator
import os
import select
import struct

from .proxy import Coroutine, GoneError, Proxy, kind_of, shown
from .wire import GarbledError, builtin, change, changeable, exception, pack, receive, send, unpack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PRINTED = 2000
"""So many bytes of what the program prints during a test are kept."""


class Raised:
    """An exception of the program.

    Args:
        names: of its types, its own first.
        message: what it says.
        line: of the program; 0 where it is not known.
    """

    def __init__(self, names: object, message: object, line: int) -> None:
        self.error = exception(names, message)
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
        if word := builtin(value):  # the program uses its own, and gets none of this process
            return f"language {word}", 0
        if callable(value):
            self.callbacks.append(value)
            return "test", len(self.callbacks) - 1
        raise TypeError(f"a test cannot hand a {kind_of(value)} to the program")

    def meant(self, whose: str, number: int) -> object:
        """What a name stands for."""
        if whose == "test":
            return self.callbacks[number]
        if number not in self.things:
            kind = whose.partition(" ")[2]
            make = Coroutine if kind == "coroutine" else Proxy
            self.things[number] = make(self, number, kind, f"<{kind}>")
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
            change(changeable(*given[1:])[place], new)

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
