"""NVML by nvidia-ml-py, where that is installed: which GPUs the machine has, and how they are.

NVML knows nothing of CUDA_VISIBLE_DEVICES. What it does not tell of a device is None.
"""

from types import ModuleType
from typing import Any

from worker.errors import DeviceError
from worker.protocol.survey import Gpu


def load() -> ModuleType:
    """Return the module. Raises DeviceError where it is not installed (extra `cuda`)."""
    try:
        import pynvml  # noqa: PLC0415 - it may be absent
    except ImportError:
        raise DeviceError("nvidia-ml-py is not installed") from None
    module: ModuleType = pynvml
    return module


def gpus(nvml: Any) -> tuple[Gpu, ...]:
    """Return every GPU, and in the place of one in MIG mode its instances, in PCI order.

    `nvml` is the module pynvml. Raises DeviceError when NVML does not answer at all.
    """
    try:
        nvml.nvmlInit()
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError as error:
        raise DeviceError(f"NVML: {error}") from None
    try:
        asker = _Asker(nvml)
        return tuple(gpu for index in range(count) for gpu in asker.gpus(index))
    finally:
        nvml.nvmlShutdown()


class _Asker:
    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml

    def gpus(self, index: int) -> list[Gpu]:
        try:
            handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
            own = self._nvml.nvmlDeviceGetUUID(handle)
        except self._nvml.NVMLError as error:  # lost, or not ours to see: nothing else is known
            unknown = f"NVML index {index}"
            return [Gpu(unknown, unknown, "unknown", problem=str(error))]
        mig = self._ask("nvmlDeviceGetMigMode", handle)
        if mig is None or mig[0] != self._nvml.NVML_DEVICE_MIG_ENABLE:
            return [self._gpu(handle, own, handle, own)]
        found = []
        for number in range(self._ask("nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
            instance = self._ask("nvmlDeviceGetMigDeviceHandleByIndex", handle, number)
            uuid = None if instance is None else self._ask("nvmlDeviceGetUUID", instance)
            if uuid is not None:
                found.append(self._gpu(instance, uuid, handle, own))
        if found:
            return found
        nothing = "it is in MIG mode and has no instance (nvidia-smi mig -cgi ... -C makes some)"
        return [self._gpu(handle, own, handle, own)._replace(problem=nothing)]

    def _gpu(self, instance: Any, uuid: str, handle: Any, gpu: str) -> Gpu:
        """Ask the instance for what is its own, the GPU for the rest."""
        pci = self._ask("nvmlDeviceGetPciInfo", handle)
        memory = self._ask("nvmlDeviceGetMemoryInfo", instance)
        load = self._ask("nvmlDeviceGetUtilizationRates", instance)
        capability = self._ask("nvmlDeviceGetCudaComputeCapability", handle)
        name = self._ask("nvmlDeviceGetName", instance) or self._ask("nvmlDeviceGetName", handle)
        sensor = self._nvml.NVML_TEMPERATURE_GPU
        return Gpu(
            uuid,
            gpu,
            name or "unknown",
            compute_capability=capability and (capability[0], capability[1]),
            # A PCI domain has four digits in sysfs and eight here.
            pci_bus_id=pci and pci.busId.lower()[-len("0000:00:00.0") :],
            memory_total_bytes=memory and memory.total,
            memory_used_bytes=memory and memory.used,
            temperature_c=self._ask("nvmlDeviceGetTemperature", handle, sensor),
            utilization_pct=load and load.gpu,
        )

    def _ask(self, call: str, *arguments: Any) -> Any:
        """Return None for what this device, its driver or our rights do not offer."""
        try:
            return getattr(self._nvml, call)(*arguments)
        except self._nvml.NVMLError:
            return None
