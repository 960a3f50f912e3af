import asyncio

from tests.unit.models.stage import A1, A2, ready, stage


async def test_a_version_that_records_ask_for_is_loaded_for_them() -> None:
    async with stage(A1, A2) as on:
        await on.serve(A1)
        asked = on.send("a", 3, version="2")
        assert ready(on)
        await on.finished()
        assert {on.version_of(offset) for offset in asked} == {"2"}
        assert {on.ends.of[offset].ticket.route for offset in asked} == {"asked"}
        assert not on.engines.told[-1].quiet, "records wait for it"


async def test_records_of_a_version_that_cannot_be_loaded_are_skipped_with_the_reason() -> None:
    async with stage(A1, A2) as on:
        await on.serve(A1)
        on.engines.refusing.add(A2)
        for loads in (2, 3, 4, 4, 4):
            [offset] = on.send("a", version="2")
            await on.finished()
            outcome = on.ends.of[offset].outcome
            assert outcome[0] == "model.version-unavailable"
            assert "golden.png says cat" in str(outcome[1])
            assert len(on.engines.told) == loads
        assert ready(on)


async def test_a_version_that_serves_and_is_not_loaded_is_ready_and_comes_on_demand() -> None:
    async with stage(A1) as on:
        on.switch(A1)
        assert ready(on)
        on.send("a", 3)
        await on.finished()
        await on.models.unload(A1)
        assert on.models.loaded == frozenset()
        assert ready(on)
        on.send("a", 3)
        await on.finished()
        assert on.ends.count() == {"Predicted": 6}
        assert on.engines.started == [A1, A1]


async def test_records_that_come_while_a_version_is_unloaded_bring_it_back() -> None:
    async with stage(A1) as on:
        await on.serve(A1)
        on.engines.holding.add(A1)
        on.send("a", 1000)
        unloading = asyncio.create_task(on.models.unload(A1))
        await asyncio.sleep(0)
        on.engines.holding.clear()
        on.send("a", 5)
        await unloading
        on.send("a", 5)
        await on.finished()
        assert on.ends.count() == {"Predicted": 1010}
