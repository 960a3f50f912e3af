"""Models for gpu.py: graphs of the shape of known networks with random weights, as versions.

Nothing is fetched: who has a GPU and this folder has the cases.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import yaml
from onnx import TensorProto, helper, numpy_helper

from worker.models.manifest import load_manifest
from worker.vision.decode import decode
from worker.vision.sniff import check
from worker.vision.transforms import compile_steps

SIDE_PX = 224
CLASSES = 1000


class Version(NamedTuple):
    """A model version in a folder."""

    name: str
    folder: Path
    manifest_sha256: str
    dtype: str


class _Graph:
    """Nodes and weights as they are added; tensors are known by name and channels."""

    def __init__(self, dtype: str, seed: int) -> None:
        self.dtype = np.dtype(dtype)
        self._random = np.random.default_rng(seed)
        self.gain = 1.0
        """Of the variance, for each convolution: 2 keeps it where ReLU takes half."""
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        out = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], **attributes))
        return out

    def weight(self, array: Any) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array).astype(self.dtype), name))
        return name

    def conv(self, x: str, channels: tuple[int, int], kernel: int, stride: int = 1) -> str:
        shape = (channels[1], channels[0], kernel, kernel)
        deviation = (self.gain / (channels[0] * kernel * kernel)) ** 0.5
        weight = self.weight(self._random.normal(0, deviation, shape))
        pads = [kernel // 2] * 4
        return self.add("Conv", x, weight, pads=pads, strides=[stride] * 2)

    def head(self, x: str, channels: int) -> None:
        """Give scores [N, CLASSES]."""
        pooled = self.add("Flatten", self.add("GlobalAveragePool", x))
        matrix = self._random.normal(0, (1 / channels) ** 0.5, (channels, CLASSES))
        self.add("MatMul", pooled, self.weight(matrix))
        self.nodes[-1].output[0] = "scores"


def resnet50(graph: _Graph) -> None:
    """Sixteen bottlenecks of three convolutions, as in ResNet-50."""
    x = graph.add("Relu", graph.conv("image", (3, 64), 7, 2))
    x = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            step = stride if block == 0 else 1
            y = graph.add("Relu", graph.conv(x, (channels, width), 1))
            y = graph.add("Relu", graph.conv(y, (width, width), 3, step))
            y = graph.conv(y, (width, 4 * width), 1)
            if block == 0:
                x = graph.conv(x, (channels, 4 * width), 1, step)
            x = graph.add("Relu", graph.add("Add", x, y))
            channels = 4 * width
    graph.head(x, channels)


def squeezenet(graph: _Graph) -> None:
    """Eight fire modules, as in SqueezeNet 1.1."""
    graph.gain = 2.0
    x = graph.add("Relu", graph.conv("image", (3, 64), 3, 2))
    channels = 64
    for at, squeeze in enumerate((16, 16, 32, 32, 48, 48, 64, 64)):
        if at in {0, 2, 4}:
            x = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2])
        s = graph.add("Relu", graph.conv(x, (channels, squeeze), 1))
        parts = [graph.add("Relu", graph.conv(s, (squeeze, 4 * squeeze), k)) for k in (1, 3)]
        x = graph.add("Concat", *parts, axis=1)
        channels = 8 * squeeze
    graph.head(x, channels)


SHAPES: dict[str, Callable[[_Graph], None]] = {
    "squeezenet": squeezenet,
    "resnet50": resnet50,
}


def version(root: Path, name: str, dtype: str, *, number: int = 1) -> Version:
    """Write a version; its weights follow from its number."""
    folder = root / f"{name}-{dtype}-{number}"
    folder.mkdir(parents=True)
    graph = _Graph(dtype, number)
    SHAPES[name](graph)
    element = TensorProto.FLOAT if dtype == "float32" else TensorProto.FLOAT16
    made = helper.make_graph(
        graph.nodes,
        name,
        [helper.make_tensor_value_info("image", element, ["N", 3, SIDE_PX, SIDE_PX])],
        [helper.make_tensor_value_info("scores", element, ["N", CLASSES])],
        graph.weights,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(folder / "model.onnx"))
    (folder / "labels.txt").write_text("".join(f"class {n}\n" for n in range(CLASSES)))
    (folder / "golden.jpg").write_bytes(picture(0))
    digest = _manifest(folder, dtype, {"label": "class 0", "score": 0.0})
    digest = _manifest(folder, dtype, _best(folder, dtype))
    return Version(name, folder, digest, dtype)


def picture(seed: int, *, side_px: int = 500) -> bytes:
    """Return a JPEG of soft shapes and noise, about as costly as a photograph of its size."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (12, 12, 3), np.uint8)
    large = cv2.resize(small, (side_px, side_px), interpolation=cv2.INTER_CUBIC)
    noise = random.normal(0, 12, large.shape)
    image = np.clip(large + noise, 0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes()


def row(version: Version, image: bytes) -> Any:
    """Return the row [3, SIDE_PX, SIDE_PX] of a picture."""
    [spec] = load_manifest(version.folder)[0].inputs.values()
    out = np.empty((3, SIDE_PX, SIDE_PX), version.dtype)
    transform = compile_steps(spec.preprocess, row_shape=out.shape, row_dtype=out.dtype)
    header = check(image, max_bytes=1 << 25, max_pixels=1 << 25)
    transform(decode(image, header, keep_gray=True), out)
    return out


def _best(folder: Path, dtype: str) -> dict[str, Any]:
    """Return what the model says of the golden picture, on the CPU."""
    made = Version("", folder, "", dtype)
    session = ort.InferenceSession(
        str(folder / "model.onnx"), providers=["CPUExecutionProvider"], enable_fallback=0
    )
    [[scores]] = session.run(None, {"image": row(made, (folder / "golden.jpg").read_bytes())[None]})
    best = int(np.argmax(scores))
    return {"label": f"class {best}", "score": float(scores[best])}


def _manifest(folder: Path, dtype: str, expect: dict[str, Any]) -> str:
    files = {
        name: "sha256:" + hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("model.onnx", "labels.txt", "golden.jpg")
    }
    steps = [
        {"resize": {"size": [SIDE_PX, SIDE_PX], "interpolation": "linear"}},
        {"normalize": {"scale": 1 / 255}},
        {"channel_swap": {"from": "hwc", "to": "chw"}},
        {"cast": {"to": dtype}},
    ]
    tolerance = max(0.05, 0.05 * abs(expect["score"]))
    text = yaml.safe_dump(
        {
            "schema": "darkroom.manifest.v1",
            "files": files,
            "inputs": {"image": {"preprocess": steps}},
            "heads": {
                "label": {
                    "type": "classification",
                    "output": "scores",
                    "activation": "none",
                    "labels": "labels.txt",
                    "top_k": 5,
                    "threshold": -1e9,
                }
            },
            "golden": [
                {"image": "golden.jpg", "head": "label", "expect": expect, "tolerance": tolerance}
            ],
        }
    ).encode()
    (folder / "manifest.yaml").write_bytes(text)
    return hashlib.sha256(text).hexdigest()
