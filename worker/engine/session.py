"""A strict ONNX Runtime session: it runs on the provider that was asked for, or it is refused.

ONNX Runtime falls back to the CPU silently; here its own fallback is off and what it really uses
is checked. It must not know manifests, rows or records.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as native

from worker.engine.artifacts import tensorrt_options
from worker.engine.binding import Bound
from worker.engine.contract import Signature, Tensor
from worker.engine.devices import compute_capability, cpu_name, cuda_problem
from worker.engine.providers import CPU, TENSORRT, Choice, choices
from worker.errors import DeviceError, ModelError, SettingsError
from worker.types import EngineStamp

Array = NDArray[Any]

_NATIVE_ERRORS: tuple[type[Exception], ...] = tuple(
    kind for kind in vars(native).values() if isinstance(kind, type) and issubclass(kind, Exception)
)
"""Direct subclasses of Exception, one for each status code; none is a RuntimeError."""

RUN_ERRORS: tuple[type[Exception], ...] = (*_NATIVE_ERRORS, RuntimeError, ValueError, MemoryError)
"""What a run may raise."""

_OPEN_ERRORS: tuple[type[Exception], ...] = (*_NATIVE_ERRORS, RuntimeError, ValueError)

_MODEL_ERRORS = (
    native.InvalidProtobuf,
    native.InvalidGraph,
    native.InvalidArgument,
    native.NoModel,
    native.NoSuchFile,
    native.NotImplemented,
)
"""What opening a file may raise that is the file's fault on any device."""

_OPTIMISATION = {
    "ORT_DISABLE_ALL": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "ORT_ENABLE_BASIC": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "ORT_ENABLE_EXTENDED": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "ORT_ENABLE_ALL": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_EXECUTION = {
    "ORT_SEQUENTIAL": ort.ExecutionMode.ORT_SEQUENTIAL,
    "ORT_PARALLEL": ort.ExecutionMode.ORT_PARALLEL,
}
_BOOLEANS = {"0": False, "1": True, "false": False, "true": True}

_ATTRIBUTES: dict[str, Callable[[str], Any]] = {
    "intra_op_num_threads": int,
    "inter_op_num_threads": int,
    "log_severity_level": int,
    "graph_optimization_level": _OPTIMISATION.__getitem__,
    "execution_mode": _EXECUTION.__getitem__,
    "enable_cpu_mem_arena": _BOOLEANS.__getitem__,
    "enable_mem_pattern": _BOOLEANS.__getitem__,
    "enable_mem_reuse": _BOOLEANS.__getitem__,
    "use_deterministic_compute": _BOOLEANS.__getitem__,
}
_ENTRIES = frozenset(
    {
        "session.intra_op.allow_spinning",
        "session.inter_op.allow_spinning",
        "session.intra_op_thread_affinities",
        "session.force_spinning_stop",
        "session.set_denormal_as_zero",
        "session.disable_prepacking",
        "session.disable_quant_qdq",
        "session.disable_aot_function_inlining",
        "session.enable_quant_qdq_cleanup",
        "session.qdqisint8allowed",
        "session.x64quantprecision",
        "session.use_device_allocator_for_initializers",
        "optimization.enable_gelu_approximation",
        "optimization.disable_specified_optimizers",
    }
)
"""None of these loads code, reads or writes a file; those that do are not the settings' to give."""

_DEFAULTS = {
    "intra_op_num_threads": "1",  # lanes are the parallelism; measured best of six layouts
    "inter_op_num_threads": "1",
    "log_severity_level": "3",
    "session.intra_op.allow_spinning": "0",
    "session.inter_op.allow_spinning": "0",
}


class Session:
    """One loaded graph on one provider; `run` may be called from several lanes at once."""

    def __init__(self, session: ort.InferenceSession, choice: Choice) -> None:
        self._session = session
        self._bound: Bound | None = None
        self.signature = Signature(
            tuple(Tensor(arg.name, arg.type, tuple(arg.shape)) for arg in session.get_inputs()),
            tuple(Tensor(arg.name, arg.type, tuple(arg.shape)) for arg in session.get_outputs()),
            dict(session.get_modelmeta().custom_metadata_map),
        )
        precision = _precision(self.signature)
        self.stamp = EngineStamp(choice.provider, _device(choice), precision, choice.fallback)

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        """Run the graph. Raises one of RUN_ERRORS."""
        if self._bound is not None:
            return self._bound.run(outputs, feeds)
        return [np.asarray(array) for array in self._session.run(outputs, feeds)]

    def bind(self) -> None:
        """From now on runs are bound, and one at a time."""
        self._bound = Bound(self._session, self.stamp.provider)

    @property
    def bound(self) -> Bound | None:
        """How runs are bound; None: lanes run side by side."""
        return self._bound

    @property
    def waited_s(self) -> float:
        """How long the last run of this thread waited for that of another."""
        return self._bound.waited_s if self._bound else 0.0


def open_session(
    path: Path, *, policy: str, options: Mapping[str, str], artifacts: Path | None = None
) -> Session:
    """Open the model by its path (bytes would resolve external data against the working folder).

    `artifacts`: the folder in which TensorRT keeps what it makes of this model; None: nowhere.
    Raises DeviceError (the policy cannot be met), SettingsError (options) or ModelError (the file).
    """
    settings = _session_options(options)
    tried = choices(policy, available=ort.get_available_providers(), cuda_problem=cuda_problem)
    refused: DeviceError | None = None
    for choice in tried:
        try:
            return _open(path, choice, settings, artifacts)
        except DeviceError as error:
            refused = error
    assert refused is not None
    raise refused


def _open(
    path: Path, choice: Choice, settings: ort.SessionOptions, artifacts: Path | None
) -> Session:
    try:
        session = ort.InferenceSession(
            str(path),
            sess_options=settings,
            providers=[(choice.provider, _kept(choice.provider, artifacts))],
            enable_fallback=0,
            read_config_from_model=0,
        )
        opened = Session(session, choice)
    except _MODEL_ERRORS as error:
        raise ModelError(_sentence(error), file=str(path)) from None
    except _OPEN_ERRORS as error:
        if choice.provider == CPU:
            raise ModelError(_sentence(error), file=str(path)) from None
        raise DeviceError(f"{choice.provider}: {_sentence(error)}") from None
    session.disable_fallback()
    if (used := session.get_providers()[0]) != choice.provider:
        raise DeviceError(f"{choice.provider} was asked for and ONNX Runtime took {used}")
    return opened


def _kept(provider: str, artifacts: Path | None) -> dict[str, str]:
    """Return the options by which a provider keeps what takes long to make."""
    if provider != TENSORRT or artifacts is None:
        return {}
    return tensorrt_options(artifacts, compute_capability=compute_capability())


def _session_options(options: Mapping[str, str]) -> ort.SessionOptions:
    """Return the options. Raises one SettingsError for all that are not known or cannot be set."""
    settings = ort.SessionOptions()
    problems = []
    for name, value in {**_DEFAULTS, **options}.items():
        if name in _ENTRIES:
            settings.add_session_config_entry(name, value)
        elif name in _ATTRIBUTES:
            try:
                setattr(settings, name, _ATTRIBUTES[name](value))
            except (KeyError, ValueError, TypeError):
                problems.append(f"engine.session.{name}: cannot be {value!r}")
        else:
            known = ", ".join(sorted({*_ENTRIES, *_ATTRIBUTES}))
            problems.append(f"engine.session.{name}: not an option; those known are {known}")
    if problems:
        raise SettingsError("\n".join(problems))
    return settings


def _device(choice: Choice) -> str:
    return cpu_name() if choice.provider == CPU else "cuda:0"


def _precision(signature: Signature) -> str:
    """Return the precision at the edges of the graph; what it does inside it does not tell."""
    edges = {tensor.dtype for tensor in (*signature.inputs, *signature.outputs)}
    return "fp16" if "tensor(float16)" in edges else "fp32"


def _sentence(error: Exception) -> str:
    """Return one line of what ONNX Runtime says, without its codes and paths."""
    text = " ".join(str(error).split())
    for mark in ("failed:", "Status Message: "):
        text = text.rpartition(mark)[2]
    return f"ONNX Runtime cannot open it: {text or type(error).__name__}"
