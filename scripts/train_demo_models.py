"""Train the demo's digit classifiers, and write them and the demo's pictures into the package.

python scripts/train_demo_models.py [--into FOLDER] [--examples FOLDER]

Version 1 is a linear model that saw 60 digits, version 2 a small network that saw all but the
held-out ones. Every picture goes through the worker's own decoder and steps, so what is measured
here is what the worker serves. With the locked packages on one machine the same bytes come out;
another CPU may round otherwise while it trains.
"""

import argparse
import hashlib
import io
import warnings
import zipfile
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from worker.models.manifest import (
    Cast,
    CenterCrop,
    ChannelSwap,
    Color,
    Normalize,
    Resize,
    Step,
    load_manifest,
)
from worker.vision.decode import decode
from worker.vision.sniff import check
from worker.vision.transforms import compile_steps

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]
Layers = list[tuple[Floats, Floats]]
"""Weights [inputs, outputs] and biases [outputs]; ReLU between them."""

ROOT = Path(__file__).resolve().parent.parent
SEED = 0
SIDE_PX = 32
HELD_OUT = 360
V1_DIGITS = 60
EXAMPLES = 10
SOURCE = "scikit-learn load_digits: UCI Optical Recognition of Handwritten Digits, CC BY 4.0"

STEPS: tuple[Step, ...] = (
    CenterCrop(square=True),
    Color(to="gray"),
    Resize(size=(8, 8), interpolation="area"),
    Normalize(scale=1 / 255, mean=(0.5,), std=(0.5,)),
    ChannelSwap(),
    Cast(to="float32"),
)
MANIFEST = """\
# Written by scripts/train_demo_models.py.
schema: darkroom.manifest.v1
files:
{files}
batch: {{max_size: 256}}
inputs:
  image:
    preprocess:
      - center_crop: {{square: true}}
      - color: {{to: gray}}
      - resize: {{size: [8, 8], interpolation: area}}
      - normalize: {{scale: {scale!r}, mean: [0.5], std: [0.5]}}
      - channel_swap: {{from: hwc, to: chw}}
      - cast: {{to: float32}}
heads:
  digit: {{type: classification, output: logits, activation: softmax, labels: labels.txt, top_k: 3}}
golden:
{golden}
"""
CARD = """\
# digits

Two classifiers of handwritten digits: the models of Darkroom's demo, not of anybody's product.
Written by `scripts/train_demo_models.py`; accuracy is measured on the {held_out} pictures of
`worker/demo/pictures.zip`, which neither of them has seen.

| version | what it is | trained on | held-out accuracy |
|---|---|---|---|
{rows}

Input: a dark digit on light ground, any size. Output: 10 classes, `0` to `9`.
Data: {source}.
"""


class Split(NamedTuple):
    train_pngs: list[bytes]
    train_labels: Labels
    held_out_pngs: list[bytes]
    held_out_labels: Labels


def draw(ink_8x8: NDArray[np.float64], shift: tuple[int, int] = (0, 0)) -> bytes:
    """Draw a digit (ink 0..16) as a gray PNG, dark on light, moved by `shift` pixels (y, x).

    Gray levels in steps of 15 keep the files small.
    """
    paper = (255 - ink_8x8 * (255 / 16)).astype(np.float32)
    large = cv2.resize(paper, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_CUBIC)
    move = np.array([[1, 0, shift[1]], [0, 1, shift[0]]], np.float32)
    moved = cv2.warpAffine(large, move, (SIDE_PX, SIDE_PX), borderValue=255.0)
    gray = np.clip(np.round(moved / 15) * 15, 0, 255).astype(np.uint8)
    return cv2.imencode(".png", gray, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes()


def split() -> tuple[Split, list[NDArray[np.float64]]]:
    """Draw all digits; answer the split and the ink of those to train on."""
    digits = load_digits()
    train, held_out = train_test_split(
        np.arange(len(digits.target)),
        test_size=HELD_OUT,
        stratify=digits.target,
        random_state=SEED,
    )
    ink = [digits.images[index] for index in train]
    pngs = [draw(one) for one in ink]
    held = [draw(digits.images[index]) for index in held_out]
    return Split(pngs, digits.target[train], held, digits.target[held_out]), ink


def rows(pngs: list[bytes]) -> Floats:
    """Read the pictures as the worker does: float32 [N, 1, 8, 8]."""
    batch = np.empty((len(pngs), 1, 8, 8), np.float32)
    fill = compile_steps(STEPS, row_shape=(1, 8, 8), row_dtype=np.dtype(np.float32))
    for png, row in zip(pngs, batch, strict=True):
        header = check(png, max_bytes=1_000_000, max_pixels=1_000_000)
        fill(decode(png, header), row)
    return batch


def train_v1(data: Split) -> Layers:
    x = rows(data.train_pngs[:V1_DIGITS]).reshape(V1_DIGITS, -1)
    model = LogisticRegression(max_iter=1000).fit(x, data.train_labels[:V1_DIGITS])
    return [(model.coef_.T.astype(np.float32), model.intercept_.astype(np.float32))]


def train_v2(data: Split, ink: list[NDArray[np.float64]]) -> Layers:
    """Train on every digit where it stands, and moved by two pixels each way."""
    shifts = [(-2, 0), (2, 0), (0, -2), (0, 2)]
    pngs = data.train_pngs + [draw(one, shift) for shift in shifts for one in ink]
    labels = np.tile(data.train_labels, 1 + len(shifts))
    model = MLPClassifier((64,), alpha=1e-2, max_iter=60, random_state=SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it is stopped on purpose
        model.fit(rows(pngs).reshape(len(pngs), -1), labels)
    return [
        (weights.astype(np.float32), biases.astype(np.float32))
        for weights, biases in zip(model.coefs_, model.intercepts_, strict=True)
    ]


def export(layers: Layers, metadata: dict[str, str]) -> bytes:
    """Write the layers as ONNX: image [batch, 1, 8, 8] -> logits [batch, 10]."""
    nodes = [helper.make_node("Flatten", ["image"], ["x0"])]
    weights = []
    for index, (w, b) in enumerate(layers):
        last = index == len(layers) - 1
        weights += [
            numpy_helper.from_array(w, f"w{index}"),
            numpy_helper.from_array(b, f"b{index}"),
        ]
        out = "logits" if last else f"h{index}"
        nodes.append(helper.make_node("Gemm", [f"x{index}", f"w{index}", f"b{index}"], [out]))
        if not last:
            nodes.append(helper.make_node("Relu", [out], [f"x{index + 1}"]))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])
    graph = helper.make_graph(nodes, "digits", [image], [logits], weights)
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    model.producer_name = "darkroom"
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def predict(model: bytes, x: Floats) -> Floats:
    """Run the model; answer the softmax of its logits, [N, 10]."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    logits: Floats = session.run(["logits"], {"image": x})[0]
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: Floats = e / e.sum(axis=1, keepdims=True)
    return probabilities


def golden(probabilities: Floats, labels: Labels) -> list[int]:
    """Choose two held-out digits, a 3 and a 7, that the model gets right.

    Not too surely: the score of a sure one hardly moves when the preprocessing is wrong.
    """
    right = probabilities.argmax(axis=1) == labels
    score = probabilities.max(axis=1)
    fit = right & (score >= 0.6) & (score <= 0.97)
    return [int(np.flatnonzero(fit & (labels == digit))[0]) for digit in (3, 7)]


def write_version(folder: Path, layers: Layers, data: Split) -> float:
    """Write one version; answer its held-out accuracy."""
    x, labels = rows(data.held_out_pngs), data.held_out_labels
    probabilities = predict(export(layers, {}), x)
    accuracy = float((probabilities.argmax(axis=1) == labels).mean())
    metadata = {
        "held_out_accuracy": f"{accuracy:.4f}",
        "held_out_pictures": str(len(labels)),
        "data": SOURCE,
        "made_by": "scripts/train_demo_models.py",
    }
    files = {"model.onnx": export(layers, metadata)}
    files["labels.txt"] = "".join(f"{digit}\n" for digit in range(10)).encode()
    expected = []
    for index in golden(probabilities, labels):
        image, label = f"golden/{labels[index]}.png", str(labels[index])
        files[image] = data.held_out_pngs[index]
        expected.append(
            f'  - {{image: {image}, head: digit, expect: {{label: "{label}",'
            f" score: {probabilities[index].max():.4f}}}, tolerance: 0.01}}"
        )
    for name, content in files.items():
        write(folder / name, content)
    listed = (f"  {name}: sha256:{hashlib.sha256(c).hexdigest()}" for name, c in files.items())
    text = MANIFEST.format(
        files="\n".join(listed), golden="\n".join(expected), scale=round(1 / 255, 18)
    )
    write(folder / "manifest.yaml", text.encode())
    if load_manifest(folder)[0].inputs["image"].preprocess != STEPS:
        raise SystemExit("the manifest's steps are not those that were trained with")
    return accuracy


def write_pictures(file: Path, data: Split) -> dict[str, bytes]:
    """Write the held-out digits as one archive, the same bytes each time; answer its members."""
    members = {
        f"{index:04d}_label{label}.png": png
        for index, (png, label) in enumerate(
            zip(data.held_out_pngs, data.held_out_labels, strict=True)
        )
    }
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as pack:
        for name, png in members.items():
            pack.writestr(zipfile.ZipInfo(name, date_time=(2024, 1, 1, 0, 0, 0)), png)
    write(file, archive.getvalue())
    return members


def write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--into", type=Path, default=ROOT / "worker" / "demo")
    parser.add_argument("--examples", type=Path, default=ROOT / "examples" / "pictures")
    options = parser.parse_args(arguments)
    data, ink = split()
    models: list[tuple[str, Layers, str, int]] = [
        ("linear", train_v1(data), "1", V1_DIGITS),
        ("64 hidden units", train_v2(data, ink), "2", len(ink)),
    ]
    table = []
    for kind, layers, version, digits in models:
        accuracy = write_version(options.into / "models" / "digits" / version, layers, data)
        table.append(f"| {version} | {kind} | {digits} digits | {accuracy:.4f} |")
        print(f"digits/{version}: held-out accuracy {accuracy:.4f}")
    card = CARD.format(rows="\n".join(table), held_out=HELD_OUT, source=SOURCE)
    write(options.into / "models" / "digits" / "README.md", card.encode())
    members = write_pictures(options.into / "pictures.zip", data)
    for name in list(members)[:EXAMPLES]:
        write(options.examples / name, members[name])


if __name__ == "__main__":
    main()
