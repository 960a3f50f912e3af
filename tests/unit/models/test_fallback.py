import asyncio

import pytest

from tests.unit.models.stage import A1, A2, B1, Stage, ready, stage, until
from worker.errors import ModelError


async def opened(on: Stage) -> None:
    """Let a/1, which has b/1 to fall back on, fail until its breaker is open; it would work now."""
    await on.serve(B1)
    on.engines.ending.add(A1)
    await on.serve(A1, fallback_model="b")
    await until(lambda: on.models.table.down == {A1})
    on.engines.ending.clear()
    await until(lambda: A1 in on.engines.serving and on.models.describe()[A1].pid is not None)


async def test_records_of_a_version_that_keeps_dying_are_served_by_the_fallback_model() -> None:
    async with stage(A1, B1) as on:
        await opened(on)
        assert ready(on)
        offsets = on.send("a", 5)
        await on.finished()
        tickets = {on.ends.of[offset].ticket for offset in offsets}
        assert {(ticket.model, ticket.route) for ticket in tickets} == {(B1, "fallback")}
        assert on.withdrawn == 0, "they were routed right"


async def test_records_that_wait_when_the_breaker_opens_are_routed_again() -> None:
    async with stage(A1, B1) as on:
        await on.serve(B1)
        await on.serve(A1, fallback_model="b")
        on.engines.dying.add(A1)
        on.send("a", 300)
        await until(lambda: on.models.table.down == {A1})
        on.engines.dying.clear()
        await on.finished()
        assert on.ends.count() == {"Predicted": 300}
        served_by = [end.ticket.model for end in on.ends.of.values()]
        assert served_by.count(B1) == on.withdrawn > 250
        assert served_by.count(A1) == 300 - on.withdrawn
        assert on.ends.convicted == set(), "who died with it had no witness"


async def test_records_that_are_served_close_the_breaker() -> None:
    async with stage(A1, B1) as on:
        await on.serve(B1)
        await on.serve(A1, fallback_model="b")
        on.engines.dying.add(A1)
        on.send("a", 300)
        await until(lambda: on.models.table.down == {A1})
        on.engines.dying.clear()
        await on.finished()
        await on.pass_s(60.0)
        [trial] = on.send("a")
        await on.finished()
        assert on.models.table.down == frozenset()
        [offset] = on.send("a")
        await on.finished()
        assert on.ends.of[trial].ticket.model == on.ends.of[offset].ticket.model == A1


async def test_half_open_one_record_is_let_in_and_closes_it_when_it_is_served() -> None:
    async with stage(A1, B1) as on:
        await opened(on)
        await on.pass_s(59.0)
        assert on.models.table.down == {A1}
        await on.pass_s(1.0)
        assert on.models.table.down == frozenset()
        on.engines.holding.add(A1)
        first, *others = on.send("a", 20)
        await until(lambda: len(on.ends.of) == 19)
        assert {on.ends.of[offset].ticket.model for offset in others} == {B1}
        assert on.models.table.down == {A1}, "until the trial has ended"
        later = on.send("a", 2)
        await until(lambda: len(on.ends.of) == 21)
        assert {on.ends.of[offset].ticket.model for offset in later} == {B1}
        on.engines.holding.clear()
        await on.finished()
        assert on.ends.of[first].ticket.model == A1
        assert on.models.table.down == frozenset()
        on.send("a", 5)
        await on.finished()
        assert [end.ticket.model for end in on.ends.of.values()][-5:] == [A1] * 5


async def test_a_trial_that_fails_opens_it_again() -> None:
    async with stage(A1, B1) as on:
        await opened(on)
        on.engines.dying.add(A1)
        await on.pass_s(60.0)
        on.send("a", 20)
        await on.finished()
        await until(lambda: on.models.describe()[A1].restarts >= 4)
        assert on.models.table.down == {A1}
        await on.pass_s(59.0)
        assert on.models.table.down == {A1}
        assert {end.ticket.model for end in on.ends.of.values()} == {B1}, "the trial's record too"


async def test_suspects_of_a_version_that_does_not_come_back_go_to_the_fallback() -> None:
    async with stage(A1, B1) as on:
        await on.serve(B1)
        await on.serve(A1, fallback_model="b")
        on.engines.dying.add(A1)
        on.engines.refusing.add(A1)
        on.send("a", 40)
        await until(lambda: on.models.table.down == {A1})
        await on.pass_s(60.0)
        await on.finished()
        assert {end.ticket.model for end in on.ends.of.values()} == {B1}


async def test_a_trial_with_a_broken_picture_tells_nothing_and_another_is_made() -> None:
    async with stage(A1, B1) as on:
        await opened(on)
        await on.pass_s(60.0)
        on.engines.broken.add(A1)
        [offset] = on.send("a")
        await on.finished()
        assert on.version_of(offset) == "image.corrupt"
        on.engines.broken.clear()
        [offset] = on.send("a")
        await on.finished()
        assert on.ends.of[offset].ticket.model == A1


async def test_while_the_engine_is_away_no_trial_is_made() -> None:
    async with stage(A1, B1) as on:
        await on.serve(B1)
        on.engines.ending.add(A1)
        await on.serve(A1, fallback_model="b")
        await until(lambda: on.models.table.down == {A1})
        on.engines.never_loading.add(A1)
        await until(lambda: on.models.describe()[A1].state == "down")
        await on.pass_s(60.0)
        assert on.models.table.down == {A1}


async def test_records_that_insist_on_a_version_wait_for_it() -> None:
    async with stage(A1, B1) as on:
        await opened(on)
        await on.pass_s(60.0)
        on.engines.holding.add(A1)
        offsets = on.send("a", 20, version="1")
        await asyncio.sleep(0)
        assert on.withdrawn == 19
        on.engines.holding.clear()
        await on.finished()
        assert {on.ends.of[offset].ticket.model for offset in offsets} == {A1}


async def test_without_a_fallback_records_wait() -> None:
    async with stage(A1) as on:
        await on.serve(A1)
        on.engines.dying.add(A1)
        on.send("a", 300)
        await until(lambda: on.models.describe()[A1].restarts >= 6)
        assert on.models.table.down == frozenset()
        assert not ready(on)
        on.engines.dying.clear()
        await on.finished()
        assert on.ends.count() == {"Predicted": 300}


async def test_a_version_that_cannot_be_loaded_on_demand_is_tried_until_its_breaker_opens() -> None:
    async with stage(A1, A2, B1) as on:
        await on.serve(B1)
        on.engines.refusing.add(A1)
        on.switch(A1, fallback_model="b")
        offsets = on.send("a", 5)
        insists = on.send("a", 1, version="1")
        await on.finished()
        assert on.engines.started == [B1, A1, A1, A1]
        assert {on.ends.of[offset].ticket.model for offset in offsets} == {B1}
        assert {on.version_of(offset) for offset in insists} == {"model.version-unavailable"}
        assert ready(on)


async def test_a_trial_whose_version_cannot_be_loaded_goes_to_the_fallback() -> None:
    async with stage(A1, B1) as on:
        await on.serve(B1)
        on.engines.refusing.add(A1)
        on.switch(A1, fallback_model="b")
        on.send("a", 5)
        await on.finished()
        await on.pass_s(60.0)
        assert on.models.table.down == frozenset()
        on.send("a", 5)
        await on.finished()
        assert on.models.table.down == {A1}
        assert on.engines.started == [B1] + 4 * [A1]
        assert {end.ticket.model for end in on.ends.of.values()} == {B1}
        assert len(on.ends.of) == 10


async def test_a_fallback_that_is_down_too_leaves_records_where_they_are() -> None:
    async with stage(A1, B1) as on:
        on.engines.refusing |= {A1, B1}
        on.switch(B1, fallback_model="a")
        on.switch(A1, fallback_model="b")
        on.send("a", 5)
        await on.finished()
        assert on.ends.count() == {"model.version-unavailable": 5}
        assert not ready(on)


async def test_a_load_is_not_tried_while_the_breaker_is_open() -> None:
    async with stage(A1, B1) as on:
        await opened(on)
        await on.models.unload(A1)
        with pytest.raises(ModelError, match="a/1 failed 3 times in a row") as refused:
            await on.models.load(A1, sha256=None)
        assert refused.value.code == "engine"
