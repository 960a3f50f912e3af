"""What the benchmark of a GPU makes of engines that end, live on or fail, on real CPU engines."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_cases, gpu_faults
from benchmarks.gpu import PARTS_S, Measuring, device_mb
from benchmarks.gpu_engines import Broken, Setup, answer_of, beside
from benchmarks.gpu_faults import SEGFAULT, Strike, fault
from benchmarks.report import Report


def setup_in(folder: Path) -> Setup:
    return Setup(
        root=folder, policy="cpu", device=None, cap=2, seconds=0.2, swaps=2, report=Report(),
        engines=[],
    )  # fmt: skip


async def struck(setup: Setup, strike: Strike) -> bool:
    try:
        return await fault(setup, gpu_cases.version(setup.root, "squeezenet", "float32"), strike)
    finally:
        await setup.end_all()


@pytest.mark.long
def test_an_engine_that_is_struck_ends_by_itself_and_the_picture_is_served_by_the_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup = setup_in(tmp_path)
    assert asyncio.run(struck(setup, SEGFAULT))
    shown = capsys.readouterr().out
    assert "it ended by SIGSEGV" in shown
    assert "0 found guilty, 0 lost, 0 twice" in shown


@pytest.mark.long
def test_an_engine_that_lives_on_is_killed_and_that_is_no_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_faults, "ENDS_S", 0.5)
    assert not asyncio.run(struck(setup_in(tmp_path), Strike("a miss", lambda _, __: None)))
    assert "it ended by it did not end by itself" in capsys.readouterr().out


def answers(answer: Callable[[Any], None], what: str) -> None:
    answer(what)


def dies(_: Callable[[Any], None]) -> None:
    raise SystemExit(3)


def waits(_: Callable[[Any], None]) -> None:
    time.sleep(600)


def test_a_process_beside_answers_dies_or_is_not_waited_for() -> None:
    with beside(None, answers, "this") as connection:
        assert answer_of(connection, "it", within_s=60) == "this"
    with beside(None, dies) as connection, pytest.raises(Broken, match="it: its process died"):
        answer_of(connection, "it", within_s=60)
    with beside(None, waits) as connection, pytest.raises(Broken, match=r"no answer in 0\.1 s"):
        answer_of(connection, "it", within_s=0.1)


def test_what_fails_leaves_the_other_measurements_and_the_exit_code_knows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def breaks() -> bool:
        raise Broken("no engine")

    async def wrong() -> bool:
        return False

    async def right() -> bool:
        return True

    measuring = Measuring(setup_in(tmp_path), part=None)
    asyncio.run(measuring.measure("first", right()))
    assert measuring.sound
    for number, failing in enumerate((wrong(), breaks())):
        each = Measuring(setup_in(tmp_path), part=None)
        asyncio.run(each.measure(f"failing {number}", failing))
        assert not each.sound
    shown = capsys.readouterr().out
    assert "NOT AS IT MUST BE: failing 0" in shown
    assert "NOT MEASURED: failing 1: no engine" in shown


def test_a_part_has_its_time_and_what_was_left_and_alone_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0
    monkeypatch.setattr("benchmarks.gpu.time.monotonic", lambda: now_s)
    measuring = Measuring(setup_in(tmp_path), part=None)
    assert measuring.begins("rates")
    now_s = PARTS_S["rates"] + 1
    assert not measuring.goes_on("more rates")
    assert measuring.begins("faults")
    assert measuring.goes_on("a fault")
    now_s = 0.0
    alone = Measuring(setup_in(tmp_path), part="swaps")
    assert not alone.begins("rates")
    assert not alone.begins("faults")
    assert alone.begins("swaps")
    now_s = sum(PARTS_S.values()) - 1
    assert alone.goes_on("a swap")


def test_a_cpu_has_no_memory_of_a_device() -> None:
    assert device_mb(None) is None
