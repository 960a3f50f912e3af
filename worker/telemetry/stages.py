"""The one recorder of how long records spend at each of the eight stops (ARCHITECTURE.md)."""

from collections.abc import Sequence
from enum import StrEnum

from worker.telemetry.metrics import Metrics


class Stop(StrEnum):
    """The eight stops of a record's life, in their order."""

    POLL = "poll"
    """From its timestamp to its poll: the wait in Kafka."""
    REQUEST = "request"
    """The envelopes of a group parsed."""
    ROUTE = "route"
    """Model versions chosen for a group."""
    DISPATCH = "dispatch"
    """Waiting for an engine's window, and in the engine for a lane."""
    DECODE = "decode"
    """Decoded and preprocessed into a row."""
    BATCH = "batch"
    """The run of the batch that the row was in."""
    HEADS = "heads"
    """Outputs turned into predictions."""
    DELIVER = "deliver"
    """A prefix sent, until it is acknowledged."""


class Stages:
    """Observe a group of records at a time: a call costs more than a value."""

    def __init__(self, metrics: Metrics) -> None:
        self._buckets = {stop: metrics.stage_seconds.of(stop) for stop in Stop}

    def observe(self, stop: Stop, seconds: Sequence[float]) -> None:
        self._buckets[stop].observe_many(seconds)
