"""Keeps one engine alive for one model version: starts, watches, buries and starts again.

Whose fault an engine's end was decides who hears of it: its device, or its version.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping

import structlog

from worker.errors import ChannelError, DarkroomError, DeviceError
from worker.inference.backoff import Backoff
from worker.inference.capacity import Capacity
from worker.inference.device import Device
from worker.inference.dispatcher import Dispatcher
from worker.inference.engines import LOAD_DEADLINE_S, Engine, EngineSpec
from worker.inference.faults import answer_to
from worker.inference.feed import Attached
from worker.inference.pace import Pace, hanging_s
from worker.inference.process import Spawn
from worker.inference.status import Status
from worker.inference.window import Window
from worker.protocol.messages import (
    Loaded,
    Outcomes,
    Profiled,
    StartProfile,
    Stopped,
    Trouble,
    Warmed,
)
from worker.types import EngineStamp, Limits, ModelStamp

_LOOKS_PER_WATCHDOG = 10
_SERVED_WELL_S = 60.0
"""An engine that lived so long ends the back-off."""
_RELOAD_FLOOR_S = 60.0
_RELOADS = 10
"""Where a load hangs that took so much less time before, the device does."""
_PASSING = {"oom", "suspect"}
"""Trouble that an engine lived through: it made its batches smaller, or proved itself anew."""
_SLOW = "its runs became far slower than when it was warmed"

_log = structlog.get_logger()


OnEngine = Callable[[str | None], None]
"""Is told None when another engine is warm, and the reason when one ended or did not load.

Not of ends that were asked for, nor of those that a record was convicted of or a device at fault.
"""


class Supervisor:
    """One engine of a model version. `start` (or `keep_trying`), then `stop`.

    `device`: where it runs, shared with the other engines there; None: no device was chosen.
    """

    def __init__(
        self,
        spec: EngineSpec,
        dispatcher: Dispatcher,
        *,
        spawn: Spawn,
        on_engine: OnEngine,
        device: Device | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        self._spec = spec
        self._dispatcher = dispatcher
        self._spawn = spawn
        self._on_engine = on_engine
        self._device = device
        self._backoff = backoff or Backoff()
        self._engine: Engine | None = None
        self._loaded: Loaded | None = None
        self._window: Window | None = None
        """Of the last engine."""
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._stuck: frozenset[int] = frozenset()
        self._trouble: Trouble | None = None
        """What the engine there is, or the last one, will have ended of."""
        self._pace = Pace({})
        self._restarts = 0
        self._reason: str | None = None

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
        """Rows in the engine that keep it busy, in batches as it makes them now."""
        return self._capacity.rows(self._window.cap if self._window else 1)

    @property
    def capacity_rate(self) -> float:
        """Rows a second that it can run, by what was measured while warming; 0: not known."""
        return self._capacity.rate

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
            max_size=self._window.cap if self._window else 0,
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
        device = self._device
        if device is not None and not device.usable:
            raise DeviceError(f"{device.uuid} is out of use: {device.why}")
        try:
            engine = await self._load(LOAD_DEADLINE_S)
        except DeviceError as error:
            if device is not None:
                device.failed(str(error))
            raise
        self._begin(engine)
        self._go_on(engine)

    def keep_trying(self, why: str | None) -> None:
        """Begin without an engine, and start one as soon as it can be had; `why` it cannot now."""
        self._reason = why
        self._go_on(None)

    def set_limits(self, limits: Limits) -> None:
        """Replace the limits, in this engine and in those that follow it."""
        self._spec = self._spec._replace(load=self._spec.load._replace(limits=limits))
        if self._engine is not None:
            self._engine.set_limits(limits)

    async def profile(self, ask: StartProfile) -> Profiled:
        """Have the engine that is there now profiled."""
        if self._engine is None:
            return Profiled("there is none now")
        return await self._engine.profile(ask)

    async def stop(self, deadline_s: float) -> None:
        """Let the engine finish what it has, then end it; after the deadline kill it."""
        self._stopping = True
        if self._engine is not None:
            self._dispatcher.close(self._engine)
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

    def _go_on(self, engine: Engine | None) -> None:
        # Those that follow are in a hurry: records wait for them.
        self._spec = self._spec._replace(load=self._spec.load._replace(quiet=False))
        name = f"engine {self._spec.ref}"
        self._task = asyncio.create_task(self._run(engine), name=name)

    async def _run(self, engine: Engine | None) -> None:
        while True:
            if engine is not None:
                guilty = await self._serve(engine)
                if self._stopping:
                    return
                if guilty or time.monotonic() - engine.started_s > _SERVED_WELL_S:
                    self._backoff.reset()
                if not guilty:
                    self._blame()
            engine = await self._again()
            self._begin(engine)
            self._on_engine(None)

    def _begin(self, engine: Engine) -> None:
        self._engine, self._stuck, self._trouble = engine, frozenset(), None
        self._pace = Pace(engine.loaded.service_ms)
        self._dispatcher.attach(self._attached(engine))

    def _blame(self) -> None:
        """Tell the device, or whoever answers for the version, that an engine has ended."""
        device, trouble = self._device, self._trouble
        if device is None or trouble is None:
            self._on_engine(self._reason)
        else:
            device.failed(trouble.message, suspect=trouble.kind == "suspect")

    async def _serve(self, engine: Engine) -> bool:
        """Serve until the engine ends, bury it, return whether a record was convicted of it."""
        watch = asyncio.create_task(self._watch(engine), name=f"watchdog {self._spec.ref}")
        why, held, how = "it closed its channel", frozenset[int](), "it was stopped"
        try:
            await self._receive(engine)
        except ChannelError as error:
            why = str(error)
        finally:
            watch.cancel()
            self._engine = None
            try:
                held = self._stuck or engine.held()
                how = await engine.destroy()
            finally:  # also when that was cancelled: what it had must be seen again
                self._ended(engine, f"{why}: {how}", len(held))
                by_device = self._device is not None and self._trouble is not None
                guilty = self._dispatcher.detach(engine, held, how, by_device=by_device)
        return guilty

    def _ended(self, engine: Engine, why: str, held: int) -> None:
        if self._stopping:
            return
        self._reason = why
        _log.error(
            "engine.ended", model=str(self._spec.ref), pid=engine.pid, why=why, held=held,
            served_s=round(time.monotonic() - engine.started_s, 1),
        )  # fmt: skip

    async def _receive(self, engine: Engine) -> None:
        while (message := await engine.receive()) is not None:
            match message:
                case Outcomes():
                    self._dispatcher.outcomes(engine, message)
                    self._compare(engine, message)
                case Warmed(service_ms):
                    self._warmed(engine, service_ms)
                case Trouble():
                    self._troubled(engine, message)
                case Stopped():
                    return
                case _:
                    raise ChannelError(f"an engine that sends {type(message).__name__}")

    def _warmed(self, engine: Engine, service_ms: Mapping[str, float]) -> None:
        known_ms = {**service_ms, **engine.loaded.service_ms}  # when it loaded it was proven
        self._loaded = engine.loaded = engine.loaded._replace(service_ms=known_ms)
        self._pace = Pace(known_ms)

    def _troubled(self, engine: Engine, trouble: Trouble) -> None:
        if trouble.kind not in _PASSING:
            self._trouble = trouble
        _log.warning(
            "engine.trouble", model=str(self._spec.ref), pid=engine.pid, kind=trouble.kind,
            why=trouble.message, device=self._spec.device,
        )  # fmt: skip

    def _compare(self, engine: Engine, message: Outcomes) -> None:
        """Replace an engine whose device has become far slower: it is loaded, and proven, anew."""
        if self._device is None or not message.batch_size or engine.condemned is not None:
            return
        if self._pace.jumped(message.batch_size, message.run_ms):
            self._trouble = Trouble("suspect", _SLOW)
            engine.condemn(_SLOW)

    async def _watch(self, engine: Engine) -> None:
        """Kill the engine when one of its lanes hangs: a heartbeat would go on meanwhile."""
        while not (stuck := engine.held_longer_than(watchdog_s := self._watchdog_s(engine))):  # noqa: ASYNC110 - a page in shared memory wakes nobody
            await asyncio.sleep(min(1.0, watchdog_s / _LOOKS_PER_WATCHDOG))
        # Only those of the lanes that hang: the others were not at fault for this end.
        self._stuck = stuck
        engine.condemn(f"a lane was at the same work for more than {watchdog_s:g} s")

    async def _again(self) -> Engine:
        """Start engines, each after its back-off and when its device may be tried, until one loads.

        It has loaded before: whoever is at fault now, it may pass. What cannot be served waits, the
        worker is not ready and says why.
        """
        load_s = self._loaded.load_ms / 1e3 if self._loaded else LOAD_DEADLINE_S
        deadline_s = min(LOAD_DEADLINE_S, max(_RELOAD_FLOOR_S, _RELOADS * load_s))
        while True:
            await asyncio.sleep(self._backoff.next_s())
            if self._device is not None:
                await self._device.admitted()
            try:
                engine = await self._load(deadline_s)
            except (DarkroomError, OSError) as error:
                self._refused(error)
            except BaseException:
                if self._device is not None:
                    self._device.given_up()
                raise
            else:
                self._restarts += 1
                return engine

    def _refused(self, error: DarkroomError | OSError) -> None:
        answer = answer_to(error)
        if answer is None:
            if self._device is not None:
                self._device.given_up()
            raise error
        self._reason = str(error)
        _log.error("engine.refused", model=str(self._spec.ref), why=str(error), answer=answer.value)
        if self._device is None:
            self._on_engine(self._reason)
        elif isinstance(error, OSError):  # no process, no file: not by the device
            self._device.given_up()
            self._on_engine(self._reason)
        else:
            self._device.failed(self._reason)

    async def _load(self, deadline_s: float) -> Engine:
        began_s, spec = time.monotonic(), self._spec
        if self._dispatcher.served:  # others serve meanwhile
            spec = spec._replace(load=spec.load._replace(quiet=True))
        if self._device is not None:
            await self._device.answers()
        engine = await Engine.start(spec, self._spawn, deadline_s=deadline_s)
        if self._spec.load.limits != spec.load.limits:
            engine.set_limits(self._spec.load.limits)
        self._loaded = engine.loaded
        if self._device is not None:
            self._device.loaded()
        _log.info(
            "engine.loaded", model=str(self._spec.ref), pid=engine.pid,
            provider=engine.loaded.provider, lanes=self._spec.load.lanes,
            max_size=engine.loaded.max_size, staging=engine.loaded.signature.get("staging"),
            took_s=round(time.monotonic() - began_s, 2),
        )  # fmt: skip
        self._tell_where(engine.loaded)
        return engine

    def _tell_where(self, loaded: Loaded) -> None:
        """Warn when not all of a graph runs where it was wanted."""
        refused, nodes = loaded.signature.get("refused"), loaded.signature.get("nodes", {})
        if refused:
            _log.warning(
                "engine.fallback", model=str(self._spec.ref), provider=loaded.provider, why=refused
            )
        if len(nodes) > 1:
            _log.warning("engine.nodes_elsewhere", model=str(self._spec.ref), nodes=nodes)

    def _attached(self, engine: Engine) -> Attached:
        spec, loaded, ref, now = self._spec, engine.loaded, self._spec.ref, self._capacity
        self._window = Window(2 * now.batches, cap=loaded.max_size, least=2 * now.lanes)
        return Attached(
            engine,
            self._window,
            ModelStamp(ref.name, ref.version, loaded.sha256, spec.load.manifest_sha256),
            EngineStamp(
                loaded.provider,
                loaded.device,
                loaded.precision,
                spec.fallback or loaded.fallback,
            ),
        )

    @property
    def _capacity(self) -> Capacity:
        return Capacity.of(self._loaded, self._spec.load.lanes)

    def _watchdog_s(self, engine: Engine) -> float:
        if self._spec.watchdog_s is not None:
            return self._spec.watchdog_s
        return hanging_s(engine.loaded.service_ms)

    def _state(self) -> str:
        if self._loaded is None:
            return "loading"
        if self._engine is None:
            return "down"
        return "serving" if self._dispatcher.ready else "suspecting"
