"""From a version's name to its warm engines: found, checked, room made, started; or why not.

Loads of one version are shared, and one version loads at a time. It must not know routes.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import structlog

from worker.errors import DarkroomError, DeviceError, EngineFault, ModelError
from worker.inference.budget import Share
from worker.inference.device import Device
from worker.inference.devices import on_gpu
from worker.inference.dispatcher import Dispatcher
from worker.inference.engines import EngineSpec
from worker.inference.pool import Pool, PoolSpec
from worker.inference.process import Spawn
from worker.models.berth import Berth, Role
from worker.models.berths import Berths
from worker.models.breaker import BreakerState
from worker.models.finding import Ask, Finder, Finding, Found
from worker.models.options import RegistryOptions
from worker.models.repository import Version
from worker.protocol.messages import Load
from worker.telemetry.metrics import Metrics
from worker.types import Limits, ModelRef

_log = structlog.get_logger()


class Terms(NamedTuple):
    """What engines of a model are made by, asked each time."""

    limits: Callable[[str], Limits]
    shares: Callable[[str, int | None], tuple[Share, ...]]
    """By a model's name and the number of engines (None: what is best): the share of each."""
    dispatcher: Callable[[Berth], Dispatcher]
    """Makes another dispatcher for a version."""
    devices: Mapping[str, Device]
    """By their UUIDs; all versions share them."""


class _UnderWay:
    """One load, and how many wait for it."""

    def __init__(self, task: asyncio.Task[None]) -> None:
        self.task = task
        self.askers = 0


class Loader:
    """Loads versions into their berths."""

    def __init__(
        self,
        repository: Finder,
        berths: Berths,
        *,
        options: RegistryOptions,
        spawn: Spawn,
        terms: Terms,
        metrics: Metrics,
    ) -> None:
        self._finding = Finding(repository, berths)
        self._berths = berths
        self._options = options
        self._spawn = spawn
        self._terms = terms
        self._metrics = metrics
        self._under_way: dict[tuple[ModelRef, bool], _UnderWay] = {}

    async def load(self, berth: Berth, ask: Ask) -> None:
        """See to it that a version has an engine; when all who ask are cancelled nothing is left.

        Raises ModelError, DeviceError, SettingsError or EngineFault.
        """
        under_way = self._join(berth, ask)
        under_way.askers += 1
        task = under_way.task
        try:
            await asyncio.wait((task,))
        finally:
            under_way.askers -= 1
            if not under_way.askers and not task.done():
                self._leave(under_way)
                task.cancel()
                await asyncio.wait((task,))
        task.result()
        if berth.version is not None:
            await self._finding.check(berth.version, ask)

    async def reload(self, berth: Berth, ask: Ask) -> None:
        """Replace the engine of a version; the old one serves until the new one is warm."""
        with berth.kept():
            self._refuse_open(berth)
            found = await self._finding.find(berth.ref, ask)
            async with self._berths.turn:
                if berth.loaded and berth.number >= ask.number:
                    return
                engines = await self._room_beside(berth, found)
                if engines is not None:
                    await self._start_beside(berth, found, ask, engines=engines)
                    return
                await self._berths.ended(berth, hurry=True)
                engines = await self._make_room(berth, found.files_bytes, patient=True)
                await self._start(berth, found, ask, engines=engines)

    async def replace(self, berth: Berth, old: Berth, ask: Ask) -> None:
        """Load a version in the place of the old one, which ends first where that makes the room.

        When it cannot be loaded the old one is loaded again, and the error raised.
        """
        with berth.kept(), old.kept():
            self._refuse_open(berth)
            found = await self._finding.verified(berth.ref, ask)
            async with self._berths.turn:
                if await self._berths.settled(berth):
                    return
                engines = await self._room_beside(berth, found, spared=old)
                if engines is not None:
                    await self._start(berth, found, ask, engines=engines)
                else:
                    await self._instead_of(old, berth, found, ask)

    async def verify(self, berth: Berth, ask: Ask) -> None:
        """Check a version as far as that goes without an engine. Raises ModelError."""
        with berth.kept():
            await self._finding.verified(berth.ref, ask)

    async def close(self) -> None:
        """Cancel what is loading."""
        tasks = [under_way.task for under_way in self._under_way.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._finding.close()

    def _join(self, berth: Berth, ask: Ask) -> _UnderWay:
        key = berth.ref, ask.patient
        under_way = self._under_way.get(key)
        if under_way is None:
            task = asyncio.create_task(self._load(berth, ask), name=f"load {berth.ref}")
            under_way = self._under_way[key] = _UnderWay(task)
            task.add_done_callback(lambda _: self._leave(under_way))
        return under_way

    def _leave(self, under_way: _UnderWay) -> None:
        """Let nobody join it any more."""
        for key in [key for key, each in self._under_way.items() if each is under_way]:
            del self._under_way[key]
        if under_way.task.done() and not under_way.task.cancelled():
            under_way.task.exception()  # whoever waited was told, or went away

    async def _load(self, berth: Berth, ask: Ask) -> None:
        with berth.kept():
            if await self._berths.settled(berth):
                return
            self._refuse_open(berth)
            found = await self._finding.find(berth.ref, ask)
            async with self._berths.turn:
                if await self._berths.settled(berth):
                    return
                if ask.patient and not berth.in_flight:
                    return  # those who waited were routed elsewhere meanwhile
                replaced = None if ask.replaces is None else self._berths.get(ask.replaces)
                beside = replaced is not None and replaced.loaded
                vacant = berth.role is Role.SERVING or (replaced is not None and not beside)
                engines = await self._make_room(
                    berth,
                    found.files_bytes,
                    spared=replaced,
                    patient=ask.patient or vacant,
                    beside=beside,
                )
                await self._start(berth, found, ask, engines=engines)

    async def _make_room(
        self,
        berth: Berth,
        files_bytes: int,
        *,
        spared: Berth | None = None,
        patient: bool,
        beside: bool = False,
    ) -> int:
        """Make room for a version's engines, and return for how many.

        Where one will do, others that are in use give way for one, and for no more. `beside` one
        that may be stopped for it there are all or none. Raises ModelError(headroom).
        """
        room = partial(self._berths.make_room, berth, files_bytes, spared=spared)
        best = self._best(berth.ref.name)
        if not self._options.may_be_few or (beside and self._options.stop_first):
            await room(engines=best, patient=patient)
            return best
        with contextlib.suppress(ModelError):
            await room(engines=best, patient=False)
            return best
        await room(engines=1, patient=patient)
        lack = self._berths.lack(berth, files_bytes, best)
        if lack is None:  # who gave way for one left room for all
            return best
        _log.warning("model.one-engine", model=str(berth.ref), why=lack)
        return 1

    async def _room_beside(
        self, berth: Berth, found: Found, spared: Berth | None = None
    ) -> int | None:
        """Make room for engines more, and return for how many; None: one must be stopped first."""
        vacant = spared is not None and not spared.loaded
        try:
            return await self._make_room(
                berth, found.files_bytes, spared=spared, patient=vacant, beside=not vacant
            )
        except ModelError:
            if not self._options.stop_first:
                raise
            return None

    async def _instead_of(self, old: Berth, berth: Berth, found: Found, ask: Ask) -> None:
        old.stopped = True
        await self._berths.ended(old, hurry=True)
        try:
            engines = await self._make_room(berth, found.files_bytes, patient=False)
            await self._start(berth, found, ask, engines=engines)
        except DarkroomError:
            await self._restore(old)
            raise

    async def _restore(self, old: Berth) -> None:
        if old.version is None:
            return
        try:
            engines = await self._make_room(old, 0, patient=True)
            again = Ask(number=old.number, patient=True)
            await self._start(old, Found(old.version, 0), again, engines=engines)
        except DarkroomError as error:
            _log.error("model.not-restored", model=str(old.ref), why=str(error))

    async def _start(self, berth: Berth, found: Found, ask: Ask, *, engines: int) -> None:
        pool = await self._warm(berth, found, ask, berth.dispatcher, engines=engines)
        berth.begin(pool, found.version, ask.number)

    async def _start_beside(self, berth: Berth, found: Found, ask: Ask, *, engines: int) -> None:
        """Start other engines of a version; between two records they take the old ones' place."""
        dispatcher = self._terms.dispatcher(berth)
        pool = await self._warm(berth, found, ask, dispatcher, engines=engines)
        before, old = berth.pool if berth.loaded else None, berth.dispatcher
        berth.dispatcher = dispatcher
        berth.begin(pool, found.version, ask.number)
        dispatcher.submit(old.withdraw(suspects=before is None))
        if before is not None:
            self._berths.retire(berth, before, old, hurry=True)

    async def _warm(
        self, berth: Berth, found: Found, ask: Ask, dispatcher: Dispatcher, *, engines: int
    ) -> Pool:
        name = berth.ref.name
        quiet = not ask.patient and bool(self._berths.loaded)
        spec = self._spec(found.version, engines, quiet=quiet)
        pool = Pool(
            spec,
            dispatcher,
            spawn=self._spawn,
            on_engine=berth.on_engine,
            devices=self._terms.devices,
        )
        result = "refused"
        try:
            await pool.start()
            result = "loaded"
        except asyncio.CancelledError:
            result = "cancelled"
            raise
        except OSError as error:
            fault = EngineFault(f"no engine of {berth.ref} can be started: {error}")
            berth.failed(fault)
            raise fault from error
        except DarkroomError as error:
            berth.failed(error)
            raise
        finally:
            self._metrics.model_loads.labels(result).inc()
        if (limits := self._terms.limits(name)) != spec.engines[0].load.limits:
            pool.set_limits(limits)
        return pool

    def _best(self, name: str) -> int:
        """Return how many engines a version of this model has where there is room for them."""
        options = self._options
        return len(options.uuids) * options.per_gpu or len(self._terms.shares(name, options.on_cpu))

    def _spec(self, version: Version, engines: int, *, quiet: bool) -> PoolSpec:
        """Return an engine for each device and instance, and those that may serve on the CPU."""
        name, options = version.ref.name, self._options
        on_cpu = tuple(
            self._engine(version, share, quiet=quiet)
            for share in self._terms.shares(name, options.on_cpu if options.uuids else engines)
        )
        if not options.uuids:
            return PoolSpec(on_cpu)
        uuids = [uuid for uuid in options.uuids for _ in range(options.per_gpu)]
        on_gpus = []
        for share, uuid in zip(self._terms.shares(name, len(uuids)), uuids, strict=True):
            spec = self._engine(version, share, quiet=quiet)
            load = spec.load._replace(policy=on_gpu(options.policy))
            on_gpus.append(spec._replace(load=load, device=uuid))
        fallbacks = (
            each._replace(load=each.load._replace(policy="cpu"), fallback=True) for each in on_cpu
        )
        return PoolSpec(tuple(on_gpus), tuple(fallbacks) if options.to_cpu else ())

    def _engine(self, version: Version, share: Share, *, quiet: bool) -> EngineSpec:
        options = self._options
        load = Load(
            folder=str(version.folder.resolve()),
            manifest_sha256=version.manifest_sha256,
            lanes=share.lanes,
            limits=self._terms.limits(version.ref.name),
            decode_bytes=share.decode_bytes,
            policy=options.policy,
            session=dict(options.session),
            failpoint=options.failpoint,
            quiet=quiet,
            provider_options=options.provider_options,
            staging=options.staging,
            artifacts=options.artifacts,
        )
        fallback = options.devices.fallback
        return EngineSpec(version.ref, load, options.watchdog_s, fallback=fallback)

    def _refuse_open(self, berth: Berth) -> None:
        """Raise at once while a version's breaker is open, with the last error and its code."""
        if berth.error is None or berth.state is not BreakerState.OPEN:
            return
        raise ModelError(
            f"{berth.ref} failed {self._options.max_failures} times in a row and is not tried"
            f" again before {self._options.reset_timeout_s:g} s are over: {berth.error}",
            code=_code(berth.error),
        )


def _code(error: DarkroomError) -> str:
    match error:
        case ModelError(code=code):
            return code
        case EngineFault():
            return "engine"
        case DeviceError():
            return "device"
        case _:
            return "model.invalid"
