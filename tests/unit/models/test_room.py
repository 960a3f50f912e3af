import os
from collections.abc import Iterable
from pathlib import Path

from tests.unit.models.stage import A1, manifest
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
    assert expected_bytes(size, []) == expected_bytes(size, [0]) == (160 + 3 * 10) * MIB
    assert expected_bytes(size, [0, 36 * MIB]) == 36 * MIB
    assert expected_bytes(size, [0, 20 * MIB]) == 3 * 10 * MIB, "its files alone are more"


def test_the_first_engine_is_refused_by_no_guess() -> None:
    room = Room(1, 500 * MIB, resident=lambda _: 100 * MIB)
    assert room.lack(1000 * MIB, 0, []) is None


def test_engines_need_each_what_one_of_those_alike_has() -> None:
    assert expected_bytes(10 * MIB, [], engines=2) == 2 * (160 + 3 * 10) * MIB
    assert expected_bytes(10 * MIB, [36 * MIB, 40 * MIB], engines=2) == 2 * 40 * MIB
