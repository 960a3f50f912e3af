from pathlib import Path

from tests.unit.profiling.recordings import KERNELS, lane, recording
from worker.profiling.recording import Samples


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "engine.json"
    samples = Samples({"1": "lane-0"}, [["a", "b"]], [[100.0, 1, 0]])  # type: ignore[list-item]  # JSON's tuple
    first = recording(
        samples=samples, lanes=[lane(decode=1.0, rows=2)], kernels=KERNELS, notes=["none"]
    )
    first.write(file)
    assert type(first).read(file) == first


def test_a_recording_of_a_worker_has_no_lanes(tmp_path: Path) -> None:
    recording("worker", lanes=[]).write(tmp_path / "w.json")
    found = recording().read(tmp_path / "w.json")
    assert (found.process, found.lanes, found.kernels, found.seconds) == ("worker", [], None, 10.0)
