import re

import onnxruntime as ort
import pytest

from worker.engine.devices import cpu_name, cuda_problem
from worker.engine.providers import (
    CPU,
    CUDA,
    LADDER,
    OPENVINO,
    TENSORRT,
    Choice,
    choices,
    only,
    provider_options,
)
from worker.errors import DeviceError, SettingsError
from worker.types import POLICIES

GPU_WHEEL = [TENSORRT, CUDA, CPU]
OPENVINO_WHEEL = [OPENVINO, CPU]
NO_DRIVER = "no NVIDIA driver"
ON_CPU = Choice(CPU, fallback=False)
FALLEN = Choice(CPU, fallback=True)
ON_CUDA = Choice(CUDA, fallback=False)
ON_TENSORRT = Choice(TENSORRT, fallback=False)
ON_OPENVINO = Choice(OPENVINO, fallback=False)


@pytest.mark.parametrize(
    ("policy", "available", "problem", "named", "expected"),
    [
        ("cpu", GPU_WHEEL, None, (), (ON_CPU,)),
        ("prefer-gpu", GPU_WHEEL, None, (), (ON_CUDA, FALLEN)),
        ("prefer-gpu", GPU_WHEEL, None, (CUDA,), (ON_CUDA, FALLEN)),
        ("prefer-gpu", GPU_WHEEL, None, (TENSORRT,), (ON_TENSORRT, ON_CUDA, FALLEN)),
        ("prefer-gpu", GPU_WHEEL, NO_DRIVER, (TENSORRT,), (ON_CPU,)),
        ("prefer-gpu", [CPU], None, (), (ON_CPU,)),
        ("prefer-gpu", OPENVINO_WHEEL, NO_DRIVER, (), (ON_OPENVINO, FALLEN)),
        ("require-gpu", GPU_WHEEL, None, (), (ON_CUDA,)),
        ("require-gpu", GPU_WHEEL, None, (TENSORRT,), (ON_TENSORRT, ON_CUDA)),
        ("require-cuda", GPU_WHEEL, None, (TENSORRT,), (ON_CUDA,)),
        ("require-tensorrt", GPU_WHEEL, None, (), (ON_TENSORRT,)),
        ("require-openvino", OPENVINO_WHEEL, NO_DRIVER, (), (ON_OPENVINO,)),
    ],
)
def test_the_policy_chooses_providers(
    policy: str,
    available: list[str],
    problem: str | None,
    named: tuple[str, ...],
    expected: tuple[Choice, ...],
) -> None:
    chosen = choices(policy, available=available, cuda_problem=lambda: problem, named=named)
    assert chosen == expected


@pytest.mark.parametrize(
    ("policy", "available", "problem", "message"),
    [
        ("require-gpu", GPU_WHEEL, NO_DRIVER, "engine.policy is require-gpu, but no NVIDIA driver"),
        ("require-gpu", [CPU], None, r"built without CUDA \(install onnxruntime-gpu\)"),
        ("require-gpu", OPENVINO_WHEEL, None, "built without CUDA"),
        ("require-cuda", GPU_WHEEL, NO_DRIVER, "is require-cuda, but no NVIDIA driver"),
        ("require-tensorrt", GPU_WHEEL, NO_DRIVER, "is require-tensorrt, but no NVIDIA driver"),
        ("require-openvino", GPU_WHEEL, None, r"OpenVINO \(install onnxruntime-openvino\)"),
        ("fastest", GPU_WHEEL, None, "engine.policy: 'fastest' is none of"),
    ],
)
def test_a_policy_that_cannot_be_met_is_refused_by_name(
    policy: str, available: list[str], problem: str | None, message: str
) -> None:
    with pytest.raises(DeviceError, match=message):
        choices(policy, available=available, cuda_problem=lambda: problem)


def test_every_provider_can_be_required_and_is_named_as_onnx_runtime_names_it() -> None:
    shorts = {f"require-{each.short.lower()}" for each in LADDER if each.name != CPU}
    assert set(POLICIES) == {"prefer-gpu", "require-gpu", "cpu", *shorts}
    known = set(ort.get_all_providers())
    assert {each.name for each in LADDER} - known <= {"ROCMExecutionProvider"}  # gone since 1.23


@pytest.mark.parametrize("provider", [each.name for each in LADDER])
def test_the_policy_of_one_provider_takes_no_other(provider: str) -> None:
    every = [each.name for each in LADDER]
    chosen = choices(only(provider), available=every, cuda_problem=lambda: None, named=every)
    assert chosen == (Choice(provider, fallback=False),)


def test_defaults_are_options_that_could_be_given() -> None:
    assert provider_options({each.name: each.defaults for each in LADDER}) == provider_options({})


def test_what_is_given_wins_over_a_default_and_keeps_the_others() -> None:
    options = provider_options({OPENVINO: {"device_type": "GPU.1"}})
    assert options[OPENVINO] == {"device_type": "GPU.1", "num_of_threads": "1"}
    assert options[CUDA] == {"cudnn_conv_algo_search": "HEURISTIC"}
    assert options[CPU] == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {CUDA: {"gpu_mem_limits": "1"}},
            f"{CUDA}.gpu_mem_limits: not an option; did you mean gpu_mem_limit?",
        ),
        ({CUDA: {"gpu_mem_limit": "2GB"}}, "gpu_mem_limit: cannot be '2GB'; expected"),
        ({CUDA: {"device_id": "1"}}, "device_id: not an option"),
        ({TENSORRT: {"trt_fp16_enable": "1"}}, "trt_fp16_enable: cannot be '1'; expected"),
        ({TENSORRT: {"trt_extra_plugin_lib_paths": "x.so"}}, "not an option"),
        ({CPU: {"threads": "2"}}, "not an option; those known are none"),
        ({"CUDAExecutionprovider": {}}, f"no execution provider; did you mean {CUDA}?"),
        ({"Metal": {}}, "no execution provider; those known are TensorrtExecutionProvider, "),
        ({CUDA: {"a": "1", "use_tf32": "yes"}}, "use_tf32: cannot be 'yes'"),
    ],
)
def test_an_option_that_onnx_runtime_would_stumble_over_is_refused_by_its_key(
    given: dict[str, dict[str, str]], message: str
) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        provider_options(given)


def test_all_wrong_options_are_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        provider_options({CUDA: {"a": "1", "use_tf32": "yes"}, "Metal": {}})
    assert len(str(caught.value).splitlines()) == 3


def test_the_driver_is_asked_without_raising() -> None:
    problem = cuda_problem()
    assert problem is None or "driver" in problem
    assert cpu_name().startswith("cpu-")
