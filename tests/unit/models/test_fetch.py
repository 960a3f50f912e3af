"""A fetch: what source, disk or somebody's will can do to it, and that nothing is left then."""

import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.models.kept import MIB, find, finder, left, pipe, repository, symlink
from tests.unit.models.shelves import FILES, FISH, Fault, Stall, Web, body, put, serving
from worker.errors import ModelError

WEIGHTS = FILES["model.onnx"]
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


def refused(shelf: Path | str, root: Path) -> ModelError:
    """Refuse a version, and leave nothing of it behind."""
    with pytest.raises(ModelError) as caught:
        find(shelf, root)
    assert left(root) == []
    return caught.value


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
    web: Web, root: Path, head: Fault | None, get: Fault, code: str, said: str
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
