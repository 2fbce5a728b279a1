"""What hostile programs try; each ends as it should, and what is around them stays as it was.

The programs are carried out by a process of its own (this file as a script), once as root where the
tests are root and once as an ordinary user, since the walls are built differently.
"""

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from branchwise.core.errors import SandboxError, SpecError
from branchwise.sandbox.bubblewrap import Bubblewrap
from branchwise.sandbox.ran import Limits

SECRET = "branchwise-secret-7391"
LIMITS = Limits(seconds=5, memory=96 << 20, processes=24, output=20_000, disk=2 << 20, entries=300)
BRIEF = LIMITS.model_copy(update={"seconds": 0.4})
SHORT = LIMITS.model_copy(update={"seconds": 1})
USER = 64999

BEGIN = """
import ctypes, errno, fcntl, mmap, os, resource, signal, socket, struct, subprocess, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def attempt(what, *args):
    try:
        got = what(*args)
    except (OSError, subprocess.SubprocessError) as error:
        print("no:", errno.errorcode.get(getattr(error, "errno", None), type(error).__name__))
    else:
        print("BREACH:", what, args, got)
def call(number, *args):
    if libc.syscall(number, *map(ctypes.c_long, args)) < 0:
        raise OSError(ctypes.get_errno(), "refused")
def read(path):
    with open(path, "rb") as file:
        return file.read(100)
def write(path):
    with open(path, "wb") as file:
        file.write(b"x")
def connect(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as it:
        it.settimeout(0.5)
        it.connect(address)
def orphan(work):
    if not os.fork():
        os.setsid()
        if not os.fork():
            work()
        os._exit(0)
"""


@dataclass(frozen=True)
class Attack:
    """A program, how it may end, and what it says when it could do nothing."""

    program: str
    ends: str = "exited"
    says: str = ""
    limits: Limits = LIMITS


def syscall(x86, *args):
    """A call of the kernel that ends the program."""
    return Attack(f"call({', '.join(map(str, (x86, *args)))})\nprint('BREACH')", "denied")


ATTACKS = {
    # Time.
    "loop": Attack("while True: pass", "timeout", limits=BRIEF),
    "sleep": Attack("time.sleep(60)", "timeout", limits=BRIEF),
    "deaf": Attack(
        "for n in {*range(1, 65)} - {9, 19, 32, 33}: signal.signal(n, signal.SIG_IGN)\n"
        "while True: time.sleep(1)",
        "timeout",
        limits=BRIEF,
    ),
    "stops itself": Attack("os.kill(os.getpid(), signal.SIGSTOP)", "timeout", limits=BRIEF),
    "orphan": Attack("orphan(lambda: time.sleep(60))\nprint('bye')", says="bye"),
    "loud orphan": Attack("def shout():\n    while True: os.write(1, b'x')\norphan(shout)", "exited output"),
    "starves its keeper": Attack(
        "before = os.getpriority(0, 1)\nattempt(os.setpriority, os.PRIO_PROCESS, 1, 19)\n"
        "attempt(os.sched_setscheduler, 1, os.SCHED_IDLE, os.sched_param(0))\n"
        "attempt(os.sched_setaffinity, 1, {0})\nattempt(os.nice, -5)\n"
        "for which, who in ((0, 1), (1, 1), (2, os.getuid()), (2, 0)):\n"
        "    try: os.setpriority(which, who, 19)\n    except OSError: pass\n"
        "print(os.getpriority(0, 1) == before)",
        says="no: EPERM\nTrue\n",
    ),
    # Processes.
    "fork bomb": Attack("while True:\n    try: os.fork()\n    except OSError: pass", "timeout memory", limits=BRIEF),
    "as many as may be": Attack(
        "n = 0\ntry:\n    while n < 500:\n        n += 1\n        if not os.fork(): time.sleep(60)\n"
        "except OSError: print('no:', n <= 24)",
        says="no: True",
    ),
    "threads": Attack(
        "import threading\nn = 0\ntry:\n    while n < 500:\n        n += 1\n"
        "        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "except RuntimeError: print('no:', n <= 24, flush=True)\nos._exit(0)",
        says="no: True",
    ),
    "signals to all": Attack("attempt(os.kill, -1, 9)", says="no: ESRCH"),
    "signals to its keeper": Attack(
        "for n in range(1, 65):\n    try: os.kill(1, n)\n    except OSError: pass\n"
        "time.sleep(0.2)\nprint('there still')",
        says="there still",
    ),
    "limits of its keeper": Attack(
        "for what in range(16):\n    attempt(resource.prlimit, 1, what, (0, 0))"
    ),
    "limits of its own": Attack(
        "for what in (resource.RLIMIT_NPROC, resource.RLIMIT_CORE):\n"
        "    try: resource.setrlimit(what, (1 << 40, 1 << 40))\n"
        "    except ValueError: print('no')",
        says="no\nno",
    ),
    "dumps core": Attack("try: resource.setrlimit(resource.RLIMIT_CORE, (0, 1))\nexcept ValueError: pass\nos.abort()", "killed"),
    # Memory.
    "8 GiB": Attack("x = bytearray(8 << 30)", "exited memory"),
    "memory page by page": Attack("x = []\nwhile True: x.append(bytearray(1 << 20))", "exited memory"),
    "memory of many": Attack(
        "for _ in range(12):\n    if not os.fork():\n        x = bytearray(20 << 20)\n        time.sleep(60)\n"
        "time.sleep(60)",
        "memory",
        limits=SHORT,
    ),
    "shared memory of many": Attack(
        "for _ in range(12):\n    if not os.fork():\n        x = mmap.mmap(-1, 20 << 20)\n"
        "        for i in range(0, len(x), 4096): x[i] = 1\n        time.sleep(60)\ntime.sleep(60)",
        "memory",
        limits=SHORT,
    ),
    "memory in sockets": Attack(
        "def fill():\n    kept = []\n    try:\n        while True:\n            pair = socket.socketpair()\n"
        "            kept.append(pair)\n            pair[0].setblocking(False)\n            try:\n"
        "                while True: pair[0].send(bytes(65536))\n            except BlockingIOError: pass\n"
        "    except OSError: time.sleep(60)\n"
        "for _ in range(10):\n    if not os.fork(): fill()\nfill()",
        "memory",
        limits=SHORT,
    ),
    "memory in connections": Attack(
        "def fill():\n    kept, server = [], socket.create_server(('127.0.0.1', 0))\n    try:\n"
        "        while True:\n            pair = [socket.create_connection(server.getsockname()), server.accept()[0]]\n"
        "            kept += pair\n            for end in pair:\n                end.setblocking(False)\n                try:\n"
        "                    while True: end.send(bytes(65536))\n                except BlockingIOError: pass\n"
        "    except OSError: time.sleep(60)\nfill()",
        "memory",
        limits=SHORT,
    ),
    "memory in pipes": Attack(
        "class Part(ctypes.Structure): _fields_ = [('at', ctypes.c_void_p), ('size', ctypes.c_size_t)]\n"
        "huge, ends = 2 << 20, []\nlibc.mmap.restype = ctypes.c_void_p\n"
        "libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 4\n"
        "for _ in range(400):\n    if len(ends) % 16 == 0: pipe = os.pipe()\n"
        "    at = libc.mmap(None, 2 * huge, 3, 0x22, -1, 0)\n    page = (at + huge - 1) // huge * huge\n"
        "    libc.madvise(ctypes.c_void_p(page), ctypes.c_size_t(huge), 14)\n    ctypes.memset(page, 1, 1)\n"
        "    if libc.vmsplice(pipe[1], ctypes.byref(Part(page, 1)), 1, 0) < 0: print('no'); break\n"
        "    libc.munmap(ctypes.c_void_p(at), ctypes.c_size_t(2 * huge)); ends.append(pipe)\n"
        "else: print('BREACH')",
        "exited memory denied",
    ),
    # Output and files.
    "1 GB of output": Attack("while True: os.write(1, b'x' * 65536)", "output"),
    "output of errors": Attack("while True: os.write(2, b'x' * 65536)", "output"),
    "no text": Attack(r"os.write(1, b'\xff\xfe\x00\x80')"),
    "a million files": Attack(
        "attempt(lambda: [open(f'f{n}', 'w').close() for n in range(10**6)])", says="no: ENOSPC"
    ),
    "links as files": Attack(
        "open('f', 'w').close()\nattempt(lambda: [os.link('f', f'l{n}') for n in range(10**6)])",
        says="no: ENOSPC",
    ),
    "fills its folder": Attack("attempt(lambda: open('f', 'wb').write(bytes(1 << 20) * 8))", says="no: "),
    "fills in parts": Attack(
        "def fill():\n    for n in range(99): open(f'/tmp/{n}', 'wb').write(bytes(1 << 18))\nattempt(fill)",
        says="no: ENOSPC",
    ),
    "sparse file": Attack("attempt(lambda: os.truncate(os.open('f', 66), 1 << 40))", "exited killed"),
    "shared folder": Attack(
        "attempt(lambda: [open(f'/dev/shm/{n}', 'wb').write(bytes(1 << 18)) for n in range(99)])",
        says="no: ",
    ),
    "deep folders": Attack(
        "for n in range(280): os.mkdir('d'); os.chdir('d')\nprint('done')", says="done"
    ),
    "folders too deep to walk": Attack(
        "for n in range(5000): os.mkdir('d'); os.chdir('d')\nprint('done')",
        says="done",
        limits=LIMITS.model_copy(update={"entries": 6000}),
    ),
    "names too long to tell": Attack(
        "name = 'n' * 250\nfor n in range(400): os.mkdir(name); os.chdir(name)\n"
        "attempt(lambda: [os.close(os.open(f'{n}' + name[9:], 65)) for n in range(10**5)])",
        says="no: ENOSPC",
        limits=LIMITS.model_copy(update={"entries": 6000}),
    ),
    "links outside": Attack(
        "os.symlink('/etc/passwd', 'passwd'); os.symlink('/', 'root'); os.symlink('..', 'up')\n"
        "os.mkfifo('fifo'); socket.socket(socket.AF_UNIX).bind('sock')\nprint('done')",
        says="done",
    ),
    "writes outside": Attack(
        "for place in ('/', '/usr', '/etc', '/dev', '/proc', '/run', '/var/tmp', '/home', os.path.dirname(sys.executable)):\n"
        "    attempt(write, place + '/branchwise-abuse')\n"
        "for place in ('/dev/mem', '/proc/sys/kernel/hostname', '/proc/sysrq-trigger', '/proc/1/oom_score_adj',\n"
        "              '/sys/kernel/mm/ksm/run', '/proc/self/uid_map', '/launcher.py', sys.executable):\n"
        "    attempt(write, place)"
    ),
    "devices": Attack(
        "attempt(os.mknod, 'sda', 0o60666, os.makedev(8, 0))\nattempt(os.mknod, 'mem', 0o20666, os.makedev(1, 1))\n"
        "print({*os.listdir('/dev')} <= {'null', 'zero', 'full', 'random', 'urandom', 'fd', 'shm'})",
        says="True",
    ),
    # What it sees.
    "reads of the host": Attack(
        "for place in ('/etc/passwd', '/etc/shadow', '/root/.ssh/id_rsa', os.path.expanduser('~/.ssh/id_rsa'),\n"
        "              '/proc/1/environ', '/proc/1/mem', '/proc/1/maps', '/proc/kcore', '/proc/kmsg', '/home', '/sys'):\n"
        "    attempt(read, place)\nattempt(os.listdir, '/proc/1/fd')"
    ),
    "secrets": Attack(
        "import glob\n"
        "for place in glob.glob('/proc/[0-9]*/environ') + glob.glob('/proc/[0-9]*/cmdline') + ['/proc/self/mountinfo']:\n"
        "    try: text = open(place, 'rb').read()\n    except OSError: continue\n"
        f"    if {SECRET[:9]!r}.encode() + {SECRET[9:]!r}.encode() in text: print('BREACH:', place)\n"
        "print([key for key in os.environ if 'SECRET' in key])",
        says="[]",
    ),
    "open files": Attack(
        "print(sorted(fd for fd in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{fd}')))",
        says="['0', '1', '2']",
    ),
    "neighbours": Attack(
        "print(len([pid for pid in os.listdir('/proc') if pid.isdigit()]), os.listdir('/tmp'), os.getpid())",
        says="2 ['work']",
    ),
    # The network.
    "connects": Attack(
        "address = open('address').read().split()\n"
        "attempt(connect, socket.AF_INET, ('127.0.0.1', int(address[0])))\n"
        "attempt(connect, socket.AF_INET, ('169.254.169.254', 80))\n"
        "attempt(connect, socket.AF_INET, ('8.8.8.8', 53))\n"
        "attempt(connect, socket.AF_INET6, ('::1', int(address[0])))\n"
        "attempt(connect, socket.AF_UNIX, chr(0) + address[1])\n"
        "attempt(connect, socket.AF_UNIX, address[2])\n"
        "attempt(socket.getaddrinfo, 'example.org', 80)"
    ),
    "other sockets": Attack(
        "for family in (16, 17, 38, 40, 44):\n"  # netlink, packet, alg, vsock, xdp
        "    attempt(socket.socket, family, socket.SOCK_RAW)\n"
        "attempt(socket.socket, socket.AF_INET, socket.SOCK_RAW, 1)"
    ),
    # Rights.
    "becomes another": Attack(
        "attempt(os.setuid, 0)\nattempt(os.setresuid, 0, 0, 0)\nattempt(os.setgid, 0)\nattempt(os.setgroups, [0])\n"
        "print(os.getuid() != 0, [line.split()[1].strip('0') for line in open('/proc/self/status') if line[:6] in ('CapPrm', 'CapEff')])",
        says="True ['', '']",
    ),
    "setuid programs": Attack(
        "for command in (['su', '-c', 'id'], ['mount', '-t', 'tmpfs', 'x', '/tmp'], ['passwd', '-S']):\n"
        "    attempt(lambda: subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL))"
    ),
    "setuid of its own": Attack(
        "import shutil\nshutil.copy('/usr/bin/id', 'id'); os.chmod('id', 0o6755)\n"
        "print(subprocess.run(['./id', '-u'], capture_output=True).stdout.decode().strip() == str(os.getuid()))",
        says="True",
    ),
    "keys": Attack("attempt(call, 248, 0, 0, 0, 0, -3)\nattempt(call, 250, 0, -3, 0)", says="no: EPERM\nno: EPERM"),
    "terminal": syscall(16, 0, 0x5412, 0),
    "terminal by another number": syscall(16, 0, 0x5412 | 1 << 32, 0),
    "terminal's screen": syscall(16, 0, 0x541C, 0),
    "own terminal": Attack("attempt(open, '/dev/tty')\nattempt(os.openpty)"),
    "kernel's edges": Attack(
        "attempt(call, 425, 8, ctypes.addressof(ctypes.create_string_buffer(120)))\n"  # io_uring_setup
        "attempt(call, 298, ctypes.addressof(ctypes.create_string_buffer(bytes([1, 0, 0, 0, 112]), 112)), 0, -1, -1, 0)\n"
        "attempt(call, 323, 0)\nattempt(call, 323, 1)\n"  # userfaultfd
        "attempt(call, 319, 0, 0)\nattempt(call, 29, 0, 4096, 0o1600)\nattempt(call, 68, 0, 0o1600)\n"
        "attempt(call, 103, 3, 0, 0)\nattempt(call, 170, 0, 0)\nattempt(call, 1000)"
    ),
    "clone of namespaces": Attack(
        "for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):\n"
        "    child = libc.syscall(56, ctypes.c_long(flag | 17), 0, 0, 0, 0)\n"
        "    if child == 0: os._exit(0)\n    print('BREACH' if child > 0 else 'no')",
        "exited denied",
    ),
    "clone3": Attack("attempt(call, 435, ctypes.addressof(ctypes.create_string_buffer(struct.pack('8Q', 0x10000000, *[0] * 7))), 64)", says="no: ENOSYS"),
    "unshare": syscall(272, 0x10000000),
    "setns": syscall(308, 0, 0),
    "mount": syscall(165, 0, 0, 0, 0, 0),
    "new mount": syscall(430, 0, 0),
    "umount": syscall(166, 0, 0),
    "pivot_root": syscall(155, 0, 0),
    "chroot": syscall(161, 0),
    "ptrace": syscall(101, 16, 1, 0, 0),
    "memory of others": syscall(310, 1, 0, 0, 0, 0, 0),
    "bpf": syscall(321, 0, 0, 0),
    "modules": syscall(175, 0, 0, 0),
    "file handles": syscall(304, 0, 0, 0),
    "x32": syscall(0x40000000 | 39),
    "32 bits": Attack(
        "code = mmap.mmap(-1, 4096, prot=7)\n"
        "code.write(bytes.fromhex('b814000000cd80c3'))\n"  # mov eax, getpid; int 0x80; ret
        "print('BREACH', ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))())",
        "denied killed",
    ),
}  # fmt: skip


async def carried_out(names):
    """What becomes of each attack, and whether the next run still works."""
    found = {}
    tcp = socket.create_server(("127.0.0.1", 0))
    abstract, path = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    with tempfile.TemporaryDirectory() as folder, tcp, abstract, path:
        abstract.bind(f"\0branchwise-{os.getpid()}")
        path.bind(f"{folder}/socket")
        for listener in (abstract, path):
            listener.listen()
        address = f"{tcp.getsockname()[1]} branchwise-{os.getpid()} {folder}/socket".encode()
        async with Bubblewrap(workers=3).open() as sandbox:

            async def one(name):
                attack = ATTACKS[name]
                files = {"main.py": (BEGIN + attack.program).encode(), "address": address}
                try:
                    ran = await sandbox.run(files, ["python", "main.py"], attack.limits, keep=True)
                except SandboxError as error:
                    found[name] = ["broken", str(error), "", 0, []]
                    return
                out, err = (text.decode(errors="replace") for text in (ran.stdout, ran.stderr))
                found[name] = [ran.status, out, err, ran.seconds, [*ran.files]]

            async with anyio.create_task_group() as group:
                for name in names:
                    group.start_soon(one, name)
            ran = await sandbox.run({}, ["python", "-c", "print(1)"])
            found["next"] = [ran.status, ran.stdout.decode(), "", ran.seconds, []]
        with socket.socket() as probe:
            probe.connect(tcp.getsockname())  # it was there to be found
    return found


def processes(mark):
    """The processes of the machine whose environment holds a mark."""
    found = []
    for place in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in place.read_bytes():
                found.append(int(place.parent.name))
        except OSError:
            continue
    return found


def interpreter(user):
    """A Python that this user may start."""
    if user is None or user == os.getuid():
        return sys.executable
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for python in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        try:
            ran = subprocess.run([python, "-c", "1"], user=user, check=False, capture_output=True)
        except OSError:
            continue
        if not ran.returncode:
            return python
    return None


def started(*args, user=None, **more):
    """This file as a script, as a user."""
    rights = {} if user is None else {"user": user, "group": user, "extra_groups": []}
    home = Path(__file__).parent.parent.parent
    packages = os.pathsep.join([str(home), sysconfig.get_path("purelib")])
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": packages, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        [interpreter(user), __file__, *args],
        env={**env, "BRANCHWISE_SECRET": SECRET, "TMPDIR": os.environ.get("TMPDIR", "/tmp")},
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
        **rights,
        **more,
    )


USERS = [None, *([USER] if os.geteuid() == 0 else [])]
needs = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("bwrap"), reason="needs bubblewrap on Linux"
)


@pytest.fixture(
    scope="module", params=USERS, ids=["as the user of the tests", "ordinary"][: len(USERS)]
)
def runs(request):
    if interpreter(request.param) is None:
        pytest.skip("no interpreter that an ordinary user may start")
    names = [name for name in ATTACKS if numbers_are_known or "call(" not in ATTACKS[name].program]
    with started("attacks", *names, user=request.param) as process:
        out, _ = process.communicate(timeout=100)
    assert process.returncode == 0
    return json.loads(out)


numbers_are_known = platform.machine() == "x86_64"


@needs
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_ends_as_it_should(runs, name):
    if name not in runs:
        pytest.skip("the numbers of system calls are those of x86_64")
    attack = ATTACKS[name]
    status, out, err, seconds, kept = runs[name]
    assert sum(map(len, kept)) < 4 << 20
    assert "BREACH" not in out, out
    assert status in attack.ends.split(), (status, out, err)
    assert attack.says in out, (out, err)
    assert len(out) + len(err) <= attack.limits.output
    assert seconds < attack.limits.seconds + 3
    assert not any(Path(path).is_absolute() or ".." in Path(path).parts for path in kept)
    assert not {"passwd", "root", "up", "fifo", "sock"} & {*kept}
    if not attack.says and attack.ends == "exited" and "attempt(" in attack.program:
        assert "no: " in out, (out, err)
    if attack.ends == "exited":
        assert "Traceback" not in err, err


@needs
def test_the_next_run_is_as_ever(runs):
    assert runs["next"][:2] == ["exited", "1\n"]


@needs
def test_nothing_of_them_is_left(runs):
    assert processes(SECRET) == []
    assert not list(Path("/tmp").glob("branchwise-abuse*"))


async def refusal():
    with pytest.raises(SpecError) as caught:
        async with Bubblewrap().open():
            pass
    return caught.value


@pytest.mark.anyio
async def test_without_bubblewrap_it_refuses(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "install" in (await refusal()).hint


@pytest.mark.anyio
async def test_where_namespaces_are_forbidden_it_refuses(monkeypatch, tmp_path):
    binary = tmp_path / "bwrap"
    binary.write_text(
        "#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n"
    )
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    error = await refusal()
    assert "No permissions" in error.message
    assert error.hint


def mounts():
    return Path("/proc/self/mounts").read_text()


def groups(pid):
    return [
        place for place in Path("/sys/fs/cgroup").rglob("branchwise-*") if f"-{pid}-" in place.name
    ]


@needs
@pytest.mark.parametrize("user", USERS)
def test_a_killed_parent_leaves_nothing(user, monkeypatch):
    if interpreter(user) is None:
        pytest.skip("no interpreter that an ordinary user may start")
    before = mounts()
    count = os.environ.get("BRANCHWISE_SANDBOXES", "60")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        monkeypatch.setenv("TMPDIR", folder)
        with started("many", count, user=user) as process:
            assert process.stdout.readline() == "running\n"
            assert len(sandboxed()) >= int(count)
            killed = process.pid
            process.kill()
        assert list(Path(folder).iterdir()) == []
    deadline = time.monotonic() + 20
    while sandboxed() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert sandboxed() == []
    assert mounts() == before
    monkeypatch.delenv("TMPDIR")
    with started("attacks", "no text", user=user) as process:  # the next who comes cleans up
        process.communicate(timeout=60)
    assert groups(killed) == []


MARK = "branchwise-many"


def sandboxed():
    """The processes of sandboxes that `many` runs."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if MARK.encode() in place.read_bytes():
                found.append(int(place.parent.name))
        except OSError:
            continue
    return found


async def many(count):
    """So many sandboxes at once, which run for ten minutes."""
    async with Bubblewrap(workers=count).open() as sandbox, anyio.create_task_group() as group:
        for _ in range(count):
            group.start_soon(
                sandbox.run,
                {},
                ["python", "-c", "import time; time.sleep(600)", MARK],
                Limits(seconds=600),
            )
        while len(sandboxed()) < count:  # noqa: ASYNC110  (processes ring no bell)
            await anyio.sleep(0.05)
        print("running", flush=True)


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "many":
        anyio.run(many, int(rest[0]))
    else:
        print(json.dumps(anyio.run(carried_out, rest)))
