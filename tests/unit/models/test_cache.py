"""The cache: versions whole and private, within its bound, whoever else works on it."""

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.unit.models.kept import MIB, find, finder, left, pipe, repository, symlink
from tests.unit.models.shelves import FILES, FISH, Stall, Web, put, serving
from worker.errors import ModelError
from worker.models.cache import Cache
from worker.models.manifest import load_manifest
from worker.types import ModelRef

WEIGHTS = FILES["model.onnx"]


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

    assert Cache(root, max_bytes=MIB).take(first.manifest_sha256, FISH) is None
    again = find(shelf, root)
    assert again == first
    assert (again.folder / "labels.txt").read_bytes() == FILES["labels.txt"]
    assert {path.name for path in again.folder.iterdir()} == {
        *("manifest.yaml", "labels.txt", "model.onnx", "golden")
    }


@pytest.mark.parametrize("digest", ["", ".", "..", ".new", "../shelf/fish/1", "F" * 64])
def test_no_digest_leads_out_of_the_cache(shelf: Path, root: Path, digest: str) -> None:
    put(shelf)
    assert Cache(root, max_bytes=MIB).take(digest, FISH) is None
    with pytest.raises(ModelError, match="asked for was"):
        repository(shelf, root).find(FISH, sha256=digest)


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
    assert Cache(root, max_bytes=MIB).take(version.manifest_sha256, FISH) is None
    os.chown(root, 65534, 65534)
    with pytest.raises(ModelError, match="belongs to another user"):
        find(shelf, root)


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
    sha256, same, two = (
        put(shelf, model=b"1" * 3000),
        ModelRef("fish", "same"),
        ModelRef("fish", "2"),
    )
    assert put(shelf, same, model=b"1" * 3000) == sha256
    other = put(shelf, two, model=b"2" * 3000)
    shelves = repository(shelf, root, 6000)
    uses = [shelves.find(FISH), shelves.find(same)]
    for version in uses:
        with pytest.raises(ModelError, match=r"needs \d+ bytes, and models\.cache_bytes \(6000\)"):
            shelves.find(two)
        assert left(root) == [sha256]
        shelves.release(version)
    shelves.find(two)
    assert left(root) == [other]


def test_a_version_that_is_found_often_costs_one_descriptor(shelf: Path, root: Path) -> None:
    put(shelf)
    shelves = repository(shelf, root)
    version = shelves.find(FISH)
    before = psutil.Process().num_fds()
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda _: shelves.find(FISH), range(40))) == [version] * 40
    assert psutil.Process().num_fds() == before
    shelves.release(version)
    shelves.release(version)
    assert psutil.Process().num_fds() == before - 1


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
