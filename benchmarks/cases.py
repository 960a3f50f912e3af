"""The cases: a model repository made in a folder, the pictures that are sent, and the settings.

(a) is bound by decoding and running, (b) by what a record costs besides. Both come from the
third-party assets (DARKROOM_TEST_ASSETS); without those (b) is the demo's own digits.
"""

import hashlib
import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import onnx
import yaml

from benchmarks.recipe import ByHand, Recipe
from worker.demo.pictures import pictures as demo_pictures
from worker.models.repository import demo_repository

_MAX_PIXELS = 1_050_000
_DIGITS = 60
_SHIFT_PX = 3
_FILES = ("model.onnx", "labels.txt", "golden/first")


class Case(NamedTuple):
    """One workload, the same for every peer."""

    key: str
    title: str
    repository: Path
    model: str
    version: str
    cap: int
    """Rows of a batch, at most: `batch.max_size` of Darkroom, and of the offline limit."""
    chunk: int
    """Records that a hand-written loop decodes and runs together."""
    chunks: int
    """Chunks that it has in flight."""
    poll: int
    """Records that it polls at a time, at most."""
    batches: bool
    """Whether it sends results in batches: tiny records want that."""
    seconds: float
    """The window of a drain."""
    linger_ms: float
    """How long who sends at a rate waits for company: tiny records, one a request, would make the
    broker the bottleneck."""
    recipe: Recipe
    pictures: tuple[bytes, ...]


def photographs(assets: Path, folder: Path) -> Case:
    """Case (a): squeezenet and the JPEG photographs of at most 1.05 MP."""
    names = json.loads((assets / "labels" / "imagenet_1000.json").read_text())
    images = tuple(data for kind in ("faces", "photos") for data in _jpegs(assets, kind))
    recipe = Recipe(
        model=str(folder / "squeezenet" / "1" / "model.onnx"),
        labels=str(folder / "squeezenet" / "1" / "labels.txt"),
        head="label", input="data_0", output="softmaxout_1", size_px=224, gray=False, area=False,
        scale=1.0, mean=0.0, std=1.0, softmax=False, top_k=5,
    )  # fmt: skip
    graph = assets / "models" / "squeezenet_fp32_dynbatch_derived" / "model.onnx"
    preprocess = [
        {"center_crop": {"square": True}},
        {"resize": {"size": [224, 224], "interpolation": "linear", "antialias": False}},
        {"color": {"to": "bgr"}},
        {"channel_swap": {"from": "hwc", "to": "chw"}},
        {"cast": {"to": "float32"}},
    ]
    _write_version(recipe, onnx.load(graph), _labels(names), images[0], preprocess)
    title = f"squeezenet, {len(images)} JPEG photographs up to 1.05 MP, batches of at most 16"
    return Case(
        "a", title, folder, "squeezenet", "1", 16, 16, 4, 32,
        batches=False, seconds=15.0, linger_ms=0, recipe=recipe, pictures=images,
    )  # fmt: skip


def shifted_digits(assets: Path, folder: Path) -> Case:
    """Case (b): mnist8 with its batch dimension freed, and tiny PNGs."""
    source = assets / "models" / "mnist8"
    images = _shifted(sorted((source / "images").iterdir()))
    recipe = Recipe(
        model=str(folder / "mnist" / "1" / "model.onnx"),
        labels=str(folder / "mnist" / "1" / "labels.txt"),
        head="digit", input="Input3", output="Plus214_Output_0", size_px=28, gray=True, area=False,
        scale=1.0, mean=0.0, std=1.0, softmax=True, top_k=5,
    )  # fmt: skip
    preprocess = [
        {"center_crop": {"square": True}},
        {"resize": {"size": [28, 28], "interpolation": "linear", "antialias": False}},
        {"color": {"to": "gray"}},
        {"channel_swap": {"from": "hwc", "to": "chw"}},
        {"cast": {"to": "float32"}},
    ]
    graph = free_batch(onnx.load(source / "model.onnx"))
    _write_version(recipe, graph, [str(digit) for digit in range(10)], images[0], preprocess)
    mean = sum(map(len, images)) // len(images)
    title = f"mnist8, {len(images)} PNGs of 28x28 ({mean} bytes), batches of at most 64"
    return Case(
        "b", title, folder, "mnist", "1", 64, 64, 6, 512,
        batches=True, seconds=8.0, linger_ms=5, recipe=recipe, pictures=images,
    )  # fmt: skip


def demo_digits() -> Case:
    """Case (b) where there are no assets: the demo's own model and pictures."""
    repository = demo_repository()
    version = repository / "digits" / "1"
    recipe = Recipe(
        model=str(version / "model.onnx"),
        labels=str(version / "labels.txt"),
        head="digit", input="image", output="logits", size_px=8, gray=True, area=True,
        scale=1 / 255, mean=0.5, std=0.5, softmax=True, top_k=3,
    )  # fmt: skip
    images = tuple(picture.png for picture in demo_pictures())
    return Case(
        "b", "the demo's digits (no assets here), batches of at most 64", repository, "digits",
        "1", 64, 64, 6, 512, batches=True, seconds=8.0, linger_ms=5, recipe=recipe, pictures=images,
    )  # fmt: skip


def free_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """Free the first axis of mnist8: of its input and output, and of the one reshape of rows."""
    graph = model.graph
    (image,) = (each for each in graph.input if each.name == "Input3")
    for value in (image, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    del graph.value_info[:]
    (shape,) = (each for each in graph.initializer if list(each.int64_data) == [1, 256])
    shape.int64_data[0] = -1
    return model


def _jpegs(assets: Path, kind: str) -> list[bytes]:
    found = []
    for path in sorted((assets / "images" / kind).iterdir()):
        data = path.read_bytes()
        if data.startswith(b"\xff\xd8"):
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            if image is not None and image.shape[0] * image.shape[1] <= _MAX_PIXELS:
                found.append(data)
    return found


def _shifted(paths: list[Path]) -> tuple[bytes, ...]:
    draw = random.Random(0)
    digits = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in paths]
    made = []
    for number in range(_DIGITS):
        digit = digits[number % len(digits)]
        assert digit is not None
        by = (draw.randint(-_SHIFT_PX, _SHIFT_PX), draw.randint(-_SHIFT_PX, _SHIFT_PX))
        good, png = cv2.imencode(".png", np.roll(digit, by, axis=(0, 1)))
        assert good
        made.append(png.tobytes())
    return tuple(made)


def _labels(names: list[str] | dict[str, str]) -> list[str]:
    return names if isinstance(names, list) else [names[str(at)] for at in range(len(names))]


def _write_version(
    recipe: Recipe,
    graph: onnx.ModelProto,
    labels: list[str],
    golden: bytes,
    preprocess: Sequence[object],
) -> None:
    """Write a version into its folder; what its golden sample must give is reckoned by hand."""
    folder = Path(recipe.model).parent
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "golden").mkdir(parents=True)
    onnx.save(graph, recipe.model)
    Path(recipe.labels).write_text("\n".join(labels) + "\n", "utf-8")
    (folder / "golden" / "first").write_bytes(golden)
    ((best, *_),) = ByHand(recipe).serve([golden])
    expect = {"label": best["label"], "score": best["score"]}
    manifest = {
        "schema": "darkroom.manifest.v1",
        "files": {name: _digest(folder / name) for name in _FILES},
        "batch": {"max_size": 64},
        "inputs": {recipe.input: {"preprocess": preprocess}},
        "heads": {
            recipe.head: {
                "type": "classification",
                "output": recipe.output,
                "activation": "softmax" if recipe.softmax else "none",
                "labels": "labels.txt",
                "top_k": recipe.top_k,
            }
        },
        "golden": [
            {"image": "golden/first", "head": recipe.head, "expect": expect, "tolerance": 0.01}
        ],
    }  # fmt: skip
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest, sort_keys=False))


def _digest(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
