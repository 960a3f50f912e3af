"""The repository: which versions there are, wherever they lie, and what is said of others."""

import functools
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import fsspec
import pytest

from tests.unit.models.shelves import FILES, FISH, Web, put, serving, status
from worker.errors import ModelError
from worker.models.cache import Cache
from worker.models.manifest import load_manifest
from worker.models.repository import Repository, demo_repository
from worker.types import ModelRef

MIB = 1 << 20
TWO = ModelRef("fish", "2")
At = Callable[[Path], AbstractContextManager[str]]


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    put(tmp_path / "shelf")
    return tmp_path / "shelf"


@pytest.fixture
def web(shelf: Path) -> Iterator[Web]:
    with serving(shelf) as web:
        yield web


def local(shelf: Path) -> Repository:
    return Repository(shelf, cache=None, seen_file=None)


@pytest.fixture
def cached(tmp_path: Path) -> Callable[[str | Path], Repository]:
    """Make a repository with a cache and a memory, of its own data folder."""
    data = tmp_path / "data"
    return functools.partial(
        Repository, cache=Cache(data / "cache", max_bytes=MIB), seen_file=data / "seen.json"
    )


def refused(
    repository: Repository, ref: ModelRef = FISH, *, sha256: str | None = None
) -> ModelError:
    with pytest.raises(ModelError) as caught:
        repository.find(ref, sha256=sha256)
    return caught.value


def test_versions_are_ordered_as_pep_440_orders_them_and_texts_come_before(tmp_path: Path) -> None:
    for version in ("2", "10", "2.0rc1", "1!1", "2024-05-01-blue", "latest", "2.0.1"):
        put(tmp_path, ModelRef("fish", version))
    put(tmp_path, ModelRef("bird", "3"))
    assert [str(ref) for ref in local(tmp_path).versions()] == [
        "bird/3",
        "fish/2024-05-01-blue",
        "fish/latest",
        "fish/2.0rc1",
        "fish/2",
        "fish/2.0.1",
        "fish/10",
        "fish/1!1",
    ]


def test_what_is_no_version_is_not_listed(shelf: Path) -> None:
    put(shelf, ModelRef(".git", "1"))
    put(shelf, ModelRef("fish", ".partial"))
    (shelf / "fish" / "2").mkdir()
    (shelf / "README.md").write_text("about")
    (shelf / "fish" / "latest").symlink_to(shelf / "fish" / "1")
    assert local(shelf).versions() == [FISH]


def test_without_a_cache_a_version_is_used_where_it_lies(shelf: Path) -> None:
    version = local(shelf).find(FISH)
    assert version.ref == FISH
    assert version.folder == shelf / "fish" / "1"
    assert (version.manifest, version.manifest_sha256) == load_manifest(version.folder)


@contextmanager
def in_a_folder(shelf: Path) -> Iterator[str]:
    yield str(shelf)


@contextmanager
def as_file_url(shelf: Path) -> Iterator[str]:
    yield f"file://{shelf}"


@contextmanager
def over_http(shelf: Path) -> Iterator[str]:
    with serving(shelf) as web:
        yield web.url


@contextmanager
def over_http_below_a_path(shelf: Path) -> Iterator[str]:
    with serving(shelf.parent) as web:
        yield f"{web.url}/{shelf.name}/"


@contextmanager
def in_memory(shelf: Path) -> Iterator[str]:
    memory = fsspec.filesystem("memory")
    memory.put(str(shelf), f"/{shelf.parent.name}", recursive=True)
    yield f"memory://{shelf.parent.name}"
    memory.rm(f"/{shelf.parent.name}", recursive=True)


@contextmanager
def in_a_zip(shelf: Path) -> Iterator[str]:
    packed = shelf.with_suffix(".zip")
    with zipfile.ZipFile(packed, "w") as archive:
        for path in shelf.rglob("*"):
            archive.write(path, f"models/{path.relative_to(shelf)}")
    yield f"zip://models::{packed}"


@pytest.fixture(
    params=[
        in_a_folder,
        as_file_url,
        over_http,
        over_http_below_a_path,
        in_memory,
        in_a_zip,
    ],
    ids=lambda param: param.__name__,
)
def at(request: pytest.FixtureRequest) -> At:
    at: At = request.param
    return at


def test_wherever_it_lies_a_version_is_listed_found_and_fetched(
    shelf: Path, at: At, cached: Callable[[str], Repository]
) -> None:
    sha256 = put(shelf, TWO, model=b"other")
    with at(shelf) as location:
        repository = cached(location)
        assert repository.versions() == [FISH, TWO]
        assert repository.manifest_sha256(TWO) == sha256
        version = repository.find(TWO)
    assert version.manifest_sha256 == sha256
    assert (version.folder / "model.onnx").read_bytes() == b"other"
    assert (version.folder / "golden/fish.png").read_bytes() == FILES["golden/fish.png"]


def test_wherever_it_lies_an_unknown_version_is_told_apart_from_an_unknown_model(
    shelf: Path, at: At, cached: Callable[[str], Repository]
) -> None:
    (shelf / "fish/3").mkdir()
    (shelf / "fish/3/labels.txt").write_text("the first of all files that came")
    with at(shelf) as location:
        repository = cached(location)
        for ref, said in (
            (TWO, "no version fish/2; there are 1, 3"),
            (ModelRef("bird", "1"), "no model 'bird'; there are fish"),
            (ModelRef("fish", "3"), "version fish/3 has no manifest.yaml yet"),
        ):
            error = refused(repository, ref)
            assert error.code == "model.absent"
            assert str(error) == f"model repository {repository.where}: {said}"


def test_a_server_that_lists_nothing_is_asked_for_no_list(
    web: Web, cached: Callable[[str], Repository]
) -> None:
    web.faults = dict.fromkeys(("GET /", "GET /fish/", "GET /fish"), status(403))
    repository = cached(web.url)
    assert repository.find(FISH).ref == FISH
    assert not set(web.faults) & set(web.asked)
    assert "no version fish/2; what there is cannot be listed" in str(refused(repository, TWO))
    with pytest.raises(ModelError, match="cannot be read: ClientResponseError: 403") as caught:
        repository.versions()
    assert caught.value.code == "model.fetch"


@pytest.mark.parametrize("name", ["..", "../shelf/fish", "", ".", "/etc", "-rf", "a b", "a\n"])
def test_no_name_leads_out_of_the_repository(shelf: Path, at: At, name: str) -> None:
    put(shelf.parent)
    with at(shelf) as location:
        repository = Repository(location, cache=None, seen_file=None)
        assert "no model" in str(refused(repository, ModelRef(name, "1")))
        assert "no version" in str(refused(repository, ModelRef("fish", f"{name}/1")))


def test_a_linked_version_is_refused_where_it_is_asked_for(shelf: Path) -> None:
    (shelf / "fish" / "latest").symlink_to(shelf / "fish" / "1")
    assert "is a symbolic link" in str(refused(local(shelf), ModelRef("fish", "latest")))


def test_a_repository_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=re.escape(f"{tmp_path / 'no'}: is not there")):
        local(tmp_path / "no").versions()
    error = refused(local(tmp_path / "no"))
    assert error.code == "model.fetch"
    assert str(error) == f"{tmp_path / 'no'}: cannot be read: no such folder"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"schema: [", "not YAML: line 1"),
        (b"\xff", "is not UTF-8 at byte 0"),
        (b"#" * 3 * MIB, "is larger than 1048576 bytes"),
    ],
)
def test_a_broken_manifest_is_named(shelf: Path, at: At, content: bytes, said: str) -> None:
    (shelf / "fish" / "1" / "manifest.yaml").write_bytes(content)
    with at(shelf) as location:
        error = refused(Repository(location, cache=None, seen_file=None))
        assert error.code == "model.invalid"
        assert "fish/1/manifest.yaml" in str(error)
        assert said in str(error)


def test_a_digest_asked_for_is_found_in_the_cache_alone(
    web: Web, cached: Callable[[str], Repository]
) -> None:
    first = cached(web.url).find(FISH)
    web.asked.clear()
    assert cached(web.url).find(FISH, sha256=first.manifest_sha256) == first
    assert web.asked == []


def test_another_digest_than_the_one_asked_for_is_refused_with_both(
    shelf: Path, cached: Callable[[Path], Repository]
) -> None:
    there = put(shelf, FISH)
    error = refused(cached(shelf), sha256="0" * 64)
    assert error.code == "model.changed"
    assert str(shelf / "fish/1/manifest.yaml") in str(error)
    assert there in str(error)
    assert "0" * 64 in str(error)


def test_while_a_repository_cannot_be_read_what_was_seen_serves_from_the_cache(
    web: Web, cached: Callable[[str], Repository]
) -> None:
    first = cached(web.url).find(FISH)
    web.faults["GET /fish/1/manifest.yaml"] = web.faults["GET /fish/2/manifest.yaml"] = status(503)
    assert cached(web.url).find(FISH) == first
    for error in (refused(cached(web.url), TWO), refused(cached(web.url), FISH, sha256="0" * 64)):
        assert error.code in {"model.fetch", "model.changed"}
    assert "503" in str(refused(cached(web.url), TWO))


def test_what_a_repository_no_longer_has_is_not_served_from_the_cache(
    shelf: Path, cached: Callable[[Path], Repository]
) -> None:
    cached(shelf).find(FISH)
    shutil.rmtree(shelf / "fish/1")
    assert refused(cached(shelf)).code == "model.absent"


def test_a_watcher_learns_how_a_fetch_gets_on(
    web: Web, cached: Callable[[str], Repository]
) -> None:
    told: list[tuple[object, ...]] = []

    class Watcher:
        def begin(self, ref: ModelRef, total_bytes: int | None) -> None:
            told.append(("begin", ref, total_bytes))

        def advance(self, count_bytes: int) -> None:
            told.append(("advance", count_bytes))

        def end(self) -> None:
            told.append(("end",))

    web.faults["GET /fish/1/model.onnx"] = status(503)
    with pytest.raises(ModelError):
        cached(web.url).find(FISH, watcher=Watcher())
    assert (told[0], told[-1]) == (("begin", FISH, sum(map(len, FILES.values()))), ("end",))
    web.faults.clear()
    told.clear()
    cached(web.url).find(FISH, watcher=Watcher())
    assert told[1:-1] == [("advance", len(data)) for data in FILES.values()]
    told.clear()
    cached(web.url).find(FISH, watcher=Watcher())
    assert told == []


def test_the_demo_has_a_repository_of_its_own() -> None:
    assert [str(ref) for ref in local(demo_repository()).versions()] == ["digits/1", "digits/2"]
