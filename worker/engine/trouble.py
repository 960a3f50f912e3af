"""What went wrong in a run, read off the error's type and text: a table, and nothing but strings.

ONNX Runtime raises the same few types for everything, and CUDA's errors come as text inside them.
It must not know sessions, lanes or what is done about an error.
"""

import re
from enum import StrEnum

_LONGEST = 600


class Kind(StrEnum):
    """What an error shows."""

    CANCEL = "cancel"
    """The run was told to end."""
    STICKY = "sticky"
    """The device's context is corrupt: every later call fails until the process ends."""
    OOM = "oom"
    """Memory could not be had; a smaller batch may do."""
    INIT = "init"
    """There is no device, or its driver refuses it."""
    SUSPECT = "suspect"
    """The device's libraries failed; it may have been this once."""
    INPUT = "input"
    """What was fed does not fit the graph."""
    MODEL = "model"
    """The graph cannot be run by anybody here."""
    UNKNOWN = "unknown"
    """Nothing that the table knows."""


DEVICE = frozenset({Kind.STICKY, Kind.OOM, Kind.INIT, Kind.SUSPECT})
"""These show a fault of the device: never a record's, never the model's."""

_MARKS: tuple[tuple[Kind, tuple[str, ...]], ...] = (
    (Kind.CANCEL, ("exiting due to terminate flag",)),
    (
        Kind.STICKY,
        (
            # 999 is "unknown", which is no reason for trust; 701, 712, 713 and 720 are not sticky.
            "CUDA failure (214|220|226|700|702|709|710|71[4-9]|721|999):",
            "device-side assert",
            "illegal memory access",
            "unspecified launch failure",
            "uncorrectable",
            "context is destroyed",
        ),
    ),
    (
        Kind.OOM,
        (
            "failed to allocate memory for requested buffer",
            "CUDA failure 2:",
            "CUBLAS_STATUS_ALLOC_FAILED",
            r"CUDNN_STATUS\w*ALLOC_FAILED",
            "out of memory",
        ),
    ),
    (
        Kind.INIT,
        (
            "CUDA failure (3|35|46|100|101|802|803|804):",
            "CUDA provider not available",
            "no CUDA-capable",
        ),
    ),
    (
        Kind.SUSPECT,
        ("CUBLAS", "CUDNN", "CUDA (failure|error)", "HIP (failure|error)", "MIOPEN", "TensorRT"),
    ),
    (
        Kind.INPUT,
        ("invalid rank", "invalid dimensions", "unexpected input data type", "required inputs"),
    ),
    (
        Kind.MODEL,
        (
            "is not a registered function/op",
            "INVALID_PROTOBUF",
            "INVALID_GRAPH",
            "external data path",
            "NO_SUCHFILE",
            "ValidateOpset",
        ),
    ),
)
"""In this order: what names the device is the device's, whatever else it says. Codes are CUDA's."""

_TEXTS = tuple((kind, re.compile("|".join(marks), re.IGNORECASE)) for kind, marks in _MARKS)

_TYPES = {
    "DeviceReset": Kind.STICKY,
    "MemoryError": Kind.OOM,
    "InvalidArgument": Kind.INPUT,
    "ValueError": Kind.INPUT,
    "InvalidGraph": Kind.MODEL,
    "InvalidProtobuf": Kind.MODEL,
    "NoModel": Kind.MODEL,
    "NoSuchFile": Kind.MODEL,
    "NotImplemented": Kind.MODEL,
}
"""By the name of the type: ONNX Runtime's, one for each status code, and Python's."""

_HOSTNAME = re.compile(r"\s*;?\s*hostname=[^;\s]*")


def classify(error: Exception) -> Kind:
    """Return what an error of a run, or of opening a session, shows."""
    text = str(error)
    for kind, pattern in _TEXTS:
        if pattern.search(text):
            return kind
    return _TYPES.get(type(error).__name__, Kind.UNKNOWN)


def scrubbed(text: str) -> str:
    """Return a text on one line and without the machine's name: it may go to a topic."""
    return _HOSTNAME.sub("", " ".join(text.split()))


def said(error: Exception) -> str:
    """Return the type of an error and what it says, scrubbed and cut."""
    return f"{type(error).__name__}: {scrubbed(str(error))}"[:_LONGEST]
