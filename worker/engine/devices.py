"""What devices this machine really has, asked of the driver and never of ONNX Runtime.

ONNX Runtime lists providers that it was built with, usable or not.
"""

import ctypes
import platform


def cuda_problem() -> str | None:
    """Return why CUDA cannot be used here, or None when the driver answers (0.2 ms)."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver (libcuda.so.1) is installed"
    code: int = driver.cuInit(0)
    if code != 0:
        return f"the NVIDIA driver answers cuInit with error {code}"
    count = ctypes.c_int(0)
    code = driver.cuDeviceGetCount(ctypes.byref(count))
    if code != 0 or count.value == 0:
        return "the NVIDIA driver sees no device (is CUDA_VISIBLE_DEVICES empty?)"
    return None


def compute_capability() -> tuple[int, int]:
    """Return the compute capability of the first device, once the driver has answered."""
    driver = ctypes.CDLL("libcuda.so.1")
    device, number = ctypes.c_int(0), ctypes.c_int(0)
    found = []
    driver.cuDeviceGet(ctypes.byref(device), 0)
    for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
        driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        found.append(number.value)
    return found[0], found[1]


def cpu_name() -> str:
    """Return what stands as `device` in results that the CPU made."""
    return f"cpu-{platform.machine()}"
