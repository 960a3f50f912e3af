"""A version of which nobody says how many engines it has: one where there is no room for more."""

import pytest

from tests.unit.models.stage import A1, A2, Stage, stage
from worker.errors import ModelError
from worker.models.room import Room

MIB = 1 << 20


def leave_mib(on: Stage, free: int) -> None:
    """Leave so much memory; an engine of which nothing is known needs 160 MiB."""
    on.models._berths._room = Room(9, free * MIB, resident=lambda _: 0)


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
