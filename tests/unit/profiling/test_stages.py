import sys
import threading
import time
from collections import Counter
from types import SimpleNamespace

import pytest

from worker.profiling import stages
from worker.profiling.recording import LaneTrack
from worker.profiling.stages import Stage, Stages

HERE = threading.get_ident()


def tracked(*entered: tuple[Stage, int], first: Stage = Stage.WAITING) -> LaneTrack:
    watch = Stages({HERE: ("lane-0", first)})
    for stage, rows in entered:
        watch.enter(stage, rows)
    (track,) = watch.close()
    return track


def test_a_lane_is_always_in_exactly_one_stage() -> None:
    before_s = time.monotonic()
    track = tracked((Stage.DECODE, 2), (Stage.COPY_IN, 2), (Stage.KERNELS, 0), (Stage.WAITING, 0))
    after_s = time.monotonic()
    order = [span.stage for span in track.spans]
    assert order == ["waiting", "decode", "copy in", "kernels", "waiting"]
    ends = [span.ended_s for span in track.spans]
    assert [span.begun_s for span in track.spans[1:]] == ends[:-1]
    whole_s = track.spans[-1].ended_s - track.spans[0].begun_s
    assert sum(track.totals_s.values()) == pytest.approx(whole_s)
    assert 0 < whole_s <= after_s - before_s


def test_rows_are_counted_once_where_they_become_a_batch() -> None:
    copied = [(Stage.COPY_IN, 3), (Stage.HEADS, 3), (Stage.COPY_IN, 5), (Stage.HEADS, 5)]
    track = tracked((Stage.DECODE, 8), *copied)
    assert (track.rows, track.batches) == (8, 2)


def test_a_lane_that_does_the_same_all_the_time_is_told_too() -> None:
    track = tracked(first=Stage.KERNELS)
    assert [span.stage for span in track.spans] == ["kernels"]


def test_threads_that_are_no_lanes_and_lanes_that_are_late_change_nothing() -> None:
    watch = Stages({HERE: ("lane-0", Stage.WAITING)})
    other = threading.Thread(target=watch.enter, args=(Stage.DECODE,))
    other.start()
    other.join()
    (track,) = watch.close()
    watch.enter(Stage.DECODE)
    assert [span.stage for span in track.spans] == ["waiting"]


def test_too_many_spans_are_counted_and_stay_in_the_totals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "_MOST_SPANS", 2)
    track = tracked((Stage.DECODE, 1), (Stage.KERNELS, 1), (Stage.HEADS, 1))
    assert (len(track.spans), track.spans_left_out) == (2, 2)
    assert set(track.totals_s) == {"waiting", "decode", "kernels", "heads"}


def test_each_stage_is_a_range_of_nvtx_where_that_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[str] = []
    ended: Counter[int] = Counter()

    def start_range(*, message: str) -> int:
        begun.append(message)
        return len(begun)

    nvtx = SimpleNamespace(start_range=start_range, end_range=lambda number: ended.update([number]))
    monkeypatch.setitem(sys.modules, "nvtx", nvtx)
    tracked((Stage.DECODE, 1), (Stage.KERNELS, 1))
    assert begun == ["waiting", "decode", "kernels"]
    assert ended == {1: 1, 2: 1, 3: 1}
