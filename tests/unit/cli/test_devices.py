import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.conftest import Darkroom
from worker.cli.devices import _cpu_name
from worker.inference.budget import cores
from worker.protocol.survey import NO_DRIVER, Gpu, Survey

PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
BARE = Survey((), NO_DRIVER, "not installed", "1.31.1", PROVIDERS, "cpu-x86_64")
COOL = Gpu("GPU-1", "GPU-1", "H100", listed=True, compute_capability=(9, 0), temperature_c=40)
HOT = Gpu(
    "MIG-2", "GPU-2", "H100 slice", compute_capability=(9, 0), memory_total_bytes=10**10,
    memory_used_bytes=10**9, temperature_c=90, utilization_pct=7, numa_node=1, numa_distance=21,
)  # fmt: skip
TWO = Survey((HOT, COOL), None, None, "1.31.1", PROVIDERS, "cpu-x86_64")


@pytest.fixture(autouse=True)
def _visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def plays(monkeypatch: pytest.MonkeyPatch, survey: Survey, **engine: str) -> None:
    monkeypatch.setattr("worker.inference.survey.survey", lambda: survey)
    for name, value in engine.items():
        monkeypatch.setenv(f"DARKROOM_ENGINE__{name.upper()}", value)


def document(darkroom: Darkroom, code: int = 0) -> Any:
    result = darkroom("devices", "--json")
    assert result.exit_code == code
    return json.loads(result.stdout)


def test_a_machine_without_gpu_is_told_what_its_cpu_is(
    darkroom: Darkroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    plays(monkeypatch, BARE)
    found = document(darkroom)
    assert found["gpus"] == []
    assert found["cpu"]["cores"] == cores()
    assert found["chosen"] == {
        "policy": "prefer-gpu",
        "devices": ["cpu-x86_64"],
        "provider": "CPUExecutionProvider",
        "lanes": cores(),
        "problem": NO_DRIVER,
        "refused": None,
    }
    shown = darkroom("devices").stdout
    assert f"no NVIDIA GPU: {NO_DRIVER}" in shown
    assert f"takes CPUExecutionProvider on cpu-x86_64, with {cores()} lanes" in shown


def test_gpus_are_shown_with_what_is_known_and_why_one_is_not_usable(
    darkroom: Darkroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    plays(monkeypatch, TWO)
    shown = darkroom("devices").stdout
    assert "GPU-1  H100\n  compute capability 9.0, 40 °C\n  usable\n" in shown
    assert (
        "MIG-2  H100 slice\n  MIG instance of GPU-2, compute capability 9.0, "
        "1.0 GB in use of 10.0 GB, load 7 %, 90 °C, NUMA node 1, distance 21\n"
        "  not usable: it is at 90 °C (engine.max_temperature_c is 85)\n"
    ) in shown
    assert "takes CUDAExecutionProvider on GPU-1, with" in shown
    found = document(darkroom)
    assert [(gpu["uuid"], gpu["usable"]) for gpu in found["gpus"]] == [
        ("GPU-1", True),
        ("MIG-2", False),
    ]
    assert found["chosen"]["devices"] == ["GPU-1"]


def test_facts_that_nvml_did_not_tell_are_excused(
    darkroom: Darkroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    plays(monkeypatch, TWO._replace(nvml_problem="nvidia-ml-py is not installed"))
    assert "memory in use are not known: nvidia-ml-py is not" in darkroom("devices").stdout


@pytest.mark.parametrize(
    ("survey", "engine", "said"),
    [
        (TWO, {"devices": '["GPU-9"]'}, "engine.devices names what is not here: GPU-9"),
        (BARE, {"policy": "require-gpu"}, f"engine.policy is require-gpu, but {NO_DRIVER}"),
        (
            TWO._replace(gpus=(HOT,)),
            {"policy": "require-gpu"},
            "no GPU is usable: MIG-2 (H100 slice): it is at 90 °C",
        ),
    ],
)
def test_what_a_worker_would_refuse_is_told_with_its_exit_code(
    survey: Survey,
    engine: dict[str, str],
    said: str,
    darkroom: Darkroom,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plays(monkeypatch, survey, **engine)
    refused = darkroom("devices")
    assert refused.exit_code == 4
    assert said in refused.stderr
    assert "a worker takes" not in refused.stdout
    found = document(darkroom, 4)
    assert said in found["chosen"]["refused"]
    assert (found["chosen"]["devices"], found["chosen"]["provider"]) == ([], None)


def test_the_policy_cpu_takes_the_cpu_beside_a_usable_gpu(
    darkroom: Darkroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    plays(monkeypatch, TWO, policy="cpu", devices='["GPU-9"]')
    found = document(darkroom)
    assert found["chosen"]["devices"] == ["cpu-x86_64"]
    assert found["chosen"]["problem"] is None


OPENVINO = ("OpenVINOExecutionProvider", "CPUExecutionProvider")


@pytest.mark.parametrize(
    ("survey", "engine", "provider"),
    [
        (BARE._replace(providers=OPENVINO), {}, "OpenVINOExecutionProvider"),
        (BARE._replace(providers=OPENVINO), {"policy": "cpu"}, "CPUExecutionProvider"),
        (
            BARE._replace(providers=("MIGraphXExecutionProvider", "CPUExecutionProvider")),
            {"policy": "require-gpu"},
            "MIGraphXExecutionProvider",
        ),
        (TWO._replace(providers=("TensorrtExecutionProvider", *PROVIDERS)), {}, PROVIDERS[0]),
        (
            TWO._replace(providers=("TensorrtExecutionProvider", *PROVIDERS)),
            {"policy": "require-tensorrt"},
            "TensorrtExecutionProvider",
        ),
        (
            TWO._replace(providers=("TensorrtExecutionProvider", *PROVIDERS)),
            {"provider_options": '{"TensorrtExecutionProvider": {"trt_fp16_enable": "True"}}'},
            "TensorrtExecutionProvider",
        ),
        (TWO._replace(gpus=(HOT,)), {}, "CPUExecutionProvider"),
        (BARE._replace(cuda_problem="it hangs", answered=False), {}, "CPUExecutionProvider"),
    ],
)
def test_the_best_provider_of_the_ladder_is_named(
    survey: Survey,
    engine: dict[str, str],
    provider: str,
    darkroom: Darkroom,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plays(monkeypatch, survey, **engine)
    assert document(darkroom)["chosen"]["provider"] == provider


def test_a_provider_that_is_required_and_not_installed_is_refused(
    darkroom: Darkroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    plays(monkeypatch, BARE, policy="require-openvino")
    assert "built without OpenVINO" in document(darkroom, 4)["chosen"]["refused"]


def test_the_name_of_the_processor_is_what_linux_says(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor : 0\nmodel name\t: Fast 9000: X\n")
    assert _cpu_name(file) == "Fast 9000: X"
    assert _cpu_name(tmp_path / "absent")
