"""Graph surgery: a model that takes pixels, and does itself what was made of their levels.

The new input is uint8 NHWC, a quarter of the bytes of float32 to copy to a device. The `onnx`
package is imported when a graph is folded and not before: where it is absent nothing is folded.
It must not know manifests or sessions.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from worker.vision.transforms import Pixels

_OLDEST_OPSET = 7
"""Since then Mul and Add broadcast as they do here."""
_ROUNDING = 8
"""Units in the last place that a table of levels may be off its straight line: it was rounded."""

_Step = tuple[str, dict[str, Any], Any]
"""An operator, its attributes, its second input where it has one."""
_FLIP: _Step = ("Gather", {"axis": 3}, np.array([2, 1, 0], np.int64))


class NotFolded(Exception):  # noqa: N818 - named for what it says; nobody is at fault
    """A graph stays as it is, for this reason."""


def fold(source: Path, target: Path, *, input_name: str, pixels: Pixels) -> None:
    """Write to `target` the model whose one image input is `folded_name(input_name)`.

    That is uint8 [N, H, W, C]; all else, the other names included, stays. Weights in other files
    are taken in. Raises NotFolded, and OSError when the target cannot be written.
    """
    try:
        import onnx  # noqa: PLC0415 - 31 MB and a quarter of a second, wanted here alone
    except ImportError:
        raise NotFolded("the onnx package is not installed (darkroom[cuda] has it)") from None
    try:
        model = onnx.load(str(source))
        _fold(onnx, model, input_name, pixels)
        data = model.SerializeToString()
    except NotFolded:
        raise
    except Exception as error:
        # protobuf and onnx raise what they like of a file that ONNX Runtime reads.
        raise NotFolded(f"the graph cannot be changed: {error}") from error
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
        try:
            file.write(data)
            file.flush()
            Path(file.name).replace(target)
        except OSError:
            Path(file.name).unlink(missing_ok=True)
            raise


def folded_name(input_name: str) -> str:
    """Return the name of the input that takes pixels."""
    return f"{input_name}.pixels"


def _fold(onnx: Any, model: Any, input_name: str, pixels: Pixels) -> None:
    opset = max((o.version for o in model.opset_import if o.domain in {"", "ai.onnx"}), default=0)
    if opset < _OLDEST_OPSET:
        raise NotFolded(f"its opset is {opset}, folding needs {_OLDEST_OPSET}")
    graph, name = model.graph, folded_name(input_name)
    [image] = [value for value in graph.input if value.name == input_name]
    batch = image.type.tensor_type.shape.dim[0]
    nodes = _nodes(onnx, name, input_name, pixels)
    shape = [1, *pixels.shape]
    taken = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, shape)
    taken.type.tensor_type.shape.dim[0].CopyFrom(batch)
    image.CopyFrom(taken)
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])


def _nodes(onnx: Any, name: str, into: str, pixels: Pixels) -> list[Any]:
    """Return nodes from the pixels to the tensor that the graph took."""
    helper, proto, constant = onnx.helper, onnx.TensorProto, onnx.numpy_helper.from_array
    steps: list[_Step] = []
    dtype = pixels.values.dtype
    if dtype != np.uint8:
        scale, shift = _line(pixels.values)
        steps.append(("Cast", {"to": proto.FLOAT}, None))
        if pixels.flip:
            steps.append(_FLIP)
        steps += [("Mul", {}, scale), ("Add", {}, shift)]
        if dtype == np.float16:
            steps.append(("Cast", {"to": proto.FLOAT16}, None))
    elif pixels.flip:
        steps.append(_FLIP)
    if pixels.chw:
        steps.append(("Transpose", {"perm": [0, 3, 1, 2]}, None))
    steps = steps or [("Identity", {}, None)]
    nodes, at = [], name
    for index, (kind, attributes, value) in enumerate(steps):
        out = into if index == len(steps) - 1 else f"{name}.{index}"
        inputs = [at]
        if value is not None:
            inputs.append(f"{out}.constant")
            tensor = constant(value, inputs[1])
            nodes.append(helper.make_node("Constant", [], [inputs[1]], value=tensor))
        nodes.append(helper.make_node(kind, inputs, [out]))
        nodes[-1].attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
        at = out
    return nodes


def _line(values: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    """Return scale and shift [C] float32 that make the values of the levels, as good as they can.

    Raises NotFolded when they do not lie on a line.
    """
    exact = values.astype(np.float64)
    levels = np.arange(256)
    scale, shift = np.polyfit(levels, exact.T, 1)
    line = levels * scale[:, np.newaxis] + shift[:, np.newaxis]
    room = _ROUNDING * float(np.finfo(values.dtype).eps) * float(np.abs(exact).max(initial=1.0))
    if np.abs(exact - line).max() > room:
        raise NotFolded("what preprocess makes of the levels is no straight line")
    return scale.astype(np.float32), shift.astype(np.float32)
