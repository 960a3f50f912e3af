"""What engines keep of a model lies in that model's folder, and not for ever."""

import os
from pathlib import Path

from worker.engine.artifacts import folder_of, make, tensorrt_options


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


def test_an_engine_that_is_given_no_folder_keeps_nothing() -> None:
    assert folder_of("", "0123") is None


def test_tensorrt_keeps_engines_by_weights_versions_and_kind_of_gpu(tmp_path: Path) -> None:
    one, two = (tensorrt_options(tmp_path / "0123", which) for which in ((8, 0), (9, 0)))
    engines = [Path(options["trt_engine_cache_path"]) for options in (one, two)]
    assert engines[0] != engines[1]
    assert all(path.is_dir() and path.parent == tmp_path / "0123" for path in engines)
    assert "onnxruntime" in engines[0].name
    assert engines[1].name.endswith("-sm90")
    assert one["trt_timing_cache_path"] == one["trt_engine_cache_path"]
