import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import psutil
import pytest

from tests.unit.inference.jobs import REF, Ends, dispatcher, jobs
from tests.unit.inference.scripted import (
    LOADED,
    Script,
    Spawner,
    dies_of_first_row,
    hangs_at_first_row,
    loads,
    outcomes,
    serves,
    submits,
)
from worker.errors import ChannelError, DeviceError, EngineFault, ModelError, SettingsError
from worker.inference.backoff import Backoff
from worker.inference.device import Device
from worker.inference.engines import Engine, EngineSpec
from worker.inference.process import EngineEnd, Peer
from worker.inference.supervisor import Supervisor
from worker.protocol.channel import Channel
from worker.protocol.messages import Bye, Load, LoadFailed, SetLimits, Stopped
from worker.protocol.page import Page
from worker.types import Limits

LIMITS = Limits(4, 1, 5.0, 1 << 20, 1 << 20, 1 << 20)
LOAD = Load("/models/digits/1", "beef", 2, LIMITS, 1 << 30, "cpu", {}, None)


class Patience(Backoff):
    """A back-off that takes no time, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(jitter=lambda: 0.0)
        self.delays_s: list[float] = []

    def next_s(self) -> float:
        self.delays_s.append(super().next_s())
        return 0.0


class Stage:
    """A supervisor over scripted engines, with all that one may ask of it."""

    def __init__(
        self, *scripts: Script, watchdog_s: float | None = None, device: Device | None = None
    ) -> None:
        self.ends = Ends()
        self.spawn = Spawner(*scripts)
        self.backoff = Patience()
        self.work = dispatcher(self.ends)
        self.told: list[str | None] = []
        self.supervisor = Supervisor(
            EngineSpec(REF, LOAD, watchdog_s),
            self.work,
            spawn=self.spawn,
            on_engine=self.told.append,
            device=device,
            backoff=self.backoff,
        )


@asynccontextmanager
async def started(
    *scripts: Script, watchdog_s: float | None = None, device: Device | None = None
) -> AsyncIterator[Stage]:
    stage = Stage(*scripts, watchdog_s=watchdog_s, device=device)
    await stage.supervisor.start()
    try:
        yield stage
    finally:
        await stage.supervisor.stop(5.0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - a thread's doing sets no event
            await asyncio.sleep(0.001)


async def test_a_started_version_is_ready_and_serves() -> None:
    async with started(serves) as stage:
        assert stage.supervisor.ready
        assert stage.supervisor.capacity_rows == 2 * 4
        stage.work.submit(jobs(*range(40)))
        await until(lambda: len(stage.ends.of) == 40)
        status = stage.supervisor.status
        assert (status.state, status.provider, status.restarts) == (
            "serving",
            "CPUExecutionProvider",
            0,
        )


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (
            LoadFailed("model", "golden.png says cat", "manifest.yaml", "golden[0]"),
            ModelError,
            r"manifest\.yaml: golden\[0\]: golden\.png says cat",
        ),
        (LoadFailed("device", "no CUDA", None, None), DeviceError, "no CUDA"),
        (LoadFailed("settings", "no option", None, None), SettingsError, "no option"),
        (Stopped(), ChannelError, "Stopped in answer to Load"),
        (None, EngineFault, "died while it loaded: the script ended"),
    ],
)
async def test_a_version_that_cannot_load_is_refused_at_once(
    answer: LoadFailed | Stopped | None, error: type[Exception], text: str
) -> None:
    def refuses(channel: Channel, _: Page) -> None:
        channel.receive()
        if answer is not None:
            channel.send(answer)

    stage = Stage(refuses)
    with pytest.raises(error, match=text):
        await stage.supervisor.start()
    assert not stage.supervisor.ready
    assert stage.spawn.started == 1
    await stage.supervisor.stop(1.0)


async def test_a_process_that_cannot_be_had_now_is_tried_again() -> None:
    async with started(dies_of_first_row, serves) as stage:
        spawn, refusals = stage.spawn, iter([True, True, False])

        def refuses(end: EngineEnd) -> Peer:
            if next(refusals):
                raise BlockingIOError(11, "fork: no more processes")
            return spawn(end)

        stage.supervisor._spawn = refuses
        stage.work.submit(jobs(1))
        await until(lambda: len(stage.ends.of) == 1)
        assert stage.backoff.delays_s == [0.0, 1.0, 2.0]


async def test_a_dead_engine_is_followed_by_another_and_its_records_run_there() -> None:
    async with started(dies_of_first_row, serves) as stage:
        stage.work.submit(jobs(*range(5)))
        await until(lambda: len(stage.ends.of) == 5)
        assert stage.ends.count() == {"Predicted": 5}
        assert stage.supervisor.status.restarts == 1
        assert stage.supervisor.status.reason == "it closed its channel: the script ended"
        assert stage.told == ["it closed its channel: the script ended", None]


async def test_a_lane_that_hangs_ends_its_engine() -> None:
    async with started(hangs_at_first_row, serves, watchdog_s=0.02) as stage:
        stage.work.submit(jobs(*range(5)))
        await until(lambda: len(stage.ends.of) == 5)
        assert stage.ends.count() == {"Predicted": 5}
        assert "more than 0.02 s" in (stage.supervisor.status.reason or "")


async def test_an_engine_that_breaks_the_protocol_is_replaced() -> None:
    def doubles(channel: Channel, _: Page) -> None:
        loads(channel)
        for submit in submits(channel):
            channel.send(outcomes(submit))
            channel.send(outcomes(submit))

    async with started(doubles, serves) as stage:
        stage.work.submit(jobs(1, 2))
        await until(lambda: stage.supervisor.status.restarts == 1)
        assert stage.ends.count() == {"Predicted": 2}
        assert "does not hold" in (stage.supervisor.status.reason or "")


async def test_a_message_that_an_engine_must_not_send_is_a_breach_too() -> None:
    def loads_twice(channel: Channel, _: Page) -> None:
        loads(channel)
        channel.send(LOADED)
        channel.receive()

    async with started(loads_twice, serves) as stage:
        await until(lambda: stage.supervisor.status.restarts == 1)
        assert "sends Loaded" in (stage.supervisor.status.reason or "")


async def test_engines_that_cannot_load_again_are_tried_again_and_records_wait() -> None:
    def refuses(channel: Channel, _: Page) -> None:
        channel.receive()
        channel.send(LoadFailed("model", "sha256 differs", "model.onnx", None))

    async with started(dies_of_first_row, refuses, refuses, serves) as stage:
        stage.work.submit(jobs(1, 2))
        await until(lambda: len(stage.ends.of) == 2)
        assert stage.backoff.delays_s == [0.0, 1.0, 2.0]
        assert stage.ends.count() == {"Predicted": 2}
        refused = "model.onnx: sha256 differs"
        assert stage.told == ["it closed its channel: the script ended", refused, refused, None]


async def test_while_everything_dies_the_version_is_not_ready_and_says_why() -> None:
    async with started(dies_of_first_row) as stage:
        stage.work.submit(jobs(1, 2, 3))
        await until(lambda: stage.supervisor.status.restarts > 5)
        assert not stage.supervisor.ready
        assert stage.ends.of == {}
        assert stage.supervisor.status.in_flight == 3
        assert stage.supervisor.status.state in {"down", "suspecting"}
        assert stage.backoff.delays_s[:6] == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0]
        assert stage.supervisor.problem() is None


async def test_a_conviction_ends_the_back_off_because_the_engine_was_not_at_fault() -> None:
    def dies_of_one(channel: Channel, page: Page) -> None:
        loads(channel)
        for submit in submits(channel):
            killers = [row.id for row in submit.rows if bytes(row.image) == b"1"]
            if killers:
                page.begin(0, page.read()[0].phase.RUN, killers)
                return
            channel.send(outcomes(submit))

    async with started(dies_of_one) as stage:
        stage.work.submit(jobs(0, 1, 2))
        await until(lambda: len(stage.ends.of) == 3)
        assert stage.ends.convicted == {1}
        await until(lambda: stage.supervisor.status.restarts == 2)
        assert stage.backoff.delays_s == [0.0, 0.0]
        assert stage.supervisor.status.convicted == 1
        assert stage.told == ["it closed its channel: the script ended", None, None]


async def test_stopping_says_bye_and_what_the_engine_has_is_finished() -> None:
    def finishes_at_bye(channel: Channel, _: Page) -> None:
        loads(channel)
        held = []
        while not isinstance(message := channel.receive(), Bye):
            held.append(message)
        for submit in held:
            channel.send(outcomes(submit))  # type: ignore[arg-type]  # only Submit comes here
        channel.send(Stopped())

    async with started(finishes_at_bye) as stage:
        stage.work.submit(jobs(1, 2))
        await stage.supervisor.stop(5.0)
        assert stage.ends.count() == {"Predicted": 2}
        assert stage.supervisor.problem() is None
        assert stage.told == [], "it was asked to end"


async def test_stopping_kills_an_engine_that_does_not_finish() -> None:
    async with started(hangs_at_first_row) as stage:
        stage.work.submit(jobs(1))
        await stage.supervisor.stop(0.02)
        assert stage.work.in_flight == 1


async def test_stopping_while_the_next_engine_loads_ends_that_engine() -> None:
    def never_loads(channel: Channel, _: Page) -> None:
        while channel.receive() is not None:
            pass

    async with started(dies_of_first_row, never_loads) as stage:
        stage.work.submit(jobs(1))
        await until(lambda: stage.spawn.started == 2)
        await stage.supervisor.stop(0.02)
        assert not stage.supervisor.ready


async def test_a_stop_while_an_engine_is_buried_leaves_its_records_where_they_are_seen() -> None:
    buried = threading.Event()

    def dies_slowly(channel: Channel, page: Page) -> None:
        dies_of_first_row(channel, page)
        channel.close()
        buried.wait(10)

    async with started(dies_slowly) as stage:
        stage.work.submit(jobs(1, 2, 3))
        await until(lambda: stage.supervisor.status.pid is None)
        await stage.supervisor.stop(1.0)
        assert stage.work.abandon("it was unloaded") == 3
        assert stage.ends.count() == {"model.version-unavailable": 3}
        buried.set()


@pytest.mark.parametrize("steps", range(8))
async def test_an_engine_whose_start_is_cancelled_leaves_nothing_open(steps: int) -> None:
    before = psutil.Process().num_fds()
    start = asyncio.create_task(Engine.start(EngineSpec(REF, LOAD, None), Spawner(serves)))
    for _ in range(steps):
        await asyncio.sleep(0)
    start.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await (await start).destroy()
    await until(lambda: psutil.Process().num_fds() == before)


async def test_limits_that_change_while_an_engine_loads_reach_it() -> None:
    loading, changed = threading.Event(), threading.Event()
    seen: list[object] = []

    def loads_slowly(channel: Channel, _: Page) -> None:
        channel.receive()
        loading.set()
        changed.wait(10)
        channel.send(LOADED)
        seen.append(channel.receive())

    stage = Stage(loads_slowly)
    start = asyncio.create_task(stage.supervisor.start())
    await until(loading.is_set)
    stage.supervisor.set_limits(LIMITS._replace(max_size=2))
    changed.set()
    await start
    await until(lambda: bool(seen))
    assert seen == [SetLimits(LIMITS._replace(max_size=2))]
    await stage.supervisor.stop(1.0)


async def test_it_has_room_for_the_batches_that_its_engine_makes_now() -> None:
    def grows(channel: Channel, _: Page) -> None:
        loads(channel)
        for submit in submits(channel):
            channel.send(outcomes(submit)._replace(cap=32))

    async with started(grows) as stage:
        assert stage.supervisor.status.max_size == 4
        assert stage.supervisor.capacity_rate == 2 * 2000.0
        stage.work.submit(jobs(1))
        await until(lambda: len(stage.ends.of) == 1)
        assert stage.supervisor.status.max_size == 32
        assert stage.supervisor.capacity_rows == 2 * 32


async def test_limits_reach_this_engine_and_those_that_follow() -> None:
    seen: list[Limits] = []

    def listens(channel: Channel, _: Page) -> None:
        seen.append(loads(channel).limits)
        if isinstance(message := channel.receive(), SetLimits):
            seen.append(message.limits)

    changed = LIMITS._replace(max_size=2)
    async with started(listens, listens) as stage:
        stage.supervisor.set_limits(changed)
        await until(lambda: len(seen) == 3)
    assert seen == [LIMITS, changed, changed]


async def test_only_the_first_engine_loads_behind_the_others() -> None:
    seen: list[bool] = []

    def listens(channel: Channel, _: Page) -> None:
        seen.append(loads(channel).quiet)

    stage = Stage(listens)
    stage.supervisor._spec = EngineSpec(REF, LOAD._replace(quiet=True), None)
    await stage.supervisor.start()
    await until(lambda: len(seen) >= 2)
    assert seen[0], "it loads beside engines that serve"
    assert not any(seen[1:]), "records wait for those that follow"
    await stage.supervisor.stop(1.0)


async def test_what_waits_for_a_stopped_engine_is_taken_up_by_the_next_one() -> None:
    async with started(hangs_at_first_row) as stage:
        stage.work.submit(jobs(*range(100)))
        await stage.supervisor.stop(0.02)
        assert stage.work.in_flight == 100
        second = Supervisor(
            EngineSpec(REF, LOAD, None),
            stage.work,
            spawn=Spawner(serves),
            on_engine=stage.told.append,
        )
        await second.start()
        await until(lambda: len(stage.ends.of) == 100)
        assert stage.ends.count() == {"Predicted": 100}
        await second.stop(1.0)


async def test_supervision_that_ended_by_a_bug_is_told_to_liveness() -> None:
    stage = Stage(serves)

    def breaks(_: object) -> None:
        raise ZeroDivisionError

    stage.work._on_outcomes = breaks
    await stage.supervisor.start()
    stage.work.submit(jobs(1))
    await until(lambda: stage.supervisor.problem() is not None)
    assert stage.supervisor.problem() == "the supervision of digits/1 has ended"
    with pytest.raises(ZeroDivisionError):
        await stage.supervisor.stop(1.0)
