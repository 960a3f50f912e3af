import pytest

from worker.inference.pace import Pace, hanging_s

TABLE = {"1": 20.0, "4": 40.0, "8": 50.0}


def runs(pace: Pace, count: int, rows: int, run_ms: float) -> bool:
    verdicts = [pace.jumped(rows, run_ms) for _ in range(count)]
    return any(verdicts)


@pytest.mark.parametrize(
    ("rows", "run_ms", "slow"),
    [
        (1, 200.0, False),
        (1, 201.0, True),
        (3, 400.0, False),
        (3, 401.0, True),
        (8, 501.0, True),
        (16, 1000.0, False),
        (16, 1001.0, True),
    ],
)
def test_a_run_is_far_too_slow_at_ten_times_what_its_size_took(
    *, rows: int, run_ms: float, slow: bool
) -> None:
    assert runs(Pace(TABLE), 3, rows, run_ms) is slow


@pytest.mark.parametrize(
    ("service_ms", "expected_s"), [({}, 30.0), (TABLE, 30.0), ({"1": 9.0, "64": 4000.0}, 80.0)]
)
def test_a_lane_hangs_at_twenty_times_the_slowest_run_but_not_before_half_a_minute(
    service_ms: dict[str, float], expected_s: float
) -> None:
    assert hanging_s(service_ms) == expected_s


def test_one_run_of_a_hundred_may_be_slow() -> None:
    pace = Pace(TABLE)
    for _ in range(10):
        assert not runs(pace, 98, 4, 40.0)
        assert not runs(pace, 2, 4, 4000.0)
        assert not runs(pace, 100, 4, 40.0)


def test_a_run_that_may_have_waited_for_a_core_is_no_sign() -> None:
    assert not runs(Pace({"1": 0.1}), 1000, 1, 99.0)


def test_without_a_table_there_is_nothing_to_compare_with() -> None:
    assert not runs(Pace({}), 1000, 1, 1e6)
