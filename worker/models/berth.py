"""One version's place in this worker: its jobs, its breaker, and its engines while it has any.

Its jobs outlive engines: what waits here waits for the next one.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum

from worker.errors import DarkroomError, EngineFault
from worker.inference.dispatcher import Dispatcher
from worker.inference.pool import Pool
from worker.models.breaker import Breaker, BreakerState
from worker.models.repository import Version
from worker.types import ModelRef


class Role(StrEnum):
    """Why a version has, or may have, an engine."""

    SERVING = "serving"
    """A route names it."""
    WANTED = "wanted"
    """The desired state wants it warm; no route names it yet."""
    HELD = "held"
    """It was one of these: kept warm for a roll back, where there is room, for a while."""
    ASKED = "asked"
    """Only records that ask for it by its version are served by it."""


class Berth:
    """What is known of one version. `changed` is called when its engine comes or fails."""

    def __init__(
        self,
        ref: ModelRef,
        *,
        dispatch: Callable[["Berth"], Dispatcher],
        breaker: Breaker,
        clock_s: Callable[[], float],
        changed: Callable[["Berth"], None],
        release: Callable[[Version], None],
    ) -> None:
        self.ref = ref
        self.dispatcher = dispatch(self)
        self.breaker = breaker
        self._clock_s = clock_s
        self._changed = changed
        self._release = release
        self.role = Role.ASKED
        self.version: Version | None = None
        """As it was loaded last."""
        self.found: Version | None = None
        """What the repository keeps for us on this disk."""
        self.pool: Pool | None = None
        self.number = 0
        """The reload under which the engine was loaded."""
        self.loaded_s = 0.0
        self.used_s = 0.0
        """When a record came for it, or it was loaded."""
        self.seen_bytes = 0
        """Memory that the largest of its last engines had; 0: not known."""
        self.left_s = 0.0
        """When it became HELD."""
        self.opened_s = 0.0
        """When its breaker opened."""
        self.error: DarkroomError | None = None
        """The last failure."""
        self.reopened = False
        """The last failure opened its breaker once more."""
        self.trial = False
        """One record is with it to see whether its breaker can close."""
        self.stopped = False
        """It must not come back by itself: another version is taking its place."""
        self.demand: asyncio.Task[None] | None = None
        """Loads it because records wait for it."""
        self.ending: asyncio.Task[None] | None = None
        self._keepers = 0

    @property
    def loaded(self) -> bool:
        """Whether it has an engine, also one that is being replaced after a fault."""
        return self.pool is not None and self.ending is None

    @property
    def in_flight(self) -> int:
        return self.dispatcher.in_flight

    @property
    def state(self) -> BreakerState:
        """Of its breaker, now."""
        return self.breaker.state(self._clock_s())

    @property
    def restricted(self) -> bool:
        """Whether another record must not come here now, if there is somewhere else to go."""
        state = self.state
        if state is BreakerState.HALF_OPEN:
            return self.trial or (self.pool is not None and not self.pool.up)
        return state is BreakerState.OPEN

    @property
    def in_use(self) -> bool:
        """Whether somebody still has to do with it, though it may have no engine."""
        return bool(self._keepers or self.in_flight or self.demand)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Let it not be forgotten meanwhile."""
        self._keepers += 1
        try:
            yield
        finally:
            self._keepers -= 1
            self.let_go()

    def let_go(self) -> None:
        """Let its files be evicted, unless an engine has them, or somebody is about to load it."""
        if self.found is not None and self.pool is None and not self._keepers:
            found, self.found = self.found, None
            self._release(found)

    def begin(self, pool: Pool, version: Version, number: int) -> None:
        """Take note that an engine of it serves from now on."""
        self.pool, self.version, self.number = pool, version, number
        self.ending = None
        if self.role is Role.HELD:  # somebody wants it again
            self.role = Role.ASKED
        self.loaded_s = self.used_s = self._clock_s()
        self._changed(self)

    def on_engine(self, why: str | None) -> None:
        """Hear of its pool that another engine is warm (None), or why one was lost."""
        if why is None:
            self._changed(self)
        else:
            self.failed(EngineFault(f"{self.ref}: {why}"))

    def failed(self, error: DarkroomError) -> None:
        """Count a failure: an engine lost, or one that did not load."""
        self.error = error
        self.trial = self.trial and self.pool is None  # then it can still go elsewhere
        now_s = self._clock_s()
        before = self.breaker.state(now_s)
        self.breaker.failed(now_s)
        opened = before is not BreakerState.OPEN and self.state is BreakerState.OPEN
        if opened:
            self.opened_s = now_s
        self.reopened = opened and before is BreakerState.HALF_OPEN
        self._changed(self)

    def passed(self) -> None:
        """Count a record that was served."""
        closed = self.state is not BreakerState.CLOSED
        self.breaker.passed()
        self.trial = False
        if closed:
            self._changed(self)
