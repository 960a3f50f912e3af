"""The batcher shared by lanes: one lock, one condition for each role, few wake-ups."""

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from worker.engine.batcher import Batcher, Bounds, Decode, Decoded, Role, Run, Stop, Wait
from worker.engine.rows import Place
from worker.protocol.messages import Buffer
from worker.vision.containers import Header
from worker.vision.decode import ImageHwc


@dataclass(slots=True, eq=False)
class Work:
    """One record inside the engine. Belongs to the batcher or to one lane, never to both."""

    id: int
    image: Buffer
    alone: bool
    size_bytes: int
    arrived_s: float
    """`time.monotonic()`, as all times here."""
    width_px: int = 0
    height_px: int = 0
    header: Header | None = None
    """Once it is checked."""
    image_hwc: ImageHwc | None = None
    """Between decoding and preprocessing."""
    decode_s: float = 0.0
    preprocess_s: float = 0.0
    place: Place | None = None
    """Its row, once there is one."""


class Queue:
    """What lanes take their work from. Either all of them do anything, or each has a role."""

    def __init__(self, bounds: Bounds) -> None:
        self._batcher: Batcher[Work] = Batcher(bounds)
        self._lock = threading.Lock()
        self._changed = {role: threading.Condition(self._lock) for role in Role}

    def add(self, works: Iterable[Work]) -> None:
        with self._lock:
            self._batcher.add(works)
            self._wake()

    def bound(self, bounds: Bounds) -> None:
        """Replace the bounds; rows that wait are judged by the new ones at once."""
        with self._lock:
            self._batcher.bounds = bounds
            self._wake_all()

    def close(self) -> None:
        """Nothing more will be added; lanes stop when all is done."""
        with self._lock:
            self._batcher.close()
            self._wake_all()

    def abandon(self) -> None:
        """Forget all, and let every lane stop: the worker has gone, or a lane broke."""
        with self._lock:
            self._batcher.abandon()
            self._wake_all()

    def put_back(self, works: Sequence[Work]) -> None:
        """Give back what a lane was told to decode and did not begin."""
        with self._lock:
            self._batcher.put_back(works)
            self._wake()

    def take(
        self, *, role: Role = Role.ANY, decoded: Decoded[Work] | None = None
    ) -> Run[Work] | Decode[Work] | Stop:
        """Wait for what the lane must do next; `decoded`: what came of its last group, if any."""
        with self._lock:
            now_s = time.monotonic()
            if decoded is not None:
                self._batcher.ready(decoded, now_s)
                self._changed[Role.RUN].notify()
            action = self._batcher.next(now_s, role=role)
            while isinstance(action, Wait):
                until_s = action.until_s
                self._changed[role].wait(None if until_s is None else max(0.0, until_s - now_s))
                now_s = time.monotonic()
                action = self._batcher.next(now_s, role=role)
            if len(self._batcher):
                # What is left concerns a waiting lane: to do it now, or to watch its deadline
                # while this lane is busy. It wakes the next one in its turn.
                self._wake()
            elif isinstance(action, Stop):
                self._wake_all()
            return action

    def _wake(self) -> None:
        for changed in self._changed.values():
            changed.notify()

    def _wake_all(self) -> None:
        for changed in self._changed.values():
            changed.notify_all()
