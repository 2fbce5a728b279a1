"""The process that knows the tests."""

from __future__ import annotations

import _signal as signal  # pyright: ignore[reportMissingImports]  # the module proper builds enumerations, which takes longer than a test
import _socket as socket  # the same
import binascii
import builtins
import os
import sys

from .program import DUMPABLE, PRELUDE, breed, control
from .proxy import SHOWN, Proxy, canonical, shown
from .solution import Solution
from .wire import pack, unpack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType

LONGEST = 10_000
"""A longer text of a value is replaced by its beginning and a digest."""


class TimeUpError(BaseException):
    """A test has taken too long; no test can catch it as an `Exception`."""


class FailedError(AssertionError):
    """An assertion that does not hold.

    Args:
        told: what is the case instead.
    """

    def __init__(self, told: str) -> None:
        super().__init__(told)
        self.told = told


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
