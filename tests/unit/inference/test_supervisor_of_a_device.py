"""What a supervisor makes of an engine whose device fails: whom it tells, and who is blamed."""

import pytest

from tests.unit.inference.jobs import jobs
from tests.unit.inference.scripted import (
    LOADED,
    Script,
    dies_of_first_row,
    loads,
    outcomes,
    serves,
    submits,
)
from tests.unit.inference.test_supervisor import started, until
from worker.inference import supervisor
from worker.inference.device import Device
from worker.inference.engines import Engine
from worker.inference.ladder import DeviceState
from worker.protocol.channel import Channel
from worker.protocol.messages import LoadFailed, Trouble, Warmed
from worker.protocol.page import Page, Phase


def gpu() -> tuple[Device, list[DeviceState]]:
    device, states = Device("GPU-1", to_cpu=True), list[DeviceState]()
    device.listeners.add(lambda: states.append(device.state))
    return device, states


def troubled(kind: str, *, ends: bool = True) -> Script:
    """Return an engine that tells of trouble under its first rows, and ends of it."""

    def script(channel: Channel, page: Page) -> None:
        loads(channel)
        for submit in submits(channel):
            channel.send(Trouble(kind, f"CUDA said {kind}"))
            if ends:
                page.begin(0, Phase.RUN, [row.id for row in submit.rows])
                return
            channel.send(outcomes(submit))

    return script


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        ("sticky", DeviceState.RESTARTING),
        ("init", DeviceState.RESTARTING),
    ],
)
async def test_an_end_that_the_device_is_at_fault_for_is_told_to_the_device(
    kind: str, state: DeviceState
) -> None:
    device, states = gpu()
    async with started(troubled(kind), serves, device=device) as stage:
        stage.work.submit(jobs(*range(5)))
        await until(lambda: len(stage.ends.of) == 5)
        assert stage.ends.count() == {"Predicted": 5}
        assert states == [state, DeviceState.GPU_OK]
        assert stage.told == [None], "the version is not at fault"


async def test_without_a_device_the_same_end_is_told_as_any_other() -> None:
    async with started(troubled("sticky"), serves) as stage:
        stage.work.submit(jobs(1))
        await until(lambda: len(stage.ends.of) == 1)
        assert stage.told == ["it closed its channel: the script ended", None]


@pytest.mark.parametrize("kind", ["oom", "suspect"])
async def test_an_engine_that_helped_itself_goes_on_and_its_end_has_another_cause(
    kind: str,
) -> None:
    def helps_itself(channel: Channel, page: Page) -> None:
        troubled(kind, ends=False)(channel, page)

    device, states = gpu()
    async with started(helps_itself, serves, device=device) as stage:
        stage.work.submit(jobs(*range(5)))
        await until(lambda: len(stage.ends.of) == 5)
        assert (states, stage.spawn.started) == ([], 1)
        assert stage.supervisor._engine is not None
        stage.supervisor._engine.condemn("somebody killed it")
        await until(lambda: len(stage.told) == 2)
        assert states == []


async def test_a_crash_says_nothing_of_the_device() -> None:
    device, states = gpu()
    async with started(dies_of_first_row, serves, device=device) as stage:
        stage.work.submit(jobs(1))
        await until(lambda: len(stage.ends.of) == 1)
        assert (states, len(stage.told)) == ([], 2)


@pytest.mark.parametrize("kind", ["device", "model"])
async def test_what_loaded_before_and_does_not_now_is_the_devices_fault(kind: str) -> None:
    def refuses(channel: Channel, _: Page) -> None:
        channel.receive()
        channel.send(LoadFailed(kind, "golden.png says cat", None, None))

    device, states = gpu()
    async with started(troubled("sticky"), refuses, serves, device=device) as stage:
        stage.work.submit(jobs(1))
        await until(lambda: len(stage.ends.of) == 1)
        assert states == [DeviceState.RESTARTING, DeviceState.GPU_OK]
        assert stage.told == [None]


async def test_an_engine_that_becomes_far_slower_is_suspect_and_proven_anew() -> None:
    def slow(channel: Channel, _: Page) -> None:
        loads(channel)
        for submit in submits(channel):
            channel.send(outcomes(submit)._replace(run_ms=900.0))

    device, states = gpu()
    async with started(slow, serves, device=device) as stage:
        for n in range(10):
            stage.work.submit(jobs(n))
            await until(lambda n=n: n in stage.ends.of)  # type: ignore[misc]  # a default binds it
        assert states == [DeviceState.SUSPECT, DeviceState.GPU_OK]
        assert "far slower" in (stage.supervisor.status.reason or "")
    async with started(slow) as stage:
        stage.work.submit(jobs(*range(3)))
        await until(lambda: len(stage.ends.of) == 3)
        assert stage.spawn.started == 1, "a CPU that others use too is slow at times"


async def test_sizes_that_were_warmed_while_it_served_count_for_its_watchdog_and_its_pace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ages_s, held = list[float](), Engine.held_longer_than

    def looks(engine: Engine, age_s: float) -> frozenset[int]:
        ages_s.append(age_s)
        return held(engine, age_s)

    monkeypatch.setattr(Engine, "held_longer_than", looks)
    monkeypatch.setattr(supervisor, "_LOOKS_PER_WATCHDOG", 3000)

    def grows(channel: Channel, _: Page) -> None:
        loads(channel)
        for submit in submits(channel):
            channel.send(Warmed({"1": 70.0, "4": 80.0, "64": 4000.0}))
            channel.send(outcomes(submit)._replace(batch_size=64, run_ms=4000.0))

    device, states = gpu()
    async with started(grows, device=device) as stage:
        engine = stage.supervisor._engine
        assert engine is not None
        await until(lambda: ages_s[-1:] == [30.0])
        for n in range(5):
            stage.work.submit(jobs(n))
            await until(lambda n=n: n in stage.ends.of)  # type: ignore[misc]  # a default binds it
        await until(lambda: ages_s[-1] == 80.0)
        assert engine.loaded.service_ms == {"1": 1.0, "4": 2.0, "64": 4000.0}
        assert states == [], "with those it loaded with, 64 rows would take 32 ms"


async def test_a_load_that_hangs_is_given_up_long_before_the_first_ones_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never_loads(channel: Channel, _: Page) -> None:
        while channel.receive() is not None:
            pass

    monkeypatch.setattr(supervisor, "_RELOAD_FLOOR_S", 0.05)
    device, states = gpu()
    async with started(dies_of_first_row, never_loads, serves, device=device) as stage:
        stage.work.submit(jobs(1))
        await until(lambda: len(stage.ends.of) == 1)
        assert states == [DeviceState.RESTARTING, DeviceState.GPU_OK]


async def test_no_engine_is_started_on_a_device_out_of_use_until_its_trial() -> None:
    device, states = gpu()
    async with started(troubled("sticky"), serves, device=device) as stage:
        device.failed("another engine of it")
        device.failed("another engine of it")
        stage.work.submit(jobs(1))
        await until(lambda: states[-1] is DeviceState.CPU_FALLBACK)
        await until(lambda: not stage.supervisor.up)
        assert stage.spawn.started == 1
        assert stage.work.in_flight == 1


async def test_no_engine_is_loaded_on_a_device_whose_driver_hangs_and_the_device_hears_of_it() -> (
    None
):
    now_s, said = [100.0], ["it hangs", "it hangs"]

    def ask() -> str | None:
        return said.pop() if said else None

    device, states = Device("GPU-1", to_cpu=True, clock_s=lambda: now_s[0], ask=ask), list[object]()
    device.listeners.add(lambda: states.append((device.state, device.why)))
    async with started(dies_of_first_row, serves, device=device) as stage:
        now_s[0] += 60.0
        stage.work.submit(jobs(1))
        await until(lambda: len(stage.ends.of) == 1)
        assert states == [(DeviceState.RESTARTING, "it hangs"), (DeviceState.GPU_OK, None)]
        assert stage.spawn.started == 2, "the one that died, and the one that serves"
        assert said == []


@pytest.mark.parametrize(
    ("bound", "rows", "rate", "inside"), [(False, 2 * 4, 4000.0, 16), (True, 3 * 4, 2000.0, 24)]
)
async def test_an_engine_whose_runs_go_one_at_a_time_counts_as_one_that_runs(
    *, bound: bool, rows: int, rate: float, inside: int
) -> None:
    taken: list[int] = []

    def holds(channel: Channel, _: Page) -> None:
        loads(channel, LOADED._replace(bound=bound))
        for submit in submits(channel):
            taken.extend(row.id for row in submit.rows)

    async with started(holds) as stage:
        supervisor = stage.supervisor
        assert (supervisor.capacity_rows, supervisor.capacity_rate) == (rows, rate)
        stage.work.submit(jobs(*range(100)))
        await until(lambda: len(taken) >= inside)
        assert stage.work.in_flight == 100
        assert supervisor._window is not None
        assert supervisor._window.rows == len(taken) == inside, "two of each batch under way"
