"""Every metric of the worker, declared once; labels are bounded. Knows nothing of who observes."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_FAST_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05)
_SECONDS = (*_FAST_S, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)


class Buckets:
    """Counts of the values seen; not for threads. `le` is inclusive, as Prometheus has it."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def observe_many(self, values: Sequence[float]) -> None:
        """Observe a batch: 0.1 us a value, where prometheus_client's own histogram takes 1.4."""
        bounds, counts = self._bounds, self._counts
        for value in values:
            counts[bisect_left(bounds, value)] += 1
        self._sum += sum(values)

    def snapshot(self) -> tuple[list[tuple[str, float]], float]:
        """Return the cumulated count for each upper bound, `+Inf` last, and the sum."""
        bounds = [*map(str, self._bounds), "+Inf"]
        return list(zip(bounds, map(float, accumulate(self._counts)), strict=True)), self._sum


class Histogram(Collector):
    """A histogram metric, with one set of buckets for each value of its label if it has one."""

    def __init__(
        self,
        name: str,
        documentation: str,
        *,
        registry: CollectorRegistry,
        bounds: Sequence[float],
        label: str | None = None,
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = bounds
        self._labels = [label] if label else []
        self._buckets: dict[str, Buckets] = {}
        registry.register(self)

    def of(self, value: str = "") -> Buckets:
        """Return the buckets of a label's value; keep them: this is the slow part."""
        return self._buckets.setdefault(value, Buckets(self._bounds))

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        for value, buckets in self._buckets.items():
            counts, total = buckets.snapshot()
            family.add_metric([value] if self._labels else [], counts, total)
        yield family


class Batches:
    """What batches take, by version and size: running means, as the engines' own tables have them.

    Only for sizes that are buckets of such a table, so that labels are bounded.
    """

    _ALPHA = 0.1
    _EVERY_SIZE = 16

    def __init__(self, registry: CollectorRegistry) -> None:
        self._service = _gauge(
            registry,
            "batch_service_seconds",
            "Seconds of a batch from its rows to their predictions, a running mean.",
            "model",
            "rows",
        )
        self._cap = _gauge(
            registry, "batch_cap_rows", "Rows of a batch, at most, as chosen now.", "model"
        )
        self._means: dict[str, dict[int, float]] = {}

    def ran(self, model: str, rows: int, seconds: float, *, cap: int) -> None:
        """Note a batch of `model` (NAME/VERSION)."""
        means = self._means.setdefault(model, {})
        self._cap.labels(model).set(cap)
        if rows > self._EVERY_SIZE and rows & (rows - 1):
            return
        mean = means.get(rows, seconds)
        means[rows] = mean = mean + self._ALPHA * (seconds - mean)
        self._service.labels(model, str(rows)).set(mean)

    def forget(self, model: str) -> None:
        """Show nothing more of a version."""
        means = self._means.pop(model, None)
        if means is not None:
            self._cap.remove(model)
        for rows in means or ():
            self._service.remove(model, str(rows))


class Metrics:
    """The metrics of one worker in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.records = _counter(
            registry, "records", "Records that ended, by status and reason.", "status", "reason"
        )
        self.dead_letters = _counter(
            registry, "dead_letters", "Dead letters acknowledged, by reason.", "reason"
        )
        self.rebalances = _counter(registry, "rebalances", "Assignments of partitions received.")
        self.engine_restarts = _counter(
            registry, "engine_restarts", "Engines started again after a fault.", "model"
        )
        self.in_flight_records = _gauge(
            registry, "in_flight_records", "Records fetched and not yet committed."
        )
        self.in_flight_bytes = _gauge(
            registry, "in_flight_bytes", "Encoded bytes of the records in flight."
        )
        self.consumer_lag = _gauge(
            registry,
            "consumer_lag",
            "Records between the committed offset and the end of an owned partition.",
            "topic",
            "partition",
        )
        self._declare_models(registry)
        self.ready = _gauge(registry, "ready", "1 while /readyz says yes.")
        self.loop_lag_seconds = _gauge(
            registry, "loop_lag_seconds", "How late the event loop last woke up."
        )
        self._engine_state = _gauge(
            registry, "engine_state", "1 for the state that an engine is in.", "model", "state"
        )
        self.stage_seconds = _seconds(
            registry, "stage", "Seconds that a record spent at each of the eight stops.", "stop"
        )
        self.commit_seconds = _seconds(registry, "commit", "Seconds of an offset commit.").of()
        self.batch_rows = Histogram(
            "darkroom_batch_rows", "Rows of a batch that ran.", registry=registry, bounds=_ROWS
        ).of()
        self.batches = Batches(registry)
        self._device_state = _gauge(
            registry, "device_state", "1 for the state that a device is in.", "device", "state"
        )
        self._engine_states: dict[str, str] = {}
        self._device_states: dict[str, str] = {}
        self._model_infos: dict[tuple[str, str], tuple[str, ...]] = {}

    def _declare_models(self, registry: CollectorRegistry) -> None:
        self.model_info = _gauge(
            registry,
            "model_info",
            "1 for every model version that is loaded.",
            "name",
            "version",
            "sha256",
            "provider",
        )
        self.model_loads = _counter(
            registry, "model_loads", "Loads of a version (loaded, refused, cancelled).", "result"
        )
        self.model_switches = _counter(
            registry, "model_switches", "Changes of the version that a model serves.", "model"
        )
        self.models_loaded = _gauge(registry, "models_loaded", "Versions that have an engine.")
        self.switch_gap_seconds = _gauge(
            registry,
            "switch_gap_seconds",
            "From the last outcome of the old version to the first of the new, at the last switch.",
            "model",
        )

    def set_model_info(self, name: str, version: str, sha256: str, provider: str) -> None:
        """Show a version that is loaded."""
        self._model_infos[name, version] = labels = (name, version, sha256, provider)
        self.model_info.labels(*labels).set(1)

    def forget_engine(self, name: str, version: str) -> None:
        """Show nothing more of a version that is not loaded any more."""
        self.set_engine_state(f"{name}/{version}", None)
        self.batches.forget(f"{name}/{version}")
        labels = self._model_infos.pop((name, version), None)
        if labels is not None:
            self.model_info.remove(*labels)

    def set_engine_state(self, model: str, state: str | None) -> None:
        """Show the engine of `model` (NAME/VERSION) in this state only; None: it is gone."""
        _show(self._engine_state, self._engine_states, model, state)

    def set_device_state(self, device: str, state: str) -> None:
        """Show a device (by its UUID) in this state only."""
        _show(self._device_state, self._device_states, device, state)

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus's text format, of CONTENT_TYPE."""
        return generate_latest(self.registry)


def _show(gauge: Gauge, shown: dict[str, str], name: str, state: str | None) -> None:
    before = shown.pop(name, None)
    if before is not None:
        gauge.remove(name, before)
    if state is not None:
        shown[name] = state
        gauge.labels(name, state).set(1)


def _counter(registry: CollectorRegistry, name: str, text: str, *labels: str) -> Counter:
    return Counter(f"darkroom_{name}", text, labels, registry=registry)


def _gauge(registry: CollectorRegistry, name: str, text: str, *labels: str) -> Gauge:
    return Gauge(f"darkroom_{name}", text, labels, registry=registry)


def _seconds(
    registry: CollectorRegistry, name: str, text: str, label: str | None = None
) -> Histogram:
    return Histogram(
        f"darkroom_{name}_seconds", text, registry=registry, bounds=_SECONDS, label=label
    )
