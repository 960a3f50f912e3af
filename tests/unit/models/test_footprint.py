from pathlib import Path
from typing import Any

import pytest

from tests.unit.engine import graphs
from worker.config_sections import ModelsSettings, Settings
from worker.inference.memory import Footprint, memory_of
from worker.models.footprint import needed_memory, row_bytes
from worker.models.manifest import load_manifest
from worker.types import ModelRef

LIGHT = ModelRef("light", "1")
TO_CHW = {"channel_swap": {"from": "hwc", "to": "chw"}}


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([{"resize": {"size": [20, 10]}}], 20 * 10 * 3),
        ([{"resize": {"size": [20, 10]}}, {"normalize": {"scale": 0.1}}], 20 * 10 * 3 * 4),
        ([{"resize": {"size": [20, 10]}}, {"cast": {"to": "float16"}}], 20 * 10 * 3 * 2),
        ([{"color": {"to": "gray"}}, {"resize": {"size": [20, 10]}}], 20 * 10),
        ([{"color": {"to": "bgr"}}, {"resize": {"size": [20, 10]}}, TO_CHW], 20 * 10 * 3),
        ([{"resize": {"size": {"short_side": 20}}}, {"center_crop": {"output_size": 8}}], 192),
        ([{"resize": {"size": [20, 10]}}, {"center_crop": {"square": True}}], 10 * 10 * 3),
        ([{"resize": {"size": {"short_side": 20}}}], None),
        ([{"center_crop": {"square": True}}], None),
    ],
)
def test_the_bytes_of_a_row_are_those_that_the_steps_leave(
    tmp_path: Path, steps: list[dict[str, Any]], expected: int | None
) -> None:
    document = graphs.manifest(inputs={"image": {"preprocess": steps}})
    graphs.version(tmp_path / "1", document=document)
    manifest, _ = load_manifest(tmp_path / "1")
    assert row_bytes(manifest) == expected


def test_what_lies_in_a_folder_counts_and_what_does_not_is_left_to_its_load(
    tmp_path: Path,
) -> None:
    graphs.version(tmp_path / "light" / "1", document=graphs.manifest(batch={"max_size": 3}))
    files = sum(each.stat().st_size for each in (tmp_path / "light" / "1").rglob("*.*"))
    files -= (tmp_path / "light" / "1" / "manifest.yaml").stat().st_size
    active = {"light": "1", "absent": "7"}
    models = ModelsSettings(repository=str(tmp_path), default="light", active=active)
    settings = Settings(models=models)
    found = {LIGHT: Footprint(files, 256, 3), ModelRef("absent", "7"): Footprint()}
    assert needed_memory(settings) == memory_of(settings, found)


def test_nothing_is_asked_of_a_repository_far_away() -> None:
    models = ModelsSettings(repository="https://nobody.invalid/models")
    settings = Settings(models=models)
    expected = memory_of(settings, {ModelRef("digits", "1"): Footprint()})
    assert needed_memory(settings) == expected
