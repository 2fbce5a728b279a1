"""Containers: with a fake engine everywhere, and with a real one where the environment names it.

BRANCHWISE_CONTAINER holds the fields of `Container` as JSON: {"image": "python:3.13-slim"}.
"""

import base64
import json
import os
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import anyio
import pytest

from branchwise.core.aio import gather
from branchwise.core.errors import SandboxError, SpecError
from branchwise.sandbox.container import Container
from branchwise.sandbox.ran import Limits, Sandbox

pytestmark = pytest.mark.anyio

FAKE = """#!{python}
import base64, json, os, sys, time
from pathlib import Path
home = Path(__file__).parent
with (home / "calls").open("a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
what = sys.argv[1]
if (home / "down").exists():
    sys.exit("Cannot connect to the daemon")
if what == "image" and sys.argv[-1] != "image":
    sys.exit(f"No such image: {{sys.argv[-1]}}")
if what == "ps":
    print((home / "names").read_text() if (home / "names").exists() else "")
if what == "run":
    size = int.from_bytes(sys.stdin.buffer.read(8), "big")
    (home / "order").write_bytes(sys.stdin.buffer.read(size))
    for act in json.loads((home / "acts").read_text()):
        if "sleep" in act:
            time.sleep(act["sleep"])
        os.write(act.get("on", 1), base64.b64decode(act.get("says", "")))
        if "exit" in act:
            sys.exit(act["exit"])
"""


def report(rest=b"", **more):
    head = {
        "why": "",
        "status": 0,
        "seconds": 0.1,
        "peak": 1,
        "stdout": 0,
        "stderr": 0,
        "files": [],
    }
    return json.dumps({**head, **more}).encode() + b"\n" + rest


class Fake:
    def __init__(self, folder):
        self.folder, self.engine = folder, folder / "docker"
        self.engine.write_text(FAKE.format(python=sys.executable))
        self.engine.chmod(0o755)
        self.acts(report())

    def spec(self, **more):
        return Container(image="image", engine=str(self.engine), **more)

    def acts(self, said=b"", **more):
        acts = [{"says": base64.b64encode(said).decode(), **more}]
        (self.folder / "acts").write_text(json.dumps(acts))

    def calls(self, what):
        lines = (self.folder / "calls").read_text().splitlines()
        return [call for call in map(json.loads, lines) if call[0] == what]


@pytest.fixture
def fake(tmp_path):
    return Fake(tmp_path)


async def refused(spec):
    with pytest.raises(SpecError) as caught:
        async with spec.open():
            pass
    return str(caught.value)


async def test_it_refuses_where_no_container_can_be_had(fake):
    assert "no-such-engine" in await refused(Container(image="image", engine="no-such-engine"))
    assert "No such image: other" in await refused(
        fake.spec().model_copy(update={"image": "other"})
    )
    fake.acts(b"unknown runtime", on=2, exit=125)
    assert "unknown runtime" in await refused(fake.spec(runtime="none"))
    fake.acts(report(status=256))
    assert "does not start" in await refused(fake.spec())
    (fake.folder / "down").touch()
    assert "daemon" in await refused(fake.spec())


async def test_the_walls_are_asked_for(fake):
    limits = Limits(memory=64 << 20, processes=5, disk=1 << 20, entries=20, output=0)
    async with fake.spec(runtime="runsc", options=("--cpus", "1")).open() as sandbox:
        assert isinstance(sandbox, Sandbox)
        await sandbox.run({"a/b": b"\xff"}, ["python", "x"], limits, stdin=b"in", keep=True)
    call = fake.calls("run")[-1]
    assert call[call.index("image") + 1 :][:3] == ["-I", "-S", "-c"]
    before = call[: call.index("image")]
    asked = dict(pairwise(before))
    memory = str(96 << 20)
    for option, value in {
        "--network": "none",
        "--cap-drop": "ALL",
        "--security-opt": "no-new-privileges",
        "--user": "65534:65534",
        "--memory": memory,
        "--memory-swap": memory,
        "--pids-limit": "6",
        "--runtime": "runsc",
        "--ipc": "private",
        "--pull": "never",
        "--cpus": "1",
        "--tmpfs": "/tmp:rw,exec,nosuid,nodev,mode=1777,size=1048576,nr_inodes=22",
        "--entrypoint": "python3",
    }.items():
        assert asked[option] == value
    assert {"--rm", "--read-only", "--interactive"} <= {*before}
    assert not {"--privileged", "--volume", "-v", "--mount", "--device"} & {*before}
    order = json.loads((fake.folder / "order").read_text())
    assert base64.b64decode(order["files"]["a/b"]) == b"\xff"
    assert (order["argv"], order["keep"], base64.b64decode(order["stdin"])) == (
        ["python", "x"],
        True,
        b"in",
    )


ENDINGS = {
    "well": (report(b"outerr1", stdout=3, stderr=3, files=[["d/x", 1]]), {}, ("exited", 0, b"out")),
    "badly": (report(status=256), {}, ("exited", 1, b"")),
    "by a signal": (report(status=11), {}, ("killed", 11, b"")),
    "too late": (report(why="timeout", status=9), {}, ("timeout", 9, b"")),
    "with its keeper": (b"", {"exit": 137}, ("memory", 9, b"")),
}


@pytest.mark.parametrize("how", ENDINGS)
async def test_how_a_program_ended(fake, how):
    async with fake.spec().open() as sandbox:
        said, more, expected = ENDINGS[how]
        fake.acts(said, **more)
        ran = await sandbox.run({}, ["python", "x"])
    assert (ran.status, ran.code, ran.stdout) == expected
    assert ran.files == ({"d/x": b"1"} if how == "well" else {})


LIES = {
    "nothing": b"",
    "no report": b"hello\n",
    "a number": b"1\n",
    "deep": b"[" * 100_000 + b"\n",
    "too short": report(stdout=9),
    "less than nothing": report(b"abc", stdout=-1),
    "a huge number": report(status=1 << 80),
    "a path above": report(files=[["../x", 0]]),
    "a path of the host": report(files=[["/etc/passwd", 0]]),
}


@pytest.mark.parametrize("lie", LIES)
async def test_what_a_container_says_is_not_believed(fake, lie):
    async with fake.spec().open() as sandbox:
        fake.acts(LIES[lie])
        with pytest.raises(SandboxError):
            await sandbox.run({}, ["python", "x"])


async def test_a_cancelled_run_removes_its_container(fake):
    async with fake.spec(workers=1).open() as sandbox:
        fake.acts(sleep=60)
        with anyio.move_on_after(0.3) as scope:
            await sandbox.run({}, ["python", "x"])
        assert scope.cancelled_caught
        run = fake.calls("run")[-1]
        assert fake.calls("rm") == [["rm", "--force", run[run.index("--name") + 1]]]
        fake.acts(report())
        assert (await sandbox.run({}, ["python", "x"])).ok


async def test_it_sweeps_what_the_dead_have_left(fake):
    async with fake.spec().open():
        pass
    run = fake.calls("run")[-1]
    label, place, pid, begun, _ = run[run.index("--name") + 1].split("-")
    assert pid == str(os.getpid())
    gone = await anyio.open_process([sys.executable, "-c", "pass"])
    await gone.aclose()
    dead = [
        f"{label}-{place}-{gone.pid}-7-aa",
        f"{label}-{place}-{pid}-1-bb",
    ]  # the second: its number reused
    living = [
        f"{label}-{place}-{os.getppid()}-{field(os.getppid())}-cc",
        f"{label}-elsewhere-1-1-dd",
        "other",
    ]
    own = f"{label}-{place}-{pid}-{begun}-ee"
    (fake.folder / "names").write_text("\n".join([*dead, *living, own]))
    async with fake.spec().open():
        assert [call[-1] for call in fake.calls("rm")] == dead
    assert fake.calls("rm")[-1][-1] == own


def field(pid):
    return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[19]


async def test_wrong_files_and_commands_never_reach_the_engine(fake):
    async with fake.spec().open() as sandbox:
        before = len(fake.calls("run"))
        for files, argv in (({"../x": b""}, ["python"]), ({}, [])):
            with pytest.raises(SpecError):
                await sandbox.run(files, argv)
            with pytest.raises(SpecError):
                async with sandbox.start(files, argv):
                    pass
        assert len(fake.calls("run")) == before


REAL = json.loads(os.environ.get("BRANCHWISE_CONTAINER", "null"))
LIMITS = Limits(seconds=5, memory=64 << 20, processes=8, output=1000, disk=1 << 20)


@pytest.fixture
async def real():
    if REAL is None:
        pytest.skip("BRANCHWISE_CONTAINER names no container")
    async with Container(**REAL).open() as sandbox:
        yield sandbox


PROGRAMS = {
    "files and input": ("print(open('a/b').read() + input())", "exited", b"fileline\n"),
    "signal": ("import os; os.kill(os.getpid(), 11)", "killed", b""),
    "loop": ("print(1, flush=True)\nwhile True: pass", "timeout", b"1\n"),
    "keeper": ("import os\nfor n in range(1, 65):\n  try: os.kill(1, n)\n  except OSError: pass\nprint(1)", "exited", b"1\n"),
    "memory": ("x = b'x' * (200 << 20)\nprint(len(x))", "memory", b""),
    "processes": ("import os, time\nn = 0\ntry:\n  while True:\n    n += 1\n    if not os.fork(): time.sleep(9)\nexcept OSError: print(n)", "exited", b"8\n"),
    "orphan": ("import os, time\nif not os.fork():\n  os.setsid()\n  time.sleep(60)\nprint('bye')", "exited", b"bye\n"),
    "output": ("while True: print('x' * 100)", "output", b"x"),
    "disk": ("try: open('/tmp/x', 'wb').write(bytes(2 << 20))\nexcept OSError as e: print(e.errno)", "exited", b"28\n"),
    "outside": ("try: open('/usr/x', 'w')\nexcept OSError as e: print('no')", "exited", b"no\n"),
    "network": ("import socket\ntry: socket.create_connection(('8.8.8.8', 53), 1)\nexcept OSError as e: print('no')", "exited", b"no\n"),
    "user": ("import os; print(os.getuid(), [l for l in open('/proc/self/status') if l.startswith('CapEff')][0][-9:])", "exited", b"65534 00000000\n"),
}  # fmt: skip


async def test_in_real_containers(real):
    async def one(name):
        files = {"main.py": PROGRAMS[name][0].encode(), "a/b": b"file"}
        return await real.run(files, ["python", "main.py"], LIMITS, stdin=b"line\n")

    for name, ran in zip(PROGRAMS, await gather(one, [*PROGRAMS]), strict=True):
        _, status, stdout = PROGRAMS[name]
        assert (name, ran.status) == (name, status), ran
        assert ran.stdout.startswith(stdout), ran
        assert len(ran.stdout + ran.stderr) <= LIMITS.output


async def test_a_real_container_keeps_files_and_talks(real):
    program = b"import os\nos.makedirs('d/e')\nopen('d/e/x', 'w').write('1')\nos.symlink('/etc', 'l')\nos.mkfifo('p')"
    ran = await real.run({"m.py": program}, ["python", "m.py"], keep=True)
    assert ran.files == {"m.py": program, "d/e/x": b"1"}
    async with real.start(
        {"m.py": b"while True: print(input()[::-1])"}, ["python", "m.py"]
    ) as program:
        for word in (b"abc", b"def"):
            await program.send(word)
            assert await program.receive(5) == word[::-1]
        with pytest.raises(TimeoutError):
            await program.receive(0.1)
    with anyio.move_on_after(0.5):
        await real.run({}, ["python", "-c", "while True: pass"], Limits(seconds=60))
    names = await real.call(
        "ps", "--all", "--filter", "label=branchwise.sandbox", "--format", "{{.Names}}"
    )
    assert names.strip() == ""


@pytest.mark.skipif(not shutil.which("docker"), reason="needs Docker's command line")
async def test_docker_understands_the_command():
    command = Container(image="image").command("name", "run", Limits())
    command.insert(command.index("--rm"), "--help")  # the options are read before the help is shown
    said = await anyio.run_process(["docker", *command], check=False)
    assert b"Usage:" in said.stdout
    assert b"unknown" not in said.stderr
