"""Statistics of the benchmarks: ratios beside the nearest baselines, intervals, steady rates."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.ratios import Timed, beside, percentile, spread, steady_rate

VALUES = st.lists(st.floats(0.1, 10.0), min_size=1, max_size=30)


def test_a_run_stands_beside_the_median_of_the_baselines_nearest_in_time() -> None:
    slow_hour = [Timed(at_s, 50.0) for at_s in (0, 10, 20, 30)]
    fast_hour = [Timed(at_s, value) for at_s, value in ((1000, 90.0), (1010, 100.0), (1020, 110.0))]
    assert beside(Timed(1005, 80.0), slow_hour + fast_hour, nearest=3) == 0.8


def test_a_drift_of_the_machine_leaves_the_ratio_as_it_is() -> None:
    baselines = [Timed(at_s, 100.0 + at_s) for at_s in range(0, 100, 10)]
    ratios = [beside(Timed(at_s, 0.8 * (100.0 + at_s)), baselines) for at_s in range(25, 75, 10)]
    assert ratios == pytest.approx([0.8] * len(ratios), rel=0.01)


@given(VALUES)
def test_the_interval_holds_the_median_and_lies_within_the_range(values: list[float]) -> None:
    found = spread(values)
    assert found.least <= found.low <= found.high <= found.most
    assert found.least <= found.median <= found.most
    assert found.runs == len(values)


def test_the_interval_of_equal_pairs_is_a_point() -> None:
    found = spread([0.9] * 10)
    assert (found.low, found.median, found.high) == (0.9, 0.9, 0.9)


def test_the_interval_narrows_with_more_pairs() -> None:
    few, many = spread([0.8, 0.9, 1.0]), spread([0.8, 0.9, 1.0] * 20)
    assert many.high - many.low < few.high - few.low


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1), (0.5, 51), (0.99, 100), (1.0, 100)])
def test_a_percentile_is_one_of_the_values(share: float, expected: int) -> None:
    assert percentile(list(range(100, 0, -1)), share) == expected


@pytest.mark.parametrize("group", [1, 16, 64])
def test_a_rate_is_not_biased_by_results_that_come_in_groups(group: int) -> None:
    every_ms = 10 * group
    stamps = [at for at in range(500, 10_500, every_ms) for _ in range(group)]
    assert math.isclose(steady_rate(stamps), 100.0)


def test_a_window_of_one_stamp_has_no_rate() -> None:
    with pytest.raises(ValueError, match="too short"):
        steady_rate([7, 7, 7])
