"""What all engines of this worker may use together, and the share of one.

Measured from the machine as this process sees it: its affinity, its control group.
"""

import os
import re
from collections.abc import Iterable
from math import inf
from pathlib import Path
from typing import NamedTuple

from worker.config_sections import Settings
from worker.errors import SettingsError
from worker.types import Limits

DECODE_BYTES_PER_PIXEL = 16
"""What a lane reserves before it decodes: OpenCV really peaks at 6 to 16 bytes a pixel."""
CPU_ENGINES = 2
"""Of a version, where nobody says. Measured (`benchmarks/layouts.py`): records that cost little
wait for the interpreter of one engine; with pictures that cost more the two are as good as one."""
_DECODE_FLOOR_BYTES = 256 << 20
"""Many lanes shall not wait for each other only because the largest picture allowed is small."""


class Share(NamedTuple):
    """What one version, or one engine of it, may use."""

    lanes: int
    decode_bytes: int


class Budget(NamedTuple):
    """What all engines may use together."""

    lanes: int
    decode_bytes: int
    largest_bytes: int
    """What decoding the largest picture allowed needs."""
    memory_bytes: int
    """What this process and its engines have, by the machine and the control group."""

    def share(self, models: int, index: int = 0) -> Share:
        """Return the share of model number `index` of `models`; the first get what lanes are left.

        Every engine has at least one lane and can decode the largest picture allowed: with more
        models than cores, or than largest pictures in `decode_bytes`, the sum is above the budget.
        While one version takes over from another of the same model, both have its share: one of
        the two is warming or draining.
        """
        lanes = self.lanes // models + (index < self.lanes % models)
        return Share(max(1, lanes), max(self.largest_bytes, self.decode_bytes // models))

    def split(self, share: Share, engines: int | None) -> tuple[Share, ...]:
        """Return the parts of a version's share for each of its engines, as `share` parts it.

        None: as many as are best on the CPU, and no more than it has lanes.
        """
        if engines is None:
            engines = min(CPU_ENGINES, share.lanes)
        own = self._replace(lanes=share.lanes, decode_bytes=share.decode_bytes)
        return tuple(own.share(engines, engine) for engine in range(engines))


def budget_of(settings: Settings) -> Budget:
    """Measure and decide the budget.

    Raises SettingsError when `limits.decode_bytes` cannot hold one picture of
    `limits.image_max_pixels`.
    """
    largest_bytes = DECODE_BYTES_PER_PIXEL * settings.limits.image_max_pixels
    asked_bytes = settings.limits.decode_bytes
    decode_bytes = max(largest_bytes, _DECODE_FLOOR_BYTES) if asked_bytes == "auto" else asked_bytes
    if decode_bytes < largest_bytes:
        raise SettingsError(
            f"limits.decode_bytes: {decode_bytes} bytes cannot hold one picture of "
            f"limits.image_max_pixels ({settings.limits.image_max_pixels}), which takes "
            f"{largest_bytes}: raise the one or lower the other"
        )
    lanes = settings.engine.lanes
    return Budget(
        lanes=cores() if lanes == "auto" else lanes,
        decode_bytes=decode_bytes,
        largest_bytes=largest_bytes,
        memory_bytes=memory_bytes(),
    )


def limits_of(settings: Settings) -> Limits:
    """Return the first limits; later ones come from the control channel."""
    batch, limits = settings.batch, settings.limits
    return Limits(
        max_size=batch.most_rows,
        min_size=batch.min_size,
        max_wait_ms=batch.max_wait_ms,
        max_bytes=batch.max_bytes,
        image_max_bytes=limits.image_max_bytes,
        image_max_pixels=limits.image_max_pixels,
        slo_ms=batch.slo_ms,
        adaptive=batch.max_size == "auto",
    )


def cores(root: Path = Path("/")) -> int:
    """Return how many cores this process may keep busy: by its affinity and its CPU quota.

    ONNX Runtime and `os.cpu_count` know of neither: in a container with 2 of 64 cores they would
    start 64 threads, which the quota then stops for most of every period.
    """
    return max(1, int(min(affinity_cores(), quota_cores(root))))


def affinity_cores() -> int:
    """Return how many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def quota_cores(root: Path = Path("/")) -> float:
    """Return how many cores' time the control groups give this process; infinite: no quota."""
    quotas = [inf]
    for folder in _groups(root):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if period and quota != "max":
            quotas.append(int(quota) / int(period))
    for folder in _groups(root, "cpu"):
        quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if period and quota not in {"", "-1"}:
            quotas.append(int(quota) / int(period))
    return min(quotas)


def memory_bytes(root: Path = Path("/")) -> int:
    """Return the memory that this process may use: the machine's, or its control group's."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [
        *(_text(folder / "memory.max") for folder in _groups(root)),
        *(_text(folder / "memory.limit_in_bytes") for folder in _groups(root, "memory")),
    ]
    return min([machine, *(int(limit) for limit in limits if limit not in {"", "max"})])


def resident_bytes(pids: Iterable[int], root: Path = Path("/")) -> int:
    """Return the most memory that these processes had: their own pages, and those of files once.

    Engines map the same libraries, which the kernel (and a control group) has once. What an engine
    gave back it will take again with its next full batch. A process that is gone has nothing; where
    there is no `/proc`, nobody has.
    """
    held = [_held(pid, root) for pid in pids]
    own = sum(most - shared for most, shared in held)
    return own + max((shared for _, shared in held), default=0)


def own_bytes(pid: int, root: Path = Path("/")) -> int:
    """Return the most memory that one process had for itself."""
    most, shared = _held(pid, root)
    return most - shared


def _held(pid: int, root: Path) -> tuple[int, int]:
    """Return the peak of what is resident of a process, and what it shares now."""
    try:
        text = (root / f"proc/{pid}/status").read_text()
    except OSError:
        return 0, 0
    told = re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)
    sizes = {name: int(kib) << 10 for name, kib in told}
    most = sizes.get("VmHWM", sizes.get("VmRSS", 0))
    return most, sizes.get("RssFile", 0) + sizes.get("RssShmem", 0)


def _groups(root: Path, controller: str = "") -> list[Path]:
    """Return the folders of this process's control group and of those above it.

    `controller`: where version 1 is mounted, which has a tree of groups for each; version 2 has one
    for all.
    """
    mount = root / "sys/fs/cgroup" / controller
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    group = "/"
    for line in lines:  # number of the tree, its controllers, group
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            group = path
    folder = mount / group.strip("/")
    return [place for place in (folder, *folder.parents) if place.is_relative_to(mount)]


def _text(file: Path) -> str:
    """Return what stands in a file; empty where it is not there."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""
