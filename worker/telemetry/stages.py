"""The one recorder of how long records spend at each of the eight stops (ARCHITECTURE.md)."""

from collections.abc import Sequence
from enum import StrEnum

from worker.telemetry.metrics import Metrics


class Stop(StrEnum):
    """The eight stops of a record's life, in their order."""

    POLL = "poll"
    """From polled to looked at."""
    REQUEST = "request"
    """The envelope parsed and, where the image is a reference, fetched."""
    ROUTE = "route"
    """A model version chosen and leased."""
    DISPATCH = "dispatch"
    """Waiting for an engine's window, and in the engine for a lane."""
    DECODE = "decode"
    """Decoded and preprocessed into a row."""
    BATCH = "batch"
    """The run of the batch that the row was in."""
    HEADS = "heads"
    """Outputs turned into predictions."""
    DELIVER = "deliver"
    """From an outcome to an acknowledged result."""


class Stages:
    """Observe a group of records at a time: a call costs more than a value."""

    def __init__(self, metrics: Metrics) -> None:
        self._buckets = {stop: metrics.stage_seconds.of(stop) for stop in Stop}

    def observe(self, stop: Stop, seconds: Sequence[float]) -> None:
        self._buckets[stop].observe_many(seconds)
