"""Runs of one session by IO binding, one at a time: a batch is copied in while another one runs.

On a CPU the same code runs over CPU memory, where binding copies nothing. It must not know models,
rows or lanes.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import DTypeLike, NDArray

from worker.engine.providers import CUDA, TENSORRT
from worker.profiling.stages import Stage, Stages

Array = NDArray[Any]

STAGED = frozenset({CUDA, TENSORRT})
"""Execution providers whose device has a memory of its own, which binding copies to."""

_CUDA_LIBRARY = "libonnxruntime_providers_cuda.so"


class Bound:
    """A session whose runs are bound. Safe for any thread.

    Binding an input copies it to the device, outside of the turn; a run takes its turn, since two
    at once would need the memory of both. Nothing here outlives a run: a binding that is kept pins
    the whole model.
    """

    def __init__(self, session: ort.InferenceSession, provider: str) -> None:
        self._session = session
        self._memory = _pinned() if provider in STAGED else None
        self._turn = threading.Lock()
        self._last = threading.local()
        if self._memory is not None:
            self.allocate((1,), np.uint8)  # now it is known whether it can be had

    @property
    def pinned(self) -> bool:
        """Say whether `allocate` gives memory that the device reads without a copy in between."""
        return self._memory is not None

    @property
    def waited_s(self) -> float:
        """How long the last run of this thread waited for the one before it."""
        waited_s: float = getattr(self._last, "waited_s", 0.0)
        return waited_s

    def run(
        self, outputs: Sequence[str], feeds: Mapping[str, Array], stages: Stages | None = None
    ) -> list[Array]:
        """Run the graph on C-contiguous arrays; `stages` is told when they are copied.

        Raises one of session.RUN_ERRORS.
        """
        binding = self._session.io_binding()
        try:
            for name, array in feeds.items():
                binding.bind_cpu_input(name, array)
            for name in outputs:
                binding.bind_output(name, "cpu")
            binding.synchronize_inputs()
            self._take_turn(binding, stages)
            if stages:
                stages.enter(Stage.COPY_OUT)
            return [np.asarray(array) for array in binding.copy_outputs_to_cpu()]
        finally:  # an error that is being answered still has this frame
            binding.clear_binding_inputs()
            binding.clear_binding_outputs()

    def _take_turn(self, binding: ort.IOBinding, stages: Stages | None) -> None:
        asked_s = time.monotonic()
        if stages:
            stages.enter(Stage.WAITING)
        with self._turn:
            if stages:
                stages.enter(Stage.KERNELS)
            self._last.waited_s = time.monotonic() - asked_s
            self._session.run_with_iobinding(binding)

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Return memory for a batch, its content undefined: pinned where it can be had."""
        try:
            value = ort.OrtValue.ortvalue_from_shape_and_type(
                list(shape), np.dtype(dtype).type, memory_info=self._memory
            )
            array = np.asarray(value)  # a view, which keeps the value
        except Exception:  # noqa: BLE001 - ONNX Runtime's errors share no base; pinned memory is a bonus, plain memory serves
            self._memory = None
            return np.empty(shape, dtype)
        return array


def _pinned() -> Any:
    """Return where to allocate pinned memory for CUDA's devices; None where that cannot be had.

    The wheels do not register CUDA as a library of execution providers by themselves.
    """
    library = Path(ort.__file__).parent / "capi" / _CUDA_LIBRARY
    try:
        if not any(device.ep_name in STAGED for device in ort.get_ep_devices()):
            ort.register_execution_provider_library(CUDA, str(library))
        for device in ort.get_ep_devices():
            if device.ep_name in STAGED:
                return device.memory_info(ort.OrtDeviceMemoryType.HOST_ACCESSIBLE)
    except Exception:  # noqa: BLE001 - same
        return None
    return None
