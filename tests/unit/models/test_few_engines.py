"""A version of which nobody says how many engines it has: one where there is no room for more."""

from collections.abc import Iterable

import pytest

from tests.unit.models.stage import A1, A2, B1, BUDGET, Stage, stage, until
from worker.errors import ModelError
from worker.models.options import LOADED
from worker.models.room import Room

MIB = 1 << 20
FOUR_LANES = BUDGET._replace(lanes=4)
"""Two for each of two models, and so two engines where there is room for them."""


def leave_mib(on: Stage, free: int) -> None:
    """Leave so much memory; an engine of which nothing is known needs 160 MiB."""
    on.models._berths._room = Room(9, free * MIB, resident=lambda _: 0)


def fit(on: Stage, engines: int) -> None:
    """Leave memory for so many engines, those that run among them."""

    def resident(pids: Iterable[int]) -> int:
        return 160 * MIB * (len(list(pids)) - 1)  # the worker itself has none

    on.models._berths._room = Room(9, 160 * MIB * engines, resident=resident)


def engines_of(on: Stage, version: str) -> list[int]:
    """Return the lanes of all engines that were started for a version."""
    return sorted(load.lanes for load in on.engines.told if load.folder.endswith(version))


async def test_it_has_one_where_two_have_no_room_and_two_again_when_it_is_loaded_anew() -> None:
    async with stage(A1, A2, on_cpu=None) as on:
        await on.serve(A1)
        assert engines_of(on, "1") == [1, 2]
        leave_mib(on, 319)
        await on.serve(A2)
        assert engines_of(on, "2") == [3], "all lanes are its own"
        assert on.models.loaded == {A1, A2}
        leave_mib(on, 320)
        await on.models.reload(A2, sha256=None, number=1)
        assert engines_of(on, "2") == [1, 2, 3]


@pytest.mark.parametrize(("on_cpu", "free"), [(None, 159), (2, 319)])
async def test_where_one_does_not_fit_either_or_two_were_asked_for_it_is_refused(
    on_cpu: int | None, free: int
) -> None:
    async with stage(A1, A2, on_cpu=on_cpu) as on:
        await on.serve(A1)
        leave_mib(on, free)
        with pytest.raises(ModelError, match=f"needs about {free + 1} MiB"):
            await on.models.load(A2, sha256=None)
        assert on.models.loaded == {A1}


async def test_where_the_old_one_may_be_stopped_first_that_makes_the_room() -> None:
    async with stage(A1, A2, on_cpu=None, stop_first=True) as on:
        await on.serve(A1)
        leave_mib(on, 319)
        assert await on.models.load(A2, sha256=None, replaces="1") == "verified"
        await on.models.replace("a", on.routes("2"), sha256=None)
        assert engines_of(on, "2") == [1, 2]
        assert on.models.loaded == {A2}


async def test_a_reload_that_stopped_its_engine_starts_no_more_than_have_room() -> None:
    async with stage(A1, A2, B1, budget=FOUR_LANES, on_cpu=None, stop_first=True) as on:
        await on.serve(A1, B1)
        fit(on, 3)
        await on.models.replace("a", on.routes("2"), sha256=None)
        assert engines_of(on, "a/2") == [2]
        await on.models.reload(A2, sha256=None, number=1)
        assert engines_of(on, "a/2") == [2, 2]
        assert on.models.numbers == {A2: 1, B1: 0}


async def test_no_version_that_was_used_lately_ends_so_that_another_has_more_than_one_engine() -> (
    None
):
    async with stage(A1, B1, budget=FOUR_LANES, on_cpu=None) as on:
        await on.serve(A1, B1)
        fit(on, 3)
        await on.models.unload(B1)
        await on.pass_s(20.0)
        on.send("b")
        await until(lambda: B1 in on.models.loaded)
        assert on.models.loaded == {A1, B1}
        assert engines_of(on, "b/1") == [1, 1, 2]


async def test_where_one_gave_way_and_left_room_for_two_there_are_two() -> None:
    async with stage(A1, B1, budget=FOUR_LANES, on_cpu=None) as on:
        await on.serve(A1)
        fit(on, 2)
        on.switch(B1)
        await on.pass_s(20.0)
        on.send("b")
        await until(lambda: B1 in on.models.loaded)
        assert on.models.loaded == {B1}
        assert engines_of(on, "b/1") == [1, 1]


@pytest.mark.parametrize("unloaded", [False, True])
async def test_what_has_none_to_stop_first_has_one_engine_where_two_have_no_room(
    *, unloaded: bool
) -> None:
    async with stage(A1, A2, B1, budget=FOUR_LANES, on_cpu=None, stop_first=True) as on:
        await on.serve(B1)
        if unloaded:
            await on.serve(A1)
            await on.models.unload(A1)
        fit(on, 3)
        replaces = "1" if unloaded else None
        assert await on.models.load(A2, sha256=None, replaces=replaces) == LOADED
        assert engines_of(on, "a/2") == [2]
        assert on.models.loaded == {A2, B1}


async def test_a_version_of_one_lane_needs_room_for_one_engine() -> None:
    one_lane = BUDGET._replace(lanes=1)
    async with stage(A1, A2, budget=one_lane, on_cpu=None, stop_first=True) as on:
        await on.serve(A1)
        fit(on, 2)
        assert await on.models.load(A2, sha256=None, replaces="1") == LOADED
        assert engines_of(on, "a/2") == [1]
