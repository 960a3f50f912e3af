"""The engine over models and pictures that nobody in this project made."""

import json
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.contract.engines import LIMITS, Engine, load
from tests.unit.engine import graphs
from worker.protocol.messages import Done, Fault, Loaded, LoadFailed

pytestmark = pytest.mark.assets

SQUEEZENET = "squeezenet_fp32_dynbatch_derived"
PEAK_BYTES = 1_300_000_000
"""Engine, model and one reserve of 50 megapixels."""


def squeezenet(assets: Path, folder: Path) -> str:
    labels = json.loads((assets / "labels/imagenet_1000.json").read_text())
    document: dict[str, Any] = {
        "schema": "darkroom.manifest.v1",
        "inputs": {
            "data_0": {
                "preprocess": [
                    {"center_crop": {"square": True}},
                    {"resize": {"size": [224, 224], "antialias": True}},
                    {"color": {"to": "bgr"}},
                    {"channel_swap": {"from": "hwc", "to": "chw"}},
                    {"cast": {"to": "float32"}},
                ]
            }
        },
        "heads": _heads("softmaxout_1", "none"),
        "golden": _golden("tench", 0.737677),
    }
    return graphs.version(
        folder,
        (assets / "models" / SQUEEZENET / "model.onnx").read_bytes(),
        document=document,
        labels="\n".join(labels),
        golden=(assets / "images/photos/fish_224.png").read_bytes(),
    )


def mnist(assets: Path, folder: Path) -> str:
    document: dict[str, Any] = {
        "schema": "darkroom.manifest.v1",
        "inputs": {
            "Input3": {
                "preprocess": [
                    {"color": {"to": "gray"}},
                    {"resize": {"size": [28, 28]}},
                    {"channel_swap": {"from": "hwc", "to": "chw"}},
                    {"cast": {"to": "float32"}},
                ]
            }
        },
        "heads": _heads("Plus214_Output_0", "none"),
        "golden": [{**_golden("8", 6080.63)[0], "tolerance": 0.1}],
    }
    return graphs.version(
        folder,
        (assets / "models/mnist8/model.onnx").read_bytes(),
        document=document,
        labels="\n".join("0123456789"),
        golden=(assets / "models/mnist8/images/mnist_28.png").read_bytes(),
    )


def test_squeezenet_says_what_the_reference_says(assets: Path, tmp_path: Path) -> None:
    expected = json.loads((assets / "models" / SQUEEZENET / "expected.json").read_text())["images"]
    names = sorted(expected)
    asked = load(tmp_path / "1", squeezenet(assets, tmp_path / "1"))
    with Engine("thread") as engine:
        assert isinstance(engine.load(asked), Loaded)
        engine.submit([(assets / name).read_bytes() for name in names])
        ends = engine.outcomes(len(names))
    served = 0
    for n, name in enumerate(names, start=1):
        end, _ = ends[n]
        if isinstance(end, Done):
            best = orjson.loads(end.predictions)["label"][0]
            reference = expected[name]["top5"][0]
            assert best["index"] == reference["index"], name
            assert best["score"] == pytest.approx(reference["score"], abs=0.02), name
            served += 1
    assert served >= 10


def test_a_model_of_a_fixed_batch_of_one_is_run_row_by_row(assets: Path, tmp_path: Path) -> None:
    asked = load(tmp_path / "1", mnist(assets, tmp_path / "1"))
    picture = (assets / "models/mnist8/images/mnist_28.png").read_bytes()
    with Engine("thread") as engine:
        answer = engine.load(asked)
        assert isinstance(answer, Loaded)
        assert answer.max_size == 1
        engine.submit([picture] * 10)
        ends = engine.outcomes(10)
    for end, message in ends.values():
        assert isinstance(end, Done)
        assert orjson.loads(end.predictions)["label"][0]["label"] == "8"
        assert message.batch_size == 1


@pytest.mark.long  # by way of Kafka test_models_assets does so
def test_every_picture_gets_its_outcome_and_memory_stays_within_its_bound(
    assets: Path, tmp_path: Path
) -> None:
    pictures = sorted(path for path in (assets / "images").rglob("*") if path.is_file())
    asked = load(
        tmp_path / "1",
        squeezenet(assets, tmp_path / "1"),
        decode_bytes=16 * LIMITS.image_max_pixels,
    )
    with Engine("process") as engine:
        assert isinstance(engine.load(asked), Loaded)
        for n, path in enumerate(pictures):
            engine.submit([path.read_bytes()], first=n)
        ends = engine.outcomes(len(pictures))
        peak_bytes = engine.peak_bytes()
    assert set(ends) == set(range(len(pictures)))
    assert all(isinstance(end, Done | Fault) for end, _ in ends.values())
    assert sum(isinstance(end, Done) for end, _ in ends.values()) > len(pictures) / 2
    assert peak_bytes < PEAK_BYTES


NEGATIVE = {
    "empty.onnx": "No graph was found in the protobuf.",
    "invalid_graph_unknown_op.onnx": "This is an invalid model.",
    "lfs_pointer.onnx": "Protobuf parsing failed.",
    "needs_custom_ops.onnx": "is not a registered function/op",
    "png_named.onnx": "Protobuf parsing failed.",
    "truncated.onnx": "Protobuf parsing failed.",
    "seq_map_output.onnx": "",
}


@pytest.mark.parametrize("name", NEGATIVE)
def test_a_file_that_must_not_be_served_is_refused_in_one_sentence(
    assets: Path, tmp_path: Path, name: str
) -> None:
    graph = (assets / "models/negative_models" / name).read_bytes()
    asked = load(tmp_path / "1", graphs.version(tmp_path / "1", graph))
    with Engine("process") as engine:
        answer = engine.load(asked)
        assert isinstance(answer, LoadFailed)
        assert engine.ended() == 0
    assert answer.kind == "model"
    assert answer.file is not None
    assert NEGATIVE[name] in answer.message
    assert "\n" not in answer.message
    assert "[ONNXRuntimeError]" not in answer.message
    assert str(tmp_path) not in answer.message.removeprefix(answer.file)


def _heads(output: str, activation: str) -> dict[str, Any]:
    return {
        "label": {
            "type": "classification",
            "output": output,
            "activation": activation,
            "labels": "labels.txt",
        }
    }


def _golden(label: str, score: float) -> list[dict[str, Any]]:
    expect = {"label": label, "score": score}
    return [{"image": "golden/sample.png", "head": "label", "expect": expect}]
