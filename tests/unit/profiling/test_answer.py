import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.profiling.recordings import KERNELS, lane, recording
from worker.profiling.answer import Answer, Queues, answer, document, text
from worker.profiling.recording import LaneTrack, Recording
from worker.profiling.stages import Stage

QUEUES = Queues(250_000.0, 1_234.0)
WORKER = recording("worker", 1, cpu_s=1.0)


def told_of(*recordings: Recording) -> Answer:
    return answer("w", [WORKER, *recordings], QUEUES, notes=["engine b/1: there is none now"])


def shares(told: Answer) -> dict[str, tuple[float, float | None]]:
    return {each.stage: (each.share, each.us_a_record) for each in told.shares}


def test_shares_are_of_the_time_of_all_lanes_and_costs_are_of_all_records() -> None:
    first = recording(lanes=[lane(decode=6.0, kernels=4.0, rows=30, batches=4)])
    second = recording(pid=8, lanes=[lane(decode=2.0, waiting=8.0, rows=10, batches=4)])
    told = told_of(first, second)
    assert (told.lanes, told.lane_s, told.records, told.batches) == (2, 20.0, 40, 8)
    found = shares(told)
    assert list(found) == [stage.value for stage in Stage]
    assert found["decode"] == pytest.approx((0.4, 200_000))
    assert found["kernels"] == pytest.approx((0.2, 100_000))
    assert found["heads"] == (0.0, 0.0)
    assert told.engine_cpu_s == 10.0
    assert told.cores == {"worker 1": 0.1, "engine a/1 7": 0.5, "engine a/1 8": 0.5}


@given(st.lists(st.dictionaries(st.sampled_from(Stage), st.floats(1e-6, 1e3)), max_size=5))
def test_the_shares_of_any_lanes_add_up_to_all_of_their_time(lanes: list[dict[str, float]]) -> None:
    told = told_of(recording(lanes=[LaneTrack("lane", 1, dict(each)) for each in lanes]))
    assert sum(each.share for each in told.shares) == pytest.approx(1.0 if any(lanes) else 0.0)


def test_without_records_nothing_is_divided_by_them() -> None:
    told = told_of(recording(lanes=[lane(waiting=10.0)]))
    assert shares(told)["waiting"] == (1.0, None)
    assert "waiting         100.0%             -" in text(told)
    assert "The lanes had nothing to do." in text(told)


def test_a_worker_without_an_engine_is_told_as_it_is() -> None:
    told = answer("w", [WORKER], Queues(None, None))
    assert told.lane_s == 0
    assert "No engine was recorded." in text(told)
    assert "(none counted)" in text(told)


def test_onnx_runtimes_runs_are_split_into_copies_and_kernels() -> None:
    (runs,) = told_of(recording(lanes=[lane(kernels=1.0)], kernels=KERNELS)).runs
    assert (runs.runs, runs.rows, runs.run_us) == (2, 8, 100.0)
    assert (runs.copy_in, runs.kernels) == pytest.approx((0.075, 0.85))
    assert runs.copy_in + runs.kernels + runs.copy_out == pytest.approx(1.0)
    assert dict(runs.operators) == pytest.approx({"Conv": 130 / 150, "Relu": 20 / 150})


def test_people_are_told_the_shares_the_largest_and_what_could_not_be_had() -> None:
    track = lane(waiting=5.0, decode=3.0, kernels=2.0, rows=10, batches=5)
    track.spans_left_out = 3
    said = text(told_of(recording(lanes=[track], kernels=KERNELS, notes=["no second session"])))
    assert "1 lanes = 10.0 s of lane time; 10 records in 5 batches" in said
    assert "decode           30.0%     300,000.0" in said
    assert "all             100.0%   1,000,000.0" in said
    assert "Of the work, most is decode: 30.0% of lane time." in said
    assert "5.0 s of work by the clock had 5.0 s of CPU.\n" in said
    assert "waited 250 ms in Kafka and 1,234 us in its engine" in said
    assert "2 runs of the golden sample x 8" in said
    assert "note: engine a/1: no second session" in said
    assert "note: engine b/1: there is none now" in said
    assert "note: 3 spans were too many" in said


def test_work_that_had_little_cpu_waited_for_something() -> None:
    said = text(told_of(recording(cpu_s=4.0, lanes=[lane(decode=5.0, rows=1)])))
    assert "5.0 s of work by the clock had 4.0 s of CPU; the rest waited for a core" in said


def test_an_answer_is_plain_json() -> None:
    said = document(told_of(recording(lanes=[lane(decode=1.0, rows=1)], kernels=KERNELS)))
    assert orjson.loads(orjson.dumps(said)) == orjson.loads(orjson.dumps(said, default=str))
    assert said["shares"][1] == {"stage": "decode", "share": 1.0, "us_a_record": 1e6}
    assert set(said["runs"][0]["operators"]) == {"Conv", "Relu"}
