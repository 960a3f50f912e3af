"""A registry over scripted engines of many versions, records for it, and a clock that stands."""

import asyncio
import contextlib
import itertools
import select
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from tests.unit.inference.jobs import Ends
from tests.unit.inference.scripted import LOADED, Spawner, outcomes
from worker.errors import ModelError, RecordSkipped
from worker.inference.backoff import Backoff
from worker.inference.budget import Budget
from worker.inference.dispatcher import Finished
from worker.inference.faults import outcome_of
from worker.inference.feed import Job
from worker.inference.process import EngineEnd, Peer
from worker.models.manifest import ClassificationHead, Manifest
from worker.models.options import Listeners, RegistryOptions
from worker.models.registry import Registry
from worker.models.repository import Version
from worker.models.router import Routes, route
from worker.protocol.channel import Channel
from worker.protocol.messages import (
    Bye,
    Fault,
    Load,
    LoadFailed,
    Outcomes,
    SetLimits,
    Stopped,
    Submit,
)
from worker.protocol.page import Page, Phase
from worker.telemetry.metrics import Metrics
from worker.types import (
    Limits,
    ModelRef,
    Position,
    Predicted,
    Reason,
    Record,
    Request,
    Ticket,
)

BUDGET = Budget(lanes=3, decode_bytes=3000, largest_bytes=1000, memory_bytes=1 << 34)
LIMITS = Limits(4, 1, 5.0, 1 << 20, 1 << 20, 1 << 20)
OPTIONS = RegistryOptions(
    limits=LIMITS,
    policy="cpu",
    session={"intra": "1"},
    watchdog_s=None,
    max_loaded=3,
    stop_first=False,
    hold_s=600.0,
    max_failures=3,
    reset_timeout_s=60.0,
    failpoint=None,
)
A1, A2, A3 = (ModelRef("a", version) for version in "123")
B1, C1, D1 = (ModelRef(name, "1") for name in "bcd")
LABEL = ClassificationHead(output="scores", activation="none", labels="labels.txt")


def manifest(*heads: str, files: Mapping[str, str] = MappingProxyType({})) -> Manifest:
    named = dict.fromkeys(heads or ("label",), LABEL)
    return Manifest(files=files, batch_max_size=None, inputs={}, heads=named, golden=())


class Clock:
    """Stands until it is moved."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Shelf:
    """A repository that has everything but what is `absent`; `slow` waits to be cancelled."""

    def __init__(self) -> None:
        self.absent: set[ModelRef] = set()
        self.slow: set[ModelRef] = set()
        self.folder = Path("models")
        self.heads: dict[ModelRef, tuple[str, ...]] = {}
        self.files: dict[str, str] = {}
        """What manifests list."""
        self.asked: list[tuple[ModelRef, str | None]] = []
        self.cancelled: list[ModelRef] = []
        self.kept: set[ModelRef] = set()
        self.answering = threading.Event()
        """It answers while this is set."""
        self.answering.set()

    def asked_since(self, before: int) -> bool:
        return len(self.asked) > before

    def release(self, version: Version) -> None:
        self.kept.discard(version.ref)

    def find(self, ref: ModelRef, *, sha256: str | None, cancelled: Callable[[], bool]) -> Version:
        self.asked.append((ref, sha256))
        self.answering.wait(10.0)
        if ref in self.absent:
            raise ModelError(f"no version {ref}", file="repository", code="model.absent")
        if ref in self.slow:
            pause = threading.Event()
            while not cancelled():
                pause.wait(0.001)
            self.cancelled.append(ref)
        folder = self.folder / ref.name / ref.version
        self.kept.add(ref)
        return Version(ref, folder, sha256 or "beef", self._manifest(ref))

    def _manifest(self, ref: ModelRef) -> Manifest:
        return manifest(*self.heads.get(ref, ()), files=self.files)


class Engines:
    """Engines of any version; what one does is looked up when it does it."""

    def __init__(self) -> None:
        self.told: list[Load] = []
        self.devices: list[str | None] = []
        self.limits: list[Limits] = []
        self.refusing: set[ModelRef] = set()
        self.mute: set[ModelRef] = set()
        """They end before they have loaded."""
        self.slow: set[ModelRef] = set()
        """They load once they are taken out of here."""
        self.never_loading: set[ModelRef] = set()
        self.ending: set[ModelRef] = set()
        """They end as soon as they have loaded."""
        self.dying: set[ModelRef] = set()
        """They die of the first row."""
        self.holding: set[ModelRef] = set()
        """They keep their rows until they are taken out of here, or told Bye."""
        self.broken: set[ModelRef] = set()
        """They say that no picture can be decoded."""
        self.alive: list[ModelRef] = []
        self.serving: set[ModelRef] = set()
        """They came so far once."""
        self.most = 0
        self._spawn = Spawner(self._run)

    def __call__(self, end: EngineEnd) -> Peer:
        self.devices.append(end.device)
        return self._spawn(end)

    @property
    def started(self) -> list[ModelRef]:
        return [_ref(load) for load in self.told]

    def _run(self, channel: Channel, page: Page) -> None:
        load = channel.receive()
        if not isinstance(load, Load):
            return
        self.told.append(load)
        ref = _ref(load)
        if ref in self.refusing:
            channel.send(LoadFailed("model", "golden.png says cat", "manifest.yaml", None))
            return
        if ref in self.mute:
            return
        self.alive.append(ref)
        self.most = max(self.most, len(self.alive))
        try:
            pause = threading.Event()
            while ref in self.slow:
                pause.wait(0.001)
            while ref in self.never_loading:
                if channel.receive() is None:
                    return
            channel.send(LOADED)
            if ref not in self.ending:
                self.serving.add(ref)
                self._serve(ref, channel, page)
        finally:
            self.alive.remove(ref)

    def _serve(self, ref: ModelRef, channel: Channel, page: Page) -> None:
        held: list[Submit] = []
        while True:
            while held and not _readable(channel):
                if ref not in self.holding:
                    self._answer(ref, channel, held)
            message = channel.receive()
            if message is None:
                return
            match message:
                case Submit() if ref in self.dying:
                    page.begin(0, Phase.RUN, [message.rows[0].id])
                    return
                case Submit():
                    held.append(message)
                case SetLimits(limits):
                    self.limits.append(limits)
                case _:
                    pass
            if ref not in self.holding or isinstance(message, Bye):
                self._answer(ref, channel, held)
            if isinstance(message, Bye):
                channel.send(Stopped())
                return

    def _answer(self, ref: ModelRef, channel: Channel, held: list[Submit]) -> None:
        for submit in held:
            channel.send(_broken(submit) if ref in self.broken else outcomes(submit))
        held.clear()


def _broken(submit: Submit) -> Outcomes:
    faults = [Fault(row.id, Reason.IMAGE_CORRUPT, "no picture") for row in submit.rows]
    return Outcomes((), tuple(faults), (), 0.0, 0.0, 0)


def _readable(channel: Channel) -> bool:
    try:
        return bool(select.select([channel._sock], [], [], 0.002)[0])
    except ValueError:  # closed: it was killed
        return True


def _ref(load: Load) -> ModelRef:
    return ModelRef(*load.folder.split("/")[-2:])


class Stage:
    """All that a test needs; what is sent is routed by the real router."""

    def __init__(self, **options: Any) -> None:
        budget = options.pop("budget", BUDGET)
        self.ends = Ends()
        self.shelf = Shelf()
        self.engines = Engines()
        self.clock = Clock()
        self.metrics = Metrics()
        self.withdrawn = 0
        self.observed: list[tuple[ModelRef, Outcomes]] = []
        self._requests: dict[int, Request] = {}
        self._offsets = itertools.count()
        self.models = Registry(
            self.shelf,
            budget,
            options=OPTIONS._replace(**options),
            spawn=self.engines,
            tell=Listeners(self.ends, self._again, lambda *seen: self.observed.append(seen)),
            metrics=self.metrics,
            clock_s=self.clock,
        )

    def names(self, *refs: ModelRef, wanted: Iterable[ModelRef] = (), default: str = "a") -> None:
        """Let the state name these versions."""
        models: dict[str, dict[str, str | None]] = {}
        for ref in refs:
            models.setdefault(ref.name, {})[ref.version] = None
        self.models.names(default, models, wanted=tuple(wanted))

    def routes(self, serving: str | None, name: str = "a", **changes: Any) -> Routes:
        versions = self.models.table.models[name].versions
        return Routes(serving, versions)._replace(**changes)

    def switch(self, ref: ModelRef, **changes: Any) -> None:
        self.models.switch(ref.name, self.routes(ref.version, ref.name, **changes))

    async def serve(self, *refs: ModelRef, **changes: Any) -> None:
        """Load versions and switch to them."""
        for ref in refs:
            await self.models.load(ref, sha256=None)
            self.switch(ref, **changes)

    def send(self, model: str, many: int = 1, *, version: str | None = None) -> list[int]:
        """Route and submit records; return their offsets."""
        offsets = [next(self._offsets) for _ in range(many)]
        for offset in offsets:
            record = Record(Position("images", 0, offset), 1, b"%d" % offset, b"image", (), 0, 0.0)
            self._requests[offset] = Request(
                record, b"image", model, version, {}, None, None, None, ()
            )
        self._submit(offsets)
        return offsets

    @property
    def sent(self) -> int:
        return len(self._requests)

    def version_of(self, offset: int) -> str:
        """Return the version that served a record, or how else it ended."""
        outcome = self.ends.of[offset].outcome
        return outcome.model.version if isinstance(outcome, Predicted) else str(outcome.reason)

    def metric(self, name: str, /, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"darkroom_{name}", labels)

    async def pass_s(self, seconds: float) -> None:
        self.clock.now_s += seconds
        self.models.look()
        await asyncio.sleep(0)

    async def finished(self) -> None:
        """Wait until every record has had its outcome."""
        await until(lambda: len(self.ends.of) == self.sent)

    async def moving(self) -> None:
        """Let time pass until every record has had its outcome."""
        async with asyncio.timeout(10):
            while len(self.ends.of) < self.sent:
                await self.pass_s(0.1)
                await asyncio.sleep(0.001)

    def _again(self, jobs: Sequence[Job]) -> None:
        self.withdrawn += len(jobs)
        self._submit([job.ticket.position.offset for job in jobs])

    def _submit(self, offsets: Iterable[int]) -> None:
        jobs: list[Job] = []
        for offset in offsets:
            request = self._requests[offset]
            position = request.record.position
            try:
                ref, reason, generation = route(request, self.models.table)
            except RecordSkipped as skip:
                nowhere = Ticket(position, 1, ModelRef("", ""), "", None)
                self.ends([Finished(nowhere, outcome_of(skip))])
            else:
                jobs.append(Job(Ticket(position, 1, ref, reason, generation), b"image", None))
        if jobs:
            self.models.submit(jobs)


@asynccontextmanager
async def stage(*refs: ModelRef, **options: Any) -> AsyncIterator[Stage]:
    """Set a stage on which these versions are named; end all that was started on it."""
    made = Stage(**options)
    made.names(*refs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Backoff, "next_s", lambda _: 0.0)
        try:
            yield made
        finally:
            await made.models.close(5.0)
    assert made.engines.alive == []


def ready(on: Stage) -> bool:
    """Ask anew: to mypy, what was asserted of a property stays so."""
    return on.models.ready


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - a thread's doing sets no event
            await asyncio.sleep(0.001)


async def cancelled(task: "asyncio.Task[Any]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
