"""Make worker/engine/probe.onnx: the small graph that a device must compute as the CPU does.

It has a convolution, because cuDNN is loaded by the first one that runs. The same bytes each time.
"""

import sys
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

PROBE = Path(__file__).parents[1] / "worker" / "engine" / "probe.onnx"


def probe() -> ModelProto:
    """Return image [N, 3, 8, 8] -> Conv, Relu, mean over the picture, MatMul -> scores [N, 4]."""
    kernel = _waves(4, 3, 3, 3)
    weights = _waves(4, 4)
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["found"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["found"], ["kept"]),
        helper.make_node("GlobalAveragePool", ["kept"], ["means"]),
        helper.make_node("Flatten", ["means"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(kernel, "kernel"), numpy_helper.from_array(weights, "weights")],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8, producer_name="darkroom"
    )


def _waves(*shape: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    """Return small weights of both signs, none of them equal to its neighbours."""
    steps = np.arange(np.prod(shape), dtype=np.float64)
    return np.sin(steps).round(3).astype(np.float32).reshape(shape)


if __name__ == "__main__":
    PROBE.write_bytes(probe().SerializeToString(deterministic=True))
    sys.stdout.write(f"{PROBE.stat().st_size} bytes\n")
