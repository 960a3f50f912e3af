"""What engines keep of a model lies in that model's folder, and not for ever."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from worker.engine import artifacts
from worker.engine.artifacts import folder_of, hold, make, tensorrt_options


def test_the_folders_of_models_loaded_longest_ago_make_room(tmp_path: Path) -> None:
    for age in range(12):
        folder = folder_of(str(tmp_path), f"{age:02}")
        assert folder is not None
        make(folder)
        os.utime(folder, ns=(age, age))
    make(tmp_path / "05")  # loaded again
    make(tmp_path / "99")
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["05", "06", "07", "08", "09", "10", "11", "99"]


def test_what_an_engine_has_makes_no_room_until_it_lets_go(tmp_path: Path) -> None:
    held = make(tmp_path / "held")
    os.utime(tmp_path / "held", ns=(0, 0))
    for number in range(20):
        make(tmp_path / f"{number:02}")
    assert len(list(tmp_path.iterdir())) == 9
    assert hold(tmp_path / "held") is not None
    assert hold(tmp_path / "00") is None
    del held
    make(tmp_path / "20")
    assert hold(tmp_path / "held") is None


def test_engines_that_make_room_at_once_take_nothing_from_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "_KEPT", 1)

    def engine(number: int) -> None:
        for at in range(50):
            held = make(tmp_path / f"{number + at % 3}")
            (tmp_path / f"{number + at % 3}" / f"of-{number}").touch()
            del held

    with ThreadPoolExecutor(4) as threads:
        for each in [threads.submit(engine, number) for number in range(4)]:
            each.result(60)


def test_an_engine_that_is_given_no_folder_keeps_nothing() -> None:
    assert folder_of("", "0123") is None


def test_tensorrt_keeps_engines_by_weights_versions_and_kind_of_gpu(tmp_path: Path) -> None:
    one, two = (tensorrt_options(tmp_path / "0123", which)[0] for which in ((8, 0), (9, 0)))
    engines = [Path(options["trt_engine_cache_path"]) for options in (one, two)]
    assert engines[0] != engines[1]
    assert all(path.is_dir() and path.parent == tmp_path / "0123" for path in engines)
    assert "onnxruntime" in engines[0].name
    assert engines[1].name.endswith("-sm90")
    assert one["trt_timing_cache_path"] == one["trt_engine_cache_path"]


def test_what_tensorrt_writes_makes_no_room_while_it_is_being_made(tmp_path: Path) -> None:
    options, held = tensorrt_options(tmp_path / "0123", (9, 0))
    os.utime(tmp_path / "0123", ns=(0, 0))
    for number in range(10):
        make(tmp_path / f"{number:02}")
    assert Path(options["trt_engine_cache_path"]).is_dir()
    del held
    make(tmp_path / "10")
    assert hold(tmp_path / "0123") is None
