"""The demo's models and pictures as committed, through the worker's own decoder and steps."""

import importlib.util
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from worker.demo.pictures import pictures
from worker.models.files import verify_files
from worker.models.manifest import ClassificationHead, Resize, Step
from worker.models.repository import Repository, Version, demo_repository
from worker.types import ModelRef
from worker.vision.decode import decode
from worker.vision.sniff import check
from worker.vision.transforms import compile_steps

ROOT = Path(__file__).parents[3]
VERSIONS = ("1", "2")


def found(version: str) -> Version:
    repository = Repository(demo_repository(), cache=None, seen_file=None)
    return repository.find(ModelRef("digits", version))


@cache
def session(version: str) -> onnxruntime.InferenceSession:
    path = found(version).folder / "model.onnx"
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def rows(version: str, pngs: Sequence[bytes], steps: tuple[Step, ...] = ()) -> NDArray[np.float32]:
    steps = steps or found(version).manifest.inputs["image"].preprocess
    fill = compile_steps(steps, row_shape=(1, 8, 8), row_dtype=np.dtype(np.float32))
    batch = np.empty((len(pngs), 1, 8, 8), np.float32)
    for png, row in zip(pngs, batch, strict=True):
        fill(decode(png, check(png, max_bytes=10_000, max_pixels=10_000)), row)
    return batch


def scores(version: str, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run and apply softmax; [N, 10]."""
    logits: NDArray[np.float32] = session(version).run(["logits"], {"image": batch})[0]
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float32] = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def head(version: str) -> ClassificationHead:
    return found(version).manifest.heads["digit"]


def accuracy(version: str) -> float:
    pack = pictures()
    labels = (found(version).folder / head(version).labels).read_text().splitlines()
    best = scores(version, rows(version, [picture.png for picture in pack])).argmax(axis=1)
    right = [labels[int(i)] == picture.label for i, picture in zip(best, pack, strict=True)]
    return float(np.mean(right))


@pytest.mark.parametrize("version", VERSIONS)
def test_the_files_are_those_of_the_manifest(version: str) -> None:
    verify_files(found(version).folder, found(version).manifest)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_stated_accuracy_is_what_the_model_reaches_on_the_pictures(version: str) -> None:
    measured = f"{accuracy(version):.4f}"
    assert session(version).get_modelmeta().custom_metadata_map["held_out_accuracy"] == measured
    card = (demo_repository() / "digits" / "README.md").read_text()
    assert re.search(rf"^\| {version} \|.*\| {measured} \|$", card, re.MULTILINE)


def test_version_1_is_clearly_weaker_than_version_2() -> None:
    assert 0.8 < accuracy("1") < 0.9
    assert accuracy("2") > 0.97


@pytest.mark.parametrize("version", VERSIONS)
def test_a_picture_gets_the_same_scores_alone_and_in_a_batch(version: str) -> None:
    batch = rows(version, [picture.png for picture in pictures()[:16]])
    alone = np.concatenate([scores(version, batch[i : i + 1]) for i in range(len(batch))])
    np.testing.assert_allclose(scores(version, batch), alone, atol=1e-6)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_golden_samples_hold_and_notice_wrong_preprocessing(version: str) -> None:
    folder, manifest = found(version).folder, found(version).manifest
    labels = (folder / head(version).labels).read_text().splitlines()
    steps = manifest.inputs["image"].preprocess
    wrong_filter = tuple(
        replace(step, interpolation="nearest") if isinstance(step, Resize) else step
        for step in steps
    )
    noticed = False
    for golden in manifest.golden:
        png = (folder / golden.image).read_bytes()
        score = scores(version, rows(version, [png]))[0]
        assert labels[score.argmax()] == golden.expect_label
        assert score.max() == pytest.approx(golden.expect_score, abs=golden.tolerance)
        other = scores(version, rows(version, [png], wrong_filter))[0]
        noticed |= abs(other.max() - golden.expect_score) > golden.tolerance
    assert noticed


def test_the_pictures_are_many_small_different_and_of_all_digits() -> None:
    pack = pictures()
    assert len(pack) == 360
    assert len({picture.png for picture in pack}) == len(pack)
    assert all(len(picture.png) < 1000 for picture in pack)
    counts = Counter(picture.label for picture in pack)
    assert sorted(counts) == list("0123456789")
    assert min(counts.values()) >= 30


def test_the_example_pictures_are_of_the_pack() -> None:
    pack = {picture.name: picture.png for picture in pictures()}
    examples = sorted((ROOT / "examples" / "pictures").glob("*.png"))
    assert len(examples) == 10
    assert all(pack[path.name] == path.read_bytes() for path in examples)


def test_the_demo_adds_less_than_300_kb_to_the_package() -> None:
    data = [demo_repository().parent / "pictures.zip", *demo_repository().rglob("*")]
    assert sum(path.stat().st_size for path in data if path.is_file()) < 300_000


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "train_demo_models", ROOT / "scripts" / "train_demo_models.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.long  # it trains: 25 s
def test_the_script_makes_these_models_and_pictures_again(
    script: ModuleType, tmp_path: Path
) -> None:
    # Not byte for byte: another CPU rounds otherwise while it trains.
    script.main(["--into", str(tmp_path), "--examples", str(tmp_path / "examples")])
    again = Repository(tmp_path / "models", cache=None, seen_file=None)
    pngs = [picture.png for picture in pictures()]
    for version in VERSIONS:
        remade = again.find(ModelRef("digits", version))
        verify_files(remade.folder, remade.manifest)
        assert remade.manifest.inputs == found(version).manifest.inputs
        assert remade.manifest.heads == found(version).manifest.heads
        path = remade.folder / "model.onnx"
        model = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        logits = model.run(["logits"], {"image": rows(version, pngs)})[0]
        same = logits.argmax(axis=1) == scores(version, rows(version, pngs)).argmax(axis=1)
        assert same.mean() > 0.97
