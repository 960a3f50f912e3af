"""From a version's name to its warm engine: found, checked, room made, started; or why not.

Loads of one version are shared, and one engine loads at a time. It must not know routes.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, Protocol

import structlog

from worker.errors import DarkroomError, DeviceError, EngineFault, ModelError
from worker.inference.budget import Share
from worker.inference.dispatcher import Dispatcher
from worker.inference.engines import EngineSpec
from worker.inference.process import Spawn
from worker.inference.supervisor import Supervisor
from worker.models.berth import Berth, Role
from worker.models.berths import Berths
from worker.models.breaker import BreakerState
from worker.models.files import verify_files
from worker.models.manifest import Manifest
from worker.models.options import RegistryOptions
from worker.models.repository import Version
from worker.models.room import files_bytes
from worker.protocol.messages import Load
from worker.telemetry.metrics import Metrics
from worker.types import Limits, ModelRef

_READERS = 4
"""Reads of the repository at a time: they block for as long as its disk or network does."""

_log = structlog.get_logger()


class Finder(Protocol):
    """What is needed of the model repository."""

    def find(
        self, ref: ModelRef, *, sha256: str | None, cancelled: Callable[[], bool]
    ) -> Version: ...

    def release(self, version: Version) -> None:
        """Let go what was found, however often."""


class Terms(NamedTuple):
    """What engines of a model are made by, asked each time."""

    limits: Callable[[str], Limits]
    share: Callable[[str], Share]
    dispatcher: Callable[[Berth], Dispatcher]
    """Makes another dispatcher for a version."""


class Ask(NamedTuple):
    """What is asked of a load."""

    sha256: str | None = None
    """Of the manifest; None: whatever the repository has."""
    number: int = 0
    replaces: ModelRef | None = None
    """The version whose heads it must offer, and which is not ended to make room."""
    new_heads: bool = False
    patient: bool = False
    """Records wait for it: others give way when their turn is over."""


class _Found(NamedTuple):
    version: Version
    files_bytes: int


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
        self._repository = repository
        self._berths = berths
        self._options = options
        self._spawn = spawn
        self._terms = terms
        self._metrics = metrics
        self._under_way: dict[tuple[ModelRef, bool], _UnderWay] = {}
        # Not the loop's own: a disk that hangs would keep dead engines from being buried there.
        self._readers = ThreadPoolExecutor(_READERS, "repository")

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
            await self._check(berth.version, ask)

    async def reload(self, berth: Berth, ask: Ask) -> None:
        """Replace the engine of a version; the old one serves until the new one is warm."""
        with berth.kept():
            self._refuse_open(berth)
            found = await self._find(berth.ref, ask)
            async with self._berths.turn:
                if berth.loaded and berth.number >= ask.number:
                    return
                if await self._room_beside(berth, found):
                    await self._start_beside(berth, found, ask)
                else:
                    await self._berths.ended(berth, hurry=True)
                    await self._start(berth, found, ask)

    async def replace(self, berth: Berth, old: Berth, ask: Ask) -> None:
        """Load a version in the place of the old one, which ends first where that makes the room.

        When it cannot be loaded the old one is loaded again, and the error raised.
        """
        with berth.kept(), old.kept():
            self._refuse_open(berth)
            found = await self._verified(berth.ref, ask)
            async with self._berths.turn:
                if await self._berths.settled(berth):
                    return
                if await self._room_beside(berth, found, spared=old):
                    await self._start(berth, found, ask)
                else:
                    await self._instead_of(old, berth, found, ask)

    async def verify(self, berth: Berth, ask: Ask) -> None:
        """Check a version as far as that goes without an engine. Raises ModelError."""
        with berth.kept():
            await self._verified(berth.ref, ask)

    async def close(self) -> None:
        """Cancel what is loading."""
        tasks = [under_way.task for under_way in self._under_way.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._readers.shutdown(wait=False, cancel_futures=True)

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
            found = await self._find(berth.ref, ask)
            async with self._berths.turn:
                if await self._berths.settled(berth):
                    return
                if ask.patient and not berth.in_flight:
                    return  # those who waited were routed elsewhere meanwhile
                replaced = None if ask.replaces is None else self._berths.get(ask.replaces)
                vacant = berth.role is Role.SERVING or (
                    replaced is not None and not replaced.loaded
                )
                await self._berths.make_room(
                    berth, found.files_bytes, spared=replaced, patient=ask.patient or vacant
                )
                await self._start(berth, found, ask)

    async def _room_beside(self, berth: Berth, found: _Found, spared: Berth | None = None) -> bool:
        """Make room for one engine more; say whether there is any. Raises if there must be."""
        vacant = spared is not None and not spared.loaded
        try:
            await self._berths.make_room(berth, found.files_bytes, spared=spared, patient=vacant)
        except ModelError:
            if not self._options.stop_first:
                raise
            return False
        return True

    async def _instead_of(self, old: Berth, berth: Berth, found: _Found, ask: Ask) -> None:
        old.stopped = True
        await self._berths.ended(old, hurry=True)
        try:
            await self._berths.make_room(berth, found.files_bytes, spared=None, patient=False)
            await self._start(berth, found, ask)
        except DarkroomError:
            await self._restore(old)
            raise

    async def _restore(self, old: Berth) -> None:
        if old.version is None:
            return
        try:
            await self._berths.make_room(old, 0, spared=None, patient=True)
            again = Ask(number=old.number, patient=True)
            await self._start(old, _Found(old.version, 0), again)
        except DarkroomError as error:
            _log.error("model.not-restored", model=str(old.ref), why=str(error))

    async def _start(self, berth: Berth, found: _Found, ask: Ask) -> None:
        supervisor = await self._warm(berth, found, ask, berth.dispatcher)
        berth.begin(supervisor, found.version, ask.number)

    async def _start_beside(self, berth: Berth, found: _Found, ask: Ask) -> None:
        """Start another engine of a version; between two records it takes the old one's place."""
        dispatcher = self._terms.dispatcher(berth)
        supervisor = await self._warm(berth, found, ask, dispatcher)
        before, old = berth.supervisor if berth.loaded else None, berth.dispatcher
        berth.dispatcher = dispatcher
        berth.begin(supervisor, found.version, ask.number)
        dispatcher.submit(old.withdraw(suspects=before is None))
        if before is not None:
            self._berths.retire(berth, before, old, hurry=True)

    async def _warm(
        self, berth: Berth, found: _Found, ask: Ask, dispatcher: Dispatcher
    ) -> Supervisor:
        name = berth.ref.name
        spec = self._spec(found.version, quiet=not ask.patient and bool(self._berths.loaded))
        supervisor = Supervisor(spec, dispatcher, spawn=self._spawn, on_engine=berth.on_engine)
        result = "refused"
        try:
            await supervisor.start()
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
        if (limits := self._terms.limits(name)) != spec.load.limits:
            supervisor.set_limits(limits)
        return supervisor

    def _spec(self, version: Version, *, quiet: bool) -> EngineSpec:
        name, options, share = version.ref.name, self._options, self._terms.share(version.ref.name)
        load = Load(
            folder=str(version.folder.resolve()),
            manifest_sha256=version.manifest_sha256,
            lanes=share.lanes,
            limits=self._terms.limits(name),
            decode_bytes=share.decode_bytes,
            policy=options.policy,
            session=dict(options.session),
            failpoint=options.failpoint,
            quiet=quiet,
            staging=options.staging,
            artifacts=options.artifacts,
        )
        return EngineSpec(version.ref, load, options.watchdog_s)

    async def _find(self, ref: ModelRef, ask: Ask) -> _Found:
        cancelled = threading.Event()
        looking = asyncio.get_running_loop().run_in_executor(
            self._readers, self._look_up, ref, ask.sha256, cancelled.is_set
        )
        looking.add_done_callback(partial(self._looked_up, self._berths.of(ref)))
        try:
            found = await asyncio.shield(looking)
        finally:
            cancelled.set()
        await self._check(found.version, ask)
        return found

    def _looked_up(self, berth: Berth, looking: asyncio.Future[_Found]) -> None:
        """Note what the repository keeps for a version, also when nobody waits for it any more."""
        if not looking.cancelled() and looking.exception() is None:
            berth.found = looking.result().version
            berth.let_go()

    async def _verified(self, ref: ModelRef, ask: Ask) -> _Found:
        found = await self._find(ref, ask)
        with _readable(found.version):
            await asyncio.to_thread(verify_files, found.version.folder, found.version.manifest)
        return found

    def _look_up(self, ref: ModelRef, sha256: str | None, cancelled: Callable[[], bool]) -> _Found:
        version = self._repository.find(ref, sha256=sha256, cancelled=cancelled)
        with _readable(version):
            return _Found(version, files_bytes(version))

    async def _check(self, version: Version, ask: Ask) -> None:
        """Hold a version to what is asked. Raises ModelError: other content, or heads it lacks."""
        ref, sha256 = version.ref, version.manifest_sha256
        if ask.sha256 is not None and ask.sha256 != sha256:
            raise ModelError(
                f"{ref} is loaded with manifest sha256 {sha256}, {ask.sha256} is asked for: a"
                " version never changes; publish the new content as a new version",
                code="model.changed",
            )
        if ask.replaces in {None, ref} or ask.new_heads:
            return
        assert ask.replaces is not None
        before = await self._manifest(ask.replaces)
        if before is not None and (heads := _lacking(before, version.manifest)):
            raise ModelError(
                f"{ref} lacks what {ask.replaces} offers: {', '.join(heads)}; give it these heads,"
                " or ask for it with new heads allowed",
                code="model.signature",
            )

    async def _manifest(self, ref: ModelRef) -> Manifest | None:
        """Return a version's manifest; None: it cannot be had any more, and holds nobody back."""
        berth = self._berths.get(ref)
        if berth is not None and berth.version is not None:
            return berth.version.manifest
        berth = berth or self._berths.of(ref)
        try:
            with berth.kept():
                return (await self._find(ref, Ask())).version.manifest
        except ModelError as error:
            _log.warning("model.heads-unknown", model=str(ref), why=str(error))
            return None

    def _refuse_open(self, berth: Berth) -> None:
        """Raise at once while a version's breaker is open, with the last error and its code."""
        if berth.error is None or berth.state is not BreakerState.OPEN:
            return
        raise ModelError(
            f"{berth.ref} failed {self._options.max_failures} times in a row and is not tried"
            f" again before {self._options.reset_timeout_s:g} s are over: {berth.error}",
            code=_code(berth.error),
        )


@contextmanager
def _readable(version: Version) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ModelError(
            f"cannot be read: {error}", file=str(version.folder), code="model.fetch"
        ) from error


def _lacking(before: Manifest, after: Manifest) -> list[str]:
    """Return the heads that another version has, by name and type, and this one does not."""
    return [
        f"head {name!r} ({type(head).__name__.removesuffix('Head').lower()})"
        for name, head in before.heads.items()
        if type(after.heads.get(name)) is not type(head)
    ]


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
