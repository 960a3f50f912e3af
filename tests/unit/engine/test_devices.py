"""The driver as ctypes calls it, and NVML as nvidia-ml-py offers it, both played by Python."""

import uuid
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from worker.engine import nvml
from worker.engine.devices import NO_DEVICE, Driver, cuda_device, cuda_problem
from worker.errors import DeviceError
from worker.protocol.survey import Gpu

A, B, SLICE = (uuid.UUID(int=number) for number in (1, 2, 3))
GIB = 1 << 30


class Library:
    """libcuda: calls answer a code and write where they are pointed to."""

    def __init__(self, *devices: tuple[uuid.UUID, uuid.UUID], codes: dict[str, int]) -> None:
        self._devices = devices
        self._codes = codes

    def __getattr__(self, call: str) -> Any:
        def answer(*arguments: Any) -> int:
            code = self._codes.get(call, 0)
            if not code:
                getattr(self, f"_{call}")(*arguments)
            return code

        if call.startswith("_") or f"_{call}" not in dir(self):
            raise AttributeError(call)
        return answer

    def _cuInit(self, flags: int) -> None:  # noqa: N802 - the driver's own name
        assert flags == 0

    def _cuDeviceGetCount(self, count: Any) -> None:  # noqa: N802 - same
        count._obj.value = len(self._devices)

    def _cuDeviceGet(self, device: Any, ordinal: int) -> None:  # noqa: N802 - same
        device._obj.value = ordinal

    def _cuDeviceTotalMem_v2(self, size: Any, device: Any) -> None:  # noqa: N802 - same
        size._obj.value = (device.value + 1) * GIB

    def _cuDeviceGetUuid(self, octets: Any, device: Any) -> None:  # noqa: N802 - same
        octets.raw = self._devices[device.value][0].bytes

    def _cuDeviceGetUuid_v2(self, octets: Any, device: Any) -> None:  # noqa: N802 - same
        octets.raw = self._devices[device.value][1].bytes

    def _cuDeviceGetName(self, text: Any, size: int, device: Any) -> None:  # noqa: N802 - same
        assert size >= 64
        text.value = b"GPU number %d" % device.value

    def _cuDeviceGetPCIBusId(self, text: Any, size: int, device: Any) -> None:  # noqa: N802 - same
        assert size >= 13
        text.value = b"0000:%02X:00.0" % (device.value + 10)

    def _cuDeviceGetAttribute(self, value: Any, attribute: int, _: Any) -> None:  # noqa: N802 - same
        value._obj.value = {75: 8, 76: 6}[attribute]

    def _cuGetErrorString(self, code: int, text: Any) -> None:  # noqa: N802 - same
        text._obj.value = {100: b"no CUDA-capable device is detected"}.get(code)


def driver(*devices: tuple[uuid.UUID, uuid.UUID], **codes: int) -> Driver:
    return Driver(Library(*devices, codes=codes))


def test_the_driver_tells_of_whole_gpus_and_of_mig_instances() -> None:
    first, second = driver((A, A), (B, SLICE)).gpus()
    assert first == Gpu(
        f"GPU-{A}", f"GPU-{A}", "GPU number 0", listed=True, compute_capability=(8, 6),
        pci_bus_id="0000:0a:00.0", memory_total_bytes=GIB,
    )  # fmt: skip
    assert (second.uuid, second.gpu) == (f"MIG-{SLICE}", f"GPU-{B}")


def test_a_driver_without_the_second_call_for_uuids_is_asked_by_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(Library, "_cuDeviceGetUuid_v2")
    (only,) = driver((A, SLICE)).gpus()
    assert (only.uuid, only.gpu) == (f"GPU-{A}", f"GPU-{A}")


@pytest.mark.parametrize(
    ("codes", "said"),
    [
        ({"cuInit": 100}, r"cuInit with error 100 \(no CUDA-capable device is detected\)"),
        ({"cuInit": 999}, r"cuInit with error 999 \(unknown to it\)"),
        ({"cuDeviceGetCount": 3}, "cuDeviceGetCount with error 3"),
        ({"cuDeviceGetUuid": 101}, "cuDeviceGetUuid with error 101"),
    ],
)
def test_an_error_of_the_driver_is_told_with_its_call_code_and_meaning(
    codes: dict[str, int], said: str
) -> None:
    with pytest.raises(DeviceError, match=f"the NVIDIA driver answers {said}"):
        driver((A, A), **codes).gpus()


@pytest.mark.parametrize(
    ("devices", "codes", "problem", "device"),
    [
        ([(A, A), (B, B)], {}, None, f"GPU-{A}"),
        ([(B, SLICE)], {}, None, f"MIG-{SLICE}"),
        ([], {}, NO_DEVICE, None),
        ([(A, A)], {"cuInit": 100}, "cuInit with error 100", None),
    ],
)
def test_an_engine_names_the_first_device_that_it_sees(
    devices: Sequence[tuple[uuid.UUID, uuid.UUID]],
    codes: dict[str, int],
    problem: str | None,
    device: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Driver, "load", lambda: driver(*devices, **codes))
    found = cuda_device()
    assert (found and found.uuid) == device
    said = cuda_problem()
    assert said is None if problem is None else problem in str(said)


class Nvml:
    """pynvml: devices as dictionaries; what is not in one is not supported."""

    NVMLError = pynvml.NVMLError
    NVML_TEMPERATURE_GPU = pynvml.NVML_TEMPERATURE_GPU
    NVML_DEVICE_MIG_ENABLE = pynvml.NVML_DEVICE_MIG_ENABLE

    def __init__(self, *devices: dict[str, Any] | None, count: int | None = None) -> None:
        self._devices = devices
        self._count = len(devices) if count is None else count
        self.open = 0

    def nvmlInit(self) -> None:  # noqa: N802 - its own name
        if self._count < 0:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802 - same
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802 - same
        return self._count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:  # noqa: N802 - same
        device = self._devices[index]
        if device is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return device

    def nvmlDeviceGetMaxMigDeviceCount(self, _: dict[str, Any]) -> int:  # noqa: N802 - same
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: Any, number: int) -> Any:  # noqa: N802 - same
        if number not in device["instances"]:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return device["instances"][number]

    def __getattr__(self, call: str) -> Any:
        if not call.startswith("nvmlDeviceGet"):
            raise AttributeError(call)
        assert hasattr(pynvml, call), f"{call} is no call of nvidia-ml-py"

        def answer(device: dict[str, Any], *_: Any) -> Any:
            if call not in device:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
            return device[call]

        return answer


def nvml_device(number: uuid.UUID, **more: Any) -> dict[str, Any]:
    return {
        "nvmlDeviceGetUUID": f"GPU-{number}",
        "nvmlDeviceGetName": "NVIDIA A100",
        "nvmlDeviceGetMigMode": [0, 0],
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=80 * GIB, used=GIB),
        "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=12, memory=3),
        "nvmlDeviceGetTemperature": 41,
        "nvmlDeviceGetPciInfo": SimpleNamespace(busId="00000000:3B:00.0"),
        "nvmlDeviceGetCudaComputeCapability": (8, 0),
        **more,
    }


WHOLE = Gpu(
    f"GPU-{A}", f"GPU-{A}", "NVIDIA A100", compute_capability=(8, 0), pci_bus_id="0000:3b:00.0",
    memory_total_bytes=80 * GIB, memory_used_bytes=GIB, temperature_c=41, utilization_pct=12,
)  # fmt: skip


def test_nvml_tells_how_a_gpu_is() -> None:
    module = Nvml(nvml_device(A))
    assert nvml.gpus(module) == (WHOLE,)
    assert module.open == 0


def test_what_a_gpu_does_not_offer_is_not_known() -> None:
    (gpu,) = nvml.gpus(Nvml({"nvmlDeviceGetUUID": f"GPU-{A}"}))
    assert gpu == Gpu(f"GPU-{A}", f"GPU-{A}", "unknown")


def test_a_gpu_in_mig_mode_is_its_instances() -> None:
    instance = {
        "nvmlDeviceGetUUID": f"MIG-{SLICE}",
        "nvmlDeviceGetName": "NVIDIA A100 MIG 1g.10gb",
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=10 * GIB, used=0),
    }
    module = Nvml(nvml_device(A, nvmlDeviceGetMigMode=[1, 1], instances={2: instance}))
    (gpu,) = nvml.gpus(module)
    assert gpu == WHOLE._replace(
        uuid=f"MIG-{SLICE}", name="NVIDIA A100 MIG 1g.10gb", memory_total_bytes=10 * GIB,
        memory_used_bytes=0, utilization_pct=None,
    )  # fmt: skip


def test_a_gpu_in_mig_mode_without_instances_says_so() -> None:
    (gpu,) = nvml.gpus(Nvml(nvml_device(A, nvmlDeviceGetMigMode=[1, 1], instances={})))
    assert gpu.problem is not None
    assert "has no instance" in gpu.problem


def test_a_lost_gpu_does_not_hide_the_others() -> None:
    lost, other = nvml.gpus(Nvml(None, nvml_device(A)))
    assert (lost.uuid, lost.problem) == ("NVML index 0", "GPU is lost")
    assert other == WHOLE


def test_nvml_that_does_not_answer_is_an_error() -> None:
    with pytest.raises(DeviceError, match="NVML: Driver Not Loaded"):
        nvml.gpus(Nvml(count=-1))


def test_the_real_nvml_is_asked_without_harm() -> None:
    try:
        found = nvml.gpus(nvml.load())
    except DeviceError as error:
        assert str(error).startswith("NVML: ")  # noqa: PT017 - no driver here
    else:
        assert all(gpu.uuid for gpu in found)
