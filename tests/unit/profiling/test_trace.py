from typing import Any

import pytest

from tests.unit.profiling.recordings import KERNELS, lane, recording
from worker.profiling.recording import Recording, Samples
from worker.profiling.trace import calls, folded, trace

SAMPLES = Samples(
    {"1": "MainThread", "2": "lane-0"},
    [["main", "loop"], ["main", "loop", "poll"], ["work"]],
    [(101.0, 1, 0), (101.0, 2, 2), (101.01, 1, 1), (101.02, 1, 1), (101.03, 1, 0)],
)


def complete(recordings: list[Recording]) -> list[dict[str, Any]]:
    return [event for event in trace(recordings)["traceEvents"] if event["ph"] == "X"]


def names(recordings: list[Recording], what: str) -> list[tuple[int, str]]:
    events = trace(recordings)["traceEvents"]
    return [(e["pid"], e["args"]["name"]) for e in events if e["name"] == what]


def test_processes_and_threads_are_named() -> None:
    both = [recording("worker", 1, samples=SAMPLES), recording(lanes=[lane("lane-0", decode=1.0)])]
    assert names(both, "process_name") == [(1, "worker (pid 1)"), (7, "engine a/1 (pid 7)")]
    assert names(both, "thread_name") == [
        (1, "MainThread (sampled)"),
        (1, "lane-0 (sampled)"),
        (7, "lane-0"),
    ]


def test_times_begin_with_the_first_process_and_stages_follow_each_other() -> None:
    late = recording(begun_s=99.0, lanes=[lane(decode=1.0, kernels=2.0, rows=4)])
    found = [(e["name"], e["ts"], e["dur"], e["args"]) for e in complete([late])]
    assert found == [("decode", 1e6, 1e6, {"rows": 4}), ("kernels", 2e6, 2e6, {"rows": 4})]


def test_onnx_runtimes_events_are_moved_to_the_common_clock() -> None:
    found = complete([recording(kernels=KERNELS)])
    assert len(found) == len(KERNELS.events)
    assert min(event["ts"] for event in found) == pytest.approx(12e6 + 1000)
    assert {event["cat"] for event in found} == {"Node", "Session"}


def test_a_call_lasts_while_it_is_found_below_the_same_callers() -> None:
    stacks = [["a", "b"], ["a", "b", "c"], ["a", "d"], ["a"]]
    found = list(calls([(at / 100, stack) for at, stack in enumerate(stacks)]))
    assert found == [("c", 0.01, 0.02), ("b", 0.0, 0.02), ("d", 0.02, 0.03), ("a", 0.0, 0.03)]


def test_the_same_function_below_another_caller_is_another_call() -> None:
    found = list(calls([(0.0, ["a", "x"]), (0.01, ["b", "x"])]))
    assert found == [("x", 0.0, 0.01), ("a", 0.0, 0.01), ("x", 0.01, 0.01), ("b", 0.01, 0.01)]


def test_nothing_is_told_of_a_gap_between_samples() -> None:
    found = list(calls([(0.0, ["a"]), (0.01, ["a"]), (5.0, ["a"]), (5.01, ["a"])]))
    assert found == [("a", 0.0, 0.01), ("a", 5.0, 5.01)]


def test_events_of_one_row_lie_in_each_other_or_follow_each_other() -> None:
    events = complete([recording(samples=SAMPLES, lanes=[lane(decode=1.0, kernels=1.0)])])
    spans = [(e["tid"], e["ts"], e["ts"] + e["dur"]) for e in events]
    crossing = [
        (one, two)
        for one in spans
        for two in spans
        if one[0] == two[0] and one[1] < two[1] < one[2] < two[2]
    ]
    assert crossing == []


def test_stacks_are_folded_with_their_process_and_thread() -> None:
    assert folded([recording("worker", 1, samples=SAMPLES)]) == [
        "worker 1;MainThread;main;loop 2",
        "worker 1;MainThread;main;loop;poll 2",
        "worker 1;lane-0;work 1",
    ]
