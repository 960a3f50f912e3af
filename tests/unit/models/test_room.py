import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.unit.models.stage import A1, A2, manifest, stage
from worker.errors import ModelError
from worker.inference.devices import DeviceChoice, Devices
from worker.models.repository import Version
from worker.models.room import Room, expected_bytes, files_bytes

MIB = 1 << 20


def test_there_is_room_below_the_places_and_the_memory() -> None:
    asked: list[tuple[int, ...]] = []

    def resident(pids: Iterable[int]) -> int:
        asked.append(tuple(pids))
        return 300 * MIB

    room = Room(3, 500 * MIB, resident=resident)
    assert room.lack(200 * MIB, 2, [7, 8]) is None
    assert asked == [(os.getpid(), 7, 8)]
    assert room.lack(201 * MIB, 2, [7, 8]) == (
        "it needs about 201 MiB; 300 MiB of 500 MiB are in use"
    )
    assert room.lack(1, 3, []) == "3 versions are loaded, models.max_loaded is 3"
    assert Room(1, MIB).lack(1, 1, []) == "1 version is loaded, models.max_loaded is 1"


def test_an_engine_needs_what_those_alike_have_else_a_multiple_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(bytes(10 * MIB))
    listed = {"model.onnx": "cafe", "absent.txt": "beef"}
    version = Version(A1, tmp_path, "beef", manifest())
    size = files_bytes(version._replace(manifest=manifest(files=listed)))
    assert size == 10 * MIB
    assert expected_bytes(3 * size, []) == expected_bytes(3 * size, [0]) == (160 + 30) * MIB
    assert expected_bytes(3 * size, [0, 36 * MIB]) == 36 * MIB
    assert expected_bytes(3 * size, [0, 20 * MIB]) == 30 * MIB, "its files alone are more"


def test_the_first_engine_is_refused_by_no_guess() -> None:
    room = Room(1, 500 * MIB, resident=lambda _: 100 * MIB)
    assert room.lack(1000 * MIB, 0, []) is None


@pytest.mark.parametrize(
    ("staging", "gpus", "need"),
    [("auto", 0, 190), ("always", 0, 240), ("auto", 1, 240), ("never", 1, 190)],
)
async def test_where_graphs_are_folded_a_version_that_comes_live_needs_room_for_the_peak_of_that(
    tmp_path: Path, staging: str, gpus: int, need: int
) -> None:
    devices = Devices((DeviceChoice("GPU-1", "a GPU"),) * gpus)
    async with stage(A1, A2, staging=staging, devices=devices) as on:
        await on.serve(A1)
        on.shelf.folder = tmp_path
        on.shelf.files = {"model.onnx": "cafe"}
        folder = tmp_path / "a/2"
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(bytes(10 * MIB))
        on.models._berths._room = Room(9, (need - 1) * MIB, resident=lambda _: 0)
        with pytest.raises(ModelError, match=f"needs about {need} MiB"):
            await on.models.load(A2, sha256=None)
