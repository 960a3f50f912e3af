"""What the registry is told once: how engines are made and kept, and who hears of what they do.

And the limits of one model: what the settings say, changed by what changes live.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol, Self

from worker.config_sections import Settings
from worker.inference.budget import limits_of
from worker.inference.devices import NO_DEVICES, Devices
from worker.inference.dispatcher import Observer, OnOutcomes, OnWithdrawn
from worker.inference.memory import PER_FILE_BYTE, STAGED_PER_FILE_BYTE
from worker.types import Limits

LOADED: Final = "loaded"
"""An engine is warm."""
VERIFIED: Final = "verified"
"""Its files only: there is no room beside what is served, and `models.swap` is stop-first."""


class RegistryOptions(NamedTuple):
    """By the settings; they do not change."""

    limits: Limits
    policy: str
    session: Mapping[str, str]
    watchdog_s: float | None
    """None: by the measured service times."""
    max_loaded: int
    """Versions at a time: serving, held, loading and ending."""
    stop_first: bool
    """Where a version has no room beside the one that it replaces, that one is stopped first."""
    hold_s: float
    """How long a version stays warm when nothing routes to it any more."""
    max_failures: int
    """Failures of a version in a row that open its breaker."""
    reset_timeout_s: float
    topic_priorities: Mapping[str, int] = MappingProxyType({})
    """Weights among the records that wait for an engine."""
    failpoint: str | None = None
    devices: Devices = NO_DEVICES
    """GPUs for engines; each version has some on each of those chosen."""
    provider_options: Mapping[str, dict[str, str]] = MappingProxyType({})
    per_gpu: int = 1
    """Engines of a version on each GPU."""
    on_cpu: int | None = 1
    """Its engines on the CPU; None: as many as are best, see `Budget.split`."""
    to_cpu: bool = True
    """The CPU may serve for GPUs that are lost."""
    staging: str = "auto"
    artifacts: str = ""
    """Where engines keep what they make of models."""

    @classmethod
    def of(
        cls,
        settings: Settings,
        *,
        on_cpu: int | None,
        failpoint: str | None,
        devices: Devices = NO_DEVICES,
    ) -> Self:
        """`on_cpu`: what there is memory for, see `memory_of`."""
        asked = settings.engine.instances_per_device
        engine, models, breaker = settings.engine, settings.models, settings.breaker
        return cls(
            limits=limits_of(settings),
            policy=devices.policy(engine.policy),
            session=MappingProxyType(engine.session),
            staging=engine.staging,
            artifacts=artifacts_of(settings),
            watchdog_s=None if engine.watchdog_s == "auto" else engine.watchdog_s,
            max_loaded=models.max_loaded,
            stop_first=models.swap == "stop-first",
            hold_s=models.rollback_hold_s,
            max_failures=breaker.max_failures,
            reset_timeout_s=breaker.reset_timeout_s,
            topic_priorities=MappingProxyType(settings.kafka.topic_priorities),
            failpoint=failpoint,
            devices=devices,
            provider_options=MappingProxyType(engine.provider_options),
            per_gpu=1 if asked == "auto" else asked,
            on_cpu=on_cpu,
            to_cpu=settings.engine.gpu_loss == "cpu",
        )

    @property
    def uuids(self) -> tuple[str, ...]:
        """The GPUs that were chosen."""
        return tuple(device.uuid for device in self.devices.chosen)

    @property
    def may_be_few(self) -> bool:
        """One engine of a version will do where there is no room for more: nobody said how many."""
        return not self.uuids and self.on_cpu is None

    @property
    def per_file_byte(self) -> int:
        """Memory that an engine may need for each byte of files: more where graphs are folded."""
        staged = self.staging == "always" or (self.staging == "auto" and bool(self.uuids))
        return STAGED_PER_FILE_BYTE if staged else PER_FILE_BYTE


def artifacts_of(settings: Settings) -> str:
    """Return the folder for what engines make of models and keep."""
    return str(settings.data_dir.resolve() / "engines")


class Listeners(NamedTuple):
    """Who hears what becomes of jobs; each is called on the loop."""

    on_outcomes: OnOutcomes
    on_withdrawn: OnWithdrawn
    """Gets jobs that are to be routed again; never called from inside `submit`."""
    observe: Observer


class Overrides(Protocol):
    """What changes live of a model's limits; None, or a head not named: as without it."""

    @property
    def max_size(self) -> int | None: ...

    @property
    def min_size(self) -> int | None: ...

    @property
    def max_wait_ms(self) -> float | None: ...

    @property
    def thresholds(self) -> Mapping[str, float]: ...

    @property
    def slo_ms(self) -> float | None: ...


def overridden(limits: Limits, changes: Overrides | None) -> Limits:
    """Return the limits of one model."""
    if changes is None:
        return limits
    return limits._replace(
        max_size=limits.max_size if changes.max_size is None else changes.max_size,
        adaptive=limits.adaptive and changes.max_size is None,
        min_size=limits.min_size if changes.min_size is None else changes.min_size,
        max_wait_ms=limits.max_wait_ms if changes.max_wait_ms is None else changes.max_wait_ms,
        thresholds=changes.thresholds,
        slo_ms=limits.slo_ms if changes.slo_ms is None else changes.slo_ms,
    )
