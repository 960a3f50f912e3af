"""All engines of one version on devices that come and go; scripted engines, real waits."""

import asyncio
import random
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import structlog

from tests.fakes import eventually as until
from tests.unit.inference.jobs import REF, Ends, dispatcher, jobs
from tests.unit.inference.scripted import LOADED, Script, Spawner, loads, outcomes, submits
from worker.errors import DeviceError, ModelError
from worker.inference import ladder
from worker.inference.backoff import Backoff
from worker.inference.device import Device
from worker.inference.engines import EngineSpec
from worker.inference.ladder import DeviceState
from worker.inference.pool import Pool, PoolSpec
from worker.inference.process import EngineEnd, Peer
from worker.protocol.channel import Channel
from worker.protocol.messages import Load, LoadFailed, SetLimits, Submit, Trouble
from worker.protocol.page import Page, Phase
from worker.types import Limits, Predicted

LIMITS = Limits(4, 1, 5.0, 1 << 20, 1 << 20, 1 << 20)
LOAD = Load("/models/digits/1", "beef", 2, LIMITS, 1 << 30, "require-gpu", {}, None)
ONE, TWO = "GPU-1", "GPU-2"
CPU = ""


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(Backoff, "next_s", lambda _: 0.0)
    monkeypatch.setattr(ladder, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(ladder, "LAST_PAUSE_S", 0.02)
    yield
    structlog.reset_defaults()


class Machine:
    """What engines do on each device; the CPU is the device without a name."""

    def __init__(self) -> None:
        self.absent: set[str] = set()
        """Nothing loads there."""
        self.sticky: set[str] = set()
        """It fails under the first rows that an engine gets."""
        self.refusing = False
        """The version's own fault, wherever it loads."""
        self.started: list[str] = []
        self.alive: dict[str, int] = defaultdict(int)
        self.seen: list[object] = []

    def __call__(self, end: EngineEnd) -> Peer:
        device = end.device or CPU
        self.started.append(device)
        return Spawner(self._script(device))(end)

    def _script(self, device: str) -> Script:
        def script(channel: Channel, page: Page) -> None:
            if device in self.absent or self.refusing:
                channel.receive()
                kind = "model" if self.refusing else "device"
                channel.send(LoadFailed(kind, f"{device} has no luck", None, None))
                return
            self.alive[device] += 1
            try:
                self._serve(device, channel, page)
            finally:
                self.alive[device] -= 1

        return script

    def _serve(self, device: str, channel: Channel, page: Page) -> None:
        load = channel.receive()
        assert isinstance(load, Load)
        self.seen.append((device, load.policy))
        provider = "CUDAExecutionProvider" if device else "CPUExecutionProvider"
        channel.send(LOADED._replace(provider=provider, device=device or "cpu"))
        for submit in submits(channel):
            if device in self.sticky:
                page.begin(0, Phase.RUN, [row.id for row in submit.rows])
                channel.send(Trouble("sticky", "CUDA failure 700"))
                return
            channel.send(outcomes(submit))


class Stage:
    """A pool on a machine."""

    def __init__(self, *devices: str, on_cpu: bool = True, instances: int = 1) -> None:
        self.machine = Machine()
        self.ends = Ends()
        self.work = dispatcher(self.ends)
        self.told: list[str | None] = []
        self.devices = {uuid: Device(uuid, to_cpu=on_cpu) for uuid in devices}
        cpu = EngineSpec(REF, LOAD._replace(policy="cpu"), None)
        engines = [
            EngineSpec(REF, LOAD, None, device) for device in devices for _ in range(instances)
        ] or [cpu] * instances
        self.pool = Pool(
            PoolSpec(tuple(engines), (cpu._replace(fallback=True),) if on_cpu and devices else ()),
            self.work,
            spawn=self.machine,
            on_engine=self.told.append,
            devices=self.devices,
        )
        self._sent = 0

    def send(self, many: int) -> None:
        self.work.submit(jobs(*range(self._sent, self._sent + many)))
        self._sent += many

    async def finished(self) -> None:
        await until(lambda: len(self.ends.of) == self._sent)
        assert self.ends.count() == ({"Predicted": self._sent} if self._sent else {})

    def made_by(self, offset: int) -> tuple[str, bool]:
        outcome = self.ends.of[offset].outcome
        assert isinstance(outcome, Predicted)
        return outcome.engine.device, outcome.engine.fallback


def ready(stage: Stage) -> bool:
    """Ask anew: to mypy, what was asserted of a property stays so."""
    return stage.pool.ready


def lost(stage: Stage) -> str | None:
    return stage.pool.status.lost


@asynccontextmanager
async def started(stage: Stage) -> AsyncIterator[Stage]:
    await stage.pool.start()
    try:
        yield stage
    finally:
        await stage.pool.stop(5.0)
    await until(lambda: not any(stage.machine.alive.values()))


async def test_a_version_has_an_engine_on_each_device_for_each_instance() -> None:
    async with started(Stage(ONE, TWO, instances=2)) as stage:
        assert sorted(stage.machine.started) == [ONE, ONE, TWO, TWO]
        assert stage.pool.size == len(stage.pool.pids) == 4
        assert stage.pool.capacity_rows == 4 * 2 * 4
        status = stage.pool.status
        assert (status.state, status.device, status.lanes) == ("serving", f"{ONE}, {TWO}", 8)
        stage.send(500)
        await stage.finished()
        assert {stage.made_by(offset) for offset in range(500)} == {(ONE, False), (TWO, False)}
        assert set(stage.machine.seen) == {(ONE, "require-gpu"), (TWO, "require-gpu")}


async def test_several_engines_on_the_cpu_know_of_no_device() -> None:
    async with started(Stage(instances=3)) as stage:
        stage.send(100)
        await stage.finished()
        assert stage.machine.started == [CPU] * 3
        assert stage.pool.status.lost is None


async def test_a_device_that_lets_nothing_load_is_tried_again_while_another_serves() -> None:
    stage = Stage(ONE, TWO)
    stage.machine.absent.add(ONE)
    async with started(stage):
        stage.send(10)
        await stage.finished()
        await until(lambda: stage.devices[ONE].state is DeviceState.CPU_FALLBACK)
        assert stage.devices[ONE].why == f"{ONE} has no luck"
        assert stage.machine.alive[CPU] == 0, "another device serves"
        stage.machine.absent.clear()
        await until(lambda: stage.devices[ONE].state is DeviceState.GPU_OK)
        await until(lambda: len(stage.pool.pids) == 2)
        assert stage.told == [None], "no version is at fault for a device"


async def test_where_no_device_can_be_had_the_cpu_serves_and_says_so() -> None:
    stage = Stage(ONE, TWO)
    stage.machine.absent |= {ONE, TWO}
    async with started(stage):
        assert stage.pool.ready
        stage.send(10)
        await stage.finished()
        assert stage.made_by(0) == ("cpu", True)
        assert stage.pool.status.provider == "CPUExecutionProvider"
        assert "has no luck" in (stage.pool.status.reason or "")


async def test_a_device_that_was_lost_is_replaced_by_the_cpu_and_comes_back() -> None:
    async with started(Stage(ONE)) as stage:
        stage.send(10)
        await stage.finished()
        stage.machine.sticky.add(ONE)
        stage.send(10)
        await stage.finished()
        assert stage.machine.alive[CPU] == 1
        assert stage.made_by(19) == ("cpu", True)
        assert stage.devices[ONE].why == "CUDA failure 700"
        stage.machine.sticky.clear()
        await until(lambda: stage.devices[ONE].state is DeviceState.GPU_OK)
        await until(lambda: stage.machine.alive[CPU] == 0)
        stage.send(10)
        await stage.finished()
        assert stage.made_by(29) == (ONE, False)
        assert stage.pool.status.restarts >= 3
        assert set(stage.told) == {None}


async def test_where_the_cpu_may_not_serve_a_loss_is_told_until_a_device_is_back() -> None:
    async with started(Stage(ONE, on_cpu=False)) as stage:
        stage.machine.sticky.add(ONE)
        stage.machine.absent.add(ONE)
        stage.send(3)
        await until(lambda: lost(stage) is not None)
        assert lost(stage) == f"{ONE}: {ONE} has no luck"
        assert not ready(stage)
        assert stage.devices[ONE].state is DeviceState.PROBING
        stage.machine.sticky.clear()
        stage.machine.absent.clear()
        await stage.finished()
        assert (lost(stage), ready(stage)) == (None, True)
        assert CPU not in stage.machine.started


async def test_a_version_that_no_device_can_load_is_refused_where_the_cpu_may_not_serve() -> None:
    stage = Stage(ONE, TWO, on_cpu=False)
    stage.machine.absent |= {ONE, TWO}
    with pytest.raises(DeviceError, match=f"({ONE}|{TWO}) has no luck"):  # whichever says so first
        await stage.pool.start()
    assert stage.machine.started == [ONE, TWO]


async def test_a_device_that_is_out_of_use_is_not_asked_by_another_version() -> None:
    stage = Stage(ONE)
    for _ in range(ladder.MAX_FAULTS):
        stage.devices[ONE].failed("CUDA failure 999")
    stage.machine.absent.add(ONE)
    await stage.pool.start()
    assert stage.machine.started[0] == CPU
    await stage.pool.stop(1.0)
    stage = Stage(ONE, on_cpu=False)
    for _ in range(ladder.MAX_FAULTS):
        stage.devices[ONE].failed("CUDA failure 999")
    with pytest.raises(DeviceError, match="GPU-1 is out of use: CUDA failure 999"):
        await stage.pool.start()
    assert stage.machine.started == []


async def test_a_version_at_fault_itself_is_refused_and_never_tried_on_the_cpu() -> None:
    stage = Stage(ONE)
    stage.machine.refusing = True
    with pytest.raises(ModelError, match="has no luck"):
        await stage.pool.start()
    assert stage.machine.started == [ONE]
    assert stage.devices[ONE].state is DeviceState.GPU_OK


async def test_a_start_that_is_cancelled_ends_the_engines_that_had_loaded() -> None:
    stage = Stage(ONE, TWO)
    loading = threading.Event()
    serve = stage.machine._serve

    def slow(device: str, channel: Channel, page: Page) -> None:
        if device == TWO:
            loading.set()
            channel.receive()
            channel.receive()
        else:
            serve(device, channel, page)

    stage.machine._serve = slow  # type: ignore[method-assign]  # a script of this test
    start = asyncio.create_task(stage.pool.start())
    await until(lambda: loading.is_set() and stage.pool.up)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    await until(lambda: sum(stage.machine.alive.values()) == 0)


async def test_limits_reach_every_engine_and_those_that_serve_on_the_cpu_later() -> None:
    changed = LIMITS._replace(max_size=2)
    seen: list[Limits] = []

    def listens(channel: Channel, _: Page) -> None:
        seen.append(loads(channel).limits)
        while (message := channel.receive()) is not None:
            if isinstance(message, SetLimits):
                seen.append(message.limits)
            elif isinstance(message, Submit):
                channel.send(outcomes(message))

    stage = Stage(ONE)
    stage.machine._script = lambda device: (  # type: ignore[method-assign]  # a script of this test
        listens if device not in stage.machine.absent else dies
    )
    await stage.pool.start()
    stage.pool.set_limits(changed)
    await until(lambda: len(seen) == 2)
    stage.machine.absent.add(ONE)
    for _ in range(ladder.MAX_FAULTS):
        stage.devices[ONE].failed("lost")
    for engine in stage.pool._engines:
        assert engine._engine is not None
        engine._engine.condemn("it is lost")
    await until(lambda: len(seen) == 3)
    assert seen == [LIMITS, changed, changed]
    await stage.pool.stop(0.1)


def dies(channel: Channel, _: Page) -> None:
    channel.receive()


async def test_a_worker_that_stops_while_the_cpu_steps_back_ends_everything() -> None:
    stage = Stage(ONE)
    stage.machine.absent.add(ONE)
    async with started(stage):
        await until(lambda: stage.devices[ONE].state is DeviceState.CPU_FALLBACK)
        stage.machine.absent.clear()
        await until(lambda: bool(stage.pool._ending))
    assert stage.pool.problem() is None


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_devices_do_every_record_is_predicted(seed: int) -> None:
    chance = random.Random(seed)
    async with started(Stage(ONE, TWO, instances=1 + seed % 2)) as stage:
        for _ in range(12):
            for bad in (stage.machine.absent, stage.machine.sticky):
                bad.clear()
                bad.update(device for device in (ONE, TWO) if chance.random() < 0.5)
            stage.send(20)
            await asyncio.sleep(chance.random() * 0.02)
        stage.machine.absent.clear()
        stage.machine.sticky.clear()
        await stage.finished()
        assert stage.pool.problem() is None
