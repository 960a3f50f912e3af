"""What memory the worker and its engines may come to need by the settings, and whether it is there.

One out-of-memory kill may take the whole pod: what cannot fit is refused before it serves.
"""

from collections.abc import Mapping
from typing import NamedTuple

from worker.config_sections import Settings
from worker.errors import SettingsError
from worker.inference.budget import Share, budget_of, limits_of
from worker.inference.devices import REQUIRE
from worker.protocol.page import RUN_LANES
from worker.types import Limits, ModelRef

ENGINE_BYTES = 160 << 20
"""Measured: 36 MiB of Python, OpenCV and ONNX Runtime, and what batches of 16 need while they run
(140 MiB for squeezenet, whose weights are 5 MiB)."""
PER_FILE_BYTE = 3
"""Of the files: read, parsed, and laid out for the kernels."""
STAGED_PER_FILE_BYTE = 8
"""The same while a graph is folded for a device and held against the graph as it was, with a
session of each open. Measured, with one more open than now: 0.9 GB for a ResNet-50 of 102 MB, 0.3
for squeezenet."""
_WORKER_BYTES = 80 << 20
"""Measured: 70 MiB of Python and its clients."""
_FREE = frozenset({"cpu", "prefer-gpu"})
"""Policies with which an engine that no GPU was chosen for is on the CPU."""
_COPIES = 2
"""Of records in flight: the worker's own, in case an engine dies, and the engine's."""
_MB = 1_000_000


class Footprint(NamedTuple):
    """What is known of a version before it is loaded."""

    files_bytes: int = 0
    """0: not known."""
    row_bytes: int | None = None
    """None: not known; then `batch.max_bytes` bounds its batches."""
    max_size: int | None = None
    """Rows of a batch, at most, as its manifest says."""


class Memory(NamedTuple):
    """What is needed at most, about; and what there is."""

    worker_bytes: int
    engines: Mapping[ModelRef, int]
    """Of each version that `models.active` names."""
    max_loaded: int
    limit_bytes: int
    """Of the machine, or of this process's control group."""
    instances: int | None = 1
    """Engines of a version on the CPU; None: as many as are best (`Budget.split`)."""

    @property
    def together_bytes(self) -> int:
        """With the engines of active versions, as many of the largest as are loaded at a time."""
        largest = sorted(self.engines.values(), reverse=True)
        return self.worker_bytes + sum(largest[: self.max_loaded])

    @property
    def most_bytes(self) -> int:
        """With `models.max_loaded` engines, those that are not named as large as the largest."""
        more = max(0, self.max_loaded - len(self.engines))
        return self.together_bytes + more * max(self.engines.values(), default=0)

    def check(self) -> str | None:
        """Return what to warn of: there is not enough for `models.max_loaded` engines.

        Raises SettingsError when there is not enough for the versions of `models.active`.
        """
        if self.together_bytes > self.limit_bytes:
            names = ", ".join(map(str, self.engines))
            raise SettingsError(
                f"this worker and its engines ({names}) may need {_mb(self.together_bytes)}, and"
                f" its control group or machine has {_mb(self.limit_bytes)}: lower"
                " limits.image_max_pixels (with limits.decode_bytes), limits.in_flight_bytes or"
                " batch.max_bytes, name fewer models in models.active, or give it more memory"
                " (`darkroom config show` has the sum)"
            )
        if self.most_bytes > self.limit_bytes:
            return (
                f"{self.max_loaded} engines may need {_mb(self.most_bytes)} with their worker, and"
                f" there are {_mb(self.limit_bytes)}: lower models.max_loaded, or what"
                " `darkroom config show` counts"
            )
        return None


def memory_of(settings: Settings, versions: Mapping[ModelRef, Footprint]) -> Memory:
    """Reckon with these versions, as one device (or the CPU) serves them.

    Where nobody says how many engines a version has, there is one where more might not fit. Raises
    SettingsError as `budget_of`.
    """
    asked = settings.engine.instances_per_device
    if asked != "auto":
        return _memory_of(settings, versions, asked)
    if settings.engine.policy in _FREE:
        memory = _memory_of(settings, versions, None)
        if memory.most_bytes <= memory.limit_bytes:
            return memory
    return _memory_of(settings, versions, 1)


def _memory_of(
    settings: Settings, versions: Mapping[ModelRef, Footprint], instances: int | None
) -> Memory:
    budget, limits, staged = budget_of(settings), limits_of(settings), _is_staged(settings)
    models = max(1, min(len(versions), settings.models.max_loaded))
    return Memory(
        _WORKER_BYTES + _COPIES * settings.limits.in_flight_bytes,
        {
            ref: sum(
                engine_bytes(share, limits, version, staged=staged)
                for share in budget.split(budget.share(models, at % models), instances)
            )
            for at, (ref, version) in enumerate(versions.items())
        },
        settings.models.max_loaded,
        budget.memory_bytes,
        instances,
    )


def _is_staged(settings: Settings) -> bool:
    """Say whether rows are surely staged for a device, so that lanes of their own run.

    With `prefer-gpu` a GPU may be found, and the sum is made before anybody looks for one: its rows
    are taken to be as large as the manifest says, where those of a staged one are a quarter of it.
    """
    engine = settings.engine
    return engine.staging == "always" or (engine.staging == "auto" and engine.policy in REQUIRE)


def engine_bytes(share: Share, limits: Limits, version: Footprint, *, staged: bool = False) -> int:
    """Return what an engine may need: its process, its model, its rows and what it decodes.

    While a graph is folded nothing is decoded: the larger of the two counts.
    """
    row_bytes = version.row_bytes or limits.max_bytes
    rows = min(limits.max_size, limits.max_bytes // row_bytes, version.max_size or limits.max_size)
    lanes = share.lanes + (RUN_LANES if staged else 0)
    slabs = lanes + 1  # one for each lane, and the one that is filled
    rows_bytes = slabs * max(1, rows) * row_bytes
    serving_bytes = PER_FILE_BYTE * version.files_bytes + rows_bytes + share.decode_bytes
    loading_bytes = STAGED_PER_FILE_BYTE * version.files_bytes if staged else 0
    return ENGINE_BYTES + max(serving_bytes, loading_bytes)


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / _MB:,.0f} MB"
