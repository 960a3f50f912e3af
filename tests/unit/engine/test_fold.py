"""A folded graph takes pixels and gives what the graph gave for the row made of them."""

import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.unit.engine import graphs
from worker.engine.fold import NotFolded, fold, folded_name
from worker.engine.session import open_session
from worker.models.manifest import (
    Cast,
    ChannelSwap,
    Color,
    ColorSpace,
    DType,
    Normalize,
    Resize,
    Step,
)
from worker.vision.transforms import Pixels, cut_steps

_ELEMENTS = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "uint8": TensorProto.UINT8,
}
_MEAN, _STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def identity(shape: tuple[int, ...], dtype: DType, *, opset: int = 13) -> onnx.ModelProto:
    """Give back the rows that it gets: [N, *shape]."""
    graph = graphs.model(
        [helper.make_node("Identity", ["rows"], ["same"])],
        inputs=[("rows", _ELEMENTS[dtype], ["N", *shape])],
        outputs=[("same", _ELEMENTS[dtype], ["N", *shape])],
        constants={},
    )
    graph.opset_import[0].version = opset
    return graph


def steps(color: ColorSpace, dtype: DType, *, chw: bool) -> tuple[list[Step], tuple[int, ...]]:
    channels = 1 if color == "gray" else 3
    made: list[Step] = [Resize(size=(5, 7)), Color(to=color)]
    if dtype != "uint8":
        mean, std = (_MEAN[:channels], _STD[:channels])
        made.append(Normalize(scale=1 / 255, mean=mean, std=std))
    if chw:
        made.append(ChannelSwap())
    made.append(Cast(to=dtype))
    return made, (channels, 5, 7) if chw else (5, 7, channels)


def cut(made: list[Step], shape: tuple[int, ...], dtype: DType) -> Pixels:
    return cut_steps(made, row_shape=shape, row_dtype=np.dtype(dtype))


def run(path: Path, name: str, rows: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    [same] = open_session(path, policy="cpu", options={}).run(("same",), {name: rows})
    return same


@pytest.mark.parametrize(
    ("color", "dtype", "chw"),
    [*product(("rgb", "bgr", "gray"), ("float32", "float16", "uint8"), (True, False))],
)
def test_it_gives_the_same(tmp_path: Path, color: ColorSpace, dtype: DType, *, chw: bool) -> None:
    made, shape = steps(color, dtype, chw=chw)
    pixels = cut(made, shape, dtype)
    (tmp_path / "model.onnx").write_bytes(identity(shape, dtype).SerializeToString())
    target = tmp_path / "kept" / "folded.onnx"
    fold(tmp_path / "model.onnx", target, input_name="rows", pixels=pixels)
    batch = np.random.default_rng(1).integers(0, 256, (3, *pixels.shape)).astype(np.uint8)
    expected = np.empty((3, *shape), dtype)
    for row, written in zip(batch, expected, strict=True):
        pixels.finish(row, written)
    got = run(target, folded_name("rows"), batch)
    assert got.dtype == expected.dtype
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-3 if dtype == "float16" else 1e-6)
    assert [path.name for path in target.parent.iterdir()] == ["folded.onnx"]


def test_weights_in_another_file_are_taken_in(tmp_path: Path) -> None:
    graph = graphs.brightness(side=8)
    path = tmp_path / "model.onnx"
    onnx.save(
        graph, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    made: list[Step] = [Resize(size=(8, 8)), Color(to="gray"), ChannelSwap(), Cast(to="float32")]
    target = tmp_path / "kept" / "folded.onnx"
    fold(path, target, input_name="image", pixels=cut(made, (1, 8, 8), "float32"))
    session = open_session(target, policy="cpu", options={})
    batch = np.full((1, 8, 8, 1), 3, np.uint8)
    [scores] = session.run(("scores",), {folded_name("image"): batch})
    assert scores.tolist() == [[-2, 3]]


def test_levels_that_lie_on_no_line_are_not_folded(tmp_path: Path) -> None:
    made, shape = steps("rgb", "float32", chw=True)
    pixels = cut(made, shape, "float32")
    pixels.values[1, 100] += 0.01
    (tmp_path / "model.onnx").write_bytes(identity(shape, "float32").SerializeToString())
    with pytest.raises(NotFolded, match="no straight line"):
        fold(tmp_path / "model.onnx", tmp_path / "f.onnx", input_name="rows", pixels=pixels)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (identity((3, 5, 7), "float32", opset=6).SerializeToString(), "opset is 6"),
        (b"?", "changed"),
    ],
)
def test_graphs_that_cannot_be_changed_are_left(tmp_path: Path, content: bytes, told: str) -> None:
    made, shape = steps("rgb", "float32", chw=True)
    (tmp_path / "model.onnx").write_bytes(content)
    target = tmp_path / "kept" / "f.onnx"
    with pytest.raises(NotFolded, match=told):
        fold(tmp_path / "model.onnx", target, input_name="rows", pixels=cut(made, shape, "float32"))
    assert not target.exists()


def test_without_the_onnx_package_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    made, shape = steps("rgb", "float32", chw=True)
    with pytest.raises(NotFolded, match=r"darkroom\[cuda\]"):
        fold(tmp_path / "m", tmp_path / "f", input_name="r", pixels=cut(made, shape, "float32"))
