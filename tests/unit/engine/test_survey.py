import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.engine.test_devices import GIB, WHOLE, A, B, Nvml, driver, nvml_device
from worker.engine.devices import NO_DEVICE, Driver
from worker.engine.survey import survey
from worker.errors import DeviceError
from worker.protocol.survey import Gpu, Survey


def absent(why: str) -> Callable[[], Any]:
    def load() -> Any:
        raise DeviceError(why)

    return load


def looked(cuda: Driver | None, nvml: Nvml | None, root: Path = Path("/nowhere")) -> Survey:
    return survey(
        absent("no driver") if cuda is None else lambda: cuda,
        absent("not installed") if nvml is None else lambda: nvml,
        root=root,
    )


def test_a_machine_without_driver_and_nvml_has_no_gpu_and_says_why() -> None:
    found = looked(None, None)
    assert found.gpus == ()
    assert (found.cuda_problem, found.nvml_problem) == ("no driver", "not installed")
    assert found.cpu is not None
    assert "CPUExecutionProvider" in found.providers


def test_both_are_matched_by_uuid_whatever_their_order() -> None:
    found = looked(driver((B, B), (A, A)), Nvml(nvml_device(A), nvml_device(B)))
    assert [gpu.uuid for gpu in found.gpus] == [f"GPU-{A}", f"GPU-{B}"]
    assert found.gpus[0] == WHOLE._replace(listed=True)
    assert (found.cuda_problem, found.nvml_problem) == (None, None)


def test_a_mig_instance_that_the_driver_calls_a_gpu_is_called_what_nvml_calls_it() -> None:
    instance = {"nvmlDeviceGetUUID": f"MIG-{B}"}
    mig = nvml_device(A, nvmlDeviceGetMigMode=[1, 1], instances={0: instance})
    (gpu,) = looked(driver((B, B)), Nvml(mig)).gpus
    assert (gpu.uuid, gpu.gpu, gpu.listed) == (f"MIG-{B}", f"GPU-{A}", True)


def test_what_the_driver_does_not_list_is_told_and_not_listed() -> None:
    found = looked(driver((B, B)), Nvml(nvml_device(A), nvml_device(B)))
    assert [gpu.listed for gpu in found.gpus] == [False, True]


def test_without_nvml_the_driver_alone_tells_less() -> None:
    (gpu,) = looked(driver((A, A)), None).gpus
    assert gpu == Gpu(
        f"GPU-{A}", f"GPU-{A}", "GPU number 0", listed=True, compute_capability=(8, 6),
        pci_bus_id="0000:0a:00.0", memory_total_bytes=GIB,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("cuda", "said"),
    [
        (driver((A, A), cuInit=100), "the NVIDIA driver answers cuInit with error 100"),
        (driver(), NO_DEVICE),
    ],
)
def test_a_driver_that_lists_nothing_leaves_what_nvml_knows(cuda: Driver, said: str) -> None:
    found = looked(cuda, Nvml(nvml_device(A)))
    assert found.gpus == (WHOLE,)
    assert found.cuda_problem is not None
    assert found.cuda_problem.startswith(said)


def numa(root: Path, ours: int) -> Path:
    """Make a machine of two nodes; node `ours` has the CPUs that this process may use."""
    gpu = root / "sys/bus/pci/devices/0000:3b:00.0"
    gpu.mkdir(parents=True)
    (gpu / "numa_node").write_text("1\n")
    cpus = sorted(os.sched_getaffinity(0))
    for node, distances in {0: "10 21", 1: "21 10"}.items():
        folder = root / f"sys/devices/system/node/node{node}"
        folder.mkdir(parents=True)
        mine = f"{cpus[0]}-{cpus[-1]}" if node == ours else "4000-4003,4010"
        (folder / "cpulist").write_text(f"{mine}\n")
        (folder / "distance").write_text(f"{distances}\n")
    return root


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no affinity")
@pytest.mark.parametrize(("ours", "distance"), [(0, 21), (1, 10)])
def test_the_distance_is_from_the_cpus_that_this_process_may_use(
    ours: int, distance: int, tmp_path: Path
) -> None:
    (gpu,) = looked(None, Nvml(nvml_device(A)), numa(tmp_path, ours)).gpus
    assert (gpu.numa_node, gpu.numa_distance) == (1, distance)


def test_a_machine_with_one_memory_tells_no_node(tmp_path: Path) -> None:
    gpu = tmp_path / "sys/bus/pci/devices/0000:3b:00.0"
    gpu.mkdir(parents=True)
    (gpu / "numa_node").write_text("-1\n")
    (found,) = looked(None, Nvml(nvml_device(A)), tmp_path).gpus
    assert (found.numa_node, found.numa_distance) == (None, None)
