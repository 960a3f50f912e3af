"""The classifier on what ONNX Runtime really says; recorded, where no CPU can be made to say it."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as native

from tests.unit.engine import graphs
from worker.engine.trouble import DEVICE, Kind, classify, said

WHERE = "; GPU=0 ; hostname=gpu-node-17 ; file=/onnxruntime_src/onnxruntime/core/x.cc ; line=44"
RUNNING = (
    "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Conv node. "
    "Name:'/conv/Conv' Status Message: "
)
ILLEGAL = f"CUDA failure 700: an illegal memory access was encountered {WHERE} ; expr=cudaMemcpy()"
ARENA = (
    "/onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:360 void* onnxruntime::BFCArena::"
    "AllocateRawInternal(size_t, bool) Failed to allocate memory for requested buffer of size 9"
)
LOST = (
    "CUDA failure 100: no CUDA-capable device is detected ; GPU=-1 ; hostname=gpu-node-17 ; "
    "expr=cudaSetDevice(info_.device_id)"
)
CUBLAS = f"CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED {WHERE} ; expr=cublasSgemm()"
CUDNN = f"CUDNN failure 8: CUDNN_STATUS_EXECUTION_FAILED {WHERE} ; expr=cudnnConvolutionForward()"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (native.Fail(f"{RUNNING}{ILLEGAL}"), Kind.STICKY),
        (RuntimeError(ILLEGAL), Kind.STICKY),
        (native.Fail(f"CUDA failure 719: unspecified launch failure {WHERE}"), Kind.STICKY),
        (native.Fail(f"CUDA failure 710: device-side assert triggered {WHERE}"), Kind.STICKY),
        (native.Fail(f"CUDA failure 214: uncorrectable ECC error encountered {WHERE}"), "sticky"),
        (native.Fail(f"CUDA failure 999: unknown error {WHERE}"), Kind.STICKY),
        (native.Fail(f"CUDA failure 709: context is destroyed {WHERE}"), Kind.STICKY),
        (native.Fail("cuda error: an illegal memory access; then CUDA failure 2: out of memory"),
         Kind.STICKY),
        (native.DeviceReset("[ONNXRuntimeError] : 19 : DEVICE_RESET : the device was"), "sticky"),
        (native.Fail(f"{RUNNING}{ARENA}"), Kind.OOM),
        (native.RuntimeException(f"{RUNNING}{ARENA}"), Kind.OOM),
        (RuntimeError(f"CUDA failure 2: out of memory {WHERE} ; expr=cudaMalloc()"), Kind.OOM),
        (native.Fail(f"CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED {WHERE}"), Kind.OOM),
        (native.Fail(f"CUDNN failure 4: CUDNN_STATUS_INTERNAL_ERROR_ALLOC_FAILED {WHERE}"), "oom"),
        (MemoryError(), Kind.OOM),
        (RuntimeError(LOST), Kind.INIT),
        (RuntimeError(f"CUDA failure 35: CUDA driver version is insufficient {WHERE}"), Kind.INIT),
        (RuntimeError(f"CUDA failure 804: forward compatibility was attempted {WHERE}"), "init"),
        (RuntimeError("CUDA Provider not available, can't get interface for it"), Kind.INIT),
        (native.Fail(f"{RUNNING}{CUBLAS}"), Kind.SUSPECT),
        (native.Fail(f"{RUNNING}{CUDNN}"), Kind.SUSPECT),
        (native.Fail(f"CUDA failure 701: too many resources requested {WHERE}"), Kind.SUSPECT),
        (native.EPFail("TensorRT EP execution context enqueue failed."), Kind.SUSPECT),
        (native.InvalidArgument(f"{RUNNING}{CUDNN}"), Kind.SUSPECT),
        (native.Fail("Got invalid dimensions for input: image"), Kind.INPUT),
        (ValueError("output scores has 2 rows for 4"), Kind.INPUT),
        (native.NotImplemented("Could not find an implementation for Conv(11)"), Kind.MODEL),
        (native.Fail("Fatal error: com.acme:Fold(-1) is not a registered function/op"), "model"),
        (native.Fail("External data path validation failed for initializer"), Kind.MODEL),
        (native.Fail("a sentence that nobody has recorded"), Kind.UNKNOWN),
        (RuntimeError("failpoint: raise"), Kind.UNKNOWN),
    ],
)  # fmt: skip
def test_an_error_is_known_by_what_it_says(error: Exception, kind: str) -> None:
    assert classify(error) == kind


def test_only_what_names_the_device_is_the_devices() -> None:
    assert {Kind.STICKY, Kind.OOM, Kind.INIT, Kind.SUSPECT} == DEVICE


@pytest.fixture(scope="module")
def gather(tmp_path_factory: pytest.TempPathFactory) -> ort.InferenceSession:
    """A table of two rows that an index is looked up in; others are out of its bounds."""
    graph = graphs.model(
        [helper.make_node("Gather", ["table", "index"], ["row"])],
        inputs=[("index", TensorProto.INT64, ["N"])],
        outputs=[("row", TensorProto.FLOAT, ["N"])],
        constants={"table": np.array([1.0, 2.0], np.float32)},
    )
    path: Path = tmp_path_factory.mktemp("gather") / "model.onnx"
    path.write_bytes(graph.SerializeToString())
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    "feed",
    [np.array([7]), np.array([[0]]), np.array([0.5], np.float32)],
    ids=["value", "rank", "dtype"],
)
def test_a_feed_that_does_not_fit_is_an_input_fault(
    gather: ort.InferenceSession, feed: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]"
) -> None:
    with pytest.raises(Exception, match="ONNXRuntimeError") as caught:
        gather.run(None, {"index": feed})
    assert classify(caught.value) is Kind.INPUT


def test_a_missing_feed_is_an_input_fault(gather: ort.InferenceSession) -> None:
    with pytest.raises(ValueError, match="Required inputs") as caught:
        gather.run(None, {})
    assert classify(caught.value) is Kind.INPUT


def test_a_run_that_was_told_to_end_is_no_fault(gather: ort.InferenceSession) -> None:
    told = ort.RunOptions()
    told.terminate = True
    with pytest.raises(Exception, match="terminate") as caught:
        gather.run(None, {"index": np.array([0])}, told)
    assert classify(caught.value) is Kind.CANCEL


@pytest.mark.parametrize("text", [ILLEGAL, LOST, CUBLAS, f"CUDA failure 2: out {WHERE}", "a\n  b"])
def test_what_is_said_of_an_error_is_one_line_without_the_name_of_the_machine(text: str) -> None:
    line = said(native.Fail(text))
    assert line.startswith("Fail: ")
    assert "\n" not in line
    assert "gpu-node-17" not in line
    assert "hostname" not in line
    assert text.partition(";")[0].split()[0] in line


def test_a_long_error_is_cut() -> None:
    assert len(said(RuntimeError("x" * 100_000))) < 1000
