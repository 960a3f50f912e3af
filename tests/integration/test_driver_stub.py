"""Discovery against a CUDA driver in C that answers what it is told, through the real loader."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import missing
from worker.inference.survey import survey
from worker.protocol.survey import Survey

pytestmark = pytest.mark.long
ONE, TWO = (
    "GPU-01010101-0101-0101-0101-010101010101",
    "GPU-02020202-0202-0202-0202-020202020202",
)

Stub = Callable[..., dict[str, str]]


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Stub:
    """Return environments in which the loader finds the stub."""
    compiler = shutil.which("cc") or missing("no C compiler (cc) is here")
    folder = tmp_path_factory.mktemp("driver")
    source = Path(__file__).with_name("libcuda.c")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", str(folder / "libcuda.so.1"), str(source)],
        check=True,
        timeout=60,
    )
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return lambda **told: {**inherited, "LD_LIBRARY_PATH": str(folder), **told}


def seen(environ: dict[str, str], *, deadline_s: float = 60.0) -> Survey:
    return survey(environ=environ, deadline_s=deadline_s)


def darkroom(environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "worker", *arguments],
        env=environ, capture_output=True, text=True, check=False, timeout=90,
    )  # fmt: skip


def test_what_the_driver_lists_is_found(stub: Stub) -> None:
    found = seen(stub(STUB_DEVICES="2"))
    assert [(gpu.uuid, gpu.name, gpu.compute_capability) for gpu in found.gpus] == [
        (ONE, "Stub 0", (9, 0)),
        (TWO, "Stub 1", (9, 1)),
    ]
    assert found.gpus[1].memory_total_bytes == 2 << 30
    assert found.gpus[1].pci_bus_id == "0000:0b:00.0"
    assert found.cuda_problem is None
    assert found.answered


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"STUB_CUINIT": "100"}, "cuInit with error 100 (no CUDA-capable device is detected)"),
        ({"STUB_CUINIT": "999"}, "cuInit with error 999 (unknown to it)"),
        ({"STUB_DEVICES": "2", "CUDA_VISIBLE_DEVICES": ""}, "cuInit with error 100"),
        ({}, "the NVIDIA driver sees no device"),
    ],
)
def test_a_driver_that_is_there_and_broken_says_why(
    told: dict[str, str], said: str, stub: Stub
) -> None:
    found = seen(stub(**told))
    assert found.gpus == ()
    assert found.answered
    assert found.cuda_problem is not None
    assert said in found.cuda_problem


def test_a_driver_that_hangs_costs_the_deadline(stub: Stub) -> None:
    began_s = time.monotonic()
    found = seen(stub(STUB_HANG="1"), deadline_s=3.0)
    assert time.monotonic() - began_s < 10
    assert not found.answered
    assert found.cuda_problem is not None
    assert "did not answer within 3 s" in found.cuda_problem


def test_a_driver_that_crashes_costs_its_process(stub: Stub) -> None:
    found = seen(stub(STUB_CRASH="1"))
    assert not found.answered
    assert found.cuda_problem is not None
    assert "ended: exit code -11" in found.cuda_problem


def test_the_command_chooses_the_better_one_and_refuses_what_is_not_here(stub: Stub) -> None:
    told = darkroom(stub(STUB_DEVICES="2"), "devices", "--json")
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["chosen"]["devices"] == [TWO]
    named = {"DARKROOM_ENGINE__DEVICES": json.dumps([ONE])}
    told = darkroom(stub(STUB_DEVICES="2", **named), "devices", "--json")
    assert json.loads(told.stdout)["chosen"]["devices"] == [ONE]
    told = darkroom(stub(STUB_DEVICES="1", DARKROOM_ENGINE__DEVICES=json.dumps([TWO])), "devices")
    assert told.returncode == 4
    assert f"engine.devices names what is not here: {TWO}; there is {ONE} (Stub 0)" in told.stderr


def test_a_worker_that_requires_a_gpu_refuses_a_broken_driver_with_its_reason(
    stub: Stub, tmp_path: Path
) -> None:
    settings = {
        "DARKROOM_ENGINE__POLICY": "require-gpu",
        "DARKROOM_HTTP__PORT": "0",
        "DARKROOM_DATA_DIR": str(tmp_path),
    }
    told = darkroom(stub(STUB_CUINIT="100", **settings), "run")
    assert told.returncode == 4
    assert "require-gpu, but no GPU is usable: the NVIDIA driver answers cuInit" in told.stderr
    assert "model.refused" not in told.stderr


@pytest.mark.parametrize(("told", "device"), [({"STUB_DEVICES": "2"}, ONE), ({}, "None")])
def test_an_engine_names_the_device_by_the_driver(
    told: dict[str, str], device: str, stub: Stub
) -> None:
    code = "from worker.engine.devices import cuda_device as c; print(c())"
    said = subprocess.run(
        [sys.executable, "-c", code],
        env=stub(**told), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert device in said.stdout + said.stderr


def test_a_worker_gives_its_engine_the_chosen_gpu(stub: Stub, tmp_path: Path) -> None:
    """No kernel can run on the stub: the engine falls back, and says that it does."""
    settings = {"STUB_DEVICES": "2", "DARKROOM_DATA_DIR": str(tmp_path)}
    told = darkroom(stub(**settings), "models", "verify", "digits/1", "--json")
    assert told.returncode == 0, told.stderr + told.stdout
    (fact,) = json.loads(told.stdout)
    assert (fact["provider"], fact["fallback"]) == ("CPUExecutionProvider", True)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"STUB_DEVICES": "1", "STUB_FAULT": "700"}, ""),
        ({"STUB_DEVICES": "1"}, "the kernel wrote, and cuCtxSynchronize answers 0"),
        ({}, "cuDeviceGet answers 101"),
        ({"STUB_CUINIT": "999"}, "cuInit answers 999"),
    ],
)
def test_a_fault_of_the_gpu_is_one_when_the_driver_says_so_after_a_kernel(
    told: dict[str, str], said: str, stub: Stub
) -> None:
    code = (
        "from worker.protocol.failpoints import Failpoint, Failpoints\n"
        "Failpoints('before_run=gpu-fault').hit(Failpoint.BEFORE_RUN)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=stub(**told), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert ended.returncode == bool(said)
    assert said in ended.stderr
