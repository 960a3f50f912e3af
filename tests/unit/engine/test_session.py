"""Strict sessions: the real GPU wheel without a GPU, and a scripted device that may lie."""

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from tests.unit.engine import graphs
from worker.engine import session
from worker.engine.devices import cuda_problem
from worker.engine.providers import CPU, CUDA, TENSORRT
from worker.engine.session import Session, open_session
from worker.errors import DeviceError, SettingsError

NO_DEVICE = (
    "onnxruntime_pybind_state.cc:1290 CUDA failure 100: no CUDA-capable device is detected ; "
    "GPU=-1 ; hostname=secret-node-7 ; file=/onnxruntime_src/cuda_execution_provider.cc ; line=282 "
    "; expr=cudaSetDevice(info_.device_id); "
)
without_gpu = pytest.mark.skipif(cuda_problem() is None, reason="this machine has a usable GPU")


class Device:
    """A device that CUDA's provider would run on, played by the CPU; it may lie or fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.off = 0.0
        self.nodes_here: float = 1.0
        """Share of the nodes that it takes."""
        self.opens: Exception | None = None
        self.runs: Exception | None = None
        self.real = ort.InferenceSession
        monkeypatch.setattr(session, "cuda_problem", lambda: None)
        monkeypatch.setattr(ort, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
        monkeypatch.setattr(ort, "InferenceSession", self._open)

    def _open(self, path: str, *, providers: list[tuple[str, Any]], **kwargs: Any) -> Any:
        opened = self.real(path, providers=[CPU], **kwargs)
        name = providers[0][0]
        if name == CPU:
            return opened
        if self.opens is not None:
            raise self.opens
        return SimpleNamespace(
            run=lambda *args: self._run(opened, *args),
            get_inputs=opened.get_inputs,
            get_outputs=opened.get_outputs,
            get_modelmeta=opened.get_modelmeta,
            disable_fallback=opened.disable_fallback,
            get_providers=lambda: [name, CPU],
            get_provider_graph_assignment_info=lambda: self._nodes(opened, name),
        )

    def _run(self, opened: Any, *args: Any) -> Any:
        if self.runs is not None:
            raise self.runs
        return [array + np.float32(self.off) for array in opened.run(*args)]

    def _nodes(self, opened: Any, name: str) -> list[Any]:
        parts = opened.get_provider_graph_assignment_info()
        here = round(self.nodes_here * len(parts))
        return [
            SimpleNamespace(ep_name=name if at < here else CPU, get_nodes=part.get_nodes)
            for at, part in enumerate(parts)
        ]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(monkeypatch)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(graphs.brightness().SerializeToString())
    return path


def opened(model: Path, policy: str = "prefer-gpu", **given: dict[str, str]) -> Session:
    return open_session(model, policy=policy, options={}, given=given)


def test_the_probe_is_what_its_script_makes() -> None:
    script = runpy.run_path(str(Path(__file__).parents[3] / "scripts" / "make_probe.py"))
    assert script["PROBE"].read_bytes() == script["probe"]().SerializeToString(deterministic=True)


def test_a_device_that_takes_all_nodes_and_computes_right_is_trusted(
    device: Device, model: Path
) -> None:
    device.off = 1e-4
    trusted = opened(model, "require-cuda")
    assert trusted.stamp.provider == CUDA
    assert trusted.nodes == {CUDA: 2}
    assert trusted.refused == ()


@pytest.mark.usefixtures("device")
def test_on_the_cpu_all_nodes_are_the_cpus(model: Path) -> None:
    assert opened(model, "cpu").nodes == {CPU: 2}


def test_nodes_that_stay_on_the_cpu_are_told(device: Device, model: Path) -> None:
    device.nodes_here = 0.5
    assert opened(model, "require-gpu").nodes == {CUDA: 1, CPU: 1}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"off": 0.5}, "computes a small graph otherwise than the CPU, by 0.5"),
        ({"off": float("nan")}, "computes a small graph otherwise than the CPU, by nan"),
        ({"nodes_here": 0.0}, "took none of the graph's nodes"),
        ({"opens": RuntimeError(NO_DEVICE)}, "CUDA failure 100: no CUDA-capable device"),
        ({"runs": RuntimeError("CUDNN failure 3: no libcudnn")}, "cannot run a small graph: Runt"),
    ],
)
def test_a_device_that_cannot_be_trusted_is_refused_or_the_cpu_serves_and_says_why(
    device: Device, model: Path, changes: dict[str, Any], why: str
) -> None:
    vars(device).update(changes)
    with pytest.raises(DeviceError, match=f"^{CUDA}.*{why}") as caught:
        opened(model, "require-cuda")
    assert "secret-node" not in str(caught.value)
    fallen = opened(model)
    assert (fallen.stamp.provider, fallen.stamp.fallback) == (CPU, True)
    assert why.partition(":")[0] in fallen.refused[0]


def test_a_typo_in_an_option_never_ends_on_the_cpu(device: Device, model: Path) -> None:
    device.opens = RuntimeError('Unknown provider option: "gpu_mem_limits"')
    with pytest.raises(SettingsError, match="did you mean gpu_mem_limit"):
        opened(model, CUDAExecutionProvider={"gpu_mem_limits": "1"})


def test_two_distributions_of_onnx_runtime_are_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "installed", lambda: ["onnxruntime", "onnxruntime-openvino"])
    with pytest.raises(SettingsError, match="pip uninstall onnxruntime onnxruntime-openvino"):
        opened(model, "cpu")


@without_gpu
@pytest.mark.parametrize(
    ("policy", "why"),
    [
        ("require-cuda", "CUDAExecutionProvider was asked for and ONNX Runtime took CPU.*lib.*.so"),
        ("require-tensorrt", "TensorrtExecutionProvider.*TensorRT libraries"),
    ],
)
def test_the_real_gpu_wheel_without_a_gpu_never_ends_on_the_cpu(
    model: Path, monkeypatch: pytest.MonkeyPatch, policy: str, why: str
) -> None:
    available = ort.get_available_providers()
    if CUDA not in available:
        pytest.skip(f"the onnxruntime installed here has {', '.join(available)} alone")
    with pytest.raises(DeviceError, match=f"engine.policy is {policy}, but "):
        opened(model, policy)
    monkeypatch.setattr(session, "cuda_problem", lambda: None)  # as if a driver answered
    with pytest.raises(DeviceError, match=why):
        opened(model, policy)
    fallen = opened(model)
    assert (fallen.stamp.provider, fallen.stamp.fallback) == (CPU, True)
