"""Who is at fault decides what happens: the table of the architecture, as data."""

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType

from worker.errors import (
    BrokerUnavailable,
    ChannelError,
    ControlUnavailable,
    DeviceError,
    EngineFault,
    ModelError,
    RecordFault,
    RecordSkipped,
)
from worker.types import Failed, Skipped


class Fault(Enum):
    """Who is at fault."""

    RECORD = "record"
    """Undecodable, too large, an unknown model, convicted of killing engines."""
    MOMENT = "moment"
    """The deadline passed, or a version is not to be had now."""
    BATCH = "batch"
    """The run raised."""
    ENGINE = "engine"
    """It died, hung, broke the protocol, or failed at everything."""
    DEVICE = "device"
    """Absent or lost."""
    MODEL = "model"
    """It cannot load, or its golden samples differ."""
    WORLD = "world"
    """Kafka, Redis, the disk, the operating system."""


class Answer(Enum):
    """What is done about it."""

    DEAD_LETTER = "failed, and a dead letter, at once"
    SKIP = "skipped, with the reason"
    RUN_ALONE = "its rows again, one by one"
    RESPAWN = "kill it, start another after a back-off, run its rows again"
    DEVICE_POLICY = "the device policy decides"
    REFUSE = "refused; what was served before goes on"
    RETRY = "tried again after a back-off"


ANSWERS: Mapping[Fault, Answer] = MappingProxyType(
    {
        Fault.RECORD: Answer.DEAD_LETTER,
        Fault.MOMENT: Answer.SKIP,
        Fault.BATCH: Answer.RUN_ALONE,
        Fault.ENGINE: Answer.RESPAWN,
        Fault.DEVICE: Answer.DEVICE_POLICY,
        Fault.MODEL: Answer.REFUSE,
        Fault.WORLD: Answer.RETRY,
    }
)

_FAULTS: tuple[tuple[type[Exception], Fault], ...] = (
    (RecordFault, Fault.RECORD),
    (RecordSkipped, Fault.MOMENT),
    (EngineFault, Fault.ENGINE),
    (ChannelError, Fault.ENGINE),
    (DeviceError, Fault.DEVICE),
    (ModelError, Fault.MODEL),
    (BrokerUnavailable, Fault.WORLD),
    (ControlUnavailable, Fault.WORLD),
    (OSError, Fault.WORLD),
)


def fault_of(error: Exception) -> Fault | None:
    """Return who is at fault; None for an error that is the operator's (or a bug of ours)."""
    return next((fault for kind, fault in _FAULTS if isinstance(error, kind)), None)


def answer_to(error: Exception) -> Answer | None:
    """Return what is done about an error; None: nothing here may swallow it."""
    fault = fault_of(error)
    return None if fault is None else ANSWERS[fault]


def outcome_of(error: RecordFault | RecordSkipped) -> Failed | Skipped:
    """Return how a record ends that this error stopped."""
    if isinstance(error, RecordFault):
        return Failed(error.reason, str(error))
    return Skipped(error.reason, str(error))
