from collections.abc import Sequence
from typing import Any, NoReturn

import pytest

from worker.config_sections import EngineSettings, Settings
from worker.errors import DeviceError
from worker.inference.devices import (
    NO_DEVICES,
    PROVIDER,
    DeviceChoice,
    Devices,
    choose,
    devices_of,
    judge,
    on_gpu,
)
from worker.models.options import RegistryOptions
from worker.protocol.survey import NO_DRIVER, Gpu, Survey

GIB = 1 << 30


def gpu(number: int, **facts: Any) -> Gpu:
    """A whole GPU that is usable, with other facts."""
    uuid = f"GPU-{number}{number}"
    known: dict[str, Any] = {
        "listed": True,
        "compute_capability": (8, 0),
        "pci_bus_id": f"0000:{number:02}:00.0",
        "memory_total_bytes": 80 * GIB,
        "memory_used_bytes": GIB,
        "temperature_c": 40,
        "utilization_pct": 0,
        "numa_node": 0,
        "numa_distance": 10,
    }
    return Gpu(uuid, uuid, f"A100 {number}", **{**known, **facts})


def mig(number: int, of: int, **facts: Any) -> Gpu:
    """An instance of a GPU; CUDA lists one of them at most."""
    facts = {"listed": False, "utilization_pct": None, **facts}
    return gpu(of, **facts)._replace(uuid=f"MIG-{number}")


def seen(*gpus: Gpu, **more: Any) -> Survey:
    return Survey(gpus, onnxruntime="1.31.1", **{"providers": (PROVIDER,), **more})


def problems(survey: Survey, environ: dict[str, str] | None = None, **engine: Any) -> list[str]:
    """Return why GPUs are not usable, in the order in which they were seen."""
    verdicts = judge(survey, EngineSettings(**engine), environ or {})
    found = {verdict.gpu.uuid: verdict.problem or "" for verdict in verdicts}
    return [found[gpu.uuid] for gpu in survey.gpus]


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({}, ""),
        ({"temperature_c": 84}, ""),
        ({"temperature_c": 85}, "it is at 85 °C (engine.max_temperature_c is 85)"),
        ({"memory_used_bytes": 71 * GIB}, ""),
        (
            {"memory_used_bytes": 72 * GIB},
            "90 % of its memory is in use (engine.max_memory_used_pct is 90)",
        ),
        ({"temperature_c": None, "memory_used_bytes": None}, ""),
        ({"memory_total_bytes": None}, ""),
        ({"listed": False}, "the CUDA driver does not list it"),
        ({"problem": "GPU is lost", "temperature_c": 99}, "GPU is lost"),
    ],
)
def test_a_gpu_is_usable_or_says_why_not(facts: dict[str, Any], said: str) -> None:
    assert problems(seen(gpu(1, **facts))) == [said]


def test_the_bounds_are_settings() -> None:
    warm = seen(gpu(1, temperature_c=60, memory_used_bytes=40 * GIB))
    assert problems(warm, max_temperature_c=60)[0].startswith("it is at 60 °C")
    assert problems(warm, max_memory_used_pct=50)[0].startswith("50 % of its memory")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            {"providers": ("CPUExecutionProvider",)},
            "onnxruntime 1.31.1 has no CUDAExecutionProvider (install onnxruntime-gpu)",
        ),
        ({"cuda_problem": "cuInit says 999"}, "cuInit says 999"),
    ],
)
def test_what_stops_all_gpus_is_told_of_each(more: dict[str, Any], said: str) -> None:
    assert problems(seen(gpu(1), gpu(2), **more)) == [said, said]


STOPS = "names no GPU: CUDA reads no further)"


@pytest.mark.parametrize(
    ("value", "visible", "note"),
    [
        ("0", {1}, ""),
        ("1,0", {1, 2}, ""),
        ("GPU-2", {2}, ""),
        (" GPU-11 , 1", {1, 2}, ""),
        ("MIG-7", set(), ""),
        ("2", {7, 8}, ""),
        ("GPU-33", {7, 8}, ""),
        ("0,9,1", {1}, f"(9 {STOPS}"),
        ("0,GPU-9,1", {1}, f"(GPU-9 {STOPS}"),
        ("", set(), f"(an empty word {STOPS}"),
        ("NoDevFiles", set(), f"(NoDevFiles {STOPS}"),
        ("-1", set(), f"(-1 {STOPS}"),
        ("GPU-", set(), f"(GPU- {STOPS}"),
    ],
)
def test_cuda_visible_devices_hides_what_it_does_not_name(
    value: str, visible: set[int], note: str
) -> None:
    """Two whole GPUs, and two instances of a third, as the driver then lists them."""
    listed = {number: number in visible for number in (1, 2)}
    gpus = (gpu(1, listed=listed[1]), gpu(2, listed=listed[2]), mig(7, 3), mig(8, 3))
    found = problems(seen(*gpus), {"CUDA_VISIBLE_DEVICES": value})
    hidden = f"CUDA_VISIBLE_DEVICES={value} hides it" + (f" {note}" if note else "")
    expected = {number: "" if number in visible else hidden for number in (1, 2, 7, 8)}
    if value == "MIG-7":
        expected[7] = ""
    assert found == list(expected.values())


def test_mig_instances_that_cuda_does_not_list_beside_another_can_be_given() -> None:
    assert problems(seen(mig(1, 1, listed=True), mig(2, 1), mig(3, 1))) == ["", "", ""]


@pytest.mark.parametrize(
    "better_first",
    [
        [gpu(2, compute_capability=(9, 0), utilization_pct=90, temperature_c=80), gpu(1)],
        [gpu(2), gpu(1, utilization_pct=5)],
        [gpu(2, temperature_c=70), gpu(1, utilization_pct=5)],
        [gpu(2, temperature_c=39, numa_distance=21), gpu(1)],
        [gpu(2), gpu(1, numa_distance=21)],
        [gpu(1), gpu(2)],
        [gpu(2), gpu(1, utilization_pct=None)],
        [gpu(2, compute_capability=(8, 6)), gpu(1)],
        [gpu(2), gpu(1, compute_capability=None)],
        [gpu(2, utilization_pct=99), gpu(1, temperature_c=99)],
    ],
)
def test_the_better_gpu_comes_first(better_first: Sequence[Gpu]) -> None:
    for order in (better_first, better_first[::-1]):
        verdicts = judge(seen(*order), EngineSettings(), {})
        assert [verdict.gpu for verdict in verdicts] == list(better_first)


def chosen(devices: Any, *gpus: Gpu, policy: Any = "prefer-gpu") -> list[str]:
    found = choose(seen(*gpus), EngineSettings(devices=devices, policy=policy), {})
    assert (found.problem is None) == bool(found.chosen)
    return [choice.uuid for choice in found.chosen]


HOT = gpu(4, temperature_c=90)


@pytest.mark.parametrize(
    ("devices", "uuids"),
    [
        ("auto", ["GPU-22"]),
        ("all", ["GPU-22", "GPU-11"]),
        (("GPU-11",), ["GPU-11"]),
        (("GPU-11", "GPU-22", "GPU-11"), ["GPU-11", "GPU-22"]),
        (("GPU-44", "GPU-11"), ["GPU-11"]),
        (("GPU-44",), []),
    ],
)
def test_the_settings_choose_of_what_is_usable(devices: Any, uuids: list[str]) -> None:
    assert chosen(devices, gpu(1, utilization_pct=50), gpu(2), HOT) == uuids


def test_a_named_gpu_that_is_not_here_is_an_error_that_tells_what_is() -> None:
    with pytest.raises(DeviceError) as told:
        chosen(("GPU-22", "GPU-99", "GPU-2"), gpu(1), gpu(2))
    assert str(told.value) == (
        "engine.devices names what is not here: GPU-99, GPU-2; "
        "there is GPU-11 (A100 1), GPU-22 (A100 2)"
    )
    with pytest.raises(DeviceError, match="there is no GPU: the driver is ill"):
        choose(seen(cuda_problem="the driver is ill"), EngineSettings(devices=("GPU-1",)), {})


@pytest.mark.parametrize(
    ("survey", "environ", "said"),
    [
        (seen(HOT), {}, "GPU-44 (A100 4): it is at 90 °C"),
        (seen(cuda_problem="cuInit: 100"), {}, "cuInit: 100"),
        (
            seen(cuda_problem="cuInit: 100"),
            {"CUDA_VISIBLE_DEVICES": "", "NVIDIA_VISIBLE_DEVICES": "void"},
            "cuInit: 100 (CUDA_VISIBLE_DEVICES=, NVIDIA_VISIBLE_DEVICES=void)",
        ),
        (seen(cuda_problem="cuInit: 100"), {"NVIDIA_VISIBLE_DEVICES": "all"}, "cuInit: 100"),
    ],
)
def test_that_none_is_usable_is_told_and_refused_where_one_is_required(
    survey: Survey, environ: dict[str, str], said: str
) -> None:
    found = choose(survey, EngineSettings(), environ)
    assert found.chosen == ()
    assert found.problem is not None
    assert found.problem.startswith(said)
    with pytest.raises(DeviceError, match=r"require-gpu, but no GPU is usable: ") as refused:
        choose(survey, EngineSettings(policy="require-gpu"), environ)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("survey", "environ", "policy", "fallback"),
    [
        (seen(gpu(1)), {}, "prefer-gpu", False),
        (seen(HOT), {}, "prefer-gpu", True),
        (seen(gpu(1), HOT), {}, "prefer-gpu", False),
        (seen(HOT), {}, "cpu", False),
        (seen(gpu(1), providers=("CPUExecutionProvider",)), {}, "prefer-gpu", True),
        (seen(gpu(1, problem="GPU is lost", listed=False)), {}, "prefer-gpu", True),
        (seen(gpu(1, listed=False)), {"CUDA_VISIBLE_DEVICES": ""}, "prefer-gpu", False),
        (seen(gpu(1, listed=False), HOT), {"CUDA_VISIBLE_DEVICES": "1"}, "prefer-gpu", True),
        (Survey(cuda_problem="it hangs", answered=False), {}, "prefer-gpu", True),
        (seen(cuda_problem="cuInit: 100"), {}, "prefer-gpu", False),
        (seen(cuda_problem=NO_DRIVER), {}, "prefer-gpu", False),
    ],
)
def test_where_a_gpu_is_there_and_cannot_be_used_what_serves_is_a_fallback(
    survey: Survey, environ: dict[str, str], policy: Any, *, fallback: bool
) -> None:
    assert choose(survey, EngineSettings(policy=policy), environ).fallback is fallback


@pytest.mark.parametrize(
    ("policy", "given"),
    [
        ("prefer-gpu", "require-gpu"),
        ("require-gpu", "require-gpu"),
        ("require-tensorrt", "require-tensorrt"),
    ],
)
def test_an_engine_that_is_given_a_gpu_must_use_it_by_what_is_required(
    policy: str, given: str
) -> None:
    assert on_gpu(policy) == given


def never() -> NoReturn:
    raise AssertionError("a process is started for nothing")


def test_without_a_driver_or_a_wish_for_one_nothing_is_started() -> None:
    absent = Devices(problem=NO_DRIVER)
    assert devices_of(EngineSettings(), found=lambda: False, look=never) == absent
    required = EngineSettings(policy="require-gpu")
    assert devices_of(required, found=lambda: False, look=never) == absent
    assert devices_of(EngineSettings(policy="cpu"), found=lambda: True, look=never) == NO_DEVICES


def test_with_a_driver_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = devices_of(EngineSettings(), found=lambda: True, look=lambda: seen(gpu(1)))
    assert found.chosen == (DeviceChoice("GPU-11", "A100 1"),)
    assert found.first == "GPU-11"


def test_engines_do_not_ask_a_driver_that_did_not_answer() -> None:
    for answered, policy in ((True, "prefer-gpu"), (False, "cpu")):
        survey = Survey(cuda_problem="it hangs", answered=answered)
        devices = choose(survey, EngineSettings(), {})
        options = RegistryOptions.of(Settings(), on_cpu=1, failpoint=None, devices=devices)
        assert options.policy == policy
