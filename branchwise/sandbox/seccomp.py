"""A filter of system calls, written as the classic BPF that the kernel reads.

A call is answered in one of three ways. What an honest program never asks for, and an attack on the
kernel or on a neighbour does, ends the program: the run is `denied`. What libraries try and can do
without is refused with `EPERM`, so that they go on. What has an older call behind it, or is newer
than this list, is not there (`ENOSYS`), so that they fall back: `clone3`, because a filter cannot
read its flags; `io_uring`, because it makes calls that no filter sees; memory that belongs to no
process and no folder, because no limit of a process would count it.
"""

from __future__ import annotations

import errno
import struct
from typing import Literal, TypeAlias, get_args

from branchwise.core.errors import SpecError

Machine: TypeAlias = Literal["x86_64", "aarch64"]

Table: TypeAlias = dict[str, tuple[int | None, int | None]]
"""The number of a call on x86_64 and on aarch64."""

KILLED: Table = {
    "acct": (163, 89),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "create_module": (174, None),
    "delete_module": (176, 106),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "setns": (308, 268),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "umount2": (166, 39),
    "unshare": (272, 97),
}

REFUSED: Table = {
    "_sysctl": (156, None),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "fanotify_init": (300, 262),
    "kcmp": (312, 272),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "migrate_pages": (256, 238),
    "modify_ldt": (154, None),
    "move_pages": (279, 239),
    "name_to_handle_at": (303, 264),
    "nfsservctl": (180, 42),
    "perf_event_open": (298, 241),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "request_key": (249, 218),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "settimeofday": (164, 170),
    "sysfs": (139, None),
    "syslog": (103, 116),
    "uselib": (134, None),
    "userfaultfd": (323, 282),
    "ustat": (136, None),
    "vhangup": (153, 58),
    "vmsplice": (278, 75),
}

ABSENT: Table = {
    "clone3": (435, 435),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "msgget": (68, 186),
    "semget": (64, 190),
    "shmget": (29, 194),
}

LOOKED_INTO: Table = {
    "clone": (56, 220),
    "ioctl": (16, 29),
    "ioprio_set": (251, 30),
    "prlimit64": (302, 261),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "setpriority": (141, 140),
    "setrlimit": (160, 164),
    "socket": (41, 198),
    "socketpair": (53, 199),
}

CORE = 4
"""`RLIMIT_CORE`."""
NEWEST = 462
"""The last call that this list knows, `mseal`: later ones are absent until they have been read."""

AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32 = 0x40000000
NAMESPACES = 0x7E020000
"""The flags of `clone` that make a namespace (the one of time cannot be asked for there)."""
TERMINAL = (0x5412, 0x541C)
"""`TIOCSTI` and `TIOCLINUX`: writing what a terminal's next reader takes for typed."""
FAMILIES = (1, 2, 10)
"""`AF_UNIX`, `AF_INET`, `AF_INET6`: they end at the network's namespace; `AF_VSOCK` does not."""

ALLOW, KILL, ERROR = 0x7FFF0000, 0x80000000, 0x00050000
LOAD, RETURN, EQUAL, AT_LEAST, ANY_BIT = 0x20, 0x06, 0x15, 0x35, 0x45
NUMBER, ARCHITECTURE = 0, 4


def program(machine: str) -> bytes:
    """The filter for an architecture, as an array of `struct sock_filter`.

    Raises:
        SpecError: the list has no numbers for this architecture.

    Example:
        >>> len(program("x86_64")) % 8
        0
    """
    if machine not in get_args(Machine):
        raise SpecError(
            f"no filter of system calls is known for {machine!r}",
            hint="x86_64 and aarch64 have one",
        )
    column = 0 if machine == "x86_64" else 1
    refuse, absent = ERROR | errno.EPERM, ERROR | errno.ENOSYS
    code = [
        *_unless(ARCHITECTURE, EQUAL, AUDIT[machine], KILL),
        _op(LOAD, NUMBER),
    ]
    if machine == "x86_64":  # numbers of the x32 interface would pass by the list
        code += _when(AT_LEAST, X32, KILL)
    code += _when(AT_LEAST, NEWEST + 1, absent)
    for table, action in ((KILLED, KILL), (REFUSED, refuse), (ABSENT, absent)):
        for numbers in table.values():
            if (number := numbers[column]) is not None:
                code += _when(EQUAL, number, action)
    for name, numbers in LOOKED_INTO.items():
        if (number := numbers[column]) is not None:
            inside = _looks(name)
            code += [_op(EQUAL, number, 0, len(inside)), *inside]
    return b"".join([*code, _op(RETURN, ALLOW)])


def _op(code: int, k: int, yes: int = 0, no: int = 0) -> bytes:
    """An instruction; `yes` and `no` are how many it skips."""
    return struct.pack("=HBBI", code, yes, no, k)


def _when(test: int, k: int, action: int) -> list[bytes]:
    """Act where what is loaded passes the test; go on otherwise."""
    return [_op(test, k, 0, 1), _op(RETURN, action)]


def _unless(offset: int, test: int, k: int, action: int) -> list[bytes]:
    """Load a field; act where it does not pass the test."""
    return [_op(LOAD, offset), _op(test, k, 1, 0), _op(RETURN, action)]


def _looks(name: str) -> list[bytes]:  # noqa: PLR0911  (a table of cases)
    """What is done about a call whose arguments matter; it returns in each case."""
    refuse, allow = ERROR | errno.EPERM, _op(RETURN, ALLOW)
    match name:
        case "socket" | "socketpair":
            known = [op for family in FAMILIES for op in _when(EQUAL, family, ALLOW)]
            return [_low(0), *known, _op(RETURN, ERROR | errno.EAFNOSUPPORT)]
        case "clone":
            return [_low(0), *_when(ANY_BIT, NAMESPACES, KILL), allow]
        case "ioctl":
            # The kernel looks at the low half alone, so the filter must too (CVE-2019-10063).
            known = [op for request in TERMINAL for op in _when(EQUAL, request, KILL)]
            return [_low(1), *known, allow]
        case "setpriority" | "ioprio_set":
            one = 0 if name == "setpriority" else 1  # groups and users include the launcher
            return [*_unless(_at(0), EQUAL, one, refuse), _low(1), *_when(EQUAL, 1, refuse), allow]
        case "setrlimit":
            return [_low(0), *_when(EQUAL, CORE, refuse), allow]
        case "prlimit64":
            # A core's limit of 1 is what keeps crashes from the machine's handler: it may be read.
            return [
                *[_low(0), *_when(EQUAL, 1, refuse)],
                *_unless(_at(1), EQUAL, CORE, ALLOW),
                *_unless(_at(2), EQUAL, 0, refuse),
                *_unless(_at(2) + 4, EQUAL, 0, refuse),
                allow,
            ]
        case _:  # the launcher is process 1 and of the same user; nobody slows it down
            return [_low(0), *_when(EQUAL, 1, refuse), allow]


def _at(argument: int) -> int:
    """Where the low half of an argument lies."""
    return 16 + 8 * argument


def _low(argument: int) -> bytes:
    return _op(LOAD, _at(argument))
