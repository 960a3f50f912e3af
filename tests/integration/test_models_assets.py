"""Models and pictures that nobody in this project made, through a real worker on a real Kafka."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.broker import Feed, Headers, make_topics, read_all
from tests.contract.test_engine_assets import PEAK_BYTES, SQUEEZENET, mnist, squeezenet
from tests.integration.traffic import wait_served
from tests.workers import Crew, crew_in, peak_kb
from worker.local.stack import Stack

pytestmark = [pytest.mark.kafka, pytest.mark.assets]

MODELS = {"squeezenet": "1", "mnist": "1"}
ROBUST = (
    "fish_224.png",
    "kitten_224_rgba.png",
    "hummingbird.jpg",
    "cat.jpg",
    "dog.jpg",
    "kimono.jpg",
    "daisy.jpg",
    "pineapple_png_named.jpg",
)
SAME_RESIZE = 0.02
"""Decoders differ by a level or two; the resize is the reference's own."""
SERVED_FOLDERS = ("photos", "faces", "exif_orientation", "pngsuite")
ROTATED = tuple(f"exif_orientation/hopper_{number}.jpg" for number in (2, 3, 6, 7, 8))
DIGITS: Headers = (("darkroom-model", b"mnist"),)


class Seen(NamedTuple):
    results: dict[str, list[dict[str, Any]]]
    """Key -> its results. Keys of pictures are their paths below `images`."""
    peaks_bytes: list[int]

    def of(self, name: str) -> dict[str, Any]:
        return self.results[name][0]

    def table(self) -> str:
        """Every file and how it ended, for the message of an error."""
        return "\n".join(
            f"{name:44} {[(end['status'], end.get('reason'), _best(end)) for end in ends]}"
            for name, ends in sorted(self.results.items())
        )


@pytest.fixture(scope="module")
def files(assets: Path) -> dict[str, Path]:
    root = assets / "images"
    found = (path for path in sorted(root.rglob("*")) if path.is_file() and path.suffix != ".json")
    return {str(path.relative_to(root)): path for path in found}


@pytest.fixture(scope="module")
def seen(
    kafka: Stack, assets: Path, files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Seen:
    """All pictures through squeezenet, the digits through mnist, by one worker."""
    folder = tmp_path_factory.mktemp("models-assets")
    squeezenet(assets, folder / "models" / "squeezenet" / "1")
    mnist(assets, folder / "models" / "mnist" / "1")
    topics = make_topics(kafka, f"assets-{os.getpid()}", partitions=2)
    feed = Feed(topics)
    for number, (name, path) in enumerate(files.items()):
        feed.send(name.encode(), path.read_bytes(), partition=number % 2)
    for path in sorted((assets / "models/mnist8/images").iterdir()):
        feed.send(path.name.encode(), path.read_bytes(), headers=DIGITS)
    feed.flush()
    with crew_in(folder) as crew:
        peaks_bytes = _serve(crew, topics, folder / "models")
    results: dict[str, list[dict[str, Any]]] = {}
    for record in read_all(topics, topics.output):
        results.setdefault((record.key or b"").decode(), []).append(record.json)
    return Seen(results, peaks_bytes)


def _serve(crew: Crew, topics: Any, repository: Path) -> list[int]:
    """Let a worker serve what is there; return the peak memory of each engine."""
    models = {"repository": str(repository), "default": "squeezenet", "active": MODELS}
    worker = crew.start(topics, {"models": models})
    wait_served(crew, topics)
    peaks_bytes = [peak_kb(engine.pid) << 10 for engine in worker.engines()]
    assert worker.events("engine.ended") == [], "no picture may cost an engine"
    assert worker.stop() == 0
    return peaks_bytes


def test_every_file_has_exactly_one_outcome(seen: Seen, files: dict[str, Path]) -> None:
    counts = {name: len(seen.results.get(name, [])) for name in files}
    assert set(counts.values()) == {1}, seen.table()
    poison = [name for name in files if seen.of(name).get("reason") == "record.poison"]
    assert poison == [], "a broken file is refused for what it is"


def test_every_ordinary_picture_is_served(seen: Seen, files: dict[str, Path]) -> None:
    ordinary = [name for name in files if name.partition("/")[0] in SERVED_FOLDERS]
    refused = [name for name in ordinary if seen.of(name)["status"] != "ok"]
    assert refused == [], seen.table()


@pytest.mark.parametrize("name", ROBUST)
def test_squeezenet_agrees_with_the_reference(seen: Seen, assets: Path, name: str) -> None:
    said = seen.of(f"photos/{name}")["predictions"]["label"][0]
    references = json.loads((assets / "models" / SQUEEZENET / "expected.json").read_text())
    expected = references["images"][f"images/photos/{name}"]["top5"][0]
    assert said["index"] == expected["index"]
    assert said["score"] == pytest.approx(expected["score"], abs=SAME_RESIZE)


@pytest.mark.parametrize("name", ROTATED)
def test_a_rotated_picture_says_what_the_upright_one_says(seen: Seen, name: str) -> None:
    rotated, upright = seen.of(name), seen.of("formats/hopper.jpg")
    assert rotated["image"] == upright["image"]
    assert _best(rotated) == _best(upright)


def test_a_digit_of_bytes_says_what_the_reference_says(seen: Seen, assets: Path) -> None:
    references = json.loads((assets / "models/mnist8/expected.json").read_text())["images"]
    expected = references["mnist8/images/mnist_28.png"]
    (end,) = seen.results["mnist_28.png"]
    said = end["predictions"]["label"][0]
    assert said["label"] == str(expected["digit"])
    assert said["score"] == pytest.approx(expected["logits"][expected["digit"]], abs=0.1)
    assert end["engine"]["batch_size"] == 1


@pytest.mark.parametrize("digit", "0357")
def test_digits_that_were_meant_for_another_scale_are_read_all_the_same(
    seen: Seen, digit: str
) -> None:
    (end,) = seen.results[f"digit_{digit}.jpg"]
    assert _best(end) == digit


def test_the_engines_memory_stays_under_its_limit(seen: Seen) -> None:
    assert len(seen.peaks_bytes) == len(MODELS)
    assert max(seen.peaks_bytes) < PEAK_BYTES


def _best(end: dict[str, Any]) -> str | None:
    found = (end.get("predictions") or {}).get("label")
    return found[0]["label"] if found else None
