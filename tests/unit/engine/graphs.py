"""Tiny real models for tests: graphs of a few nodes, and version folders around them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper, numpy_helper

BRIGHT, DARK = 250, 5


def png(value: int, *, width: int = 8, height: int = 8) -> bytes:
    """Return a plain picture of one gray."""
    return encoded(np.full((height, width, 3), value, np.uint8))


def encoded(image: "np.ndarray[Any, Any]") -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()


def brightness(
    *, batch: int | str = "N", side: int = 8, classes: int = 2, extra: Sequence[Any] = ()
) -> onnx.ModelProto:
    """Scores of a gray picture 0..1, [N, 1, side, side]: dark = 1 - mean, bright = mean."""
    weights = np.zeros((1, classes), np.float32)
    weights[0, :2] = (-1, 1)
    bias = np.zeros((classes,), np.float32)
    bias[0] = 1
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["scores"]),
        *extra,
    ]
    return model(
        nodes,
        inputs=[("image", TensorProto.FLOAT, [batch, 1, side, side])],
        outputs=[("scores", TensorProto.FLOAT, [batch, classes])],
        constants={"weights": weights, "bias": bias},
    )


def roomy(*, times: int = 256) -> onnx.ModelProto:
    """The same, by way of a picture that has so many times the pixels each way."""
    graph = brightness()
    graph.graph.node[0].input[0] = "tiled"
    graph.graph.node.insert(0, helper.make_node("Tile", ["image", "times"], ["tiled"]))
    graph.graph.initializer.append(numpy_helper.from_array(np.array([1, 1, times, times]), "times"))
    return graph


def mixing() -> onnx.ModelProto:
    """The same, but every row gets the mean of its batch."""
    graph = brightness()
    graph.graph.node[0].CopyFrom(
        helper.make_node("ReduceMean", ["image"], ["all"], axes=[0, 2, 3], keepdims=1)
    )
    nodes = [
        helper.make_node("Mul", ["image", "nought"], ["blank"]),
        helper.make_node("ReduceMean", ["blank"], ["each"], axes=[2, 3], keepdims=1),
        helper.make_node("Add", ["each", "all"], ["kept"]),
        helper.make_node("Squeeze", ["kept", "squeezed"], ["mean"]),
    ]
    for at, node in enumerate(nodes, start=1):
        graph.graph.node.insert(at, node)
    graph.graph.initializer.append(numpy_helper.from_array(np.zeros((), np.float32), "nought"))
    graph.graph.initializer.append(numpy_helper.from_array(np.array([2, 3]), "squeezed"))
    return graph


def model(
    nodes: Sequence[onnx.NodeProto],
    *,
    inputs: Sequence[tuple[str, int, list[Any]]],
    outputs: Sequence[tuple[str, int, list[Any]]],
    constants: dict[str, "np.ndarray[Any, Any]"],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def manifest(**changes: Any) -> dict[str, Any]:
    """Return the manifest of `brightness`, without its files; `changes` replace whole sections."""
    return {
        "schema": "darkroom.manifest.v1",
        "inputs": {
            "image": {
                "preprocess": [
                    {"resize": {"size": [8, 8], "interpolation": "linear"}},
                    {"color": {"to": "gray"}},
                    {"normalize": {"scale": 1 / 255}},
                    {"channel_swap": {"from": "hwc", "to": "chw"}},
                    {"cast": {"to": "float32"}},
                ]
            }
        },
        "heads": {
            "light": {
                "type": "classification",
                "output": "scores",
                "activation": "none",
                "labels": "labels.txt",
                "top_k": 2,
            }
        },
        "golden": [
            {
                "image": "golden/sample.png",
                "head": "light",
                "expect": {"label": "bright", "score": BRIGHT / 255},
            }
        ],
        **changes,
    }


def version(
    folder: Path,
    graph: onnx.ModelProto | bytes | None = None,
    *,
    document: dict[str, Any] | None = None,
    labels: str = "dark\nbright\n",
    golden: bytes | None = None,
) -> str:
    """Write a version into a folder that is not there yet; return its manifest's sha256."""
    graph = brightness() if graph is None else graph
    contents = {
        "model.onnx": graph if isinstance(graph, bytes) else graph.SerializeToString(),
        "labels.txt": labels.encode(),
        "golden/sample.png": golden or png(BRIGHT),
    }
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    digests = {
        name: f"sha256:{hashlib.sha256(content).hexdigest()}" for name, content in contents.items()
    }
    text = yaml.safe_dump({**(document or manifest()), "files": digests}).encode()
    (folder / "manifest.yaml").write_bytes(text)
    return hashlib.sha256(text).hexdigest()


def fading() -> onnx.ModelProto:
    """The same, but the square root of the scores minus 0.01: a black picture has NaN."""
    graph = brightness()
    graph.graph.node[-1].output[0] = "sums"
    graph.graph.node.append(helper.make_node("Sub", ["sums", "hundredth"], ["less"]))
    graph.graph.node.append(helper.make_node("Sqrt", ["less"], ["scores"]))
    graph.graph.initializer.append(
        numpy_helper.from_array(np.array([0.01], np.float32), "hundredth")
    )
    return graph
