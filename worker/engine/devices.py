"""What devices this process really has, asked of the driver and never of ONNX Runtime.

ONNX Runtime lists providers that it was built with, usable or not. The driver is asked only what it
answers without a context, so without memory on a GPU.
"""

import ctypes
import platform
import uuid
from typing import Any, Self

from worker.errors import DeviceError
from worker.protocol.survey import CUDA_LIBRARY, NO_DRIVER, Gpu

NO_DEVICE = "the NVIDIA driver sees no device (is CUDA_VISIBLE_DEVICES empty?)"
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
"""Of `CUdevice_attribute`."""
_NAME_BYTES = 256


class Driver:
    """The CUDA driver. Its methods raise DeviceError for what it answers with an error."""

    def __init__(self, library: Any) -> None:
        self._library = library

    @classmethod
    def load(cls) -> Self:
        """Find the driver where the loader does. Raises DeviceError: there is none."""
        try:
            return cls(ctypes.CDLL(CUDA_LIBRARY))
        except OSError:
            raise DeviceError(NO_DRIVER) from None

    def count(self) -> int:
        """Start the driver (0.2 ms where it has nothing to start) and count its devices."""
        self._ask("cuInit", 0)
        count = ctypes.c_int(0)
        self._ask("cuDeviceGetCount", ctypes.byref(count))
        return count.value

    def gpus(self) -> tuple[Gpu, ...]:
        """Return what the driver lists, in its order; CUDA_VISIBLE_DEVICES counts."""
        return tuple(self.gpu(ordinal) for ordinal in range(self.count()))

    def gpu(self, ordinal: int) -> Gpu:
        """Return one device after `count`."""
        device, memory_bytes = ctypes.c_int(0), ctypes.c_size_t(0)
        self._ask("cuDeviceGet", ctypes.byref(device), ordinal)
        self._ask("cuDeviceTotalMem_v2", ctypes.byref(memory_bytes), device)
        own, gpu = self._uuids(device)
        return Gpu(
            own,
            gpu,
            self._text("cuDeviceGetName", device),
            listed=True,
            compute_capability=(
                self._attribute(_CAPABILITY_MAJOR, device),
                self._attribute(_CAPABILITY_MINOR, device),
            ),
            pci_bus_id=self._text("cuDeviceGetPCIBusId", device).lower(),
            memory_total_bytes=memory_bytes.value,
        )

    def _uuids(self, device: ctypes.c_int) -> tuple[str, str]:
        """Return the UUID of the device and of its GPU: the second call knows MIG instances."""
        gpu = self._uuid("cuDeviceGetUuid", device)
        has_second = hasattr(self._library, "cuDeviceGetUuid_v2")  # since CUDA 11.4
        own = self._uuid("cuDeviceGetUuid_v2", device) if has_second else gpu
        return f"{'GPU' if own == gpu else 'MIG'}-{own}", f"GPU-{gpu}"

    def _uuid(self, call: str, device: ctypes.c_int) -> uuid.UUID:
        octets = ctypes.create_string_buffer(16)
        self._ask(call, octets, device)
        return uuid.UUID(bytes=octets.raw)

    def _text(self, call: str, device: ctypes.c_int) -> str:
        text = ctypes.create_string_buffer(_NAME_BYTES)
        self._ask(call, text, _NAME_BYTES, device)
        return text.value.decode(errors="replace")

    def _attribute(self, attribute: int, device: ctypes.c_int) -> int:
        value = ctypes.c_int(0)
        self._ask("cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
        return value.value

    def _ask(self, call: str, *arguments: Any) -> None:
        code: int = getattr(self._library, call)(*arguments)
        if code != 0:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(code, ctypes.byref(text))
            meaning = text.value.decode(errors="replace") if text.value else "unknown to it"
            raise DeviceError(f"the NVIDIA driver answers {call} with error {code} ({meaning})")


def cuda_problem() -> str | None:
    """Return why CUDA cannot be used here, or None when the driver lists a device."""
    try:
        return None if Driver.load().count() else NO_DEVICE
    except DeviceError as error:
        return str(error)


def cuda_device() -> Gpu | None:
    """Return the device that CUDA takes here; None where the driver lists none."""
    try:
        driver = Driver.load()
        return driver.gpu(0) if driver.count() else None
    except DeviceError:
        return None


def cpu_name() -> str:
    """Return what stands as `device` in results that the CPU made."""
    return f"cpu-{platform.machine()}"
