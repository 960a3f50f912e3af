"""The repository: which versions there are, and that none of them ever changes."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from worker.errors import ModelError
from worker.models.manifest import load_manifest
from worker.models.repository import Repository, demo_repository
from worker.types import ModelRef

MANIFEST = """\
schema: darkroom.manifest.v1
files:
  model.onnx: sha256:{digest}
  labels.txt: sha256:{digest}
  golden.png: sha256:{digest}
inputs: {{image: {{preprocess: [cast: {{to: float32}}]}}}}
heads: {{label: {{type: classification, output: y, activation: none, labels: labels.txt}}}}
golden: [{{image: golden.png, head: label, expect: {{label: tench, score: 0.7}}}}]
"""
FISH = ModelRef("fish", "1")


def put(folder: Path, name: str, version: str, digit: str = "0") -> None:
    """Put a version into a repository whose content `digit` decides."""
    (folder / name / version).mkdir(parents=True, exist_ok=True)
    text = MANIFEST.format(digest=digit * 64)
    (folder / name / version / "manifest.yaml").write_text(text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    put(folder, "fish", "1")
    return folder


@pytest.fixture
def seen_file(tmp_path: Path) -> Path:
    return tmp_path / "data" / "seen.json"


def test_versions_are_ordered_as_pep_440_orders_them_and_texts_come_before(tmp_path: Path) -> None:
    for version in ("2", "10", "2.0rc1", "1!1", "2024-05-01-blue", "latest", "2.0.1"):
        put(tmp_path, "fish", version)
    put(tmp_path, "bird", "3")
    assert [str(ref) for ref in Repository(tmp_path, None).versions()] == [
        "bird/3",
        "fish/2024-05-01-blue",
        "fish/latest",
        "fish/2.0rc1",
        "fish/2",
        "fish/2.0.1",
        "fish/10",
        "fish/1!1",
    ]


def test_what_is_no_version_is_not_listed(folder: Path) -> None:
    put(folder, ".git", "1")
    put(folder, "fish", ".partial")
    (folder / "fish" / "2").mkdir()
    (folder / "README.md").write_text("about")
    (folder / "fish" / "latest").symlink_to(folder / "fish" / "1")
    assert Repository(folder, None).versions() == [FISH]


def test_a_version_is_found_with_its_manifest_and_digest(folder: Path) -> None:
    version = Repository(folder, None).find(FISH)
    assert version.ref == FISH
    assert version.folder == folder / "fish" / "1"
    assert (version.manifest, version.manifest_sha256) == load_manifest(version.folder)


def test_an_unknown_version_is_told_apart_from_an_unknown_model(folder: Path) -> None:
    repository = Repository(folder, None)
    with pytest.raises(ModelError, match=r"no version fish/2; there are 1"):
        repository.find(ModelRef("fish", "2"))
    with pytest.raises(ModelError, match=r"no model 'bird'; there are fish"):
        repository.find(ModelRef("bird", "1"))


@pytest.mark.parametrize("name", ["..", "../models/fish", "", ".", "/etc"])
def test_no_name_leads_out_of_the_repository(folder: Path, name: str) -> None:
    put(folder.parent, "fish", "1")
    with pytest.raises(ModelError, match="no model"):
        Repository(folder, None).find(ModelRef(name, "1"))
    with pytest.raises(ModelError, match="no version"):
        Repository(folder, None).find(ModelRef("fish", f"{name}/1"))


def test_a_repository_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=re.escape(f"{tmp_path / 'no'}: cannot be read: No such")):
        Repository(tmp_path / "no", None).versions()


def test_a_broken_manifest_is_named(folder: Path) -> None:
    (folder / "fish" / "1" / "manifest.yaml").write_text("schema: [")
    with pytest.raises(ModelError, match=r"fish/1/manifest\.yaml: not YAML: line 1"):
        Repository(folder, None).find(FISH)


def test_a_version_with_other_content_is_refused_with_both_digests_also_after_a_restart(
    folder: Path, seen_file: Path
) -> None:
    first = Repository(folder, seen_file).find(FISH).manifest_sha256
    put(folder, "fish", "1", digit="1")
    second = load_manifest(folder / "fish" / "1")[1]
    for _ in range(2):
        with pytest.raises(ModelError, match="a version never changes") as caught:
            Repository(folder, seen_file).find(FISH)
        assert first in str(caught.value)
        assert second in str(caught.value)
        assert str(folder / "fish" / "1" / "manifest.yaml") in str(caught.value)


def test_a_version_that_comes_back_as_it_was_is_served_again(folder: Path, seen_file: Path) -> None:
    repository = Repository(folder, seen_file)
    first = repository.find(FISH)
    shutil.rmtree(folder / "fish")
    with pytest.raises(ModelError, match="no model"):
        repository.find(FISH)
    put(folder, "fish", "1")
    assert repository.find(FISH) == first


def test_a_broken_manifest_is_not_remembered(folder: Path, seen_file: Path) -> None:
    manifest = folder / "fish" / "1" / "manifest.yaml"
    manifest.write_text("schema: 1")
    with pytest.raises(ModelError):
        Repository(folder, seen_file).find(FISH)
    put(folder, "fish", "1")
    assert Repository(folder, seen_file).find(FISH).ref == FISH


def test_every_version_is_remembered_and_nothing_else_is_left_behind(
    folder: Path, seen_file: Path
) -> None:
    put(folder, "fish", "2")
    repository = Repository(folder, seen_file)
    digests = {str(ref): repository.find(ref).manifest_sha256 for ref in repository.versions()}
    document = json.loads(seen_file.read_text())
    assert document == {"schema": "darkroom.seen.v1", "versions": digests}
    assert {path.name for path in seen_file.parent.iterdir()} == {"seen.json", "seen.json.lock"}


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
    folder: Path, seen_file: Path, content: str, said: str
) -> None:
    seen_file.parent.mkdir()
    seen_file.write_text(content)
    with pytest.raises(ModelError, match=re.escape(str(seen_file))) as caught:
        Repository(folder, seen_file).find(FISH)
    assert said in str(caught.value)
    assert "restore the file, or remove it" in str(caught.value)
    assert seen_file.read_text() == content


def test_a_memory_that_cannot_be_written_is_an_error(folder: Path, seen_file: Path) -> None:
    seen_file.parent.write_text("a file where the folder should be")
    with pytest.raises(ModelError, match="cannot remember what was seen of fish/1"):
        Repository(folder, seen_file).find(FISH)


def test_workers_that_share_a_data_folder_forget_nothing(folder: Path, seen_file: Path) -> None:
    for version in range(2, 22):
        put(folder, "fish", str(version))
    program = (
        "import sys; from pathlib import Path; from worker.models.repository import Repository\n"
        "repository = Repository(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "[repository.find(ref) for ref in repository.versions()[int(sys.argv[3])::2]]"
    )
    workers = [
        subprocess.Popen([sys.executable, "-c", program, str(folder), str(seen_file), str(part)])
        for part in range(2)
    ]
    assert [worker.wait(timeout=60) for worker in workers] == [0, 0]
    assert len(json.loads(seen_file.read_text())["versions"]) == 21


def test_the_demo_has_a_repository_of_its_own() -> None:
    repository = Repository(demo_repository(), None)
    assert [str(ref) for ref in repository.versions()] == ["digits/1", "digits/2"]
