"""How benchmarks end that are asked to, in processes of their own, and what their files say."""

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks.report import Figure, Report

ROOT = Path(__file__).parents[3]

MEASURES = """
import contextlib, signal, subprocess, sys, time
from pathlib import Path
from benchmarks import ending
from benchmarks.report import Figure, Report

@contextlib.contextmanager
def started():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        yield child
    finally:
        {clean}

ending.CLEAN_S = 1.0
report = Report(Path(sys.argv[1]))
with ending.ending(report, limit_s={limit_s}), started() as child:
    report.add(Figure("case", "metric", 1.0, "s"))
    print(child.pid, flush=True)
    {then}
"""
CLEANS = "child.kill(); child.wait()"
HANGS = RESTS = "time.sleep(600)"
SOON = "signal.setitimer(signal.ITIMER_REAL, signal.getitimer(signal.ITIMER_REAL)[0] / 60_000)"
"""Lets the end of the time come as soon as everything runs, if there is one."""


@contextlib.contextmanager
def begun(
    file: Path, *, clean: str = CLEANS, limit_s: float | None = None, then: str = RESTS
) -> Iterator[subprocess.Popen[str]]:
    program = MEASURES.format(clean=clean, limit_s=limit_s, then=then)
    with subprocess.Popen(
        [sys.executable, "-c", program, str(file)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def child_of(process: subprocess.Popen[str]) -> psutil.Process:
    assert process.stdout is not None
    return psutil.Process(int(process.stdout.readline()))


def said(file: Path) -> tuple[str | None, int]:
    told = json.loads(file.read_text())
    return told.get("partial"), len(told["results"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_who_is_asked_to_end_keeps_what_was_measured_and_nothing_that_was_started(
    number: signal.Signals, tmp_path: Path
) -> None:
    with begun(tmp_path / "out.json") as process:
        child = child_of(process)
        process.send_signal(number)
        assert process.wait(60) == 128 + number
    assert not child.is_running()
    assert said(tmp_path / "out.json") == (f"ended by {number.name}", 1)


def test_a_clean_up_that_hangs_is_not_waited_for_nor_broken_off_by_a_second_signal(
    tmp_path: Path,
) -> None:
    with begun(tmp_path / "out.json", clean=HANGS) as process:
        child = child_of(process)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    child.wait(60)
    assert said(tmp_path / "out.json")[1] == 1


def test_what_nothing_took_charge_of_does_not_outlive_a_benchmark_that_is_asked_to_end(
    tmp_path: Path,
) -> None:
    with begun(tmp_path / "out.json", clean="pass") as process:
        child = child_of(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    child.wait(60)
    assert said(tmp_path / "out.json") == ("ended by SIGTERM", 1)


def test_the_end_of_the_time_ends_it_and_an_end_in_time_is_no_part(tmp_path: Path) -> None:
    with begun(tmp_path / "late.json", limit_s=600, then=f"{SOON}; {RESTS}") as late:
        assert late.wait(60) == 128 + signal.SIGALRM
    assert said(tmp_path / "late.json") == ("its time was up", 1)
    with begun(tmp_path / "whole.json", then="pass") as whole:
        assert whole.wait(60) == 0
    assert said(tmp_path / "whole.json") == (None, 1)


def test_a_file_has_every_figure_as_it_comes_and_says_that_it_is_not_all(tmp_path: Path) -> None:
    report = Report(tmp_path / "out.json")
    assert said(tmp_path / "out.json") == ("the benchmark did not come to its end", 0)
    report.add(Figure("case", "metric", 1.0, "s"))
    assert said(tmp_path / "out.json") == ("the benchmark did not come to its end", 1)
    report.finish()
    assert said(tmp_path / "out.json") == (None, 1)
    assert [file.name for file in tmp_path.iterdir()] == ["out.json"]
    with pytest.raises(AssertionError, match="after the end"):
        report.add(Figure("case", "another", 1.0, "s"))
    assert said(tmp_path / "out.json") == (None, 1)


def test_a_file_that_cannot_be_written_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"--json: .*No such file"):
        Report(tmp_path / "nowhere" / "out.json")
