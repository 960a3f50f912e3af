"""A strict ONNX Runtime session: it runs on the provider that was asked for, or it is refused.

ONNX Runtime falls back to the CPU silently; here its own fallback is off, what it really uses is
checked, node by node, and what is no CPU must compute a small graph as the CPU does. It must not
know manifests, rows or records.
"""

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as native

from worker.engine.artifacts import Hold, tensorrt_options
from worker.engine.binding import Bound
from worker.engine.contract import Signature, Tensor
from worker.engine.devices import cpu_name, cuda_device, cuda_problem
from worker.engine.distributions import installed, only_one
from worker.engine.providers import CPU, PROVIDERS, TENSORRT, Choice, choices, provider_options
from worker.engine.trouble import said, scrubbed
from worker.errors import DeviceError, ModelError, SettingsError
from worker.profiling.stages import Stage, Stages
from worker.types import EngineStamp

Array = NDArray[Any]

_NATIVE_ERRORS: tuple[type[Exception], ...] = tuple(
    kind for kind in vars(native).values() if isinstance(kind, type) and issubclass(kind, Exception)
)
"""Direct subclasses of Exception, one for each status code; none is a RuntimeError."""

RUN_ERRORS: tuple[type[Exception], ...] = (*_NATIVE_ERRORS, RuntimeError, ValueError, MemoryError)
"""What a run may raise."""

_PROBE_ERRORS: tuple[type[Exception], ...] = (ModelError, *RUN_ERRORS)

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

_PROBE = Path(__file__).with_name("probe.onnx")
"""Made by `scripts/make_probe.py`."""
_ALIKE = 1e-2
"""What a device may make of the probe otherwise than the CPU; TF32 has 10 bits of mantissa."""

Options = Mapping[str, Mapping[str, str]]
"""Execution provider -> its options."""


class Session:
    """One loaded graph on one provider; `run` may be called from several lanes at once."""

    def __init__(
        self, session: ort.InferenceSession, choice: Choice, path: Path, *, in_lane: bool = False
    ) -> None:
        self._session = session
        self._run = session.run
        self.path = path
        """Of the graph."""
        self.stages: Stages | None = None
        """Told where a run is; there while a profile is taken."""
        self._bound: Bound | None = None
        self.signature = Signature(
            tuple(Tensor(arg.name, arg.type, tuple(arg.shape)) for arg in session.get_inputs()),
            tuple(Tensor(arg.name, arg.type, tuple(arg.shape)) for arg in session.get_outputs()),
            dict(session.get_modelmeta().custom_metadata_map),
        )
        precision = _precision(self.signature)
        self.stamp = EngineStamp(choice.provider, _device(choice), precision, choice.fallback)
        self.nodes = dict(
            Counter(
                part.ep_name
                for part in session.get_provider_graph_assignment_info()
                for _ in part.get_nodes()
            )
        )
        """Execution provider -> nodes of the graph, as it was optimised, that run there."""
        self.in_lane = in_lane
        """Runs compute on the thread that calls, and on no other."""
        self.refused: tuple[str, ...] = ()
        """Why those that were tried before could not be used."""

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        """Run the graph. Raises one of RUN_ERRORS."""
        stages = self.stages
        if self._bound is not None:
            return self._bound.run(outputs, feeds, stages)
        if stages:
            stages.enter(Stage.KERNELS)
        arrays = self._run(outputs, feeds)
        if stages := self.stages:
            stages.enter(Stage.COPY_OUT)
        return [np.asarray(array) for array in arrays]

    def bind(self) -> Bound:
        """From now on runs are bound, and one at a time; return how."""
        self._bound = Bound(self._session, self.stamp.provider)
        return self._bound

    def close(self) -> None:
        """Give back what it has, on its device above all; it cannot be run any more."""
        self._bound = None
        del self._session, self._run

    @property
    def bound(self) -> Bound | None:
        """How runs are bound; None: lanes run side by side."""
        return self._bound

    @property
    def waited_s(self) -> float:
        """How long the last run of this thread waited for that of another."""
        return self._bound.waited_s if self._bound else 0.0

    def end_profile(self) -> tuple[Path, float]:
        """End ONNX Runtime's own profile, where the session was opened with one.

        Returns its file (Chrome's trace events), and the `time.time()` at which its `ts` is 0.
        """
        file = Path(self._session.end_profiling())
        return file, self._session.get_profiling_start_time_ns() / 1e9

    def shrink(self, outputs: Sequence[str], feeds: Mapping[str, Array]) -> None:
        """Run once more, and let ONNX Runtime give back what larger batches took before.

        Its arena never does so by itself. Where there is none nothing comes of it.
        """
        if self.stamp.provider == CPU:
            options = ort.RunOptions()
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
            with contextlib.suppress(*RUN_ERRORS):
                self._run(outputs, feeds, options)


def open_session(
    path: Path,
    *,
    policy: str,
    options: Mapping[str, str],
    given: Options = MappingProxyType({}),
    artifacts: Path | None = None,
    profile: Path | None = None,
) -> Session:
    """Open the model by its path (bytes would resolve external data against the working folder).

    `options` are ONNX Runtime's for a session, `given` those for execution providers. `artifacts`:
    the folder in which TensorRT keeps what it makes of this model; None: nowhere. `profile`: what
    the file of ONNX Runtime's own profile shall begin with; None: none is taken. Raises DeviceError
    (the policy cannot be met), SettingsError (options, or several ONNX Runtimes are installed) or
    ModelError (the file).
    """
    only_one(installed())
    settings, provided = _session_options(options), provider_options(given)
    tried = choices(
        policy, available=ort.get_available_providers(), cuda_problem=cuda_problem, named=given
    )
    refused: list[str] = []
    for choice in tried:
        try:
            kept, _held = _kept(choice.provider, artifacts)  # held until it is open
            provided[choice.provider].update(kept)
            _prove(choice, settings, provided)
            if profile is not None:
                settings.enable_profiling = True
                settings.profile_file_prefix = str(profile)
            session = _open(path, choice, settings, provided)
        except DeviceError as error:
            refused.append(str(error))
        else:
            session.refused = tuple(refused)
            return session
    raise DeviceError("; ".join(refused))


def _prove(choice: Choice, settings: ort.SessionOptions, provided: Options) -> None:
    """Let the CPU and what is none run the probe. Raises DeviceError when they do not agree."""
    provider = choice.provider
    if provider == CPU:
        return
    if PROVIDERS[provider].cuda:
        with contextlib.redirect_stdout(sys.stderr):  # it prints what it does not find
            ort.preload_dlls()
    image = np.linspace(-1, 1, 2 * 3 * 8 * 8, dtype=np.float32).reshape(2, 3, 8, 8)
    try:
        scores, expected = (
            _open(_PROBE, each, settings, provided).run(("scores",), {"image": image})[0]
            for each in (choice, Choice(CPU, fallback=False))
        )
    except _PROBE_ERRORS as error:
        raise DeviceError(f"{provider} cannot run a small graph: {said(error)}") from None
    if not np.allclose(scores, expected, rtol=_ALIKE, atol=_ALIKE):
        off = float(np.max(np.abs(scores - expected)))
        raise DeviceError(f"{provider} computes a small graph otherwise than the CPU, by {off:.3g}")


def _open(path: Path, choice: Choice, settings: ort.SessionOptions, provided: Options) -> Session:
    names = (choice.provider, *PROVIDERS[choice.provider].beside)
    pools = (settings.intra_op_num_threads, settings.inter_op_num_threads)
    try:
        session = ort.InferenceSession(
            str(path),
            sess_options=settings,
            providers=[(name, dict(provided[name])) for name in names],
            enable_fallback=0,
            read_config_from_model=0,
        )
        opened = Session(session, choice, path, in_lane=names == (CPU,) and pools == (1, 1))
    except _MODEL_ERRORS as error:
        raise ModelError(_sentence(error), file=str(path)) from None
    except _OPEN_ERRORS as error:
        if choice.provider == CPU:
            raise ModelError(_sentence(error), file=str(path)) from None
        raise DeviceError(f"{choice.provider}: {_sentence(error)}") from None
    session.disable_fallback()
    if (used := session.get_providers()[0]) != choice.provider:
        why = _missing(choice.provider)
        raise DeviceError(f"{choice.provider} was asked for and ONNX Runtime took {used}{why}")
    if choice.provider != CPU and not opened.nodes.get(choice.provider):
        raise DeviceError(f"{choice.provider} took none of the graph's nodes: {opened.nodes}")
    return opened


def _missing(provider: str) -> str:
    """Return why ONNX Runtime does not load a provider; by itself it only logs that."""
    if not PROVIDERS[provider].cuda:
        return ""
    name = f"libonnxruntime_providers_{PROVIDERS[provider].short.lower()}.so"
    try:
        ort.register_execution_provider_library(
            provider, str(Path(ort.__file__).parent / "capi" / name)
        )
    except _OPEN_ERRORS as error:
        return f": {_cut(error)} (pip install 'darkroom[cuda]' has NVIDIA's libraries)"
    return ""


def _kept(provider: str, artifacts: Path | None) -> tuple[dict[str, str], Hold | None]:
    """Return the options by which a provider keeps what takes long to make; hold where."""
    if provider != TENSORRT or artifacts is None or (gpu := cuda_device()) is None:
        return {}, None
    try:
        return tensorrt_options(artifacts, gpu.compute_capability)
    except OSError:  # what cannot be kept is made again
        return {}, None


def _session_options(options: Mapping[str, str]) -> ort.SessionOptions:
    """Return the options. Raises one SettingsError for all that are not known or cannot be set."""
    settings = ort.SessionOptions()
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
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
    """Return the GPU's UUID where the provider runs on CUDA; what others run on is not known."""
    on_cuda = any(each.cuda for each in PROVIDERS.values() if each.name == choice.provider)
    gpu = cuda_device() if on_cuda else None
    return cpu_name() if gpu is None else gpu.uuid


def _precision(signature: Signature) -> str:
    """Return the precision at the edges of the graph; what it does inside it does not tell."""
    edges = {tensor.dtype for tensor in (*signature.inputs, *signature.outputs)}
    return "fp16" if "tensor(float16)" in edges else "fp32"


def _sentence(error: Exception) -> str:
    """Return one line of what ONNX Runtime says, without its codes and paths."""
    return f"ONNX Runtime cannot open it: {_cut(error)}"


def _cut(error: Exception) -> str:
    text = scrubbed(str(error))
    for mark in ("failed:", "Status Message: ", "with error: "):
        text = text.rpartition(mark)[2]
    return text or type(error).__name__
