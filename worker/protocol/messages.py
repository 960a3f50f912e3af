"""What the worker and an engine say to each other: immutable messages and their bytes.

One message = a small JSON header, then raw bytes (the body). The channel frames them; nothing here
does I/O. Ids are the worker's own numbers for records, unique for the life of a worker.

worker -> engine    Load, Submit, SetLimits, StartProfile, Bye
engine -> worker    Loaded | LoadFailed, Outcomes, Warmed, Profiled, Trouble, Stopped
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import orjson

from worker.errors import ChannelError
from worker.types import Limits, Reason

Buffer = bytes | bytearray | memoryview


class Load(NamedTuple):
    """Load this version, prove it, warm it. Answered by Loaded or LoadFailed."""

    folder: str
    """Absolute path of the version's folder in the repository."""
    manifest_sha256: str
    """What the worker saw; another manifest in the folder is refused."""
    lanes: int
    limits: Limits
    decode_bytes: int
    """Bytes that all lanes together may reserve for decoding."""
    policy: str
    """`types.Policy`."""
    session: dict[str, str]
    """ONNX Runtime session options under ONNX Runtime's own names."""
    failpoint: str | None
    """Failpoints of the engine (`after_decode`, `before_run`, `after_run`), see failpoints."""
    quiet: bool = False
    """Load behind those who serve meanwhile: the thread that loads steps back."""
    provider_options: Mapping[str, dict[str, str]] = MappingProxyType({})
    """Execution provider -> its options; both under ONNX Runtime's own names."""
    staging: str = "auto"
    """`auto` (where the device has its own memory), `always` or `never`: see engine/staging.py."""
    artifacts: str = ""
    """Absolute path of the folder for what engines make of models and keep."""


class Loaded(NamedTuple):
    """The version is warm and proved itself on its golden samples."""

    sha256: str
    """Of model.onnx."""
    provider: str
    device: str
    precision: str
    fallback: bool
    max_size: int
    """The cap of a batch by manifest, graph, limits and what was measured; it may change later."""
    row_bytes: int
    load_ms: float
    service_ms: dict[str, float]
    """Batch size -> milliseconds from rows to predictions, measured while warming."""
    signature: dict[str, Any]
    """What the graph says: `inputs` and `outputs` (name, dtype, shape), `metadata`; then `nodes`
    (execution provider -> how many run there) and `refused` (why no better provider is used)."""
    bound: bool
    """Runs are bound and go one at a time, on `page.RUN_LANES` lanes of their own; else each of the
    lanes may run a batch while the others do."""


class LoadFailed(NamedTuple):
    """The version must not be served."""

    kind: str
    """Who is at fault: `model` (the version), `device`, or `settings` (options, installation)."""
    message: str
    """Without file and field, which stand beside it."""
    file: str | None
    field: str | None


class Row(NamedTuple):
    """One record of a Submit."""

    id: int
    image: Buffer
    alone: bool
    """A suspect: it is decoded and run in a batch of its own."""


class Submit(NamedTuple):
    """A group of records; each gets exactly one outcome, in whatever order."""

    rows: tuple[Row, ...]
    behind_s: float = 0.0
    """How long what waits in the worker behind these will take, at the rate of late."""


class SetLimits(NamedTuple):
    """What may change while the engine runs, replaced whole."""

    limits: Limits


class Warmed(NamedTuple):
    """Batches may be larger than when the version was loaded; sent before the first that is."""

    service_ms: dict[str, float]
    """As that of Loaded, of all sizes."""


class StartProfile(NamedTuple):
    """Record what the lanes do for so long. Answered by Profiled; records go on meanwhile."""

    seconds: float
    name: str
    """What the recording shall call this engine."""
    file: str
    """Absolute path of the recording (`profiling.recording`), in a folder of the worker's."""
    kernels: bool
    """With ONNX Runtime's own profile: the model is opened a second time for it."""


class Profiled(NamedTuple):
    """The recording was written; or it was not, then `problem` says why."""

    problem: str | None


class Bye(NamedTuple):
    """Finish what you have, send its outcomes, answer Stopped, exit."""


class Trouble(NamedTuple):
    """A fault of the device, sent once for each. What was being run has had no outcome.

    After `oom` the engine goes on with smaller batches, after `suspect` it may go on, having proved
    itself anew; after all others it ends.
    """

    kind: str
    """`oom`, `sticky`, `init` or `suspect` (`engine.trouble.Kind`)."""
    message: str


class Stopped(NamedTuple):
    """Everything submitted has had its outcome; the engine exits."""


class Done(NamedTuple):
    """A row served."""

    id: int
    width_px: int
    height_px: int
    wait_ms: float
    """From intake to the start of its decoding, plus from its row ready to its run."""
    decode_ms: float
    preprocess_ms: float
    predictions: bytes
    """JSON object, one member for each head."""


class Fault(NamedTuple):
    """A row that failed by the record's own fault."""

    id: int
    reason: Reason
    message: str


class Retry(NamedTuple):
    """A row whose run failed though nothing showed the record to be at fault."""

    id: int
    message: str


class Outcomes(NamedTuple):
    """Outcomes of rows: one batch's, or those of records that never became rows."""

    done: tuple[Done, ...]
    faults: tuple[Fault, ...]
    retries: tuple[Retry, ...]
    run_ms: float
    heads_ms: float
    batch_size: int
    """Rows that ran together; 0 when nothing ran."""
    cap: int = 0
    """Rows of a batch, at most, as the engine has it now; 0 when nothing ran."""


Message = (
    Load
    | Loaded
    | LoadFailed
    | Submit
    | SetLimits
    | Warmed
    | StartProfile
    | Profiled
    | Bye
    | Outcomes
    | Trouble
    | Stopped
)

_PLAIN: dict[str, type[Any]] = {
    "load": Load,
    "loaded": Loaded,
    "load-failed": LoadFailed,
    "limits": SetLimits,
    "warmed": Warmed,
    "start-profile": StartProfile,
    "profiled": Profiled,
    "bye": Bye,
    "trouble": Trouble,
    "stopped": Stopped,
}
_TAGS = {kind: tag for tag, kind in _PLAIN.items()}


def encode(message: Message) -> list[Buffer]:
    """Return the message as buffers: its JSON header first, then the parts of its body."""
    match message:
        case Submit(rows, behind_s):
            head = [(row.id, len(row.image), row.alone) for row in rows]
            return [orjson.dumps(("submit", head, behind_s)), *(row.image for row in rows)]
        case Outcomes(done, faults, retries, run_ms, heads_ms, batch_size, cap):
            head_done = [(*row[:6], len(row.predictions)) for row in done]
            header = ("outcomes", head_done, faults, retries, run_ms, heads_ms, batch_size, cap)
            return [orjson.dumps(header, default=tuple), *(row.predictions for row in done)]
        case _:
            return [orjson.dumps((_TAGS[type(message)], *message), default=_plain)]


def decode(header: Buffer, body: memoryview) -> Message:
    """Return the message of a header and its body; images are views of the body, not copies.

    Raises ChannelError when they do not fit the protocol.
    """
    try:
        kind, *fields = orjson.loads(header)
        if kind == "submit":
            return Submit(_rows(fields[0], body), fields[1])
        if kind == "outcomes":
            return _outcomes(fields, body)
        if kind == "load":
            fields[3] = Limits(*fields[3])
        elif kind == "limits":
            fields[0] = Limits(*fields[0])
        message: Message = _PLAIN[kind](*fields)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise ChannelError(f"a message that is not of the protocol: {error!r}") from error
    return message


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else tuple(value)


def _rows(head: Sequence[tuple[int, int, bool]], body: memoryview) -> tuple[Row, ...]:
    rows, start = [], 0
    for row_id, size, alone in head:
        rows.append(Row(row_id, body[start : start + size], alone))
        start += size
    return tuple(rows)


def _outcomes(fields: list[Any], body: memoryview) -> Outcomes:
    head, faults, retries, run_ms, heads_ms, batch_size, cap = fields
    done, start = [], 0
    for *row, size in head:
        done.append(Done._make((*row, bytes(body[start : start + size]))))
        start += size
    return Outcomes(
        tuple(done),
        tuple(Fault(row, Reason(reason), message) for row, reason, message in faults),
        tuple(Retry(*row) for row in retries),
        run_ms,
        heads_ms,
        batch_size,
        cap,
    )
