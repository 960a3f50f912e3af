"""What the lanes of an engine do while a profile is taken: each is in exactly one stage at a time.

So a lane's stages add up to its time, by construction. It must not know models or records.
"""

import importlib
import threading
import time
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from worker.profiling.recording import LaneTrack, Span

_MOST_SPANS = 50_000
"""Of one lane; those behind them are counted and stand in its totals."""


class Stage(StrEnum):
    """What a lane may be doing, in the order of a record's life."""

    WAITING = "waiting"
    """Nothing to do; or it is not its turn, or there is no memory to decode in."""
    DECODE = "decode"
    """Sniff and decode."""
    PREPROCESS = "preprocess"
    """From the decoded image to its row."""
    COPY_IN = "copy in"
    """Rows made one tensor; where the session is not on the CPU, that brought to its device."""
    KERNELS = "kernels"
    """Inside the session's run."""
    COPY_OUT = "copy out"
    """The outputs brought from the device, as arrays."""
    HEADS = "heads"
    """Outputs made predictions."""
    SEND = "send"
    """Outcomes written to the worker."""


class Stages:
    """Tracks of some lanes from now until `close`.

    A lane looks whether there is one at each of some ten stages of a batch: 12 ns while there is
    none (measured), and 3 us while a profile is taken.
    """

    def __init__(self, lanes: Mapping[int, tuple[str, Stage]]) -> None:
        """Begin. `lanes`: thread identifier -> its name, and the stage that it is in now."""
        now_s = time.monotonic()
        ranges = _nvtx()
        self._tracks = {
            thread: _Track(name, thread, Span(stage.value, now_s, now_s, 0), ranges)
            for thread, (name, stage) in lanes.items()
        }

    def enter(self, stage: Stage, rows: int = 0) -> None:
        """Take note that the calling lane enters a stage; other threads are no lanes."""
        track = self._tracks.get(threading.get_ident())
        if track is not None:
            track.enter(stage, rows)

    def close(self) -> list[LaneTrack]:
        """End every lane's stage now, and return the tracks."""
        return [track.close() for track in self._tracks.values()]


class _Track:
    def __init__(self, name: str, thread: int, now: Span, ranges: Any) -> None:
        self._lane = LaneTrack(name, thread)
        self._now = now
        self._ranges = ranges
        self._range = ranges.start_range(message=now.stage) if ranges else None
        self._closed = False

    def enter(self, stage: Stage, rows: int) -> None:
        if self._closed:
            return  # the lane took the hook up just before it was taken away
        now_s = time.monotonic()
        ended, self._now = self._now, Span(stage.value, now_s, now_s, rows)
        self._add(ended, now_s)
        if self._ranges:
            self._ranges.end_range(self._range)
            self._range = self._ranges.start_range(message=stage.value)
        if stage is Stage.COPY_IN:
            self._lane.batches += 1
            self._lane.rows += rows

    def close(self) -> LaneTrack:
        self._closed = True
        self._add(self._now, time.monotonic())
        if self._ranges:
            self._ranges.end_range(self._range)
        return self._lane

    def _add(self, span: Span, end_s: float) -> None:
        lane = self._lane
        lane.totals_s[span.stage] = lane.totals_s.get(span.stage, 0.0) + end_s - span.begun_s
        if len(lane.spans) < _MOST_SPANS:
            lane.spans.append(span._replace(ended_s=end_s))
        else:
            lane.spans_left_out += 1


def _nvtx() -> Any:
    """Return the package that shows ranges to Nsight Systems where it is installed, else None.

    Ranges of the process rather than of the thread: those are ended by whoever ends the profile.
    """
    try:
        return importlib.import_module("nvtx")
    except ImportError:
        return None
