import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.models.stage import A1, A2, A3, B1, BUDGET, C1, D1, ready, stage, until
from worker.errors import ModelError
from worker.models.room import Room


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


async def test_a_version_that_is_held_ends_before_others_give_way() -> None:
    async with stage(A1, A2, B1, C1, max_loaded=3) as on:
        await on.serve(A1, A2, B1)
        await on.models.load(C1, sha256=None)
        assert on.models.loaded == {A2, B1, C1}
        assert on.engines.most == 3


async def test_the_version_that_was_not_used_for_longest_gives_way_and_comes_back() -> None:
    async with stage(A1, B1, C1, max_loaded=2) as on:
        await on.serve(A1, B1)
        await on.pass_s(20.0)
        on.send("a")
        await on.finished()
        await on.pass_s(20.0)
        await on.serve(C1)
        assert on.models.loaded == {A1, C1}
        assert ready(on)
        await on.pass_s(40.0)
        on.send("c")
        on.send("b")
        await on.finished()
        assert on.models.loaded == {B1, C1}
        assert on.ends.count() == {"Predicted": 3}
        assert on.engines.most == 2


async def test_what_was_only_asked_for_gives_way_before_what_serves() -> None:
    async with stage(A1, A2, B1, max_loaded=2) as on:
        await on.serve(A1)
        await on.pass_s(1.0)
        on.send("a", version="2")
        await on.finished()
        await on.pass_s(40.0)
        await on.serve(B1)
        assert on.models.loaded == {A1, B1}


async def test_a_load_that_was_ordered_does_not_take_the_place_of_one_in_use() -> None:
    async with stage(A1, B1, C1, max_loaded=2) as on:
        await on.serve(A1, B1)
        await on.pass_s(29.0)
        with pytest.raises(ModelError, match=r"no room for c/1.*2 versions are loaded") as none:
            await on.models.load(C1, sha256=None)
        assert none.value.code == "headroom"
        assert "models.max_loaded is 2" in str(none.value)
        assert "models.swap" in str(none.value)
        assert on.models.loaded == {A1, B1}
        assert on.shelf.asked[-1] == (C1, None)
        assert on.engines.started == [A1, B1]


async def test_nor_the_place_of_the_version_that_it_is_to_replace() -> None:
    async with stage(A1, A2, max_loaded=1) as on:
        await on.serve(A1)
        await on.pass_s(10_000.0)
        with pytest.raises(ModelError, match="1 version is loaded"):
            await on.models.load(A2, sha256=None, replaces="1")
        assert on.models.loaded == {A1}


async def test_memory_that_does_not_suffice_is_told_with_what_there_is() -> None:
    async with stage(A1, A2, budget=BUDGET._replace(memory_bytes=50 << 20)) as on:
        await on.serve(A1)
        text = r"no room for a/2.*needs about \d+ MiB; \d+ MiB of 50 MiB are in use"
        with pytest.raises(ModelError, match=text):
            await on.models.load(A2, sha256=None, replaces="1")
        assert on.models.loaded == {A1}


async def test_what_is_held_is_not_ended_for_a_version_that_would_not_fit_without_it_either() -> (
    None
):
    async with stage(A1, A2, A3) as on:
        await on.serve(A1, A2)
        on.models._berths._room = Room(3, 1 << 20)  # others have taken the memory meanwhile
        with pytest.raises(ModelError, match="no room for a/3"):
            await on.models.load(A3, sha256=None, replaces="2")
        assert on.models.loaded == {A1, A2}


async def test_more_models_than_have_room_all_make_progress() -> None:
    async with stage(A1, B1, C1, D1, max_loaded=2) as on:
        for ref in (A1, B1, C1, D1):
            on.switch(ref)
        for _ in range(3):
            for name in "abcd":
                on.send(name, 50)
        await on.moving()
        assert on.ends.count() == {"Predicted": 600}
        assert on.engines.most == 2
        assert ready(on)


async def test_a_version_that_is_never_idle_gives_way_when_its_turn_is_over() -> None:
    async with stage(A1, B1, max_loaded=1) as on:
        on.switch(B1)
        await on.serve(A1)
        on.engines.holding.add(A1)
        on.send("a", 200)
        on.send("b", 5)
        await on.pass_s(9.0)
        assert on.engines.started == [A1]
        await on.pass_s(1.0)
        await until(lambda: on.ends.count() == {"Predicted": 5 + 24})
        on.engines.holding.clear()
        assert on.models.loaded == {B1}
        await on.moving()
        assert on.ends.count() == {"Predicted": 205}
        assert on.engines.started == [A1, B1, A1]


async def test_what_a_rollout_wants_warm_gives_way_last() -> None:
    async with stage(A1, A2, B1, C1, max_loaded=3) as on:
        on.names(A1, A2, B1, C1, wanted=[A2])
        await on.serve(A1, B1)
        await on.models.load(A2, sha256=None)
        on.switch(C1)
        on.engines.holding |= {A1, B1}
        on.send("a")
        on.send("b")
        on.send("c", 3)
        await on.pass_s(10.0)
        await until(lambda: on.ends.count()["Predicted"] >= 3)
        assert A2 in on.models.loaded
        on.engines.holding.clear()


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 40)), min_size=1, max_size=12))
@settings(max_examples=25, deadline=None)
def test_whatever_the_mix_every_record_ends_and_never_more_engines_run(
    mix: list[tuple[str, int]],
) -> None:
    async def run() -> None:
        async with stage(A1, B1, C1, D1, max_loaded=2) as on:
            for ref in (A1, B1, C1, D1):
                on.switch(ref)
            for name, many in mix:
                on.send(name, many)
                await asyncio.sleep(0.001)
            await on.moving()
            assert on.ends.count() == {"Predicted": on.sent}
            assert on.engines.most <= 2

    asyncio.run(run())


async def test_records_that_wait_for_a_version_that_the_state_takes_away_are_skipped() -> None:
    async with stage(A1, A2, B1, max_failures=1000) as on:
        await on.serve(B1)
        on.engines.refusing.add(A1)
        await on.serve(A2, fallback_model="b")
        offsets = on.send("a", 3, version="1")
        await until(lambda: len(on.engines.told) > 4)
        on.names(A2, B1)
        await on.finished()
        assert {on.version_of(offset) for offset in offsets} == {"model.version-unavailable"}
