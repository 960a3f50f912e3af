"""A version's files against its manifest."""

import hashlib
import os
import re
from pathlib import Path

import pytest

from worker.errors import ModelError
from worker.models.files import verify_files
from worker.models.manifest import Manifest, load_manifest, parse_manifest

MANIFEST = """\
schema: darkroom.manifest.v1
files:
{files}
inputs: {{image: {{preprocess: [cast: {{to: float32}}]}}}}
heads: {{label: {{type: classification, output: y, activation: none, labels: labels.txt}}}}
golden: [{{image: golden/fish.png, head: label, expect: {{label: tench, score: 0.7}}}}]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A version whose files are as its manifest says (they are no model, and need not be)."""
    folder = tmp_path / "fish" / "1"
    (folder / "golden").mkdir(parents=True)
    listed = []
    for name in ("model.onnx", "labels.txt", "golden/fish.png"):
        (folder / name).write_text(name)
        listed.append(f"  {name}: sha256:{hashlib.sha256(name.encode()).hexdigest()}")
    (folder / "manifest.yaml").write_text(MANIFEST.format(files="\n".join(listed)))
    return folder


def manifest_of(folder: Path) -> Manifest:
    return load_manifest(folder)[0]


def verify_refused(folder: Path) -> str:
    manifest = manifest_of(folder)
    with pytest.raises(ModelError) as caught:
        verify_files(folder, manifest)
    return str(caught.value)


def test_files_as_the_manifest_says_are_accepted(folder: Path) -> None:
    verify_files(folder, manifest_of(folder))


def test_files_with_another_name_on_disk_are_accepted(folder: Path) -> None:
    os.link(folder / "model.onnx", folder.parent / "hardlink")
    verify_files(folder, manifest_of(folder))


def test_the_manifest_comes_with_the_digest_of_its_bytes(folder: Path) -> None:
    manifest, sha256 = load_manifest(folder)
    data = (folder / "manifest.yaml").read_bytes()
    assert sha256 == hashlib.sha256(data).hexdigest()
    assert manifest == parse_manifest(data.decode(), file="m.yaml")


def test_a_changed_file_is_refused_with_both_digests(folder: Path) -> None:
    (folder / "labels.txt").write_text("other")
    message = verify_refused(folder)
    assert str(folder / "labels.txt") in message
    assert hashlib.sha256(b"other").hexdigest() in message
    assert manifest_of(folder).files["labels.txt"] in message


def test_every_file_that_is_wrong_is_named(folder: Path) -> None:
    (folder / "labels.txt").unlink()
    (folder / "model.onnx").write_text("other")
    message = verify_refused(folder)
    assert "2 files" in message
    assert f"{folder / 'labels.txt'}: cannot be opened: No such file" in message
    assert f"{folder / 'model.onnx'}: has sha256" in message


@pytest.mark.parametrize("name", ["weights.bin", "golden/other.onnx", ".hidden"])
def test_a_file_that_is_not_listed_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_text("weights")
    assert f"{folder / name}: is not listed in the manifest" in verify_refused(folder)


def test_a_symbolic_link_is_refused_though_its_content_fits(folder: Path) -> None:
    outside = folder.parent / "outside"
    outside.write_text("labels.txt")
    (folder / "labels.txt").unlink()
    (folder / "labels.txt").symlink_to(outside)
    assert "labels.txt: is a symbolic link" in verify_refused(folder)


def test_a_linked_folder_is_refused_though_its_content_fits(folder: Path) -> None:
    (folder / "golden").rename(folder.parent / "golden")
    (folder / "golden").symlink_to(folder.parent / "golden")
    assert "golden: is a symbolic link" in verify_refused(folder)


@pytest.mark.timeout(10)
def test_a_pipe_is_refused_and_not_waited_for(folder: Path) -> None:
    (folder / "labels.txt").unlink()
    os.mkfifo(folder / "labels.txt")
    assert "labels.txt: is not a regular file" in verify_refused(folder)


def test_a_folder_in_place_of_a_file_is_refused(folder: Path) -> None:
    (folder / "labels.txt").unlink()
    (folder / "labels.txt").mkdir()
    assert "labels.txt: is not a regular file" in verify_refused(folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe", "is not UTF-8 at byte 0"),
        (b"#" * 1_048_577, "is larger than 1048576 bytes"),
        (b"a: [", "manifest.yaml: not YAML: line 1, column 5"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_named(folder: Path, content: bytes, said: str) -> None:
    (folder / "manifest.yaml").write_bytes(content)
    with pytest.raises(ModelError, match=re.escape(str(folder / "manifest.yaml"))) as caught:
        load_manifest(folder)
    assert said in str(caught.value)
