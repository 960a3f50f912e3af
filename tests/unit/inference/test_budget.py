import os
from math import inf
from pathlib import Path

import pytest

from worker.config_sections import BatchSettings, EngineSettings, LimitsSettings, Settings
from worker.errors import SettingsError
from worker.inference.budget import (
    DECODE_BYTES_PER_PIXEL,
    Budget,
    Share,
    budget_of,
    cores,
    limits_of,
    memory_bytes,
    own_bytes,
    quota_cores,
    resident_bytes,
)
from worker.types import Limits
from worker.vision.containers import Header

MB = 1 << 20


def machine(root: Path, group: str, **files: str) -> Path:
    """Write a tree of control groups; `files`: folder with `__` for `/` and name -> content."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(f"0::{group}\n")
    for place, content in files.items():
        path = root / "sys/fs/cgroup" / place.replace("__", "/").replace("_max", ".max")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return root


def test_lanes_are_shared_by_the_models_and_never_more_than_the_cores() -> None:
    budget = Budget(8, 3000 * MB, 800 * MB, 1 << 40)
    assert [budget.share(3, index).lanes for index in range(3)] == [3, 3, 2]
    assert budget.share(1) == Share(8, 3000 * MB)


def test_every_model_has_one_lane_and_can_decode_the_largest_picture() -> None:
    budget = Budget(2, 1000 * MB, 800 * MB, 1 << 40)
    assert [budget.share(3, index) for index in range(3)] == [Share(1, 800 * MB)] * 3


def test_the_engines_of_a_version_part_its_share() -> None:
    budget = Budget(8, 3000 * MB, 800 * MB, 1 << 34)
    share = budget.share(2)
    assert budget.split(share, 1) == (share,)
    assert budget.split(share, 3) == (Share(2, 800 * MB), Share(1, 800 * MB), Share(1, 800 * MB))


@pytest.mark.parametrize(("lanes", "engines"), [(1, [1]), (2, [1, 1]), (3, [2, 1]), (8, [4, 4])])
def test_left_to_itself_a_version_has_two_engines_where_it_has_lanes_for_them(
    lanes: int, engines: list[int]
) -> None:
    budget = Budget(lanes, 3000 * MB, 800 * MB, 1 << 34)
    assert [share.lanes for share in budget.split(budget.share(1), None)] == engines


@pytest.mark.parametrize(
    ("limits", "decode_bytes"),
    [
        (LimitsSettings(), 800_000_000),
        (LimitsSettings(image_max_pixels=1_000_000), 256 * MB),
        (LimitsSettings(decode_bytes=900_000_000), 900_000_000),
    ],
)
def test_automatic_decode_memory_holds_one_of_the_largest_pictures(
    limits: LimitsSettings, decode_bytes: int
) -> None:
    assert budget_of(Settings(limits=limits)).decode_bytes == decode_bytes


def test_both_sides_reckon_decode_memory_alike() -> None:
    assert Header("png", 1, 1).decode_bytes == DECODE_BYTES_PER_PIXEL


def test_decode_memory_that_cannot_hold_one_largest_picture_is_refused() -> None:
    settings = Settings(limits=LimitsSettings(decode_bytes=1000))
    with pytest.raises(SettingsError, match=r"limits\.decode_bytes.*takes 800000000"):
        budget_of(settings)


def test_lanes_are_as_many_as_cores_unless_said_otherwise() -> None:
    assert budget_of(Settings()).lanes == cores()
    assert budget_of(Settings(engine=EngineSettings(lanes=5))).lanes == 5


def test_the_affinity_of_the_process_bounds_its_cores(tmp_path: Path) -> None:
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system has no affinity")
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert cores(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    "files", [{"pods__a__cpu_max": "100000 100000"}, {"pods__cpu_max": "50000 100000"}]
)
def test_a_cpu_quota_of_this_group_or_one_above_bounds_the_cores(
    tmp_path: Path, files: dict[str, str]
) -> None:
    assert cores(machine(tmp_path, "/pods/a", **files)) == 1


def test_the_quota_is_the_smallest_of_all_groups_and_may_be_part_of_a_core(tmp_path: Path) -> None:
    root = machine(tmp_path, "/pods/a", pods__a__cpu_max="250000 100000", pods__cpu_max="max 1000")
    assert quota_cores(root) == 2.5
    assert quota_cores(tmp_path / "nothing") == inf


def test_no_quota_and_no_control_groups_bound_nothing(tmp_path: Path) -> None:
    everything = cores(tmp_path / "nothing")
    root = machine(tmp_path, "/pods/a", pods__a__cpu_max="max 100000", cpu_max="max 100000")
    assert cores(root) == everything


def test_memory_is_the_smallest_of_machine_and_groups(tmp_path: Path) -> None:
    root = machine(tmp_path, "/pods/a", pods__a__memory_max="max", pods__memory_max=str(512 * MB))
    assert memory_bytes(root) == 512 * MB
    assert memory_bytes(tmp_path / "nothing") > 512 * MB


@pytest.mark.parametrize(
    ("files", "quota", "memory"),
    [
        ({}, inf, None),
        ({"cpu/pods/cpu.cfs_quota_us": "-1", "cpu/pods/cpu.cfs_period_us": "100000"}, inf, None),
        ({"cpu/pods/a/cpu.cfs_quota_us": "50000"}, inf, None),
        (
            {"cpu/pods/a/cpu.cfs_quota_us": "150000", "cpu/pods/a/cpu.cfs_period_us": "100000"},
            1.5,
            None,
        ),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5, None),
        ({"memory/pods/memory.limit_in_bytes": "9223372036854771712"}, inf, None),
        ({"memory/pods/memory.limit_in_bytes": str(512 * MB)}, inf, 512 * MB),
        ({"memory/memory.limit_in_bytes": str(256 * MB)}, inf, 256 * MB),
        ({"memory/elsewhere/memory.limit_in_bytes": str(MB)}, inf, None),
        ({"unified/pods/a/memory.max": str(MB), "pods/memory.limit_in_bytes": "1"}, inf, None),
    ],
)
def test_limits_of_control_groups_of_version_1_count_too(
    tmp_path: Path, files: dict[str, str], quota: float, memory: int | None
) -> None:
    machine(tmp_path, "/")
    groups = "9:name=systemd:/x\n4:memory:/pods/a\n2:cpu,cpuacct:/pods/a\n0::/\n"
    (tmp_path / "proc/self/cgroup").write_text(groups)
    for place, content in files.items():
        path = tmp_path / "sys/fs/cgroup" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    assert quota_cores(tmp_path) == quota
    assert memory_bytes(tmp_path) == (memory or memory_bytes(tmp_path / "nothing"))


def test_pages_of_files_count_once_and_processes_that_are_gone_not_at_all(tmp_path: Path) -> None:
    for pid, (most, now, files) in {7: (80, 50, 28), 8: (70, 70, 38)}.items():
        (tmp_path / f"proc/{pid}").mkdir(parents=True)
        (tmp_path / f"proc/{pid}/status").write_text(
            f"Name:\tpython\nVmHWM:\t {most} kB\nVmRSS:\t {now} kB\nRssAnon:\t 1 kB\n"
            f"RssFile:\t {files} kB\nRssShmem:\t 2 kB\nThreads:\t3\n"
        )
    assert resident_bytes([7, 8, 9], tmp_path) == (50 + 30 + 40) * 1024, "by the peaks"
    assert own_bytes(8, tmp_path) == 30 * 1024
    assert resident_bytes([], tmp_path) == own_bytes(9, tmp_path) == 0


def test_the_memory_of_this_process_can_be_measured() -> None:
    if not Path("/proc/self/status").is_file():
        pytest.skip("this system has no /proc")
    assert 1 * MB < own_bytes(os.getpid()) < resident_bytes([os.getpid()])


def test_the_first_limits_are_those_of_the_settings() -> None:
    limits = limits_of(Settings(batch=BatchSettings(max_wait_ms=7.5)))
    assert limits == Limits(
        128, 1, 7.5, 67_108_864, 33_554_432, 50_000_000, {}, slo_ms=250.0, adaptive=True
    )


@pytest.mark.parametrize(
    ("batch", "max_size", "adaptive"),
    [
        (BatchSettings(max_size=3), 3, False),
        (BatchSettings(profile="latency"), 64, True),
        (BatchSettings(profile="throughput"), 512, True),
        (BatchSettings(profile="throughput", max_size=9), 9, False),
    ],
)
def test_a_size_that_is_given_is_the_cap_and_else_the_profile_bounds_what_is_looked_for(
    batch: BatchSettings, max_size: int, *, adaptive: bool
) -> None:
    limits = limits_of(Settings(batch=batch))
    assert (limits.max_size, limits.adaptive) == (max_size, adaptive)
