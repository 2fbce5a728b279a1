"""The filter of system calls, carried out by an interpreter of its own and by the kernel."""

import errno
import re
import struct
from pathlib import Path

import pytest

from branchwise.core.errors import SpecError
from branchwise.sandbox.seccomp import ABSENT, KILLED, LOOKED_INTO, NEWEST, REFUSED, program

ALLOW, KILL = 0x7FFF0000, 0x80000000
EPERM, ENOSYS = 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
NO_FAMILY = 0x50000 | errno.EAFNOSUPPORT
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
TABLES = {**KILLED, **REFUSED, **ABSENT, **LOOKED_INTO}
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


def verdict(machine, number, *args, audit=None):
    """What the kernel would answer, by the definition of classic BPF (Linux, networking/filter)."""
    given = [*args, *[0] * (6 - len(args))]
    data = struct.pack("<iIQ6Q", number, audit or MACHINES[machine][1], 0, *given)
    code = list(struct.iter_unpack("=HBBI", program(machine)))
    accumulator = at = 0
    while True:
        op, yes, no, k = code[at]
        at += 1
        if op == 0x20:  # BPF_LD | BPF_W | BPF_ABS
            accumulator = struct.unpack_from("<I", data, k)[0]
        elif op == 0x06:  # BPF_RET | BPF_K
            return k
        else:  # BPF_JMP: JEQ, JGE, JSET
            tests = {0x15: accumulator == k, 0x35: accumulator >= k, 0x45: accumulator & k != 0}
            at += yes if tests[op] else no


@pytest.mark.parametrize("machine", MACHINES)
def test_numbers_are_those_of_the_kernels_headers(machine):
    if not HEADERS[machine].exists():
        pytest.skip("the kernel's headers are not installed")
    defined = r"#define\s+__NR(?:3264)?_(\w+)\s+(\d+)"
    known = {name: int(n) for name, n in re.findall(defined, HEADERS[machine].read_text())}
    ours = {name: numbers[MACHINES[machine][0]] for name, numbers in TABLES.items()}
    assert {name: n for name, n in ours.items() if name in known} == {
        name: n for name, n in known.items() if name in ours
    }
    assert all(n is None for name, n in ours.items() if name not in known)


@pytest.mark.parametrize("machine", MACHINES)
def test_each_call_gets_the_answer_of_its_table(machine):
    column = MACHINES[machine][0]
    expected = {}
    for table, answer in ((KILLED, KILL), (REFUSED, EPERM), (ABSENT, ENOSYS)):
        for numbers in table.values():
            expected[numbers[column]] = answer
    looked = {numbers[column] for numbers in LOOKED_INTO.values()}
    for number in range(NEWEST + 1):
        if number not in looked:
            assert verdict(machine, number) == expected.get(number, ALLOW), number
    assert verdict(machine, NEWEST + 1) == verdict(machine, 0x3FFFFFFF) == ENOSYS


@pytest.mark.parametrize("machine", MACHINES)
def test_other_architectures_are_killed(machine):
    for audit in (0x40000003, 0x40000028, 0xC0000015):
        assert verdict(machine, 0, audit=audit) == KILL


def test_the_second_interface_of_x86_64_is_killed():
    assert verdict("x86_64", 0x40000000) == verdict("x86_64", 0x40000000 + 59) == KILL
    assert verdict("x86_64", -1) == KILL


HIGH = 1 << 32
CASES = [
    ("clone", (0x01200011,), ALLOW),  # fork of the C library
    ("clone", (0x003D0F00,), ALLOW),  # a thread of the C library
    *[("clone", (1 << bit,), KILL) for bit in (17, 25, 26, 27, 28, 29, 30)],
    ("clone", (HIGH | 1 << 28,), KILL),
    ("ioctl", (0, 0x5401), ALLOW),
    ("ioctl", (0, 0x5412), KILL),
    ("ioctl", (0, HIGH | 0x5412), KILL),
    ("ioctl", (0, 0x541C), KILL),
    *[("socket", (family,), ALLOW) for family in (1, 2, 10)],
    *[("socket", (family,), NO_FAMILY) for family in (0, 16, 17, 31, 38, 40, 44)],
    ("socketpair", (1,), ALLOW),
    ("socketpair", (40,), NO_FAMILY),
    ("prlimit64", (0, 7, 0x1000), ALLOW),
    ("prlimit64", (1, 7, 0x1000), EPERM),
    ("prlimit64", (0, 4, 0), ALLOW),
    ("prlimit64", (0, 4, 0x1000), EPERM),
    ("prlimit64", (0, 4, HIGH), EPERM),
    ("setrlimit", (4, 0x1000), EPERM),
    ("setrlimit", (7, 0x1000), ALLOW),
    ("setpriority", (0, 0, 19), ALLOW),
    ("setpriority", (0, 1, 19), EPERM),
    ("setpriority", (1, 0, 19), EPERM),
    ("setpriority", (2, 0, 19), EPERM),
    ("ioprio_set", (1, 0, 0), ALLOW),
    ("ioprio_set", (1, 1, 0), EPERM),
    ("ioprio_set", (3, 0, 0), EPERM),
    ("sched_setaffinity", (0,), ALLOW),
    ("sched_setaffinity", (1,), EPERM),
    ("sched_setattr", (HIGH | 1,), EPERM),
]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("name", "args", "answer"), CASES)
def test_arguments_are_looked_at(machine, name, args, answer):
    assert verdict(machine, LOOKED_INTO[name][MACHINES[machine][0]], *args) == answer


def test_a_machine_without_a_list_is_refused():
    with pytest.raises(SpecError, match="riscv64"):
        program("riscv64")


@pytest.mark.parametrize("machine", MACHINES)
def test_the_kernel_would_take_it(machine):
    code = list(struct.iter_unpack("=HBBI", program(machine)))
    assert len(code) <= 4096
    for at, (op, yes, no, _) in enumerate(code):
        assert op in {0x20, 0x06} or at + 1 + max(yes, no) < len(code)
    assert code[-1][0] == 0x06
