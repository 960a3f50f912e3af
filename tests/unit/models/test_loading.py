import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import psutil
import pytest

from tests.unit.models.stage import A1, A2, A3, cancelled, ready, stage, until
from worker.errors import DeviceError, EngineFault, ModelError
from worker.inference.devices import DeviceChoice, Devices
from worker.inference.process import EngineEnd, Peer
from worker.models.options import LOADED
from worker.types import Predicted


async def test_concurrent_loads_of_a_version_share_one_engine() -> None:
    async with stage(A1) as on:
        loads = [on.models.load(A1, sha256=None) for _ in range(5)]
        assert await asyncio.gather(*loads) == [LOADED] * 5
        assert on.engines.started == [A1]


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5, 8, 13])
async def test_a_cancelled_load_leaves_nothing(steps: int) -> None:
    async with stage(A1, A2) as on:
        await on.serve(A1)
        before = psutil.Process().num_fds()
        on.engines.never_loading.add(A2)
        load = asyncio.create_task(on.models.load(A2, sha256=None))
        if steps == 13:
            await until(lambda: A2 in on.engines.started)
        for _ in range(steps):
            await asyncio.sleep(0)
        await cancelled(load)
        assert on.models.loaded == {A1}
        await until(lambda: on.engines.alive == [A1] and psutil.Process().num_fds() == before)
        on.engines.never_loading.clear()
        assert await on.models.load(A2, sha256=None) == LOADED


async def test_a_cancelled_load_stops_what_is_being_fetched() -> None:
    async with stage(A1) as on:
        on.shelf.slow.add(A1)
        load = asyncio.create_task(on.models.load(A1, sha256=None))
        await until(lambda: bool(on.shelf.asked))
        await cancelled(load)
        await until(lambda: on.shelf.cancelled == [A1])
        assert on.engines.told == []


async def test_a_load_goes_on_while_one_of_those_who_asked_still_waits() -> None:
    async with stage(A1) as on:
        first = asyncio.create_task(on.models.load(A1, sha256=None))
        second = asyncio.create_task(on.models.load(A1, sha256=None))
        await asyncio.sleep(0)
        await cancelled(first)
        assert await second == LOADED
        assert on.engines.started == [A1]


async def test_a_version_that_cannot_be_loaded_is_refused_and_the_old_one_serves() -> None:
    async with stage(A1, A2, A3) as on:
        await on.serve(A1)
        on.shelf.absent.add(A2)
        on.engines.refusing.add(A3)
        with pytest.raises(ModelError, match="no version a/2") as absent:
            await on.models.load(A2, sha256=None)
        assert absent.value.code == "model.absent"
        with pytest.raises(ModelError, match=r"golden\.png says cat"):
            await on.models.load(A3, sha256=None)
        assert on.models.loaded == {A1}
        assert ready(on)
        on.send("a", 5)
        await on.finished()
        assert on.metric("model_loads_total", result="refused") == 1.0


async def test_the_repository_is_asked_for_the_digest_that_the_state_names() -> None:
    async with stage(A1, A2) as on:
        on.models.names("a", {"a": {"1": "d1", "2": "d2"}})
        await on.models.load(A1, sha256="d1")
        on.switch(A1)
        on.send("a", version="2")
        await on.finished()
        assert on.shelf.asked == [(A1, "d1"), (A2, "d2")]
        with pytest.raises(ModelError, match="loaded with manifest sha256 d1") as changed:
            await on.models.load(A1, sha256="other")
        assert changed.value.code == "model.changed"


async def test_a_version_that_keeps_failing_is_not_tried_each_time_it_is_asked_for() -> None:
    async with stage(A1) as on:
        on.engines.refusing.add(A1)
        for _ in range(3):
            with pytest.raises(ModelError, match="golden"):
                await on.models.load(A1, sha256=None)
        for _ in range(2):
            with pytest.raises(ModelError, match=r"3 times in a row.*60 s.*golden\.png") as open_:
                await on.models.load(A1, sha256=None)
            assert open_.value.code == "model.invalid"
        assert len(on.engines.told) == 3
        await on.pass_s(60.0)
        on.engines.refusing.clear()
        assert await on.models.load(A1, sha256=None) == LOADED


async def test_a_process_that_cannot_be_had_is_an_engine_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuses(_: object, __: EngineEnd) -> Peer:
        raise BlockingIOError(11, "fork: no more processes")

    async with stage(A1) as on:
        monkeypatch.setattr(type(on.engines), "__call__", refuses)
        with pytest.raises(EngineFault, match="no engine of a/1 can be started"):
            await on.models.load(A1, sha256=None)
        for _ in range(2):
            with pytest.raises(EngineFault):
                await on.models.load(A1, sha256=None)
        with pytest.raises(ModelError) as now_open:
            await on.models.load(A1, sha256=None)
        assert now_open.value.code == "engine"


async def test_every_gpu_that_was_chosen_is_given_an_engine() -> None:
    chosen = (DeviceChoice("GPU-1", "first"), DeviceChoice("GPU-2", "second"))
    async with stage(A1, devices=Devices(chosen)) as on:
        await on.serve(A1)
        assert on.engines.devices == ["GPU-1", "GPU-2"]
    async with stage(A1) as on:
        await on.serve(A1)
        assert on.engines.devices == [None]


async def test_a_new_version_must_offer_the_heads_of_the_one_that_it_replaces() -> None:
    async with stage(A1, A2) as on:
        on.shelf.heads = {A1: ("label", "mood"), A2: ("label",)}
        await on.serve(A1)
        with pytest.raises(ModelError, match=r"a/2 lacks what a/1 offers: head 'mood'") as lacks:
            await on.models.load(A2, sha256=None, replaces="1")
        assert lacks.value.code == "model.signature"
        assert on.engines.started == [A1], "nothing was loaded for that"
        assert await on.models.load(A2, sha256=None, replaces="1", new_heads=True) == LOADED
        with pytest.raises(ModelError, match="lacks"):
            await on.models.load(A2, sha256=None, replaces="1")
        on.shelf.absent.add(A3)
        assert await on.models.load(A2, sha256=None, replaces="3") == LOADED, "nobody has a/3"


async def test_a_reload_replaces_the_engine_between_two_records_and_loses_none() -> None:
    async with stage(A1) as on:
        await on.serve(A1)
        on.engines.holding.add(A1)
        on.send("a", 300)
        await on.models.reload(A1, sha256=None, number=1)
        assert on.models.numbers == {A1: 1}
        assert on.models._berths.of(A1).in_flight > 250, "what waited does not wait for the old one"
        on.send("a", 10)
        on.engines.holding.clear()
        await on.finished()
        assert on.ends.count() == {"Predicted": 310}
        assert on.engines.started == [A1, A1]
        await until(lambda: on.engines.alive == [A1])
        await on.models.reload(A1, sha256=None, number=1)
        assert on.engines.started == [A1, A1]


async def test_a_reload_that_fails_leaves_the_old_engine() -> None:
    async with stage(A1) as on:
        await on.serve(A1)
        on.engines.refusing.add(A1)
        with pytest.raises(ModelError, match="golden"):
            await on.models.reload(A1, sha256=None, number=1)
        on.send("a", 3)
        await on.finished()
        assert on.models.numbers == {A1: 0}


async def test_a_reload_of_a_version_that_is_not_loaded_loads_it() -> None:
    async with stage(A1) as on:
        await on.models.reload(A1, sha256=None, number=4)
        assert on.models.numbers == {A1: 4}


async def test_a_reload_takes_over_what_a_dead_engine_left() -> None:
    async with stage(A1) as on:
        await on.serve(A1)
        on.engines.dying.add(A1)
        on.engines.never_loading.add(A1)
        on.send("a", 5)
        await until(lambda: len(on.engines.told) == 2)
        on.engines.dying.clear()
        on.engines.never_loading.clear()
        await on.models.reload(A1, sha256=None, number=1)
        await on.finished()
        assert on.ends.count() == {"Predicted": 5}


async def test_the_repository_keeps_on_disk_what_has_an_engine_or_may_get_one_and_no_more() -> None:
    async with stage(A1, A2, A3, hold_s=0.0) as on:
        on.shelf.heads = {A1: ("label", "mood"), A2: ("label", "mood"), A3: ("label",)}
        await on.serve(A1)
        assert on.shelf.kept == {A1}
        with pytest.raises(ModelError, match="mood"):
            await on.models.load(A3, sha256=None, replaces="1")
        assert on.shelf.kept == {A1}, "what cannot be loaded may be evicted"
        await on.models.load(A2, sha256=None, replaces="1")
        assert on.shelf.kept == {A1, A2}
        on.switch(A2)
        await until(lambda: on.shelf.kept == {A2})
        assert on.models.loaded == {A2}


async def test_a_reload_that_is_cancelled_lets_nothing_go_of_what_serves() -> None:
    async with stage(A1, A2) as on:
        await on.serve(A1)
        on.shelf.slow.add(A1)
        reloading = asyncio.create_task(on.models.reload(A1, sha256=None, number=1))
        await until(lambda: len(on.shelf.asked) == 2)
        await cancelled(reloading)
        await until(lambda: on.shelf.cancelled == [A1])
        on.shelf.slow.clear()
        await on.models.load(A2, sha256=None)
        assert on.shelf.kept == {A1, A2}


async def test_a_load_that_is_cancelled_keeps_no_files() -> None:
    async with stage(A1) as on:
        on.shelf.slow.add(A1)
        loading = asyncio.create_task(on.models.load(A1, sha256=None))
        await until(lambda: len(on.shelf.asked) == 1)
        await cancelled(loading)
        await until(lambda: on.shelf.cancelled == [A1] and not on.shelf.kept)


async def test_a_repository_that_hangs_keeps_no_dead_engine_from_being_replaced() -> None:
    async with stage(A1, A2) as on:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
        await on.serve(A1)
        on.shelf.answering.clear()
        for _ in range(4):
            before = len(on.shelf.asked)
            loading = asyncio.create_task(on.models.load(A2, sha256=None))
            await until(partial(on.shelf.asked_since, before))
            await cancelled(loading)
        on.engines.dying.add(A1)
        on.send("a", 3)
        await until(lambda: on.models.describe()[A1].restarts > 0)
        on.engines.dying.clear()
        await on.finished()
        on.shelf.answering.set()


def gpus(*uuids: str) -> Devices:
    return Devices(tuple(DeviceChoice(uuid, "a GPU") for uuid in uuids))


async def test_a_version_has_engines_on_every_device_and_they_part_its_lanes() -> None:
    async with stage(A1, devices=gpus("GPU-1", "GPU-2"), per_gpu=2) as on:
        await on.serve(A1)
        assert on.engines.started == [A1] * 4
        assert [load.policy for load in on.engines.told] == ["require-gpu"] * 4
        assert sum(load.lanes for load in on.engines.told) == 4, "at least one for each"
        assert on.models.describe()[A1].lanes == 4
        on.send("a", 40)
        await on.finished()
        assert on.models.loaded == {A1}
        await on.models.unload(A1)
        assert on.engines.alive == []


async def test_on_a_gpu_engines_run_on_the_provider_that_is_required() -> None:
    async with stage(A1, devices=gpus("GPU-1"), policy="require-tensorrt") as on:
        await on.serve(A1)
        assert [load.policy for load in on.engines.told] == ["require-tensorrt"]


@pytest.mark.parametrize("fallback", [False, True])
async def test_results_of_the_cpu_say_so_where_a_gpu_could_not_be_used(*, fallback: bool) -> None:
    async with stage(A1, devices=Devices(fallback=fallback)) as on:
        await on.serve(A1)
        on.send("a", 2)
        await on.finished()
        ends = [end.outcome for end in on.ends.of.values()]
        assert [end.engine.fallback for end in ends if isinstance(end, Predicted)] == [fallback] * 2


async def test_several_engines_of_a_version_are_one_of_those_that_may_be_loaded() -> None:
    async with stage(A1, A2, on_cpu=3, max_loaded=2) as on:
        await on.serve(A1, A2)
        assert on.engines.started == [A1] * 3 + [A2] * 3
        assert [load.policy for load in on.engines.told] == ["cpu"] * 6


async def test_a_reload_replaces_all_engines_of_a_version() -> None:
    async with stage(A1, on_cpu=2) as on:
        await on.serve(A1)
        on.engines.holding.add(A1)
        on.send("a", 4)
        await on.models.reload(A1, sha256=None, number=1)
        on.engines.holding.clear()
        await on.finished()
        await until(lambda: len(on.engines.alive) == 2)
        assert len(on.engines.started) == 4
        assert on.models.numbers[A1] == 1


@pytest.mark.parametrize("to_cpu", [True, False])
async def test_engines_on_the_cpu_are_for_devices_that_are_lost_where_they_may(
    *, to_cpu: bool
) -> None:
    async with stage(A1, devices=gpus("GPU-1"), to_cpu=to_cpu) as on:
        for _ in range(3):
            on.models.devices["GPU-1"].failed("CUDA failure 999")
        if to_cpu:
            await on.serve(A1)
            assert [load.policy for load in on.engines.told] == ["cpu"]
            assert on.models.ready
        else:
            with pytest.raises(DeviceError, match="GPU-1 is out of use: CUDA failure 999"):
                await on.models.load(A1, sha256=None)
            assert on.engines.told == []
