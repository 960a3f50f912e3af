"""What flows through the worker: immutable values, one for each word of the architecture.

Nothing here does anything. Tuples rather than dataclasses: they are made for every record.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

Headers = tuple[tuple[str, bytes | None], ...]
"""Headers of a Kafka record in their order; a name may repeat, a value may be None."""

Policy = Literal[
    "prefer-gpu",
    "require-gpu",
    "cpu",
    "require-tensorrt",
    "require-cuda",
    "require-migraphx",
    "require-rocm",
    "require-openvino",
    "require-directml",
    "require-coreml",
]
"""On what engines may run; `require-NAME` is content with that execution provider alone."""
POLICIES: tuple[str, ...] = get_args(Policy)


class Reason(StrEnum):
    """Why a record failed, by its own fault. Closed; the same list stands in `schemas/`."""

    IMAGE_EMPTY = "image.empty"
    IMAGE_TYPE = "image.type"
    IMAGE_CORRUPT = "image.corrupt"
    IMAGE_TOO_LARGE = "image.too-large"
    IMAGE_TOO_MANY_PIXELS = "image.too-many-pixels"
    REQUEST_JSON = "request.json"
    REQUEST_SCHEMA = "request.schema"
    MODEL_UNKNOWN = "model.unknown"
    MODEL_VERSION_UNKNOWN = "model.version-unknown"
    RECORD_TOO_LARGE = "record.too-large"
    RECORD_POISON = "record.poison"
    RECORD_UNREADABLE = "record.unreadable"
    REFERENCE_DENIED = "reference.denied"
    REFERENCE_MISSING = "reference.missing"
    REFERENCE_CHECKSUM = "reference.checksum"
    RESULT_NOT_FINITE = "result.not-finite"
    RESULT_TOO_LARGE = "result.too-large"


class SkipReason(StrEnum):
    """Why a record was skipped, by the moment's fault."""

    EXPIRED = "expired"
    VERSION_UNAVAILABLE = "model.version-unavailable"


class Partition(NamedTuple):
    """A Kafka topic partition."""

    topic: str
    partition: int


class Position(NamedTuple):
    """Where a record stands in Kafka."""

    topic: str
    partition: int
    offset: int


class Record(NamedTuple):
    """A Kafka record as it was polled, and the ownership it was polled in."""

    position: Position
    epoch: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp_ms: int
    polled_s: float
    """`time.monotonic()` when it was polled."""
    unreadable: str | None = None
    """Why nothing of it but its position could be read from Kafka; None: all of it was."""


class Reference(NamedTuple):
    """A claim check: where the image is, and what its bytes must hash to."""

    url: str
    sha256: str | None


Image = bytes | Reference


class Request(NamedTuple):
    """A record understood."""

    record: Record
    image: Image
    model: str | None
    version: str | None
    tags: Mapping[str, str]
    request_id: str | None
    origin: str | None
    """Id of the first record of a redriven one; None for a record that was never redriven."""
    deadline_ms: int | None
    """Epoch milliseconds after which the record is skipped."""
    trace: Headers
    """The headers of `kafka.forward_headers`, as they came; they go on the result."""


class ModelRef(NamedTuple):
    """A model version."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


class Ticket(NamedTuple):
    """What travels with a request and never changes."""

    position: Position
    epoch: int
    model: ModelRef
    route: str
    """Why this version: `active`, later also `pin`, `asked`, `rule:NAME`, `split`, `fallback`."""
    generation: int | None


class Timing(NamedTuple):
    """Milliseconds that a record spent at the stages of the engine."""

    wait: float
    decode: float
    preprocess: float
    run: float
    heads: float


class ModelStamp(NamedTuple):
    """Exactly which weights made a prediction."""

    name: str
    version: str
    sha256: str
    manifest_sha256: str


class EngineStamp(NamedTuple):
    """Exactly what ran a prediction; equal for all predictions of one engine but `batch_size`."""

    provider: str
    device: str
    precision: str
    fallback: bool


class Predicted(NamedTuple):
    """A record served."""

    predictions: bytes
    """A JSON object, one member for each head; written into the result as it is."""
    width_px: int
    height_px: int
    """Of the upright image."""
    batch_size: int
    timing: Timing
    model: ModelStamp
    engine: EngineStamp


class Failed(NamedTuple):
    """A record that cannot be served, by its own fault."""

    reason: Reason
    message: str


class Skipped(NamedTuple):
    """A record that was not served now, by the moment's fault."""

    reason: SkipReason
    message: str


Outcome = Predicted | Failed | Skipped
"""How a record ended; a closed sum, matched exhaustively."""


class Limits(NamedTuple):
    """What may change while the worker runs, replaced whole; the settings give the first one."""

    max_size: int
    """Rows of a batch, at most."""
    min_size: int
    """Rows that an idle lane waits for, at least (until `max_wait_ms` is over)."""
    max_wait_ms: float
    max_bytes: int
    """Bytes of rows in a batch, at most."""
    image_max_bytes: int
    image_max_pixels: int
    thresholds: Mapping[str, float] = MappingProxyType({})
    """Head -> least score that is reported; those of the manifest where a head is not named."""
    slo_ms: float = 250.0
    """Service level objective: what batches are made to fit, and what counts as a backlog."""
    adaptive: bool = False
    """Sizes up to `max_size` are chosen by what is measured; else `max_size` is the cap."""
