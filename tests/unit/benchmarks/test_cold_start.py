"""What the benchmark of cold starts makes of its starts, which are none here."""

import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import cold_start
from benchmarks.cold_start import Cold


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Give back the signals that a benchmark takes for good."""
    taken = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
    before = {number: signal.getsignal(number) for number in taken}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_file_of_one_that_came_to_its_end_has_all_figures_and_says_of_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = iter([Cold(*(float(n),) * len(Cold._fields)) for n in (1, 3, 2)])
    monkeypatch.delenv("DARKROOM_TEST_ASSETS", raising=False)
    monkeypatch.setattr("worker.local.stack.running", contextlib.nullcontext)
    monkeypatch.setattr(cold_start, "start", lambda *_: next(starts))
    monkeypatch.setattr(sys, "argv", ["", "--quick", "--json", str(tmp_path / "out.json")])

    assert cold_start.main() == 0

    said = json.loads((tmp_path / "out.json").read_text())
    assert "partial" not in said
    found = {each["metric"]: (each["value"], each["ratio"]) for each in said["results"]}
    assert found["first"] == (2.0, pytest.approx(2 / 3, rel=1e-5))
    assert found["pss"][0] == 4.0
