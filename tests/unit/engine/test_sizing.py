"""What bounds batches while an engine serves: measured, told, warmed when limits grow."""

import threading
from collections.abc import Callable

import pytest

from worker.engine.batcher import Bounds
from worker.engine.costs import Costs, Took
from worker.engine.sizing import Sizing
from worker.types import Limits

LIMITS = Limits(64, 1, 5.0, 1 << 20, 1 << 20, 1 << 20, slo_ms=250.0, adaptive=True)
FIXED = LIMITS._replace(max_size=8, adaptive=False)


class Bench:
    """A device that takes `once_s` for a run and `each_s` for a row."""

    def __init__(self, limits: Limits, *, each_s: float = 0.001, once_s: float = 0.010) -> None:
        self.each_s = each_s
        self.once_s = once_s
        self.told: list[Bounds] = []
        self.warmed: list[int] = []
        self.too_large = 1 << 30
        self.later: list[Callable[[], None]] = []
        self.on_warmed: Callable[[], None] = lambda: None
        self.sizing = Sizing(
            Costs(),
            limits,
            allowed=lambda limits: limits.max_size,
            warm=self._warm,
            tell=self.told.append,
            warmed=self._tell_sizes,
            aside=self.later.append,
        )
        self.sizing.widen()
        self.sizing.limit(limits)
        self.warmed.clear()
        self.told.clear()

    def _warm(self, rows: int) -> Took:
        if rows >= self.too_large:
            raise MemoryError
        self.warmed.append(rows)
        return self.took(rows)

    def _tell_sizes(self) -> None:
        self.on_warmed()

    def seconds(self, rows: int) -> float:
        return self.once_s + self.each_s * rows

    def took(self, rows: int) -> Took:
        return Took(self.seconds(rows), self.seconds(rows))

    def run(self, times: int) -> None:
        """Run so many batches, each as large as may be."""
        for _ in range(times):
            rows = self.sizing.bounds.cap
            self.sizing.ran(rows, self.took(rows))

    def do_what_is_aside(self) -> None:
        while self.later:
            self.later.pop(0)()


def test_a_size_that_is_asked_for_is_the_cap_and_as_many_as_are_efficient_are_enough() -> None:
    bench = Bench(FIXED, once_s=0.0001)
    assert (bench.sizing.bounds.cap, bench.sizing.bounds.enough) == (8, 2)


def test_without_one_the_cap_is_what_is_efficient_and_within_the_objective() -> None:
    bench = Bench(LIMITS)
    assert (bench.sizing.bounds.cap, bench.sizing.bounds.enough) == (64, 64)
    bench.sizing.limit(LIMITS._replace(slo_ms=60.0))
    assert bench.sizing.bounds.cap == 16


def test_bounds_follow_what_is_measured_after_twenty_batches_and_not_before() -> None:
    bench = Bench(LIMITS)
    bench.each_s *= 4
    bench.run(19)
    assert bench.told == []
    bench.run(1)
    assert [bounds.cap for bounds in bench.told] == [bench.sizing.bounds.cap]
    bench.run(200)
    assert bench.seconds(bench.sizing.bounds.cap) <= 0.125


def test_a_backlog_beyond_the_objective_makes_batches_larger_until_it_is_gone() -> None:
    bench = Bench(LIMITS._replace(slo_ms=120.0))
    small = bench.sizing.bounds.cap
    bench.sizing.behind(0.5)
    bench.run(20)
    assert bench.sizing.bounds.cap > small
    bench.sizing.behind(0.1)
    bench.run(20)
    assert bench.sizing.bounds.cap == small


def test_now_and_then_a_larger_size_is_tried_so_that_one_bad_measurement_does_not_last() -> None:
    bench = Bench(LIMITS, each_s=0.009, once_s=0.0)
    assert bench.sizing.bounds.cap == 1
    bench.each_s, bench.once_s = 0.001, 0.008
    bench.run(2000)
    assert bench.told[-1].cap == 2
    bench.run(20)
    assert bench.sizing.bounds.cap >= 2, "company is cheaper than it seemed while warming"
    bench.run(2000)
    bench.do_what_is_aside()
    assert (bench.sizing.bounds.cap, bench.sizing.most) == (64, 64)


def test_a_size_that_is_asked_for_is_never_passed_by_a_probe() -> None:
    bench = Bench(FIXED)
    bench.run(4000)
    assert bench.told == []


def test_a_larger_size_is_used_once_it_is_warm_and_a_smaller_one_at_once() -> None:
    bench = Bench(FIXED)
    bench.sizing.limit(FIXED._replace(max_size=40))
    assert (bench.sizing.bounds.cap, bench.sizing.most) == (8, 8)
    bench.do_what_is_aside()
    assert bench.warmed == [16, 32, 40]
    assert (bench.sizing.bounds.cap, bench.sizing.most) == (40, 40)
    assert [bounds.cap for bounds in bench.told] == [40]
    bench.sizing.limit(FIXED._replace(max_size=3))
    assert (bench.sizing.bounds.cap, bench.sizing.most) == (3, 3)
    assert bench.later == []


def test_while_the_worker_is_told_of_sizes_lanes_go_on_and_none_is_used_before_it_is_told() -> None:
    bench = Bench(FIXED)
    went_on: list[tuple[bool, int]] = []

    def slow_worker() -> None:
        lane = threading.Thread(target=bench.run, args=(40,), daemon=True)
        lane.start()
        lane.join(10)
        went_on.append((not lane.is_alive(), bench.sizing.bounds.cap))

    bench.on_warmed = slow_worker
    bench.sizing.limit(FIXED._replace(max_size=32))
    bench.do_what_is_aside()
    assert went_on == [(True, 8)]
    assert bench.sizing.bounds.cap == 32


def test_only_one_at_a_time_warms_what_the_newest_limits_want() -> None:
    bench = Bench(FIXED)
    bench.sizing.limit(FIXED._replace(max_size=64))
    bench.sizing.limit(FIXED._replace(max_size=16))
    assert len(bench.later) == 1
    bench.do_what_is_aside()
    assert bench.warmed == [16]


def test_a_size_that_cannot_be_run_is_not_tried_again_and_what_was_warm_serves_on() -> None:
    bench = Bench(FIXED)
    bench.too_large = 32
    bench.sizing.limit(FIXED._replace(max_size=64))
    bench.do_what_is_aside()
    assert bench.sizing.bounds.cap == 16
    bench.run(40)
    assert bench.later == []


def test_an_engine_that_ends_warms_nothing_more() -> None:
    bench = Bench(FIXED)
    bench.sizing.close()
    bench.sizing.limit(FIXED._replace(max_size=64))
    assert bench.later == []


def test_what_was_warmed_stays_enough_for_a_model_that_hardly_gains() -> None:
    bench = Bench(LIMITS, each_s=0.010, once_s=0.0)
    assert bench.sizing.most == 4
    bench.once_s = 0.0005
    for _ in range(100):
        for rows in (1, 2, 3, 4):
            bench.sizing.ran(rows, bench.took(rows))
    assert bench.later == []


def test_a_device_that_was_busy_while_it_was_warmed_is_tried_with_more_when_it_is_not() -> None:
    bench = Bench(LIMITS, each_s=0.050, once_s=0.300)
    assert bench.sizing.most == 1
    bench.each_s, bench.once_s = 0.001, 0.010
    bench.run(40)
    bench.do_what_is_aside()
    assert bench.sizing.most == 64


@pytest.mark.timeout(30)
def test_sizes_are_warmed_on_a_thread_of_their_own() -> None:
    threads: list[str] = []
    done = threading.Event()

    def warm(rows: int) -> Took:
        threads.append(threading.current_thread().name)
        if rows == 8:
            done.set()
        return Took(0.001 * rows, 0.001 * rows)

    sizing = Sizing(
        Costs(),
        FIXED._replace(max_size=4),
        allowed=lambda limits: limits.max_size,
        warm=warm,
        tell=lambda _: None,
    )
    sizing.widen()
    threads.clear()
    sizing.limit(FIXED)
    assert done.wait(10)
    assert threads == ["warm"]
