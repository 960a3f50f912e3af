"""Keeps one engine alive for one model version: starts, watches, buries and starts again."""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from typing import NamedTuple

import structlog

from worker.errors import ChannelError, DarkroomError
from worker.inference.dispatcher import Attached, Dispatcher
from worker.inference.engines import Engine, EngineSpec
from worker.inference.faults import answer_to
from worker.inference.process import Spawn
from worker.inference.window import Window
from worker.protocol.messages import Loaded, Outcomes, Stopped
from worker.types import EngineStamp, Limits, ModelStamp

_WATCHDOG_FLOOR_S = 30.0
"""The largest picture allowed takes about 2 s to decode; ten times that on a starved machine."""
_WATCHDOG_RUNS = 20
"""A run is hanging when it takes so many times the slowest one measured while warming."""
_LOOKS_PER_WATCHDOG = 10
_SERVED_WELL_S = 60.0
"""An engine that lived so long ends the back-off."""
_MAX_DELAY_S = 30.0

_log = structlog.get_logger()


class Backoff:
    """Seconds to wait before the next engine: 0, 1, 2, 4 ... 30, each with up to a half less."""

    def __init__(self, jitter: Callable[[], float] = random.random) -> None:
        self._jitter = jitter
        self._failures = 0

    def reset(self) -> None:
        self._failures = 0

    def next_s(self) -> float:
        """Return how long to wait after one more failure."""
        self._failures += 1
        if self._failures == 1:
            return 0.0
        return min(_MAX_DELAY_S, 2.0 ** min(self._failures - 2, 10)) * (1 - self._jitter() / 2)


class Status(NamedTuple):
    """What there is to say of a version's engine."""

    state: str
    """`loading`, `serving`, `suspecting` (records run alone), `down` (waits before the next)."""
    pid: int | None
    sha256: str | None
    """Of the model's weights."""
    provider: str | None
    device: str | None
    lanes: int
    max_size: int
    in_flight: int
    restarts: int
    convicted: int
    reason: str | None
    """Why it is down, or why the last engine ended."""


OnEngine = Callable[[str | None], None]
"""Is told None when another engine is warm, and the reason when one ended or did not load.

Not of ends that were asked for, nor of those that a record was convicted of.
"""


class Supervisor:
    """One model version's engine and its dispatcher. `start`, then `stop`."""

    def __init__(
        self,
        spec: EngineSpec,
        dispatcher: Dispatcher,
        *,
        spawn: Spawn,
        on_engine: OnEngine,
        backoff: Backoff | None = None,
    ) -> None:
        self._spec = spec
        self._dispatcher = dispatcher
        self._spawn = spawn
        self._on_engine = on_engine
        self._backoff = backoff or Backoff()
        self._engine: Engine | None = None
        self._loaded: Loaded | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._stuck: frozenset[int] = frozenset()
        self._restarts = 0
        self._reason: str | None = None

    @property
    def dispatcher(self) -> Dispatcher:
        return self._dispatcher

    @property
    def pid(self) -> int | None:
        """Process of the engine; None while there is none."""
        return self._engine.pid if self._engine else None

    @property
    def up(self) -> bool:
        """An engine is there to take records."""
        return self._engine is not None

    @property
    def ready(self) -> bool:
        return self.up and self._dispatcher.ready

    @property
    def capacity_rows(self) -> int:
        """Rows in the engine that keep its lanes busy: one batch for each."""
        return self._spec.load.lanes * (self._loaded.max_size if self._loaded else 1)

    @property
    def status(self) -> Status:
        loaded = self._loaded
        return Status(
            state=self._state(),
            pid=self.pid,
            sha256=loaded.sha256 if loaded else None,
            provider=loaded.provider if loaded else None,
            device=loaded.device if loaded else None,
            lanes=self._spec.load.lanes,
            max_size=loaded.max_size if loaded else 0,
            in_flight=self._dispatcher.in_flight,
            restarts=self._restarts,
            convicted=self._dispatcher.convicted,
            reason=self._reason,
        )

    def problem(self) -> str | None:
        """Return what makes the worker itself unwell: supervision ended, or a kill had no effect.

        An engine that is down or hangs is no such problem: it is being seen to.
        """
        if self._task is not None and self._task.done() and not self._stopping:
            return f"the supervision of {self._spec.ref} has ended"
        if self._engine and self._engine.held_longer_than(3 * self._watchdog_s(self._engine)):
            return f"the engine of {self._spec.ref} hangs and cannot be killed"
        return None

    async def start(self) -> None:
        """Load the version for the first time and begin to serve.

        Raises ModelError, DeviceError, SettingsError, EngineFault or OSError: the version cannot be
        served.
        """
        engine = await self._load()
        # Those that follow are in a hurry: records wait for them.
        self._spec = self._spec._replace(load=self._spec.load._replace(quiet=False))
        self._begin(engine)
        name = f"engine {self._spec.ref}"
        self._task = asyncio.create_task(self._run(engine), name=name)

    def set_limits(self, limits: Limits) -> None:
        """Replace the limits, in this engine and in those that follow it."""
        self._spec = self._spec._replace(load=self._spec.load._replace(limits=limits))
        if self._engine is not None:
            self._engine.set_limits(limits)

    async def stop(self, deadline_s: float) -> None:
        """Let the engine finish what it has, then end it; after the deadline kill it."""
        self._stopping = True
        self._dispatcher.close()
        if self._task is None:
            return
        if self._engine is not None:
            self._engine.say_bye()
            await asyncio.wait([self._task], timeout=deadline_s)
        if self._engine is not None:
            self._engine.condemn(f"it did not finish within {deadline_s:g} s")
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        # It may have been cancelled while it buried an engine, and so not have told of its end.
        self._dispatcher.detach((), "it was stopped")

    async def _run(self, engine: Engine) -> None:
        while True:
            convicted = self._dispatcher.convicted
            served_s = await self._serve(engine)
            if self._stopping:
                return
            guilty = self._dispatcher.convicted > convicted
            if served_s > _SERVED_WELL_S or guilty:
                self._backoff.reset()
            if not guilty:
                self._on_engine(self._reason)
            engine = await self._again()
            self._begin(engine)
            self._on_engine(None)

    def _begin(self, engine: Engine) -> None:
        self._engine, self._stuck = engine, frozenset()
        self._dispatcher.attach(self._attached(engine))

    async def _serve(self, engine: Engine) -> float:
        """Serve until the engine ends, bury it, return how many seconds it served."""
        watch = asyncio.create_task(self._watch(engine), name=f"watchdog {self._spec.ref}")
        why = "it closed its channel"
        try:
            await self._receive(engine)
        except ChannelError as error:
            why = str(error)
        finally:
            watch.cancel()
            self._engine = None
            held = self._stuck or engine.held()
            how = await engine.destroy()
        served_s = time.monotonic() - engine.started_s
        if not self._stopping:
            self._reason = f"{why}: {how}"
            _log.error(
                "engine.ended", model=str(self._spec.ref), pid=engine.pid, why=self._reason,
                held=len(held), served_s=round(served_s, 1),
            )  # fmt: skip
        self._dispatcher.detach(held, how)
        return served_s

    async def _receive(self, engine: Engine) -> None:
        while (message := await engine.receive()) is not None:
            match message:
                case Outcomes():
                    self._dispatcher.outcomes(message)
                case Stopped():
                    return
                case _:
                    raise ChannelError(f"an engine that sends {type(message).__name__}")

    async def _watch(self, engine: Engine) -> None:
        """Kill the engine when one of its lanes hangs: a heartbeat would go on meanwhile."""
        watchdog_s = self._watchdog_s(engine)
        while not (stuck := engine.held_longer_than(watchdog_s)):  # noqa: ASYNC110 - a page in shared memory wakes nobody
            await asyncio.sleep(min(1.0, watchdog_s / _LOOKS_PER_WATCHDOG))
        # Only those of the lanes that hang: the others were not at fault for this end.
        self._stuck = stuck
        engine.condemn(f"a lane was at the same work for more than {watchdog_s:g} s")

    async def _again(self) -> Engine:
        """Start engines, each after its back-off, until one has loaded."""
        while True:
            await asyncio.sleep(self._backoff.next_s())
            try:
                engine = await self._load()
            except (DarkroomError, OSError) as error:
                answer = answer_to(error)
                if answer is None:
                    raise
                # It has loaded before: whoever is at fault now, it may pass. What cannot be
                # served waits, the worker is not ready and says why.
                self._reason = str(error)
                _log.error(
                    "engine.refused", model=str(self._spec.ref), why=str(error), answer=answer.value
                )
                self._on_engine(self._reason)
            else:
                self._restarts += 1
                return engine

    async def _load(self) -> Engine:
        began_s, spec = time.monotonic(), self._spec
        engine = await Engine.start(spec, self._spawn)
        if self._spec != spec:
            engine.set_limits(self._spec.load.limits)
        self._loaded = engine.loaded
        _log.info(
            "engine.loaded", model=str(self._spec.ref), pid=engine.pid,
            provider=engine.loaded.provider, lanes=self._spec.load.lanes,
            max_size=engine.loaded.max_size, staging=engine.loaded.signature.get("staging"),
            took_s=round(time.monotonic() - began_s, 2),
        )  # fmt: skip
        return engine

    def _attached(self, engine: Engine) -> Attached:
        loaded, ref = engine.loaded, self._spec.ref
        return Attached(
            engine,
            Window(2 * self._spec.load.lanes * loaded.max_size),
            ModelStamp(ref.name, ref.version, loaded.sha256, self._spec.load.manifest_sha256),
            EngineStamp(loaded.provider, loaded.device, loaded.precision, loaded.fallback),
        )

    def _watchdog_s(self, engine: Engine) -> float:
        if self._spec.watchdog_s is not None:
            return self._spec.watchdog_s
        slowest_s = max(engine.loaded.service_ms.values(), default=0.0) / 1e3
        return max(_WATCHDOG_FLOOR_S, _WATCHDOG_RUNS * slowest_s)

    def _state(self) -> str:
        if self._loaded is None:
            return "loading"
        if self._engine is None:
            return "down"
        return "serving" if self._dispatcher.ready else "suspecting"
