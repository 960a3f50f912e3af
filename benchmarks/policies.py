"""Batching policies in a simulated device: Darkroom's own parts, and five others beside them.

Whoever is asked by the free device names the rows to run, or until when to wait. Darkroom's is the
real `Window`, `Batcher`, `Sizing` and `Costs`. The others are as their sources have them (Triton
73aad7c3, BentoML 32230a52, Clipper 9f25e3fc), but drop nothing: here nothing may be lost.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count
from statistics import fmean
from typing import NamedTuple, Protocol

import numpy as np

from worker.engine.batcher import Batcher, Bounds, Decode, Decoded, Run, Stop
from worker.engine.costs import Costs, Took
from worker.engine.sizing import Sizing
from worker.inference.window import Window
from worker.types import Limits

MOST = 128
Answer = Sequence[float] | float
"""Rows to run, each by when it came; or until when to wait."""


class World(NamedTuple):
    """A device, and what is wanted of it."""

    name: str
    seconds_of: Callable[[int], float]
    """Rows that run together -> seconds."""
    slo_s: float
    exact: bool
    """Darkroom runs every size on it; else powers of two, and fewer rows are padded."""


class Policy(Protocol):
    exact: bool
    """Runs what it names as it is; else padded to a power of two."""

    def add(self, at_s: float) -> None:
        """Take in a row that came now."""

    def next(self, now_s: float) -> Answer: ...

    def ran(self, now_s: float, rows: int, seconds: float) -> None:
        """Hear that what it named has run."""


class _Job(NamedTuple):
    id: int
    at_s: float
    alone: bool = False
    size_bytes: int = 100_000


class Darkroom:
    """The worker's window, and the engine's batcher and sizing, of one lane."""

    def __init__(self, world: World) -> None:
        self.exact = world.exact
        self._now_s = 0.0
        self._numbers = count()
        self._waiting: deque[_Job] = deque()
        limits = Limits(MOST, 1, 5.0, 1, 1, 1, slo_ms=world.slo_s * 1e3, adaptive=True)
        self._sizing = Sizing(
            Costs(exact=world.exact),
            limits,
            allowed=lambda limits: limits.max_size,
            warm=lambda rows: _took(world.seconds_of(rows)),
            tell=self._bound,
            aside=lambda work: work(),
        )
        self._batcher: Batcher[_Job] = Batcher(self._sizing.bounds)
        self._sizing.widen()
        self._sizing.limit(limits)
        self._window = Window(2, cap=self._sizing.bounds.cap, clock_s=lambda: self._now_s)

    def _bound(self, bounds: Bounds) -> None:
        self._batcher.bounds = bounds

    def add(self, at_s: float) -> None:
        self._waiting.append(_Job(next(self._numbers), at_s))

    def next(self, now_s: float) -> Answer:
        self._now_s = now_s
        while True:
            while self._waiting and self._window.has_room(len(self._batcher), 0):
                self._batcher.add([self._waiting.popleft()])
            self._sizing.behind(self._window.seconds(len(self._waiting)))
            match self._batcher.next(now_s):
                case Decode(jobs):
                    self._batcher.ready(Decoded(jobs, len(jobs)), now_s)
                case Run(jobs):
                    return [job.at_s for job in jobs]
                case Stop():
                    raise AssertionError("it was not closed")
                case wait:
                    return math.inf if wait.until_s is None else wait.until_s

    def ran(self, now_s: float, rows: int, seconds: float) -> None:
        self._now_s = now_s
        self._sizing.ran(rows, _took(seconds))
        self._window.cap = self._sizing.bounds.cap
        self._window.served(rows)


def _took(seconds: float) -> Took:
    return Took(seconds, seconds)


class _Queued:
    """What the others have in common: one queue."""

    exact = False

    def __init__(self, world: World) -> None:
        self.world = world
        self.queue: deque[float] = deque()

    def add(self, at_s: float) -> None:
        self.queue.append(at_s)

    def take(self, rows: int) -> list[float]:
        return [self.queue.popleft() for _ in range(min(rows, len(self.queue)))]

    def ran(self, now_s: float, rows: int, seconds: float) -> None:
        """Learn nothing."""


class Fixed(_Queued):
    """A fixed size, or what came within a fixed time (MLServer)."""

    size, linger_s = 32, 0.050

    def next(self, now_s: float) -> Answer:
        if not self.queue:
            return math.inf
        due_s = self.queue[0] + self.linger_s
        return self.take(self.size) if len(self.queue) >= self.size or now_s >= due_s else due_s


class Greedy(_Queued):
    """All there is, padded to a power of two."""

    def next(self, now_s: float) -> Answer:
        del now_s
        return self.take(MOST) or math.inf


class Preferred(_Queued):
    """Triton: a preferred size as soon as there is one, else what there is after a delay."""

    sizes, delay_s = (64, 32), 0.005

    def next(self, now_s: float) -> Answer:
        if not self.queue:
            return math.inf
        for size in self.sizes:
            if len(self.queue) >= size:
                return self.take(size)
        due_s = self.queue[0] + self.delay_s
        return self.take(len(self.queue)) if now_s >= due_s else due_s


class Cork(_Queued):
    """BentoML: waits while one more row is expected to cost those that wait less than it saves."""

    exact = True
    tick_s, decay = 0.001, 0.95

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.each_s = min(2.0, world.slo_s * 2 / 30)
        self.once_s = 0.0
        self.wait_s = 0.01
        self.seen: list[tuple[int, float, float]] = []

    def next(self, now_s: float) -> Answer:
        rows = len(self.queue)
        if not rows:
            return math.inf
        newest_s = now_s - self.queue[-1]
        corked = rows * (newest_s + self.tick_s + self.each_s) <= self.wait_s * self.decay
        if rows < MOST and corked:
            return now_s + self.tick_s
        self.waited_s = now_s - fmean((self.queue[0], self.queue[-1]))
        return self.take(MOST)

    def ran(self, now_s: float, rows: int, seconds: float) -> None:
        del now_s
        self.seen.append((rows, seconds, self.waited_s))
        if len(self.seen) == 50:
            sizes = np.array([[size, 1.0] for size, _, _ in self.seen])
            took = np.array([took_s for _, took_s, _ in self.seen])
            each, once = np.linalg.lstsq(sizes, took, rcond=None)[0]
            self.each_s, self.once_s = max(1e-6, float(each)), max(1e-6, float(once))
            self.wait_s = fmean(waited_s for _, _, waited_s in self.seen)
            self.seen.clear()


class Aimd(_Queued):
    """Clipper: one row more while a batch is within the objective, a tenth less when it was not."""

    exact = True

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.cap = 1.0

    def next(self, now_s: float) -> Answer:
        del now_s
        return self.take(int(self.cap)) or math.inf

    def ran(self, now_s: float, rows: int, seconds: float) -> None:
        del now_s
        if seconds > self.world.slo_s:
            self.cap = max(1.0, self.cap * 0.9)
        elif rows >= int(self.cap):
            self.cap = min(float(MOST), self.cap + 1)


OTHERS: dict[str, Callable[[World], Policy]] = {
    "fixed 32, 50 ms linger": Fixed,
    "greedy, padded": Greedy,
    "Triton 32, 64 + 5 ms": Preferred,
    "BentoML cork": Cork,
    "Clipper AIMD": Aimd,
}
