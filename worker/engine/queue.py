"""The batcher shared by lanes: one lock, one condition, as few wake-ups as possible."""

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from worker.engine.batcher import Batcher, Bounds, Decode, Run, Stop, Wait
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
    """What lanes take their work from."""

    def __init__(self, bounds: Bounds) -> None:
        self._batcher: Batcher[Work] = Batcher(bounds)
        self._changed = threading.Condition()

    def add(self, works: Iterable[Work]) -> None:
        with self._changed:
            self._batcher.add(works)
            self._changed.notify()

    def bound(self, bounds: Bounds) -> None:
        """Replace the bounds; rows that wait are judged by the new ones at once."""
        with self._changed:
            self._batcher.bounds = bounds
            self._changed.notify_all()

    def close(self) -> None:
        """Nothing more will be added; lanes stop when all is done."""
        with self._changed:
            self._batcher.close()
            self._changed.notify_all()

    def abandon(self) -> None:
        """Forget all and stop: the worker has gone."""
        with self._changed:
            self._batcher.clear()
            self._batcher.close()
            self._changed.notify_all()

    def put_back(self, works: Sequence[Work]) -> None:
        """Give back what a lane was told to decode and did not begin."""
        with self._changed:
            self._batcher.put_back(works)
            self._changed.notify()

    def take(self, *, ready: Sequence[Work] = ()) -> Run[Work] | Decode[Work] | Stop:
        """Give the rows that the lane has made, and wait for what it must do next."""
        with self._changed:
            now_s = time.monotonic()
            if ready:
                self._batcher.ready(ready, now_s)
            action = self._batcher.next(now_s)
            while isinstance(action, Wait):
                until_s = action.until_s
                self._changed.wait(None if until_s is None else max(0.0, until_s - now_s))
                now_s = time.monotonic()
                action = self._batcher.next(now_s)
            if len(self._batcher):
                # What is left concerns a waiting lane: to do it now, or to watch its deadline
                # while this lane is busy. It wakes the next one in its turn.
                self._changed.notify()
            return action
