"""What a worker answers: one value that is its heartbeat, its acknowledgement and its state.

Types and bytes; `documents.py` reads them. JSON Schema: `schemas/ack.v1.schema.json`.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

import orjson

from worker.models.router import NOTHING

ACK_SCHEMA = "darkroom.ack.v1"
BEAT_S = 5.0
"""Every worker answers again within so long."""


class Answer(StrEnum):
    """What a worker says to the generation that it saw last."""

    ACK = "ack"
    """Applied: it serves what that generation says."""
    PENDING = "pending"
    """Under way, or waiting for what the state names (a repository that lags)."""
    NACK = "nack"
    """Refused, with a code and the reason; it serves on what it had."""


class Code(StrEnum):
    """Why a state, or what it asks for, is refused."""

    STATE_INVALID = "state.invalid"
    """No JSON, or not of the schema."""
    STATE_FLEET = "state.fleet"
    """Of another fleet."""
    STATE_EPOCH = "state.epoch"
    """Of another epoch, which does not supersede ours."""
    STATE_STALE = "state.stale"
    """Older than what this worker has seen: replayed, or an old backup."""
    STATE_CONFLICT = "state.conflict"
    """The same generation with other content."""
    MODEL_ABSENT = "model.absent"
    """Not in the repository (yet)."""
    MODEL_CHANGED = "model.changed"
    """In the repository with other content than the state says."""
    MODEL_INVALID = "model.invalid"
    """It cannot be loaded: a file, its manifest, its graph, a golden sample."""
    MODEL_SIGNATURE = "model.signature"
    """It lacks a head that the version it would replace has."""
    MODEL_FETCH = "model.fetch"
    """The repository or the disk failed."""
    HEADROOM = "headroom"
    """No memory, or no place within `models.max_loaded`."""
    ENGINE = "engine"
    """Its engine died or hung while it loaded."""
    DEVICE = "device"
    """The device policy cannot be met."""


class Proof(StrEnum):
    """What was proven of a version that is prepared."""

    LOADED = "loaded"
    """It is warm and has passed its golden samples."""
    VERIFIED = "verified"
    """Its files only: there is no room for it beside what is served (`models.swap`)."""


class ModelUse(NamedTuple):
    """What a worker does with one model."""

    active: str | None
    """The version that it serves by default; None: none."""
    loaded: tuple[str, ...] = ()
    pinned: str | None = None
    reload: int = 0
    """The number under which the active version's engine was loaded."""
    state: str | None = None
    """Of the active version's engine: `serving`, `suspecting`, `down`; None: not loaded."""


class Ack(NamedTuple):
    """One worker, as it says itself."""

    fleet: str
    worker: str
    state: str
    """`starting`, `serving`, `paused`, `draining`, `drained`, `unready`, `stopping`."""
    epoch: str
    observed: int | None
    """The newest generation that it saw and could read; None: none."""
    generation: int | None
    """The generation that it serves by; None: its settings."""
    digest: str | None
    """Of the state that it serves by."""
    answer: Answer
    code: str | None = None
    """A `Code`; a later release's worker may say another."""
    reason: str | None = None
    prepared: str | None = None
    """Id of the rollout for which it is prepared (or has nothing to prepare)."""
    proof: Proof | None = None
    labels: Mapping[str, str] = NOTHING
    models: Mapping[str, ModelUse] = {}
    provider: str | None = None
    device: str | None = None
    devices: Mapping[str, str] = NOTHING
    """UUIDs of the GPUs that it was given -> what each is good for (`inference.ladder`)."""
    lag: int | None = None
    in_flight: int = 0
    build: str = ""
    sent_at_ms: int = 0
    """The worker's own clock."""


def encode_ack(ack: Ack) -> bytes:
    """Return the JSON of an answer."""
    document = {
        "schema": ACK_SCHEMA,
        **ack._asdict(),
        "labels": dict(ack.labels),
        "devices": dict(ack.devices),
        "models": {name: use._asdict() for name, use in ack.models.items()},
    }
    return orjson.dumps(document)


def better_off(ack: Ack, others: Mapping[str, Ack]) -> tuple[str, ...]:
    """Return which others still have a GPU, where this worker lost its own and serves without."""
    if "cpu_fallback" not in ack.devices.values() or "gpu_ok" in ack.devices.values():
        return ()
    return tuple(worker for worker, other in others.items() if "gpu_ok" in other.devices.values())
