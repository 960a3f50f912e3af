"""The cache: versions whole or not at all, private, within its bound, whoever else works on it."""

import fcntl
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.unit.models.shelves import FILES, FISH, Stall, Web, body, put, serving
from worker.errors import ModelError
from worker.models.cache import Cache
from worker.models.manifest import load_manifest
from worker.models.repository import Repository, Version
from worker.types import ModelRef

MIB = 1 << 20
FIND = """\
import sys
from pathlib import Path
from typing import Any
from worker.models.cache import Cache
from worker.models.repository import Repository
from worker.telemetry.logs import configure
from worker.types import ModelRef
configure("error")
cache = Cache(Path(sys.argv[2]), max_bytes=int(sys.argv[3]))
version = Repository(sys.argv[1], cache=cache, seen_file=None).find(ModelRef("fish", "1"))
print(version.folder, flush=True)
"""
LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    return tmp_path / "shelf"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data" / "cache"


@pytest.fixture
def web(shelf: Path) -> Iterator[Web]:
    put(shelf)
    with serving(shelf) as web:
        yield web


def find(shelf: Path | str, root: Path, ref: ModelRef = FISH, *, max_bytes: int = MIB) -> Version:
    return repository(shelf, root, max_bytes).find(ref)


def repository(shelf: Path | str, root: Path, max_bytes: int = MIB) -> Repository:
    return Repository(shelf, cache=Cache(root, max_bytes=max_bytes), seen_file=None)


def refused(shelf: Path | str, root: Path) -> ModelError:
    """Refuse a version, and leave nothing of it behind."""
    with pytest.raises(ModelError) as caught:
        find(shelf, root)
    assert left(root) == []
    return caught.value


def left(root: Path) -> list[str]:
    """What is in the cache, beside its lock."""
    return sorted(path.name for path in root.glob("*") if path.name != ".lock")


def finder(
    shelf: Path | str, root: Path, *, first: str = "", then: str = ""
) -> subprocess.Popen[str]:
    """Start another process that finds the version."""
    command = [sys.executable, "-c", first + FIND + then, str(shelf), str(root), str(MIB)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_version_is_kept_whole_and_for_this_user_alone(shelf: Path, root: Path) -> None:
    sha256 = put(shelf)
    version = find(shelf, root)
    shutil.rmtree(shelf)

    assert version.folder == root / sha256
    assert version.manifest_sha256 == sha256
    assert (version.manifest, sha256) == load_manifest(version.folder)
    assert {name: (version.folder / name).read_bytes() for name in FILES} == FILES
    for path in (root, version.folder, *version.folder.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_only_listed_files_are_kept(shelf: Path, root: Path) -> None:
    put(shelf)
    (shelf / "fish/1/weights.bin").write_bytes(b"not listed")
    version = find(shelf, root)
    assert {path.name for path in version.folder.rglob("*") if path.is_file()} == {
        "manifest.yaml",
        *(name.rpartition("/")[2] for name in FILES),
    }


def test_a_version_that_is_here_is_not_fetched_again(web: Web, root: Path) -> None:
    find(web.url, root)
    web.asked.clear()
    find(web.url, root)
    assert web.asked == ["GET /fish/1/manifest.yaml"]


def symlink(path: Path) -> None:
    shutil.copy(path, path.parent / "other")
    path.unlink()
    path.symlink_to("other")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("spoil", "code", "said"),
    [
        (lambda path: path.write_bytes(b"other"), "model.invalid", "the manifest says"),
        (symlink, "model.invalid", "is a symbolic link"),
        (pipe, "model.invalid", "is not a regular file"),
        (lambda path: path.unlink(), "model.absent", "No such file"),
    ],
)
def test_a_file_that_is_not_as_the_manifest_says_is_named_and_nothing_is_left(
    shelf: Path, root: Path, spoil: Callable[[Path], None], code: str, said: str
) -> None:
    put(shelf)
    spoil(shelf / "fish/1/golden/fish.png")
    error = refused(shelf, root)
    assert error.code == code
    assert f"{shelf / 'fish/1/golden/fish.png'}: " in str(error)
    assert said in str(error)


def test_a_hard_link_in_a_repository_is_a_file_as_others(shelf: Path, root: Path) -> None:
    put(shelf)
    os.link(shelf / "fish/1/model.onnx", shelf / "fish/hardlink")
    assert find(shelf, root).folder.is_dir()


WEIGHTS = FILES["model.onnx"]


@pytest.mark.parametrize(
    ("head", "get", "code", "said"),
    [
        (None, body(WEIGHTS[:9], length=len(WEIGHTS)), "model.fetch", "cannot be read"),
        (None, body(WEIGHTS[:9]), "model.fetch", f"ended after 9 of {len(WEIGHTS)} bytes"),
        (body(b""), body(WEIGHTS[:9]), "model.invalid", "the manifest says"),
        (None, body(WEIGHTS * 2), "model.invalid", f"has more than its {len(WEIGHTS)} bytes"),
        (None, body(b"x" * len(WEIGHTS)), "model.invalid", "the manifest says"),
        (body(b""), body(b"x" * 2 * MIB), "model.fetch", "models.cache_bytes"),
    ],
    ids=["truncated", "short", "short-without-size", "long", "other", "beyond-the-cap"],
)
def test_a_response_that_is_not_the_file_is_refused_and_nothing_is_left(
    web: Web, root: Path, head: Any, get: Any, code: str, said: str
) -> None:
    web.faults = {"GET /fish/1/model.onnx": get} | (
        {"HEAD /fish/1/model.onnx": head} if head else {}
    )
    error = refused(web.url, root)
    assert error.code == code
    assert f"{web.url}/fish/1/model.onnx: " in str(error) or said == "models.cache_bytes"
    assert said in str(error)
    web.faults.clear()
    assert find(web.url, root).folder.is_dir()


def test_a_server_that_tells_no_sizes_serves_too(web: Web, root: Path) -> None:
    web.faults = {f"HEAD /fish/1/{name}": body(b"") for name in FILES}
    assert find(web.url, root).folder.is_dir()


def replaced(folder: Path) -> Path:
    shutil.rmtree(folder)
    return folder


@pytest.mark.parametrize(
    "spoil",
    [
        symlink,
        pipe,
        lambda path: path.unlink(),
        lambda path: os.link(path, path.parent.parent / "elsewhere"),
        lambda path: (path.parent / "more").write_bytes(b"external data"),
        lambda path: (path.parent / "manifest.yaml").write_bytes(b"schema: other"),
        lambda path: (path.parent / "manifest.yaml").unlink(),
        lambda path: path.parent.rename(path.parent.with_name("elsewhere")),
        lambda path: replaced(path.parent).write_bytes(b"a file"),
        lambda path: replaced(path.parent).symlink_to("/"),
    ],
)
def test_a_kept_version_that_was_tampered_with_is_fetched_again(
    shelf: Path, root: Path, spoil: Callable[[Path], object]
) -> None:
    put(shelf)
    first = find(shelf, root)
    spoil(first.folder / "labels.txt")

    assert Cache(root, max_bytes=MIB).take(first.manifest_sha256) is None
    again = find(shelf, root)
    assert again == first
    assert (again.folder / "labels.txt").read_bytes() == FILES["labels.txt"]
    assert {path.name for path in again.folder.iterdir()} == {
        *("manifest.yaml", "labels.txt", "model.onnx", "golden")
    }


def test_rights_that_others_were_given_are_taken_away(shelf: Path, root: Path) -> None:
    put(shelf)
    folder = find(shelf, root).folder
    for path in (root, folder, folder / "model.onnx"):
        path.chmod(path.stat().st_mode | 0o066)
    shutil.rmtree(shelf / "fish/1/golden")  # it need not be fetched again

    find(shelf, root)
    for path in (root, folder, folder / "model.onnx"):
        assert path.stat().st_mode & 0o077 == 0


def test_changed_bytes_are_found_where_that_is_asked_for(shelf: Path, root: Path) -> None:
    put(shelf)
    shelves = repository(shelf, root)
    model = shelves.find(FISH).folder / "model.onnx"
    model.write_bytes(b"x" * len(WEIGHTS))
    shelves.find(FISH)
    assert model.read_bytes() != WEIGHTS
    shelves.find(FISH, verify=True)
    assert model.read_bytes() == WEIGHTS


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_belongs_to_another_user_is_not_used(shelf: Path, root: Path) -> None:
    put(shelf)
    version = find(shelf, root)
    os.chown(version.folder / "model.onnx", 65534, 65534)
    assert Cache(root, max_bytes=MIB).take(version.manifest_sha256) is None
    os.chown(root, 65534, 65534)
    with pytest.raises(ModelError, match="belongs to another user"):
        find(shelf, root)


def test_a_disk_that_is_full_is_named_and_nothing_is_left(shelf: Path, root: Path) -> None:
    put(shelf, model=b"x" * 4000)
    process = finder(shelf, root, first=LIMITED)
    assert process.wait(30) == 1
    *_, error = process.communicate()[1].splitlines()
    assert f"{root}: fish/1 cannot be kept here: File too large" in error
    assert left(root) == []


def test_a_folder_that_cannot_be_made_is_named(shelf: Path, root: Path) -> None:
    put(shelf)
    root.parent.write_text("a file where the folder should be")
    with pytest.raises(ModelError, match="fish/1 cannot be kept here: ") as caught:
        find(shelf, root)
    assert caught.value.code == "model.fetch"
    assert str(root) in str(caught.value)


def test_a_fetch_can_be_cancelled_between_pieces(shelf: Path, root: Path) -> None:
    put(shelf, model=b"x" * 3 * MIB)
    answers = iter([False] * 5 + [True])
    with pytest.raises(ModelError, match="the fetch of fish/1 was cancelled") as caught:
        repository(shelf, root, 9 * MIB).find(FISH, cancelled=lambda: next(answers))
    assert caught.value.code == "model.fetch"
    assert next(answers, None) is None
    assert left(root) == []


def test_waiting_for_others_can_be_cancelled(shelf: Path, root: Path) -> None:
    put(shelf)
    root.mkdir(parents=True)
    answers = iter([False, False, True])
    with (root / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ModelError, match="cancelled"):
            repository(shelf, root).find(FISH, cancelled=lambda: next(answers))


def test_one_process_that_is_killed_midway_leaves_nothing_to_the_next(web: Web, root: Path) -> None:
    stall = Stall(WEIGHTS)
    web.faults["GET /fish/1/model.onnx"] = stall
    process = finder(web.url, root)
    assert stall.reached.wait(30)
    assert left(root) == [".new"]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert left(root) == [".new"]
    stall.go.set()
    web.faults.clear()

    version = find(web.url, root)
    assert left(root) == [version.manifest_sha256]


def test_two_processes_that_want_the_same_version_fetch_it_once(web: Web, root: Path) -> None:
    stall = Stall(WEIGHTS)
    web.faults["GET /fish/1/model.onnx"] = stall
    processes = [finder(web.url, root) for _ in range(2)]
    assert web.wait_for("GET /fish/1/manifest.yaml", count=2)
    stall.go.set()
    folders = {process.communicate(timeout=30)[0].strip() for process in processes}
    assert folders == {str(root / sha256) for sha256 in left(root)}
    assert [process.returncode for process in processes] == [0, 0]
    assert web.asked.count("GET /fish/1/model.onnx") == 1


def test_two_threads_that_want_the_same_version_fetch_it_once(web: Web, root: Path) -> None:
    shelves = repository(web.url, root)
    with ThreadPoolExecutor(4) as threads:
        versions = list(threads.map(lambda _: shelves.find(FISH), range(8)))
    assert len(set(map(str, versions))) == 1
    assert web.asked.count("GET /fish/1/model.onnx") == 1


def test_the_least_recently_used_version_makes_room(shelf: Path, root: Path) -> None:
    refs = [ModelRef("fish", version) for version in "123"]
    one, two, three = (put(shelf, ref, model=ref.version.encode() * 3000) for ref in refs)
    shelves = repository(shelf, root, 9000)
    for ref in (refs[0], refs[1], refs[0]):
        shelves.release(shelves.find(ref))
    shelves.find(refs[2])
    assert left(root) == sorted([one, three])
    assert two not in left(root)


def test_what_this_process_uses_is_not_evicted_and_released_it_is(shelf: Path, root: Path) -> None:
    sha256 = put(shelf, model=b"1" * 3000)
    two = ModelRef("fish", "2")
    other = put(shelf, two, model=b"2" * 3000)
    shelves = repository(shelf, root, 6000)
    uses = [shelves.find(FISH), shelves.find(FISH)]
    for version in uses:
        with pytest.raises(ModelError, match=r"needs \d+ bytes, and models\.cache_bytes \(6000\)"):
            shelves.find(two)
        assert left(root) == [sha256]
        shelves.release(version)
    shelves.find(two)
    assert left(root) == [other]


def test_what_another_process_uses_is_not_evicted_until_it_ends(shelf: Path, root: Path) -> None:
    sha256 = put(shelf, model=b"1" * 3000)
    two = ModelRef("fish", "2")
    other = put(shelf, two, model=b"2" * 3000)
    process = finder(shelf, root, then="sys.stdin.read()")
    assert process.stdout is not None
    assert process.stdout.readline().strip() == str(root / sha256)
    with pytest.raises(ModelError, match=r"models\.cache_bytes"):
        find(shelf, root, two, max_bytes=6000)
    process.communicate()
    find(shelf, root, two, max_bytes=6000)
    assert left(root) == [other]


def test_a_version_above_the_cap_is_refused_and_evicts_nothing(shelf: Path, root: Path) -> None:
    sha256 = put(shelf)
    big = ModelRef("fish", "big")
    put(shelf, big, model=b"x" * MIB)
    shelves = repository(shelf, root)
    shelves.release(shelves.find(FISH))
    with pytest.raises(ModelError, match=r"models\.cache_bytes") as caught:
        shelves.find(big)
    assert caught.value.code == "model.fetch"
    assert left(root) == [sha256]
