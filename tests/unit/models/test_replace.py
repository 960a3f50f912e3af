import asyncio
import re
from pathlib import Path

import pytest

from tests.unit.models.stage import A1, A2, A3, B1, Stage, cancelled, ready, stage, until
from worker.errors import EngineFault, ModelError
from worker.models.options import LOADED, VERIFIED
from worker.types import ModelRef


async def replaced(on: Stage, ref: ModelRef, **routes: object) -> None:
    await on.models.replace(ref.name, on.routes(ref.version, ref.name, **routes), sha256=None)


async def test_with_no_room_beside_a_load_only_verifies_and_the_old_one_serves() -> None:
    async with stage(A1, A2, max_loaded=1, stop_first=True) as on:
        await on.serve(A1)
        assert await on.models.load(A2, sha256="cafe", replaces="1") == VERIFIED
        assert on.models.loaded == {A1}
        assert on.engines.started == [A1]
        on.shelf.absent.add(A3)
        with pytest.raises(ModelError, match="no version a/3"):
            await on.models.load(A3, sha256=None)
        on.send("a", 3)
        await on.finished()
        assert on.ends.count() == {"Predicted": 3}


async def test_where_there_is_room_a_load_is_one_beside() -> None:
    async with stage(A1, A2, max_loaded=2, stop_first=True) as on:
        await on.serve(A1)
        assert await on.models.load(A2, sha256=None, replaces="1") == LOADED
        assert on.models.loaded == {A1, A2}


async def test_files_that_are_not_as_they_must_be_are_not_verified(tmp_path: Path) -> None:
    async with stage(A1, A2, max_loaded=1, stop_first=True) as on:
        await on.serve(A1)
        on.shelf.folder = tmp_path
        (tmp_path / "a/2").mkdir(parents=True)
        (tmp_path / "a/2/stray").touch()
        for change in (on.models.load(A2, sha256=None), replaced(on, A2)):
            with pytest.raises(ModelError, match="stray: is not listed"):
                await change
        assert on.engines.started == [A1]


async def test_a_version_takes_the_place_of_the_old_one_and_what_waits_is_routed_anew() -> None:
    async with stage(A1, A2, max_loaded=1, stop_first=True) as on:
        await on.serve(A1)
        on.engines.holding.add(A1)
        before = on.send("a", 300)
        change = asyncio.create_task(replaced(on, A2, generation=2))
        await until(lambda: bool(on.ends.of))
        during = on.send("a", 10)
        await change
        await on.finished()
        assert on.ends.count() == {"Predicted": 310}
        assert {on.version_of(offset) for offset in during} == {"2"}
        assert {on.ends.of[offset].ticket.generation for offset in during} == {2}
        assert {on.version_of(offset) for offset in before} == {"1", "2"}
        assert on.engines.started == [A1, A2]
        assert on.engines.most == 1
        assert on.models.serving == {"a": "2"}


async def test_a_new_version_that_fails_brings_the_old_one_back() -> None:
    async with stage(A1, A2, max_loaded=1, stop_first=True) as on:
        await on.serve(A1)
        on.engines.refusing.add(A2)
        on.send("a", 50)
        with pytest.raises(ModelError, match=r"golden\.png says cat"):
            await replaced(on, A2)
        assert on.models.loaded == {A1}
        on.send("a", 5)
        await on.finished()
        assert on.ends.count() == {"Predicted": 55}
        assert {on.version_of(offset) for offset in on.ends.of} == {"1"}
        assert ready(on)
        assert on.models.serving == {"a": "1"}


async def test_when_the_old_one_does_not_come_back_either_records_bring_it() -> None:
    async with stage(A1, A2, max_loaded=1, stop_first=True) as on:
        await on.serve(A1)
        on.engines.refusing |= {A1, A2}
        with pytest.raises(ModelError, match="golden"):
            await replaced(on, A2)
        assert on.models.loaded == frozenset()
        on.engines.refusing.clear()
        on.send("a", 5)
        await on.finished()
        assert on.models.loaded == {A1}
        assert on.ends.count() == {"Predicted": 5}


async def test_a_replacement_that_is_cancelled_leaves_the_old_one_in_service() -> None:
    async with stage(A1, A2, max_loaded=1, stop_first=True) as on:
        await on.serve(A1)
        on.engines.never_loading.add(A2)
        change = asyncio.create_task(replaced(on, A2))
        await until(lambda: A2 in on.engines.started)
        on.send("a", 5)
        await cancelled(change)
        await on.finished()
        assert {on.version_of(offset) for offset in on.ends.of} == {"1"}
        assert on.models.loaded == {A1}
        assert on.models.serving == {"a": "1"}


async def test_a_replacement_is_checked_before_anything_is_stopped() -> None:
    async with stage(A1, A2, max_loaded=1, stop_first=True) as on:
        on.shelf.heads[A1] = ("label", "mood")
        await on.serve(A1)
        with pytest.raises(ModelError, match="lacks what a/1 offers"):
            await replaced(on, A2)
        assert on.engines.started == [A1]
        await on.models.replace("a", on.routes("2"), sha256=None, new_heads=True, reload=3)
        assert on.models.numbers == {A2: 3}


async def test_where_there_is_room_after_all_nothing_is_stopped() -> None:
    async with stage(A1, A2, max_loaded=2, stop_first=True) as on:
        await on.serve(A1)
        await replaced(on, A2)
        assert on.models.loaded == {A1, A2}
        await replaced(on, A1)
        assert on.engines.started == [A1, A2]
        await replaced(on, A1)
        assert on.models.serving == {"a": "1"}


async def test_the_first_version_of_a_model_replaces_nothing() -> None:
    async with stage(A1, max_loaded=1, stop_first=True) as on:
        await replaced(on, A1)
        assert on.models.loaded == {A1}
        assert ready(on)


async def test_a_version_that_was_unloaded_is_replaced_without_coming_back() -> None:
    async with stage(A1, A2, B1, max_loaded=1, stop_first=True) as on:
        await on.serve(A1)
        on.switch(B1)
        on.send("b")
        await on.moving()
        assert on.models.loaded == {B1}
        change = asyncio.create_task(replaced(on, A2))
        await until(lambda: len(on.shelf.asked) == 3)
        await on.pass_s(1.0)
        await change
        assert on.models.loaded == {A2}
        assert on.engines.started == [A1, B1, A2]


async def test_a_reload_without_room_beside_stops_the_engine_first_if_it_may() -> None:
    async with stage(A1, max_loaded=1, stop_first=True) as on:
        await on.serve(A1)
        on.engines.holding.add(A1)
        on.send("a", 100)
        await on.models.reload(A1, sha256=None, number=1)
        on.engines.holding.clear()
        await on.finished()
        assert on.ends.count() == {"Predicted": 100}
        assert on.engines.most == 1
    async with stage(A1, max_loaded=1) as on:
        await on.serve(A1)
        with pytest.raises(ModelError, match=re.escape("models.max_loaded is 1")):
            await on.models.reload(A1, sha256=None, number=1)
        assert on.models.numbers == {A1: 0}


async def test_a_reload_that_stopped_the_engine_and_failed_is_made_good_when_records_come() -> None:
    async with stage(A1, max_loaded=1, stop_first=True) as on:
        await on.serve(A1)
        on.engines.refusing.add(A1)
        with pytest.raises(ModelError, match="golden"):
            await on.models.reload(A1, sha256=None, number=1)
        on.engines.refusing.clear()
        on.send("a", 5)
        await on.finished()
        assert on.ends.count() == {"Predicted": 5}


async def test_a_bug_in_the_background_is_told_to_liveness(monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage(A1, A2) as on:
        await on.serve(A1)
        monkeypatch.setattr(on.models._loader, "load", None)
        on.send("a", version="2")
        await until(lambda: bool(on.models.health()))
        assert "the registry failed: TypeError" in on.models.health()[0]


async def test_an_engine_that_dies_while_it_loads_is_told_as_that() -> None:
    async with stage(A1) as on:
        on.engines.mute.add(A1)
        with pytest.raises(EngineFault, match="died while it loaded"):
            await on.models.load(A1, sha256=None)


async def test_a_close_lets_an_engine_that_is_ending_finish_but_not_for_ever() -> None:
    async with stage(A1, A2, hold_s=0.0) as on:
        await on.serve(A1)
        await on.models.load(A2, sha256=None)
        on.engines.holding.add(A1)
        on.send("a", 3)
        on.switch(A2)
        await on.models.close(0.05)
        assert on.engines.alive == []
        assert on.models.loaded == frozenset()


async def test_a_disk_that_fails_while_files_are_verified_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object) -> None:
        raise OSError(5, "Input/output error")

    async with stage(A1, A2, max_loaded=1, stop_first=True) as on:
        await on.serve(A1)
        monkeypatch.setattr("worker.models.finding.verify_files", fails)
        with pytest.raises(ModelError, match=r"models/a/2: cannot be read.*Input/output") as told:
            await replaced(on, A2)
        assert told.value.code == "model.fetch"


async def test_what_waits_for_a_version_that_was_idle_is_served_by_its_replacement() -> None:
    async with stage(A1, A2, max_loaded=1, stop_first=True) as on:
        await on.serve(A1)
        await on.models.unload(A1)
        on.engines.slow.add(A2)
        replacing = asyncio.create_task(on.models.replace("a", on.routes("2"), sha256=None))
        await until(lambda: A2 in on.engines.alive)
        offsets = on.send("a", 3)
        on.engines.slow.clear()
        await replacing
        await on.finished()
        await on.pass_s(20.0)
        assert {on.version_of(offset) for offset in offsets} == {"2"}
        assert on.engines.started == [A1, A2], "nobody waits for the old one any more"
