"""The arithmetic of the benchmark of swaps, its plan and its command line."""

import itertools
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import orjson
import pytest

from benchmarks.commanded import (
    IN_TURN,
    LOAD,
    ROLLBACK,
    WARM,
    Change,
    Commanded,
    Run,
    Step,
    Stopped,
    cycle,
)
from benchmarks.ending import Ended
from benchmarks.report import Report
from benchmarks.served import (
    Account,
    Row,
    ages_ms,
    batch_interval_ms,
    gap_of,
    gaps_ms,
    last_before,
    row,
)
from benchmarks.swap import FULL, arguments, besides_loads, divided, effort_of
from benchmarks.tell_swaps import AT_ONCE, SWAPS, Pair, Several, Swapped, all_of, several

ROOT = Path(__file__).parents[3]


def served(
    number: int,
    *,
    generation: int = 1,
    version: str = "1",
    stamp_ms: int = 0,
    worker: str = "w",
    batch: tuple[float, int] = (1.0, 1),
) -> Row:
    run_ms, size = batch
    whole = worker, version, run_ms, 0.5, size
    return Row(number, number % 6, stamp_ms, worker, generation, version, whole)


def counted(rows: Sequence[Row]) -> Account:
    account = Account()
    account.take(rows)
    return account


def test_help_names_every_option_of_the_contract() -> None:
    told = subprocess.run(
        [sys.executable, "benchmarks/swap.py", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert told.returncode == 0, told.stderr
    for option in ("--quick", "--json", "--case", "--swaps"):
        assert option in told.stdout


@pytest.mark.parametrize(
    ("given", "swaps", "pairs", "switches", "deaf"),
    [
        ([], 200, 10, 40, 20),
        (["--quick"], 10, 1, 4, 2),
        (["--swaps", "50"], 50, 2, 10, 5),
        (["--swaps", "3"], 3, 1, 2, 1),
        (["--swaps", "400"], 400, 10, 40, 20),
        (["--quick", "--swaps", "20"], 20, 1, 4, 2),
    ],
)
def test_two_hundred_swaps_or_ten_and_what_is_asked_for_wins_all_else_in_proportion(
    given: list[str], swaps: int, pairs: int, switches: int, deaf: int
) -> None:
    effort = effort_of(arguments(given), "digits")
    told = (effort.swaps, effort.pairs, effort.switches, effort.deaf)
    assert told == (swaps, pairs, switches, deaf)


def test_one_swap_is_refused_because_nothing_can_be_compared_to_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        arguments(["--swaps", "1"])
    assert "at least 2" in capsys.readouterr().err


def test_switches_under_backlog_come_back_to_where_the_cycle_was() -> None:
    assert all(effort.switches % 2 == 0 for effort in FULL.values())
    asked = [arguments(["--swaps", str(number)]) for number in range(2, 60)]
    assert all(effort_of(each, "digits").switches % 2 == 0 for each in asked)


def test_every_third_swap_loads_a_version_that_is_not_held_at_once_and_in_turn() -> None:
    steps = list(itertools.islice(cycle(), 18))
    assert {step.kind for step in steps[0::6]} == {LOAD}
    assert {step.kind for step in steps[3::6]} == {IN_TURN}
    assert {step.kind for step in steps[1::3]} == {ROLLBACK}
    assert {step.kind for step in steps[2::3]} == {WARM}
    loads = [step.version for step in steps[0::3]]
    assert all(len(set(loads[at : at + 3])) == 3 for at in range(len(loads) - 2))
    assert [step.version for step in steps[2::3]] == loads


def test_parts_differ_by_one_at_most() -> None:
    assert divided(199, 10) == [20] * 9 + [19]


def test_a_result_says_all_that_is_asked_of_it() -> None:
    value = {
        "status": "ok",
        "worker": "w",
        "generation": None,
        "model": {"name": "digits", "version": "2"},
        "timing_ms": {"run": 1.5, "heads": 0.5},
        "engine": {"batch_size": 4},
    }
    read = row(7, 1, 99, orjson.dumps(value))
    assert read == Row(7, 1, 99, "w", 0, "2", ("w", "2", 1.5, 0.5, 4))


def test_an_account_without_faults_counts_records_and_nothing_else() -> None:
    account = counted([served(number) for number in range(12)])
    faults = (account.repeated, account.disordered, account.unserved, account.torn)
    assert (account.count, *faults) == (12, 0, 0, 0, 0)


def test_an_account_counts_repeats_and_what_stands_behind_later_records() -> None:
    account = counted([served(0), served(12), served(6), served(12)])
    assert (account.count, account.repeated, account.disordered) == (3, 1, 1)


def test_a_result_in_another_partition_than_its_records_is_out_of_order() -> None:
    account = counted([served(7)._replace(partition=0)])
    assert account.disordered == 1


def test_a_result_that_is_no_prediction_is_not_served() -> None:
    failed = served(0)._replace(version=None, batch=None)
    assert counted([failed]).unserved == 1


def test_a_batch_of_which_a_row_has_another_version_is_torn_on_both_sides() -> None:
    whole = [served(number, batch=(2.0, 3)) for number in range(3)]
    torn = [served(3, batch=(5.0, 2)), served(4, version="2", batch=(5.0, 2))]
    assert counted(whole).torn == 0
    assert counted([*whole, *torn]).torn == 2


def test_a_version_is_allowed_by_its_generation_and_no_other() -> None:
    account = counted(
        [served(0), served(1, generation=2, version="2"), served(2, generation=2, version="1")]
    )
    assert account.forbidden({1: "1", 2: "2"}) == 1
    assert account.forbidden({1: "1"}) == 2


def test_the_last_result_of_the_old_is_of_any_older_generation() -> None:
    rows = [
        served(0, generation=1, stamp_ms=10),
        served(1, generation=2, stamp_ms=30),
        served(2, generation=3, stamp_ms=40),
    ]
    assert last_before(rows, 3) == 30
    assert last_before(rows, 1) is None


def test_a_gap_is_each_workers_own_and_none_where_both_were_published_together() -> None:
    rows = [
        served(0, worker="a", generation=1, stamp_ms=10),
        served(1, worker="a", generation=2, stamp_ms=17),
        served(2, worker="b", generation=1, stamp_ms=20),
        served(3, worker="b", generation=2, stamp_ms=20),
        served(4, worker="b", generation=3, stamp_ms=21),
    ]
    assert gaps_ms(rows, [1, 2, 3]) == [7, 0, 1]


def test_ages_count_within_the_spans_by_when_a_record_was_due() -> None:
    rows = [served(number, stamp_ms=1000 * number + 5) for number in (10, 11, 12, 13)]
    due_s = [10.0, 11.0, 12.0, 13.0]
    assert ages_ms(rows, due_s, 10, [(11_000, 11_500), (13_000, 13_000)]) == [5.0, 5.0]


def test_the_interval_between_batches_is_each_workers() -> None:
    rows = [
        served(number, worker="ab"[number % 2], stamp_ms=number * 10, batch=(number // 4, 2))
        for number in range(11)
    ]
    assert batch_interval_ms(rows) == pytest.approx(100 * 2 / 5.5)


def test_beside_the_load_at_once_counts_the_last_worker_and_in_turn_all_loads() -> None:
    change = Change(LOAD, 2, 1000, {"a": 3100, "b": 4050}, ())
    took_s = {"a": 2.0, "b": 3.0}
    assert besides_loads(change, took_s) == pytest.approx(100)
    in_turn = change._replace(kind=IN_TURN, answered_ms={"a": 6200, "b": 6300})
    assert besides_loads(in_turn, took_s) == pytest.approx(300)


def test_the_gap_is_read_off_the_metrics() -> None:
    text = (
        "# TYPE darkroom_switch_gap_seconds gauge\n"
        'darkroom_switch_gap_seconds{model="digits"} 0.0041\n'
    )
    assert gap_of(text) == 0.0041
    assert gap_of("darkroom_models_loaded 2.0\n") is None


def test_a_percentile_of_nothing_is_no_figure() -> None:
    with pytest.raises(SystemExit, match="nothing was measured"):
        several([])


def test_targets_stand_beside_what_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steady, swaps = Several(100, 5.0, 10.0, 20.0), Several(100, 6.0, 18.0, 30.0)
    found = Swapped("digits", drained=1000.0, interval_ms=4.0, rate=400.0, swaps=3)
    found.wrong = {"records lost": 0, "records repeated": 2}
    found.switch_ms = [4.0, 12.0, 13.0]
    found.rollback_ms = [100]
    found.resident_mb = {"after the first": [100.0, 100.0], "at the end": [100.0, 108.0]}
    found.pairs = [Pair(steady, {SWAPS: swaps, AT_ONCE: swaps}, late_ms=1.0)]
    report = Report()
    all_of(found, report)
    report.write(tmp_path / "swap.json")
    said = json.loads((tmp_path / "swap.json").read_text())["results"]
    by_name = {each["metric"]: each for each in said}
    switch = by_name["the switch under backlog, as workers measure it, p50"]
    assert (switch["value"], switch["baseline"], switch["ratio"]) == (12, "target <= 10 ms", 1.2)
    assert by_name["memory at the end"]["ratio"] == 1.04
    assert by_name["record age p99, swaps"]["ratio"] == 1.8
    shown = capsys.readouterr().out
    lines = {line.split("  ")[0]: line.split()[-1] for line in shown.splitlines() if line}
    assert lines["records lost"] == "yes"
    assert lines["records repeated"] == "NO"
    assert lines["the switch under backlog, as workers measure it"] == "NO"
    assert lines["rollback: written to last result of the old"] == "yes"
    assert lines["at the end"] == "yes"
    assert lines[SWAPS] == "NO"


def test_what_was_measured_of_a_fleet_is_told_though_it_did_not_come_to_its_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found, report = Swapped("digits"), Report()
    all_of(found, report)
    assert not report.figures
    found.drained, found.rate, found.swaps = 1000.0, 400.0, 1
    found.nudge_ms = [40]
    all_of(found, report)
    told = {figure.metric for figure in report.figures}
    assert {"drain", "swaps", "convergence by nudge, version warm, p99"} <= told
    assert not any("record age" in metric or "others" in metric for metric in told)
    assert "counted at the end: it was not reached" in capsys.readouterr().out


def test_swaps_under_way_stop_when_the_benchmark_is_asked_to_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run.__new__(Run)
    fleet = run.fleet = Commanded.__new__(Commanded)
    fleet.stopped = threading.Event()
    heard: list[bool] = []

    def swap(*_: object) -> list[Change]:
        heard.append(fleet.stopped.wait(10))
        raise Stopped

    monkeypatch.setattr(fleet, "swap", swap)
    monkeypatch.setattr(run, "_done", list)
    with pytest.raises(Ended), run._swapping([Step(ROLLBACK, None)], tuple):
        raise Ended(signal.SIGTERM)
    assert heard == [True]
