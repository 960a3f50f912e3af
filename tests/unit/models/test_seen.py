"""What was seen of versions: none of them ever changes, also not for the next worker."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.models.shelves import FISH, put
from worker.errors import ModelError
from worker.models.cache import Cache
from worker.models.repository import Repository, Version
from worker.types import ModelRef


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    put(tmp_path / "shelf")
    return tmp_path / "shelf"


@pytest.fixture
def seen_file(tmp_path: Path) -> Path:
    return tmp_path / "data" / "seen.json"


def find(shelf: Path, seen_file: Path) -> Version:
    return Repository(shelf, cache=None, seen_file=seen_file).find(FISH)


def test_other_content_is_refused_with_both_digests_also_after_a_restart(
    shelf: Path, seen_file: Path
) -> None:
    first = find(shelf, seen_file).manifest_sha256
    second = put(shelf, model=b"other")
    repository = Repository(shelf, cache=None, seen_file=seen_file)
    for ask in (repository.find, repository.find, repository.manifest_sha256):
        with pytest.raises(ModelError, match="a version never changes") as caught:
            ask(FISH)
        assert caught.value.code == "model.changed"
        assert first in str(caught.value)
        assert second in str(caught.value)
        assert str(shelf / "fish" / "1" / "manifest.yaml") in str(caught.value)


def test_other_content_is_refused_though_the_cache_has_it(shelf: Path, seen_file: Path) -> None:
    two = ModelRef("fish", "2")
    other = put(shelf, two, model=b"other")
    cache = Cache(seen_file.parent / "cache", max_bytes=1 << 20)
    repository = Repository(shelf, cache=cache, seen_file=seen_file)
    repository.find(FISH)
    repository.find(two)
    with pytest.raises(ModelError, match="a version never changes"):
        repository.find(FISH, sha256=other)


def test_a_version_that_comes_back_as_it_was_is_served_again(shelf: Path, seen_file: Path) -> None:
    first = find(shelf, seen_file)
    shutil.rmtree(shelf / "fish")
    with pytest.raises(ModelError, match="no version fish/1"):
        find(shelf, seen_file)
    put(shelf)
    assert find(shelf, seen_file) == first


def test_what_could_not_be_had_is_not_remembered(shelf: Path, seen_file: Path) -> None:
    manifest = shelf / "fish" / "1" / "manifest.yaml"
    whole = manifest.read_text()
    cache = Cache(seen_file.parent / "cache", max_bytes=1 << 20)
    repository = Repository(shelf, cache=cache, seen_file=seen_file)
    for spoiled in (
        "schema: 1",
        whole.replace("sha256:1", "sha256:2").replace("sha256:a", "sha256:b") + "#",
    ):
        manifest.write_text(spoiled)
        (shelf / "fish/1/labels.txt").write_text("not yet whole")
        with pytest.raises(ModelError):
            repository.find(FISH)
    put(shelf)
    assert repository.find(FISH).ref == FISH


def test_every_version_is_remembered_and_nothing_else_is_left_behind(
    shelf: Path, seen_file: Path
) -> None:
    put(shelf, ModelRef("fish", "2"))
    repository = Repository(shelf, cache=None, seen_file=seen_file)
    digests = {str(ref): repository.find(ref).manifest_sha256 for ref in repository.versions()}
    document = json.loads(seen_file.read_text())
    assert document == {"schema": "darkroom.seen.v1", "versions": digests}
    assert {path.name for path in seen_file.parent.iterdir()} == {"seen.json", "seen.json.lock"}


def test_a_digest_that_a_command_asks_for_is_not_remembered(shelf: Path, seen_file: Path) -> None:
    Repository(shelf, cache=None, seen_file=seen_file).manifest_sha256(FISH)
    assert not seen_file.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "line 1"),
        ('{"schema": "darkroom.seen.v1", "versions": {"fish/1": "0', "line 1"),
        ("[]", "its schema is not darkroom.seen.v1"),
        ('{"schema": "darkroom.seen.v2", "versions": {}}', "its schema is not darkroom.seen.v1"),
        ('{"schema": "darkroom.seen.v1"}', "versions is no mapping"),
        ('{"schema": "darkroom.seen.v1", "versions": {"fish/1": 7}}', "versions['fish/1'] is no"),
    ],
)
def test_a_corrupt_memory_is_reported_and_not_dropped(
    shelf: Path, seen_file: Path, content: str, said: str
) -> None:
    seen_file.parent.mkdir()
    seen_file.write_text(content)
    with pytest.raises(ModelError, match=re.escape(str(seen_file))) as caught:
        find(shelf, seen_file)
    assert said in str(caught.value)
    assert "restore the file, or remove it" in str(caught.value)
    assert seen_file.read_text() == content


def test_a_memory_that_cannot_be_written_is_an_error(shelf: Path, seen_file: Path) -> None:
    seen_file.parent.write_text("a file where the folder should be")
    with pytest.raises(ModelError, match="cannot remember what was seen of fish/1"):
        find(shelf, seen_file)


def test_a_memory_that_cannot_be_read_is_an_error(shelf: Path, seen_file: Path) -> None:
    seen_file.mkdir(parents=True)
    with pytest.raises(ModelError, match="Is a directory"):
        find(shelf, seen_file)


def test_workers_that_share_a_data_folder_forget_nothing(shelf: Path, seen_file: Path) -> None:
    for version in range(2, 22):
        put(shelf, ModelRef("fish", str(version)))
    program = (
        "import sys; from worker.models.repository import Repository; from pathlib import Path\n"
        "repository = Repository(sys.argv[1], cache=None, seen_file=Path(sys.argv[2]))\n"
        "[repository.find(ref) for ref in repository.versions()[int(sys.argv[3])::2]]"
    )
    workers = [
        subprocess.Popen([sys.executable, "-c", program, str(shelf), str(seen_file), str(part)])
        for part in range(2)
    ]
    assert [worker.wait(timeout=60) for worker in workers] == [0, 0]
    assert len(json.loads(seen_file.read_text())["versions"]) == 21
