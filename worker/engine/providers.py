"""The execution providers as data, and from the policy of the settings to those to try, in order.

A seam: one row for each provider; nothing here opens a session. Pure: the worker's side reads it
too, to check settings and to tell what engines will take.
"""

import difflib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from worker.errors import DeviceError, SettingsError
from worker.types import POLICIES

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
OPENVINO = "OpenVINOExecutionProvider"

_NUMBER = r"\d+"
_SWITCH = r"[Tt]rue|[Ff]alse"
_BIT = r"[01]"
_ARENA = r"kNextPowerOfTwo|kSameAsRequested"
_SHAPES = r"\w+:\d+(x\d+)*(,\w+:\d+(x\d+)*)*"


class Provider(NamedTuple):
    """One execution provider."""

    name: str
    """ONNX Runtime's."""
    short: str
    """As people say it: in `require-NAME` and ORT_EXECUTION_PROVIDER (any case)."""
    distribution: str
    """What to install to have it."""
    options: Mapping[str, str]
    """Keys that may be given -> the pattern of their values. None of them loads code or writes a
    file, none chooses the device where `engine.devices` does, and none needs a pointer."""
    gpu: bool = False
    """`require-gpu` is content with it."""
    cuda: bool = False
    """It needs CUDA's driver, and its libraries loaded."""
    on_request: bool = False
    """Tried only when the policy names it or options for it are given."""
    beside: tuple[str, ...] = ()
    """Providers for the nodes that it does not take, before the CPU."""
    defaults: Mapping[str, str] = MappingProxyType({})


LADDER = (
    Provider(
        TENSORRT,
        "TensorRT",
        "onnxruntime-gpu and tensorrt",
        {
            "trt_bf16_enable": _SWITCH,
            "trt_builder_optimization_level": r"[0-5]",
            "trt_fp16_enable": _SWITCH,
            "trt_layer_norm_fp32_fallback": _SWITCH,
            "trt_max_partition_iterations": _NUMBER,
            "trt_max_workspace_size": _NUMBER,
            "trt_min_subgraph_size": _NUMBER,
            "trt_profile_max_shapes": _SHAPES,
            "trt_profile_min_shapes": _SHAPES,
            "trt_profile_opt_shapes": _SHAPES,
            "trt_sparsity_enable": _SWITCH,
        },
        gpu=True,
        cuda=True,
        on_request=True,  # it builds engines for minutes before the first record
        beside=(CUDA,),
    ),
    Provider(
        CUDA,
        "CUDA",
        "onnxruntime-gpu",
        {
            "arena_extend_strategy": _ARENA,
            "cudnn_conv1d_pad_to_nc1d": _BIT,
            "cudnn_conv_algo_search": r"EXHAUSTIVE|HEURISTIC|DEFAULT",
            "cudnn_conv_use_max_workspace": _BIT,
            "enable_skip_layer_norm_strict_mode": _BIT,
            "fuse_conv_bias": _BIT,
            "gpu_mem_limit": _NUMBER,
            "prefer_nhwc": _BIT,
            "sdpa_kernel": _NUMBER,
            "tunable_op_enable": _BIT,
            "tunable_op_max_tuning_duration_ms": _NUMBER,
            "tunable_op_tuning_enable": _BIT,
            "use_tf32": _BIT,
        },
        gpu=True,
        cuda=True,
        # EXHAUSTIVE, its own default, takes 300-1300 ms for each new shape of a batch.
        defaults={"cudnn_conv_algo_search": "HEURISTIC"},
    ),
    Provider(
        "MIGraphXExecutionProvider",
        "MIGraphX",
        "onnxruntime-migraphx",
        {
            "device_id": _NUMBER,
            "migraphx_exhaustive_tune": _SWITCH,
            "migraphx_fp16_enable": _SWITCH,
            "migraphx_mem_limit": _NUMBER,
        },
        gpu=True,
    ),
    Provider(
        "ROCMExecutionProvider",
        "ROCm",
        "onnxruntime-rocm",
        {
            "arena_extend_strategy": _ARENA,
            "device_id": _NUMBER,
            "gpu_mem_limit": _NUMBER,
            "miopen_conv_exhaustive_search": _BIT,
            "tunable_op_enable": _BIT,
            "tunable_op_tuning_enable": _BIT,
        },
        gpu=True,
    ),
    Provider(
        OPENVINO,
        "OpenVINO",
        "onnxruntime-openvino",
        {
            "device_type": r"(CPU|GPU|NPU)(\.\d+)?|(AUTO|HETERO|MULTI):[A-Z0-9.,]+",
            "disable_dynamic_shapes": _SWITCH,
            "enable_opencl_throttling": _SWITCH,
            "enable_qdq_optimizer": _SWITCH,
            "model_priority": r"LOW|MEDIUM|HIGH|DEFAULT",
            "num_of_threads": _NUMBER,
            "num_streams": _NUMBER,
            "precision": r"FP32|FP16|ACCURACY",
        },
        # Lanes are the parallelism, as with the CPU's own provider.
        defaults={"device_type": "CPU", "num_of_threads": "1"},
    ),
    Provider(
        "DmlExecutionProvider",
        "DirectML",
        "onnxruntime-directml",
        {
            "device_filter": r"gpu|npu|any",
            "device_id": _NUMBER,
            "disable_metacommands": _SWITCH,
            "performance_preference": r"default|high_performance|minimum_power",
        },
        gpu=True,
    ),
    Provider(
        "CoreMLExecutionProvider",
        "CoreML",
        "onnxruntime",
        {
            "AllowLowPrecisionAccumulationOnGPU": _BIT,
            "EnableOnSubgraphs": _BIT,
            "MLComputeUnits": r"CPUOnly|CPUAndNeuralEngine|CPUAndGPU|ALL",
            "ModelFormat": r"NeuralNetwork|MLProgram",
            "RequireStaticInputShapes": _BIT,
            "SpecializationStrategy": r"Default|FastPrediction",
        },
    ),
    Provider(CPU, "CPU", "onnxruntime", {}),
)
"""Best first. Code of their own have only TensorRT, CUDA, OpenVINO and the CPU; the others are
tried where the ONNX Runtime that is installed has them, and proven or refused like all."""

PROVIDERS = {provider.name: provider for provider in LADDER}


class Choice(NamedTuple):
    """One provider to try."""

    provider: str
    fallback: bool
    """A device that was wanted and is there could not be used."""


def choices(
    policy: str,
    *,
    available: Collection[str],
    cuda_problem: Callable[[], str | None],
    named: Collection[str] = (),
) -> tuple[Choice, ...]:
    """Return what to try, best first.

    `available`: what ONNX Runtime was built with; `named`: providers that options were given for.
    CUDA is never named unless its driver answers: ONNX Runtime would print errors and run on the
    CPU. Raises DeviceError when the policy requires what is not there.
    """
    if policy not in POLICIES:
        raise DeviceError(f"engine.policy: {policy!r} is none of {', '.join(POLICIES)}")
    if policy == "cpu":
        return (Choice(CPU, fallback=False),)
    wanted = [each for each in LADDER if _is_wanted(each, policy, named)]
    problems = {each.name: _problem(each, available, cuda_problem) for each in wanted}
    usable = tuple(Choice(name, fallback=False) for name, why in problems.items() if why is None)
    if policy == "prefer-gpu":
        return (*usable, Choice(CPU, fallback=bool(usable)))
    if not usable:
        there = [each.name for each in wanted if each.name in available]
        why = problems[there[0]] if there else problems[wanted[0].name]
        raise DeviceError(f"engine.policy is {policy}, but {why}")
    return usable


def only(provider: str) -> str:
    """Return the policy that is content with this provider alone."""
    return "cpu" if provider == CPU else f"require-{PROVIDERS[provider].short.lower()}"


def provider_options(given: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """Return the options of every provider: its defaults, and what was given.

    Raises one SettingsError for all keys and values that are not known.
    """
    problems = [f"engine.provider_options.{problem}" for problem in option_problems(given)]
    if problems:
        raise SettingsError("\n".join(problems))
    return {each.name: {**each.defaults, **given.get(each.name, {})} for each in LADDER}


def option_problems(given: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """Yield what is wrong with options: what ONNX Runtime makes of a typo is a session on the CPU.

    Each begins with the provider, and the key where there is one.
    """
    for name, options in given.items():
        if name not in PROVIDERS:
            yield f"{name}: no execution provider{_nearest(name, PROVIDERS)}"
            continue
        known = PROVIDERS[name].options
        for key, value in options.items():
            if key not in known:
                yield f"{name}.{key}: not an option{_nearest(key, known)}"
            elif not re.fullmatch(known[key], value):
                yield f"{name}.{key}: cannot be {value!r}; expected {known[key]}"


def _is_wanted(each: Provider, policy: str, named: Collection[str]) -> bool:
    if policy == f"require-{each.short.lower()}":
        return True
    if each.name == CPU or (each.on_request and each.name not in named):
        return False
    return policy == "prefer-gpu" or (policy == "require-gpu" and each.gpu)


def _problem(
    each: Provider, available: Collection[str], cuda_problem: Callable[[], str | None]
) -> str | None:
    """Return why a provider cannot be used here, as far as that can be known without a session."""
    if each.name not in available:
        return (
            f"the onnxruntime installed here was built without {each.short} "
            f"(install {each.distribution})"
        )
    return cuda_problem() if each.cuda else None


def _nearest(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    names = ", ".join(known) or "none"
    return f"; did you mean {close[0]}?" if close else f"; those known are {names}"
