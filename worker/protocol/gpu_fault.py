"""A fault of the GPU, made for tests: a kernel that writes where no memory is.

CUDA says so (CUDA_ERROR_ILLEGAL_ADDRESS) to this call and to every later one in the context, until
the process ends. Nothing but the driver is needed: it compiles the kernel itself.
"""

import ctypes
from typing import Any

from worker.protocol.survey import CUDA_LIBRARY, NO_DRIVER

_ILLEGAL_ADDRESS = 700
_KERNEL = b"astray"
_PTX = b"""
.version 6.0
.target sm_50
.address_size 64
.visible .entry astray(.param .u64 address)
{
    .reg .b64 %to;
    ld.param.u64 %to, [address];
    st.global.u64 [%to], %to;
    ret;
}
"""
"""For compute capability 5.0; the driver compiles it for all that came later."""


def write_astray() -> None:
    """Let a kernel write to address 0 in the context that ONNX Runtime has on the first device.

    Raises RuntimeError when that is no fault for this driver, or when there is no driver.
    """
    try:
        cuda = ctypes.CDLL(CUDA_LIBRARY)
    except OSError:
        raise RuntimeError(f"failpoint: gpu-fault: {NO_DRIVER}") from None
    device = ctypes.c_int(0)
    context, module, kernel = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    _ask(cuda, "cuInit", 0)
    _ask(cuda, "cuDeviceGet", ctypes.byref(device), 0)
    _ask(cuda, "cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    _ask(cuda, "cuCtxSetCurrent", context)
    _ask(cuda, "cuModuleLoadData", ctypes.byref(module), _PTX)
    _ask(cuda, "cuModuleGetFunction", ctypes.byref(kernel), module, _KERNEL)
    address = ctypes.c_uint64(0)
    parameters = (ctypes.c_void_p * 1)(ctypes.addressof(address))
    # Grid and block of one thread; no shared memory; the default stream.
    _ask(cuda, "cuLaunchKernel", kernel, 1, 1, 1, 1, 1, 1, 0, None, parameters, None)
    code = cuda.cuCtxSynchronize()
    if code != _ILLEGAL_ADDRESS:
        raise RuntimeError(
            f"failpoint: gpu-fault: the kernel wrote, and cuCtxSynchronize answers {code}"
        )


def _ask(cuda: Any, call: str, *arguments: Any) -> None:
    if code := getattr(cuda, call)(*arguments):
        raise RuntimeError(f"failpoint: gpu-fault: {call} answers {code}")
