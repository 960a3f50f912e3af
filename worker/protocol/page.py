"""The page of progress words: what each lane of an engine is doing, readable after its death.

Shared, anonymous memory (`memfd_create`, never /dev/shm) that the engine inherits. A lane writes
its own slot only; the worker reads all of them, at any time, also after a SIGKILL: the ids that a
slot names are the suspects.

Slot: u32 phase, u32 count, u64 since (CLOCK_MONOTONIC, ns: one clock for all processes), ids u64.
Readers take no lock: the phase is written last and taken away first, and it alone makes the rest
valid. A slot that is being written reads as idle, never as a lane that is old.
"""

import mmap
import os
import struct
import tempfile
import time
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

_HEAD = struct.Struct("<IIQ")
_REST = struct.Struct("<IQ")
_ONE = struct.Struct("<IQQ")
_PHASE_BYTES = 4
_ID_BYTES = 8


RUN_LANES = 2
"""Slots beside those of the lanes that decode, for an engine whose runs have lanes of their own."""


class Phase(IntEnum):
    IDLE = 0
    DECODE = 1
    RUN = 2


class Progress(NamedTuple):
    """What one lane is doing."""

    phase: Phase
    since_s: float
    """`time.monotonic()` when it began."""
    ids: tuple[int, ...]
    """The records that it holds; the suspects, should the engine die now."""


_NOTHING = Progress(Phase.IDLE, 0.0, ())


class Page:
    """One page for one engine. The worker makes it; the engine maps the same descriptor."""

    def __init__(self, descriptor: int, *, lanes: int, max_ids: int) -> None:
        self.descriptor = descriptor
        self.lanes = lanes
        self._max_ids = max_ids
        self._slot_bytes = _HEAD.size + _ID_BYTES * max_ids
        self._memory = mmap.mmap(descriptor, _size(lanes, max_ids))

    @classmethod
    def make(cls, *, lanes: int, max_ids: int) -> "Page":
        """Make a page of zeros: every lane idle."""
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("darkroom-progress")
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, _size(lanes, max_ids))
        return cls(descriptor, lanes=lanes, max_ids=max_ids)

    def begin(self, lane: int, phase: Phase, ids: Sequence[int]) -> None:
        """Say that a lane has begun something with these records. At most `max_ids` are kept."""
        at = lane * self._slot_bytes
        self._memory[at] = Phase.IDLE
        if len(ids) == 1:  # most often, and twice for every record: one call
            _ONE.pack_into(self._memory, at + _PHASE_BYTES, 1, time.monotonic_ns(), ids[0])
        else:
            kept = ids[: self._max_ids]
            struct.pack_into(f"<{len(kept)}Q", self._memory, at + _HEAD.size, *kept)
            _REST.pack_into(self._memory, at + _PHASE_BYTES, len(kept), time.monotonic_ns())
        self._memory[at] = phase

    def idle(self, lane: int) -> None:
        """Say that a lane holds nothing."""
        self._memory[lane * self._slot_bytes] = Phase.IDLE

    def read(self) -> list[Progress]:
        """Return what every lane is doing now."""
        return [self._slot(lane * self._slot_bytes) for lane in range(self.lanes)]

    def close(self) -> None:
        self._memory.close()
        os.close(self.descriptor)

    def _slot(self, at: int) -> Progress:
        """Read a slot again and again until its lane did not write meanwhile."""
        ids_at, after = at + _HEAD.size, self._memory[at : at + _HEAD.size]
        while True:
            before = after
            phase, count, since_ns = _HEAD.unpack(before)
            ids = struct.unpack_from(f"<{min(count, self._max_ids)}Q", self._memory, ids_at)
            after = self._memory[at:ids_at]
            if before == after:
                return Progress(Phase(phase), since_ns / 1e9, ids) if phase else _NOTHING


def _size(lanes: int, max_ids: int) -> int:
    needed = lanes * (_HEAD.size + _ID_BYTES * max_ids)
    return -(-needed // mmap.PAGESIZE) * mmap.PAGESIZE
