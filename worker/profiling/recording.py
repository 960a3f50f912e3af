"""What one process recorded for a profile, as it lies in a file between it and the command.

All times are `time.monotonic()`: one clock for all processes of a machine.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import orjson


class Span(NamedTuple):
    """A lane was in a stage."""

    stage: str
    begun_s: float
    ended_s: float
    rows: int
    """That it had then; 0 where that means nothing."""


@dataclass(slots=True)
class LaneTrack:
    """One lane: seconds by stage, and the spans that they are the sums of."""

    name: str
    thread: int
    totals_s: dict[str, float] = field(default_factory=dict)
    rows: int = 0
    """That were run."""
    batches: int = 0
    spans: list[Span] = field(default_factory=list)
    spans_left_out: int = 0
    """Of which the totals know and the spans do not: there were too many."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Stacks of all threads, found at moments."""

    threads: Mapping[str, str]
    """Thread identifier -> name."""
    stacks: Sequence[Sequence[str]]
    """Each from the outermost function to the one at work, `module.qualname`."""
    taken: Sequence[tuple[float, int, int]]
    """(when, thread identifier, index of the stack), in the order of time."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """ONNX Runtime's own profile of runs of the golden sample, on a session beside the served."""

    zero_s: float
    """When the `ts` of its events is 0."""
    runs: int
    rows: int
    """Of each run."""
    events: Sequence[Mapping[str, Any]]
    """Complete events of Chrome's trace format: `name`, `cat`, `tid`, `ts` and `dur` in us,
    `args`."""


@dataclass(frozen=True, slots=True)
class Recording:
    """One process."""

    process: str
    pid: int
    begun_s: float
    ended_s: float
    cpu_s: float
    """Of all its threads, between begin and end."""
    samples: Samples
    lanes: Sequence[LaneTrack] = ()
    kernels: Kernels | None = None
    notes: Sequence[str] = ()
    """What could not be had, for people."""

    @property
    def seconds(self) -> float:
        return self.ended_s - self.begun_s

    def write(self, path: Path) -> None:
        """Write it as JSON. Raises OSError."""
        path.write_bytes(orjson.dumps(self, default=tuple))

    @classmethod
    def read(cls, path: Path) -> "Recording":
        """Read what `write` wrote. Raises OSError."""
        said = orjson.loads(path.read_bytes())
        said["samples"] = Samples(**said["samples"])
        said["lanes"] = [_lane(lane) for lane in said["lanes"]]
        said["kernels"] = Kernels(**said["kernels"]) if said["kernels"] else None
        return cls(**said)


def _lane(said: dict[str, Any]) -> LaneTrack:
    return LaneTrack(**{**said, "spans": [Span(*span) for span in said["spans"]]})
