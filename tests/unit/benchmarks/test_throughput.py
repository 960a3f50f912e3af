"""The benchmark's command line, its plan, what it writes and how it frees a model's batch."""

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks.cases import demo_digits, free_batch
from benchmarks.peers import AIOKAFKA, CONFLUENT, DARKROOM, NAIVE
from benchmarks.recipe import ByHand
from benchmarks.report import Figure, Report
from benchmarks.runs import schedule
from benchmarks.throughput import arguments, effort_of
from benchmarks.where_time_goes import Split, next_step, stages
from worker.demo.pictures import pictures

ROOT = Path(__file__).parents[3]


def test_help_names_every_option_of_the_contract() -> None:
    told = subprocess.run(
        [sys.executable, "benchmarks/throughput.py", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert told.returncode == 0, told.stderr
    for option in ("--quick", "--json", "--case", "--pairs", "--seconds"):
        assert option in told.stdout


def test_quick_is_one_short_pair_and_what_is_asked_for_wins() -> None:
    case = demo_digits()
    quick = effort_of(arguments(["--quick"]), case)
    assert (quick.pairs, quick.ages) == (1, 1)
    asked = effort_of(arguments(["--quick", "--pairs", "4", "--seconds", "7"]), case)
    assert (asked.pairs, asked.seconds, asked.offline_s) == (4, 7.0, quick.offline_s)


def test_in_full_the_window_is_the_cases_and_there_are_ten_pairs() -> None:
    case = demo_digits()
    full = effort_of(arguments([]), case)
    assert (full.pairs, full.seconds) == (10, case.seconds)


@pytest.mark.parametrize("given", [["--pairs", "0"], ["--case", "c"], ["--part", "all"]])
def test_what_cannot_be_measured_is_refused(
    given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        arguments(given)
    assert ended.value.code == 2
    assert given[0] in capsys.readouterr().err


@pytest.mark.parametrize("pairs", [1, 2, 10])
def test_darkroom_runs_in_every_pair_and_everybody_at_least_once(pairs: int) -> None:
    order = schedule(pairs)
    assert order.count(DARKROOM) == pairs
    assert set(order) == {DARKROOM, AIOKAFKA, CONFLUENT, NAIVE}


def test_ten_pairs_give_the_loops_five_runs_and_the_naive_one_two() -> None:
    order = schedule(10)
    assert [order.count(peer) for peer in (AIOKAFKA, CONFLUENT, NAIVE)] == [5, 5, 2]


def test_json_holds_the_figures_with_the_machine_and_the_versions_beside_them(
    tmp_path: Path,
) -> None:
    report = Report()
    report.add(Figure("a", "Darkroom: drain", 155.123456, "records/s", "the offline limit", 0.95))
    report.write(tmp_path / "out.json")
    said = json.loads((tmp_path / "out.json").read_text())
    assert set(said) == {"machine", "versions", "results"}
    assert said["versions"]["darkroom"]
    assert said["results"] == [
        {"case": "a", "metric": "Darkroom: drain", "value": 155.123, "unit": "records/s",
         "baseline": "the offline limit", "ratio": 0.95}
    ]  # fmt: skip


def test_the_next_step_is_where_most_time_goes_besides_the_work() -> None:
    assert "`worker`" in next_step(Split(0.7, 0.05, 0.15, 0.05, 0.0, 0.05))
    assert "`idle`" in next_step(Split(0.7, 0.01, 0.05, 0.05, 0.0, 0.19))


def test_means_are_read_off_the_metrics() -> None:
    text = (
        'darkroom_stage_seconds_bucket{le="0.1",stop="decode"} 4.0\n'
        'darkroom_stage_seconds_count{stop="decode"} 4.0\n'
        'darkroom_stage_seconds_sum{stop="decode"} 0.2\n'
        "darkroom_batch_rows_count 2.0\ndarkroom_batch_rows_sum 32.0\n"
        'darkroom_stage_seconds_count{stop="route"} 0.0\n'
    )
    assert stages(text) == [("stop decode", 0.05, 4), ("batch_rows", 16.0, 2)]


def test_the_loop_by_hand_reads_the_demos_digits() -> None:
    some = pictures()[:40]
    answers = ByHand(demo_digits().recipe).serve([picture.png for picture in some])
    right = sum(best[0]["label"] == p.label for best, p in zip(answers, some, strict=True))
    assert right >= 30
    assert all(best[0]["score"] >= best[-1]["score"] for best in answers)


def test_freeing_the_batch_frees_input_output_and_the_reshape_of_rows() -> None:
    rows = TensorProto(name="rows", data_type=TensorProto.INT64, dims=[2], int64_data=[1, 256])
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["Input3", "rows"], ["out"])],
        "digits",
        [helper.make_tensor_value_info("Input3", TensorProto.FLOAT, [1, 1, 16, 16])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 256])],
        [rows],
    )
    freed = free_batch(helper.make_model(graph))
    onnx.checker.check_model(freed)
    ends = (*freed.graph.input, *freed.graph.output)
    assert [end.type.tensor_type.shape.dim[0].dim_param for end in ends] == ["N", "N"]
    assert list(freed.graph.initializer[0].int64_data) == [-1, 256]
