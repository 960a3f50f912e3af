import asyncio
from pathlib import Path

import pytest

from tests.unit.models.stage import A1, A2, A3, B1, C1, D1, LIMITS, ready, stage, until
from worker.control.messages import LiveLimits
from worker.inference.feed import Job
from worker.models.options import LOADED, overridden
from worker.models.router import Match, Pin, Rule
from worker.protocol.messages import Load
from worker.types import Position, Ticket

FOLDER = Path("models/a/1").resolve()


async def test_loaded_versions_that_routes_name_are_ready_and_serve() -> None:
    async with stage(A1, B1) as on:
        assert not ready(on), "nothing is served yet"
        await on.serve(A1, B1)
        assert on.models.serving == {"a": "1", "b": "1"}
        assert on.models.numbers == {A1: 0, B1: 0}
        assert ready(on)
        assert on.models.capacity_rows == (2 + 1) * 4
        on.send("a", 3)
        on.send("b", 2)
        assert on.models.in_flight == 5
        await on.finished()
        assert on.ends.count() == {"Predicted": 5}
        assert on.models.health() == ()
        assert on.metric("models_loaded") == 2.0
        assert on.metric("model_loads_total", result="loaded") == 2.0


async def test_an_engine_is_told_its_share_of_the_budget_and_what_to_load() -> None:
    async with stage(A1, B1, failpoint="before_run=kill") as on:
        await on.serve(A1)
        await on.models.load(B1, sha256="cafe")
    first, second = on.engines.told
    assert first == Load(
        str(FOLDER), "beef", 2, LIMITS, 1500, "cpu",
        {"intra": "1"}, "before_run=kill", quiet=False,
    )  # fmt: skip
    assert (second.lanes, second.decode_bytes, second.manifest_sha256) == (1, 1500, "cafe")
    assert second.quiet, "the first serves meanwhile"


async def test_lanes_are_shared_by_no_more_models_than_are_loaded_at_a_time() -> None:
    async with stage(A1, B1, C1, D1, max_loaded=2) as on:
        await on.models.load(A1, sha256=None)
        await on.models.load(B1, sha256=None)
    assert [load.lanes for load in on.engines.told] == [2, 1]


async def test_a_switch_is_between_two_records_and_what_came_before_it_ends_as_it_was_routed() -> (
    None
):
    async with stage(A1, A2) as on:
        await on.serve(A1)
        on.engines.holding.add(A1)
        old = on.send("a", 3)
        assert await on.models.load(A2, sha256=None, replaces="1") == LOADED
        assert on.models.serving == {"a": "1"}
        assert ready(on), "what it has serves until it is told to switch"
        on.switch(A2, generation=7)
        new = on.send("a", 3)
        await until(lambda: len(on.ends.of) == 3)
        assert {on.version_of(offset) for offset in new} == {"2"}
        assert {on.ends.of[offset].ticket.generation for offset in new} == {7}
        on.engines.holding.clear()
        await on.finished()
        assert {on.version_of(offset) for offset in old} == {"1"}
        assert {on.ends.of[offset].ticket.generation for offset in old} == {None}
        assert on.metric("model_switches_total", model="a") == 1.0


async def test_a_switch_back_to_a_version_that_is_held_needs_no_load() -> None:
    async with stage(A1, A2) as on:
        await on.serve(A1)
        await on.serve(A2)
        await on.pass_s(599.0)
        assert await on.models.load(A1, sha256=None) == LOADED
        on.switch(A1)
        [offset] = on.send("a")
        await on.finished()
        assert on.version_of(offset) == "1"
        assert on.engines.started == [A1, A2]


async def test_a_version_that_left_service_is_held_for_a_while_then_its_engine_ends() -> None:
    async with stage(A1, A2) as on:
        await on.serve(A1)
        await on.serve(A2)
        await on.pass_s(300.0)
        on.send("a", version="1")
        await on.finished()
        await on.pass_s(300.0)
        assert on.models.loaded == {A1, A2}, "it was used in between"
        await on.pass_s(300.0)
        await until(lambda: on.models.loaded == {A2})
        assert ready(on)


async def test_without_a_hold_a_version_that_left_service_ends_when_it_has_finished() -> None:
    async with stage(A1, A2, hold_s=0.0) as on:
        await on.serve(A1)
        on.engines.holding.add(A1)
        offset, *_ = on.send("a", 2)
        await on.models.load(A2, sha256=None)
        on.switch(A2)
        on.engines.holding.clear()
        await until(lambda: on.models.loaded == {A2})
        await on.finished()
        assert on.version_of(offset) == "1"


@pytest.mark.parametrize("comes_back", [True, False])
async def test_what_waits_at_a_version_that_keeps_dying_is_served_by_its_successor(
    *, comes_back: bool
) -> None:
    async with stage(A1, A2) as on:
        await on.serve(A1, A2)
        on.engines.dying.add(A2)
        offsets = on.send("a", 40)
        await until(lambda: on.models.describe()[A2].restarts >= 2)
        if not comes_back:
            on.engines.refusing.add(A2)
            await until(lambda: on.models.describe()[A2].state == "down")
        insists = on.send("a", 2, version="2")
        on.switch(A1)
        await until(lambda: len(on.ends.of) == len(offsets))
        assert {on.version_of(offset) for offset in offsets} == {"1"}
        on.engines.refusing.clear()
        on.engines.dying.clear()
        await on.finished()
        assert {on.version_of(offset) for offset in insists} == {"2"}


async def test_a_version_that_the_state_has_forgotten_serves_until_the_switch() -> None:
    async with stage(A1, A2) as on:
        await on.serve(A1)
        on.names(A2, wanted=(A2,))
        on.send("a", 5)
        await on.finished()
        await on.models.load(A2, sha256=None)
        on.models.switch("a", on.routes("2", versions=frozenset({"2"})))
        on.send("a", 5)
        await on.finished()
        assert on.ends.count() == {"Predicted": 10}
        assert [on.version_of(offset) for offset in range(10)] == ["1"] * 5 + ["2"] * 5


async def test_a_version_that_is_loaded_again_is_held_no_more() -> None:
    async with stage(A1, A2, hold_s=0.0) as on:
        await on.serve(A1)
        await on.serve(A2)
        await until(lambda: on.engines.alive == [A2])
        on.send("a", version="1")
        await on.finished()
        on.send("a", version="1")
        await on.finished()
        assert on.engines.started == [A1, A2, A1]
        assert await on.models.load(A1, sha256=None) == LOADED
        on.switch(A1)
        await until(lambda: on.engines.alive == [A1])
        on.send("a")
        await on.finished()
        assert on.engines.started == [A1, A2, A1]


async def test_its_own_timer_ends_what_was_held_long_enough() -> None:
    async with stage(A1, A2, hold_s=0.01) as on:
        on.models._clock_s = asyncio.get_running_loop().time
        on.models._berths._clock_s = on.models._clock_s
        await on.serve(A1)
        await on.serve(A2)
        await until(lambda: on.models.loaded == {A2})


async def test_what_the_state_wants_is_not_ended_for_its_age_before_a_route_names_it() -> None:
    async with stage(A1, A2) as on:
        on.names(A1, A2, wanted=[A1, A2])
        await on.serve(A1)
        await on.models.load(A2, sha256=None)
        await on.pass_s(10_000.0)
        assert on.models.loaded == {A1, A2}
        on.names(A1, A2, wanted=[A1])  # the rollout was aborted
        await on.pass_s(601.0)
        await until(lambda: on.models.loaded == {A1})


async def test_versions_of_rules_and_splits_are_in_service_too_unless_there_is_a_pin() -> None:
    async with stage(A1, A2, A3) as on:
        for ref in (A1, A2, A3):
            await on.models.load(ref, sha256=None)
        rule = Rule("beta", Match(tags={"tier": "beta"}), "next")
        on.switch(A1, rules=(rule,), split=(("1", 9), ("3", 1)), aliases={"next": "2"})
        await on.pass_s(10_000.0)
        assert on.models.loaded == {A1, A2, A3}
        on.switch(A1, rules=(rule,), split=(("3", 1),), pin=Pin("1"), aliases={"next": "2"})
        await on.pass_s(600.0)
        await until(lambda: on.models.loaded == {A1})


async def test_a_model_that_is_dropped_is_forgotten_once_it_has_finished() -> None:
    async with stage(A1, B1) as on:
        await on.serve(A1, B1)
        on.models.set_limits("b", LiveLimits(max_size=2))
        on.send("b", 3)
        on.models.drop("b")
        assert set(on.models.table.models) == {"a"}
        await on.finished()
        assert on.models.loaded == {A1}
        assert on.ends.count() == {"Predicted": 3}
        assert ready(on)
        await until(lambda: [berth.ref for berth in on.models._berths] == [A1])


async def test_records_that_wait_for_a_model_that_is_dropped_are_skipped() -> None:
    async with stage(A1, B1) as on:
        await on.serve(A1)
        on.switch(B1)
        on.shelf.slow.add(B1)
        offsets = on.send("b", 3)
        await asyncio.sleep(0)
        on.models.drop("b")
        await on.finished()
        assert {on.version_of(offset) for offset in offsets} == {"model.version-unavailable"}
        assert on.engines.started == [A1]


async def test_a_straggler_of_a_model_that_was_dropped_is_skipped() -> None:
    async with stage(A1, B1) as on:
        await on.serve(A1)
        ticket = Ticket(Position("images", 0, 7), 1, B1, "active", None)
        on.models.drop("b")
        on.models.submit([Job(ticket, b"image", None)])
        await until(lambda: 7 in on.ends.of)
        assert on.version_of(7) == "model.version-unavailable"


async def test_limits_are_of_one_model_and_reach_its_versions_and_those_loaded_later() -> None:
    async with stage(A1, A2, B1) as on:
        await on.serve(A1, B1)
        changes = LiveLimits(max_size=2, max_wait_ms=1.0, thresholds={"label": 0.5})
        on.models.set_limits("a", changes)
        await until(lambda: bool(on.engines.limits))
        limits = LIMITS._replace(max_size=2, max_wait_ms=1.0, thresholds={"label": 0.5})
        assert on.engines.limits == [limits]
        on.models.set_limits("a", changes)
        await on.models.load(A2, sha256=None)
        assert on.engines.told[-1].limits == limits
        on.models.set_limits("a", LiveLimits())
        await until(lambda: on.engines.limits[1:] == [LIMITS, LIMITS])


def test_a_size_that_is_given_live_is_the_cap_until_it_is_taken_back() -> None:
    adaptive = LIMITS._replace(adaptive=True)
    given = overridden(adaptive, LiveLimits(max_size=2, slo_ms=40.0))
    assert (given.max_size, given.adaptive, given.slo_ms) == (2, False, 40.0)
    assert overridden(adaptive, LiveLimits()) == adaptive
    assert overridden(adaptive, LiveLimits(slo_ms=40.0)).adaptive


async def test_limits_that_change_while_a_version_loads_reach_it() -> None:
    async with stage(A1) as on:
        on.engines.slow.add(A1)
        load = asyncio.create_task(on.models.load(A1, sha256=None))
        await until(lambda: bool(on.engines.told))
        on.models.set_limits("a", LiveLimits(min_size=3))
        on.engines.slow.clear()
        await load
        await until(lambda: on.engines.limits == [LIMITS._replace(min_size=3)])


async def test_it_describes_every_version_that_it_has() -> None:
    async with stage(A1) as on:
        assert on.models.describe() == {}
        await on.serve(A1)
        status = on.models.describe()[A1]
        assert (status.state, status.lanes, status.max_size, status.in_flight) == (
            "serving",
            3,
            4,
            0,
        )


async def test_the_gap_of_a_switch_under_backlog_is_measured() -> None:
    async with stage(A1, A2) as on:
        await on.serve(A1)
        await on.models.load(A2, sha256=None)
        on.engines.holding.add(A1)
        on.send("a")
        on.switch(A2)
        on.clock.now_s += 0.5
        on.send("a")
        await until(lambda: on.metric("switch_gap_seconds", model="a") == 0.5)
        on.engines.holding.clear()
        await on.finished()


async def test_a_version_that_is_unloaded_is_no_metric_any_more() -> None:
    async with stage(A1) as on:
        await on.serve(A1)
        on.metrics.set_engine_state("a/1", "serving")
        on.metrics.set_model_info(*A1, "cafe", "CPUExecutionProvider")
        labels = {"name": "a", "version": "1", "sha256": "cafe", "provider": "CPUExecutionProvider"}
        assert on.metric("model_info", **labels) == 1.0
        await on.models.unload(A1)
        assert on.metric("model_info", **labels) is None
        assert on.metric("engine_state", model="a/1", state="serving") is None
        assert on.metric("models_loaded") == 0.0


async def test_what_the_state_names_is_known_before_it_is_routed() -> None:
    async with stage(A1, A2) as on:
        assert on.models.table.default == "a"
        assert on.models.table.models["a"].versions == {"1", "2"}
        on.send("a")
        assert on.ends.count() == {"model.version-unavailable": 1}
        await on.serve(A1, generation=3)
        on.names(A1, A3, default="a")
        routes = on.models.table.models["a"]
        assert (routes.serving, routes.generation, routes.versions) == ("1", 3, frozenset("13"))
