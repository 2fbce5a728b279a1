"""What every sandbox promises, for those with walls and for the one without."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import anyio
import pytest

from branchwise.core.errors import SandboxError, SpecError
from branchwise.sandbox import launcher
from branchwise.sandbox.bubblewrap import Bubblewrap
from branchwise.sandbox.cgroup import V1, V2, Groups, _swept
from branchwise.sandbox.ran import Limits, Sandbox
from branchwise.sandbox.unconfined import Unconfined

NOBODY = 65534
SCENARIOS = []


def scenario(function):
    """One promise, as a function of a sandbox."""
    SCENARIOS.append(function)
    return function


def python(code):
    return ["python", "-c", code]


@scenario
async def bytes_go_in_and_come_out_unchanged(sandbox):
    said = bytes(range(256)) * 1000
    code = "import sys; d=sys.stdin.buffer.read(); sys.stdout.buffer.write(d[::-1])"
    ran = await sandbox.run({}, python(code), stdin=said)
    assert (ran.status, ran.code, ran.stdout, ran.stderr) == ("exited", 0, said[::-1], b"")
    assert ran.ok
    assert ran.seconds > 0


@scenario
async def the_two_streams_are_kept_apart(sandbox):
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    ran = await sandbox.run({}, python(code))
    assert (ran.status, ran.code) == ("exited", 3)
    assert (ran.stdout, ran.stderr) == (b"out\n", b"err\n")
    assert not ran.ok


@scenario
async def files_are_there_and_modules_are_found(sandbox):
    files = {"main.py": b"import part.other", "part/other.py": b"print(open('a.txt').read())"}
    ran = await sandbox.run({**files, "a.txt": b"text"}, ["python", "main.py"])
    assert ran.stdout == b"text\n"


@scenario
async def regular_files_are_kept_and_nothing_else(sandbox):
    code = (
        "import os; os.makedirs('d/e'); open('d/e/x', 'wb').write(b'\\xff'); os.mkfifo('f');"
        "os.symlink('/etc', 'd/l'); os.symlink('a', 'm'); open('a', 'w').write('new');"
        "open(b'\\xfe', 'w').close()"
    )
    ran = await sandbox.run({"a": b"old", "b": b""}, python(code), keep=True)
    assert ran.files == {"a": b"new", "b": b"", "d/e/x": b"\xff", "\udcfe": b""}
    assert (await sandbox.run({"a": b"old"}, python("pass"))).files == {}


@scenario
async def each_run_begins_in_a_fresh_folder(sandbox):
    await sandbox.run({}, python("open('x', 'w'); open('/dev/shm/x', 'w')"))
    ran = await sandbox.run({}, python("import os; print(os.listdir('.'))"))
    assert ran.stdout == b"[]\n"


@scenario
async def time_runs_out_for_the_whole_tree_and_for_who_will_not_hear(sandbox):
    code = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "os.fork(); time.sleep(60)"
    )
    began = time.monotonic()
    ran = await sandbox.run({}, python(code), Limits(seconds=0.5))
    assert ran.status == "timeout"
    assert time.monotonic() - began < 10


@scenario
async def nothing_is_waited_for_that_the_program_left_behind(sandbox):
    code = "import os, time\nif os.fork(): print('parent')\nelse: time.sleep(60)"
    ran = await sandbox.run({}, python(code), Limits(seconds=30))
    assert (ran.status, ran.stdout) == ("exited", b"parent\n")


@scenario
async def output_is_cut_at_the_limit(sandbox):
    for limit in (0, 1000):
        code = "while 1: print('x' * 999)"
        ran = await sandbox.run({}, python(code), Limits(output=limit, seconds=30))
        assert (ran.status, len(ran.stdout)) == ("output", limit)
    ran = await sandbox.run({}, python("print('x' * 999)"), Limits(output=1000))
    assert (ran.status, len(ran.stdout)) == ("exited", 1000)


@scenario
async def a_signal_is_told_from_an_exit(sandbox):
    ran = await sandbox.run({}, python("import os; os.kill(os.getpid(), 11)"))
    assert (ran.status, ran.code) == ("killed", signal.SIGSEGV)


@scenario
async def a_command_that_is_not_there_is_the_programs_fault(sandbox):
    ran = await sandbox.run({}, ["no-such-command"])
    assert (ran.status, ran.code) == ("exited", 127)
    assert b"no-such-command" in ran.stderr


@scenario
async def a_run_can_be_repeated(sandbox):
    code = b"import os, part; print(os.getcwd(), os.environ, flush=True); part.fall()"
    files = {"main.py": code, "part.py": b"def fall(): print(__file__, flush=True); 1 / 0"}
    runs = [await sandbox.run(files, ["python", "main.py"]) for _ in range(2)]
    assert runs[0].stdout == runs[1].stdout
    assert runs[0].stderr == runs[1].stderr
    assert b"/main.py" in runs[0].stderr
    async with sandbox.start(files, ["python", "main.py"]) as running:
        assert (await running.receive(20)).split()[0] == runs[0].stdout.split()[0]


@scenario
async def any_command_of_the_system_runs(sandbox):
    ran = await sandbox.run({}, ["sh", "-c", "cat; echo $0 $1", "a", "b c"], stdin=b"in ")
    assert ran.stdout == b"in a b c\n"


@scenario
async def paths_stay_inside(sandbox):
    for path in ("/a", "../a", "a/../../b", "", ".", "a/", "a//b", "a\0b"):
        with pytest.raises(SpecError):
            await sandbox.run({path: b""}, ["true"])
    for files in ({"a": b"", "a/b": b""}, {"a": bytes(1 << 17)}):
        with pytest.raises(SpecError):
            await sandbox.run(files, ["true"], Limits(disk=1 << 16))
    for argv in ([], [""], ["a\0"]):
        with pytest.raises(SpecError):
            await sandbox.run({}, argv)


@scenario
async def memory_that_one_process_may_have_is_bounded(sandbox):
    code = "held = []\nwhile True: held.append(b'x' * 2**20)"
    ran = await sandbox.run({}, python(code), Limits(memory=64 << 20, seconds=30))
    assert not ran.ok
    assert ran.status == "memory" or b"MemoryError" in ran.stderr


@scenario
async def one_talks_with_a_program_line_by_line(sandbox):
    code = "import sys\nfor line in sys.stdin: print(line.strip().upper()); sys.stderr.write('x')"
    async with sandbox.start({}, python(code)) as running:
        for word in (b"one", b"", b"two"):
            await running.send(word)
            assert await running.receive(20) == word.upper()
        with pytest.raises(TimeoutError):
            await running.receive(0.05)
        await running.send(b"three")
        assert await running.receive(20) == b"THREE"


@scenario
async def talking_ends_with_the_program(sandbox):
    async with sandbox.start({}, python("print('last'); print('half', end='')")) as running:
        assert await running.receive(20) == b"last"
        with pytest.raises(SandboxError):
            await running.receive(20)
    code = "while 1: print('x', end='')"
    async with sandbox.start({}, python(code), Limits(output=100)) as running:
        with pytest.raises(SandboxError, match="longer"):
            await running.receive(20)
    with pytest.raises(KeyError, match="as it is"):
        async with sandbox.start({}, python("input()")):
            raise KeyError("as it is")


@scenario
async def the_environment_is_not_ours(sandbox):
    ran = await sandbox.run({}, python("import os; print(*os.environ)"))
    assert b"BRANCHWISE_TEST_SECRET" not in ran.stdout
    assert b"HOME" in ran.stdout


WALLS = []


def walls(function):
    """A promise of the sandbox that has walls."""
    WALLS.append(function)
    return function


@walls
async def all_processes_together_are_bounded_in_memory(sandbox):
    code = (
        "import os, time\nfor _ in range(4):\n"
        "  if not os.fork(): x = b'x' * (30 << 20); time.sleep(60)\n"
        "time.sleep(60)"
    )
    ran = await sandbox.run({}, python(code), Limits(memory=64 << 20, seconds=20))
    assert ran.status == "memory"
    assert 40 << 20 < ran.peak < 200 << 20


@walls
async def processes_are_bounded(sandbox):
    code = (
        "import os, time\nn = 0\ntry:\n  while n < 100:\n    if not os.fork(): time.sleep(60)\n"
        "    n += 1\nexcept OSError as error: print(n, error.errno)"
    )
    ran = await sandbox.run({}, python(code), Limits(processes=10, seconds=20))
    assert ran.stdout == b"9 11\n"


@walls
async def files_are_bounded_in_bytes_and_in_number(sandbox):
    code = (
        "import os\nn = 0\ntry:\n  while True: open(f'{n}', 'w').close(); n += 1\n"
        "except OSError as error: print(n, error.errno)\n"
        "for i in range(n): os.remove(f'{i}')\n"
        "n = 0\ntry:\n  while True: open(f'{n}', 'wb').write(bytes(1 << 14)); n += 1\n"
        "except OSError as error: print(n < 8, error.errno)"
    )
    ran = await sandbox.run({}, python(code), Limits(entries=20, disk=1 << 16))
    assert ran.stdout == b"20 28\nTrue 28\n"


@walls
async def a_forbidden_call_is_told(sandbox):
    code = "import ctypes, platform; ctypes.CDLL(None).unshare(0x10000000)"
    assert (await sandbox.run({}, python(code))).status == "denied"


@walls
async def nothing_of_the_machine_is_seen(sandbox):
    code = (
        "import os\n"
        "print(sorted(os.listdir('/')))\n"
        "print([p for p in os.listdir('/proc') if p.isdigit()])\n"
        "print([l.split(':')[0].strip() for l in open('/proc/net/dev') if ':' in l])\n"
        "print(open('/proc/self/status').read().split('CapEff:')[1].split()[0])\n"
    )
    ran = await sandbox.run({}, python(code))
    places, processes, networks, rights = ran.stdout.decode().splitlines()
    assert not {"home", "work", "mnt", "var", "srv"} & set(eval(places))
    assert len(eval(processes)) == 2
    assert set(eval(networks)) <= {"lo"}
    assert int(rights, 16) == 0


@walls
async def what_python_programs_need_is_there(sandbox):
    code = (
        "import asyncio, multiprocessing, subprocess, tempfile, threading\n"
        "asyncio.run(asyncio.sleep(0))\n"
        "with multiprocessing.Pool(2) as pool: print(pool.map(abs, [-1, 2]), flush=True)\n"
        "thread = threading.Thread(target=print, args=(3,), kwargs={'flush': True}); thread.start(); thread.join()\n"
        "subprocess.run(['python', '-c', 'print(4)']); tempfile.TemporaryFile().write(b'x')\n"
    )
    ran = await sandbox.run({}, python(code))
    assert (ran.stderr, ran.stdout) == (b"", b"[1, 2]\n3\n4\n")


WAYS = [
    pytest.param(Bubblewrap(warm=0), "asyncio", id="bubblewrap"),
    pytest.param(Bubblewrap(warm=1), "trio", id="bubblewrap-trio"),
    pytest.param(Unconfined(), "trio", id="unconfined"),
]


@pytest.fixture(scope="module")
def _bubblewrap():
    """Skip where the system has no such sandbox; what is broken in ours must fail."""
    if not shutil.which("bwrap"):
        pytest.skip("bubblewrap is not installed")
    own = ["bwrap", "--unshare-pid", "--ro-bind", "/usr", "/usr", "--symlink", "usr/lib", "/lib"]
    own += ["--symlink", "usr/lib64", "/lib64", "--proc", "/proc", "/usr/bin/true"]
    if subprocess.run(own, capture_output=True, check=False).returncode:
        pytest.skip("the system forbids namespaces")


def carried_out(spec, backend, *scenarios):
    async def main():
        async with spec.open() as sandbox:
            assert isinstance(sandbox, Sandbox)
            for one in scenarios:
                await one(sandbox)

    anyio.run(main, backend=backend)


@pytest.mark.parametrize("promise", SCENARIOS, ids=lambda function: function.__name__)
@pytest.mark.parametrize(("spec", "backend"), WAYS)
def test_every_sandbox_keeps_the_promise(promise, spec, backend, request, monkeypatch):
    if isinstance(spec, Bubblewrap):
        request.getfixturevalue("_bubblewrap")
    monkeypatch.setenv("BRANCHWISE_TEST_SECRET", "1")
    carried_out(spec, backend, promise)


@pytest.mark.usefixtures("_bubblewrap")
@pytest.mark.parametrize("promise", WALLS, ids=lambda function: function.__name__)
def test_walls_hold(promise):
    carried_out(Bubblewrap(warm=0), "asyncio", promise)


@pytest.mark.usefixtures("_bubblewrap")
@pytest.mark.parametrize("promise", WALLS, ids=lambda function: function.__name__)
def test_walls_hold_without_control_groups(promise, monkeypatch):
    monkeypatch.setattr(Groups, "found", lambda: None)
    carried_out(Bubblewrap(warm=0), "asyncio", promise)


@pytest.mark.usefixtures("_bubblewrap")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_all_of_it_holds_for_an_ordinary_user():
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    user = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    paths = [str(Path(__file__).parents[2]), *filter(None, sys.path)]
    env = {"PYTHONPATH": ":".join(paths), "HOME": "/", "PATH": os.environ["PATH"]}
    env["BRANCHWISE_TEST_SECRET"] = "1"
    for interpreter in (sys.executable, f"/usr/bin/{version}"):
        try:
            command = [interpreter, "-B", "-W", "ignore", __file__]
            done = subprocess.run(
                command, env=env, capture_output=True, text=True, check=False, **user
            )
        except OSError:  # it lies in a folder of root's
            continue
        break
    else:
        pytest.skip("no interpreter of this version that an ordinary user may start")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.anyio
@pytest.mark.usefixtures("_bubblewrap")
async def test_cancelling_ends_the_program_and_frees_all():
    before = descriptors()
    async with Bubblewrap(warm=1, workers=2).open() as sandbox:
        with anyio.move_on_after(0.3) as scope:
            await sandbox.run({}, python("while True: pass"))
        assert scope.cancelled_caught
        assert (await sandbox.run({}, python("print(1)"))).ok
    assert descriptors() == before
    assert children() == []


@pytest.mark.anyio
@pytest.mark.usefixtures("_bubblewrap")
async def test_a_sandbox_that_is_given_up_while_it_is_built_leaves_nobody():
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: orphans come to us
    try:
        async with Bubblewrap(warm=0).open() as sandbox:
            for i in range(20):
                with anyio.move_on_after(i / 2000):
                    await sandbox.run({}, ["true"])
        assert children() == []
    finally:
        ctypes.CDLL(None).prctl(36, 0)


@pytest.mark.usefixtures("_bubblewrap")
@pytest.mark.skipif(
    Path(sys.prefix).is_relative_to(launcher.ROOM), reason="the packages here lie in /tmp"
)
def test_packages_are_there_only_where_they_are_wanted():
    async def ran(spec):
        async with spec.open() as sandbox:
            return await sandbox.run({}, ["sh", "-c", "python -c 'import anyio; print(1)'"])

    assert anyio.run(ran, Bubblewrap(warm=0, packages=True)).stdout == b"1\n"
    assert b"No module named 'anyio'" in anyio.run(ran, Bubblewrap(warm=0)).stderr


@pytest.mark.anyio
@pytest.mark.usefixtures("_bubblewrap")
async def test_an_interpreter_that_programs_could_not_see_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "prefix", "/tmp/environment")
    with pytest.raises(SpecError, match="/tmp/environment") as caught:
        await Bubblewrap(packages=True).open().__aenter__()
    assert "elsewhere" in caught.value.hint


@pytest.mark.anyio
@pytest.mark.usefixtures("_bubblewrap")
async def test_many_at_once_and_no_more_than_workers():
    alive = []
    async with Bubblewrap(warm=2, workers=3).open() as sandbox:

        async def one(number):
            ran = await sandbox.run({}, python(f"print({number})"))
            alive.append(ran.stdout == f"{number}\n".encode())

        async with anyio.create_task_group() as group:
            for number in range(12):
                group.start_soon(one, number)
    assert alive == [True] * 12


def descriptors():
    return len([*Path("/proc/self/fd").iterdir()])


def children():
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


KILLED = """
import anyio, sys
from branchwise.sandbox.bubblewrap import Bubblewrap
async def main():
    async with Bubblewrap(workers=6, warm=2).open() as sandbox, anyio.create_task_group() as group:
        for _ in range(6):
            group.start_soon(talk, sandbox)
async def talk(sandbox):
    program = ["python", "-c", "print(1, flush=True)\\nwhile True: pass"]
    async with sandbox.start({}, program) as running:
        await running.receive(20)
        print("up", flush=True)
        await anyio.sleep(60)
anyio.run(main)
"""


@pytest.mark.usefixtures("_bubblewrap")
def test_nothing_is_left_of_a_parent_that_was_killed():
    with subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE) as parent:
        for _ in range(6):
            assert parent.stdout.readline() == b"up\n"
        mine = below(parent.pid)
        assert len(mine) >= 6 * 3
        parent.kill()
    deadline = time.monotonic() + 20
    while left := [pid for pid in mine if Path(f"/proc/{pid}/exe").exists() and alive(pid)]:
        assert time.monotonic() < deadline, left
        os.sched_yield()
    # The next who opens a sandbox removes the groups, once the system has buried who was in them.
    while list(Path("/sys/fs/cgroup").glob(f"*/**/branchwise-*-{parent.pid}-*")):
        assert time.monotonic() < deadline
        if (groups := Groups.found()) is not None:
            groups.close()


def below(pid):
    """All processes that descend from one."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(child), *below(int(child))]
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_where_there_is_no_bubblewrap_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(SpecError, match="install bubblewrap"):
        carried_out(Bubblewrap(), "asyncio")


def test_where_walls_cannot_be_built_nothing_runs(tmp_path, monkeypatch):
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'No permissions to create new namespace' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda _: str(broken))
    with pytest.raises(SpecError, match="No permissions to create new namespace"):
        carried_out(Bubblewrap(), "asyncio")


def control_groups(tmp_path, version):
    """A system with control groups, as files."""
    proc, tree = tmp_path / "proc", tmp_path / "tree"
    proc.mkdir()
    if version is V1:
        lines = [
            f"1 1 0:1 / {tree}/{name} rw - cgroup cgroup rw,{name}" for name in ("memory", "pids")
        ]
        (proc / "cgroup").write_text("2:pids:/mine\n1:memory:/mine\n0::/\n")
        own = [tree / "memory" / "mine", tree / "pids" / "mine"]
    else:
        lines = [f"1 1 0:1 / {tree} rw - cgroup2 cgroup2 rw"]
        (proc / "cgroup").write_text("0::/mine\n")
        own = [tree / "mine"]
    (proc / "mountinfo").write_text("\n".join(lines))
    for folder in own:
        folder.mkdir(parents=True)
    return proc, own


@pytest.mark.parametrize("version", [V1, V2], ids=["v1", "v2"])
def test_groups_of_the_dead_are_removed(tmp_path, version):
    _, own = control_groups(tmp_path, version)
    space = Path("/proc/self/ns/pid").stat().st_ino
    for folder in own:
        for name in (f"branchwise-{space}-999999999-5-0", "branchwise-1-999999999-5-0", "other"):
            (folder / name / "0").mkdir(parents=True)
        _swept(folder)
        assert {place.name for place in folder.iterdir()} == {"branchwise-1-999999999-5-0", "other"}


def main():
    """All promises at once, for a process of another user."""

    async def all_of_them():
        failed = 0
        async with Bubblewrap(warm=1).open() as sandbox:
            for one in (*SCENARIOS, *WALLS):
                try:
                    await one(sandbox)
                except BaseException:  # noqa: BLE001  (told on)
                    print(one.__name__, traceback.format_exc())
                    failed += 1
        return failed

    sys.exit(min(anyio.run(all_of_them), 1))


if __name__ == "__main__":
    main()
