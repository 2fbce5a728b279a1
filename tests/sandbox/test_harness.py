import math
from collections import OrderedDict, deque
from datetime import date, timedelta
from enum import IntEnum
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchwise.core.aio import gather
from branchwise.core.errors import SandboxError, SpecError
from branchwise.sandbox.bubblewrap import Bubblewrap
from branchwise.sandbox.checker import wire
from branchwise.sandbox.harness import check, prepared, trusted
from branchwise.sandbox.ran import Limits, Ran

LIMITS = Limits(seconds=1)
GOOD = "def f(x):\n    return x * x + 1\n"
TESTS = ["assert f(3) == 10", "assert abs(f(4) - 17) < 1e-6", "assert [f(5)] == [26]"]
TESTS += [
    "assert 37 in [f(6)] and f(6) in (37,)",
    "assert all(map(lambda x: f(x) == x * x + 1, [7, 8]))",
]
TESTS += ["assert f(7) is not None and not f(7) != 50", "assert str(f(9)) == '82'"]


@pytest.fixture
async def sandbox():
    opened = Bubblewrap(workers=4).open()
    try:
        live = await opened.__aenter__()
    except SpecError as error:
        pytest.skip(f"no sandbox: {error}")
    yield live
    await opened.__aexit__(None, None, None)


def opaque(_):
    raise AssertionError("not plain")


def packed(value):
    out = bytearray()
    wire.pack(value, out, opaque)
    return bytes(out)


def crossed(value):
    return wire.unpack(packed(value), opaque)


ATOMS = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.complex_numbers(), st.binary()),
    *(
        st.text(st.characters()),
        st.fractions(),
        st.decimals(allow_nan=False),
        st.dates(),
        st.timedeltas(),
    ),
)
VALUES = st.recursive(
    ATOMS,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(ATOMS, inner),
    max_leaves=6,
)


@given(VALUES)
@settings(max_examples=40)
def test_plain_values_cross_as_they_are(value):
    assert repr(crossed(value)) == repr(value)


@given(st.sets(st.frozensets(st.integers() | st.text() | st.booleans())))
@settings(max_examples=40)
def test_sets_cross_as_they_are(value):
    assert crossed(value) == value
    assert type(crossed(value)) is set


RARE = [10**5000, -(2**64), "\ud83d\ude00", "\ud800", math.inf, range(1, 9, 2), deque([1, 2], 5)]
RARE += [bytearray(b"x"), int, len, date(2020, 1, 2), timedelta(1), Fraction(1, 3)]


def test_rare_values_cross_too():
    assert crossed(RARE) == RARE
    assert [type(value) for value in crossed(RARE)] == [type(value) for value in RARE]


class Odd(str):  # noqa: SLOT000  (odd)
    def __eq__(self, other):
        return True

    def __len__(self):
        return 0

    def encode(self, *_):
        return b"all"

    __hash__ = str.__hash__


class Colour(IntEnum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "plain"),
    [(Odd("x"), "x"), (Colour.RED, 1), (OrderedDict(a=Odd("y")), {"a": "y"}), ({Odd("z")}, {"z"})],
)
def test_subclasses_are_reduced_to_their_base(value, plain):
    assert repr(crossed(value)) == repr(plain)


@given(VALUES, st.data())
@settings(max_examples=60)
def test_garbage_is_no_value(value, data):
    whole = packed(value)
    changed = bytearray(whole)
    place = data.draw(st.integers(0, len(whole) - 1))
    changed[place] ^= data.draw(st.integers(1, 255))
    for garbage in (whole[:-1], whole + b"N", b"", bytes(changed)):
        try:
            got = wire.unpack(garbage, lambda *_: None)
        except wire.GarbledError:
            continue
        assert garbage == bytes(changed)  # another value, whole and plain
        crossed(got)


ALWAYS = """
class Always:
    def __getattr__(self, name): return self
    def __call__(self, *_): return self
    def __iter__(self): return iter([self])
    __eq__ = __ne__ = __lt__ = __gt__ = __le__ = __contains__ = __bool__ = lambda *_: True
    __sub__ = __rsub__ = __abs__ = __getitem__ = lambda *_: always
    __hash__ = lambda _: 0
    __len__ = lambda _: 1
    __str__ = __repr__ = lambda _: '82'
always = Always()
"""
FAKES = {
    "leaves at once": "import os\nos._exit(0)",
    "leaves when called": "import os\ndef f(x): os._exit(0)",
    "exits at once": "raise SystemExit(0)",
    "exits when called": "import sys\ndef f(x): sys.exit(0)",
    "stops the loop": "def f(x): raise StopIteration",
    "stops the generator": "def f(x): raise GeneratorExit",
    "interrupts": "def f(x): raise KeyboardInterrupt",
    "asserts": "def f(x): raise AssertionError",
    "prints": "print('passed\\n' * 9)\ndef f(x): print({'status': 'passed'}); return 'passed'",
    "patches": """
import builtins, operator, sys, unittest
from checker import judge, program, proxy, solution, wire
class Fine(Exception): pass
builtins.AssertionError = unittest.TestCase.failureException = Fine
builtins.isinstance = builtins.all = builtins.abs = operator.eq = lambda *_: True
for name, kind in [pair for module in (judge, program, proxy, solution, wire) for pair in vars(module).items()]:
    if isinstance(kind, type):
        for method in ('judged', 'fallen', 'unequal', 'untrue', '__eq__'):
            try: setattr(kind, method, lambda *_: {'status': 'passed'})
            except TypeError: pass
sys.modules['__main__'] = sys.modules['builtins'] = judge
def f(x): return 1
""",
    "equals everything": ALWAYS + "def f(x): return always",
    "equals everything inside": ALWAYS + "def f(x): return [always]",
    "lies about its class": ALWAYS + "Always.__class__ = int\ndef f(x): return always",
    "a number that equals everything": """
class N(int):
    __eq__ = __lt__ = __gt__ = lambda *_: True
    __ne__ = lambda *_: False
    __sub__ = __abs__ = __rsub__ = lambda *_: N(0)
    __hash__ = int.__hash__
def f(x): return N(0)
""",
    "a text that equals everything": "class S(str):\n    __eq__ = lambda *_: True\n    __hash__ = str.__hash__\ndef f(x): return S()",
    "not a number": "def f(x): return float('nan')",
    "kills what is around it": """
import os, signal
for pid in map(int, filter(str.isdigit, os.listdir('/proc'))):
    if pid != os.getpid():
        try: os.kill(pid, signal.SIGKILL)
        except OSError: pass
def f(x): return 1
""",
    "kills its parent and leaves": "import os\ndef f(x):\n    os.kill(os.getppid(), 9)\n    os._exit(0)",
    "stops what is around it": """
import os, signal
for pid in map(int, filter(str.isdigit, os.listdir('/proc'))):
    if pid != os.getpid():
        try: os.kill(pid, signal.SIGSTOP)
        except OSError: pass
def f(x): return 1
""",
    "writes garbage": "import os\ndef f(x):\n    os.write(3, bytes(range(256)) * 9)\n    return 1",
    "writes a long message": "import os\ndef f(x):\n    os.write(3, b'\\xff' * 99)",
    "answers True": """
import os
from checker import wire
def f(x):
    out = bytearray()
    wire.pack(('ok', True, []), out, None)
    while True: wire.send(3, out)
""",
    "answers in the depth": "from checker import wire\ndef f(x):\n    wire.send(3, b'l\\x01\\0\\0\\0' * 100_000 + b'N')\n    return 1",
    "calls what there is not": """
from checker import wire
def f(x):
    out = bytearray()
    wire.pack(('back', 0, ('x',), {}), out, None)
    wire.send(3, out)
    return wire.receive(3)
""",
    "raises what is no exception": """
from checker import wire
def f(x):
    out = bytearray()
    wire.pack(('raise', ['print', 7], 'passed', 'one'), out, None)
    wire.send(3, out)
    return 1
""",
    "has a child that answers": """
import os, time
from checker import wire
def f(x):
    out = bytearray()
    wire.pack(('ok', True, []), out, None)
    if not os.fork():
        os.setsid()
        time.sleep(0.05)
        while True: wire.send(3, out)
    os._exit(0)
""",
    "has threads that answer": """
import threading
from checker import wire
def f(x):
    out = bytearray()
    wire.pack(('ok', 11, []), out, None)
    for _ in range(3): threading.Thread(target=wire.send, args=(3, out), daemon=True).start()
    return 1
""",
    "recurses": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x)",
    "holds itself": "def f(x):\n    y = []\n    y.append(y)\n    return y",
    "says much": "def f(x):\n    for _ in range(2000): print('x' * 1000)\n    return 'y' * 1000",
    "returns too much": "def f(x): return bytes(65 << 20)",
    "never ends": "def f(x):\n    while True: pass",
    "never stops giving": "def f(x):\n    while True: yield x",
    "writes modules": """
import decimal, os
for name in ('decimal', 'fractions', 'hashlib', 'site', 'checker'):
    open(name + '.py', 'w').write('class Decimal:\\n    def __init__(self, *_): pass\\n    __eq__ = lambda *_: True')
def f(x): return decimal.Decimal(2)
""",
}
SPY = """
import ctypes, gc, glob, os, sys
found = []
def look(name, text):
    if b'f(3) =' + b'= 10' in text or b'4) - ' + b'17' in text: found.append(name)
for path in glob.glob('/proc/[0-9]*/*') + glob.glob('/proc/[0-9]*/fd/*') + glob.glob('*'):
    if '/%d/' % os.getpid() in path: continue
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        found.append(path) if '/mem' in path or '/fd/' in path else None
    except OSError:
        try: descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError: continue
    try: look(path, os.read(descriptor, 1 << 20))
    except OSError: pass
    os.close(descriptor)
look('memory', repr([o for o in gc.get_objects() if isinstance(o, (str, dict, list, tuple))]).encode())
frame = sys._getframe()
while frame is not None:
    look('frames', repr((frame.f_locals, frame.f_globals)).encode())
    frame = frame.f_back
libc = ctypes.CDLL(None, use_errno=True)
for pid in (os.getppid(), 2, 1):
    if not (child := os.fork()): os._exit(libc.ptrace(16, pid, 0, 0) != 0)
    if os.waitpid(child, 0)[1] == 0: found.append('ptrace')
def f(x):
    return found
"""


@pytest.mark.anyio
async def test_a_right_program_passes(sandbox):
    assert (await check(sandbox, GOOD, TESTS, entry_point="f")).marks == "1" * len(TESTS)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # the walls know of no loop
async def test_no_test_can_be_passed_by_a_trick(sandbox):
    async def marks(program):
        checked = await check(sandbox, program, TESTS, entry_point="f", seconds=0.2, limits=LIMITS)
        return checked.marks

    passed = dict(zip(FAKES, await gather(marks, [*FAKES.values()]), strict=True))
    # What prints as the expected text is the expected text.
    passed = {
        name: marks[:-1] if "equals everything" in name else marks for name, marks in passed.items()
    }
    assert {name: marks for name, marks in passed.items() if "1" in marks} == {}


@pytest.mark.anyio
async def test_the_tests_cannot_be_read(sandbox):
    checked = await check(sandbox, SPY, ["f(3)", *TESTS], entry_point="f")
    assert (checked.outcomes[0].value, checked.fault) == ("[]", None)


@pytest.mark.anyio
async def test_one_test_does_not_hide_the_marks_of_the_others(sandbox):
    program = """
import os
def f(x):
    print("x is", x)
    if x == 1:
        while True: pass
    if x == 2:
        os._exit(0)
    return [10, 11, 12, 13][x]
"""
    tests = [
        "assert f(0) == 10",
        "assert f(1) == 11",
        "assert f(2) == 12",
        "assert f(3) == 0",
        "assert f(4)",
    ]
    checked = await check(sandbox, program, [*tests, "f(3)"], entry_point="f", seconds=0.2)
    assert checked.marks == "1TX0E1"
    told = [outcome.told for outcome in checked.outcomes]
    assert told[1:5] == [
        "f(1) took longer than 0.2 s",
        "f(2) ended its process",
        "f(3) returned 13, expected 0",
        "f(4) raised IndexError: list index out of range at line 9: `return [10, 11, 12, 13][x]`",
    ]
    assert [outcome.printed for outcome in checked.outcomes] == [
        f"x is {x}\n" for x in (0, 1, 2, 3, 4, 3)
    ]
    assert (checked.outcomes[4].kind, checked.outcomes[4].line) == ("IndexError", 9)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("program", "kind", "told"),
    [
        (
            "x = 1\ndef f(:\n",
            "SyntaxError",
            "the program raised SyntaxError: invalid syntax at line 2: `def f(:`",
        ),
        (
            "\n1 / 0",
            "ZeroDivisionError",
            "the program raised ZeroDivisionError: division by zero at line 2: `1 / 0`",
        ),
        ("while True: pass", "", "the program took longer than 0.2 s"),
        ("import os\nos._exit(3)", "", "the program ended its process"),
    ],
)
async def test_what_cannot_be_loaded_passes_no_test(sandbox, program, kind, told):
    checked = await check(sandbox, program, ["assert True", "pass"], seconds=0.2)
    assert checked.fault is not None
    assert (checked.fault.kind, checked.fault.told) == (kind, told)
    assert {outcome.status for outcome in checked.outcomes} == {checked.fault.status}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("work", "mark"),
    [("while True: pass", "T"), ("__import__('os')._exit(0)", "X"), ("1 / 0", "1")],
)
async def test_a_test_that_catches_everything_does_not_pass_by_it(sandbox, work, mark):
    test = "try:\n    f(1)\nexcept BaseException:\n    pass"
    program = f"def f(x):\n    {work}"
    assert (await check(sandbox, program, [test], entry_point="f", seconds=0.2)).marks == mark


@pytest.mark.anyio
async def test_objects_of_the_program_can_be_used_by_tests(sandbox):
    program = """
import collections
class Pair:
    def __init__(self, a, b): self.a, self.b = a, b
    def __eq__(self, other): return isinstance(other, Pair) and (self.a, self.b) == (other.a, other.b)
    def __lt__(self, other): return self.a < other.a
    def __len__(self): return 2
    def __getitem__(self, i): return (self.a, self.b)[i]
    def swap(self): return Pair(self.b, self.a)
    __hash__ = None
def first(pair): return pair.a
def twice(function, x): return function(function(x))
def count():
    yield from [1, Pair(2, 3)]
def grow(xs): xs.append(len(xs)); return None
def same(x): return x
counter = collections.Counter
"""
    tests = [
        "assert first(Pair(5, 24)) == 5",
        "assert Pair(1, 2).swap() == Pair(2, 1) and Pair(1, 2) != Pair(2, 1)",
        "assert [p.a for p in sorted([Pair(3, 0), Pair(1, 0)])] == [1, 3]",
        "p = Pair(1, 2)\np.a = 7\nassert first(p) == 7 and same(p) is p and same([p])[0] is p",
        "assert len(Pair(1, 2)) == 2 and Pair(1, 2)[1] == 2 and list(count())[1] == Pair(2, 3)",
        "assert isinstance(same(Pair(1, 2)), Pair) and not isinstance(3, Pair)",
        "assert twice(lambda x: x * 3, 2) == 18 and twice(int, '4') == 4",
        "xs = [7]\ngrow(xs)\nassert xs == [7, 1]",
        "try:\n    first(3)\nexcept AttributeError:\n    pass\nelse:\n    raise AssertionError",
        "assert math.isclose(same(0.1), 0.1) and re.sub('a', 'b', same('a')) == 'b'",
        "assert counter('aab') == {'a': 2, 'b': 1}",
        "def later():\n    raise KeyError('mine')\ntry:\n    twice(lambda _: later(), 1)\nexcept KeyError:\n    pass",
    ]
    checked = await check(sandbox, program, tests)
    assert [outcome.told for outcome in checked.outcomes] == [""] * len(tests)


@pytest.mark.anyio
async def test_coroutines_of_the_program_can_be_awaited(sandbox):
    program = """
import asyncio
async def f(x):
    await asyncio.sleep(0)
    if x > 2: raise ValueError(x)
    return x + 1
"""
    tests = [
        "assert asyncio.run(f(1)) == 2",
        (
            "async def both():\n    return await asyncio.gather(f(1), f(2)) + [await f(0)]\n"
            "assert asyncio.run(both()) == [2, 3, 1]"
        ),
        "try:\n    asyncio.run(f(3))\nexcept ValueError:\n    pass\nelse:\n    assert False",
        "assert asyncio.run(f(1)) == 3",
    ]
    checked = await check(sandbox, program, tests, entry_point="f")
    assert checked.marks == "1110"


@pytest.mark.anyio
async def test_odd_texts_get_their_marks(sandbox):
    cases = [
        ("def f(x): return '\ud800'", ["f(1)"], "E"),
        ("def f(x):\n    return 1\0", ["f(1)"], "E"),
        ("def f(x): return x", ["assert f('\ud800') == 1", "assert f('\0')", "f(1)"], "EE1"),
        ("def f(x):\r\n    return x\r\n", ["assert f(1) == 1\r\nassert f(2) == 2\r\n"], "1"),
        ("if __name__ == '__main__':\n    raise SystemExit(3)", ["", "# nothing"], "11"),
        ("def f(x): return input()", ["f(1)"], "E"),
        ("", [], ""),
        ("x = " + "(" * 5000 + ")" * 5000, ["pass"], "E"),
        ("def f(x): return 10**100000", ["assert f(1) == 1", "f(1)"], "01"),
        ("def f(x): return " + "1+" * 30000 + "1", ["pass"], "E"),
    ]
    marks = [
        (await check(sandbox, program, tests, entry_point="f")).marks for program, tests, _ in cases
    ]
    assert marks == [expected for _, _, expected in cases]


@pytest.mark.anyio
async def test_what_the_program_hands_over_has_no_power_over_the_tests(sandbox):
    program = """
import builtins, os
def process(): return os.getpid()
def given(name): return getattr(builtins, name)
def same(function, *args): return function(*args)
"""
    tests = [
        "assert given('eval')('__import__(\"os\").getpid()') == process()",
        'assert same(eval, "__name__") == "program"',
        'assert given("getattr")(3, "real") == 3',
        'assert given("type")("X", (object,), {"__eq__": lambda *_: True})() != 3',
        "assert given('int') is int and given('len') is len and same(max, 1, 2) == 2",
    ]
    checked = await check(sandbox, program, tests, entry_point="given")
    assert [outcome.told for outcome in checked.outcomes] == [""] * len(tests)


@pytest.mark.anyio
async def test_the_language_and_the_prelude_are_not_the_programs(sandbox):
    prelude = "import math\ndef poly(x):\n    return x + 1\ndef find(x):\n    '''x with poly(x) == 0.'''\n"
    fake = "def find(x):\n    return 5\ndef poly(x):\n    return 0\nclass math: fabs = abs\ndef sum(x): return 3\n"
    tests = [
        "assert poly(find(1)) == 0",
        "assert math.fabs(find(1)) == 1",
        "assert sum([find(1)]) == 3",
    ]
    assert (await check(sandbox, fake, tests, prelude=prelude, entry_point="find")).marks == "000"
    assert (
        await check(sandbox, "def sum(x, y):\n    return x * y\n", ["assert sum(3, 4) == 12"])
    ).marks == "1"


@pytest.mark.anyio
async def test_a_program_may_complete_its_prelude(sandbox):
    prelude = "from math import sqrt\ndef f(x):\n    '''The root.'''\n"
    for body in (
        "    return sqrt(x)\n",
        prelude + "    return sqrt(x)",
        "def f(x):\n    return sqrt(x)",
    ):
        checked = await check(sandbox, body, ["assert f(4) == 2"], prelude=prelude, entry_point="f")
        assert checked.marks == "1"
    checked = await check(sandbox, "\n    return 1 / 0", ["f(4)"], prelude=prelude, entry_point="f")
    assert (
        checked.outcomes[0].told
        == "f(4) raised ZeroDivisionError: division by zero at line 2: `return 1 / 0`"
    )
    checked = await check(sandbox, "    return (", ["f(4)"], prelude=prelude, entry_point="f")
    assert checked.outcomes[0].told.endswith("at line 1: `return (`")


@pytest.mark.anyio
async def test_values_are_told_in_one_spelling(sandbox):
    same = [
        "(2, 2.0, True, 0.30000000000000004)",
        "{3, 1}",
        "{'b': {2}, 'a': 1}",
        "iter([1, 2])",
        "10 ** 400",
        "'y' * 20000",
    ]
    other = [
        "(2.0, 2, 1, 0.3)",
        "{1, 3}",
        "{'a': 1.0, 'b': frozenset([2])}",
        "iter((1, 2))",
        "10 ** 400",
        "'y' * 20000",
    ]
    tests = [f"f({i})" for i in range(len(same))]
    checked = [
        await check(sandbox, f"def f(i): return [{', '.join(values)}][i]", tests, entry_point="f")
        for values in (same, other)
    ]
    said = [[outcome.value for outcome in each.outcomes] for each in checked]
    assert said[0][:3] == said[1][:3] == ["(2, 2, 1, 0.3)", "{1, 3}", "{'a': 1, 'b': {2}}"]
    assert said[0][3:] != said[1][3:]
    assert said[0][4:] == said[1][4:]
    assert len(said[0][5]) < 1000


@pytest.mark.anyio
async def test_a_run_can_be_repeated(sandbox):
    program = (
        "import random\ndef f(n):\n    return random.random(), list({str(i) for i in range(n)})"
    )
    runs = [await check(sandbox, program, ["f(20)"], entry_point="f") for _ in range(2)]
    assert runs[0].outcomes == runs[1].outcomes


class Broken:
    """A sandbox that says what it was told to say."""

    def __init__(self, ran):
        self.ran = ran

    async def run(self, files, argv, limits, *, stdin=b"", keep=False):
        return self.ran


@pytest.mark.anyio
@pytest.mark.parametrize(
    "ran",
    [
        Ran("exited", 127, b"", b"python: not found\n"),
        Ran("timeout", 9),
        Ran("exited", 0, b"passed\n" * 4),
        Ran("killed", 9, b"\xff\x00\n\n"),
    ],
)
async def test_a_sandbox_that_does_not_come_to_the_tests_is_broken(ran):
    with pytest.raises(SandboxError, match="the tests did not run"):
        await check(Broken(ran), GOOD, TESTS)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("program", "limits", "mark"),
    [
        ("def f(x):\n    while True: pass", Limits(seconds=1), "T"),
        (
            "import os\ndef f(x):\n    os.kill(os.getppid(), 19)\n    while True: pass",
            Limits(seconds=1),
            "T",
        ),
        ("def f(x):\n    return [0] * 10**8", Limits(memory=128 << 20), "E"),
    ],
)
async def test_what_the_run_did_not_come_to_is_marked(sandbox, program, limits, mark):
    checked = await check(sandbox, program, ["f(1)"] * 3, entry_point="f", seconds=2, limits=limits)
    assert checked.marks == mark * 3


def test_assertions_say_what_they_found():
    assert prepared("assert f(1) == 2", "f")[0].splitlines()[2] == "if not _left == _right:"
    assert prepared("x = f(1)\nx", None) == ("x = f(1)", "x", "")
    assert prepared("assert f(", None) == ("assert f(", "", "")


@pytest.mark.parametrize(
    ("prelude", "kept"),
    [
        (
            "import math\nX = 1\nclass A:\n    pass\ndef g():\n    return X\ndef f():\n    return 1",
            "import math\nX = 1\ndef g():\n    return X",
        ),
        ("def g():\n    ...\ndef f(x):", ""),
        ("x = = 1", ""),
    ],
)
def test_what_of_a_prelude_the_tests_trust(prelude, kept):
    assert "".join(trusted(prelude, "f").split()) == "".join(kept.split())
